//! Replicas on one database: leases by the database's clock, letters in a table that a crash of the server empties.

use super::PostgresStore;
use super::connect::{failed, unreachable};
use super::writer::BUCKET_LOCKS;
use crate::StoreError;
use crate::cluster::{Cluster, Letter};
use async_trait::async_trait;
use kernel::Timestamp;
use std::collections::BTreeMap;
use tokio::sync::watch;
use tokio_postgres::Error;
use tokio_postgres::types::ToSql;

/// Letters that nobody took after this long are thrown away: whoever wrote them is gone, or has written again.
const LETTERS_KEPT: &str = "3 seconds";

impl PostgresStore {
    async fn do_one(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<tokio_postgres::Row>, StoreError> {
        let client = self.reader.0.get().await.map_err(|e| unreachable(&e))?;
        let statement = client.prepare_cached(sql).await.map_err(|e| failed(&e))?;
        client.query(&statement, params).await.map_err(|e| failed(&e))
    }

    /// Takes a bucket whose lease is over. The lock waits for appends that rest on the lease of the one before.
    async fn take(&self, replica: &str, bucket: i32, ttl_ms: f64) -> Result<(), StoreError> {
        let client = self.reader.0.get().await.map_err(|e| unreachable(&e))?;
        let sql = "INSERT INTO leases AS l (bucket, holder, token, expires_at) \
                   VALUES ($1, $2, 1, clock_timestamp() + $3 * interval '1 millisecond') \
                   ON CONFLICT (bucket) DO UPDATE SET holder = excluded.holder, token = l.token + 1, expires_at = excluded.expires_at \
                   WHERE l.expires_at <= clock_timestamp()";
        let taken = async {
            client.batch_execute("BEGIN").await?;
            client.execute("SELECT pg_advisory_xact_lock($1, $2)", &[&BUCKET_LOCKS, &bucket]).await?;
            client.execute(sql, &[&bucket, &replica, &ttl_ms]).await?;
            client.batch_execute("COMMIT").await
        };
        let outcome: Result<(), Error> = taken.await;
        if let Err(error) = outcome {
            drop(deadpool_postgres::Object::take(client));
            return Err(failed(&error));
        }
        Ok(())
    }
}

#[async_trait]
impl Cluster for PostgresStore {
    async fn join(&self, replica: &str, _now: Timestamp, ttl_ms: u64) -> Result<Vec<String>, StoreError> {
        let sql = "INSERT INTO replicas (replica, expires_at) VALUES ($1, clock_timestamp() + $2 * interval '1 millisecond') \
                   ON CONFLICT (replica) DO UPDATE SET expires_at = excluded.expires_at";
        self.do_one(sql, &[&replica, &(ttl_ms as f64)]).await?;
        self.do_one("DELETE FROM replicas WHERE expires_at < clock_timestamp() - interval '1 minute'", &[]).await?;
        let old = format!("DELETE FROM letters WHERE posted_at < clock_timestamp() - interval '{LETTERS_KEPT}'");
        self.do_one(&old, &[]).await?;
        let live = self.do_one("SELECT replica FROM replicas WHERE expires_at > clock_timestamp() ORDER BY replica", &[]).await?;
        Ok(live.iter().map(|row| row.get(0)).collect())
    }

    async fn hold(&self, replica: &str, wanted: &[u16], _now: Timestamp, ttl_ms: u64) -> Result<BTreeMap<u16, u64>, StoreError> {
        let ttl_ms = ttl_ms as f64;
        let renew = "UPDATE leases SET expires_at = clock_timestamp() + $2 * interval '1 millisecond' WHERE holder = $1";
        self.do_one(renew, &[&replica, &ttl_ms]).await?;
        let wanted: Vec<i32> = wanted.iter().map(|bucket| i32::from(*bucket)).collect();
        let free = "SELECT w FROM unnest($1::int[]) w LEFT JOIN leases l ON l.bucket = w \
                    WHERE l.bucket IS NULL OR l.expires_at <= clock_timestamp()";
        for row in self.do_one(free, &[&wanted]).await? {
            self.take(replica, row.get(0), ttl_ms).await?;
        }
        let held = self.do_one("SELECT bucket, token FROM leases WHERE holder = $1", &[&replica]).await?;
        Ok(held.iter().map(|row| (row.get::<_, i32>(0) as u16, row.get::<_, i64>(1) as u64)).collect())
    }

    async fn release(&self, replica: &str, buckets: &[u16]) -> Result<(), StoreError> {
        let buckets: Vec<i32> = buckets.iter().map(|bucket| i32::from(*bucket)).collect();
        let sql = "UPDATE leases SET holder = '', expires_at = clock_timestamp() WHERE holder = $1 AND bucket = ANY($2)";
        self.do_one(sql, &[&replica, &buckets]).await.map(|_| ())
    }

    async fn leave(&self, replica: &str) -> Result<(), StoreError> {
        self.do_one("UPDATE leases SET holder = '', expires_at = clock_timestamp() WHERE holder = $1", &[&replica]).await?;
        self.do_one("DELETE FROM replicas WHERE replica = $1", &[&replica]).await.map(|_| ())
    }

    async fn post(&self, letters: Vec<Letter>) -> Result<(), StoreError> {
        let (recipients, bodies): (Vec<String>, Vec<Vec<u8>>) = letters.into_iter().map(|l| (l.recipient, l.body)).unzip();
        let sql = "INSERT INTO letters (recipient, body) SELECT * FROM unnest($1::text[], $2::bytea[])";
        self.do_one(sql, &[&recipients, &bodies]).await?;
        self.tails.posted();
        Ok(())
    }

    async fn collect(&self, recipients: &[String]) -> Result<Vec<Letter>, StoreError> {
        let sql = format!(
            "DELETE FROM letters WHERE recipient = ANY($1) \
             RETURNING number, recipient, body, posted_at > clock_timestamp() - interval '{LETTERS_KEPT}'"
        );
        let mut rows = self.do_one(&sql, &[&recipients]).await?;
        rows.retain(|row| row.get::<_, bool>(3));
        rows.sort_by_key(|row| row.get::<_, i64>(0));
        Ok(rows.iter().map(|row| Letter { recipient: row.get(1), body: row.get(2) }).collect())
    }

    fn mail(&self) -> watch::Receiver<u64> {
        self.tails.mail()
    }
}
