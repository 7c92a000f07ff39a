//! The HTTP interface: one router, one accept loop.

mod a2a;
mod access;
mod asof;
mod body;
pub(crate) mod category;
mod cloudevents;
mod console;
mod docs;
mod drain;
mod envelope;
mod mcp;
mod meta;
mod metrics;
mod names;
mod oauth;
mod openapi;
mod serve;
mod sse;
mod state;
mod tls;
pub mod v1;

pub(crate) use access::authenticate;
pub(crate) use body::depth as json_depth;
pub use openapi::{document, permission_table};
pub use serve::{Server, bind};
pub use state::{HttpSettings, Readiness};
pub use tls::{Tls, TlsFiles};

use axum::Router;
use axum::extract::Extension;
use axum::http::{HeaderMap, Method, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use envelope::Failure;
use kernel::{Kind, Rejection};
use state::EdgeState;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;

/// Every route, with its document.
fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .merge(meta::routes())
        .merge(oauth::routes())
        .merge(v1::auth::routes())
        .merge(v1::clients::routes())
        .merge(v1::tenants::routes())
        .merge(v1::users::routes())
        .merge(v1::teams::routes())
        .merge(v1::accounts::routes())
        .merge(v1::mails::routes())
        .merge(v1::roles::routes())
        .merge(v1::api_keys::routes())
        .merge(v1::agents::routes())
        .merge(v1::discovery::routes())
        .merge(v1::tasks::routes())
        .merge(v1::work::routes())
        .merge(v1::queues::routes())
        .merge(v1::events::routes())
        .merge(v1::consumer_groups::routes())
        .merge(v1::mcp_servers::routes())
        .merge(v1::components::routes())
        .merge(v1::resilience::routes())
        .merge(v1::credentials::routes())
        .merge(v1::virtual_servers::routes())
        .merge(v1::tools::routes())
        .merge(v1::journal::routes())
        .merge(v1::security::routes())
        .merge(v1::audit::routes())
        .merge(v1::timeline::routes())
        .merge(v1::erasures::routes())
        .merge(v1::backups::routes())
        .merge(v1::views::routes())
        .merge(mcp::routes())
        .merge(a2a::routes())
}

/// The router of an application. Fails when a route declares no permission: such a server must not start.
fn router(app: app::App, readiness: Arc<dyn Readiness>, settings: HttpSettings) -> Result<Router, String> {
    let (router, document) = openapi::split(routes());
    let access = access::table(&document)?;
    let state = Arc::new(EdgeState::new(app, readiness, settings, access, document)?);
    let api = router
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        // Innermost: nothing below runs without an authorised caller.
        .route_layer(middleware::from_fn_with_state(state.clone(), access::admit))
        // A panic in a handler is an answer like any other.
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(envelope::panicked))
        // Outermost: names the request, counts it, and writes every answer's envelope.
        .layer(middleware::from_fn_with_state(state.clone(), envelope::finish))
        .with_state(state);
    // Tools of `/mcp` are carried out as requests to the API.
    Ok(api.clone().layer(Extension(mcp::Api(api))))
}

/// The console's files, and nothing else.
async fn unknown_route(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    if let Some(file) = console::answer(&method, uri.path(), &headers) {
        return file;
    }
    let message = format!("There is nothing at '{}'.", uri.path());
    Failure::from(Rejection::new(Kind::NotFound, "ROUTE_NOT_FOUND", message, "See /docs for every route.")).into_response()
}

async fn wrong_method(method: Method, uri: Uri) -> Failure {
    let message = format!("'{}' does not take {method}.", uri.path());
    Rejection::new(Kind::Invalid, "METHOD_NOT_ALLOWED", message, "See the Allow header, or /docs.").into()
}
