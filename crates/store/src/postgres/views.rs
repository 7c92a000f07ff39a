//! Rows and checkpoint of a view, in one transaction. The checkpoint's row is the lock.

use crate::*;
use deadpool_postgres::Object;

pub(super) async fn apply(
    client: &mut Object,
    log: i32,
    apply: &ViewApply,
) -> Result<Result<(), StoreError>, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    let (version, expected, position) = (apply.version as i32, apply.expected as i64, apply.position as i64);
    let begin =
        "INSERT INTO views (log, view, version, position, is_active) VALUES ($1, $2, $3, 0, false) ON CONFLICT DO NOTHING";
    transaction.execute(begin, &[&log, &apply.view, &version]).await?;
    let move_on = "UPDATE views SET position = $5, is_active = is_active OR $6 WHERE log = $1 AND view = $2 AND version = $3 AND position = $4";
    let moved = transaction.execute(move_on, &[&log, &apply.view, &version, &expected, &position, &apply.activate]).await?;
    if moved == 0 {
        let at = "SELECT position FROM views WHERE log = $1 AND view = $2 AND version = $3";
        let stands_at: i64 = transaction.query_one(at, &[&log, &apply.view, &version]).await?.get(0);
        transaction.rollback().await?;
        return Ok(Err(StoreError::ViewMoved(stands_at as u64)));
    }
    let gone: Vec<&str> = apply.rows.iter().filter_map(|row| row.as_ref().err().map(String::as_str)).collect();
    if !gone.is_empty() {
        let delete = "DELETE FROM view_rows WHERE log = $1 AND view = $2 AND version = $3 AND key = ANY($4)";
        transaction.execute(delete, &[&log, &apply.view, &version, &gone]).await?;
    }
    let kept: Vec<(&str, &[u8])> = apply.rows.iter().flatten().map(|row| (row.key.as_str(), &row.row[..])).collect();
    if !kept.is_empty() {
        let (keys, rows): (Vec<&str>, Vec<&[u8]>) = kept.into_iter().unzip();
        let upsert = "INSERT INTO view_rows (log, view, version, key, row) SELECT $1, $2, $3, * FROM unnest($4::text[], $5::bytea[]) \
             ON CONFLICT (log, view, version, key) DO UPDATE SET row = excluded.row";
        transaction.execute(upsert, &[&log, &apply.view, &version, &keys, &rows]).await?;
    }
    if apply.activate {
        for table in ["view_rows", "views"] {
            let others = format!("DELETE FROM {table} WHERE log = $1 AND view = $2 AND version <> $3");
            transaction.execute(&others, &[&log, &apply.view, &version]).await?;
        }
    }
    transaction.commit().await?;
    Ok(Ok(()))
}
