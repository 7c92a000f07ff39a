//! A person connects an MCP server to an account: a page that says what will happen, the way to the server's authorization server,
//! and the way back. And the document by which others know Keiko as their client.

use super::super::state::EdgeState;
use super::anonymous;
use super::authorize::{Cookies, OwnForm, browser, redirect, sign_in_page, signed_in};
use super::form::Fields;
use super::metadata::public;
use super::pages::{Page, leads_to, message};
use app::{ConnectAnswer, ConnectPlan, Connected};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use kernel::{Kind, Rejection};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

const PURPOSE: &str = "to connect a tool server to an account";

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(connect, connect_by_post))
        .routes(routes!(connected))
        .routes(routes!(connected_at))
        .routes(routes!(document))
}

fn refused(rejection: &Rejection) -> Response {
    let status = match rejection.kind {
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    message(status, "This did not work", &format!("{} {}", rejection.message, rejection.hint))
}

fn done(connected: &Connected) -> Response {
    let text = format!("The tool server '{}' is connected to your account. You can close this page.", connected.server);
    let page = Page::new("Connected", "").text(&text);
    let page = match &connected.wants_everybody {
        None => page,
        Some(url) => page
            .warning("Its tools cannot be called yet: they are listed with an account that somebody connects for everybody.")
            .link(url, "Connect one, if you may change servers"),
    };
    page.answer(StatusCode::OK)
}

/// Whether the account is to serve everybody.
fn is_for_everybody(fields: &Fields) -> bool {
    fields.get("for").as_deref() == Some("everybody")
}

fn plan_page(plan: &ConnectPlan, name: &str, slug: &str) -> Page {
    let page = Page::new(&format!("Connect {}?", plan.server), &leads_to(&plan.leads_to)).text(&format!(
        "You are signed in as {name} ({slug}). The tool server '{}' at {} will be used with an account of yours.",
        plan.server, plan.url
    ));
    let page = if plan.is_for_everybody {
        page.warning("Everybody here who may call its tools will call them with this account.")
    } else {
        page.text("Only calls that you make, or that are made for you, will use this account.")
    };
    let page = page.text(&format!("You will be sent to {}, which asks whether you allow it.", plan.leads_to));
    // Many run their pages elsewhere than they are named.
    let page = if leads_to(&plan.issuer) == leads_to(&plan.leads_to) {
        page
    } else {
        page.text(&format!("It answers for {}.", plan.issuer))
    };
    let page = match plan.scopes.is_empty() {
        true => page,
        false => page
            .text("Keiko will ask there for these rights:")
            .list(&plan.scopes.iter().map(|scope| (String::new(), scope.clone())).collect::<Vec<_>>()),
    };
    page.hidden("step", "connect")
        .hidden("plan", &plan.mark)
        .button("decision", "deny", "Cancel")
        .button("decision", "connect", "Connect")
}

/// Connect an MCP server to an account (a page)
#[utoipa::path(get, path = "/oauth/connect/{id}", tag = "oauth", extensions(("x-permission" = json!("open"))),
    params(("id" = String, Path, description = "Id or name of the server"),
        ("for" = Option<String>, Query, description = "`everybody`: the account serves all callers")),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn connect(State(state): State<Arc<EdgeState>>, Path(server): Path<String>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let fields = Fields::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let cookies = Cookies::of(&state, &parts);
    let Some(browser) = browser(&state, &cookies).await else {
        return cookies.page(&state, StatusCode::OK, sign_in_page(&state, "", "", "", PURPOSE));
    };
    match state.app.connect_plan(&browser, anonymous(&parts), &server, is_for_everybody(&fields)).await {
        Ok(plan) => cookies.page(&state, StatusCode::OK, plan_page(&plan, &browser.name, &browser.slug)),
        Err(rejection) => refused(&rejection),
    }
}

/// Connect an MCP server to an account (the form)
#[utoipa::path(post, path = "/oauth/connect/{id}", tag = "oauth", extensions(("x-permission" = json!("open"))),
    params(("id" = String, Path, description = "Id or name of the server")),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 303), (status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn connect_by_post(
    State(state): State<Arc<EdgeState>>,
    Path(server): Path<String>,
    OwnForm { form, mut cookies }: OwnForm,
) -> Response {
    let here = form.parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    if matches!(form.fields.get("step").as_deref(), Some("login" | "mfa")) {
        return match signed_in(&state, &form, &mut cookies, "", PURPOSE).await {
            Ok(()) => cookies.with(redirect(&here)),
            Err((status, page)) => cookies.page(&state, status, page),
        };
    }
    let Some(browser) = browser(&state, &cookies).await else { return redirect(&here) };
    if form.fields.get("decision").as_deref() != Some("connect") {
        return message(StatusCode::OK, "Not connected", "Nothing was changed. You can close this page.");
    }
    let query = Fields::parse(form.parts.uri.query().unwrap_or_default().as_bytes());
    let mark = form.fields.get("plan").unwrap_or_default();
    match state.app.connect_begin(&browser, anonymous(&form.parts), &server, is_for_everybody(&query), &mark).await {
        Ok(uri) => redirect(&uri),
        Err(rejection) => refused(&rejection),
    }
}

/// Where authorization servers of MCP servers send people back to
#[utoipa::path(get, path = "/oauth/connect-back", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn connected(State(state): State<Arc<EdgeState>>, request: Request) -> Response {
    back(&state, request).await
}

/// The same for one authorization server
#[utoipa::path(get, path = "/oauth/connect-back/{id}", tag = "oauth", extensions(("x-permission" = json!("open"))),
    params(("id" = String, Path, description = "Tells authorization servers apart")),
    responses((status = 200, body = String, content_type = "text/html"), (status = 400, description = "Refused.", content((String = "text/html"), (Value = "application/json")))))]
async fn connected_at(State(state): State<Arc<EdgeState>>, request: Request) -> Response {
    back(&state, request).await
}

async fn back(state: &EdgeState, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let fields = Fields::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let cookies = Cookies::of(state, &parts);
    let Some(browser) = browser(state, &cookies).await else {
        return message(
            StatusCode::BAD_REQUEST,
            "This did not work",
            "You are not signed in any more. Sign in, and begin again.",
        );
    };
    if fields.twice().is_some() {
        return message(StatusCode::BAD_REQUEST, "This did not work", "The answer says something twice.");
    }
    let answer = ConnectAnswer {
        back: format!("{}{}", state.app.issuer(), parts.uri.path()),
        state: fields.get("state").unwrap_or_default(),
        code: fields.get("code"),
        issuer: fields.get("iss"),
        error: fields.get("error"),
    };
    match state.app.connect_finish(&browser, anonymous(&parts), answer).await {
        Ok(connected) => done(&connected),
        Err(rejection) => refused(&rejection),
    }
}

/// Keiko as a client of others' authorization servers (Client ID Metadata Document)
#[utoipa::path(get, path = "/oauth/client.json", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = Value, content_type = "application/json")))]
async fn document(State(state): State<Arc<EdgeState>>) -> Response {
    public(state.app.own_client_document())
}
