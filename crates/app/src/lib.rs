//! What can be done with Keiko: one file of use cases per context, and the workers that act by themselves.
//!
//! A use case gets typed input from the edge and answers entities; it never sees HTTP. Whether the caller may do it at
//! all is decided by [`App::authorise`] before; how far an `:own` permission reaches is decided here.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod a2a;
mod admin;
mod agents;
mod app;
mod asof;
mod audit;
mod auth;
pub mod backup;
mod breached;
mod caller;
mod claims;
mod components;
mod consents;
mod consumer_groups;
mod credentials;
mod crypto;
mod discovery;
mod envoys;
mod erasures;
mod errors;
mod events;
mod explain;
mod filter;
mod fleet;
mod group_progress;
mod groups;
mod guard;
mod health;
mod identities;
mod jose;
mod journal;
mod keys;
mod kinds;
mod known;
mod limits;
mod mails;
pub mod mcp;
mod mcp_servers;
mod mfa;
pub mod oauth;
mod passwords;
mod pushes;
mod queues;
mod recognise;
mod removal;
mod replicas;
mod resilience;
mod schema;
mod shared;
mod signing;
mod tasks;
mod teams;
mod tenants;
mod throttle;
mod timeline;
mod tools;
mod views;
mod watch;
mod workers;

pub use admin::reset_password;
pub use agents::{AgentLoad, NewMandate};
pub use app::{App, AppSettings, AppStatus, Bootstrap, Ground};
pub use audit::{AuditProof, CheckedProof, Tree, origin};
pub use auth::TokenPair;
pub use breached::Breached;
pub use caller::Caller;
pub use claims::{ClaimOrder, ClaimedTask, TaskOutcome, claim_id};
pub use components::{ComponentView, Impact, NewComponent, NewNeed, NewSubject};
pub use consumer_groups::{GroupState, GroupView, NewGroup};
pub use credentials::{ConnectAnswer, ConnectPlan, Connected, CredentialView, Owner};
pub use crypto::{KeyMaterial, SealingKey, check_ed25519, fresh_pair, fresh_secret};
pub use discovery::{Discovered, DiscoveryQuery};
pub use envoys::NewEndpoint;
pub use events::Selection;
pub use explain::{Explained, Source as PermissionSource};
pub use filter::Filter;
pub use gateway::{AddressFigures, Circuit, CircuitState, Figures, Priority, ToolTimes};
pub use group_progress::{Delivered, FetchOrder, Word};
pub use groups::GroupStatus;
pub use identities::NewUser;
pub use jose::Algorithm;
pub use keys::NewKey;
pub use limits::{LimitSettings, RouteClass};
pub use mails::{Registration, ShownMail};
pub use mcp_servers::{NewClient, NewOauth, NewServer, NewTransport};
pub use mfa::Enrolment;
pub use pushes::{NewPush, PushView};
pub use recognise::Resource;
pub use replicas::Membership;
pub use resilience::{Resilience, UpstreamStatus};
pub use tasks::{HistoryEntry, NewTask, TaskView};
pub use tenants::NewTenant;
pub use timeline::{Change, Changes};
pub use tools::{ListedTool, NewCall, ToolCall, ToolResult, ToolStatus};

pub use views::ViewStatus;

pub use domain::limit::{Rate, Standing};
pub use kernel::Timestamp;
pub use kernel::id::{TenantId, UserId};
pub use kernel::note::VerifierKey;
pub use kernel::tile::{Tile, WIDTH as TILE_WIDTH};
pub use store::journal::{Entry as JournalEntry, JournalQuery};
pub use store::{ScanFilter as EventFilter, Scanned as ScannedEvents};

pub use kinds::compare_entities;
pub(crate) use kinds::kinds;

use engine::Handled;
use kernel::Rejection;

/// What a use case answers.
pub type Answer<T> = Result<T, Rejection>;

/// A page of entities.
pub struct Page<S> {
    /// The entities.
    pub items: Vec<Handled<S>>,
    /// Where to go on.
    pub next: Option<String>,
    /// The log's position that the page reflects.
    pub position: u64,
}

/// How to list.
#[derive(Clone, Debug)]
pub struct ListOrder {
    /// How many at most.
    pub limit: usize,
    /// Where to go on.
    pub after: Option<String>,
    /// Newest first.
    pub is_descending: bool,
    /// Deleted ones too.
    pub with_deleted: bool,
}
