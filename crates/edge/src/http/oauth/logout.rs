//! Signing out at a browser (OpenID Connect RP-Initiated Logout).

use super::super::state::EdgeState;
use super::anonymous;
use super::authorize::{Cookies, redirect};
use super::form::{Fields, Form};
use super::pages::{Page, message};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use domain::identity::oauth::is_registered;
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
    let app = &state.app;
    let mut cookies = Cookies::of(state, parts);
    let hint = match fields.get("id_token_hint") {
        Some(token) => app.id_token_hint(&token).await.ok().flatten(),
        None => None,
    };
    let client = fields.get("client_id").or(hint.as_ref().map(|(_, client)| client.clone()));
    let is_other = hint.as_ref().is_some_and(|(_, aud)| client.as_ref() != Some(aud));
    let client = match client.filter(|_| !is_other) {
        Some(name) => app.client_by_name(&name).await.ok().flatten(),
        None => None,
    };
    let back = fields.get("post_logout_redirect_uri");
    let known = client.map(|client| client.profile.post_logout_redirect_uris).unwrap_or_default();
    if back.as_ref().is_some_and(|back| !is_registered(&known, back)) {
        return message(
            StatusCode::BAD_REQUEST,
            "Not signed out",
            "The address to go to afterwards is not registered for this client.",
        );
    }
    let browser = match &cookies.login {
        Some(cookie) => app.browser(cookie).await.ok().flatten(),
        None => None,
    };
    if let Some(browser) = browser {
        let is_hinted = hint.is_some_and(|(sub, _)| sub == browser.user.to_string());
        // Another site must not sign people out by a link: without proof that it knows the person, the person is asked.
        if !is_hinted && !cookies.is_form_good(state, fields) {
            let page = Page::new("Sign out", "").text(&format!("You are signed in as {} ({}).", browser.name, browser.slug));
            let page = page.hidden("step", "logout").kept(fields).button("decision", "allow", "Sign out");
            return cookies.page(state, StatusCode::OK, page);
        }
        if let Err(rejection) = app.sign_out(&browser, anonymous(parts)).await {
            return message(StatusCode::SERVICE_UNAVAILABLE, "Not signed out", &rejection.message);
        }
    }
    cookies.forget_login();
    match back {
        Some(back) => {
            let state_text = fields.get("state").map(|state| {
                let pair = form_urlencoded::Serializer::new(String::new()).append_pair("state", &state).finish();
                format!("{}{pair}", if back.contains('?') { '&' } else { '?' })
            });
            cookies.with(redirect(&format!("{back}{}", state_text.unwrap_or_default())))
        }
        None => cookies.with(message(StatusCode::OK, "Signed out", "You are signed out here.")),
    }
}
