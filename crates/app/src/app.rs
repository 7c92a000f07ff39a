//! The application: everything that use cases need, put together once.

use crate::asof::Sessions;
use crate::breached::Breached;
use crate::crypto::{Crypto, KeyMaterial, fresh_secret};
use crate::errors::{of_handle, of_store};
use crate::fleet::SharedFleet;
use crate::jose::{Algorithm, b64, unb64};
use crate::known::Known;
use crate::limits::{LimitSettings, Limits};
use crate::mails::Registration;
use crate::oauth::{Assertions, Documents, Polls};
use crate::passwords::PASSWORD_CHARS_MIN;
use crate::replicas::{Membership, Replicas};
use crate::schema::Schemas;
use crate::signing::Ring;
use crate::throttle::Throttle;
use crate::watch::Watch;
use crate::workers::{self, TenantRuntime};
use crate::{Answer, Caller, ListOrder, Page, passwords};
use domain::identity::tenant::{Created, Tenant, TenantCommand};
use domain::identity::user::{Registered, User, UserCommand, UserKind};
use domain::policy::{Reach, reach};
use engine::{BUCKET_OF_ALL, Context, Engine, Env, Extras, HandleError, Handled, Step};
use gateway::{Gateway, Postbox, Report};
use kernel::id::{KeyId, TenantId};
use kernel::note::VerifierKey;
use kernel::{Actor, Decider, IndexField, Kind, Personal, Problem, Rejection, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use store::journal::Journal;
use store::{Authority, EntityQuery};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

/// What can be set.
#[derive(Clone, Debug)]
pub struct AppSettings {
    /// How long a claim holds without a heartbeat.
    pub claim_ttl_ms: u64,
    /// How long an agent counts as there without a call.
    pub agent_lease_ms: u64,
    /// The first retry's delay.
    pub retry_delay_base_ms: u64,
    /// How long an access token is good.
    pub access_token_ttl_ms: u64,
    /// How long a session lasts.
    pub session_ttl_ms: u64,
    /// How long the content of tool calls is kept in the journal.
    pub tool_call_retention_ms: u64,
    /// How long the content of security entries is kept in the journal.
    pub security_retention_ms: u64,
    /// Witnesses whose signatures on checkpoints are kept.
    pub witnesses: Vec<VerifierKey>,
    /// The address under which everybody knows this server, without a slash at its end: who makes tokens.
    pub public_url: String,
    /// What new keys sign tokens with.
    pub token_algorithm: Algorithm,
    /// How long a key signs tokens before another one takes over.
    pub signing_key_lifetime_ms: u64,
    /// How long a refresh token that was used counts as a repetition.
    pub refresh_grace_ms: u64,
    /// Whether clients may register themselves.
    pub client_registration: bool,
    /// Who may make an account.
    pub registration: Registration,
    /// The roles of whoever made an account without being invited.
    pub registration_roles: Vec<String>,
    /// Passwords that nobody may have.
    pub breached: Option<Arc<Breached>>,
    /// Shortest password.
    pub password_chars_min: usize,
    /// How much everybody may ask for.
    pub limits: LimitSettings,
    /// Whether administrators need a second factor.
    pub mfa_required: bool,
    /// How old the proof may be that dangerous actions want.
    pub step_up_max_age_ms: u64,
    /// Whether documents of clients may lie at private addresses.
    pub fetch_private: bool,
    /// The address of the document that Keiko is known by as a client of others; its own where nothing is said.
    pub client_document: Option<String>,
}

impl Default for AppSettings {
    fn default() -> Self {
        AppSettings {
            claim_ttl_ms: 30_000,
            agent_lease_ms: 30_000,
            retry_delay_base_ms: 1_000,
            access_token_ttl_ms: 15 * 60_000,
            session_ttl_ms: 30 * 24 * 3_600_000,
            tool_call_retention_ms: 30 * 24 * 3_600_000,
            security_retention_ms: 7 * 365 * 24 * 3_600_000,
            witnesses: vec![],
            public_url: "http://127.0.0.1:8080".into(),
            token_algorithm: Algorithm::Es256,
            signing_key_lifetime_ms: 30 * 24 * 3_600_000,
            refresh_grace_ms: 10_000,
            client_registration: false,
            registration: Registration::Closed,
            registration_roles: vec!["user".into()],
            breached: None,
            password_chars_min: PASSWORD_CHARS_MIN,
            limits: LimitSettings::default(),
            mfa_required: false,
            step_up_max_age_ms: 15 * 60_000,
            fetch_private: false,
            client_document: None,
        }
    }
}

/// What the first start made.
pub struct Bootstrap {
    /// The administrator's random password, to be shown once; `None` when one was given.
    pub generated_password: Option<String>,
}

/// How the application is, for health checks and metrics.
pub struct AppStatus {
    /// Claim requests that wait.
    pub waiting_claims: usize,
    /// Agents by status.
    pub agents: BTreeMap<&'static str, usize>,
    /// Attempts since the first start: completed, failed, expired.
    pub attempts: domain::view::stats::AgentStats,
    /// Tenants that are ready.
    pub tenants: usize,
}

/// The application. Cheap to clone.
#[derive(Clone)]
pub struct App(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub engine: Engine,
    pub settings: AppSettings,
    pub crypto: Crypto,
    pub schemas: Arc<Schemas>,
    pub throttle: Throttle,
    /// The keys that sign tokens.
    pub ring: Ring,
    /// Who was recognised a moment ago.
    pub known: Known,
    /// How much everybody has left.
    pub limits: Limits,
    /// Whether there is an emergency in the default tenant.
    pub emergency: std::sync::atomic::AtomicBool,
    /// What was seen of identities and is counted.
    pub watch: Watch,
    /// Assertions of clients that were shown.
    pub assertions: Assertions,
    /// Clients that are documents.
    pub documents: Documents,
    /// Places for fetching clients' documents.
    pub fetching: tokio::sync::Semaphore,
    /// When devices asked last.
    pub polls: Polls,
    /// The tenant that all others are recorded in.
    pub root: TenantId,
    pub tenants: RwLock<BTreeMap<String, Arc<TenantRuntime>>>,
    /// Which key has which hash. A hash never changes its key, so this only forgets.
    pub key_ids: Mutex<BTreeMap<String, KeyId>>,
    /// Ends when the server is about to stop: whoever waits is answered.
    pub draining: CancellationToken,
    /// Password hashes that wait or are in work; they are made one after another.
    pub hashing: tokio::sync::Semaphore,
    /// Observations.
    pub journal: Arc<dyn Journal>,
    /// MCP servers.
    pub gateway: Gateway,
    /// What is shown to MCP servers.
    pub vault: crate::credentials::Vault,
    /// Where mails go, if any do.
    pub postbox: Option<Postbox>,
    /// The name of this process: never the same twice.
    pub process: String,
    /// The other processes on the same store, if there may be any.
    pub replicas: Option<Arc<Replicas>>,
    /// Held by whoever starts a tenant's workers.
    pub starting: tokio::sync::Mutex<()>,
    /// Lists as they were.
    pub sessions: Sessions,
}

/// What the application stands on.
pub struct Ground {
    /// Log and entities.
    pub engine: Engine,
    /// Observations.
    pub journal: Arc<dyn Journal>,
    /// MCP servers.
    pub gateway: Gateway,
    /// What the gateway tells.
    pub reports: Receiver<Report>,
    /// Where mails go, if any do.
    pub postbox: Option<Postbox>,
    /// How this process belongs to others on the same store.
    pub membership: Option<Membership>,
}

/// The slug of the tenant that is there from the start.
pub(crate) const DEFAULT_TENANT: &str = "default";
const ADMIN: &str = "admin";
/// Documents of clients that are fetched at a time.
const FETCHES_MAX: usize = 8;
/// Password hashes that may wait: some seconds of work.
const HASHES_MAX: usize = 128;

impl App {
    /// Starts the application on an engine: makes tenant and administrator on the first start, then starts the workers
    /// of every tenant.
    pub async fn start(
        ground: Ground,
        keys: &KeyMaterial,
        settings: AppSettings,
        admin_password: Option<String>,
    ) -> Result<(App, Option<Bootstrap>), Rejection> {
        let Ground { engine, journal, gateway, reports, postbox, membership } = ground;
        let crypto = Crypto::new(keys).map_err(internal)?;
        let replicas = membership.map(|membership| Arc::new(Replicas::join(engine.env(), membership)));
        let process = replicas.as_ref().map_or_else(|| kernel::text::hex(&engine.env().bytes::<8>()), |all| all.name.clone());
        let (root, bootstrap) = root(&engine, keys, &crypto, replicas.as_deref(), admin_password).await?;
        check_keys(&engine, root, keys).await?;
        let app = App(Arc::new(Inner {
            engine,
            settings,
            crypto,
            schemas: Arc::default(),
            throttle: Throttle::default(),
            ring: Ring::default(),
            known: Known::default(),
            limits: Limits::default(),
            emergency: Default::default(),
            watch: Watch::default(),
            assertions: Assertions::default(),
            documents: Documents::default(),
            fetching: tokio::sync::Semaphore::new(FETCHES_MAX),
            polls: Polls::default(),
            root,
            tenants: RwLock::default(),
            key_ids: Mutex::default(),
            draining: CancellationToken::new(),
            hashing: tokio::sync::Semaphore::new(HASHES_MAX),
            journal,
            gateway,
            vault: crate::credentials::Vault::default(),
            postbox,
            process,
            replicas,
            starting: tokio::sync::Mutex::default(),
            sessions: Sessions::default(),
        }));
        app.begin_ring().await?;
        workers::start_all(&app, reports).await.map_err(of_store)?;
        Ok((app, bootstrap))
    }

    /// The engine, for reading the log.
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(crate) fn env(&self) -> &Env {
        self.0.engine.env()
    }

    /// Whether an actor may do something, and how far. Deny by default.
    pub fn authorise(&self, actor: &Actor, permission: &str) -> Answer<Reach> {
        match reach(&actor.permissions, permission) {
            Reach::None => Err(Rejection::new(
                Kind::Forbidden,
                "PERMISSION_DENIED",
                format!("{} may not do this: the permission '{permission}' is missing.", actor.who),
                "Ask an administrator for a role, or a key, that holds it.",
            )
            .with("permission", permission)),
            reach => self.check_proof(actor, permission).map(|()| reach),
        }
    }

    /// Ends when the server is about to stop.
    pub fn draining(&self) -> &CancellationToken {
        &self.0.draining
    }

    /// Gives out no new work and answers whoever waits; what is running goes on.
    pub fn drain(&self) {
        self.0.draining.cancel();
        for tenant in self.runtimes() {
            if let Some(lead) = tenant.lead() {
                lead.dispatch.tell(domain::process::dispatch::DispatchSignal::Drain);
            }
        }
    }

    /// How it is.
    pub fn status(&self) -> AppStatus {
        let runtimes = self.runtimes();
        let mut status =
            AppStatus { waiting_claims: 0, agents: BTreeMap::new(), attempts: Default::default(), tenants: runtimes.len() };
        for runtime in runtimes {
            status.waiting_claims += runtime.waiters.count();
            let fleet = runtime.fleet.read();
            status.attempts.add(&fleet.totals());
            for (_, agent) in fleet.all() {
                *status.agents.entry(agent.state.status()).or_default() += 1;
            }
        }
        status
    }

    pub(crate) fn runtimes(&self) -> Vec<Arc<TenantRuntime>> {
        self.0.tenants.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn runtimes_by_slug(&self) -> Vec<(String, Arc<TenantRuntime>)> {
        let tenants = self.0.tenants.read().unwrap_or_else(PoisonError::into_inner);
        tenants.iter().map(|(slug, runtime)| (slug.clone(), runtime.clone())).collect()
    }

    /// The running parts of a tenant.
    pub(crate) fn tenant(&self, slug: &str) -> Option<Arc<TenantRuntime>> {
        self.0.tenants.read().unwrap_or_else(PoisonError::into_inner).get(slug).cloned()
    }

    /// The running parts of the caller's tenant.
    pub(crate) fn runtime(&self, caller: &Caller) -> Answer<Arc<TenantRuntime>> {
        self.tenant(&caller.actor.tenant_slug).ok_or_else(|| internal("the tenant is not running".into()))
    }

    pub(crate) fn fleet(&self, caller: &Caller) -> Answer<SharedFleet> {
        Ok(self.runtime(caller)?.fleet.clone())
    }

    /// The tenant's latest position.
    pub fn position(&self, tenant: TenantId) -> u64 {
        *self.0.engine.store().tail(tenant).borrow()
    }

    /// Waits until the tenant's log has reached a position, at most `wait_ms`.
    pub async fn reach_position(&self, tenant: TenantId, position: u64, wait_ms: u64) -> Answer<()> {
        let mut tail = self.0.engine.store().tail(tenant);
        let late = self.env().now().plus_ms(wait_ms);
        while *tail.borrow_and_update() < position {
            tokio::select! {
                biased;
                _ = tail.changed() => {}
                () = self.env().sleep_until(late) => {
                    let message = format!("The log has not reached position {position} yet; it is at {}.", self.position(tenant));
                    return Err(Rejection::new(Kind::Unavailable, "POSITION_NOT_REACHED", message, "Try again after the time in Retry-After."));
                }
            }
        }
        if let Some(runtime) = self.runtimes().into_iter().find(|runtime| runtime.id == tenant) {
            tokio::select! {
                biased;
                () = runtime.follower.reaches(position) => {}
                () = self.env().sleep_until(late) => {}
            }
        }
        Ok(())
    }

    /// Carries out a command for a caller. A request that was carried out before answers the entity as it is.
    pub(crate) async fn execute<D: Decider>(&self, caller: &Caller, step: Step, extras: Extras) -> Answer<Handled<D::State>> {
        match self.0.engine.handle::<D>(caller.actor.tenant, step, &caller.context(), extras).await {
            Err(HandleError::Repeated(known)) => self.repeated::<D>(caller, &known).await,
            // What is refused now may be refused because the same request was carried out before.
            Err(HandleError::Rejected(rejection)) => match self.earlier::<D>(caller).await? {
                Some(entity) => Ok(entity),
                None => Err(rejection),
            },
            other => other.map_err(of_handle),
        }
    }

    /// The entity that an earlier request with the same `Idempotency-Key` led to, if there was one.
    pub(crate) async fn earlier<D: Decider>(&self, caller: &Caller) -> Answer<Option<Handled<D::State>>> {
        let Some(key) = caller.idempotency_key() else { return Ok(None) };
        match self.0.engine.store().idempotent(caller.actor.tenant, &key.key).await.map_err(of_store)? {
            Some(known) => self.repeated::<D>(caller, &known).await.map(Some),
            None => Ok(None),
        }
    }

    async fn repeated<D: Decider>(&self, caller: &Caller, known: &store::Idempotent) -> Answer<Handled<D::State>> {
        if caller.idempotency.as_ref().is_none_or(|(_, hash)| *hash != known.request_hash) {
            return Err(Rejection::new(
                Kind::Conflict,
                "IDEMPOTENCY_CONFLICT",
                "This Idempotency-Key was used for another request.",
                "Use a new key for each request; repeat a key only with the same method, path and body.",
            ));
        }
        let entity = self.0.engine.entity::<D>(caller.actor.tenant, &known.stream).await.map_err(of_store)?;
        entity.ok_or_else(|| internal("the entity of a repeated request is gone".into()))
    }

    /// An entity of the caller's tenant; deleted ones are not found.
    pub(crate) async fn entity<D: Decider>(&self, tenant: TenantId, stream: &str) -> Answer<Option<Handled<D::State>>> {
        let found = self.0.engine.entity::<D>(tenant, stream).await.map_err(of_store)?;
        Ok(found.filter(|entity| !D::is_deleted(&entity.state)))
    }

    /// What is sealed at a place beside the log; nothing where it is not there, or cannot be opened.
    pub(crate) async fn open_secret(&self, tenant: TenantId, place: &str) -> Answer<Option<Vec<u8>>> {
        let sealed = self.engine().store().secret(tenant, place).await.map_err(of_store)?;
        Ok(sealed.and_then(|sealed| self.0.crypto.sealer.open(tenant, place, &sealed)))
    }

    /// Something that others carry for Keiko, as text: nobody else reads it, and it is good for this place alone.
    pub(crate) fn seal_text<T: Serialize>(&self, tenant: TenantId, place: &str, what: &T) -> Answer<String> {
        let plain = serde_json::to_vec(what).map_err(|e| internal(e.to_string()))?;
        let sealed = self.0.crypto.sealer.seal(tenant, place, &plain, self.env().bytes()).map_err(internal)?;
        Ok(b64(&sealed))
    }

    /// What such a text says; nothing where it is for another place, or was changed.
    pub(crate) fn open_text<T: DeserializeOwned>(&self, tenant: TenantId, place: &str, text: &str) -> Option<T> {
        let opened = self.0.crypto.sealer.open(tenant, place, &unb64(text)?)?;
        serde_json::from_slice(&opened).ok()
    }

    /// An entity of a tenant, also one that has ended.
    pub(crate) async fn entity_even_ended<D: Decider>(
        &self,
        tenant: TenantId,
        stream: &str,
    ) -> Answer<Option<Handled<D::State>>> {
        self.0.engine.entity::<D>(tenant, stream).await.map_err(of_store)
    }

    /// An entity of the caller's tenant as of the caller's position; one that was deleted then is not found.
    pub(crate) async fn read<D: Decider>(&self, caller: &Caller, stream: &str) -> Answer<Option<Handled<D::State>>> {
        let Some(at) = caller.at else { return self.entity::<D>(caller.actor.tenant, stream).await };
        let found = self.0.engine.entity_at::<D>(caller.actor.tenant, stream, at).await.map_err(of_store)?;
        Ok(found.filter(|entity| !D::is_deleted(&entity.state)))
    }

    /// The position that a position or an instant stands for.
    pub async fn as_of(&self, caller: &Caller, text: &str) -> Answer<u64> {
        let tenant = caller.actor.tenant;
        if let Ok(position) = text.parse::<u64>() {
            return self.not_ahead(tenant, position).await;
        }
        match text.parse::<Timestamp>().ok() {
            Some(instant) => self.0.engine.store().position_at(tenant, instant).await.map_err(of_store),
            None => {
                let message = "is no position, such as 4711, and no instant, such as 2026-01-01T00:00:00Z".to_owned();
                Err(Rejection::invalid(&[Problem { pointer: "/at".into(), message }]))
            }
        }
    }

    /// The stream that holds a unique key.
    pub(crate) async fn holder(&self, tenant: TenantId, key: &str) -> Answer<Option<String>> {
        self.0.engine.store().holder(tenant, key).await.map_err(of_store)
    }

    /// Entities of the caller's tenant.
    pub(crate) async fn list<D: Decider>(
        &self,
        caller: &Caller,
        order: &ListOrder,
        fields: Vec<IndexField>,
    ) -> Answer<Page<D::State>> {
        let log = caller.actor.tenant;
        let position = self.position(log);
        let is_of_kind = |after: &String| after.strip_prefix(D::KIND).is_some_and(|rest| rest.starts_with('_'));
        if order.after.as_ref().is_some_and(|after| !is_of_kind(after)) {
            let message = "is a cursor of another list".to_owned();
            return Err(Rejection::invalid(&[Problem { pointer: "/cursor".into(), message }]));
        }
        if let Some(at) = caller.at {
            return self.list_at::<D>(caller, at, order, &fields).await;
        }
        let query = EntityQuery {
            kind: D::KIND,
            fields,
            after: order.after.clone(),
            is_descending: order.is_descending,
            with_deleted: order.with_deleted,
            limit: order.limit,
        };
        let page = self.0.engine.store().entities(log, query).await.map_err(of_store)?;
        let mut items = Vec::with_capacity(page.rows.len());
        for row in page.rows {
            items.extend(self.0.engine.folded::<D>(log, row).await.map_err(of_store)?);
        }
        Ok(Page { items, next: page.next, position })
    }

    /// A place in the queue for hashing passwords; a flood of logins is refused instead of delaying everybody.
    pub(crate) fn hashing_place(&self) -> Answer<tokio::sync::SemaphorePermit<'_>> {
        let busy = |_| {
            let hint = "Try again after the time in Retry-After.";
            Rejection::new(Kind::Unavailable, "BUSY", "Too many passwords are being checked.", hint)
        };
        self.0.hashing.try_acquire().map_err(busy)
    }

    /// Refuses a password that is too short, too well known, or the user name.
    pub(crate) async fn check_password(&self, password: &str, username: &str) -> Answer<()> {
        passwords::check(password, username, self.0.settings.password_chars_min)?;
        let Some(list) = self.0.settings.breached.clone() else { return Ok(()) };
        let tried = password.to_owned();
        match self.env().heavy(move || list.has(&tried)).await {
            Ok(false) => Ok(()),
            Ok(true) => Err(passwords::refused("It is in a list of passwords that became known.")),
            Err(error) => {
                tracing::error!(%error, "the list of known passwords cannot be read");
                let hint = "Look at password.breached_file.";
                Err(Rejection::new(Kind::Unavailable, "BUSY", "The password cannot be checked now.", hint))
            }
        }
    }

    /// Hashes and seals a password, where it delays nobody.
    pub(crate) async fn sealed_password(
        &self,
        tenant: TenantId,
        user: kernel::UserId,
        password: String,
    ) -> Answer<(String, Option<Vec<u8>>)> {
        let _place = self.hashing_place()?;
        let inner = self.0.clone();
        let env = self.env().clone();
        let sealed =
            self.env().heavy(move || passwords::set_password_hash(&inner.crypto.sealer, &env, tenant, user, &password)).await;
        sealed.map(|(name, sealed)| (name, Some(sealed))).map_err(internal)
    }
}

/// A refusal that is our fault; the reason goes to the log only.
pub(crate) fn internal(reason: String) -> Rejection {
    tracing::error!(%reason, "internal error");
    Rejection::new(
        Kind::Internal,
        "INTERNAL",
        "Something went wrong inside the server.",
        "Try again; if it stays, report it with the request id.",
    )
}

/// The log of the default tenant; made at the first start, by one process only.
async fn root(
    engine: &Engine,
    keys: &KeyMaterial,
    crypto: &Crypto,
    replicas: Option<&Replicas>,
    admin_password: Option<String>,
) -> Result<(TenantId, Option<Bootstrap>), Rejection> {
    const LOOK_AGAIN_MS: u64 = 20;
    loop {
        if let Some(root) = engine.store().logs().await.map_err(of_store)?.first() {
            return Ok((*root, None));
        }
        let token = replicas.and_then(|replicas| replicas.held.borrow().get(&BUCKET_OF_ALL).copied());
        if replicas.is_some() && token.is_none() {
            engine.env().sleep_ms(LOOK_AGAIN_MS).await;
            continue;
        }
        let authority = token.map(|token| Authority { bucket: BUCKET_OF_ALL, token });
        let (root, bootstrap) = first_start(&engine.scoped(authority), keys, crypto, admin_password).await?;
        return Ok((root, Some(bootstrap)));
    }
}

/// The secret that tells which keys a store was begun with.
const KEYS_FINGERPRINT: &str = "keys/fingerprint";

/// Refuses keys that are not those that the store was begun with: with them nobody could sign in, or worse, some could.
async fn check_keys(engine: &Engine, root: TenantId, keys: &KeyMaterial) -> Result<(), Rejection> {
    let known = engine.store().secret(root, KEYS_FINGERPRINT).await.map_err(of_store)?;
    match known {
        Some(known) if known != keys.fingerprint() => Err(Rejection::new(
            Kind::Internal,
            "INTERNAL",
            "The store was begun with other keys than those in the key files.",
            "Copy the key files from another replica, or restore them from a backup.",
        )),
        _ => Ok(()),
    }
}

async fn first_start(
    engine: &Engine,
    keys: &KeyMaterial,
    crypto: &Crypto,
    admin_password: Option<String>,
) -> Result<(TenantId, Bootstrap), Rejection> {
    let env = engine.env();
    let (tenant, user): (TenantId, kernel::UserId) = (env.id(), env.id());
    let generated = admin_password.is_none().then(|| fresh_secret(env)[..20].to_owned());
    let password = admin_password.or_else(|| generated.clone()).unwrap_or_default();
    passwords::check(&password, ADMIN, PASSWORD_CHARS_MIN)?;
    let created = Created {
        slug: DEFAULT_TENANT.into(),
        name: "Default".into(),
        admin_user: user,
        admin_username: Personal::new(user, ADMIN.to_owned()),
    };
    let registered = Registered {
        kind: UserKind::User,
        username: Personal::new(user, ADMIN.to_owned()),
        username_index: crypto.sealer.blind(tenant, "username", ADMIN),
        roles: vec!["admin".into()],
    };
    let (name, sealed) = passwords::set_password_hash(&crypto.sealer, env, tenant, user, &password).map_err(internal)?;
    let steps =
        [Step::new::<Tenant>(tenant, TenantCommand::Create(created)), Step::new::<User>(user, UserCommand::Register(registered))];
    let extras =
        Extras { secrets: vec![(name, Some(sealed)), (KEYS_FINGERPRINT.into(), Some(keys.fingerprint()))], ..Extras::default() };
    let context = Context::system("first-start");
    engine.transact(tenant, &steps, &context, extras).await.map_err(of_handle)?;
    engine
        .handle::<Tenant>(tenant, Step::on::<Tenant>(tenant, TenantCommand::MarkReady), &context, Extras::default())
        .await
        .map_err(of_handle)?;
    Ok((tenant, Bootstrap { generated_password: generated }))
}
