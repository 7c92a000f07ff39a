//! `/oauth` and the documents that describe it: the authorization server; `/account`, where links of mails lead. Its requests are forms and its answers plain
//! JSON, as the specifications say, without the envelope of the API.

mod account;
mod authorize;
mod connect;
mod form;
mod logout;
mod metadata;
mod pages;
mod register;
mod token;

use super::access::anonymous;
use super::state::EdgeState;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .merge(metadata::routes())
        .merge(authorize::routes())
        .merge(connect::routes())
        .merge(token::routes())
        .merge(register::routes())
        .merge(logout::routes())
        .merge(account::routes())
}

pub(super) use metadata::challenge;
