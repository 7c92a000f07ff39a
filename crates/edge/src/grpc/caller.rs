//! Who calls over gRPC: the same credentials as over HTTP, in the request's metadata.

use crate::http::authenticate;
use app::{App, Caller};
use kernel::id::RequestTag;
use kernel::{Actor, Kind, Origin, Rejection};
use std::net::SocketAddr;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

const CLIENT_CHARS_MAX: usize = 200;

/// Authenticates, counts against the limits, and authorises for one permission.
pub(super) async fn caller(
    app: &App,
    metadata: &MetadataMap,
    peer: Option<SocketAddr>,
    permission: &str,
) -> Result<Caller, Rejection> {
    let (actor, origin) = recognised(app, metadata, peer).await?;
    let class = if permission.ends_with(".read") { app::RouteClass::Read } else { app::RouteClass::Write };
    app.admit(&actor, class)?;
    authorised(app, metadata, actor, origin, permission)
}

/// Who it is, and from where.
pub(super) async fn recognised(
    app: &App,
    metadata: &MetadataMap,
    peer: Option<SocketAddr>,
) -> Result<(Actor, Origin), Rejection> {
    let origin = Origin {
        address: peer.map(|peer| peer.ip().to_string()),
        client: text(metadata, "user-agent").map(|client| client.chars().take(CLIENT_CHARS_MAX).collect()),
    };
    let address = origin.address.clone().unwrap_or_default();
    app.check_address(&address)?;
    let actor = match authenticate(app, metadata.as_ref(), app::Resource::Api).await {
        Ok(actor) => actor,
        Err(rejection) => {
            if rejection.kind == Kind::Unauthenticated {
                drop(app.admit_address(&address, app::RouteClass::Open));
                app.saw_stranger(rejection.code, "gRPC", &origin, "");
            }
            return Err(rejection);
        }
    };
    app.saw_key(&actor, &origin);
    Ok((actor, origin))
}

/// Authorises for one permission.
pub(super) fn authorised(
    app: &App,
    metadata: &MetadataMap,
    actor: Actor,
    origin: Origin,
    permission: &str,
) -> Result<Caller, Rejection> {
    let reach = app.authorise(&actor, permission).inspect_err(|_| app.saw_denied(&actor, permission, "gRPC", &origin, ""))?;
    let trace_parent = text(metadata, "traceparent").map(str::to_owned);
    let trace = trace_parent.as_deref().and_then(|t| t.split('-').nth(1).map(str::to_owned));
    Ok(Caller {
        actor,
        reach,
        origin,
        correlation: trace.unwrap_or_else(|| app.engine().env().id::<RequestTag>().to_string()),
        trace_parent,
        idempotency: None,
        if_match: None,
        at: None,
    })
}

fn text<'a>(metadata: &'a MetadataMap, name: &str) -> Option<&'a str> {
    metadata.get(name).and_then(|v| v.to_str().ok())
}

/// A refusal as a gRPC status; the code is also in the metadata `keiko-code`.
pub(super) fn status(rejection: &Rejection) -> Status {
    let code = match rejection.kind {
        Kind::Invalid | Kind::Refused | Kind::TooLarge => Code::InvalidArgument,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Forbidden => Code::PermissionDenied,
        Kind::NotFound => Code::NotFound,
        Kind::Conflict | Kind::Precondition => Code::FailedPrecondition,
        Kind::Limited => Code::ResourceExhausted,
        Kind::Unavailable | Kind::Upstream => Code::Unavailable,
        Kind::Internal => Code::Internal,
    };
    let mut status = Status::new(code, format!("{}: {} {}", rejection.code, rejection.message, rejection.hint));
    status.metadata_mut().insert("keiko-code", MetadataValue::from_static(rejection.code));
    status
}
