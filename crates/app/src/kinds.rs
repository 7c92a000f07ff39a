//! The closed list of everything that a log may hold, for folding it anew.

use engine::{Compared, Kinds, compare};
use kernel::id::TenantId;
use store::{Store, StoreError};

/// The rules of every kind of entity.
pub(crate) fn kinds() -> Kinds {
    use domain::identity::{
        client::Client, consent::Consent, device::Device, guard::Guard, key::Key, keyring::Keyring, mail::Mail, role::Role,
        session::Session, team::Team, tenant::Tenant, token::Token, user::User,
    };
    Kinds::default()
        .and::<Tenant>()
        .and::<User>()
        .and::<Role>()
        .and::<Key>()
        .and::<Session>()
        .and::<Client>()
        .and::<Consent>()
        .and::<Device>()
        .and::<Token>()
        .and::<Guard>()
        .and::<Keyring>()
        .and::<Team>()
        .and::<Mail>()
        .and::<domain::agent::Agent>()
        .and::<domain::task::Task>()
        .and::<domain::queue::Queue>()
        .and::<domain::mcp_server::McpServer>()
        .and::<domain::tool::Tool>()
        .and::<domain::virtual_server::VirtualServer>()
        .and::<domain::component::Component>()
        .and::<domain::credential::Credential>()
        .and::<domain::erasure::Erasure>()
        .and::<domain::rebuild::Rebuild>()
        .and::<domain::push::Push>()
        .and::<domain::consumer_group::ConsumerGroup>()
}

/// Holds every stored entity of a tenant against its events.
pub async fn compare_entities(store: &dyn Store, tenant: TenantId) -> Result<Compared, StoreError> {
    compare(store, &kinds(), tenant).await
}
