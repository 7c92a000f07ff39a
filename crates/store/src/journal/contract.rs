//! What [`Journal`] promises, checked on any backend.

use super::*;
use std::future::Future;
use std::sync::Arc;

/// Tenant number `n` of the tests.
fn tenant(n: u8) -> TenantId {
    TenantId::from_bytes([n; 16])
}

/// An entry of tenant `n`.
pub fn entry(n: u8, class: Class, actor: &str, at: i64) -> NewEntry {
    NewEntry {
        id: JournalId::from_bytes([n; 16]),
        tenant: tenant(n),
        class,
        kind: "test.thing.seen".into(),
        at: Timestamp(at),
        actor: ActorRef::system(actor),
        correlation: "c".into(),
        content: Content::Whole { salt: [3; 16], bytes: format!("{{\"at\":{at}}}").into_bytes() },
        values: vec![],
    }
}

/// Runs the whole suite, each part on a fresh journal.
pub async fn check<F, Fut>(open: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Journal>>,
{
    order_and_filters(open().await).await;
    tenants_are_apart(open().await).await;
    content_is_forgotten(open().await).await;
    values_are_kept_once(open().await).await;
    the_tree_grows(open().await).await;
    content_is_erased(open().await).await;
}

async fn the_tree_grows(journal: Arc<dyn Journal>) {
    let mut leaves = vec![];
    for at in 1..=3 {
        let entry = entry(1, Class::ToolCall, "a", at);
        leaves.push(entry.header(at as u64).leaf(&entry.content.hash()));
        journal.record(entry).await.unwrap();
    }
    crate::contract::check_tree(journal.as_ref(), &leaves).await;
}

async fn all(journal: &Arc<dyn Journal>, n: u8) -> Vec<Entry> {
    journal.entries(tenant(n), JournalQuery { limit: 1_000, ..JournalQuery::default() }).await.unwrap()
}

async fn order_and_filters(journal: Arc<dyn Journal>) {
    assert!(journal.offer(entry(1, Class::ToolCall, "a", 1)));
    assert!(journal.offer(entry(1, Class::ToolCall, "b", 2)));
    assert_eq!(journal.record(entry(1, Class::Security, "a", 3)).await, Ok(3));
    let found = all(&journal, 1).await;
    assert_eq!(found.iter().map(|e| (e.header.position, e.header.at.0)).collect::<Vec<_>>(), [(1, 1), (2, 2), (3, 3)]);
    assert_eq!(found[1].data.as_deref(), Some(&br#"{"at":2}"#[..]));
    let query = |after, class, actor: Option<&str>, limit| JournalQuery { after, class, actor: actor.map(str::to_owned), limit };
    let positions = async |query: JournalQuery| {
        let found = journal.entries(tenant(1), query).await.unwrap();
        found.iter().map(|e| e.header.position).collect::<Vec<_>>()
    };
    assert_eq!(positions(query(1, None, None, 10)).await, [2, 3]);
    assert_eq!(positions(query(0, Some(Class::ToolCall), None, 10)).await, [1, 2]);
    assert_eq!(positions(query(0, None, Some("a"), 10)).await, [1, 3]);
    assert_eq!(positions(query(0, None, None, 2)).await, [1, 2]);
}

async fn tenants_are_apart(journal: Arc<dyn Journal>) {
    assert_eq!(journal.record(entry(1, Class::ToolCall, "a", 1)).await, Ok(1));
    assert_eq!(journal.record(entry(2, Class::ToolCall, "a", 2)).await, Ok(1));
    assert_eq!(all(&journal, 1).await.len(), 1);
    assert_eq!(all(&journal, 3).await, []);
}

async fn content_is_forgotten(journal: Arc<dyn Journal>) {
    for at in 1..=3 {
        journal.record(entry(1, Class::ToolCall, "a", at)).await.unwrap();
    }
    journal.record(entry(1, Class::Security, "a", 1)).await.unwrap();
    assert_eq!(journal.forget(BTreeMap::from([(Class::ToolCall, Timestamp(3))])).await, Ok(2));
    let kept: Vec<bool> = all(&journal, 1).await.iter().map(|e| e.data.is_some()).collect();
    assert_eq!(kept, [false, false, true, true]);
    assert_eq!(journal.forget(BTreeMap::from([(Class::ToolCall, Timestamp(3))])).await, Ok(0));
}

async fn content_is_erased(journal: Arc<dyn Journal>) {
    let with_value = NewEntry { values: vec![([5; 32], b"large".to_vec())], ..entry(1, Class::ToolCall, "a", 1) };
    journal.record(with_value).await.unwrap();
    journal.record(entry(1, Class::Security, "a", 2)).await.unwrap();
    journal.record(entry(2, Class::ToolCall, "a", 1)).await.unwrap();
    assert_eq!(journal.values(tenant(1), [0; 32], 9).await.unwrap(), [([5; 32], b"large".to_vec())]);
    journal.erase(tenant(1), vec![1]).await.unwrap();
    assert_eq!(
        journal.erase_values(tenant(1), vec![[5; 32]], 1).await,
        Err(StoreError::ViewMoved(2)),
        "a later entry may name it"
    );
    assert!(journal.value(tenant(1), &[5; 32]).await.unwrap().is_some());
    journal.erase_values(tenant(1), vec![[5; 32]], 2).await.unwrap();
    journal.scrub().await.unwrap();
    let found = all(&journal, 1).await;
    assert_eq!(found.iter().map(|e| e.data.is_some()).collect::<Vec<_>>(), [false, true]);
    assert!(found.iter().all(Entry::is_intact));
    assert_eq!(journal.value(tenant(1), &[5; 32]).await, Ok(None));
    assert!(all(&journal, 2).await[0].data.is_some(), "other tenants keep theirs");
    // What was erased before comes back as that.
    let erased = NewEntry { content: Content::Erased([9; 32]), ..entry(2, Class::ToolCall, "a", 2) };
    journal.record(erased).await.unwrap();
    let last = all(&journal, 2).await.pop().unwrap();
    assert_eq!((last.data.is_none(), last.data_hash, last.is_intact()), (true, [9; 32], true));
    // A value that is named again without its bytes keeps them, for as long as the later entry.
    for (at, bytes) in [(10, &b"large"[..]), (20, b"")] {
        let naming = NewEntry { values: vec![([6; 32], bytes.to_vec())], ..entry(3, Class::ToolCall, "a", at) };
        journal.record(naming).await.unwrap();
    }
    let unknown = NewEntry { values: vec![([7; 32], vec![])], ..entry(3, Class::ToolCall, "a", 30) };
    journal.record(unknown).await.unwrap();
    assert_eq!(journal.value(tenant(3), &[7; 32]).await, Ok(None), "nothing is made up for a value that is not there");
    journal.forget(BTreeMap::from([(Class::ToolCall, Timestamp(15))])).await.unwrap();
    assert_eq!(journal.value(tenant(3), &[6; 32]).await.unwrap().as_deref(), Some(&b"large"[..]));
}

async fn values_are_kept_once(journal: Arc<dyn Journal>) {
    let with_value = |at| NewEntry { values: vec![([5; 32], b"large".to_vec())], ..entry(1, Class::ToolCall, "a", at) };
    journal.record(with_value(1)).await.unwrap();
    journal.record(with_value(9)).await.unwrap();
    assert_eq!(journal.value(tenant(1), &[5; 32]).await.unwrap().as_deref(), Some(&b"large"[..]));
    assert_eq!(journal.value(tenant(2), &[5; 32]).await, Ok(None));
    journal.forget(BTreeMap::from([(Class::ToolCall, Timestamp(5))])).await.unwrap();
    assert!(journal.value(tenant(1), &[5; 32]).await.unwrap().is_some(), "a later entry refers to it");
    journal.forget(BTreeMap::from([(Class::ToolCall, Timestamp(10))])).await.unwrap();
    assert_eq!(journal.value(tenant(1), &[5; 32]).await, Ok(None));
}
