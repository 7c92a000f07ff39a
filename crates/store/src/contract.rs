//! The contract suite: what [`Store`] promises, checked on any backend, and a model test against the memory store.

use crate::memory::MemoryStore;
use crate::*;
use kernel::event::Content;
use kernel::{ActorRef, Category, EventId, IndexField, NewEvent, UniqueChange};
use std::collections::BTreeMap;
use std::future::Future;

/// A backend under test.
pub type Subject = Arc<dyn Store>;

/// Log number `n` of the tests.
pub fn log(n: u8) -> TenantId {
    TenantId::from_bytes([n; 16])
}

/// An event with `data`.
pub fn event(kind: &'static str, data: &str, now: i64) -> NewEvent {
    NewEvent {
        id: EventId::from_bytes([7; 16]),
        kind,
        shape: 1,
        category: Category::Domain,
        occurred_at: Timestamp(now),
        actor: ActorRef::system("contract"),
        user: None,
        correlation: "c".into(),
        causation: None,
        trace_parent: None,
        content: Content::Whole { salt: [1; 16], bytes: format!("{{\"data\":{{\"d\":\"{data}\"}}}}").into_bytes() },
    }
}

/// A write of `events` events to a stream that has version `expected`.
pub fn write(stream: &str, expected: u64, events: usize, now: i64) -> StreamWrite {
    let status = if (expected + events as u64).is_multiple_of(2) { "even" } else { "odd" };
    StreamWrite {
        stream: stream.into(),
        expected_version: expected,
        events: (0..events).map(|i| event("test.thing.happened", &format!("{stream}-{expected}-{i}"), now)).collect(),
        unique: vec![],
        row: (events > 0).then(|| NewRow {
            kind: "thing",
            state: Some(format!("state {}", expected + events as u64).into_bytes()),
            index: vec![IndexField::new("status", status), IndexField::new("owner", "o")],
            is_deleted: false,
        }),
        erases: false,
    }
}

/// An append of writes to log `n`.
pub fn append(n: u8, writes: Vec<StreamWrite>) -> Append {
    Append {
        log: log(n),
        writes,
        idempotency: None,
        values: vec![],
        secrets: vec![],
        authority: None,
        if_head: None,
        now: Timestamp(1_000),
    }
}

/// Runs the whole suite, each part on a fresh store.
pub async fn check<F, Fut>(open: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Subject>,
{
    reads_its_own_append(open().await).await;
    refuses_another_version(open().await).await;
    writes_all_streams_or_none(open().await).await;
    keeps_keys_unique(open().await).await;
    remembers_idempotency_keys(open().await).await;
    keeps_logs_apart(open().await).await;
    lists_by_field_and_page(open().await).await;
    scans_by_type_and_stream(open().await).await;
    finds_positions_by_time(open().await).await;
    keeps_values_and_secrets(open().await).await;
    moves_views_with_their_checkpoint(open().await).await;
    wakes_followers(open().await).await;
    keeps_a_large_state_of_an_earlier_version(open().await).await;
    grows_its_tree(open().await).await;
    orders_concurrent_appends(open().await).await;
    erases_what_a_stream_said(open().await).await;
    puts_back_what_lay_beside(open().await).await;
    refuses_what_rests_on_an_earlier_head(open().await).await;
}

async fn reads_its_own_append(s: Subject) {
    let done = s.append(append(1, vec![write("thing_a", 0, 2, 5)])).await.unwrap();
    assert_eq!(done.position, 2);
    let row = s.entity(log(1), "thing_a").await.unwrap().unwrap();
    assert_eq!((row.version, row.state_version, row.position, row.state.as_slice()), (2, 2, 2, &b"state 2"[..]));
    assert_eq!((row.created_at, row.updated_at), (Timestamp(5), Timestamp(5)));
    let events = s.read(log(1), "thing_a", 1, 10).await.unwrap();
    assert_eq!(events.iter().map(|e| (e.header.version, e.header.position)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    assert!(events.iter().all(|e| e.is_intact()));
    assert_eq!(s.read(log(1), "thing_a", 2, 10).await.unwrap().len(), 1);
    assert_eq!(s.read(log(1), "thing_b", 1, 10).await.unwrap().len(), 0);
    assert_eq!(*s.tail(log(1)).borrow(), 2);
    let mut apart = write("thing_c", 0, 2, 5);
    apart.events[1].occurred_at = Timestamp(9);
    s.append(append(1, vec![apart])).await.unwrap();
    let row = s.entity(log(1), "thing_c").await.unwrap().unwrap();
    assert_eq!((row.created_at, row.updated_at), (Timestamp(5), Timestamp(9)), "the first and the latest event");
}

async fn refuses_another_version(s: Subject) {
    s.append(append(1, vec![write("thing_a", 0, 1, 0)])).await.unwrap();
    for (expected, events) in [(0, 1), (2, 1), (0, 0)] {
        let refused = s.append(append(1, vec![write("thing_a", expected, events, 0)])).await.unwrap_err();
        assert_eq!(refused, StoreError::Conflict { stream: "thing_a".into(), expected, actual: 1 });
    }
    // An append without events only checks.
    assert_eq!(s.append(append(1, vec![write("thing_a", 1, 0, 0)])).await.unwrap().position, 1);
    assert_eq!(s.entity(log(1), "thing_a").await.unwrap().unwrap().version, 1);
}

async fn writes_all_streams_or_none(s: Subject) {
    s.append(append(1, vec![write("thing_b", 0, 1, 0)])).await.unwrap();
    let refused = s.append(append(1, vec![write("thing_a", 0, 1, 0), write("thing_b", 0, 1, 0)])).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })));
    assert_eq!(s.entity(log(1), "thing_a").await.unwrap(), None);
    let done = s.append(append(1, vec![write("thing_a", 0, 1, 0), write("thing_b", 1, 2, 0)])).await.unwrap();
    assert_eq!(done.position, 4);
    let all = s.scan(log(1), 0, ScanFilter::default(), 10).await.unwrap();
    assert_eq!(all.events.iter().map(|e| e.header.position).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

fn with_unique(mut w: StreamWrite, changes: Vec<UniqueChange>) -> StreamWrite {
    w.unique = changes;
    w
}

async fn keeps_keys_unique(s: Subject) {
    let take = || vec![UniqueChange::Take("name:x".into())];
    s.append(append(1, vec![with_unique(write("thing_a", 0, 1, 0), take())])).await.unwrap();
    let refused = s.append(append(1, vec![with_unique(write("thing_b", 0, 1, 0), take())])).await.unwrap_err();
    assert_eq!(refused, StoreError::Taken { key: "name:x".into(), holder: "thing_a".into() });
    assert_eq!(s.entity(log(1), "thing_b").await.unwrap(), None);
    assert_eq!(s.holder(log(1), "name:x").await.unwrap().as_deref(), Some("thing_a"));
    // The holder may take it again, and hand it over within one append.
    let free = vec![UniqueChange::Free("name:x".into())];
    s.append(append(1, vec![with_unique(write("thing_a", 1, 1, 0), take())])).await.unwrap();
    s.append(append(1, vec![with_unique(write("thing_a", 2, 1, 0), free), with_unique(write("thing_b", 0, 1, 0), take())]))
        .await
        .unwrap();
    assert_eq!(s.holder(log(1), "name:x").await.unwrap().as_deref(), Some("thing_b"));
    // Two streams of one append cannot both have it.
    let both = vec![
        with_unique(write("thing_c", 0, 1, 0), vec![UniqueChange::Take("y".into())]),
        with_unique(write("thing_d", 0, 1, 0), vec![UniqueChange::Take("y".into())]),
    ];
    assert!(matches!(s.append(append(1, both)).await, Err(StoreError::Taken { .. })));
}

/// The write that erases a stream.
pub fn erasure(stream: &str, expected: u64) -> StreamWrite {
    let mut erasing = write(stream, expected, 1, 0);
    erasing.events[0].kind = kernel::event::ERASED;
    erasing.erases = true;
    if let Some(row) = &mut erasing.row {
        (row.state, row.index, row.is_deleted) = (Some(b"null".to_vec()), vec![], true);
    }
    erasing
}

async fn erases_what_a_stream_said(s: Subject) {
    let mut first = append(1, vec![with_unique(write("thing_a", 0, 2, 0), vec![UniqueChange::Take("name:a".into())])]);
    first.idempotency = Some(IdempotencyKey { key: "k".into(), request_hash: [3; 32] });
    first.values = vec![([9; 32], Some(b"large".to_vec())), ([8; 32], Some(b"other".to_vec()))];
    s.append(first).await.unwrap();
    s.append(append(1, vec![with_unique(write("thing_b", 0, 2, 0), vec![UniqueChange::Take("name:b".into())])])).await.unwrap();
    let before = s.scan(log(1), 0, ScanFilter::default(), 10).await.unwrap().events;
    let mut erasing = append(1, vec![erasure("thing_a", 2)]);
    erasing.values = vec![([9; 32], None)];
    s.append(erasing).await.unwrap();
    s.scrub().await.unwrap();
    let after = s.scan(log(1), 0, ScanFilter::default(), 10).await.unwrap().events;
    let said: Vec<bool> = after.iter().map(|event| event.payload.is_some() && event.salt.is_some()).collect();
    assert_eq!(said, [false, false, true, true, true], "the erasure itself is there");
    assert!(after.iter().all(|event| event.is_intact()));
    assert!(after.iter().zip(&before).all(|(a, b)| a.leaf == b.leaf && a.header == b.header));
    let read = s.read(log(1), "thing_a", 1, 10).await.unwrap();
    assert_eq!(read.iter().map(|event| event.payload.is_some()).collect::<Vec<_>>(), [false, false, true]);
    let row = s.entity(log(1), "thing_a").await.unwrap().unwrap();
    assert_eq!((row.version, &row.state[..], row.is_deleted), (3, &b"null"[..], true));
    assert_eq!(s.index_values(log(1), "thing", "owner", "", 10).await.unwrap(), ["o"], "of the other one");
    assert_eq!(s.holder(log(1), "name:a").await.unwrap(), None);
    assert_eq!(s.holder(log(1), "name:b").await.unwrap().as_deref(), Some("thing_b"));
    assert_eq!(s.idempotent(log(1), "k").await.unwrap(), None);
    assert_eq!(s.value(log(1), &[9; 32]).await.unwrap(), None);
    assert!(s.value(log(1), &[8; 32]).await.unwrap().is_some());
}

async fn refuses_what_rests_on_an_earlier_head(s: Subject) {
    s.append(append(1, vec![write("thing_a", 0, 1, 0)])).await.unwrap();
    let mut removing = append(1, vec![]);
    removing.values = vec![([9; 32], None)];
    removing.if_head = Some(1);
    let mut naming = append(1, vec![write("thing_b", 0, 1, 0)]);
    naming.values = vec![([9; 32], Some(b"large".to_vec()))];
    s.append(naming).await.unwrap();
    assert_eq!(s.append(removing.clone()).await.unwrap_err(), StoreError::ViewMoved(2));
    assert!(s.value(log(1), &[9; 32]).await.unwrap().is_some(), "a later event names it");
    removing.if_head = Some(2);
    s.append(removing).await.unwrap();
    assert_eq!(s.value(log(1), &[9; 32]).await.unwrap(), None);
}

async fn puts_back_what_lay_beside(s: Subject) {
    s.append(append(1, vec![write("thing_a", 0, 1, 0)])).await.unwrap();
    let known = Idempotent { request_hash: [3; 32], stream: "thing_a".into(), position: 1 };
    let things = vec![
        Beside::Idempotent("k1".into(), known.clone()),
        Beside::Idempotent("k2".into(), known.clone()),
        Beside::Value([9; 32], b"large".to_vec()),
        Beside::Secret("s".into(), vec![1, 2]),
    ];
    s.put_beside(log(1), things.clone()).await.unwrap();
    let mut found = vec![];
    for kind in [BesideKind::Idempotent, BesideKind::Value, BesideKind::Secret] {
        found.extend(all_beside(&s, kind).await);
    }
    assert_eq!(found, things);
    assert_eq!(s.idempotent(log(1), "k2").await.unwrap(), Some(known));
    assert_eq!(s.beside(log(2), BesideKind::Secret, vec![], 9).await.unwrap(), [], "logs are apart");
    // An event whose content was erased before comes back as that.
    let mut erased = write("thing_b", 0, 1, 0);
    erased.events[0].content = Content::Erased([4; 32]);
    s.append(append(1, vec![erased])).await.unwrap();
    let event = s.read(log(1), "thing_b", 1, 1).await.unwrap().remove(0);
    assert_eq!((event.payload.as_ref(), event.salt, event.payload_hash, event.is_intact()), (None, None, [4; 32], true));
}

async fn all_beside(s: &Subject, kind: BesideKind) -> Vec<Beside> {
    let mut found: Vec<Beside> = vec![];
    loop {
        let after = found.last().map(Beside::place).unwrap_or_default();
        let page = s.beside(log(1), kind, after, 1).await.unwrap();
        if page.is_empty() {
            return found;
        }
        found.extend(page);
    }
}

async fn remembers_idempotency_keys(s: Subject) {
    let key = IdempotencyKey { key: "k".into(), request_hash: [3; 32] };
    let mut first = append(1, vec![write("thing_a", 0, 1, 0)]);
    first.idempotency = Some(key.clone());
    s.append(first).await.unwrap();
    let known = Idempotent { request_hash: [3; 32], stream: "thing_a".into(), position: 1 };
    let mut again = append(1, vec![write("thing_b", 0, 1, 0)]);
    again.idempotency = Some(key);
    assert_eq!(s.append(again).await.unwrap_err(), StoreError::Repeated(known.clone()));
    assert_eq!(s.idempotent(log(1), "k").await.unwrap(), Some(known));
    assert_eq!(s.idempotent(log(2), "k").await.unwrap(), None);
    assert_eq!(s.entity(log(1), "thing_b").await.unwrap(), None);
}

async fn keeps_logs_apart(s: Subject) {
    s.append(append(1, vec![with_unique(write("thing_a", 0, 1, 0), vec![UniqueChange::Take("u".into())])])).await.unwrap();
    s.append(append(2, vec![with_unique(write("thing_a", 0, 1, 0), vec![UniqueChange::Take("u".into())])])).await.unwrap();
    assert_eq!(*s.tail(log(2)).borrow(), 1);
    assert_eq!(s.entity(log(3), "thing_a").await.unwrap(), None);
    assert_eq!(s.scan(log(2), 0, ScanFilter::default(), 10).await.unwrap().events.len(), 1);
    assert_eq!(s.logs().await.unwrap(), [log(1), log(2)]);
}

async fn lists_by_field_and_page(s: Subject) {
    for name in ["a", "b", "c", "d", "e"] {
        s.append(append(1, vec![write(&format!("thing_{name}"), 0, 1, 0)])).await.unwrap();
    }
    s.append(append(1, vec![write("thing_c", 1, 1, 0)])).await.unwrap();
    s.append(append(1, vec![write("thingy_z", 0, 1, 0)])).await.unwrap();
    let mut gone = write("thing_e", 1, 2, 0);
    gone.row.as_mut().unwrap().is_deleted = true;
    s.append(append(1, vec![gone])).await.unwrap();
    let list = async |query: EntityQuery| {
        let page = s.entities(log(1), query).await.unwrap();
        (page.rows.into_iter().map(|r| r.stream.replace("thing_", "")).collect::<String>(), page.next)
    };
    assert_eq!(list(EntityQuery::all("thing")).await, ("abcd".into(), None));
    assert_eq!(
        list(EntityQuery { with_deleted: true, is_descending: true, ..EntityQuery::all("thing") }).await,
        ("edcba".into(), None)
    );
    let odd = vec![IndexField::new("status", "odd")];
    assert_eq!(list(EntityQuery { fields: odd.clone(), ..EntityQuery::all("thing") }).await, ("abd".into(), None));
    let both = vec![IndexField::new("owner", "o"), IndexField::new("status", "even")];
    assert_eq!(list(EntityQuery { fields: both, ..EntityQuery::all("thing") }).await, ("c".into(), None));
    let first = EntityQuery { fields: odd.clone(), limit: 2, ..EntityQuery::all("thing") };
    assert_eq!(list(first.clone()).await, ("ab".into(), Some("thing_b".into())));
    assert_eq!(list(EntityQuery { after: Some("thing_b".into()), ..first }).await, ("d".into(), None));
    let down = EntityQuery { is_descending: true, after: Some("thing_c".into()), limit: 1, ..EntityQuery::all("thing") };
    assert_eq!(list(down).await, ("b".into(), Some("thing_b".into())));
    assert_eq!(s.index_values(log(1), "thing", "status", "", 10).await.unwrap(), ["even", "odd"]);
    assert_eq!(s.index_values(log(1), "thing", "status", "o", 10).await.unwrap(), ["odd"]);
    assert_eq!(s.index_values(log(1), "thing", "status", "", 1).await.unwrap(), ["even"]);
}

async fn scans_by_type_and_stream(s: Subject) {
    s.append(append(1, vec![write("thing_a", 0, 2, 0), write("thing_b", 0, 1, 0)])).await.unwrap();
    let mut other = write("thing_c", 0, 1, 0);
    other.events[0].kind = "test.other.seen";
    s.append(append(1, vec![other])).await.unwrap();
    let scan = async |after, kind: Option<&str>, stream: Option<&str>, limit| {
        let filter = ScanFilter { kind: kind.map(Into::into), stream: stream.map(Into::into), category: None };
        let found = s.scan(log(1), after, filter, limit).await.unwrap();
        (found.events.iter().map(|e| e.header.position).collect::<Vec<_>>(), found.position)
    };
    assert_eq!(scan(0, None, None, 10).await, (vec![1, 2, 3, 4], 4));
    assert_eq!(scan(1, None, None, 2).await, (vec![2, 3], 3));
    assert_eq!(scan(0, Some("test.other.*"), None, 10).await, (vec![4], 4));
    assert_eq!(scan(0, Some("test.other.seen"), None, 10).await, (vec![4], 4));
    assert_eq!(scan(0, Some("test.other"), None, 10).await.0, Vec::<u64>::new());
    assert_eq!(scan(0, None, Some("thing_b"), 10).await.0, [3]);
    assert_eq!(scan(4, None, None, 10).await, (vec![], 4));
    let of = |category| ScanFilter { category: Some(category), ..ScanFilter::default() };
    assert_eq!(s.scan(log(1), 0, of(Category::Domain), 10).await.unwrap().events.len(), 4);
    let none = s.scan(log(1), 0, of(Category::System), 10).await.unwrap();
    assert_eq!((none.events.len(), none.position), (0, 4));
}

async fn finds_positions_by_time(s: Subject) {
    // The second append's clock runs backwards: recorded times do not.
    for (n, now) in [(0, 100), (1, 50), (2, 200)] {
        let mut a = append(1, vec![write("thing_a", n, 1, now)]);
        a.now = Timestamp(now);
        s.append(a).await.unwrap();
    }
    for (instant, position) in [(99, 0), (100, 2), (199, 2), (200, 3), (9_999, 3)] {
        assert_eq!(s.position_at(log(1), Timestamp(instant)).await.unwrap(), position, "at {instant}");
    }
    assert_eq!(s.position_at(log(2), Timestamp(9)).await.unwrap(), 0);
}

async fn keeps_values_and_secrets(s: Subject) {
    let mut a = append(1, vec![write("thing_a", 0, 1, 0)]);
    a.values = vec![([9; 32], Some(b"large".to_vec()))];
    a.secrets = vec![("pw".into(), Some(b"sealed".to_vec()))];
    s.append(a).await.unwrap();
    assert_eq!(s.value(log(1), &[9; 32]).await.unwrap().as_deref(), Some(&b"large"[..]));
    assert_eq!(s.value(log(2), &[9; 32]).await.unwrap(), None);
    assert_eq!(s.secret(log(1), "pw").await.unwrap().as_deref(), Some(&b"sealed"[..]));
    let mut refused = append(1, vec![write("thing_a", 0, 1, 0)]);
    refused.secrets = vec![("pw".into(), None)];
    s.append(refused).await.unwrap_err();
    assert!(s.secret(log(1), "pw").await.unwrap().is_some(), "a refused append leaves secrets alone");
    let mut gone = append(1, vec![write("thing_a", 1, 1, 0)]);
    gone.secrets = vec![("pw".into(), None)];
    s.append(gone).await.unwrap();
    assert_eq!(s.secret(log(1), "pw").await.unwrap(), None);
}

async fn moves_views_with_their_checkpoint(s: Subject) {
    s.append(append(1, vec![write("thing_a", 0, 1, 0)])).await.unwrap();
    let row = |key: &str, row: &str| Ok(ViewRow { key: key.into(), row: row.as_bytes().to_vec() });
    let step =
        |version, expected, position, rows, activate| ViewApply { view: "v".into(), version, expected, position, rows, activate };
    s.apply(log(1), step(1, 0, 4, vec![row("a", "1"), row("b", "1"), row("c", "1")], true)).await.unwrap();
    assert_eq!(s.apply(log(1), step(1, 0, 9, vec![row("a", "x")], false)).await.unwrap_err(), StoreError::ViewMoved(4));
    s.apply(log(1), step(1, 4, 5, vec![row("a", "2"), Err("b".into())], false)).await.unwrap();
    assert_eq!(s.view_get(log(1), "v", 1, "a").await.unwrap().unwrap().row, b"2");
    assert_eq!(s.view_get(log(1), "v", 1, "b").await.unwrap(), None);
    // A new version grows beside the old one, then takes its place.
    s.apply(log(1), step(2, 0, 5, vec![row("a", "n")], false)).await.unwrap();
    let both = s.view_state(log(1), "v").await.unwrap();
    assert_eq!(
        both,
        [ViewState { version: 1, position: 5, is_active: true }, ViewState { version: 2, position: 5, is_active: false }]
    );
    s.apply(log(1), step(2, 5, 5, vec![], true)).await.unwrap();
    assert_eq!(s.view_state(log(1), "v").await.unwrap(), [ViewState { version: 2, position: 5, is_active: true }]);
    assert_eq!(s.view_get(log(1), "v", 1, "a").await.unwrap(), None);
    s.apply(log(1), step(2, 5, 6, vec![row("ab", "1"), row("b", "1")], false)).await.unwrap();
    let listed = s.view_list(log(1), "v", 2, "a", "", 10).await.unwrap();
    assert_eq!(listed.iter().map(|r| r.key.as_str()).collect::<Vec<_>>(), ["a", "ab"]);
    assert_eq!(s.view_list(log(1), "v", 2, "a", "a", 10).await.unwrap().len(), 1);
}

async fn wakes_followers(s: Subject) {
    let mut tail = s.tail(log(1));
    tail.mark_unchanged();
    s.append(append(1, vec![write("thing_a", 0, 1, 0)])).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(5), tail.changed()).await.expect("a wake-up").unwrap();
    assert_eq!(*tail.borrow(), 1);
}

async fn keeps_a_large_state_of_an_earlier_version(s: Subject) {
    s.append(append(1, vec![write("thing_a", 0, 1, 0)])).await.unwrap();
    let mut large = write("thing_a", 1, 1, 0);
    large.row.as_mut().unwrap().state = None;
    s.append(append(1, vec![large])).await.unwrap();
    let row = s.entity(log(1), "thing_a").await.unwrap().unwrap();
    assert_eq!((row.version, row.state_version, row.state.as_slice()), (2, 1, &b"state 1"[..]));
}

async fn orders_concurrent_appends(s: Subject) {
    let writers = 8;
    let each = 25;
    let tasks: Vec<_> = (0..writers)
        .map(|w| {
            let s = s.clone();
            tokio::spawn(async move {
                let mut positions = vec![];
                for n in 0..each {
                    let stream = format!("thing_{w}");
                    positions.push(s.append(append(1, vec![write(&stream, n, 1, 0)])).await.unwrap().position);
                    let seen = s.scan(log(1), 0, ScanFilter::default(), 10_000).await.unwrap();
                    let order: Vec<u64> = seen.events.iter().map(|e| e.header.position).collect();
                    assert!(order.iter().copied().eq(1..=order.len() as u64), "a gap was visible");
                    assert!(order.len() as u64 >= *positions.last().unwrap(), "an answered append was not visible");
                }
                positions
            })
        })
        .collect();
    let mut all = vec![];
    for task in tasks {
        let positions = task.await.unwrap();
        assert!(positions.is_sorted());
        all.extend(positions);
    }
    all.sort_unstable();
    assert!(all.into_iter().eq(1..=writers * each));
}

async fn grows_its_tree(s: Subject) {
    s.append(append(1, vec![write("thing_a", 0, 3, 0)])).await.unwrap();
    let events = s.scan(log(1), 0, ScanFilter::default(), 10).await.unwrap().events;
    let leaves: Vec<_> = events.iter().map(|event| event.leaf).collect();
    check_tree(s.as_ref(), &leaves).await;
}

/// Checks the tree of log 1, which has these leaves and has not grown yet.
pub async fn check_tree<T: crate::tree::TreeStore + ?Sized>(s: &T, leaves: &[[u8; 32]]) {
    use crate::tree::{Growth, Sealed};
    assert_eq!(s.sizes().await.unwrap().get(&log(1)), Some(&(leaves.len() as u64)));
    assert_eq!(s.leaves(log(1), 0, 10).await.unwrap(), leaves);
    assert_eq!(s.leaves(log(1), 1, 1).await.unwrap(), leaves[1..2]);
    assert_eq!(s.leaves(log(9), 0, 10).await.unwrap(), Vec::<[u8; 32]>::new());
    assert_eq!((s.sealed(log(1)).await.unwrap(), s.tile(log(1), 0, 0).await.unwrap()), (None, None));
    let growth = |expected, size, tile: u8| Growth {
        expected,
        size,
        tiles: vec![((0, 0), vec![tile; 32]), ((1, 7), vec![tile; 64])],
        note: format!("note {size}"),
    };
    assert_eq!(s.grow(log(1), growth(1, 2, 1)).await.unwrap_err(), StoreError::ViewMoved(0));
    s.grow(log(1), growth(0, 2, 1)).await.unwrap();
    assert_eq!(s.grow(log(1), growth(0, 3, 9)).await.unwrap_err(), StoreError::ViewMoved(2));
    assert_eq!(s.tile(log(1), 1, 7).await.unwrap(), Some(vec![1; 64]));
    s.cosign(log(1), "signed".into()).await.unwrap();
    s.grow(log(1), growth(2, 3, 2)).await.unwrap();
    assert_eq!(s.tile(log(1), 0, 0).await.unwrap(), Some(vec![2; 32]));
    let sealed = Sealed { size: 3, note: "note 3".into(), cosigned: "signed".into() };
    assert_eq!(s.sealed(log(1)).await.unwrap(), Some(sealed));
    assert_eq!((s.sealed(log(2)).await.unwrap(), s.tile(log(2), 0, 0).await.unwrap()), (None, None));
}

/// Stream, how far the guess of its version is off, events, a unique key to take or give up.
pub type RandomWrite = (u8, u8, u8, Option<(bool, u8)>);

/// One random operation of the model test.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Append to streams with a guess of their versions.
    Append {
        /// Log number.
        log: u8,
        /// What is written.
        writes: Vec<RandomWrite>,
        /// An idempotency key.
        key: Option<u8>,
    },
    /// Move a view.
    Apply(u8, u8, bool),
}

/// Random operations for [`model`].
#[cfg(test)]
pub fn operations() -> impl proptest::strategy::Strategy<Value = Vec<Operation>> {
    use proptest::prelude::*;
    let unique = prop::option::weighted(0.3, (any::<bool>(), 0u8..4));
    let writes = prop::collection::vec((0u8..5, 0u8..6, any::<u8>(), unique), 1..4);
    let append = (1u8..3, writes, prop::option::weighted(0.2, 0u8..4)).prop_map(|(log, writes, key)| Operation::Append {
        log,
        writes,
        key,
    });
    let apply = (1u8..3, any::<u8>(), any::<bool>()).prop_map(|(log, row, activate)| Operation::Apply(log, row, activate));
    prop::collection::vec(prop_oneof![6 => append, 1 => apply], 1..60)
}

/// Does the same on the subject and on the memory store, and compares every answer and everything that can be read.
pub async fn model(subject: Subject, operations: &[Operation]) {
    let model: Subject = Arc::new(MemoryStore::new());
    for (n, operation) in operations.iter().enumerate() {
        match operation {
            Operation::Append { log: l, writes, key } => {
                let made = random_append(&model, *l, writes, *key, n).await;
                assert_eq!(subject.append(made.clone()).await, model.append(made).await, "operation {n}: {operation:?}");
            }
            Operation::Apply(l, row, activate) => {
                let expected = model.view_state(log(*l), "v").await.unwrap().first().map_or(0, |s| s.position);
                let rows = vec![Ok(ViewRow { key: format!("k{row}"), row: vec![*row] })];
                let step = ViewApply {
                    view: "v".into(),
                    version: 1,
                    expected: expected + u64::from(row % 5 == 0),
                    position: expected + 1,
                    rows,
                    activate: *activate,
                };
                assert_eq!(subject.apply(log(*l), step.clone()).await, model.apply(log(*l), step).await, "operation {n}");
            }
        }
    }
    let (found, wanted) = (everything(&subject).await, everything(&model).await);
    for (found, wanted) in found.lines().zip(wanted.lines()) {
        assert_eq!(found, wanted, "after {operations:?}");
    }
    assert_eq!(found.len(), wanted.len(), "after {operations:?}");
}

async fn random_append(model: &Subject, l: u8, writes: &[RandomWrite], key: Option<u8>, n: usize) -> Append {
    let mut made = append(l, vec![]);
    made.now = Timestamp(n as i64);
    for (stream, off, events, unique) in writes {
        let stream = format!("thing_{stream}");
        if made.writes.iter().any(|w| w.stream == stream) {
            continue;
        }
        let version = model.entity(log(l), &stream).await.unwrap().map_or(0, |row| row.version);
        let mut w = write(&stream, version + u64::from(*off == 0), usize::from(*events % 3), n as i64);
        if w.row.is_some() {
            w.unique = unique
                .iter()
                .map(|(take, k)| if *take { UniqueChange::Take(format!("u{k}")) } else { UniqueChange::Free(format!("u{k}")) })
                .collect();
        }
        made.writes.push(w);
    }
    if made.writes.iter().all(|w| w.row.is_some()) && !made.writes.is_empty() {
        made.idempotency = key.map(|k| IdempotencyKey { key: format!("i{k}"), request_hash: [k; 32] });
    }
    made
}

/// Everything that can be read, as text.
async fn everything(s: &Subject) -> String {
    let mut out = String::new();
    for l in s.logs().await.unwrap() {
        let events = s.scan(l, 0, ScanFilter::default(), usize::MAX / 2).await.unwrap();
        let rows = s.entities(l, EntityQuery { with_deleted: true, ..EntityQuery::all("thing") }).await.unwrap();
        let odd = s
            .entities(l, EntityQuery { fields: vec![IndexField::new("status", "odd")], ..EntityQuery::all("thing") })
            .await
            .unwrap();
        let views = (s.view_state(l, "v").await.unwrap(), s.view_list(l, "v", 1, "", "", 1_000).await.unwrap());
        out += &format!("{l}\n{events:?}\n{rows:?}\n{odd:?}\n{views:?}\n");
        for k in 0..4 {
            out += &format!(
                "{:?} {:?}\n",
                s.holder(l, &format!("u{k}")).await.unwrap(),
                s.idempotent(l, &format!("i{k}")).await.unwrap()
            );
        }
        for row in rows.rows {
            out += &format!("{:?}\n", s.read(l, &row.stream, 1, 1_000).await.unwrap());
        }
    }
    out
}

/// A backend that replicas share.
pub type SharedSubject = (Subject, Arc<dyn crate::cluster::Cluster>);

/// Runs the suite of [`Cluster`](crate::cluster::Cluster), each part on a fresh store. `later` lets leases of `ttl_ms` run
/// out and answers the time after that.
pub async fn check_cluster<F, Fut, L, Later>(open: F, ttl_ms: u64, later: L)
where
    F: Fn() -> Fut,
    Fut: Future<Output = SharedSubject>,
    L: Fn() -> Later,
    Later: Future<Output = Timestamp>,
{
    one_holder_at_a_time(open().await, ttl_ms, &later).await;
    letters_are_read_once(open().await).await;
    replicas_come_and_go(open().await, ttl_ms, &later).await;
}

async fn one_holder_at_a_time<L, Later>((store, cluster): SharedSubject, ttl_ms: u64, later: &L)
where
    L: Fn() -> Later,
    Later: Future<Output = Timestamp>,
{
    let start = Timestamp(0);
    let led = |n: u64, bucket, token| Append {
        authority: Some(Authority { bucket, token }),
        ..append(1, vec![write(&format!("thing_{n}"), 0, 1, 0)])
    };
    assert_eq!(cluster.hold("a", &[1, 2], start, ttl_ms).await.unwrap(), BTreeMap::from([(1, 1), (2, 1)]));
    assert_eq!(cluster.hold("b", &[2, 3], start, ttl_ms).await.unwrap(), BTreeMap::from([(3, 1)]));
    assert_eq!(store.append(led(1, 2, 1)).await.unwrap().position, 1);
    assert_eq!(store.append(led(2, 2, 2)).await.unwrap_err(), StoreError::Fenced);
    cluster.release("b", &[1, 3]).await.unwrap();
    assert_eq!(cluster.hold("a", &[3], start, ttl_ms).await.unwrap(), BTreeMap::from([(1, 1), (2, 1), (3, 2)]));
    let now = later().await;
    assert_eq!(cluster.hold("b", &[2], now, ttl_ms).await.unwrap(), BTreeMap::from([(2, 2)]));
    assert_eq!(store.append(led(2, 2, 1)).await.unwrap_err(), StoreError::Fenced, "a paused leader cannot write");
    assert_eq!(store.append(led(2, 2, 2)).await.unwrap().position, 2);
    assert!(!cluster.hold("a", &[2], now, ttl_ms).await.unwrap().contains_key(&2));
    cluster.leave("b").await.unwrap();
    assert_eq!(cluster.hold("a", &[2], now, ttl_ms).await.unwrap().get(&2), Some(&3));
}

async fn letters_are_read_once((_, cluster): SharedSubject) {
    use crate::cluster::Letter;
    let letter = |to: &str, n: u8| Letter { recipient: to.into(), body: vec![n] };
    let mut mail = cluster.mail();
    mail.mark_unchanged();
    cluster.post(vec![letter("x", 1), letter("y", 2), letter("x", 3)]).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(5), mail.changed()).await.expect("a wake-up").unwrap();
    assert_eq!(cluster.collect(&["x".into(), "z".into()]).await.unwrap(), [letter("x", 1), letter("x", 3)]);
    assert_eq!(cluster.collect(&["x".into()]).await.unwrap(), []);
    assert_eq!(cluster.collect(&["y".into()]).await.unwrap(), [letter("y", 2)]);
}

async fn replicas_come_and_go<L, Later>((_, cluster): SharedSubject, ttl_ms: u64, later: &L)
where
    L: Fn() -> Later,
    Later: Future<Output = Timestamp>,
{
    assert_eq!(cluster.join("a", Timestamp(0), ttl_ms).await.unwrap(), ["a"]);
    assert_eq!(cluster.join("b", Timestamp(0), ttl_ms).await.unwrap(), ["a", "b"]);
    let now = later().await;
    assert_eq!(cluster.join("c", now, ttl_ms).await.unwrap(), ["c"]);
    cluster.leave("c").await.unwrap();
    assert_eq!(cluster.join("a", now, ttl_ms).await.unwrap(), ["a"]);
}
