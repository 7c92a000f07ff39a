//! `/oauth` and the documents that describe it: the authorization server; `/account`, where links of mails lead. Its requests are forms and its answers plain
//! JSON, as the specifications say, without the envelope of the API.

mod account;
mod authorize;
mod form;
mod logout;
mod metadata;
mod pages;
mod register;
mod token;

use super::access::origin;
use super::envelope::RequestNames;
use super::state::EdgeState;
use app::App;
use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use engine::Context;
use std::net::SocketAddr;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .merge(metadata::routes())
        .merge(authorize::routes())
        .merge(token::routes())
        .merge(register::routes())
        .merge(logout::routes())
        .merge(account::routes())
}

pub(super) use metadata::challenge;

/// The context of a request whose caller is not known yet.
fn anonymous(parts: &Parts) -> Context {
    let names = parts.extensions.get::<RequestNames>().map(RequestNames::correlation).unwrap_or_default();
    App::anonymous(origin(&parts.headers, parts.extensions.get::<ConnectInfo<SocketAddr>>()), names)
}
