//! A device that cannot show a browser and waits until somebody signs in for it elsewhere (RFC 8628). It is known before
//! anybody knows whose it is, so it is recorded in the log of the default tenant.

use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Rejection, SessionId, TenantId, Timestamp, UniqueChange, UserId};
use serde::{Deserialize, Serialize};

/// What may be asked of a device.
#[derive(Clone, Debug)]
pub enum DeviceCommand {
    /// It asks to be signed in.
    Request(Box<Requested>),
    /// A person says yes.
    Approve(Approved),
    /// A person says no.
    Deny,
    /// It takes its tokens.
    Redeem,
}

/// `identity.device.requested`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requested {
    /// The client that it runs.
    pub client: String,
    /// What it asks for.
    pub scopes: Vec<String>,
    /// For which resource.
    pub resource: Option<String>,
    /// SHA-256 of what the device shows to get its tokens.
    pub device_sha256: String,
    /// Keyed hash of what the person types.
    pub user_code_index: String,
    /// When it is over.
    pub expires_at: Timestamp,
}

/// `identity.device.approved`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Approved {
    /// The person's tenant.
    pub tenant: TenantId,
    /// Who.
    pub user: UserId,
    /// The browser's login in which it was approved.
    pub login: SessionId,
    /// The session that the device gets.
    pub session: SessionId,
    /// What the person allowed.
    pub scopes: Vec<String>,
}

/// `identity.device.denied`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Denied {}

/// `identity.device.redeemed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Redeemed {}

kernel::events! {
    /// What happened to a device.
    DeviceEvent {
        Requested(Box<Requested>) = "identity.device.requested" @ 1,
        Approved(Approved) = "identity.device.approved" @ 1,
        Denied(Denied) = "identity.device.denied" @ 1,
        Redeemed(Redeemed) = "identity.device.redeemed" @ 1,
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Outcome {
    /// Nobody has answered yet.
    Pending,
    /// Somebody said yes.
    Approved(Approved),
    /// Somebody said no.
    Denied,
    /// The tokens were given out.
    Redeemed,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// What it asked for.
    pub requested: Requested,
    /// What became of it.
    pub outcome: Outcome,
}

impl Device {
    /// Whether somebody may still answer.
    pub fn is_pending(&self, now: Timestamp) -> bool {
        self.outcome == Outcome::Pending && now < self.requested.expires_at
    }
}

fn over() -> Rejection {
    Rejection::new(
        Kind::Refused,
        "DEVICE_CODE_ENDED",
        "This code was used already, or its time is over.",
        "Start again on the device.",
    )
}

impl Decider for Device {
    const KIND: &'static str = "device";
    type State = Device;
    type Command = DeviceCommand;
    type Event = DeviceEvent;

    fn decide(state: Option<&Device>, command: &DeviceCommand, facts: &Facts) -> Result<Vec<DeviceEvent>, Rejection> {
        match (command, state) {
            (DeviceCommand::Request(requested), None) => Ok(vec![DeviceEvent::Requested(requested.clone())]),
            (DeviceCommand::Approve(approved), Some(device)) if device.is_pending(facts.now) => {
                Ok(vec![DeviceEvent::Approved(approved.clone())])
            }
            (DeviceCommand::Deny, Some(device)) if device.is_pending(facts.now) => Ok(vec![DeviceEvent::Denied(Denied {})]),
            (DeviceCommand::Redeem, Some(Device { outcome: Outcome::Approved(_), requested }))
                if facts.now < requested.expires_at =>
            {
                Ok(vec![DeviceEvent::Redeemed(Redeemed {})])
            }
            _ => Err(over()),
        }
    }

    fn evolve(state: Option<Device>, event: &DeviceEvent, _: &Meta) -> Option<Device> {
        match event {
            DeviceEvent::Requested(requested) => {
                Some(Device { requested: requested.as_ref().clone(), outcome: Outcome::Pending })
            }
            DeviceEvent::Approved(a) => state.map(|d| Device { outcome: Outcome::Approved(a.clone()), ..d }),
            DeviceEvent::Denied(_) => state.map(|d| Device { outcome: Outcome::Denied, ..d }),
            DeviceEvent::Redeemed(_) => state.map(|d| Device { outcome: Outcome::Redeemed, ..d }),
        }
    }

    fn is_terminal(state: &Device) -> bool {
        matches!(state.outcome, Outcome::Denied | Outcome::Redeemed)
    }

    fn index(_: &Device) -> Vec<IndexField> {
        vec![]
    }

    fn unique(state: Option<&Device>, event: &DeviceEvent) -> Vec<UniqueChange> {
        match (event, state) {
            (DeviceEvent::Requested(r), _) => vec![UniqueChange::Take(code_key(&r.user_code_index))],
            (DeviceEvent::Approved(_) | DeviceEvent::Denied(_), Some(d)) => {
                vec![UniqueChange::Free(code_key(&d.requested.user_code_index))]
            }
            _ => vec![],
        }
    }
}

/// The unique key of what a person types.
pub fn code_key(index: &str) -> String {
    format!("device.code:{index}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::ActorRef;

    fn device(outcome: Outcome) -> Device {
        let requested = Requested {
            client: "c".into(),
            scopes: vec![],
            resource: None,
            device_sha256: "d".into(),
            user_code_index: "u".into(),
            expires_at: Timestamp(100),
        };
        Device { requested, outcome }
    }

    fn approved() -> Approved {
        let session = SessionId::from_bytes([3; 16]);
        Approved {
            tenant: TenantId::from_bytes([1; 16]),
            user: UserId::from_bytes([2; 16]),
            login: session,
            session,
            scopes: vec![],
        }
    }

    fn may(outcome: Outcome, command: &DeviceCommand, now: i64) -> bool {
        let facts = Facts { now: Timestamp(now), actor: ActorRef::system("test"), random: 0, version: 1 };
        Device::decide(Some(&device(outcome)), command, &facts).is_ok()
    }

    #[test]
    fn a_device_is_answered_once_and_in_time_and_takes_its_tokens_once() {
        let yes = DeviceCommand::Approve(approved());
        assert!(may(Outcome::Pending, &yes, 99) && !may(Outcome::Pending, &yes, 100));
        assert!(!may(Outcome::Denied, &yes, 1) && !may(Outcome::Approved(approved()), &DeviceCommand::Deny, 1));
        assert!(may(Outcome::Approved(approved()), &DeviceCommand::Redeem, 99));
        assert!(!may(Outcome::Approved(approved()), &DeviceCommand::Redeem, 100));
        for outcome in [Outcome::Pending, Outcome::Denied, Outcome::Redeemed] {
            assert!(!may(outcome.clone(), &DeviceCommand::Redeem, 1), "{outcome:?}");
        }
    }
}
