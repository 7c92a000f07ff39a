//! What is done beside appends, rarely: putting things back from a backup, and making room after an erasure.

use super::connect::{failed, unreachable};
use crate::*;
use deadpool_postgres::{Object, Pool};
use tokio_postgres::Error;
use tokio_postgres::types::ToSql;

/// Tables that hold content which an erasure removes.
const SCRUBBED: &str =
    "events, entities, entity_fields, unique_keys, idempotency, stored_values, secrets, journal_contents, journal_values";

const IDEMPOTENT: &str = "INSERT INTO idempotency (log, key, request_hash, stream, position) \
     SELECT $1, * FROM unnest($2::text[], $3::bytea[], $4::text[], $5::bigint[]) \
     ON CONFLICT (log, key) DO UPDATE SET request_hash = excluded.request_hash, stream = excluded.stream, position = excluded.position";
const VALUES: &str =
    "INSERT INTO stored_values (log, hash, bytes) SELECT $1, * FROM unnest($2::bytea[], $3::bytea[]) ON CONFLICT DO NOTHING";
const SECRETS: &str = "INSERT INTO secrets (log, name, sealed) SELECT $1, * FROM unnest($2::text[], $3::bytea[]) \
     ON CONFLICT (log, name) DO UPDATE SET sealed = excluded.sealed";

/// Puts things back, all of them or none.
pub(super) async fn put(client: &mut Object, log: i32, things: &[Beside]) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    let (mut keys, mut hashes, mut streams, mut positions) = (vec![], vec![], vec![], vec![]);
    let (mut values, mut secrets) = ((vec![], vec![]), (vec![], vec![]));
    for thing in things {
        match thing {
            Beside::Idempotent(key, known) => {
                keys.push(key.as_str());
                hashes.push(&known.request_hash[..]);
                streams.push(known.stream.as_str());
                positions.push(known.position as i64);
            }
            Beside::Value(hash, bytes) => {
                values.0.push(&hash[..]);
                values.1.push(&bytes[..]);
            }
            Beside::Secret(name, sealed) => {
                secrets.0.push(name.as_str());
                secrets.1.push(&sealed[..]);
            }
        }
    }
    let idempotent: [&(dyn ToSql + Sync); 5] = [&log, &keys, &hashes, &streams, &positions];
    transaction.execute(IDEMPOTENT, &idempotent).await?;
    transaction.execute(VALUES, &[&log, &values.0, &values.1]).await?;
    transaction.execute(SECRETS, &[&log, &secrets.0, &secrets.1]).await?;
    transaction.commit().await
}

/// Frees the room of what was removed. The bytes stay in the database server's files until something is written over
/// them, and in its write-ahead log as long as it keeps that; `VACUUM FULL` rewrites the files.
pub(super) async fn scrub(pool: &Pool) -> Result<(), StoreError> {
    let client = pool.get().await.map_err(|e| unreachable(&e))?;
    // It takes as long as it takes; the connection is not given back with that setting.
    let client = Object::take(client);
    let scrubbed = async {
        client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await?;
        client.batch_execute(&format!("VACUUM {SCRUBBED}")).await
    };
    scrubbed.await.map_err(|e| failed(&e))
}
