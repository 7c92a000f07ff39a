//! Who may call a route: declared where the route is, checked here, before anything else happens.

use super::body::conditional;
use super::envelope::{Failure, LoggedActor, RequestNames, limit_headers};
use super::state::EdgeState;
use app::{App, Caller, RouteClass, Standing};
use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, header, request::Parts};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use domain::policy::{Reach, is_permission};
use engine::Context;
use kernel::{Actor, Kind, Origin, Problem, Rejection};
use serde_json::Value;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

/// What a route asks of its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing: health, metadata, login.
    Open,
    /// This permission.
    Permission(String),
}

/// The word in the API document for a route that asks nothing.
const OPEN: &str = "open";
/// Where a route declares its permission in the API document.
pub(super) const EXTENSION: &str = "x-permission";
const CLIENT_CHARS_MAX: usize = 200;

/// What every route asks, by method and path. Fails on a route that does not say.
pub(super) fn table(document: &Value) -> Result<BTreeMap<(String, String), Access>, String> {
    let mut table = BTreeMap::new();
    let paths = document["paths"].as_object().ok_or("the API document has no paths")?;
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().into_iter().flatten() {
            let declared = operation[EXTENSION].as_str();
            let access = match declared {
                Some(OPEN) => Access::Open,
                Some(permission) if is_permission(permission) && !permission.ends_with('*') => {
                    Access::Permission(permission.to_owned())
                }
                _ => return Err(format!("{} {path} declares no permission ({EXTENSION})", method.to_uppercase())),
            };
            table.insert((method.to_uppercase(), path.clone()), access);
        }
    }
    Ok(table)
}

/// The names that each route takes in its query string, by method and path.
pub(super) fn query_names(document: &Value) -> BTreeMap<(String, String), Vec<String>> {
    let mut names = BTreeMap::new();
    for (path, operations) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in operations.as_object().into_iter().flatten() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let in_query = parameters.filter(|p| p["in"] == "query").filter_map(|p| p["name"].as_str().map(str::to_owned));
            names.insert((method.to_uppercase(), path.clone()), in_query.collect());
        }
    }
    names
}

/// An unknown name in a query string is an error like an unknown field in a body.
fn check_query(state: &EdgeState, route: &(String, String), query: Option<&str>) -> Result<(), Failure> {
    // OAuth and A2A ask the opposite: what is not known there is left alone.
    if is_page(&route.1) || route.1.starts_with("/a2a/") {
        return Ok(());
    }
    let (Some(query), Some(known)) = (query, state.query_names.get(route)) else { return Ok(()) };
    let unknown = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| !known.iter().any(|k| k == name));
    match unknown {
        None => Ok(()),
        Some((name, _)) => {
            let name: String = name.chars().take(64).collect();
            let message = format!(
                "is no parameter of this route, which takes: {}",
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            );
            Err(Rejection::invalid(&[Problem { pointer: format!("/{name}"), message }]).into())
        }
    }
}

/// Authenticates and authorises, or ends the request.
pub(super) async fn admit(State(state): State<Arc<EdgeState>>, mut request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let (parts, body) = request.into_parts();
    let authorised = authorised(&state, &parts).await;
    if let Err(refused) = &authorised {
        notice(&state, &parts, refused);
    }
    let challenge = authorised.as_ref().err().and_then(|refused| challenge(&state, &parts, refused));
    request = Request::from_parts(parts, body);
    let (logged, standing) = match authorised {
        Ok((None, left)) => (None, left),
        Ok((Some(caller), left)) => {
            let logged = LoggedActor { tenant: caller.actor.tenant_slug.clone(), actor: caller.actor.who.to_string() };
            request.extensions_mut().insert(caller);
            (Some(logged), left)
        }
        Err(Refused { failure, .. }) => {
            let mut response = failure.into_response();
            if let Some(challenge) = challenge.and_then(|text| HeaderValue::from_str(&text).ok()) {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            }
            return with(response, matched, None);
        }
    };
    let mut response = with(next.run(request).await, matched, logged);
    if let Some(standing) = standing {
        let reset_s = standing.reset_ms.div_ceil(1_000);
        limit_headers(response.headers_mut(), standing.limit.into(), standing.remaining.into(), reset_s);
    }
    response
}

/// What a route's requests count as.
fn class(route: &(String, String)) -> RouteClass {
    let (method, path) = (route.0.as_str(), route.1.as_str());
    let is_login = matches!(path, "/api/v1/auth/login" | "/api/v1/auth/refresh" | "/api/v1/auth/register")
        || ["mfa/", "invitations/", "password-resets", "email/"]
            .iter()
            .any(|part| path.starts_with(&format!("/api/v1/auth/{part}")));
    match method {
        _ if is_login || (is_page(path) && method == "POST") => RouteClass::Auth,
        "GET" => RouteClass::Read,
        _ if is_mcp(path) || path.ends_with("/actions/call") => RouteClass::Call,
        _ => RouteClass::Write,
    }
}

/// Whether a route belongs to the authorization server, whose requests are forms.
fn is_page(path: &str) -> bool {
    path.starts_with("/oauth/") || path.starts_with("/account/")
}

/// Whether a path is a door for MCP.
fn is_mcp(path: &str) -> bool {
    ["/mcp", "/sse"].iter().any(|door| path.strip_prefix(door).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Routes that must answer whatever is going on.
fn is_unlimited(path: &str) -> bool {
    matches!(path, "/health" | "/ready")
}

fn address(request: &Parts) -> String {
    let peer = request.extensions.get::<ConnectInfo<SocketAddr>>();
    peer.map(|ConnectInfo(address)| address.ip().to_string()).unwrap_or_default()
}

fn with(mut response: Response, matched: Option<MatchedPath>, logged: Option<LoggedActor>) -> Response {
    if let Some(matched) = matched {
        response.extensions_mut().insert(matched);
    }
    if let Some(logged) = logged {
        response.extensions_mut().insert(logged);
    }
    response
}

/// A request that ends before its handler, with what the client would need.
struct Refused {
    failure: Failure,
    /// The permission that its token lacks.
    lacks: Option<String>,
    /// Who it came from, with the permission that was missing.
    denied: Option<(Box<Actor>, String)>,
}

/// Writes a refusal down.
fn notice(state: &EdgeState, request: &Parts, refused: &Refused) {
    let origin = origin(&request.headers, request.extensions.get::<ConnectInfo<SocketAddr>>());
    let correlation = request.extensions.get::<RequestNames>().map(RequestNames::correlation).unwrap_or_default();
    let route = format!("{} {}", request.method, request.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str));
    match (&refused.denied, refused.failure.status().as_u16()) {
        (Some((actor, permission)), _) => state.app.saw_denied(actor, permission, &route, &origin, &correlation),
        (None, 401) => state.app.saw_stranger(refused.failure.code(), &route, &origin, &correlation),
        _ => {}
    }
}

impl<T: Into<Failure>> From<T> for Refused {
    fn from(failure: T) -> Self {
        Refused { failure: failure.into(), lacks: None, denied: None }
    }
}

/// The `WWW-Authenticate` of a refusal, which leads clients to the authorization server.
fn challenge(state: &EdgeState, request: &Parts, refused: &Refused) -> Option<String> {
    let is_mcp = is_mcp(request.uri.path());
    let shows_something = [header::AUTHORIZATION.as_str(), "x-api-key"].iter().any(|name| request.headers.contains_key(*name));
    let error = match (refused.failure.status().as_u16(), &refused.lacks) {
        (401, _) if refused.failure.code() == "STEP_UP_REQUIRED" => {
            Some(("insufficient_user_authentication", "A fresh proof of a second factor is needed."))
        }
        (401, _) if shows_something => Some(("invalid_token", "The credentials are not valid or have ended.")),
        (401, _) => None,
        (403, Some(_)) => Some(("insufficient_scope", "The token does not allow this.")),
        _ => return None,
    };
    let mut text = super::oauth::challenge(&state.app, is_mcp, error, refused.lacks.as_deref());
    // RFC 9470: what would do.
    if let Some(max_age_s) = refused.failure.detail("max_age_s") {
        text += &format!(", acr_values=\"mfa\", max_age=\"{max_age_s}\"");
    }
    Some(text)
}

async fn authorised(state: &EdgeState, request: &Parts) -> Result<(Option<Caller>, Option<Standing>), Refused> {
    let path = request.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    // HEAD is answered by the GET handler, so it asks the same.
    let method = if request.method == "HEAD" { "GET" } else { request.method.as_str() };
    let route = (method.to_owned(), path.to_owned());
    let permission = match state.access.get(&route) {
        Some(Access::Open) => {
            let class = if class(&route) == RouteClass::Auth { RouteClass::Auth } else { RouteClass::Open };
            let left = if is_unlimited(path) { None } else { state.app.admit_address(&address(request), class)? };
            check_query(state, &route, request.uri.query())?;
            return Ok((None, left));
        }
        Some(Access::Permission(permission)) => permission,
        // A known path with another method: the router answers 405, and tells nothing else.
        None => return Ok((None, None)),
    };
    let (actor, left) = match request.extensions.get::<Recognised>() {
        // The message that it is part of was counted.
        Some(Recognised(actor)) => (actor.as_ref().clone(), None),
        None => known(state, request, &route).await?,
    };
    let reach = state.app.authorise(&actor, permission).map_err(|rejection| {
        let is_limited = actor.token.as_ref().is_some_and(|token| token.scope.is_some());
        let denied = Some((Box::new(actor.clone()), permission.clone()));
        Refused { failure: rejection.into(), lacks: is_limited.then(|| permission.clone()), denied }
    })?;
    if actor.key.is_some() {
        state.app.saw_key(&actor, &origin(&request.headers, request.extensions.get::<ConnectInfo<SocketAddr>>()));
    }
    check_query(state, &route, request.uri.query())?;
    wait_for_position(state, &actor, &request.headers).await?;
    Ok((Some(caller(actor, reach, request)?), left))
}

/// Who asks, if they have not asked too often.
async fn known(state: &EdgeState, request: &Parts, route: &(String, String)) -> Result<(Actor, Option<Standing>), Refused> {
    let address = address(request);
    state.app.check_address(&address)?;
    match authenticate(&state.app, &request.headers, resource(&route.1)).await {
        Ok(actor) => {
            let left = state.app.admit(&actor, class(route))?;
            Ok((actor, left))
        }
        Err(rejection) => {
            if rejection.kind == Kind::Unauthenticated {
                // Guessing costs; when nothing is left, nothing more is looked at.
                drop(state.app.admit_address(&address, RouteClass::Open));
            }
            Err(rejection.into())
        }
    }
}

/// Whoever was recognised before, in a request that this server makes to itself.
#[derive(Clone)]
pub(super) struct Recognised(pub Arc<Actor>);

/// The resource that a route belongs to.
fn resource(path: &str) -> app::Resource {
    if is_mcp(path) { app::Resource::Mcp } else { app::Resource::Api }
}

/// Who shows these credentials at a resource.
pub(crate) async fn authenticate(app: &App, headers: &HeaderMap, resource: app::Resource) -> Result<Actor, Rejection> {
    let text = |name| headers.get(name).and_then(|v: &axum::http::HeaderValue| v.to_str().ok());
    if let Some(key) = text("x-api-key") {
        return app.authenticate_key(key).await;
    }
    let bearer = text(header::AUTHORIZATION.as_str()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    match bearer {
        // Clients that know only bearer tokens may send an API key as one.
        Some(token) if token.starts_with("kk_") => app.authenticate_key(token).await,
        Some(token) => app.authenticate_bearer(token, resource).await,
        None => Err(Rejection::new(
            Kind::Unauthenticated,
            "CREDENTIALS_MISSING",
            "This needs an access token or an API key.",
            "Sign in with POST /api/v1/auth/login and send 'Authorization: Bearer <access_token>', or send an X-API-Key.",
        )),
    }
}

async fn wait_for_position(state: &EdgeState, actor: &Actor, headers: &HeaderMap) -> Result<(), Failure> {
    let Some(header) = headers.get("keiko-min-position") else { return Ok(()) };
    let position = header.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        Rejection::new(
            Kind::Invalid,
            "HEADER_INVALID",
            "Keiko-Min-Position must be a position, such as 4711.",
            "Send the position of an earlier answer's meta.",
        )
    })?;
    Ok(state.app.reach_position(actor.tenant, position, state.settings.position_wait_ms_max).await?)
}

fn caller(actor: Actor, reach: Reach, request: &Parts) -> Result<Caller, Failure> {
    let names = request.extensions.get::<RequestNames>().cloned();
    Ok(Caller {
        actor,
        reach,
        origin: origin(&request.headers, request.extensions.get::<ConnectInfo<SocketAddr>>()),
        correlation: names.as_ref().map(RequestNames::correlation).unwrap_or_default(),
        trace_parent: names.and_then(|n| n.trace_parent),
        idempotency: None,
        if_match: conditional(&request.headers)?,
        at: None,
    })
}

/// Address and client string of a request.
fn origin(headers: &HeaderMap, peer: Option<&ConnectInfo<SocketAddr>>) -> Origin {
    let client = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok());
    Origin {
        address: peer.map(|ConnectInfo(address)| address.ip().to_string()),
        client: client.map(|c| c.chars().take(CLIENT_CHARS_MAX).collect()),
    }
}

/// The context of a request by somebody who is not known yet.
pub(super) fn anonymous(parts: &Parts) -> Context {
    let names = parts.extensions.get::<RequestNames>().map(RequestNames::correlation).unwrap_or_default();
    App::anonymous(origin(&parts.headers, parts.extensions.get::<ConnectInfo<SocketAddr>>()), names)
}

/// [`anonymous`], for handlers.
pub(crate) struct Stranger(pub Context);

impl<S: Send + Sync> FromRequestParts<S> for Stranger {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Stranger(anonymous(parts)))
    }
}

/// The authorised caller of a request without a body.
pub(crate) struct By(pub Caller);

impl<S: Send + Sync> FromRequestParts<S> for By {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        match parts.extensions.get::<Caller>() {
            Some(caller) => Ok(By(caller.clone())),
            None => {
                tracing::error!(path = parts.uri.path(), "a handler asks for a caller on an open route");
                Err(Failure::internal())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_route_without_a_declared_permission_keeps_the_server_from_starting() {
        let document = |operation: Value| json!({"paths": {"/api/v1/things": {"get": operation}}});
        assert!(table(&document(json!({"x-permission": "things.read"}))).is_ok());
        assert!(table(&document(json!({"x-permission": "open"}))).is_ok());
        for bad in [json!({}), json!({"x-permission": ""}), json!({"x-permission": "things.*"}), json!({"x-permission": "*"})] {
            assert!(table(&document(bad.clone())).unwrap_err().contains("GET /api/v1/things"), "{bad}");
        }
    }
}
