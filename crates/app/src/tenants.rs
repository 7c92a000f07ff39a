//! Tenants: founded by an administrator of the default tenant, opened by the provisioner.

use crate::app::{App, Inner, internal};
use crate::errors::{Problems, of_handle, of_store};
use crate::workers::start_tenant;
use crate::{Answer, Caller, ListOrder, Page};
use async_trait::async_trait;
use domain::identity::tenant::{Created, Tenant, TenantCommand, TenantLimits};
use domain::identity::user::{Registered, User, UserCommand, UserKind, password_secret};
use domain::limit::Rate;
use domain::process::outstanding::{Effect, Outstanding, Provision};
use engine::{Context, Executor, Extras, HandleError, Handled, Step};
use kernel::id::{TenantId, UserId};
use kernel::{Decider, Kind, Personal, Rejection, limits, text};
use serde_json::json;
use std::sync::Weak;
use store::EntityQuery;
use tokio::sync::OwnedMutexGuard;

/// A tenant to be founded.
pub struct NewTenant {
    /// Unique short name.
    pub slug: String,
    /// Name for people.
    pub name: String,
    /// How its administrator signs in.
    pub admin_username: String,
    /// With which password.
    pub admin_password: String,
}

impl App {
    /// Founds a tenant. Answers when its log is open and its administrator can sign in.
    pub async fn create_tenant(&self, caller: &Caller, new: NewTenant) -> Answer<Handled<Tenant>> {
        self.only_root(caller)?;
        if let Some(known) = self.earlier::<Tenant>(caller).await? {
            return Ok(known);
        }
        let mut problems = Problems::default();
        if !text::is_slug(&new.slug, limits::SLUG_CHARS_MAX) {
            problems
                .add("/slug", format!("must be 1 to {} of a-z, 0-9 and '-', without '-' at its ends", limits::SLUG_CHARS_MAX));
        }
        problems.name("/name", &new.name);
        problems.name("/admin/username", &new.admin_username);
        problems.check()?;
        self.check_password(&new.admin_password, &new.admin_username).await?;
        let (tenant, user): (TenantId, UserId) = (self.env().id(), self.env().id());
        // Sealed in the root log until the new log exists; the provisioner moves it.
        let secret = self.sealed_password(self.0.root, user, new.admin_password).await?;
        let created =
            Created { slug: new.slug, name: new.name, admin_user: user, admin_username: Personal::new(user, new.admin_username) };
        let step = Step::new::<Tenant>(tenant, TenantCommand::Create(created));
        self.execute::<Tenant>(caller, step, Extras { secrets: vec![secret], ..Extras::default() }).await?;
        self.wait_until_ready(tenant).await
    }

    async fn wait_until_ready(&self, tenant: TenantId) -> Answer<Handled<Tenant>> {
        const WAIT_MS_MAX: u64 = 10_000;
        const LOOK_AGAIN_MS: u64 = 20;
        let late = self.env().now().plus_ms(WAIT_MS_MAX);
        let mut tail = self.0.engine.store().tail(self.0.root);
        loop {
            tail.mark_unchanged();
            let known = self.entity::<Tenant>(self.0.root, &tenant.to_string()).await?;
            let runs_here = |t: &Handled<Tenant>| self.tenant(&t.state.created.slug).is_some_and(|runtime| runtime.id == tenant);
            if let Some(known) = known.filter(|t| t.state.is_ready && runs_here(t)) {
                return Ok(known);
            }
            tokio::select! {
                biased;
                _ = tail.changed() => {}
                // Its workers are started a moment after it is ready, which no event says.
                () = self.env().sleep_ms(LOOK_AGAIN_MS), if self.env().now() < late => {}
                () = self.env().sleep_until(late) => {
                    let message = "The tenant was created; its log is not open yet.";
                    return Err(Rejection::new(Kind::Unavailable, "TENANT_NOT_READY", message, "It will be; read it with GET /api/v1/tenants."));
                }
            }
        }
    }

    /// All tenants.
    pub async fn tenants(&self, caller: &Caller, order: &ListOrder) -> Answer<Page<Tenant>> {
        self.only_root(caller)?;
        self.list::<Tenant>(caller, order, vec![]).await
    }

    /// One tenant, by id or slug.
    pub async fn tenant_record(&self, caller: &Caller, id_or_slug: &str) -> Answer<Handled<Tenant>> {
        self.only_root(caller)?;
        let stream = match id_or_slug.parse::<TenantId>() {
            Ok(id) => Some(id.to_string()),
            Err(_) => self.holder(self.0.root, &domain::identity::tenant::slug_key(id_or_slug)).await?,
        };
        let found = match stream {
            Some(stream) => self.read::<Tenant>(caller, &stream).await?,
            None => None,
        };
        found.ok_or_else(|| {
            Rejection::new(
                Kind::NotFound,
                "TENANT_NOT_FOUND",
                format!("There is no tenant '{id_or_slug}'."),
                "List tenants with GET /api/v1/tenants.",
            )
            .with("searched_id", id_or_slug)
        })
    }

    /// Lets nobody of a tenant do anything, or lets them again. The default tenant cannot be suspended: nobody could end it.
    pub async fn suspend_tenant(&self, caller: &Caller, id_or_slug: &str, reason: Option<String>) -> Answer<Handled<Tenant>> {
        let tenant = self.tenant_record(caller, id_or_slug).await?;
        if tenant.stream == self.0.root.to_string() {
            let hint = "Suspend single users, or declare an emergency.";
            return Err(Rejection::new(Kind::Refused, "RULE_VIOLATED", "The default tenant cannot be suspended.", hint));
        }
        let command = reason.map_or(TenantCommand::Reinstate, |reason| TenantCommand::Suspend { reason });
        self.execute::<Tenant>(caller, Step::on::<Tenant>(tenant.stream, command), Extras::default()).await
    }

    /// Replaces what a tenant may use. The default tenant has no limits of its own: nobody could lift them.
    pub async fn set_tenant_limits(&self, caller: &Caller, id_or_slug: &str, limits: TenantLimits) -> Answer<Handled<Tenant>> {
        let tenant = self.tenant_record(caller, id_or_slug).await?;
        if tenant.stream == self.0.root.to_string() {
            let hint = "Use the settings 'limit.…', which hold for everybody.";
            return Err(Rejection::new(Kind::Refused, "RULE_VIOLATED", "The default tenant has no limits of its own.", hint));
        }
        let mut problems = Problems::default();
        if limits.requests.as_ref().is_some_and(|rate| Rate::parse(rate).is_none()) {
            problems.add("/requests", "is no rate such as 200/s, 600/m or 5000/h");
        }
        problems.check()?;
        self.execute::<Tenant>(caller, Step::on::<Tenant>(tenant.stream, TenantCommand::SetLimits(limits)), Extras::default())
            .await
    }

    /// Has this process keep to a tenant's limits.
    pub(crate) fn apply_limits(&self, tenant: TenantId, record: &Tenant) {
        self.set_tenant_rate(tenant, record.limits.requests.as_deref().and_then(Rate::parse));
    }

    /// Room for one more of a kind, to be held until it is made; refused when the tenant has as many as it may. On several
    /// replicas, those made at the same moment may each be the last one.
    pub(crate) async fn room<D: Decider>(
        &self,
        tenant: TenantId,
        what: &str,
        of: impl Fn(&TenantLimits) -> Option<u32>,
    ) -> Answer<Option<OwnedMutexGuard<()>>> {
        if tenant == self.0.root {
            return Ok(None);
        }
        let record = self.entity::<Tenant>(self.0.root, &tenant.to_string()).await?;
        let record = record.filter(|record| record.state.deleting.is_none()).ok_or_else(tenant_ended)?;
        let Some(max) = of(&record.state.limits) else { return Ok(None) };
        let runtime = self.tenant(&record.state.created.slug).ok_or_else(tenant_ended)?;
        let room = runtime.room.clone().lock_owned().await;
        let mut query = EntityQuery::all(D::KIND);
        let mut count = 0;
        loop {
            let page = self.engine().store().entities(tenant, query.clone()).await.map_err(of_store)?;
            count += page.rows.len();
            if count >= max as usize {
                let message = format!("This tenant may have {max} {what}, and has them.");
                let hint = "Remove some, or ask an administrator of the default tenant for more.";
                return Err(Rejection::new(Kind::Refused, "QUOTA_REACHED", message, hint).with("limit", max));
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(Some(room)),
            }
        }
    }

    /// Begins to delete a tenant: nobody of it may do anything from now on, and what it holds is removed. Nothing ends that.
    pub async fn delete_tenant(&self, caller: &Caller, id_or_slug: &str, reason: String) -> Answer<Handled<Tenant>> {
        let tenant = self.tenant_record(caller, id_or_slug).await?;
        if tenant.stream == self.0.root.to_string() {
            let hint = "Remove the data directory or the database instead.";
            return Err(Rejection::new(Kind::Refused, "RULE_VIOLATED", "The default tenant cannot be deleted.", hint));
        }
        let facts = json!({ "tenant": tenant.stream, "slug": tenant.state.created.slug, "reason": reason });
        self.witness(caller, "identity.tenant.deletion_requested", &facts).await?;
        let step = Step::on::<Tenant>(tenant.stream, TenantCommand::Delete { reason });
        self.execute::<Tenant>(caller, step, Extras::default()).await
    }

    /// Refuses a caller whose tenant has ended since the caller was recognised.
    pub fn check_running(&self, caller: &Caller) -> Answer<()> {
        let runs = self.tenant(&caller.actor.tenant_slug).is_some_and(|runtime| runtime.id == caller.actor.tenant);
        if runs { Ok(()) } else { Err(tenant_ended()) }
    }

    /// Whether a tenant is suspended or being deleted. Others than the default one are asked for in its log.
    pub(crate) async fn is_suspended(&self, tenant: TenantId) -> Answer<bool> {
        if tenant == self.0.root {
            return Ok(false);
        }
        let record = self.entity::<Tenant>(self.0.root, &tenant.to_string()).await?;
        Ok(record.is_none_or(|record| record.state.is_stopped()))
    }

    /// Refuses callers of other tenants what concerns all of them.
    pub(crate) fn only_root(&self, caller: &Caller) -> Answer<()> {
        if caller.actor.tenant == self.0.root {
            return Ok(());
        }
        let hint = "Ask an administrator of the default tenant.";
        Err(Rejection::new(
            Kind::Forbidden,
            "PERMISSION_DENIED",
            "This concerns every tenant, so only the default tenant may do it.",
            hint,
        ))
    }
}

fn tenant_ended() -> Rejection {
    let hint = "Sign in elsewhere: nothing brings a deleted tenant back.";
    Rejection::new(Kind::Unauthenticated, "TOKEN_INVALID", "The tenant is being deleted.", hint)
}

/// Opens new tenants' logs. Every step can be repeated.
pub(crate) struct ProvisionWorker {
    pub app: Weak<Inner>,
}

#[async_trait]
impl Executor<Outstanding<Provision>> for ProvisionWorker {
    async fn execute(&self, tenant: TenantId) -> Option<()> {
        let app = App(Weak::upgrade(&self.app)?);
        if let Err(error) = provision(&app, tenant).await {
            tracing::warn!(%tenant, %error, "the tenant could not be opened; trying again");
        }
        None
    }
}

async fn provision(app: &App, tenant: TenantId) -> Answer<()> {
    let engine = app.engine();
    let root = app.0.root;
    let record =
        app.entity::<Tenant>(root, &tenant.to_string()).await?.ok_or_else(|| internal("a tenant without a record".into()))?;
    let created = &record.state.created;
    let context = Context::system(Provision::NAME);
    if !record.state.is_ready {
        make_admin(app, tenant, created, &context).await?;
        let moved = Extras { secrets: vec![(password_secret(&created.admin_user), None)], ..Extras::default() };
        let step = Step::on::<Tenant>(tenant, TenantCommand::MarkReady);
        start_tenant(app, tenant, &created.slug).await.map_err(of_store)?;
        engine.handle::<Tenant>(root, step, &context, moved).await.map_err(of_handle)?;
    }
    Ok(())
}

async fn make_admin(app: &App, tenant: TenantId, created: &Created, context: &Context) -> Answer<()> {
    let user = created.admin_user;
    let name = password_secret(&user);
    let sealer = &app.0.crypto.sealer;
    let sealed = app.engine().store().secret(app.0.root, &name).await.map_err(of_store)?;
    let hash = sealed
        .and_then(|sealed| sealer.open(app.0.root, &name, &sealed))
        .ok_or_else(|| internal("a new tenant without a password".into()))?;
    let resealed = sealer.seal(tenant, &name, &hash, app.env().bytes()).map_err(internal)?;
    let username = created.admin_username.get().cloned().unwrap_or_default();
    let registered = Registered {
        kind: UserKind::User,
        username_index: sealer.blind(tenant, "username", &username),
        username: created.admin_username.clone(),
        roles: vec!["admin".into()],
    };
    let step = Step::on::<User>(user, UserCommand::Register(registered));
    let extras = Extras { secrets: vec![(name, Some(resealed))], ..Extras::default() };
    match app.engine().handle::<User>(tenant, step, context, extras).await {
        Ok(_) => Ok(()),
        // An earlier try got this far.
        Err(HandleError::Rejected(rejection)) if rejection.code == "ALREADY_EXISTS" => Ok(()),
        Err(error) => Err(of_handle(error)),
    }
}
