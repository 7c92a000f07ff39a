//! The second factor: one-time codes of an app, recovery codes, and which actions want a fresh proof.

use crate::app::{App, internal};
use crate::auth::Authenticated;
use crate::crypto::sha256_hex;
use crate::errors::{of_handle, of_store};
use crate::identities::sessions_of;
use crate::oauth::clients::is_part_of_keiko;
use crate::{Answer, Caller};
use aws_lc_rs::hmac;
use domain::identity::session::{OTP, PASSWORD, Session, SessionCommand};
use domain::identity::totp;
use domain::identity::user::{MfaEnrolled, User, UserCommand, code_refused, pending_totp_secret, totp_secret};
use engine::{Context, Extras, Handled, Step};
use kernel::id::{TenantId, UserId};
use kernel::{Actor, ActorKind, Kind, Proof, Rejection};

/// Why sessions end that were opened without a second factor.
const MFA_ENROLLED: &str = "mfa_enrolled";
/// Recovery codes of one person.
const RECOVERY_CODES: usize = 10;
/// Bytes of a secret: as many as the hash has.
const SECRET_BYTES: usize = 20;
/// How long a right password waits for the code, at a browser.
const TICKET_MS: u64 = 5 * 60_000;

/// Permissions of which even a fresh login wants a fresh proof: with them somebody could give themselves, or others, more.
pub(crate) const DANGEROUS: [&str; 17] = [
    "keys.create",
    "keys.delete",
    "agents.keys",
    "clients.create",
    "clients.update",
    "clients.delete",
    "roles.create",
    "roles.update",
    "roles.delete",
    "users.create",
    "users.update",
    "users.delete",
    "tenants.create",
    "tenants.delete",
    "tenants.update",
    "incidents.respond",
    "erasures.create",
];

/// A second factor that is being set up.
pub struct Enrolment {
    /// The secret as people type it.
    pub secret: String,
    /// The same for an app that reads a QR code.
    pub uri: String,
}

fn mfa_required() -> Rejection {
    Rejection::new(
        Kind::Unauthenticated,
        "MFA_REQUIRED",
        "This account has a second factor: the code of its app is needed.",
        "Send it as 'code', or a recovery code instead.",
    )
}

fn enrol_first() -> Rejection {
    Rejection::new(
        Kind::Forbidden,
        "MFA_ENROLMENT_REQUIRED",
        "Administrators need a second factor here before they do anything else.",
        "Set one up with 'keiko login' and 'keiko mfa enrol', or POST /api/v1/auth/mfa/actions/begin and confirm; then sign in again.",
    )
}

fn step_up(max_age_ms: u64) -> Rejection {
    Rejection::new(
        Kind::Unauthenticated,
        "STEP_UP_REQUIRED",
        "This action wants a fresh proof that it is you.",
        "Send a code to POST /api/v1/auth/mfa/actions/step-up ('keiko mfa step-up'), then try again.",
    )
    .with("max_age_s", max_age_ms / 1_000)
}

fn by_name(permission: &str) -> Rejection {
    Rejection::new(
        Kind::Forbidden,
        "PERMISSION_DENIED",
        format!("A key may do this only if it names the permission '{permission}' itself, not by a wildcard."),
        "Sign in as a person, or make a key that lists this permission.",
    )
    .with("permission", permission)
}

impl App {
    /// Whether the proof that somebody gave is enough for a permission that they hold.
    pub(crate) fn check_proof(&self, actor: &Actor, permission: &str) -> Answer<()> {
        let settings = &self.0.settings;
        let is_dangerous = DANGEROUS.contains(&permission);
        match &actor.proof {
            // Also where somebody acts for the person: what the person may not do, nobody does for the person.
            Some(proof) => {
                if settings.mfa_required && proof.is_admin && !proof.has_mfa && !permission.starts_with("profile.") {
                    return Err(enrol_first());
                }
                let age_ms = self.env().now().since_ms(proof.at);
                let wants = is_dangerous && (proof.has_mfa || settings.mfa_required);
                match wants && (!proof.is_multi_factor || age_ms > settings.step_up_max_age_ms) {
                    true if proof.has_mfa => Err(step_up(settings.step_up_max_age_ms)),
                    true => Err(enrol_first()),
                    false => Ok(()),
                }
            }
            None if settings.mfa_required && is_dangerous && !actor.permissions.iter().any(|held| held == permission) => {
                Err(by_name(permission))
            }
            None => Ok(()),
        }
    }

    /// What a session proves of its person.
    pub(crate) fn proof_of(session: &Session, user: &User, is_admin: bool) -> Proof {
        Proof { is_admin, has_mfa: user.mfa.is_some(), is_multi_factor: session.is_multi_factor(), at: session.authenticated_at }
    }

    /// The step of a code that counts now; `None` when it does not.
    fn step_of(&self, secret: &[u8], typed: &str) -> Option<u64> {
        let now_s = u64::try_from(self.env().now().0.div_euclid(1_000)).unwrap_or(0);
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
        let digits: String = typed.chars().filter(|c| !c.is_whitespace()).collect();
        totp::steps(now_s).find(|step| {
            let tag: Option<[u8; 20]> = hmac::sign(&key, &step.to_be_bytes()).as_ref().try_into().ok();
            tag.is_some_and(|tag| totp::code(&tag) == digits)
        })
    }

    /// Spends a code of a person: of the app, or a recovery code. Guessing is slowed down for each account.
    pub(crate) async fn spend_code(&self, log: TenantId, user: UserId, typed: &str, context: &Context) -> Answer<()> {
        let throttle_key = format!("mfa/{user}");
        self.not_throttled(&throttle_key, "Too many wrong codes for this account.")?;
        self.count_try(&throttle_key);
        let secret = self.open_secret(log, &totp_secret(&user)).await?.ok_or_else(code_refused)?;
        let command = match self.step_of(&secret, typed) {
            Some(step) => UserCommand::UseCode { step },
            None => UserCommand::UseRecovery { sha256: sha256_hex(&plain_recovery(typed)) },
        };
        let step = Step::on::<User>(user, command);
        self.0.engine.handle::<User>(log, step, context, Extras::default()).await.map_err(of_handle)?;
        self.try_succeeded(&throttle_key);
        Ok(())
    }

    /// How somebody whose password was right was authenticated in the end; an account with a second factor needs its code.
    pub(crate) async fn factors(&self, who: &Authenticated, code: Option<&str>, context: &Context) -> Answer<Vec<String>> {
        let user = self.entity::<User>(who.log, &who.user.to_string()).await?;
        match (user.is_some_and(|user| user.state.mfa.is_some()), code) {
            (false, _) => {
                self.saw_login(who.log, "identity.login.succeeded", Some(&context.actor), context, PASSWORD);
                Ok(vec![PASSWORD.into()])
            }
            (true, None) => Err(mfa_required()),
            (true, Some(code)) => {
                if let Err(refused) = self.spend_code(who.log, who.user, code, context).await {
                    self.saw_login(who.log, "identity.login.refused", Some(&context.actor), context, refused.code);
                    return Err(refused);
                }
                self.saw_login(who.log, "identity.login.succeeded", Some(&context.actor), context, OTP);
                Ok(vec![PASSWORD.into(), OTP.into()])
            }
        }
    }

    /// Says for some minutes that a password was right, to this browser only.
    pub(crate) fn ticket(&self, who: &Authenticated, form_cookie: &str) -> String {
        let end = self.env().now().plus_ms(TICKET_MS).0;
        let said = format!("{}/{}/{}/{end}", who.slug, who.user, who.password_version);
        let mac = self.0.crypto.sealer.derived("ticket", &format!("{said}/{form_cookie}"));
        format!("{said}/{mac}")
    }

    /// Whose password was right, as a ticket says.
    pub(crate) fn open_ticket(&self, ticket: &str, form_cookie: &str) -> Option<Authenticated> {
        let (said, mac) = ticket.rsplit_once('/')?;
        let [slug, user, password, end] = said.split('/').collect::<Vec<_>>()[..] else { return None };
        let is_ours = self.0.crypto.sealer.derived("ticket", &format!("{said}/{form_cookie}")) == mac;
        let is_in_time = end.parse::<i64>().is_ok_and(|end| self.env().now().0 < end);
        let log = self.tenant(slug)?.id;
        let (user, password_version) = (user.parse().ok()?, password.parse().ok()?);
        (is_ours && is_in_time).then(|| Authenticated { log, slug: slug.to_owned(), user, password_version })
    }

    /// The person who calls, and the session.
    pub(crate) fn person(caller: &Caller) -> Answer<(UserId, kernel::SessionId)> {
        let is_own = |token: &kernel::Claims| token.scope.is_none() && token.act.is_none() && is_part_of_keiko(&token.client_id);
        let is_direct = caller.actor.token.as_deref().is_some_and(is_own);
        match (caller.actor.user, caller.actor.session) {
            (Some(user), Some(session)) if is_direct && caller.actor.who.kind == ActorKind::User => Ok((user, session)),
            _ => Err(Rejection::new(
                Kind::Refused,
                "NO_SESSION",
                "Only a person who has signed in directly may change how they sign in, no key and no other application.",
                "Sign in with 'keiko login' or POST /api/v1/auth/login.",
            )),
        }
    }

    async fn own_user(&self, caller: &Caller, user: UserId) -> Answer<Handled<User>> {
        let found = self.entity::<User>(caller.actor.tenant, &user.to_string()).await?;
        found.ok_or_else(|| internal("a caller without an account".into()))
    }

    /// Begins to set up the caller's second factor: nothing changes until a code was shown.
    pub async fn begin_mfa(&self, caller: &Caller) -> Answer<Enrolment> {
        let (id, _) = Self::person(caller)?;
        let age_ms = caller.actor.proof.map_or(u64::MAX, |proof| self.env().now().since_ms(proof.at));
        if age_ms > self.0.settings.step_up_max_age_ms {
            let hint = "Sign in again, then set it up.";
            return Err(Rejection::new(Kind::Unauthenticated, "STEP_UP_REQUIRED", "This login is too old for this.", hint));
        }
        let user = self.own_user(caller, id).await?;
        if user.state.mfa.is_some() {
            let hint = "Remove the present one first: POST /api/v1/auth/mfa/actions/remove with a code.";
            return Err(Rejection::new(Kind::Conflict, "ALREADY_EXISTS", "This account has a second factor.", hint));
        }
        let bytes: [u8; SECRET_BYTES] = self.env().bytes();
        let log = caller.actor.tenant;
        let name = pending_totp_secret(&id);
        let sealed = self.0.crypto.sealer.seal(log, &name, &bytes, self.env().bytes()).map_err(internal)?;
        let extras = Extras { secrets: vec![(name, Some(sealed))], ..Extras::default() };
        self.0.engine.put_aside(log, extras).await.map_err(of_store)?;
        let secret = totp::base32(&bytes);
        let label = percent(&format!("{}@{}", user.state.name(), caller.actor.tenant_slug));
        let uri =
            format!("otpauth://totp/Keiko:{label}?secret={secret}&issuer=Keiko&algorithm=SHA1&digits=6&period={}", totp::STEP_S);
        Ok(Enrolment { secret, uri })
    }

    /// Ends setting up: a code shows that the app works. The person's other sessions end. Answers the recovery codes, shown
    /// only here.
    pub async fn confirm_mfa(&self, caller: &Caller, code: &str) -> Answer<Vec<String>> {
        let (id, session) = Self::person(caller)?;
        let log = caller.actor.tenant;
        let throttle_key = format!("mfa/{id}");
        self.not_throttled(&throttle_key, "Too many wrong codes for this account.")?;
        self.count_try(&throttle_key);
        let secret = self.open_secret(log, &pending_totp_secret(&id)).await?.ok_or_else(code_refused)?;
        let step = self.step_of(&secret, code).ok_or_else(code_refused)?;
        self.try_succeeded(&throttle_key);
        let codes: Vec<String> = (0..RECOVERY_CODES).map(|_| fresh_recovery(self)).collect();
        let recovery_sha256 = codes.iter().map(|code| sha256_hex(&plain_recovery(code))).collect();
        let name = totp_secret(&id);
        let sealed = self.0.crypto.sealer.seal(log, &name, &secret, self.env().bytes()).map_err(internal)?;
        let extras = Extras { secrets: vec![(name, Some(sealed)), (pending_totp_secret(&id), None)], ..Extras::default() };
        let mut steps = vec![
            Step::on::<User>(id, UserCommand::EnrolMfa(MfaEnrolled { recovery_sha256, step })),
            Step::on::<Session>(session, SessionCommand::StepUp { amr: vec![PASSWORD.into(), OTP.into()] }),
        ];
        // Whoever is signed in elsewhere has not shown the second factor.
        steps.extend(sessions_of(&self.0.engine, log, id, Some(session), MFA_ENROLLED).await?);
        self.0.engine.transact(log, &steps, &caller.context(), extras).await.map_err(of_handle)?;
        // The codes are shown now or never.
        if let Err(error) = self.end_logins_under_way(log, id, Some(session), MFA_ENROLLED, &caller.context()).await {
            tracing::warn!(%error, user = %id, "logins that were under way when a second factor was set up may go on");
        }
        Ok(codes)
    }

    /// Proves once more that it is the person: for a while, dangerous actions are allowed in this session.
    pub async fn step_up(&self, caller: &Caller, code: &str) -> Answer<()> {
        let (id, session) = Self::person(caller)?;
        self.spend_code(caller.actor.tenant, id, code, &caller.context()).await?;
        let command = SessionCommand::StepUp { amr: vec![PASSWORD.into(), OTP.into()] };
        self.execute::<Session>(caller, Step::on::<Session>(session, command), Extras::default()).await.map(|_| ())
    }

    /// Removes the caller's second factor, with a code of it.
    pub async fn remove_own_mfa(&self, caller: &Caller, code: &str) -> Answer<()> {
        let (id, _) = Self::person(caller)?;
        self.spend_code(caller.actor.tenant, id, code, &caller.context()).await?;
        self.drop_mfa(caller, id).await
    }

    /// Removes the second factor of somebody who has lost it.
    pub async fn remove_mfa(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<User>> {
        let user = self.user(caller, id_or_name).await?;
        self.check_no_mightier(caller, &user).await?;
        let id = user.stream.parse().map_err(|_| internal("a user without an id".into()))?;
        self.drop_mfa(caller, id).await?;
        self.user(caller, &user.stream).await
    }

    async fn drop_mfa(&self, caller: &Caller, id: UserId) -> Answer<()> {
        let extras = Extras { secrets: vec![(totp_secret(&id), None)], ..Extras::default() };
        let caller = Caller { if_match: None, idempotency: None, ..caller.clone() };
        self.execute::<User>(&caller, Step::on::<User>(id, UserCommand::RemoveMfa), extras).await.map(|_| ())
    }
}

/// A recovery code: 80 random bits, in two parts so that it can be written down.
fn fresh_recovery(app: &App) -> String {
    let bytes: [u8; 10] = app.env().bytes();
    let text = totp::base32(&bytes).to_ascii_lowercase();
    format!("{}-{}", &text[..8], &text[8..])
}

fn plain_recovery(typed: &str) -> String {
    typed.chars().filter(char::is_ascii_alphanumeric).take(64).collect::<String>().to_ascii_lowercase()
}

fn percent(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'@');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_codes_are_read_however_they_are_typed() {
        assert_eq!(plain_recovery(" ABCDEFGH-ijklmnop "), plain_recovery("abcdefghijklmnop"));
    }

    #[test]
    fn the_published_codes_are_met() {
        // RFC 6238, appendix B, SHA-1, the last six digits.
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"12345678901234567890");
        for (at_s, wanted) in
            [(59u64, "287082"), (1_111_111_109, "081804"), (1_234_567_890, "005924"), (20_000_000_000, "353130")]
        {
            let tag: [u8; 20] = hmac::sign(&key, &totp::step(at_s).to_be_bytes()).as_ref().try_into().unwrap();
            assert_eq!(totp::code(&tag), wanted);
        }
    }
}
