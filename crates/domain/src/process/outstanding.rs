//! Work outside the log that an event asks for: at least once, with an outcome that comes back as an event.

use kernel::{Decider, Process, Recorded, Timestamp};
use std::collections::BTreeMap;
use std::str::FromStr;

/// When an effect without an outcome is tried again.
const TRY_AGAIN_MS: u64 = 5_000;

/// A kind of such work.
pub trait Effect: Send + 'static {
    /// Who does it; the id of the system actor in events that it causes.
    const NAME: &'static str;
    /// The event that asks for it.
    const BEGINS: &'static str;
    /// The events that say that it is done, or not to be done any more.
    const ENDS: &'static [&'static str];
    /// The longest pause before it is tried again; pauses double from [`TRY_AGAIN_MS`] on.
    const PAUSE_MS_MAX: u64 = TRY_AGAIN_MS;
    /// The entity that both are of.
    type Entity: Decider;
    /// The entity's id.
    type Id: FromStr + Ord + Copy + Send + 'static;
}

/// What is not done yet, with when to work on it.
pub struct Outstanding<E: Effect> {
    open: BTreeMap<E::Id, Next>,
}

/// When to work on something, and how long to wait if it does not end.
#[derive(Clone, Copy)]
struct Next {
    at: Timestamp,
    pause_ms: u64,
}

impl Next {
    fn at(at: Timestamp) -> Self {
        Next { at, pause_ms: TRY_AGAIN_MS }
    }
}

impl<E: Effect> Default for Outstanding<E> {
    fn default() -> Self {
        Outstanding { open: BTreeMap::new() }
    }
}

impl<E: Effect> Outstanding<E> {
    /// Takes in what was not done at the start.
    pub fn put(&mut self, id: E::Id) {
        self.open.insert(id, Next::at(Timestamp(0)));
    }
}

impl<E: Effect> Process for Outstanding<E> {
    const NAME: &'static str = E::NAME;
    type Signal = ();
    /// Do this one.
    type Command = E::Id;

    fn react(&mut self, event: &Recorded, now: Timestamp) {
        if !event.header.stream.starts_with(E::Entity::KIND) {
            return;
        }
        let Ok(id) = event.header.stream.parse() else { return };
        if event.header.kind == E::BEGINS {
            self.open.insert(id, Next::at(now));
        } else if E::ENDS.contains(&event.header.kind.as_str()) {
            self.open.remove(&id);
        }
    }

    fn signal(&mut self, (): (), _: Timestamp) {}

    fn decide(&mut self, now: Timestamp, _random: u64) -> Vec<E::Id> {
        let mut due = vec![];
        for (id, next) in self.open.iter_mut().filter(|(_, next)| next.at <= now) {
            due.push(*id);
            *next = Next { at: now.plus_ms(next.pause_ms), pause_ms: (next.pause_ms * 2).min(E::PAUSE_MS_MAX) };
        }
        due
    }

    fn due(&self) -> Option<Timestamp> {
        self.open.values().map(|next| next.at).min()
    }
}

/// Opens the log of every new tenant and makes its administrator: work outside the log that the tenant was created in.
pub struct Provision;

impl Effect for Provision {
    const NAME: &'static str = "provisioner";
    const BEGINS: &'static str = "identity.tenant.created";
    const ENDS: &'static [&'static str] = &["identity.tenant.provisioned"];
    type Entity = crate::identity::tenant::Tenant;
    type Id = kernel::id::TenantId;
}

/// Removes what a tenant held. Its record goes last, which is the end.
pub struct RemoveTenant;

impl Effect for RemoveTenant {
    const NAME: &'static str = "remover";
    const BEGINS: &'static str = "identity.tenant.deletion_requested";
    const ENDS: &'static [&'static str] = &[kernel::event::ERASED];
    type Entity = crate::identity::tenant::Tenant;
    type Id = kernel::id::TenantId;
}

/// Removes what is kept of a person.
pub struct Erase;

impl Effect for Erase {
    const NAME: &'static str = "eraser";
    const BEGINS: &'static str = "audit.erasure.requested";
    const ENDS: &'static [&'static str] = &["audit.erasure.completed"];
    type Entity = crate::erasure::Erasure;
    type Id = kernel::id::ErasureId;
}

/// Builds views anew.
pub struct RebuildView;

impl Effect for RebuildView {
    const NAME: &'static str = "rebuilder";
    const BEGINS: &'static str = "views.rebuild.requested";
    const ENDS: &'static [&'static str] = &["views.rebuild.completed"];
    type Entity = crate::rebuild::Rebuild;
    type Id = kernel::id::RebuildId;
}

/// Hands mails over.
pub struct SendMail;

impl Effect for SendMail {
    const NAME: &'static str = "postman";
    const BEGINS: &'static str = "identity.mail.requested";
    const ENDS: &'static [&'static str] =
        &["identity.mail.sent", "identity.mail.failed", "identity.mail.used", "identity.mail.revoked"];
    const PAUSE_MS_MAX: u64 = 10 * 60_000;
    type Entity = crate::identity::mail::Mail;
    type Id = kernel::id::MailId;
}

/// Tells somebody of a task, until the task has ended.
pub struct Notify;

impl Effect for Notify {
    const NAME: &'static str = "notifier";
    const BEGINS: &'static str = "tasks.push.configured";
    const ENDS: &'static [&'static str] = &["tasks.push.ended"];
    const PAUSE_MS_MAX: u64 = 10 * 60_000;
    type Entity = crate::push::Push;
    type Id = kernel::id::PushId;
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::id::TenantId;

    #[test]
    fn given_a_created_tenant_then_its_log_is_opened_until_that_is_recorded() {
        let tenant = TenantId::from_bytes([1; 16]);
        let event = |kind: &str| crate::golden::recorded(kind, &tenant.to_string(), 1, 1, serde_json::json!({}));
        let mut provision = Outstanding::<Provision>::default();
        provision.react(&event("identity.tenant.created"), Timestamp(0));
        assert_eq!(provision.decide(Timestamp(0), 0), [tenant]);
        assert_eq!(provision.decide(Timestamp(1), 0), []);
        assert_eq!(provision.decide(Timestamp(5_000), 0), [tenant], "an effect without outcome is tried again");
        provision.react(&event("identity.tenant.provisioned"), Timestamp(5_001));
        assert_eq!(provision.decide(Timestamp(60_000), 0), []);
        assert_eq!(provision.due(), None);
    }

    #[test]
    fn given_a_mail_that_does_not_go_out_then_it_is_tried_more_and_more_rarely() {
        let mail = kernel::id::MailId::from_bytes([1; 16]);
        let mut outbox = Outstanding::<SendMail>::default();
        outbox.put(mail);
        let (mut now, mut pauses) = (Timestamp(0), vec![]);
        for _ in 0..10 {
            assert_eq!(outbox.decide(now, 0), [mail]);
            let next = outbox.due().unwrap();
            pauses.push(next.since_ms(now) / 1_000);
            now = next;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]);
        let revoked = crate::golden::recorded("identity.mail.revoked", &mail.to_string(), 2, 2, serde_json::json!({}));
        outbox.react(&revoked, now);
        assert_eq!(outbox.due(), None);
    }
}
