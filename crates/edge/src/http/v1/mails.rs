//! `/api/v1/mails`: what was sent to whom; and inviting somebody.

use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Name, strings};
use crate::http::state::EdgeState;
use app::ShownMail;
use axum::extract::State;
use axum::http::StatusCode;
use domain::identity::mail::Status;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(invite)).routes(routes!(list)).routes(routes!(get, revoke))
}

/// Somebody who is to have an account.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Invite {
    /// Where the invitation goes.
    #[schema(max_length = 254)]
    email: String,
    /// Roles by name; none when nothing is said.
    #[serde(default)]
    #[schema(max_items = 64)]
    roles: Vec<Name>,
}

/// A mail.
#[derive(Serialize, ToSchema)]
struct MailAttributes {
    /// `invitation`, `verification`, `reset`, or `known`: somebody wants to register with an address that is in use
    purpose: &'static str,
    /// `queued`, `sent`, `failed`, `used`, `revoked`, or `expired`
    status: &'static str,
    /// To whom, until it is over.
    email: Option<String>,
    /// The account that it is about. An invitation's comes to be when it is accepted.
    user_id: String,
    /// The roles of an invitation.
    roles: Vec<String>,
    /// Why it could not be handed over.
    failure: Option<String>,
    /// The link itself: only in the answer to an invitation, and only while the server sends no mail. Hand it over.
    link: Option<String>,
    /// Until when its link is good.
    expires_at: String,
    /// When it was written.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// Counts its changes.
    version: u64,
}

fn attributes(shown: &ShownMail) -> MailAttributes {
    let mail = &shown.mail;
    let requested = &mail.state.requested;
    let roles = match &requested.purpose {
        domain::identity::mail::Purpose::Invitation { roles, .. } => roles.clone(),
        _ => vec![],
    };
    let is_expired = !shown.is_good && matches!(mail.state.status, Status::Queued | Status::Sent);
    MailAttributes {
        purpose: requested.purpose.kind().as_str(),
        status: if is_expired { "expired" } else { mail.state.status.as_str() },
        email: shown.address.clone(),
        user_id: requested.purpose.user().to_string(),
        roles,
        failure: mail.state.failure.clone(),
        link: shown.link.clone(),
        expires_at: requested.expires_at.to_string(),
        created_at: mail.created_at.to_string(),
        updated_at: mail.updated_at.to_string(),
        version: mail.version,
    }
}

/// Invite somebody to make an account; an earlier invitation of the address ends
#[utoipa::path(post, path = "/api/v1/users/actions/invite", tag = "identity", extensions(("x-permission" = json!("users.create"))),
    request_body = Invite, responses((status = 201, body = One<MailAttributes>)))]
async fn invite(State(state): State<Arc<EdgeState>>, input: Input<Invite>) -> Outcome {
    let shown = state.app.invite(&input.by, input.body.email, strings(input.body.roles)).await?;
    Reply::entity(StatusCode::CREATED, "mail", &shown.mail, attributes(&shown))
}

/// List mails: invitations, proofs of addresses, ways to a new password
#[utoipa::path(get, path = "/api/v1/mails", tag = "identity", extensions(("x-permission" = json!("users.read"))),
    params(ListParams), responses((status = 200, body = Many<MailAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ListParams>) -> Outcome {
    let (mails, next, position) = state.app.mails(&caller, &params.order()?).await?;
    let item = |shown: &ShownMail| Resource { id: shown.mail.stream.clone(), kind: "mail", attributes: attributes(shown) };
    Reply::list(&mails.iter().map(item).collect::<Vec<_>>(), next, position)
}

/// Read a mail
#[utoipa::path(get, path = "/api/v1/mails/{id}", tag = "identity", extensions(("x-permission" = json!("users.read"))),
    params(("id" = String, Path, description = "Id"), AtParams), responses((status = 200, body = One<MailAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    let shown = state.app.mail(&caller, &id).await?;
    Reply::entity(StatusCode::OK, "mail", &shown.mail, attributes(&shown))
}

/// Let a mail's link lead nowhere
#[utoipa::path(delete, path = "/api/v1/mails/{id}", tag = "identity", extensions(("x-permission" = json!("users.update"))),
    params(("id" = String, Path, description = "Id")), responses((status = 204)))]
async fn revoke(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.revoke_mail(&caller, &id).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}
