//! What is seen of identities: logins, refusals, the use of keys. Written into the journal, never in the way of a request.
//!
//! What is refused is kept one by one up to a rate, and counted beyond it, so that nobody fills the disk by failing. What is
//! allowed is counted, and written down once a minute.

use crate::app::App;
use crate::{Answer, Caller};
use kernel::event::Content;
use kernel::id::TenantId;
use kernel::journal::Class;
use kernel::{Actor, ActorKind, ActorRef, Origin};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use store::journal::{Entry, JournalQuery, NewEntry};

/// How often counts are written down.
const WRITTEN_EVERY_MS: u64 = 60_000;
/// Refusals of one kind from one address that are kept one by one, until counts are written down.
const ONE_BY_ONE_MAX: u64 = 20;
/// Counts that are kept; beyond them everything of a tenant is counted together.
const COUNTS_MAX: usize = 10_000;
/// Addresses that a count names.
const ADDRESSES_MAX: usize = 5;
/// Pages of the journal that are looked at for one answer.
const PAGES_MAX: usize = 20;

/// Something that was seen.
pub(crate) struct Seen<'a> {
    pub tenant: TenantId,
    /// `identity.login.refused`
    pub kind: &'static str,
    /// Who, as far as it is known.
    pub who: Option<&'a ActorRef>,
    pub origin: &'a Origin,
    pub correlation: &'a str,
    /// Further facts, without secrets.
    pub facts: BTreeMap<&'static str, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Counted {
    tenant: TenantId,
    kind: &'static str,
    who: Option<ActorRef>,
    /// What it is counted by: an address for refusals, a key for its use.
    by: String,
}

#[derive(Default)]
struct Count {
    times: u64,
    addresses: Vec<String>,
}

#[derive(Default)]
pub(crate) struct Watch(Mutex<BTreeMap<Counted, Count>>);

impl Watch {
    /// Counts, and says which time this is.
    fn count(&self, mut what: Counted, address: Option<&str>) -> u64 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= COUNTS_MAX && !counts.contains_key(&what) {
            (what.who, what.by) = (None, "many".into());
        }
        let count = counts.entry(what).or_default();
        count.times += 1;
        if let Some(address) = address
            && count.addresses.len() < ADDRESSES_MAX
            && !count.addresses.iter().any(|known| known == address)
        {
            count.addresses.push(address.to_owned());
        }
        count.times
    }
}

#[derive(Serialize)]
struct Facts<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
    #[serde(flatten)]
    facts: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Counts<'a> {
    /// How often it happened since the counts before.
    times: u64,
    /// How often of these stand in entries of their own.
    one_by_one: u64,
    by: &'a str,
    addresses: &'a [String],
}

/// Kinds of which each is counted only.
fn is_counted_only(kind: &str) -> bool {
    kind == "identity.key.used"
}

impl App {
    /// Something was allowed and is worth an entry of its own.
    pub(crate) fn saw(&self, seen: Seen<'_>) {
        self.write_down(seen);
    }

    /// Something was allowed that happens often: one by one up to a rate, then counted.
    pub(crate) fn saw_counted(&self, seen: Seen<'_>) {
        let by = seen.facts.get("client").cloned().unwrap_or_default();
        let counted = Counted { tenant: seen.tenant, kind: seen.kind, who: seen.who.cloned(), by };
        if self.0.watch.count(counted, seen.origin.address.as_deref()) <= ONE_BY_ONE_MAX {
            self.write_down(seen);
        }
    }

    /// Something was refused.
    pub(crate) fn saw_refused(&self, seen: Seen<'_>) {
        let by = seen.origin.address.clone().unwrap_or_default();
        let counted = Counted { tenant: seen.tenant, kind: seen.kind, who: None, by };
        if self.0.watch.count(counted, None) <= ONE_BY_ONE_MAX {
            self.write_down(seen);
        }
    }

    /// A key was used.
    pub fn saw_key(&self, actor: &Actor, origin: &Origin) {
        let Some(key) = actor.key else { return };
        let who = Some(actor.who.clone());
        let counted = Counted { tenant: actor.tenant, kind: "identity.key.used", who, by: key.to_string() };
        self.0.watch.count(counted, origin.address.as_deref());
    }

    /// Somebody showed credentials that are not good, or none.
    pub fn saw_stranger(&self, code: &str, route: &str, origin: &Origin, correlation: &str) {
        let facts = BTreeMap::from([("code", code.to_owned()), ("route", route.to_owned())]);
        let kind = "identity.credentials.refused";
        self.saw_refused(Seen { tenant: self.0.root, kind, who: None, origin, correlation, facts });
    }

    /// Somebody asked for what they may not do.
    pub fn saw_denied(&self, actor: &Actor, permission: &str, route: &str, origin: &Origin, correlation: &str) {
        let facts = BTreeMap::from([("permission", permission.to_owned()), ("route", route.to_owned())]);
        let kind = "identity.permission.denied";
        self.saw_refused(Seen { tenant: actor.tenant, kind, who: Some(&actor.who), origin, correlation, facts });
    }

    fn write_down(&self, seen: Seen<'_>) {
        let Origin { address, client } = seen.origin;
        let facts = Facts { address: address.as_deref(), client: client.as_deref(), facts: seen.facts };
        self.offer(seen.tenant, seen.kind, seen.who, seen.correlation, &facts);
    }

    fn offer(&self, tenant: TenantId, kind: &'static str, who: Option<&ActorRef>, correlation: &str, facts: &impl Serialize) {
        let Ok(bytes) = serde_json::to_vec(facts) else { return };
        self.0.journal.offer(NewEntry {
            id: self.env().id(),
            tenant,
            class: Class::Security,
            kind: kind.into(),
            at: self.env().now(),
            actor: who.cloned().unwrap_or(ActorRef { kind: ActorKind::System, id: "authentication".into() }),
            correlation: correlation.to_owned(),
            content: Content::Whole { salt: self.env().bytes(), bytes },
            values: vec![],
        });
    }

    /// Writes down what was counted.
    pub(crate) fn write_counts(&self) {
        let counts = std::mem::take(&mut *self.0.watch.0.lock().unwrap_or_else(PoisonError::into_inner));
        let running: BTreeSet<TenantId> = self.runtimes().iter().map(|runtime| runtime.id).collect();
        // Of a tenant that was deleted nothing is written any more.
        for (what, count) in counts.into_iter().filter(|(what, _)| running.contains(&what.tenant)) {
            let one_by_one = if is_counted_only(what.kind) { 0 } else { count.times.min(ONE_BY_ONE_MAX) };
            if count.times > one_by_one {
                let said = Counts { times: count.times, one_by_one, by: &what.by, addresses: &count.addresses };
                self.offer(what.tenant, what.kind, what.who.as_ref(), "", &said);
            }
        }
    }

    /// Entries about identities and privileged actions, oldest first, whose kind begins like this.
    pub async fn security_events(&self, caller: &Caller, after: u64, kind: &str, limit: usize) -> Answer<(Vec<Entry>, u64)> {
        let (mut found, mut after) = (vec![], after);
        for _ in 0..PAGES_MAX {
            let query = JournalQuery { after, class: Some(Class::Security), actor: None, limit };
            let page = self.journal(caller, query).await?;
            let Some(last) = page.last() else { break };
            let last = last.header.position;
            for entry in page {
                if found.len() == limit {
                    return Ok((found, after));
                }
                after = entry.header.position;
                if entry.header.kind.starts_with(kind) {
                    found.push(entry);
                }
            }
            after = last;
            if found.len() == limit {
                break;
            }
        }
        Ok((found, after))
    }
}

/// Writes counts down now and then. The last ones are written by whoever seals the journal's end.
pub(crate) async fn keep_counts(app: App) {
    loop {
        tokio::select! {
            biased;
            () = app.env().stop().cancelled() => return,
            () = app.env().sleep_ms(WRITTEN_EVERY_MS) => app.write_counts(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(by: &str) -> Counted {
        Counted { tenant: TenantId::from_bytes([1; 16]), kind: "identity.login.refused", who: None, by: by.into() }
    }

    #[test]
    fn memory_is_bounded_however_many_addresses_there_are() {
        let watch = Watch::default();
        for n in 0..COUNTS_MAX + 100 {
            watch.count(counted(&n.to_string()), None);
        }
        assert_eq!(watch.count(counted("another"), None), 101, "the rest is counted together");
        assert!(watch.0.lock().unwrap().len() <= COUNTS_MAX + 1);
    }
}
