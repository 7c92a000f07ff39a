//! The tables. A change here adds a step; old steps never change. The steps run once, under a lock.

use super::connect::{Session, describe};
use crate::OpenError;

/// How to get from each version to the next.
const STEPS: [&str; 1] = [V1];

/// Held while the tables are changed, so that replicas that start together do not meet.
const LOCK: &str = "SELECT pg_advisory_lock(5420385, 0)";
const UNLOCK: &str = "SELECT pg_advisory_unlock(5420385, 0)";

const V1: &str = r#"
CREATE TABLE logs (
    number int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant bytea NOT NULL UNIQUE
);
CREATE TABLE events (
    log int NOT NULL,
    position bigint NOT NULL,
    event_id bytea NOT NULL,
    kind text COLLATE "C" NOT NULL,
    shape int NOT NULL,
    category int NOT NULL,
    stream text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    occurred_at bigint NOT NULL,
    recorded_at bigint NOT NULL,
    actor_kind text COLLATE "C" NOT NULL,
    actor_id text COLLATE "C" NOT NULL,
    user_id bytea,
    correlation text COLLATE "C" NOT NULL,
    causation bytea,
    trace_parent text COLLATE "C",
    salt bytea,
    payload bytea,
    payload_hash bytea NOT NULL,
    leaf bytea NOT NULL,
    PRIMARY KEY (log, position)
);
CREATE UNIQUE INDEX idx_events_stream_version ON events (log, stream, version);
CREATE TABLE entities (
    log int NOT NULL,
    stream text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    state bytea NOT NULL,
    state_version bigint NOT NULL,
    position bigint NOT NULL,
    is_deleted boolean NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    fields text COLLATE "C" NOT NULL,
    PRIMARY KEY (log, stream)
) WITH (fillfactor = 70);
CREATE TABLE entity_fields (
    log int NOT NULL,
    field text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL,
    stream text COLLATE "C" NOT NULL,
    PRIMARY KEY (log, field, value, stream)
);
CREATE TABLE unique_keys (
    log int NOT NULL,
    key text COLLATE "C" NOT NULL,
    stream text COLLATE "C" NOT NULL,
    PRIMARY KEY (log, key)
);
CREATE TABLE idempotency (
    log int NOT NULL,
    key text COLLATE "C" NOT NULL,
    request_hash bytea NOT NULL,
    stream text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (log, key)
);
CREATE TABLE stored_values (
    log int NOT NULL,
    hash bytea NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (log, hash)
);
CREATE TABLE secrets (
    log int NOT NULL,
    name text COLLATE "C" NOT NULL,
    sealed bytea NOT NULL,
    PRIMARY KEY (log, name)
);
CREATE TABLE views (
    log int NOT NULL,
    view text COLLATE "C" NOT NULL,
    version int NOT NULL,
    position bigint NOT NULL,
    is_active boolean NOT NULL,
    PRIMARY KEY (log, view, version)
);
CREATE TABLE view_rows (
    log int NOT NULL,
    view text COLLATE "C" NOT NULL,
    version int NOT NULL,
    key text COLLATE "C" NOT NULL,
    row bytea NOT NULL,
    PRIMARY KEY (log, view, version, key)
);
CREATE TABLE tiles (
    tree int NOT NULL,
    owner int NOT NULL,
    level int NOT NULL,
    number bigint NOT NULL,
    hashes bytea NOT NULL,
    PRIMARY KEY (tree, owner, level, number)
);
CREATE TABLE checkpoints (
    tree int NOT NULL,
    owner int NOT NULL,
    size bigint NOT NULL,
    note text COLLATE "C" NOT NULL,
    cosigned text COLLATE "C" NOT NULL,
    PRIMARY KEY (tree, owner)
);
CREATE TABLE leases (
    bucket int PRIMARY KEY,
    holder text COLLATE "C" NOT NULL,
    token bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE UNLOGGED TABLE replicas (
    replica text COLLATE "C" PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
CREATE UNLOGGED TABLE letters (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    recipient text COLLATE "C" NOT NULL,
    body bytea NOT NULL,
    posted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX idx_letters_recipient ON letters (recipient, number);
CREATE TABLE journals (
    number int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant bytea NOT NULL UNIQUE
);
CREATE TABLE journal_entries (
    journal int NOT NULL,
    position bigint NOT NULL,
    entry_id bytea NOT NULL,
    class int NOT NULL,
    kind text COLLATE "C" NOT NULL,
    at bigint NOT NULL,
    actor_kind text COLLATE "C" NOT NULL,
    actor_id text COLLATE "C" NOT NULL,
    correlation text COLLATE "C" NOT NULL,
    data_hash bytea NOT NULL,
    leaf bytea NOT NULL,
    PRIMARY KEY (journal, position)
);
CREATE INDEX idx_journal_entries_actor ON journal_entries (journal, actor_id, position);
CREATE TABLE journal_contents (
    journal int NOT NULL,
    position bigint NOT NULL,
    class int NOT NULL,
    at bigint NOT NULL,
    salt bytea NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (journal, position, class, at)
) PARTITION BY LIST (class);
CREATE TABLE journal_values (
    journal int NOT NULL,
    hash bytea NOT NULL,
    used_at bigint NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (journal, hash)
);
CREATE INDEX idx_journal_values_used_at ON journal_values (used_at);
"#;

/// Brings the tables to the present version, or says why this program may not touch them.
pub(super) async fn prepare(session: &Session) -> Result<(), OpenError> {
    let failed = |e: tokio_postgres::Error| OpenError::Database(describe(&e));
    session.batch_execute(LOCK).await.map_err(failed)?;
    let outcome = migrate(session).await;
    // An error here means that the connection is gone, and the lock with it.
    let _ = session.batch_execute(UNLOCK).await;
    outcome
}

/// Whether the tables are those of this version.
pub(super) async fn check(session: &Session) -> Result<(), OpenError> {
    let failed = |e: tokio_postgres::Error| OpenError::Database(describe(&e));
    let known = "SELECT to_regclass('keiko_migrations') IS NOT NULL";
    if !session.query_one(known, &[]).await.map_err(failed)?.get::<_, bool>(0) {
        return Err(OpenError::Database("the database has no tables of Keiko; 'keiko serve' makes them".into()));
    }
    let found: i32 =
        session.query_one("SELECT coalesce(max(version), 0) FROM keiko_migrations", &[]).await.map_err(failed)?.get(0);
    match usize::try_from(found) {
        Ok(found) if found == STEPS.len() => Ok(()),
        _ => Err(OpenError::Database(format!(
            "the database has tables of version {found}, this keiko works with {}; 'keiko serve' brings older ones up to date",
            STEPS.len()
        ))),
    }
}

async fn migrate(session: &Session) -> Result<(), OpenError> {
    let failed = |e: tokio_postgres::Error| OpenError::Database(describe(&e));
    session
        .batch_execute("CREATE TABLE IF NOT EXISTS keiko_migrations (version int PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())")
        .await
        .map_err(failed)?;
    let found: i32 =
        session.query_one("SELECT coalesce(max(version), 0) FROM keiko_migrations", &[]).await.map_err(failed)?.get(0);
    let known = STEPS.len();
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    if found > known {
        return Err(OpenError::Database(format!(
            "the database has tables of version {found}, this keiko knows up to {known}; use the keiko version that wrote them, or a newer one"
        )));
    }
    for (number, step) in STEPS.iter().enumerate().skip(found) {
        let version = number + 1;
        let sql = format!("BEGIN; {step} INSERT INTO keiko_migrations (version) VALUES ({version}); COMMIT;");
        session.batch_execute(&sql).await.map_err(failed)?;
        tracing::info!(version, "the database's tables were brought up to date");
    }
    Ok(())
}
