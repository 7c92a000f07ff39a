//! The contents of journal entries: partitioned by class, then by day, so that content whose time is over is dropped by
//! the table, not row by row. Headers and hashes lie elsewhere and stay.

use deadpool_postgres::Object;
use kernel::Timestamp;
use kernel::journal::Class;
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::Error;

const DAY_MS: i64 = 86_400_000;
/// Held while partitions are made or dropped.
const LOCK: &str = "SELECT pg_advisory_xact_lock(5420385, 1)";

/// A partition: one class, one day.
pub(super) type Part = (u8, i64);

/// The partition of an entry.
pub(super) fn part(class: Class, at: Timestamp) -> Part {
    (class.code(), at.0.div_euclid(DAY_MS))
}

fn name((class, day): Part) -> String {
    match day < 0 {
        true => format!("journal_contents_c{class}_before_{}", -day),
        false => format!("journal_contents_c{class}_day_{day}"),
    }
}

/// Makes the partitions that are missing.
pub(super) async fn make(client: &mut Object, wanted: &BTreeSet<Part>) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(LOCK).await?;
    for part @ (class, day) in wanted.iter().copied() {
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS journal_contents_c{class} PARTITION OF journal_contents FOR VALUES IN ({class}) PARTITION BY RANGE (at); \
             CREATE TABLE IF NOT EXISTS {} PARTITION OF journal_contents_c{class} FOR VALUES FROM ({}) TO ({});",
            name(part),
            day * DAY_MS,
            (day + 1) * DAY_MS
        );
        transaction.batch_execute(&sql).await?;
    }
    transaction.commit().await
}

/// Removes contents of each class from before an instant: whole days at once, the last one row by row. Answers how many
/// entries lost theirs, and which partitions are gone.
pub(super) async fn forget(client: &mut Object, before: &BTreeMap<Class, Timestamp>) -> Result<(u64, Vec<Part>), Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(LOCK).await?;
    let (mut forgotten, mut gone) = (0, vec![]);
    for (class, instant) in before {
        let (class, last_day) = part(*class, *instant);
        let listed = "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
                      JOIN pg_class p ON p.oid = i.inhparent \
                      WHERE p.relname = $1 AND p.relnamespace = current_schema()::regnamespace";
        for row in transaction.query(listed, &[&format!("journal_contents_c{class}")]).await? {
            let table: String = row.get(0);
            let Some(day) = day_of(&table) else { continue };
            if day < last_day {
                let count: i64 = transaction.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.get(0);
                transaction.batch_execute(&format!("DROP TABLE {table}")).await?;
                forgotten += count as u64;
                gone.push((class, day));
            } else if day == last_day {
                forgotten += transaction.execute(&format!("DELETE FROM {table} WHERE at < $1"), &[&instant.0]).await?;
            }
        }
    }
    if let Some(oldest) = before.values().min() {
        transaction.execute("DELETE FROM journal_values WHERE used_at < $1", &[&oldest.0]).await?;
    }
    transaction.commit().await?;
    Ok((forgotten, gone))
}

fn day_of(table: &str) -> Option<i64> {
    match table.rsplit_once("_day_") {
        Some((_, day)) => day.parse().ok(),
        None => table.rsplit_once("_before_")?.1.parse::<i64>().ok().map(|day| -day),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_found_again_by_its_name() {
        for at in [-DAY_MS - 1, -1, 0, 1, DAY_MS, 1_800_000_000_000] {
            let part = part(Class::Security, Timestamp(at));
            assert_eq!(day_of(&name(part)), Some(part.1));
        }
    }
}
