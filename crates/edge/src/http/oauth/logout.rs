//! Signing out at a browser (OpenID Connect RP-Initiated Logout).

use super::super::state::EdgeState;
use super::anonymous;
use super::authorize::{Cookies, redirect};
use super::form::{Fields, Form};
use super::pages::{Page, message};
use app::oauth::Hint;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use domain::identity::oauth::is_registered;
use kernel::Rejection;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(logout, logout_by_post))
}

/// Sign out (a page)
#[utoipa::path(get, path = "/oauth/logout", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = String, content_type = "text/html"), (status = 303),
        (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn logout(State(state): State<Arc<EdgeState>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let fields = Fields::parse(parts.uri.query().unwrap_or_default().as_bytes());
    ended(&state, &parts, &fields).await
}

/// Sign out (a form)
#[utoipa::path(post, path = "/oauth/logout", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = String, content_type = "text/html"), (status = 303),
        (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn logout_by_post(State(state): State<Arc<EdgeState>>, form: Form) -> Response {
    ended(&state, &form.parts, &form.fields).await
}

async fn ended(state: &EdgeState, parts: &Parts, fields: &Fields) -> Response {
    let mut cookies = Cookies::of(state, parts);
    match signed_out(state, parts, fields, &mut cookies).await {
        Ok(Leaving::Asked(page)) => cookies.page(state, StatusCode::OK, page),
        Ok(Leaving::To(Some(back))) => cookies.with(redirect(&back)),
        Ok(Leaving::To(None)) => cookies.with(message(StatusCode::OK, "Signed out", "You are signed out here.")),
        Err(Refused::Address) => {
            let text = "The address to go to afterwards is not registered for this client.";
            message(StatusCode::BAD_REQUEST, "Not signed out", text)
        }
        Err(Refused::Failed(rejection)) => message(StatusCode::SERVICE_UNAVAILABLE, "Not signed out", &rejection.message),
    }
}

/// How it goes on.
enum Leaving {
    /// The person is asked first.
    Asked(Page),
    /// Done; the browser goes there.
    To(Option<String>),
}

enum Refused {
    Address,
    Failed(Rejection),
}

impl From<Rejection> for Refused {
    fn from(rejection: Rejection) -> Self {
        Refused::Failed(rejection)
    }
}

async fn signed_out(state: &EdgeState, parts: &Parts, fields: &Fields, cookies: &mut Cookies) -> Result<Leaving, Refused> {
    let app = &state.app;
    let hint = match fields.get("id_token_hint") {
        Some(token) => app.id_token_hint(&token).await?,
        None => None,
    };
    // A hint that was given to another client than the one that shows it is none.
    let hint = hint.filter(|hint| fields.get("client_id").is_none_or(|named| named == hint.aud));
    let back = checked_address(state, fields, hint.as_ref()).await?;
    // Also when this browser knows nothing of that login any more.
    if let Some(hint) = &hint {
        app.sign_out_hinted(hint, anonymous(parts)).await?;
    }
    let browser = match &cookies.login {
        Some(cookie) => app.browser(cookie).await?,
        None => None,
    };
    if let Some(browser) = browser {
        let is_hinted = hint.is_some_and(|hint| hint.sub == browser.user.to_string());
        // Another site must not sign people out by a link: without proof that it knows the person, the person is asked.
        if !is_hinted && !cookies.is_form_good(state, fields) {
            let page = Page::new("Sign out", "").text(&format!("You are signed in as {} ({}).", browser.name, browser.slug));
            return Ok(Leaving::Asked(page.hidden("step", "logout").kept(fields).button("decision", "allow", "Sign out")));
        }
        app.sign_out(&browser, anonymous(parts)).await?;
    }
    cookies.forget_login();
    Ok(Leaving::To(back))
}

/// Where the browser goes afterwards, if the client is registered for it.
async fn checked_address(state: &EdgeState, fields: &Fields, hint: Option<&Hint>) -> Result<Option<String>, Refused> {
    let Some(back) = fields.get("post_logout_redirect_uri") else { return Ok(None) };
    let client = match fields.get("client_id").or(hint.map(|hint| hint.aud.clone())) {
        Some(name) => state.app.client_by_name(&name).await.ok().flatten(),
        None => None,
    };
    if !client.is_some_and(|client| is_registered(&client.profile.post_logout_redirect_uris, &back)) {
        return Err(Refused::Address);
    }
    let Some(text) = fields.get("state") else { return Ok(Some(back)) };
    let pair = form_urlencoded::Serializer::new(String::new()).append_pair("state", &text).finish();
    Ok(Some(format!("{back}{}{pair}", if back.contains('?') { '&' } else { '?' })))
}
