//! Who was recognised by a token or key a moment ago, so that it is not looked up again with each request.
//!
//! What is kept here rests on the log: before it is used, every event since is looked at, and whatever one of them concerns
//! is forgotten. So a token that was called back is refused as soon as the log says so, on every replica, without asking
//! the store each time.

use crate::Answer;
use crate::app::App;
use crate::errors::of_store;
use kernel::id::TenantId;
use kernel::{Actor, Recorded, Timestamp};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use store::ScanFilter;

/// Credentials that are remembered: some ten MiB.
const ENTRIES_MAX: usize = 10_000;
/// Events that are looked at before everything of the tenant is forgotten instead.
const EVENTS_MAX: u64 = 4_096;

/// SHA-256 of a credential.
pub(crate) type CredentialHash = [u8; 32];

/// Somebody who was recognised.
pub(crate) struct Recognised {
    pub actor: Actor,
    /// The streams that it rests on.
    pub rests_on: Vec<String>,
    /// When the credential ends by itself.
    pub until: Timestamp,
}

#[derive(Default)]
pub(crate) struct Known(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    entries: BTreeMap<CredentialHash, Arc<Recognised>>,
    /// How far each log was looked at.
    seen: BTreeMap<TenantId, u64>,
    /// Counts what was forgotten, so that nothing is remembered that was read before.
    forgotten: u64,
}

impl Known {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn get(&self, hash: &CredentialHash) -> Option<Arc<Recognised>> {
        self.with(|inner| inner.entries.get(hash).cloned())
    }

    /// A mark to be taken before anything is read.
    pub fn mark(&self) -> u64 {
        self.with(|inner| inner.forgotten)
    }

    /// Remembers somebody, unless something was forgotten since the mark: it may have been about them.
    pub fn put(&self, hash: CredentialHash, recognised: Arc<Recognised>, mark: u64) {
        self.with(|inner| {
            if inner.forgotten != mark {
                return;
            }
            if inner.entries.len() >= ENTRIES_MAX {
                // Hashes are in no order that anybody could choose, so this is a random one.
                inner.entries.pop_first();
            }
            inner.entries.insert(hash, recognised);
        });
    }
}

impl Inner {
    fn forget(&mut self, concerns: impl Fn(&Recognised) -> bool) {
        self.forgotten += 1;
        self.entries.retain(|_, entry| !concerns(entry));
    }

    fn look_at(&mut self, tenant: TenantId, event: &Recorded) {
        let stream = event.header.stream.as_str();
        match concern(stream, &event.header.kind) {
            Concern::Nobody => {}
            Concern::Whoever => self.forget(|entry| entry.rests_on.iter().any(|s| s == stream)),
            Concern::Everybody => self.forget(|entry| entry.actor.tenant == tenant),
            Concern::Tenant => self.forget(|entry| entry.actor.tenant.to_string() == stream),
        }
    }
}

/// Whom an event concerns.
enum Concern {
    Nobody,
    /// Those who rest on its stream.
    Whoever,
    /// Everybody in the tenant.
    Everybody,
    /// Everybody in the tenant that the stream is of.
    Tenant,
}

fn concern(stream: &str, kind: &str) -> Concern {
    match stream.split_once('_').map_or("", |(prefix, _)| prefix) {
        "sess" if matches!(kind, "identity.session.closed" | "identity.session.stepped_up") => Concern::Whoever,
        "agent" if kind == "registry.agent.deregistered" || kind.starts_with("registry.agent.suspen") => Concern::Whoever,
        "user" | "key" | "client" | "tok" => Concern::Whoever,
        "role" | "team" | "guard" => Concern::Everybody,
        "tnt" => Concern::Tenant,
        _ => Concern::Nobody,
    }
}

impl App {
    /// Looks at what has happened since the last time, in the log of the tenants and in that of a tenant.
    pub(crate) async fn look_at_log(&self, tenant: TenantId) -> Answer<()> {
        self.look_at_one(self.0.root).await?;
        if tenant != self.0.root {
            self.look_at_one(tenant).await?;
        }
        Ok(())
    }

    async fn look_at_one(&self, tenant: TenantId) -> Answer<()> {
        let known = &self.0.known;
        loop {
            let tail = self.position(tenant);
            let seen = known.with(|inner| *inner.seen.entry(tenant).or_insert(tail));
            if seen >= tail {
                return Ok(());
            }
            if tail - seen > EVENTS_MAX {
                known.with(|inner| {
                    // The log of the tenants concerns everybody.
                    inner.forget(|entry| tenant == self.0.root || entry.actor.tenant == tenant);
                    inner.seen.insert(tenant, tail);
                });
                return Ok(());
            }
            let count = (tail - seen) as usize;
            let scanned = self.0.engine.store().scan(tenant, seen, ScanFilter::default(), count).await.map_err(of_store)?;
            known.with(|inner| {
                // Another request may have been faster.
                let from = inner.seen.get(&tenant).copied().unwrap_or(seen);
                scanned.events.iter().filter(|e| e.header.position > from).for_each(|e| inner.look_at(tenant, e));
                inner.seen.insert(tenant, from.max(scanned.position));
            });
            if scanned.position <= seen {
                return Ok(());
            }
        }
    }
}
