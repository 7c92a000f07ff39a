//! Durable appends on PostgreSQL, beside plain INSERTs and COPYs of the same event rows on the same server. The server is
//! started here, with fsync on.

use crate::Scale;
use crate::appends::{sample, share_of};
use crate::report::{Figure, Goal, Section, number};
use crate::stats::percentile;
use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use std::sync::Arc;
use std::time::Instant;
use store::Store;
use store::postgres::server::Server;
use store::postgres::{PostgresSettings, PostgresStore};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

const PRODUCERS: usize = 64;
/// Rows of one plain transaction: as many as there are producers.
const BATCH: usize = 64;
const RATE: Goal = Goal::AtLeast(10_000.0);
const LATE: Goal = Goal::Below(20.0);

/// Appends of 64 producers.
pub(crate) async fn measure(scale: &Scale) -> anyhow::Result<Section> {
    let appends = scale.appends.first().map_or(20_000, |(_, appends)| *appends);
    let server = tokio::task::spawn_blocking(Server::start).await?;
    let mut section = Section::new("Durable appends on PostgreSQL (in process, server on this machine, fsync on)");
    let (mut rates, mut p50, mut p99, mut inserts, mut copies) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..scale.runs {
        // In turn, so that a slow moment of the disk meets all.
        inserts.push(plain(&server, appends, false).await?);
        copies.push(plain(&server, appends, true).await?);
        let (rate, latencies) = ours(&server, appends).await?;
        rates.push(rate);
        p50.push(percentile(&latencies, 0.50));
        p99.push(percentile(&latencies, 0.99));
    }
    let median = |rates: &[f64]| number(crate::stats::Spread::of(rates).median);
    let limit = format!("plain INSERT {} rows/s, COPY {} rows/s", median(&inserts), median(&copies));
    section.add(Figure::new("64 producers: store", "events/s", &rates).goal(RATE).limit(limit));
    section.add(Figure::new("64 producers: append, P50", "ms", &p50));
    section.add(Figure::new("64 producers: append, P99", "ms", &p99).goal(LATE));
    section.add(Figure::new("plain INSERT of the event rows, 64 in a transaction", "rows/s", &inserts));
    section.add(Figure::new("COPY of the event rows, 64 in a transaction", "rows/s", &copies));
    section.note(format!(
        "{} appends per run, each with an event, a new entity's row, 2 index fields and an idempotency key; every run in a \
         database of its own. The plain rows have one table with a primary key: no entity, index field or key, no check.",
        number(appends as f64)
    ));
    Ok(section)
}

async fn ours(server: &Server, appends: usize) -> anyhow::Result<(f64, Vec<f64>)> {
    let url = server.url(&server.database());
    let settings = PostgresSettings { url, connections_max: 8, tls_ca: None, size_max_bytes: None };
    let store = Arc::new(PostgresStore::open(&settings).await?);
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for producer in 0..PRODUCERS {
        let store = store.clone();
        running.spawn(async move {
            let mut latencies = vec![];
            for n in share_of(producer, PRODUCERS, appends) {
                let append = sample(producer, n);
                let at = Instant::now();
                store.append(append).await?;
                latencies.push(at.elapsed().as_secs_f64() * 1_000.0);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = vec![];
    while let Some(joined) = running.join_next().await {
        latencies.extend(joined??);
    }
    let rate = appends as f64 / begun.elapsed().as_secs_f64();
    anyhow::ensure!(store.health().events == appends as u64, "not every append is durable");
    store.close().await;
    Ok((rate, latencies))
}

const TABLE: &str = "CREATE TABLE plain (log int, position bigint, event_id bytea, kind text, stream text, version bigint, \
     at bigint, actor text, correlation text, salt bytea, payload bytea, payload_hash bytea, leaf bytea, PRIMARY KEY (log, position))";
const INSERT: &str = "INSERT INTO plain SELECT 1, p, decode(e, 'hex'), 'bench.item.written', s, 1, 0, 'system', c, \
     decode(repeat('00', 16), 'hex'), y, decode(repeat('00', 32), 'hex'), decode(repeat('00', 32), 'hex') \
     FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bytea[]) AS r(p, e, s, c, y)";

/// Rows per second of one connection that writes batches, each in a transaction of its own.
async fn plain(server: &Server, rows: usize, is_copy: bool) -> anyhow::Result<f64> {
    let (client, connection) = tokio_postgres::connect(&server.url(&server.database()), NoTls).await?;
    let driver = tokio::spawn(connection);
    client.batch_execute(TABLE).await?;
    let batches: Vec<Vec<Row>> =
        (0..rows).collect::<Vec<_>>().chunks(BATCH).map(|chunk| chunk.iter().map(|n| row(*n)).collect()).collect();
    let begun = Instant::now();
    for batch in &batches {
        match is_copy {
            true => copy(&client, batch).await?,
            false => insert(&client, batch).await?,
        }
    }
    let rate = rows as f64 / begun.elapsed().as_secs_f64();
    drop(client);
    driver.await.context("the connection's task")??;
    Ok(rate)
}

struct Row {
    position: i64,
    id: String,
    stream: String,
    correlation: String,
    payload: Vec<u8>,
}

fn row(n: usize) -> Row {
    let append = sample(0, n);
    let write = append.writes.into_iter().next();
    let (stream, event) = write.map(|w| (w.stream, w.events.into_iter().next())).unwrap_or_default();
    let (correlation, payload) = event.map(|e| (e.correlation, e.content.parts().1.unwrap_or_default())).unwrap_or_default();
    Row { position: n as i64 + 1, id: format!("{n:032x}"), stream, correlation, payload }
}

async fn insert(client: &Client, batch: &[Row]) -> anyhow::Result<()> {
    let positions: Vec<i64> = batch.iter().map(|r| r.position).collect();
    let text = |of: fn(&Row) -> &str| batch.iter().map(of).collect::<Vec<&str>>();
    let (ids, streams, correlations) = (text(|r| &r.id), text(|r| &r.stream), text(|r| &r.correlation));
    let payloads: Vec<&[u8]> = batch.iter().map(|r| &r.payload[..]).collect();
    client.execute(INSERT, &[&positions, &ids, &streams, &correlations, &payloads]).await?;
    Ok(())
}

async fn copy(client: &Client, batch: &[Row]) -> anyhow::Result<()> {
    let mut text = BytesMut::new();
    let zeros = |count: usize| format!("\\\\x{}", "00".repeat(count));
    for r in batch {
        let payload: String = r.payload.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = format!(
            "1\t{}\t\\\\x{}\tbench.item.written\t{}\t1\t0\tsystem\t{}\t{}\t\\\\x{payload}\t{}\t{}\n",
            r.position,
            r.id,
            r.stream,
            r.correlation,
            zeros(16),
            zeros(32),
            zeros(32)
        );
        text.put_slice(line.as_bytes());
    }
    let sink = client.copy_in::<_, Bytes>("COPY plain FROM STDIN").await?;
    futures_util::pin_mut!(sink);
    sink.send(text.freeze()).await?;
    sink.finish().await?;
    Ok(())
}
