//! `/api/v1/auth`: sign in, stay signed in, sign out, who am I.

use crate::http::access::{By, Stranger};
use crate::http::body::{Input, OpenInput};
use crate::http::envelope::{Failure, Many, One, Outcome, Reply, Resource};
use crate::http::names::Handle;
use crate::http::state::EdgeState;
use app::TokenPair;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(refresh))
        .routes(routes!(logout))
        .routes(routes!(me))
        .routes(routes!(consents))
        .routes(routes!(revoke_consent))
        .routes(routes!(change_password))
        .routes(routes!(begin_mfa))
        .routes(routes!(confirm_mfa))
        .routes(routes!(step_up))
        .routes(routes!(remove_mfa))
}

/// What a login needs.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Login {
    /// User name.
    username: String,
    /// Password.
    password: String,
    /// Slug of the tenant; `default` when nothing is said.
    tenant: Option<String>,
    /// The code of the app, or a recovery code, for an account with a second factor.
    #[schema(max_length = 64)]
    code: Option<String>,
}

/// A code of a second factor.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MfaCode {
    /// The six digits that the app shows, or a recovery code.
    #[schema(min_length = 1, max_length = 64)]
    code: String,
}

/// Another password for oneself.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangePassword {
    /// The present one.
    #[schema(max_length = 256)]
    current: String,
    /// The next one.
    #[schema(min_length = 8, max_length = 256)]
    new: String,
}

/// A second factor that is being set up.
#[derive(Serialize, ToSchema)]
struct MfaEnrolment {
    /// The secret as people type it into an app, base32.
    secret: String,
    /// The same for a QR code.
    uri: String,
}

/// The codes that stand in for a lost app, each once.
#[derive(Serialize, ToSchema)]
struct RecoveryCodes {
    /// Shown only here.
    recovery_codes: Vec<String>,
}

/// What a refresh needs.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Refresh {
    /// The latest refresh token of the session.
    refresh_token: String,
}

/// No fields.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Empty {}

/// Tokens of a session.
#[derive(Serialize, ToSchema)]
struct Tokens {
    /// JWT for `Authorization: Bearer`.
    access_token: String,
    /// Good once, for the next tokens.
    refresh_token: String,
    /// `Bearer`
    token_type: &'static str,
    /// Seconds that the access token is good.
    expires_in: u64,
}

/// The caller.
#[derive(Serialize, ToSchema)]
struct Me {
    /// `user`, `agent` or `service`
    kind: &'static str,
    /// What it is called.
    name: String,
    /// The user name, unless it is an agent.
    username: Option<String>,
    /// Slug of the tenant.
    tenant: String,
    /// Roles by name.
    roles: Vec<String>,
    /// What it may do, cut to what the credential allows.
    permissions: Vec<String>,
}

fn tokens(pair: TokenPair) -> Outcome {
    // A session's tokens are no entity of their own: the id names the kind of answer.
    let attributes = Tokens {
        access_token: pair.access_token,
        refresh_token: pair.refresh_token,
        token_type: "Bearer",
        expires_in: pair.expires_in_s,
    };
    Reply::data(StatusCode::OK, &Resource { id: "tokens".into(), kind: "tokens", attributes })
}

/// Sign in
#[utoipa::path(post, path = "/api/v1/auth/login", tag = "identity", extensions(("x-permission" = json!("open"))),
    request_body = Login, responses((status = 200, body = One<Tokens>)))]
async fn login(State(state): State<Arc<EdgeState>>, Stranger(context): Stranger, OpenInput(body): OpenInput<Login>) -> Outcome {
    tokens(state.app.login(body.tenant.as_deref(), &body.username, &body.password, body.code.as_deref(), context).await?)
}

/// Get the next tokens of a session
///
/// A refresh token is good once. Presenting an older one ends the session.
#[utoipa::path(post, path = "/api/v1/auth/refresh", tag = "identity", extensions(("x-permission" = json!("open"))),
    request_body = Refresh, responses((status = 200, body = One<Tokens>)))]
async fn refresh(
    State(state): State<Arc<EdgeState>>,
    Stranger(context): Stranger,
    OpenInput(body): OpenInput<Refresh>,
) -> Outcome {
    tokens(state.app.refresh(&body.refresh_token, context).await?)
}

/// Sign out: the session's tokens stop working at once
#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "identity", extensions(("x-permission" = json!("profile.update"))),
    request_body = Empty, responses((status = 200, body = One<Me>)))]
async fn logout(State(state): State<Arc<EdgeState>>, input: Input<Empty>) -> Outcome {
    let caller = app::Caller { idempotency: None, ..input.by };
    state.app.logout(&caller).await?;
    profile(&caller)
}

/// What you allowed a client.
#[derive(Serialize, ToSchema)]
struct ConsentAttributes {
    /// The client's name in requests.
    client_id: String,
    /// What you allowed.
    scopes: Vec<String>,
    /// When it changed last.
    updated_at: String,
}

/// List what you allowed OAuth clients
#[utoipa::path(get, path = "/api/v1/auth/consents", tag = "identity", extensions(("x-permission" = json!("profile.read"))),
    responses((status = 200, body = Many<ConsentAttributes>)))]
async fn consents(State(state): State<Arc<EdgeState>>, By(caller): By) -> Outcome {
    let found = state.app.consents(&caller).await?;
    let items: Vec<_> = found
        .iter()
        .map(|consent| Resource {
            id: consent.stream.clone(),
            kind: "consent",
            attributes: ConsentAttributes {
                client_id: consent.state.client.clone(),
                scopes: consent.state.scopes.iter().cloned().collect(),
                updated_at: consent.updated_at.to_string(),
            },
        })
        .collect();
    Reply::data(StatusCode::OK, &items)
}

/// Take back what you allowed an OAuth client: everything that it got ends at once
#[utoipa::path(delete, path = "/api/v1/auth/consents/{id}", tag = "identity", extensions(("x-permission" = json!("profile.update"))),
    params(("id" = String, Path, description = "Id of the consent")), responses((status = 204)))]
async fn revoke_consent(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.revoke_consent(&caller, &id).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}

/// Change your own password; your other sessions end
#[utoipa::path(post, path = "/api/v1/auth/password", tag = "identity", extensions(("x-permission" = json!("profile.update"))),
    request_body = ChangePassword, responses((status = 200, body = One<Me>)))]
async fn change_password(State(state): State<Arc<EdgeState>>, input: Input<ChangePassword>) -> Outcome {
    let caller = app::Caller { idempotency: None, if_match: None, ..input.by };
    state.app.change_own_password(&caller, &input.body.current, input.body.new).await?;
    profile(&caller)
}

/// Begin to set up a second factor: nothing changes until a code of the app is confirmed
#[utoipa::path(post, path = "/api/v1/auth/mfa/actions/begin", tag = "identity", extensions(("x-permission" = json!("profile.update"))),
    request_body = Empty, responses((status = 200, body = One<MfaEnrolment>)))]
async fn begin_mfa(State(state): State<Arc<EdgeState>>, input: Input<Empty>) -> Outcome {
    let begun = state.app.begin_mfa(&input.by).await?;
    let attributes = MfaEnrolment { secret: begun.secret, uri: begun.uri };
    Reply::data(StatusCode::OK, &Resource { id: "mfa".into(), kind: "mfa_enrolment", attributes })
}

/// Confirm a second factor with a code of the app; answers the recovery codes
#[utoipa::path(post, path = "/api/v1/auth/mfa/actions/confirm", tag = "identity", extensions(("x-permission" = json!("profile.update"))),
    request_body = MfaCode, responses((status = 200, body = One<RecoveryCodes>)))]
async fn confirm_mfa(State(state): State<Arc<EdgeState>>, input: Input<MfaCode>) -> Outcome {
    let recovery_codes = state.app.confirm_mfa(&input.by, &input.body.code).await?;
    Reply::data(
        StatusCode::OK,
        &Resource { id: "mfa".into(), kind: "recovery_codes", attributes: RecoveryCodes { recovery_codes } },
    )
}

/// Prove once more that it is you: for a while this session may do what wants a fresh proof
#[utoipa::path(post, path = "/api/v1/auth/mfa/actions/step-up", tag = "identity", extensions(("x-permission" = json!("profile.update"))),
    request_body = MfaCode, responses((status = 200, body = One<Me>)))]
async fn step_up(State(state): State<Arc<EdgeState>>, input: Input<MfaCode>) -> Outcome {
    state.app.step_up(&app::Caller { idempotency: None, ..input.by.clone() }, &input.body.code).await?;
    profile(&input.by)
}

/// Remove your second factor, with a code of it
#[utoipa::path(post, path = "/api/v1/auth/mfa/actions/remove", tag = "identity", extensions(("x-permission" = json!("profile.update"))),
    request_body = MfaCode, responses((status = 200, body = One<Me>)))]
async fn remove_mfa(State(state): State<Arc<EdgeState>>, input: Input<MfaCode>) -> Outcome {
    state.app.remove_own_mfa(&input.by, &input.body.code).await?;
    profile(&input.by)
}

/// Who am I
#[utoipa::path(get, path = "/api/v1/auth/me", tag = "identity", extensions(("x-permission" = json!("profile.read"))),
    responses((status = 200, body = One<Me>)))]
async fn me(By(caller): By) -> Result<Reply, Failure> {
    profile(&caller)
}

fn profile(caller: &app::Caller) -> Outcome {
    let actor = &caller.actor;
    let attributes = Me {
        kind: actor.who.kind.as_str(),
        name: actor.name.clone(),
        username: actor.user.map(|_| actor.name.clone()),
        tenant: actor.tenant_slug.clone(),
        roles: actor.roles.clone(),
        permissions: actor.permissions.clone(),
    };
    Reply::data(StatusCode::OK, &Resource { id: actor.who.id.clone(), kind: actor.who.kind.as_str(), attributes })
}
