//! Tiles and checkpoints on PostgreSQL: of the logs, and of the journals.

use super::connect::{failed, is_lost, unreachable};
use super::read::fixed;
use crate::StoreError;
use crate::tree::{Growth, Sealed};
use deadpool_postgres::Pool;
use kernel::TenantId;
use kernel::merkle::Hash;
use std::collections::BTreeMap;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};

/// Which trees: table of owners, table and columns of leaves, and the number under which they are kept.
pub(super) struct Trees {
    pub pool: Pool,
    pub number: i32,
    pub owners: &'static str,
    pub leaves: &'static str,
    pub owner: &'static str,
}

/// The trees of logs.
pub(super) fn of_logs(pool: Pool) -> Trees {
    Trees { pool, number: 0, owners: "logs", leaves: "events", owner: "log" }
}

/// The trees of journals.
pub(super) fn of_journals(pool: Pool) -> Trees {
    Trees { pool, number: 1, owners: "journals", leaves: "journal_entries", owner: "journal" }
}

impl Trees {
    async fn rows(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        let client = self.pool.get().await.map_err(|e| unreachable(&e))?;
        let statement = client.prepare_cached(sql).await.map_err(|e| failed(&e))?;
        client.query(&statement, params).await.map_err(|e| failed(&e))
    }

    fn of(&self) -> String {
        format!("(SELECT number FROM {} WHERE tenant = $1)", self.owners)
    }

    pub async fn sizes(&self) -> Result<BTreeMap<TenantId, u64>, StoreError> {
        let (owners, leaves, owner) = (self.owners, self.leaves, self.owner);
        let sql = format!(
            "SELECT o.tenant, coalesce((SELECT l.position FROM {leaves} l WHERE l.{owner} = o.number ORDER BY l.position DESC LIMIT 1), 0) FROM {owners} o"
        );
        let rows = self.rows(&sql, &[]).await?;
        rows.iter().map(|row| Ok((TenantId::from_bytes(fixed(row, 0)?), row.get::<_, i64>(1) as u64))).collect()
    }

    pub async fn leaves(&self, tenant: TenantId, from: u64, limit: usize) -> Result<Vec<Hash>, StoreError> {
        let (leaves, owner, of) = (self.leaves, self.owner, self.of());
        let sql = format!("SELECT leaf FROM {leaves} WHERE {owner} = {of} AND position > $2 ORDER BY position LIMIT $3");
        let rows = self.rows(&sql, &[&&tenant.bytes()[..], &(from as i64), &(limit as i64)]).await?;
        rows.iter().map(|row| fixed(row, 0)).collect()
    }

    pub async fn tile(&self, tenant: TenantId, level: u8, index: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = format!("SELECT hashes FROM tiles WHERE tree = $2 AND owner = {} AND level = $3 AND number = $4", self.of());
        let rows = self.rows(&sql, &[&&tenant.bytes()[..], &self.number, &i32::from(level), &(index as i64)]).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    pub async fn sealed(&self, tenant: TenantId) -> Result<Option<Sealed>, StoreError> {
        let sql = format!("SELECT size, note, cosigned FROM checkpoints WHERE tree = $2 AND owner = {}", self.of());
        let rows = self.rows(&sql, &[&&tenant.bytes()[..], &self.number]).await?;
        let sealed = |row: &Row| Sealed { size: row.get::<_, i64>(0) as u64, note: row.get(1), cosigned: row.get(2) };
        Ok(rows.first().map(sealed))
    }

    pub async fn grow(&self, tenant: TenantId, growth: &Growth) -> Result<(), StoreError> {
        let mut client = self.pool.get().await.map_err(|e| unreachable(&e))?;
        let outcome: Result<Option<u64>, Error> = async {
            let transaction = client.transaction().await?;
            let sql = format!("SELECT number FROM {} WHERE tenant = $1", self.owners);
            let owner: i32 = transaction.query_one(&sql, &[&&tenant.bytes()[..]]).await?.get(0);
            let begin =
                "INSERT INTO checkpoints (tree, owner, size, note, cosigned) VALUES ($1, $2, 0, '', '') ON CONFLICT DO NOTHING";
            transaction.execute(begin, &[&self.number, &owner]).await?;
            let size = "SELECT size FROM checkpoints WHERE tree = $1 AND owner = $2 FOR UPDATE";
            let size = transaction.query_one(size, &[&self.number, &owner]).await?.get::<_, i64>(0) as u64;
            if size != growth.expected {
                return Ok(Some(size));
            }
            let levels: Vec<i32> = growth.tiles.iter().map(|((level, _), _)| i32::from(*level)).collect();
            let numbers: Vec<i64> = growth.tiles.iter().map(|((_, number), _)| *number as i64).collect();
            let hashes: Vec<&[u8]> = growth.tiles.iter().map(|(_, hashes)| &hashes[..]).collect();
            let keep = "INSERT INTO tiles (tree, owner, level, number, hashes) \
                        SELECT $1, $2, * FROM unnest($3::int[], $4::bigint[], $5::bytea[]) \
                        ON CONFLICT (tree, owner, level, number) DO UPDATE SET hashes = excluded.hashes";
            transaction.execute(keep, &[&self.number, &owner, &levels, &numbers, &hashes]).await?;
            let seal = "UPDATE checkpoints SET size = $3, note = $4 WHERE tree = $1 AND owner = $2";
            transaction.execute(seal, &[&self.number, &owner, &(growth.size as i64), &growth.note]).await?;
            transaction.commit().await?;
            Ok(None)
        }
        .await;
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some(size)) => Err(StoreError::ViewMoved(size)),
            Err(error) if is_lost(&error) => Err(StoreError::Unknown(error.to_string())),
            Err(error) => Err(failed(&error)),
        }
    }

    pub async fn cosign(&self, tenant: TenantId, note: &str) -> Result<(), StoreError> {
        let sql = format!("UPDATE checkpoints SET cosigned = $3 WHERE tree = $2 AND owner = {}", self.of());
        self.rows(&sql, &[&&tenant.bytes()[..], &self.number, &note]).await.map(|_| ())
    }
}
