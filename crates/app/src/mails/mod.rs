//! Mails with a link: invitations, proofs of addresses, ways to a new password. What they lead to is in `links`.

mod links;
mod worker;

pub(crate) use worker::{MailWorker, end_old};

use crate::app::{App, DEFAULT_TENANT, internal};
use crate::errors::{Problems, of_handle, of_store};
use crate::limits::RouteClass;
use crate::workers::each;
use crate::{Answer, Caller, ListOrder};
use domain::identity::mail::{Mail, MailCommand, Purpose, PurposeKind, Requested, Status, address_secret};
use domain::identity::user::{User, UserCommand, email_key};
use domain::limit::Standing;
use engine::{Context, Engine, Extras, HandleError, Handled, Step};
use gateway::is_address;
use kernel::id::{MailId, TenantId, UserId};
use kernel::{BlindIndex, IndexField, Kind, Rejection};
use std::collections::BTreeSet;

/// Who may make an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Registration {
    /// Nobody by themselves: administrators make accounts.
    #[default]
    Closed,
    /// Whoever was invited.
    Invited,
    /// Everybody who reads the mail at an address, in the default tenant; and whoever was invited.
    Open,
}

/// A mail as it may be shown.
pub struct ShownMail {
    /// Its record.
    pub mail: Handled<Mail>,
    /// To which address; `None` once it is over.
    pub address: Option<String>,
    /// Where its link leads; only for whoever asked for an invitation while there is no mail.
    pub link: Option<String>,
    /// Whether its link is good.
    pub is_good: bool,
}

/// How long an answer takes that must not tell whether an address is known.
const ANSWER_MS: u64 = 300;
/// What a link's token begins with.
const PREFIX: &str = "km_";

fn closed(message: &str) -> Rejection {
    Rejection::new(
        Kind::Forbidden,
        "REGISTRATION_CLOSED",
        message,
        "Ask an administrator for an account; 'users.registration' says who may make one.",
    )
}

fn no_mail() -> Rejection {
    let hint = "Ask whoever runs this server to set mail.smtp_url and mail.from; until then an administrator sets passwords.";
    Rejection::new(Kind::Refused, "MAIL_NOT_CONFIGURED", "This server sends no mail.", hint)
}

fn not_found(searched: &str) -> Rejection {
    let message = format!("There is no mail '{searched}' in this tenant.");
    Rejection::new(Kind::NotFound, "MAIL_NOT_FOUND", message, "List mails with GET /api/v1/mails.").with("searched_id", searched)
}

impl App {
    /// Whether mails go out.
    pub fn has_mail(&self) -> bool {
        self.0.postbox.is_some()
    }

    /// Who may make an account.
    pub fn registration(&self) -> Registration {
        self.0.settings.registration
    }

    /// Invites somebody to make an account with these roles. An earlier invitation of the address ends.
    pub async fn invite(&self, caller: &Caller, email: String, roles: Vec<String>) -> Answer<ShownMail> {
        if let Some(known) = self.earlier::<Mail>(caller).await? {
            return self.shown_invitation(caller, known).await;
        }
        if self.registration() == Registration::Closed {
            return Err(closed("Nobody is invited here."));
        }
        let mut problems = Problems::default();
        problems.names("/roles", &roles);
        check_address(&mut problems, &email);
        problems.check()?;
        self.check_roles(caller, &roles).await?;
        let log = caller.actor.tenant;
        let index = self.email_index(log, &email);
        if self.holder(log, &email_key(&index)).await?.is_some() {
            let message = "Somebody of this tenant has this address.";
            return Err(Rejection::new(Kind::Conflict, "EMAIL_TAKEN", message, "Look at GET /api/v1/users."));
        }
        let purpose = Purpose::Invitation { user: self.env().id(), roles, is_own_wish: false };
        self.count_mail(&format!("mail/{log}"), &email, self.admit_mail(&caller.actor))?;
        let earlier = open_mails(&self.0.engine, log, "to", &format!("{}:{}", purpose.kind().as_str(), index.0)).await?;
        let (id, steps, extras) = self.written_after(log, purpose, &email, revoking(earlier))?;
        let mail = match self.0.engine.transact(log, &steps, &caller.context(), extras).await {
            Err(HandleError::Repeated(_)) => self.earlier::<Mail>(caller).await?,
            other => {
                other.map_err(of_handle)?;
                self.entity::<Mail>(log, &id.to_string()).await?
            }
        };
        self.shown_invitation(caller, mail.ok_or_else(|| internal("a mail without a record".into()))?).await
    }

    /// An invitation as whoever wrote it sees it: with the link, where no mail takes it anywhere.
    async fn shown_invitation(&self, caller: &Caller, mail: Handled<Mail>) -> Answer<ShownMail> {
        let shown = self.shown_mail(caller, mail).await?;
        let id = shown.mail.stream.parse().map_err(|_| internal("a mail without an id".into()))?;
        let is_to_hand_over = shown.mail.state.requested.is_by_hand && shown.is_good;
        let link = is_to_hand_over.then(|| self.link(&caller.actor.tenant_slug, caller.actor.tenant, id, &shown.mail.state));
        Ok(ShownMail { link, ..shown })
    }

    async fn shown_mail(&self, caller: &Caller, mail: Handled<Mail>) -> Answer<ShownMail> {
        let address = match mail.stream.parse() {
            Ok(id) => self.address_of(caller.actor.tenant, &id).await?,
            Err(_) => None,
        };
        let is_good = mail.state.is_good(self.env().now());
        Ok(ShownMail { mail, address, link: None, is_good })
    }

    /// One mail.
    pub async fn mail(&self, caller: &Caller, id: &str) -> Answer<ShownMail> {
        let found = match id.parse::<MailId>() {
            Ok(id) => self.read::<Mail>(caller, &id.to_string()).await?,
            Err(_) => None,
        };
        self.shown_mail(caller, found.ok_or_else(|| not_found(id))?).await
    }

    /// All mails, where to go on, and the position that the page reflects.
    pub async fn mails(&self, caller: &Caller, order: &ListOrder) -> Answer<(Vec<ShownMail>, Option<String>, u64)> {
        let page = self.list::<Mail>(caller, order, vec![]).await?;
        let mut mails = Vec::with_capacity(page.items.len());
        for mail in page.items {
            mails.push(self.shown_mail(caller, mail).await?);
        }
        Ok((mails, page.next, page.position))
    }

    /// Lets the link of a mail lead nowhere.
    pub async fn revoke_mail(&self, caller: &Caller, id: &str) -> Answer<()> {
        let mail = self.mail(caller, id).await?.mail;
        let step = Step::on::<Mail>(&mail.stream, MailCommand::Revoke);
        let secrets = mail.stream.parse().map(|id| (address_secret(&id), None)).into_iter().collect();
        self.execute::<Mail>(caller, step, Extras { secrets, ..Extras::default() }).await.map(|_| ())
    }

    /// Sends a stranger the way to an account of the default tenant. The answer does not tell whether the address is known.
    pub async fn register(&self, email: &str, context: Context) -> Answer<()> {
        if self.registration() != Registration::Open {
            return Err(closed("Nobody makes an account here without being invited."));
        }
        self.quietly(None, email, context, |known| match known {
            Some(user) => Purpose::Known { user },
            // What it may do is settled when the account is made.
            None => Purpose::Invitation { user: self.env().id(), roles: vec![], is_own_wish: true },
        })
        .await
    }

    /// Sends a person the way to another password. The answer does not tell whether the address is known.
    pub async fn forgot_password(&self, tenant: Option<&str>, email: &str, context: Context) -> Answer<()> {
        self.quietly(tenant, email, context, |known| known.map(|user| Purpose::Reset { user })).await
    }

    /// Writes a mail for an address, if there is something to write; takes the same time in any case.
    async fn quietly<P: Into<Option<Purpose>>>(
        &self,
        tenant: Option<&str>,
        email: &str,
        context: Context,
        purpose: impl Fn(Option<UserId>) -> P,
    ) -> Answer<()> {
        if !self.has_mail() {
            return Err(no_mail());
        }
        let mut problems = Problems::default();
        check_address(&mut problems, email);
        problems.check()?;
        let slug = tenant.unwrap_or(DEFAULT_TENANT);
        let admitted = self.admit_address(context.origin.address.as_deref().unwrap_or_default(), RouteClass::Mail);
        self.count_mail(&format!("mail/{slug}"), email, admitted)?;
        let late = self.env().now().plus_ms(ANSWER_MS);
        if let Some(log) = self.tenant(slug).map(|known| known.id)
            && !self.is_suspended(log).await?
        {
            let user = self.user_by_email(log, email).await?;
            let is_stopped = user.as_ref().is_some_and(|user| user.state.suspended.is_some());
            let id = user.as_ref().and_then(|user| user.stream.parse().ok());
            // To the address as it was shown to be theirs, not as somebody writes it.
            let to = user.as_ref().and_then(|user| user.state.address()).unwrap_or(email);
            if let Some(purpose) = purpose(id).into().filter(|_| !is_stopped) {
                let (_, step, secret) = self.written(log, purpose, to)?;
                self.write_aside(log, step, secret, context);
            }
        }
        self.env().sleep_until(late).await;
        Ok(())
    }

    /// Writes a mail while nobody waits for it: neither time nor trouble shows that there is something to write.
    fn write_aside(&self, log: TenantId, step: Step, secret: Secret, context: Context) {
        let engine = self.0.engine.clone();
        self.env().spawn(async move {
            let extras = Extras { secrets: vec![secret], ..Extras::default() };
            if let Err(error) = engine.transact(log, &[step], &context, extras).await {
                tracing::error!(%error, "a mail that was asked for could not be written");
            }
        });
    }

    /// Mails to one mailbox get rarer and rarer, whoever asks for them; so many may be asked for by one caller or network.
    fn count_mail(&self, place: &str, to: &str, admitted: Result<Option<Standing>, Rejection>) -> Answer<()> {
        let throttled = |wait_s: u64| {
            let message = "Too many mails were asked for.";
            let refused = Rejection::new(Kind::Limited, "MAIL_THROTTLED", message, "Wait for the time in Retry-After.");
            refused.with("retry_after_s", wait_s)
        };
        admitted.map_err(|refused| throttled(refused.details.get("retry_after_s").and_then(|s| s.as_u64()).unwrap_or(1)))?;
        let key = format!("{place}/{}", mailbox(to));
        match self.try_wait_ms(&key) {
            0 => self.count_try(&key),
            wait_ms => return Err(throttled(wait_ms.div_ceil(1_000))),
        }
        Ok(())
    }

    async fn user_by_email(&self, log: TenantId, email: &str) -> Answer<Option<Handled<User>>> {
        match self.holder(log, &email_key(&self.email_index(log, email))).await? {
            Some(stream) => self.entity::<User>(log, &stream).await,
            None => Ok(None),
        }
    }

    fn email_index(&self, log: TenantId, email: &str) -> BlindIndex {
        self.0.crypto.sealer.blind(log, "email", &email.to_lowercase())
    }

    /// A mail to be written: its id, the step, and the address under seal.
    fn written(&self, log: TenantId, purpose: Purpose, email: &str) -> Answer<(MailId, Step, Secret)> {
        let id: MailId = self.env().id();
        let name = address_secret(&id);
        let sealed = self.0.crypto.sealer.seal(log, &name, email.as_bytes(), self.env().bytes()).map_err(internal)?;
        let requested = Requested {
            expires_at: self.env().now().plus_ms(purpose.kind().lifetime_ms()),
            purpose,
            address_index: self.email_index(log, email),
            is_by_hand: !self.has_mail(),
        };
        Ok((id, Step::new::<Mail>(id, MailCommand::Request(requested)), (name, Some(sealed))))
    }

    /// A mail to be written in the place of earlier ones. It comes first: a repeated request is answered with it.
    fn written_after(
        &self,
        log: TenantId,
        purpose: Purpose,
        email: &str,
        (earlier, mut secrets): (Vec<Step>, Vec<Secret>),
    ) -> Answer<(MailId, Vec<Step>, Extras)> {
        let (id, step, secret) = self.written(log, purpose, email)?;
        secrets.push(secret);
        Ok((id, std::iter::once(step).chain(earlier).collect(), Extras { secrets, ..Extras::default() }))
    }

    async fn address_of(&self, log: TenantId, id: &MailId) -> Answer<Option<String>> {
        let name = address_secret(id);
        Ok(self.open_secret(log, &name).await?.and_then(|opened| String::from_utf8(opened).ok()))
    }

    /// The token of a mail's link. It follows from the mail, so it is kept nowhere.
    fn mail_token(&self, slug: &str, log: TenantId, id: MailId) -> String {
        format!("{PREFIX}{slug}_{id}.{}", self.0.crypto.sealer.derived("mail", &format!("{log}/{id}")))
    }

    fn link(&self, slug: &str, log: TenantId, id: MailId, mail: &Mail) -> String {
        let page = match mail.requested.purpose.kind() {
            PurposeKind::Invitation => "join",
            PurposeKind::Verification => "verify",
            PurposeKind::Reset => "password",
            PurposeKind::Known => return format!("{}/account/reset", self.issuer()),
        };
        format!("{}/account/{page}?token={}", self.issuer(), self.mail_token(slug, log, id))
    }

    /// Sends a mail to the address that the caller wants to use. Nothing changes until its link was followed.
    pub async fn begin_email(&self, caller: &Caller, email: &str, password: &str) -> Answer<()> {
        let (id, _) = Self::person(caller)?;
        if !self.has_mail() {
            return Err(no_mail());
        }
        let mut problems = Problems::default();
        check_address(&mut problems, email);
        problems.check()?;
        let user = self.user(caller, &id.to_string()).await?;
        self.prove_password(caller, &user, password).await?;
        let log = caller.actor.tenant;
        self.count_mail(&format!("mail/{log}"), email, self.admit_mail(&caller.actor))?;
        let earlier = mails_of(&self.0.engine, log, id, None).await?;
        let (_, steps, extras) = self.written_after(log, Purpose::Verification { user: id }, email, earlier)?;
        let caller = Caller { if_match: None, ..caller.clone() };
        self.0.engine.transact(log, &steps, &caller.context(), extras).await.map(|_| ()).map_err(of_handle)
    }

    /// Forgets the caller's address: nothing is sent there any more.
    pub async fn remove_email(&self, caller: &Caller) -> Answer<()> {
        let (id, _) = Self::person(caller)?;
        let (mails, secrets) = mails_of(&self.0.engine, caller.actor.tenant, id, None).await?;
        let steps: Vec<Step> = std::iter::once(Step::on::<User>(id, UserCommand::RemoveEmail)).chain(mails).collect();
        let extras = Extras { secrets, ..Extras::default() };
        let done = self.0.engine.transact(caller.actor.tenant, &steps, &caller.context(), extras).await;
        done.map(|_| ()).map_err(of_handle)
    }
}

/// Where a mail goes, as far as throttling is concerned: many servers put `ada+anything@` where `ada@` goes.
fn mailbox(address: &str) -> String {
    let address = address.to_ascii_lowercase();
    match address.rsplit_once('@') {
        Some((name, domain)) => format!("{}@{domain}", name.split('+').next().unwrap_or(name)),
        None => address,
    }
}

/// A sealed secret by its name, to be kept or to be removed.
pub(crate) type Secret = (String, Option<Vec<u8>>);

/// The open mails with this index field.
async fn open_mails(engine: &Engine, log: TenantId, field: &'static str, value: &str) -> Answer<BTreeSet<MailId>> {
    // One that is sent between the two questions is in both answers.
    let mut open = BTreeSet::new();
    for status in [Status::Queued, Status::Sent] {
        let fields = [IndexField::new(field, value), IndexField::new("status", status.as_str())];
        for mail in each::<Mail>(engine, log, &fields).await.map_err(of_store)? {
            open.insert(mail.stream.parse().map_err(|_| internal("a mail without an id".into()))?);
        }
    }
    Ok(open)
}

/// What ends mails, and what is removed with them.
fn revoking(mails: BTreeSet<MailId>) -> (Vec<Step>, Vec<Secret>) {
    mails.into_iter().map(|id| (Step::on::<Mail>(id, MailCommand::Revoke), (address_secret(&id), None))).unzip()
}

/// What ends the mails that could still change a person's account, but for one, and what is removed with them.
pub(crate) async fn mails_of(
    engine: &Engine,
    log: TenantId,
    user: UserId,
    kept: Option<MailId>,
) -> Answer<(Vec<Step>, Vec<Secret>)> {
    let mut open = open_mails(engine, log, "user", &user.to_string()).await?;
    open.retain(|id| Some(*id) != kept);
    Ok(revoking(open))
}

fn check_address(problems: &mut Problems, email: &str) {
    if !is_address(email) {
        problems.add("/email", "is no address such as ada@example.com");
    }
}
