//! Every stored shape ever written has a golden file in `golden/`, which must stay readable for ever.

use kernel::id::{EventId, TenantId};
use kernel::{ActorRef, Category, EventHeader, EventSet, Origin, Recorded, Timestamp, event};
use serde_json::value::RawValue;
use std::path::PathBuf;

/// A stored event for tests.
pub(crate) fn recorded(kind: &str, stream: &str, version: u64, position: u64, data: serde_json::Value) -> Recorded {
    let header = EventHeader {
        id: EventId::from_bytes([0; 16]),
        kind: kind.into(),
        shape: 1,
        category: Category::Domain,
        tenant: TenantId::from_bytes([0; 16]),
        stream: stream.into(),
        version,
        position,
        occurred_at: Timestamp(0),
        recorded_at: Timestamp(0),
        actor: ActorRef::system("test"),
        user: None,
        correlation: String::new(),
        causation: None,
        trace_parent: None,
    };
    let payload = event::payload(&data, &Origin::default()).unwrap();
    Recorded {
        payload_hash: event::payload_hash(&[0; 16], &payload),
        leaf: [0; 32],
        salt: Some([0; 16]),
        payload: Some(payload),
        header,
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Each known type and shape has a file, and reading and writing it again gives the same JSON.
fn check<E: EventSet>() {
    for (kind, shape) in E::known() {
        let path = folder().join(format!("{kind}.{shape}.json"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("golden file {}: {e}", path.display()));
        let raw: Box<RawValue> = serde_json::from_str(text.trim()).unwrap();
        let event = E::decode(kind, shape, &raw).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(event.kind(), kind);
        let written: serde_json::Value = serde_json::from_slice(&event.payload(&Origin::default()).unwrap()).unwrap();
        // An older shape is read as the present one: what comes of it is kept in a file of its own.
        let path = if event.shape() == shape { path } else { folder().join(format!("{kind}.{shape}.upcast.json")) };
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("golden file {}: {e}", path.display()));
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(written["data"], golden, "{}", path.display());
    }
}

#[test]
fn every_shape_ever_written_stays_readable() {
    check::<crate::identity::tenant::TenantEvent>();
    check::<crate::identity::user::UserEvent>();
    check::<crate::identity::role::RoleEvent>();
    check::<crate::identity::key::KeyEvent>();
    check::<crate::identity::session::SessionEvent>();
    check::<crate::identity::client::ClientEvent>();
    check::<crate::identity::consent::ConsentEvent>();
    check::<crate::identity::device::DeviceEvent>();
    check::<crate::identity::guard::GuardEvent>();
    check::<crate::identity::keyring::KeyringEvent>();
    check::<crate::identity::token::TokenEvent>();
    check::<crate::identity::team::TeamEvent>();
    check::<crate::identity::mail::MailEvent>();
    check::<crate::agent::AgentEvent>();
    check::<crate::task::TaskEvent>();
    check::<crate::queue::QueueEvent>();
    check::<crate::mcp_server::McpServerEvent>();
    check::<crate::tool::ToolEvent>();
    check::<crate::virtual_server::VirtualServerEvent>();
    check::<crate::component::ComponentEvent>();
    check::<crate::credential::CredentialEvent>();
    check::<crate::erasure::ErasureEvent>();
    check::<crate::erasure::ErasedEvent>();
    check::<crate::rebuild::RebuildEvent>();
    check::<crate::push::PushEvent>();
    check::<crate::consumer_group::GroupEvent>();
}

#[test]
fn every_golden_file_belongs_to_a_known_shape() {
    let mut known: Vec<(&str, u16)> = crate::identity::tenant::TenantEvent::known();
    known.extend(crate::identity::user::UserEvent::known());
    known.extend(crate::identity::role::RoleEvent::known());
    known.extend(crate::identity::key::KeyEvent::known());
    known.extend(crate::identity::session::SessionEvent::known());
    known.extend(crate::identity::client::ClientEvent::known());
    known.extend(crate::identity::consent::ConsentEvent::known());
    known.extend(crate::identity::device::DeviceEvent::known());
    known.extend(crate::identity::guard::GuardEvent::known());
    known.extend(crate::identity::keyring::KeyringEvent::known());
    known.extend(crate::identity::token::TokenEvent::known());
    known.extend(crate::identity::team::TeamEvent::known());
    known.extend(crate::identity::mail::MailEvent::known());
    known.extend(crate::agent::AgentEvent::known());
    known.extend(crate::task::TaskEvent::known());
    known.extend(crate::queue::QueueEvent::known());
    known.extend(crate::mcp_server::McpServerEvent::known());
    known.extend(crate::tool::ToolEvent::known());
    known.extend(crate::virtual_server::VirtualServerEvent::known());
    known.extend(crate::component::ComponentEvent::known());
    known.extend(crate::credential::CredentialEvent::known());
    known.extend(crate::erasure::ErasureEvent::known());
    known.extend(crate::erasure::ErasedEvent::known());
    known.extend(crate::rebuild::RebuildEvent::known());
    known.extend(crate::push::PushEvent::known());
    known.extend(crate::consumer_group::GroupEvent::known());
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let names = |kind: &str, shape: &u16| [format!("{kind}.{shape}.json"), format!("{kind}.{shape}.upcast.json")];
        assert!(known.iter().any(|(kind, shape)| names(kind, shape).contains(&name)), "{name} is read by nothing");
    }
}
