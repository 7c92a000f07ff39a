//! How soon after its commit an event is under a checkpoint, while 64 producers append as fast as they can.
//!
//! The loop is the server's: it looks every 200 ms. Only the signature is left out, 0.03 ms each.

use crate::Scale;
use crate::appends::{sample, share_of};
use crate::machine::Place;
use crate::report::{Figure, Goal, Section, number};
use crate::stats::percentile;
use kernel::TenantId;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::Store;
use store::sqlite::{Directory, SqliteSettings, SqliteStore};
use store::tree::TreeStore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PRODUCERS: usize = 64;
const LOOK_EVERY: Duration = Duration::from_millis(200);
const LAG: Goal = Goal::Below(500.0);

/// The lag of the sealed record.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let mut section = Section::new("The sealed record under load (in process)");
    let appends = scale.appends.first().map_or(20_000, |(_, appends)| *appends) * 3;
    let (mut rates, mut p50, mut worst) = (vec![], vec![], vec![]);
    for _ in 0..scale.runs {
        let (rate, lags) = run(place, appends).await?;
        rates.push(rate);
        p50.push(percentile(&lags, 0.50));
        worst.push(percentile(&lags, 1.0));
    }
    section.add(Figure::new("appends while it is sealed", "events/s", &rates));
    section.add(Figure::new("commit to checkpoint, P50", "ms", &p50));
    section.add(Figure::new("commit to checkpoint, longest", "ms", &worst).goal(LAG).limit("it is looked at every 200 ms"));
    section.note(format!("{} appends per run, {PRODUCERS} producers.", number(appends as f64)));
    Ok(section)
}

async fn run(place: &Place, appends: usize) -> anyhow::Result<(f64, Vec<f64>)> {
    let folder = place.fresh()?;
    let store = Arc::new(SqliteStore::open(Directory::open(folder.path())?, &SqliteSettings { disk_free_min_bytes: 0 })?);
    let (log, is_over) = (TenantId::from_bytes([1; 16]), CancellationToken::new());
    let sealer = tokio::spawn(seal(store.clone(), log, is_over.clone()));
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for producer in 0..PRODUCERS {
        let store = store.clone();
        running.spawn(async move {
            for n in share_of(producer, PRODUCERS, appends) {
                store.append(sample(producer, n)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(joined) = running.join_next().await {
        joined??;
    }
    let rate = appends as f64 / begun.elapsed().as_secs_f64();
    is_over.cancel();
    let lags = sealer.await??;
    store.close().await;
    Ok((rate, lags))
}

/// Seals as the server does. Answers how long each look's oldest new event has waited for its checkpoint, in milliseconds.
async fn seal(store: Arc<SqliteStore>, log: TenantId, is_over: CancellationToken) -> anyhow::Result<Vec<f64>> {
    let mut edge = engine::tree::edge(store.as_ref(), log).await?;
    let mut lags = vec![];
    let mut looked_at = Instant::now();
    while !is_over.is_cancelled() {
        tokio::time::sleep(LOOK_EVERY).await;
        let size = store.sizes().await?.get(&log).copied().unwrap_or(0);
        // Whatever is new was committed after the last look at the earliest.
        let (oldest, is_new) = (looked_at, size > edge.size());
        looked_at = Instant::now();
        engine::tree::grow(store.as_ref(), log, &mut edge, size, &|size, root| format!("{size} {root:?}")).await?;
        if is_new {
            lags.push(oldest.elapsed().as_secs_f64() * 1_000.0);
        }
    }
    anyhow::ensure!(!lags.is_empty(), "nothing was sealed");
    Ok(lags)
}
