//! Signing in for a device that cannot show a browser (RFC 8628).

use super::authorize::{Browser, requested};
use super::clients::KnownClient;
use super::token::{TokenAnswer, TokenRequest};
use super::{Granted, OauthError, invalid_grant, invalid_request};
use crate::Answer;
use crate::app::App;
use crate::auth::refresh_token;
use crate::crypto::{fresh_secret, sha256_hex};
use domain::identity::client::GrantType;
use domain::identity::device::{Approved, Device, DeviceCommand, Outcome, Requested, code_key};
use domain::identity::oauth::within;
use domain::identity::session::Opened;
use engine::{Context, Extras, Handled, Step};
use kernel::id::{DeviceId, SessionId};
use kernel::{ActorKind, ActorRef, Kind, Rejection, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// How long a device waits at most.
const WAIT_MS_MAX: u64 = 10 * 60_000;
/// How often it may ask.
const INTERVAL_S: u64 = 5;
/// Letters of a code: no vowels, so that no words come up, and none that look alike (RFC 8628, 6.1).
const LETTERS: &[u8] = b"BCDFGHJKLMNPQRSTVWXZ";
/// Devices whose last question is remembered.
const ASKED_MAX: usize = 10_000;

/// When each device asked last, so that one that asks too often is slowed down.
#[derive(Default)]
pub(crate) struct Polls(Mutex<BTreeMap<DeviceId, (Timestamp, u64)>>);

impl Polls {
    /// Whether a device asks sooner than it may; then it may ask less often from now on.
    fn is_too_soon(&self, device: DeviceId, now: Timestamp) -> bool {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= ASKED_MAX {
            asked.retain(|_, (last, _)| now.since_ms(*last) < WAIT_MS_MAX);
        }
        let (last, interval_s) = asked.get(&device).copied().unwrap_or((Timestamp(0), INTERVAL_S));
        // A little early is in time.
        let is_too_soon = now.since_ms(last) + 500 < interval_s * 1_000;
        asked.insert(device, (now, if is_too_soon { interval_s + INTERVAL_S } else { interval_s }));
        is_too_soon
    }
}

/// What a device is told at first.
#[derive(Serialize)]
pub struct DeviceStart {
    /// What it shows to get its tokens.
    pub device_code: String,
    /// What the person types.
    pub user_code: String,
    /// Where.
    pub verification_uri: String,
    /// Where, with the code.
    pub verification_uri_complete: String,
    /// Seconds until it is over.
    pub expires_in: u64,
    /// Seconds between two questions.
    pub interval: u64,
}

/// A device that waits, as the person sees it.
pub struct DeviceAnswer {
    /// Its client's name for people.
    pub client: String,
    /// What it gets; none for parts of Keiko, which get everything.
    pub scopes: Option<Vec<String>>,
    /// The code as the device shows it.
    pub user_code: String,
    id: DeviceId,
}

fn unknown_code() -> Rejection {
    Rejection::new(
        Kind::NotFound,
        "DEVICE_CODE_UNKNOWN",
        "There is no device with this code, or its time is over.",
        "Look at the code that the device shows, or start again there.",
    )
}

impl App {
    /// A device asks to be signed in.
    pub async fn start_device(
        &self,
        client: &KnownClient,
        scope: Option<&str>,
        resources: &[String],
        mut context: Context,
    ) -> Granted<DeviceStart> {
        client.check_grant(GrantType::DeviceCode)?;
        let scopes = requested(client, scope)?;
        let id: DeviceId = self.env().id();
        let device_code = format!("kd_{id}.{}", fresh_secret(self.env()));
        let letters: [u8; 8] = std::array::from_fn(|_| LETTERS[(self.env().random() % LETTERS.len() as u64) as usize]);
        let plain = String::from_utf8_lossy(&letters).into_owned();
        let user_code = format!("{}-{}", &plain[..4], &plain[4..]);
        let requested = Requested {
            client: client.name.clone(),
            scopes: scopes.unwrap_or_default(),
            resource: self.resource(resources)?,
            device_sha256: sha256_hex(&device_code),
            user_code_index: self.user_code_index(&plain),
            expires_at: self.env().now().plus_ms(WAIT_MS_MAX),
        };
        context.actor = ActorRef::system("device-authorization");
        let step = Step::new::<Device>(id, DeviceCommand::Request(Box::new(requested)));
        let done = self.0.engine.handle::<Device>(self.0.root, step, &context, Extras::default()).await;
        done.map_err(crate::errors::of_handle)?;
        let verification_uri = format!("{}/oauth/device", self.issuer());
        let verification_uri_complete = format!("{verification_uri}?user_code={user_code}");
        let (expires_in, interval) = (WAIT_MS_MAX / 1_000, INTERVAL_S);
        Ok(DeviceStart { device_code, user_code, verification_uri, verification_uri_complete, expires_in, interval })
    }

    fn user_code_index(&self, plain: &str) -> String {
        self.0.crypto.sealer.blind(self.0.root, "user_code", plain).0
    }

    /// The device whose code a person types. Guessing is slowed down like guessing passwords.
    pub async fn device_by_code(&self, browser: &Browser, typed: &str) -> Answer<DeviceAnswer> {
        let throttle_key = format!("device/{}", browser.user);
        self.not_throttled(&throttle_key, "Too many codes that nobody waits with.")?;
        self.count_try(&throttle_key);
        let plain: String = typed.to_ascii_uppercase().chars().filter(char::is_ascii_alphanumeric).take(16).collect();
        let stream = self.holder(self.0.root, &code_key(&self.user_code_index(&plain))).await?.ok_or_else(unknown_code)?;
        let device = self.entity::<Device>(self.0.root, &stream).await?;
        let device = device.filter(|device| device.state.is_pending(self.env().now())).ok_or_else(unknown_code)?;
        let id = stream.parse().map_err(|_| unknown_code())?;
        let client = self.client_by_name(&device.state.requested.client).await.ok().flatten();
        let client = client.filter(|client| client.serves(browser.tenant)).ok_or_else(unknown_code)?;
        self.try_succeeded(&throttle_key);
        let scopes = match client.is_own && device.state.requested.scopes.is_empty() {
            true => None,
            false => {
                let who = self.identity(browser.tenant, &browser.user.to_string()).await?;
                Some(within(&who.map(|who| who.permissions).unwrap_or_default(), &device.state.requested.scopes))
            }
        };
        let user_code = format!("{}-{}", &plain[..plain.len() / 2], &plain[plain.len() / 2..]);
        Ok(DeviceAnswer { client: client.profile.name, scopes, user_code, id })
    }

    /// The person answers for a device.
    pub async fn answer_device(
        &self,
        browser: &Browser,
        device: &DeviceAnswer,
        is_allowed: bool,
        context: Context,
    ) -> Answer<()> {
        let approved = || Approved {
            tenant: browser.tenant,
            user: browser.user,
            login: browser.id,
            session: self.env().id(),
            scopes: device.scopes.clone().unwrap_or_default(),
        };
        let command = if is_allowed { DeviceCommand::Approve(approved()) } else { DeviceCommand::Deny };
        let context = browser.context(context);
        let step = Step::on::<Device>(device.id, command);
        let done = self.0.engine.handle::<Device>(self.0.root, step, &context, Extras::default()).await;
        done.map(|_| ()).map_err(crate::errors::of_handle)
    }

    /// The device asks whether somebody has signed in for it.
    pub(super) async fn grant_device(
        &self,
        client: &KnownClient,
        request: TokenRequest,
        context: Context,
    ) -> Granted<TokenAnswer> {
        client.check_grant(GrantType::DeviceCode)?;
        let presented = request.device_code.ok_or_else(|| invalid_request("device_code is missing."))?;
        let refused = || invalid_grant("The device code is not good.");
        let id =
            presented.strip_prefix("kd_").and_then(|rest| rest.split_once('.')).and_then(|(id, _)| id.parse::<DeviceId>().ok());
        let id = id.ok_or_else(refused)?;
        let device = self.entity::<Device>(self.0.root, &id.to_string()).await?.ok_or_else(refused)?;
        let requested = &device.state.requested;
        if requested.device_sha256 != sha256_hex(&presented) || requested.client != client.name {
            return Err(refused());
        }
        let now = self.env().now();
        if now >= requested.expires_at {
            return Err(OauthError::new("expired_token", "Nobody signed in for this device in time."));
        }
        match &device.state.outcome {
            Outcome::Pending if self.0.polls.is_too_soon(id, now) => {
                Err(OauthError::new("slow_down", "Ask less often: every interval, and 5 seconds more each time this comes."))
            }
            Outcome::Pending => Err(OauthError::new("authorization_pending", "Nobody has signed in for this device yet.")),
            Outcome::Denied => Err(OauthError::new("access_denied", "The person said no.")),
            Outcome::Redeemed => Err(refused()),
            Outcome::Approved(approved) => self.redeem_device(client, &device, approved, id, context).await,
        }
    }

    async fn redeem_device(
        &self,
        client: &KnownClient,
        device: &Handled<Device>,
        approved: &Approved,
        id: DeviceId,
        mut context: Context,
    ) -> Granted<TokenAnswer> {
        let (tenant, session): (_, SessionId) = (approved.tenant, approved.session);
        let slug = self.slug_of(tenant).ok_or_else(|| invalid_grant("The person's tenant is gone."))?;
        let login = self.entity::<domain::identity::session::Session>(tenant, &approved.login.to_string()).await?;
        let login = login.ok_or_else(|| invalid_grant("The login in which this was allowed has ended."))?;
        self.check_session_holds(tenant, &login).await?;
        context.actor = ActorRef { kind: ActorKind::User, id: approved.user.to_string() };
        context.user = Some(approved.user);
        // First this, so that two that ask at once do not both get tokens.
        let step = Step::on::<Device>(id, DeviceCommand::Redeem);
        let redeemed = self.0.engine.handle::<Device>(self.0.root, step, &context, Extras::default()).await;
        redeemed.map_err(|error| match crate::errors::of_handle(error) {
            rejection if rejection.kind == Kind::Refused => invalid_grant(rejection.message),
            rejection => rejection.into(),
        })?;
        let refresh = client.may_refresh().then(|| refresh_token(&slug, session, &fresh_secret(self.env())));
        let opened = Opened {
            refresh_sha256: refresh.as_deref().map(sha256_hex),
            client: Some(client.name.clone()),
            scopes: (!client.is_own || !device.state.requested.scopes.is_empty()).then(|| approved.scopes.clone()),
            parent: Some(approved.login),
            resource: device.state.requested.resource.clone(),
            amr: login.state.amr.clone(),
            authenticated_at: login.state.authenticated_at,
            ..self.login_of(approved.user)
        };
        let opened = self.open_session(tenant, session, opened, &context).await?;
        self.session_answer(client, tenant, session, &opened, refresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_asks_too_often_waits_longer_each_time() {
        let (polls, id) = (Polls::default(), DeviceId::from_bytes([1; 16]));
        let at = |s: i64| Timestamp(1_000_000 + s * 1_000);
        assert!(!polls.is_too_soon(id, at(0)));
        assert!(!polls.is_too_soon(id, at(5)));
        assert!(polls.is_too_soon(id, at(6)));
        assert!(polls.is_too_soon(id, at(15)), "now every 10 seconds");
        assert!(!polls.is_too_soon(id, at(30)), "now every 15 seconds");
        assert!(!polls.is_too_soon(DeviceId::from_bytes([2; 16]), at(30)));
    }
}
