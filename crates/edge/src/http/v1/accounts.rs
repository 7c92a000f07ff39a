//! `/api/v1/auth`, the part about accounts: making one, another password, the own address.

use crate::http::access::{By, Stranger};
use crate::http::body::{Input, OpenInput};
use crate::http::envelope::{One, Outcome, Reply, Resource};
use crate::http::state::EdgeState;
use app::Caller;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(join))
        .routes(routes!(forgot_password))
        .routes(routes!(reset_password))
        .routes(routes!(set_email, remove_email))
        .routes(routes!(confirm_email))
}

/// Where a mail is to go.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Register {
    /// Your address.
    #[schema(max_length = 254)]
    email: String,
}

/// Whose password is to change.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ForgotPassword {
    /// The address of the account.
    #[schema(max_length = 254)]
    email: String,
    /// Slug of the tenant; `default` when nothing is said.
    tenant: Option<String>,
}

/// An account to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Join {
    /// What stands behind `token=` in the link of the invitation.
    #[schema(max_length = 256)]
    token: String,
    /// How you want to sign in.
    #[schema(max_length = 128)]
    username: String,
    /// With which password.
    #[schema(min_length = 8, max_length = 256)]
    password: String,
}

/// Another password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ResetPassword {
    /// What stands behind `token=` in the link of the mail.
    #[schema(max_length = 256)]
    token: String,
    /// The next password.
    #[schema(min_length = 8, max_length = 256)]
    password: String,
}

/// An address that is to be yours.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetEmail {
    /// The address.
    #[schema(max_length = 254)]
    email: String,
    /// Your password: whoever reads mails at your address can set another one.
    #[schema(max_length = 256)]
    password: String,
}

/// A proof that a mail arrived.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ConfirmEmail {
    /// What stands behind `token=` in the link of the mail.
    #[schema(max_length = 256)]
    token: String,
}

/// What happens next.
#[derive(Serialize, ToSchema)]
struct MailPromise {
    /// In words.
    message: &'static str,
}

/// An account that was made.
#[derive(Serialize, ToSchema)]
struct Joined {
    /// How you sign in.
    username: String,
    /// Your address, if the invitation came there.
    email: Option<String>,
    /// Roles by name.
    roles: Vec<String>,
}

fn promised(message: &'static str) -> Outcome {
    Reply::data(StatusCode::ACCEPTED, &Resource { id: "mail".into(), kind: "mail_promise", attributes: MailPromise { message } })
}

/// Ask for an account, where everybody may: the way to it comes by mail
#[utoipa::path(post, path = "/api/v1/auth/register", tag = "identity", extensions(("x-permission" = json!("open"))),
    request_body = Register, responses((status = 202, body = One<MailPromise>)))]
async fn register(
    State(state): State<Arc<EdgeState>>,
    Stranger(context): Stranger,
    OpenInput(body): OpenInput<Register>,
) -> Outcome {
    state.app.register(&body.email, context).await?;
    promised("If this address can have an account, a mail is on its way to it.")
}

/// Make the account that you were invited to
#[utoipa::path(post, path = "/api/v1/auth/invitations/accept", tag = "identity", extensions(("x-permission" = json!("open"))),
    request_body = Join, responses((status = 201, body = One<Joined>)))]
async fn join(State(state): State<Arc<EdgeState>>, Stranger(context): Stranger, OpenInput(body): OpenInput<Join>) -> Outcome {
    let user = state.app.join(&body.token, body.username, body.password, context).await?;
    let attributes = Joined {
        username: user.state.name().to_owned(),
        email: user.state.address().map(str::to_owned),
        roles: user.state.roles.clone(),
    };
    Reply::data(StatusCode::CREATED, &Resource { id: user.stream, kind: "user", attributes })
}

/// Ask for another password: the way to it comes by mail
#[utoipa::path(post, path = "/api/v1/auth/password-resets", tag = "identity", extensions(("x-permission" = json!("open"))),
    request_body = ForgotPassword, responses((status = 202, body = One<MailPromise>)))]
async fn forgot_password(
    State(state): State<Arc<EdgeState>>,
    Stranger(context): Stranger,
    OpenInput(body): OpenInput<ForgotPassword>,
) -> Outcome {
    state.app.forgot_password(body.tenant.as_deref(), &body.email, context).await?;
    promised("If an account has this address, a mail is on its way to it.")
}

/// Set another password, with the link of a mail; sessions end, a second factor stays
#[utoipa::path(post, path = "/api/v1/auth/password-resets/confirm", tag = "identity", extensions(("x-permission" = json!("open"))),
    request_body = ResetPassword, responses((status = 204)))]
async fn reset_password(
    State(state): State<Arc<EdgeState>>,
    Stranger(context): Stranger,
    OpenInput(body): OpenInput<ResetPassword>,
) -> Outcome {
    state.app.reset_password(&body.token, body.password, context).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}

/// Say which address is yours: it is, once you followed the link of the mail that goes there
#[utoipa::path(put, path = "/api/v1/auth/email", tag = "identity", extensions(("x-permission" = json!("profile.update"))),
    request_body = SetEmail, responses((status = 202, body = One<MailPromise>)))]
async fn set_email(State(state): State<Arc<EdgeState>>, input: Input<SetEmail>) -> Outcome {
    let caller = Caller { idempotency: None, if_match: None, ..input.by };
    state.app.begin_email(&caller, &input.body.email, &input.body.password).await?;
    promised("A mail is on its way to this address; it is yours once you followed the link.")
}

/// Forget your address
#[utoipa::path(delete, path = "/api/v1/auth/email", tag = "identity", extensions(("x-permission" = json!("profile.update"))),
    responses((status = 204)))]
async fn remove_email(State(state): State<Arc<EdgeState>>, By(caller): By) -> Outcome {
    state.app.remove_email(&caller).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}

/// Show that a mail reached you
#[utoipa::path(post, path = "/api/v1/auth/email/confirm", tag = "identity", extensions(("x-permission" = json!("open"))),
    request_body = ConfirmEmail, responses((status = 204)))]
async fn confirm_email(
    State(state): State<Arc<EdgeState>>,
    Stranger(context): Stranger,
    OpenInput(body): OpenInput<ConfirmEmail>,
) -> Outcome {
    state.app.confirm_email(&body.token, context).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}
