//! What a person allowed clients, as the person sees it.

use crate::app::App;
use crate::errors::{of_handle, of_store};
use crate::identities::closing;
use crate::workers::each;
use crate::{Answer, Caller};
use domain::identity::consent::{Consent, ConsentCommand};
use engine::{Extras, Handled, Step};
use kernel::id::ConsentId;
use kernel::{IndexField, Kind, Rejection, UserId};

impl App {
    fn consenting(caller: &Caller) -> Answer<UserId> {
        caller.actor.user.filter(|user| caller.actor.who.id == user.to_string()).ok_or_else(|| {
            let hint = "Sign in as a person.";
            Rejection::new(Kind::Refused, "NO_SESSION", "Only people allow clients something.", hint)
        })
    }

    /// What the caller allowed clients. Whoever is no person has allowed nothing.
    pub async fn consents(&self, caller: &Caller) -> Answer<Vec<Handled<Consent>>> {
        let fields = [IndexField::new("user", caller.actor.who.id.clone())];
        each::<Consent>(&self.0.engine, caller.actor.tenant, &fields).await.map_err(of_store)
    }

    /// Takes back what the caller allowed a client, and ends everything that the client got.
    pub async fn revoke_consent(&self, caller: &Caller, id: &str) -> Answer<()> {
        let user = Self::consenting(caller)?;
        let known = match id.parse::<ConsentId>() {
            Ok(id) => self.entity::<Consent>(caller.actor.tenant, &id.to_string()).await?,
            Err(_) => None,
        };
        let consent = known.filter(|consent| consent.state.user == user).ok_or_else(|| {
            let message = format!("There is no consent '{id}' of yours.");
            Rejection::new(Kind::NotFound, "CONSENT_NOT_FOUND", message, "List them with GET /api/v1/auth/consents.")
                .with("searched_id", id)
        })?;
        let fields = [IndexField::new("user", user.to_string()), IndexField::new("client", &consent.state.client)];
        let ending = closing(&self.0.engine, caller.actor.tenant, &fields, "revoked", |_| true).await?;
        let mut steps = vec![Step::on::<Consent>(consent.stream, ConsentCommand::Revoke)];
        steps.extend(ending);
        let done = self.0.engine.transact(caller.actor.tenant, &steps, &caller.context(), Extras::default()).await;
        done.map(|_| ()).map_err(of_handle)
    }
}
