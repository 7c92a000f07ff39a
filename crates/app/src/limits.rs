//! Rate limits: by tenant, by caller (user, key or agent) and class of route, by address. What was let pass
//! here counts on the other replicas too.

use crate::app::App;
use crate::shared::gathered;
use domain::limit::{Bucket, Rate, Standing};
use kernel::id::TenantId;
use kernel::{Actor, Kind, Rejection, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Buckets that are kept; beyond them those that are full again are forgotten, then any.
const BUCKETS_MAX: usize = 100_000;

/// What a request does, as far as limits differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteClass {
    /// Reads.
    Read,
    /// Changes something.
    Write,
    /// Calls a tool.
    Call,
    /// Gets or changes credentials.
    Auth,
    /// Anything by somebody who is not known.
    Open,
    /// Has a mail sent; counted beside the request itself.
    Mail,
}

/// How much is allowed; nothing said is no limit.
#[derive(Clone, Debug, Default)]
pub struct LimitSettings {
    /// All requests of a tenant.
    pub tenant: Option<Rate>,
    /// Reads of one caller.
    pub read: Option<Rate>,
    /// Changes by one caller.
    pub write: Option<Rate>,
    /// Calls of tools by one caller.
    pub call: Option<Rate>,
    /// Logins and tokens from one address.
    pub auth: Option<Rate>,
    /// Everything else from one address by nobody known, and credentials that are not good.
    pub address: Option<Rate>,
    /// Mails that one address or one caller has sent.
    pub mail: Option<Rate>,
}

impl LimitSettings {
    fn of_callers(&self, class: RouteClass) -> Option<Rate> {
        match class {
            RouteClass::Read => self.read,
            RouteClass::Call => self.call,
            RouteClass::Mail => self.mail,
            _ => self.write,
        }
    }

    fn of_strangers(&self, class: RouteClass) -> Option<Rate> {
        match class {
            RouteClass::Auth => self.auth,
            RouteClass::Mail => self.mail,
            _ => self.address,
        }
    }
}

/// What counts in an emergency where no limit is set.
const EMERGENCY: Rate = Rate { count: 20, period_ms: 1_000 };

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
/// Whose requests are counted together.
pub(crate) enum Whose {
    Tenant(TenantId),
    /// A user, key or agent, by id.
    Caller(String, RouteClass),
    Address(String, RouteClass),
}

#[derive(Default)]
pub(crate) struct Limits(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    buckets: BTreeMap<Whose, Bucket>,
    /// Taken here and not told yet.
    untold: BTreeMap<Whose, u32>,
    /// Of tenants that have a rate of their own.
    tenants: BTreeMap<TenantId, Rate>,
}

impl Inner {
    /// A tenant's own rate, else the usual one.
    fn tenant_rate(&self, tenant: TenantId, usual: Option<Rate>) -> Option<Rate> {
        self.tenants.get(&tenant).copied().or(usual)
    }

    /// The bucket, as it was left; a full one for somebody new.
    fn bucket(&mut self, whose: Whose, rate: Rate, now: Timestamp) -> &mut Bucket {
        if self.buckets.len() >= BUCKETS_MAX && !self.buckets.contains_key(&whose) {
            self.buckets.retain(|_, bucket| !bucket.is_full(rate, now));
            if self.buckets.len() >= BUCKETS_MAX {
                self.buckets.pop_first();
            }
        }
        self.buckets.entry(whose).or_insert_with(|| Bucket::full(rate, now))
    }

    fn take(&mut self, whose: Whose, rate: Rate, now: Timestamp, tells: bool) -> Standing {
        let standing = self.bucket(whose.clone(), rate, now).take(rate, now);
        if tells && standing.wait_ms.is_none() {
            *self.untold.entry(whose).or_default() += 1;
        }
        standing
    }
}

fn refused(standing: Standing, what: &str) -> Rejection {
    let wait_s = standing.wait_ms.unwrap_or(0).div_ceil(1_000).max(1);
    Rejection::new(
        Kind::Limited,
        "RATE_LIMITED",
        format!("Too many requests {what}: {} in a period are allowed.", standing.limit),
        "Wait for the time in Retry-After; the RateLimit headers say how much is left.",
    )
    .with("retry_after_s", wait_s)
    .with("limit", standing.limit)
    .with("remaining", standing.remaining)
    .with("reset_s", standing.reset_ms.div_ceil(1_000))
}

/// How it stands, or the refusal when there is nothing left.
fn passed(standing: Option<Standing>, what: &str) -> Result<Option<Standing>, Rejection> {
    match standing {
        Some(standing) if standing.wait_ms.is_some() => Err(refused(standing, what)),
        standing => Ok(standing),
    }
}

/// The network that an address counts for: itself, or the 64 bits of an IPv6 network, of which one host has many addresses.
pub fn network(address: &str) -> String {
    use std::net::{IpAddr, Ipv6Addr};
    match address.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V6(address)) => {
            let s = address.segments();
            format!("{}/64", Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0))
        }
        Ok(address) => address.to_string(),
        Err(_) => address.to_owned(),
    }
}

impl App {
    fn rate(&self, of: impl Fn(&LimitSettings) -> Option<Rate>, is_emergency: bool) -> Option<Rate> {
        let rate = of(&self.0.settings.limits);
        if is_emergency { Some(rate.map_or(EMERGENCY, Rate::in_emergency)) } else { rate }
    }

    fn tenant_rate(&self, tenant: TenantId) -> Option<Rate> {
        let usual = self.rate(|limits| limits.tenant, false);
        self.0.limits.0.lock().unwrap_or_else(PoisonError::into_inner).tenant_rate(tenant, usual)
    }

    /// A tenant has a rate of its own from now on, or has none any more.
    pub(crate) fn set_tenant_rate(&self, tenant: TenantId, rate: Option<Rate>) {
        let mut inner = self.0.limits.0.lock().unwrap_or_else(PoisonError::into_inner);
        match rate {
            Some(rate) => inner.tenants.insert(tenant, rate),
            None => inner.tenants.remove(&tenant),
        };
        // What was saved up under another rate is not carried over.
        inner.buckets.remove(&Whose::Tenant(tenant));
    }

    fn take(&self, whose: Whose, rate: Option<Rate>) -> Option<Standing> {
        let rate = rate?;
        let (now, tells) = (self.env().now(), self.tells());
        Some(self.0.limits.0.lock().unwrap_or_else(PoisonError::into_inner).take(whose, rate, now, tells))
    }

    /// Lets a request of somebody known pass, or says how long to wait. Answers the tightest standing, for the headers.
    pub fn admit(&self, actor: &Actor, class: RouteClass) -> Result<Option<Standing>, Rejection> {
        self.taken_of_both(actor, class).map_err(|(standing, what)| refused(standing, what))
    }

    /// The same for somebody who had better wait than be refused.
    pub async fn admit_in_time(&self, actor: &Actor, class: RouteClass) {
        while let Err((standing, _)) = self.taken_of_both(actor, class) {
            self.env().sleep_ms(standing.wait_ms.unwrap_or(1)).await;
        }
    }

    /// Takes one of the caller's and one of the tenant's, or none at all.
    fn taken_of_both(&self, actor: &Actor, class: RouteClass) -> Result<Option<Standing>, (Standing, &'static str)> {
        let who = actor.key.map_or_else(|| actor.who.id.clone(), |key| key.to_string());
        let own = self.rate(|limits| limits.of_callers(class), actor.is_emergency);
        // The tenant's own limit does not shrink: an emergency is about single callers.
        let all = self.tenant_rate(actor.tenant);
        let wanted = [(Whose::Caller(who, class), own, "by this caller"), (Whose::Tenant(actor.tenant), all, "in this tenant")];
        let wanted: Vec<_> = wanted.into_iter().filter_map(|(whose, rate, what)| Some((whose, rate?, what))).collect();
        let (now, tells) = (self.env().now(), self.tells());
        let mut inner = self.0.limits.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (whose, rate, what) in &wanted {
            let standing = inner.bucket(whose.clone(), *rate, now).look(*rate, now);
            if standing.wait_ms.is_some() {
                return Err((standing, what));
            }
        }
        let taken = wanted.into_iter().map(|(whose, rate, _)| inner.take(whose, rate, now, tells));
        Ok(taken.min_by_key(|standing| standing.remaining))
    }

    /// Lets somebody known have a mail sent, or says how long to wait.
    pub(crate) fn admit_mail(&self, actor: &Actor) -> Result<Option<Standing>, Rejection> {
        let rate = self.rate(|limits| limits.of_callers(RouteClass::Mail), actor.is_emergency);
        passed(self.take(Whose::Caller(actor.who.id.clone(), RouteClass::Mail), rate), "by this caller")
    }

    /// Lets a request of somebody unknown pass, or says how long to wait.
    pub fn admit_address(&self, address: &str, class: RouteClass) -> Result<Option<Standing>, Rejection> {
        let is_emergency = self.is_emergency();
        let rate = self.rate(|limits| limits.of_strangers(class), is_emergency);
        passed(self.take(Whose::Address(network(address), class), rate), "from this address")
    }

    /// Whether an address has shown bad credentials so often that no more are looked at for now.
    pub fn check_address(&self, address: &str) -> Result<(), Rejection> {
        let Some(rate) = self.rate(|limits| limits.address, self.is_emergency()) else { return Ok(()) };
        let now = self.env().now();
        let mut inner = self.0.limits.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = inner.buckets.get_mut(&Whose::Address(network(address), RouteClass::Open));
        passed(bucket.map(|bucket| bucket.look(rate, now)), "with bad credentials from this address").map(|_| ())
    }

    /// Whether there is an emergency in the default tenant, which counts for everybody who is not known yet.
    fn is_emergency(&self) -> bool {
        self.0.emergency.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// What another replica has let pass counts here too.
    pub(crate) fn hear_taken(&self, taken: Vec<(Whose, u32)>) {
        let now = self.env().now();
        let mut inner = self.0.limits.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (whose, count) in taken {
            let rate = match &whose {
                Whose::Tenant(tenant) => inner.tenant_rate(*tenant, self.rate(|limits| limits.tenant, false)),
                Whose::Caller(_, class) => self.rate(|limits| limits.of_callers(*class), false),
                Whose::Address(_, class) => self.rate(|limits| limits.of_strangers(*class), false),
            };
            let has_room = inner.buckets.len() < BUCKETS_MAX || inner.buckets.contains_key(&whose);
            if let Some(rate) = rate.filter(|_| has_room) {
                inner.buckets.entry(whose).or_insert_with(|| Bucket::full(rate, now)).spend(count, rate, now);
            }
        }
    }

    /// What was let pass here and is not told yet.
    pub(crate) fn taken(&self) -> Vec<(Whose, u32)> {
        gathered(&mut self.0.limits.0.lock().unwrap_or_else(PoisonError::into_inner).untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_counts_as_one_however_many_addresses_it_has() {
        assert_eq!(network("2001:db8:1:2:aaaa::1"), network("2001:db8:1:2:bbbb::2"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(network("192.0.2.1"), "192.0.2.1");
    }
}
