//! What people meet who follow the link of a mail, or ask for one: an account, another password, an address.

use super::super::state::EdgeState;
use super::anonymous;
use super::authorize::{Cookies, OwnForm};
use super::form::Fields;
use super::pages::{Page, message};
use app::Registration;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use domain::identity::mail::PurposeKind;
use kernel::{Kind, Rejection};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(register, register_by_post))
        .routes(routes!(join, join_by_post))
        .routes(routes!(reset, reset_by_post))
        .routes(routes!(password, password_by_post))
        .routes(routes!(verify, verify_by_post))
}

fn parsed(request: Request) -> (Parts, Fields) {
    let (parts, _) = request.into_parts();
    let fields = Fields::parse(parts.uri.query().unwrap_or_default().as_bytes());
    (parts, fields)
}

/// A refusal, for people.
fn status(rejection: &Rejection) -> StatusCode {
    match rejection.kind {
        Kind::Limited => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// The end of the way, which is where people sign in.
fn done(title: &str, text: &str) -> Response {
    Page::new(title, "").text(text).link("/", "Sign in").answer(StatusCode::OK)
}

/// A refusal that ends the way.
fn over(rejection: &Rejection) -> Response {
    message(status(rejection), "This did not work", &format!("{} {}", rejection.message, rejection.hint))
}

/// The page again, with what is wrong, or the end of the way.
fn again(state: &EdgeState, cookies: Cookies, page: Page, rejection: &Rejection) -> Response {
    if matches!(rejection.code, "LINK_INVALID" | "REGISTRATION_CLOSED" | "MAIL_NOT_CONFIGURED") {
        return over(rejection);
    }
    let wrong = rejection.details.get("errors").and_then(|errors| errors.pointer("/0/message")).and_then(|text| text.as_str());
    let text = wrong.map_or_else(|| rejection.message.clone(), |wrong| format!("What you entered {wrong}."));
    cookies.page(state, status(rejection), page.warning(&text))
}

fn address_page(title: &str, text: &str) -> Page {
    Page::new(title, "").text(text).field("email", "E-mail address", "email", "email", "")
}

fn register_page() -> Page {
    address_page("Make an account", "Enter your address. The way to your account comes by mail.").button("go", "send", "Send")
}

fn reset_page(tenant: &str) -> Page {
    address_page("Another password", "Enter the address of your account. The way to another password comes by mail.")
        .field("tenant", "Tenant", "text", "organization", if tenant.is_empty() { "default" } else { tenant })
        .button("go", "send", "Send")
}

fn join_page(token: &str, address: Option<&str>, username: &str) -> Page {
    let page = Page::new("Make your account", "");
    let page = match address {
        Some(address) => page.text(&format!("for {address}")),
        None => page,
    };
    page.hidden("token", token)
        .field("username", "User name", "text", "username", username)
        .field("password", "Password", "password", "new-password", "")
        .button("go", "join", "Make the account")
}

fn password_page(token: &str, account: Option<&str>) -> Page {
    let page = Page::new("Another password", "");
    let page = if let Some(account) = account { page.text(&format!("For the account '{account}'.")) } else { page };
    page.text("You will be signed out everywhere else.")
        .hidden("token", token)
        .field("password", "New password", "password", "new-password", "")
        .button("go", "set", "Set the password")
}

fn sent() -> Response {
    let text = "If this address can be used here, a mail is on its way to it. You may close this page.";
    message(StatusCode::ACCEPTED, "Look into your mailbox", text)
}

/// Ask for an account (a page)
#[utoipa::path(get, path = "/account/register", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn register(State(state): State<Arc<EdgeState>>, request: Request) -> Response {
    let (parts, _) = parsed(request);
    match state.app.registration() == Registration::Open && state.app.has_mail() {
        true => Cookies::of(&state, &parts).page(&state, StatusCode::OK, register_page()),
        false => message(StatusCode::BAD_REQUEST, "Not here", "Nobody makes an account here without being invited."),
    }
}

/// Ask for an account (the form)
#[utoipa::path(post, path = "/account/register", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 202, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn register_by_post(State(state): State<Arc<EdgeState>>, OwnForm { form, cookies }: OwnForm) -> Response {
    match state.app.register(&form.fields.get("email").unwrap_or_default(), anonymous(&form.parts)).await {
        Ok(()) => sent(),
        Err(rejection) => again(&state, cookies, register_page(), &rejection),
    }
}

/// Make the account of an invitation (a page)
#[utoipa::path(get, path = "/account/join", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn join(State(state): State<Arc<EdgeState>>, request: Request) -> Response {
    let (parts, fields) = parsed(request);
    let token = fields.get("token").unwrap_or_default();
    match state.app.look_at_link(&token, PurposeKind::Invitation, &anonymous(&parts)).await {
        Ok((address, _)) => Cookies::of(&state, &parts).page(&state, StatusCode::OK, join_page(&token, address.as_deref(), "")),
        Err(rejection) => over(&rejection),
    }
}

/// Make the account of an invitation (the form)
#[utoipa::path(post, path = "/account/join", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn join_by_post(State(state): State<Arc<EdgeState>>, OwnForm { form, cookies }: OwnForm) -> Response {
    let get = |name| form.fields.get(name).unwrap_or_default();
    let (token, username) = (get("token"), get("username"));
    match state.app.join(&token, username.clone(), get("password"), anonymous(&form.parts)).await {
        Ok(user) => {
            let text = format!("You can sign in as {}, here or in whatever application sent you.", user.state.name());
            done("Your account is there", &text)
        }
        Err(rejection) => again(&state, cookies, join_page(&token, None, &username), &rejection),
    }
}

/// Ask for another password (a page)
#[utoipa::path(get, path = "/account/reset", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn reset(State(state): State<Arc<EdgeState>>, request: Request) -> Response {
    let (parts, fields) = parsed(request);
    match state.app.has_mail() {
        true => {
            let page = reset_page(&fields.get("tenant").unwrap_or_default());
            Cookies::of(&state, &parts).page(&state, StatusCode::OK, page)
        }
        false => {
            message(StatusCode::BAD_REQUEST, "Not here", "This server sends no mail. An administrator can set another password.")
        }
    }
}

/// Ask for another password (the form)
#[utoipa::path(post, path = "/account/reset", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 202, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn reset_by_post(State(state): State<Arc<EdgeState>>, OwnForm { form, cookies }: OwnForm) -> Response {
    let (email, tenant) = (form.fields.get("email").unwrap_or_default(), form.fields.get("tenant"));
    match state.app.forgot_password(tenant.as_deref(), &email, anonymous(&form.parts)).await {
        Ok(()) => sent(),
        Err(rejection) => again(&state, cookies, reset_page(&tenant.unwrap_or_default()), &rejection),
    }
}

/// Set another password (a page)
#[utoipa::path(get, path = "/account/password", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn password(State(state): State<Arc<EdgeState>>, request: Request) -> Response {
    let (parts, fields) = parsed(request);
    let token = fields.get("token").unwrap_or_default();
    match state.app.look_at_link(&token, PurposeKind::Reset, &anonymous(&parts)).await {
        Ok((_, account)) => Cookies::of(&state, &parts).page(&state, StatusCode::OK, password_page(&token, account.as_deref())),
        Err(rejection) => over(&rejection),
    }
}

/// Set another password (the form)
#[utoipa::path(post, path = "/account/password", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn password_by_post(State(state): State<Arc<EdgeState>>, OwnForm { form, cookies }: OwnForm) -> Response {
    let get = |name| form.fields.get(name).unwrap_or_default();
    let token = get("token");
    match state.app.reset_password(&token, get("password"), anonymous(&form.parts)).await {
        Ok(()) => done("Your password is set", "Sign in with it from now on."),
        Err(rejection) => again(&state, cookies, password_page(&token, None), &rejection),
    }
}

/// Show that a mail reached you (a page)
#[utoipa::path(get, path = "/account/verify", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn verify(State(state): State<Arc<EdgeState>>, request: Request) -> Response {
    let (parts, fields) = parsed(request);
    let token = fields.get("token").unwrap_or_default();
    match state.app.look_at_link(&token, PurposeKind::Verification, &anonymous(&parts)).await {
        Ok((address, account)) => {
            let (address, account) = (address.unwrap_or_default(), account.unwrap_or_default());
            let page = Page::new("Are both yours?", "")
                .text(&format!("The account '{account}' is to have the address {address}."))
                .text("Say yes only if the account is yours: whoever has it could pass for you elsewhere.")
                .hidden("token", &token)
                .button("go", "yes", "Yes, both are mine");
            Cookies::of(&state, &parts).page(&state, StatusCode::OK, page)
        }
        Err(rejection) => over(&rejection),
    }
}

/// Show that a mail reached you (the form)
#[utoipa::path(post, path = "/account/verify", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn verify_by_post(State(state): State<Arc<EdgeState>>, OwnForm { form, .. }: OwnForm) -> Response {
    match state.app.confirm_email(&form.fields.get("token").unwrap_or_default(), anonymous(&form.parts)).await {
        Ok(()) => done("This address is yours", "It belongs to your account from now on."),
        Err(rejection) => over(&rejection),
    }
}
