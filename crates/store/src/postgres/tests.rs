//! The contract on PostgreSQL, and what only replicas on one database can show.

use super::*;
use crate::contract::{self, Subject, append, log, write};
use proptest::prelude::*;
use server::{Server, shared};

fn settings(server: &Server, database: &str) -> PostgresSettings {
    PostgresSettings { url: server.url(database), connections_max: 8, tls_ca: None, size_max_bytes: None }
}

async fn open(server: &Server, database: &str) -> PostgresStore {
    PostgresStore::open(&settings(server, database)).await.unwrap()
}

#[tokio::test]
async fn the_contract_holds() {
    contract::check(|| async { Arc::new(open(shared(), &shared().database()).await) as Subject }).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_give_what_the_model_gives(operations in contract::operations()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            contract::model(Arc::new(open(shared(), &shared().database()).await), &operations).await;
        });
    }
}

fn one(n: u64) -> Append {
    append(1, vec![write(&format!("thing_{n:08}"), 0, 1, 0)])
}

/// Every position and event id of log 1, as the database has them.
fn history(server: &Server, database: &str) -> Vec<(u64, String)> {
    let rows = server.sql(database, "SELECT position, stream FROM events ORDER BY position");
    rows.lines().filter_map(|row| row.split_once('|')).map(|(p, s)| (p.parse().unwrap(), s.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_give_one_order_without_gaps() {
    let database = shared().database();
    let replicas = [Arc::new(open(shared(), &database).await), Arc::new(open(shared(), &database).await)];
    let mut tasks = vec![];
    for w in 0..8u64 {
        let store = replicas[(w % 2) as usize].clone();
        tasks.push(tokio::spawn(async move {
            for n in 0..25 {
                let done = store.append(one(w * 100 + n)).await.unwrap();
                let seen = store.scan(log(1), 0, ScanFilter::default(), 10_000).await.unwrap();
                let order: Vec<u64> = seen.events.iter().map(|e| e.header.position).collect();
                assert!(order.iter().copied().eq(1..=order.len() as u64), "a gap was visible");
                assert!(order.len() as u64 >= done.position, "an answered append was not visible");
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let all = history(shared(), &database);
    assert!(all.iter().map(|(p, _)| *p).eq(1..=200));
    // Both see the same events in the same order.
    let a = replicas[0].scan(log(1), 0, ScanFilter::default(), 1_000).await.unwrap().events;
    let b = replicas[1].scan(log(1), 0, ScanFilter::default(), 1_000).await.unwrap().events;
    assert_eq!(a, b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_on_another_replica_wakes_up_soon() {
    let database = shared().database();
    let (a, b) = (open(shared(), &database).await, open(shared(), &database).await);
    a.append(one(0)).await.unwrap();
    let mut waits = vec![];
    for n in 1..20 {
        let mut tail = b.tail(log(1));
        let at = std::time::Instant::now();
        a.append(one(n)).await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), tail.wait_for(|p| *p > n)).await.expect("a wake-up").unwrap();
        waits.push(at.elapsed());
    }
    waits.sort();
    assert!(waits[waits.len() / 2] < Duration::from_millis(250), "{waits:?}");
}

#[tokio::test]
async fn what_others_wrote_is_a_conflict() {
    let database = shared().database();
    let (a, b) = (open(shared(), &database).await, open(shared(), &database).await);
    a.append(append(1, vec![write("thing_a", 0, 1, 0)])).await.unwrap();
    let refused = b.append(append(1, vec![write("thing_a", 0, 1, 0)])).await.unwrap_err();
    assert_eq!(refused, StoreError::Conflict { stream: "thing_a".into(), expected: 0, actual: 1 });
    assert_eq!(b.append(append(1, vec![write("thing_a", 1, 1, 0)])).await.unwrap().position, 2);
}

#[tokio::test]
async fn nul_in_a_text_does_no_harm() {
    let store = open(shared(), &shared().database()).await;
    let mut odd = write("thing_a", 0, 1, 0);
    odd.unique = vec![kernel::UniqueChange::Take("n:a\0b".into())];
    odd.row.as_mut().unwrap().index = vec![kernel::IndexField::new("owner", "o\0")];
    odd.events[0].correlation = "c\0".into();
    store.append(append(1, vec![odd])).await.unwrap();
    assert_eq!(store.holder(log(1), "n:a\0b").await.unwrap().as_deref(), Some("thing_a"));
    let query = EntityQuery { fields: vec![kernel::IndexField::new("owner", "o\0")], ..EntityQuery::all("thing") };
    assert_eq!(store.entities(log(1), query).await.unwrap().rows.len(), 1);
    assert!(store.read(log(1), "thing_a", 1, 1).await.unwrap()[0].is_intact());
    assert_eq!(store.entity(log(1), "\0").await.unwrap(), None);
}

/// The lock that an append takes, as another program would take it.
const TAKE_LOCK: &str =
    "SELECT pg_advisory_xact_lock(1262813185, number) FROM logs WHERE tenant = decode(repeat('01', 16), 'hex')";
/// What another replica would write at the end of log 1.
const WRITE_ONE: &str = "INSERT INTO events (log, position, event_id, kind, shape, category, stream, version, occurred_at, recorded_at, \
     actor_kind, actor_id, correlation, payload_hash, leaf) \
     SELECT log, max(position) + 1, decode(repeat('aa', 16), 'hex'), 'test.late.seen', 1, 0, 'late_' || max(position), 1, 1, max(recorded_at), \
     'system', 'x', '', decode(repeat('00', 32), 'hex'), decode(repeat('00', 32), 'hex') FROM events GROUP BY log";

async fn session(server: &Server, database: &str) -> connect::Session {
    let (heard, _) = tokio::sync::mpsc::unbounded_channel();
    Target::new(&settings(server, database)).unwrap().session(heard).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_number_that_commits_late_leaves_no_gap() {
    let database = shared().database();
    let store = Arc::new(open(shared(), &database).await);
    store.append(one(0)).await.unwrap();
    for end in ["ROLLBACK", "COMMIT"] {
        let head = store.scan(log(1), 0, ScanFilter::default(), 100).await.unwrap().position;
        let other = session(shared(), &database).await;
        other.batch_execute(&format!("BEGIN; {TAKE_LOCK}; {WRITE_ONE};")).await.unwrap();
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { store.append(one(head + 100)).await }
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        // The other one has the next position and has not committed: nothing after it may be seen.
        assert_eq!(store.reader.scan(log(1), 0, &ScanFilter::default(), 100).await.unwrap().position, head);
        assert!(!waiting.is_finished(), "an append overtook the one that has the lock");
        other.batch_execute(end).await.unwrap();
        let done = waiting.await.unwrap().unwrap();
        assert_eq!(done.position, if end == "COMMIT" { head + 2 } else { head + 1 });
        let seen = store.reader.scan(log(1), head, &ScanFilter::default(), 100).await.unwrap();
        assert!(seen.events.iter().map(|e| e.header.position).eq(head + 1..=done.position));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lower_transaction_id_that_commits_second_is_seen() {
    let database = shared().database();
    let store = open(shared(), &database).await;
    store.append(one(0)).await.unwrap();
    let other = session(shared(), &database).await;
    // It has its transaction id first, and holds back the horizon of everybody.
    other.batch_execute("SET idle_in_transaction_session_timeout = 0; BEGIN; SELECT pg_current_xact_id();").await.unwrap();
    store.append(one(1)).await.unwrap();
    let seen = store.reader.scan(log(1), 0, &ScanFilter::default(), 100).await.unwrap();
    assert_eq!(seen.position, 2, "an open transaction hides nothing");
    other.batch_execute(&format!("{TAKE_LOCK}; {WRITE_ONE}; COMMIT;")).await.unwrap();
    let later = store.reader.scan(log(1), seen.position, &ScanFilter::default(), 100).await.unwrap();
    assert_eq!(later.events.len(), 1, "what committed second is behind the reader's place");
    assert_eq!(later.events[0].header.position, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stops_inside_a_transaction_loses_the_lock() {
    let database = shared().database();
    let store = open(shared(), &database).await;
    store.append(one(0)).await.unwrap();
    // Set like every connection of a replica, and then nothing more is heard of it.
    let stopped = session(shared(), &database).await;
    stopped.batch_execute(&format!("BEGIN; {TAKE_LOCK}; {WRITE_ONE};")).await.unwrap();
    let at = std::time::Instant::now();
    assert_eq!(store.append(one(1)).await.unwrap().position, 2);
    assert!(at.elapsed() < Duration::from_secs(5), "{:?}", at.elapsed());
    assert!(stopped.batch_execute("COMMIT").await.is_err(), "its transaction is gone");
    assert_eq!(history(shared(), &database).len(), 2);
}

#[tokio::test]
async fn a_leader_that_lost_its_bucket_cannot_write() {
    let database = shared().database();
    let store = open(shared(), &database).await;
    let lead = |token| Some(Authority { bucket: 3, token });
    let led = |n, authority| Append { authority, ..one(n) };
    assert_eq!(store.append(led(0, lead(1))).await.unwrap_err(), StoreError::Fenced, "nobody leads yet");
    shared().sql(&database, "INSERT INTO leases VALUES (3, 'a', 1, now())");
    assert_eq!(store.append(led(0, lead(1))).await.unwrap().position, 1);
    shared().sql(&database, "UPDATE leases SET holder = 'b', token = 2");
    assert_eq!(store.append(led(1, lead(1))).await.unwrap_err(), StoreError::Fenced);
    assert_eq!(store.append(led(1, lead(2))).await.unwrap().position, 2);
    assert_eq!(store.append(one(2)).await.unwrap().position, 3, "others need no leadership");
}

/// Appends from several tasks on two replicas while `harm` is done to the server; then what was acknowledged is compared
/// with what is there.
async fn survives(
    server: &'static Server,
    database: &str,
    rounds: usize,
    harm: impl Fn(usize) + Send + 'static,
) -> (usize, usize) {
    let replicas = [Arc::new(open(server, database).await), Arc::new(open(server, database).await)];
    let is_over = tokio_util::sync::CancellationToken::new();
    let mut tasks = vec![];
    for w in 0..6u64 {
        let (store, is_over) = (replicas[(w % 2) as usize].clone(), is_over.clone());
        tasks.push(tokio::spawn(async move {
            let (mut acknowledged, mut refused) = (vec![], vec![]);
            let mut n = 0;
            while !is_over.is_cancelled() {
                n += 1;
                let append = one(w * 1_000_000 + n);
                let stream = append.writes[0].stream.clone();
                match store.append(append).await {
                    Ok(done) => acknowledged.push((done.position, stream)),
                    Err(StoreError::Unavailable(_) | StoreError::DiskLow) => {
                        refused.push(stream);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(StoreError::Unknown(_)) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
            (acknowledged, refused)
        }));
    }
    tokio::task::spawn_blocking(move || (0..rounds).for_each(harm)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    is_over.cancel();
    let (mut acknowledged, mut refused) = (vec![], vec![]);
    for task in tasks {
        let (yes, no) = task.await.unwrap();
        acknowledged.extend(yes);
        refused.extend(no);
    }
    let there = history(server, database);
    assert!(there.iter().map(|(p, _)| *p).eq(1..=there.len() as u64), "positions have a gap");
    let places: std::collections::BTreeMap<u64, String> = there.iter().cloned().collect();
    for (position, stream) in &acknowledged {
        assert_eq!(places.get(position), Some(stream), "an acknowledged append is not where it was said to be");
    }
    let streams: std::collections::BTreeSet<&String> = there.iter().map(|(_, s)| s).collect();
    assert_eq!(streams.len(), there.len(), "something was written twice");
    for stream in &refused {
        assert!(!streams.contains(stream), "{stream} was refused and is there");
    }
    for (n, replica) in (999_999_000..).zip(&replicas) {
        // It goes on by itself as soon as it has found the database again.
        let went_on = async {
            while replica.append(one(n)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), went_on).await.expect("it goes on");
    }
    (acknowledged.len(), refused.len())
}

fn rounds(short: usize, long: usize) -> usize {
    if std::env::var_os("KEIKO_FAULTS_LONG").is_some() { long } else { short }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_server_that_is_killed_loses_nothing_that_was_acknowledged() {
    let server: &'static Server = Box::leak(Box::new(Server::start()));
    let database = server.database();
    let rounds = rounds(4, 60);
    let (acknowledged, refused) = survives(server, &database, rounds, |n| {
        std::thread::sleep(Duration::from_millis(300 + 137 * (n as u64 % 5)));
        server.restart();
    })
    .await;
    println!("server kills: {rounds}, appends acknowledged: {acknowledged}, refused: {refused}");
    assert!(acknowledged > 100);
    server.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_lose_and_double_nothing() {
    let database = shared().database();
    let rounds = rounds(25, 500);
    let name = database.clone();
    let cut = move |n: usize| {
        std::thread::sleep(Duration::from_millis(20 + 13 * (n as u64 % 7)));
        let sql = format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'");
        shared().sql("postgres", &sql);
    };
    let (acknowledged, refused) = survives(shared(), &database, rounds, cut).await;
    println!("times that all connections were cut: {rounds}, appends acknowledged: {acknowledged}, refused: {refused}");
    assert!(acknowledged > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_gone_requests_are_refused_at_once_and_go_on_later() {
    let server: &'static Server = Box::leak(Box::new(Server::start()));
    let database = server.database();
    let store = open(server, &database).await;
    store.append(one(0)).await.unwrap();
    server.kill();
    let refused = store.append(one(1)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_) | StoreError::Unknown(_)), "{refused:?}");
    while store.health().read_only.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let at = std::time::Instant::now();
    assert!(matches!(store.append(one(2)).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.entity(log(1), "thing_a").await, Err(StoreError::Unavailable(_))));
    assert!(at.elapsed() < Duration::from_millis(100));
    server.revive();
    while store.health().read_only.is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(store.append(one(3)).await.unwrap().position, 2);
    server.kill();
}

#[tokio::test]
async fn a_database_that_does_not_fit_is_refused_with_what_to_do() {
    let server = shared();
    let refused = async |database: &str, url: Option<String>| {
        let settings = PostgresSettings { url: url.unwrap_or_else(|| server.url(database)), ..settings(server, database) };
        PostgresStore::open(&settings).await.err().expect("refused").to_string()
    };
    server.sql("postgres", "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'");
    assert!(refused("latin", None).await.contains("ENCODING 'UTF8'"));
    let newer = server.database();
    drop(open(server, &newer).await);
    server.sql(&newer, "INSERT INTO keiko_migrations (version) VALUES (99)");
    assert!(refused(&newer, None).await.contains("version 99"));
    let empty = server.database();
    let looked = PostgresStore::open_as_is(&settings(server, &empty)).await.err().expect("refused").to_string();
    assert!(looked.contains("no tables of Keiko"), "{looked}");
    assert_eq!(server.sql(&empty, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "0", "looking makes nothing");
    let bare = server.database();
    server.sql(&bare, "REVOKE ALL ON SCHEMA public FROM PUBLIC; CREATE USER nobody_much");
    let url = server.url(&bare).replace("postgres@", "nobody_much@");
    let text = refused(&bare, Some(url)).await;
    assert!(text.contains("GRANT"), "{text}");
    assert!(refused("there_is_none", None).await.contains("CREATE DATABASE"));
    let closed = "postgres://u:hunter2@127.0.0.1:1/x".to_owned();
    let text = refused("x", Some(closed)).await;
    assert!(text.contains("127.0.0.1:1/x") && !text.contains("hunter2"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_make_the_tables_once() {
    let database = shared().database();
    let opened = futures_util::future::join_all((0..4).map(|_| open(shared(), &database))).await;
    assert_eq!(opened.len(), 4);
    assert_eq!(shared().sql(&database, "SELECT count(*) FROM keiko_migrations"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_too_large_takes_no_writes() {
    let database = shared().database();
    let settings = PostgresSettings { size_max_bytes: Some(1), ..settings(shared(), &database) };
    let store = PostgresStore::open(&settings).await.unwrap();
    while !store.health().is_disk_low {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(store.append(one(0)).await.unwrap_err(), StoreError::DiskLow);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journals_contract_holds() {
    crate::journal::contract::check(|| async {
        let settings = settings(shared(), &shared().database());
        let store = PostgresStore::open(&settings).await.unwrap();
        let journal = PostgresJournal::open(&settings, &store).unwrap();
        // The store stays as long as the journal is used.
        Box::leak(Box::new(store));
        Arc::new(journal) as Arc<dyn crate::journal::Journal>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_share_a_journal_and_old_days_are_dropped_whole() {
    use crate::journal::{Journal, JournalQuery, NewEntry, contract::entry};
    use kernel::journal::Class;
    const DAY: i64 = 86_400_000;
    let settings = settings(shared(), &shared().database());
    let store = PostgresStore::open(&settings).await.unwrap();
    let journals = [PostgresJournal::open(&settings, &store).unwrap(), PostgresJournal::open(&settings, &store).unwrap()];
    let write = |n: i64| {
        let journal = &journals[(n % 2) as usize];
        async move {
            journal
                .record(NewEntry {
                    id: kernel::id::JournalId::from_bytes([n as u8; 16]),
                    ..entry(1, Class::ToolCall, "a", n * DAY / 10)
                })
                .await
                .unwrap()
        }
    };
    let mut positions = futures_util::future::join_all((0..40).map(write)).await;
    positions.sort_unstable();
    assert!(positions.into_iter().eq(1..=40));
    let database = settings.url.rsplit('/').next().unwrap().to_owned();
    let parts = || {
        shared().sql(&database, "SELECT count(*) FROM pg_class WHERE relname LIKE 'journal_contents_c0_day_%' AND relkind = 'r'")
    };
    assert_eq!(parts(), "4");
    let before = std::collections::BTreeMap::from([(Class::ToolCall, Timestamp(2 * DAY + DAY / 2))]);
    assert_eq!(journals[0].forget(before).await.unwrap(), 25);
    assert_eq!(parts(), "2");
    let kept = journals[1].entries(log(1), JournalQuery { limit: 100, ..JournalQuery::default() }).await.unwrap();
    assert_eq!((kept.len(), kept.iter().filter(|e| e.data.is_some()).count()), (40, 15), "headers stay");
    // A day that was dropped is made again when an entry of it comes late.
    journals[0].record(entry(1, Class::ToolCall, "a", 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observations_wait_while_the_database_is_away() {
    use crate::journal::{Journal, JournalQuery, contract::entry};
    use kernel::journal::Class;
    let server: &'static Server = Box::leak(Box::new(Server::start()));
    let settings = settings(server, &server.database());
    let store = PostgresStore::open(&settings).await.unwrap();
    let journal = PostgresJournal::open(&settings, &store).unwrap();
    journal.record(entry(1, Class::ToolCall, "a", 1)).await.unwrap();
    server.kill();
    assert!(journal.offer(entry(1, Class::ToolCall, "a", 2)));
    assert!(journal.record(entry(1, Class::Security, "a", 3)).await.is_err(), "who waits is refused");
    assert!(journal.health().broken.is_some());
    server.revive();
    while journal.health().broken.is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let all = journal.entries(log(1), JournalQuery { limit: 9, ..JournalQuery::default() }).await.unwrap();
    assert_eq!(all.iter().map(|e| e.header.at.0).collect::<Vec<_>>(), [1, 2]);
    journal.record(entry(1, Class::ToolCall, "a", 4)).await.unwrap();
    let all = journal.entries(log(1), JournalQuery { limit: 9, ..JournalQuery::default() }).await.unwrap();
    assert_eq!(
        all.iter().map(|e| e.header.class).collect::<Vec<_>>(),
        [Class::ToolCall, Class::ToolCall, Class::Gap, Class::ToolCall]
    );
    server.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_of_replicas_holds() {
    let open = || async {
        let store = Arc::new(open(shared(), &shared().database()).await);
        let subject: contract::SharedSubject = (store.clone(), store);
        subject
    };
    let later = || async {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        Timestamp(0)
    };
    contract::check_cluster(open, 1_000, later).await;
}
