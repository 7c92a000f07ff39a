//! Deleting a tenant: what it held is removed from log, journal and tables. That something happened, by whom and when,
//! stays in the sealed record, whose hashes stay valid.

use crate::app::{App, Inner};
use crate::audit::seal_once;
use crate::erasures::scrub;
use crate::errors::{of_handle, of_store};
use crate::kinds::kinds;
use crate::workers::stop_tenant;
use crate::{Answer, Tree};
use async_trait::async_trait;
use domain::erasure::Erased;
use domain::identity::tenant::{Tenant, TenantCommand};
use domain::process::outstanding::{Effect, Outstanding, RemoveTenant};
use engine::{Context, Engine, Executor, Extras, Step};
use kernel::Decider;
use kernel::event::ERASED;
use kernel::id::TenantId;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use store::journal::{Journal, JournalQuery};
use store::{Beside, BesideKind, ScanFilter, StoreError, ViewApply};

/// Things of a page.
const PAGE: usize = 1_000;
/// Streams that are erased in one transaction.
const STREAMS: usize = 64;
/// How long requests that were admitted before, and the other replicas, have to end.
const SETTLE_MS: u64 = 2_000;

/// Removes what deleted tenants held, one tenant after another.
pub(crate) struct RemovalWorker {
    pub app: Weak<Inner>,
    pub turn: tokio::sync::Mutex<()>,
}

#[async_trait]
impl Executor<Outstanding<RemoveTenant>> for RemovalWorker {
    async fn execute(&self, tenant: TenantId) -> Option<()> {
        let app = App(Weak::upgrade(&self.app)?);
        // Asked for again while it is being done.
        let _turn = self.turn.try_lock().ok()?;
        if let Err(error) = remove(&app, tenant).await {
            tracing::warn!(%tenant, %error, "a tenant could not be deleted; trying again");
        }
        None
    }
}

/// May be cut short anywhere and done again.
async fn remove(app: &App, tenant: TenantId) -> Answer<()> {
    let (engine, journal, root) = (app.engine(), &app.0.journal, app.0.root);
    let Some(record) = engine.entity::<Tenant>(root, &tenant.to_string()).await.map_err(of_store)? else { return Ok(()) };
    if record.state.deleting.is_none() {
        return Ok(());
    }
    stop_tenant(app, tenant).await;
    // Twice: requests that were admitted before are over by the second time.
    for _ in 0..2 {
        app.env().sleep_ms(SETTLE_MS).await;
        remove_log(engine, tenant).await?;
        remove_beside(engine, tenant).await.map_err(of_store)?;
        remove_journal(journal, tenant).await.map_err(of_store)?;
    }
    scrub(engine, journal).await?;
    app.0.sessions.forget(tenant);
    for tree in Tree::ALL {
        seal_once(app, tree, tenant).await.map_err(of_store)?;
    }
    let context = Context::system(RemoveTenant::NAME);
    let step = Step::on::<Tenant>(tenant, TenantCommand::MarkDeleted);
    engine.handle::<Tenant>(root, step, &context, Extras::default()).await.map_err(of_handle)?;
    // The record names its first administrator.
    let step = Step::erase(Tenant::KIND, tenant, json!(Erased { erasure: None }));
    engine.transact(root, &[step], &context, Extras::default()).await.map_err(of_handle)?;
    // Once more, for the record. The time before must not wait for it: without the record nobody would begin anew.
    scrub(engine, journal).await?;
    tracing::info!(%tenant, slug = record.state.created.slug, "a tenant is deleted");
    Ok(())
}

/// Erases every stream that still says something.
async fn remove_log(engine: &Engine, tenant: TenantId) -> Answer<()> {
    let (kinds, context, note) = (kinds(), Context::system(RemoveTenant::NAME), json!(Erased { erasure: None }));
    let mut position = 0;
    loop {
        let page = engine.store().scan(tenant, position, ScanFilter::default(), PAGE).await.map_err(of_store)?;
        let says = page.events.iter().filter(|event| event.payload.is_some() && event.header.kind != ERASED);
        let streams: Vec<String> = says.map(|event| event.header.stream.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        for streams in streams.chunks(STREAMS) {
            let step = |stream: &String| Ok(Step::erase(kinds.kind(stream)?, stream, note.clone()));
            let steps = streams.iter().map(step).collect::<Result<Vec<_>, StoreError>>().map_err(of_store)?;
            engine.transact(tenant, &steps, &context, Extras::default()).await.map_err(of_handle)?;
        }
        if page.position <= position {
            return Ok(());
        }
        position = page.position;
    }
}

/// Removes large values, secrets and the rows of views.
async fn remove_beside(engine: &Engine, tenant: TenantId) -> Result<(), StoreError> {
    let store = engine.store();
    for kind in [BesideKind::Value, BesideKind::Secret] {
        loop {
            let mut extras = Extras::default();
            for thing in store.beside(tenant, kind, vec![], PAGE).await? {
                match thing {
                    Beside::Value(hash, _) => extras.values.push((hash, None)),
                    Beside::Secret(name, _) => extras.secrets.push((name, None)),
                    Beside::Idempotent(..) => {}
                }
            }
            if extras.values.is_empty() && extras.secrets.is_empty() {
                break;
            }
            engine.put_aside(tenant, extras).await?;
        }
    }
    for (view, state) in store.views(tenant).await? {
        loop {
            let rows = store.view_list(tenant, &view, state.version, "", "", PAGE).await?;
            if rows.is_empty() {
                break;
            }
            let rows = rows.into_iter().map(|row| Err(row.key)).collect();
            let (view, version) = (view.clone(), state.version);
            let (expected, position, activate) = (state.position, state.position, state.is_active);
            store.apply(tenant, ViewApply { view, version, expected, position, rows, activate }).await?;
        }
    }
    Ok(())
}

/// Removes what the journal says. Values first: without the entries nobody would find them.
async fn remove_journal(journal: &Arc<dyn Journal>, tenant: TenantId) -> Result<(), StoreError> {
    let (mut positions, mut after) = (vec![], 0);
    loop {
        let page = journal.entries(tenant, JournalQuery { after, limit: PAGE, ..JournalQuery::default() }).await?;
        let Some(last) = page.last() else { break };
        after = last.header.position;
        positions.extend(page.iter().filter(|entry| entry.data.is_some()).map(|entry| entry.header.position));
    }
    loop {
        let values = journal.values(tenant, [0; 32], PAGE).await?;
        if values.is_empty() {
            break;
        }
        journal.erase_values(tenant, values.into_iter().map(|(hash, _)| hash).collect(), after).await?;
    }
    for positions in positions.chunks(PAGE) {
        journal.erase(tenant, positions.to_vec()).await?;
    }
    Ok(())
}
