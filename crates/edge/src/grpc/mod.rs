//! The gRPC interface: work over one stream, the log followed live, with reflection and health. The rules are those of HTTP.

mod caller;
mod events;
mod service;
mod work;

/// Generated from `proto/` and committed; `tests/generated.rs` holds it against the source.
#[expect(clippy::allow_attributes_without_reason, reason = "generated from the .proto files, which hold the documentation")]
mod v1 {
    include!("generated/keiko.worker.v1.rs");
}

/// The same for events.
#[expect(clippy::allow_attributes_without_reason, reason = "generated from the .proto files, which hold the documentation")]
#[expect(clippy::large_enum_variant, reason = "nearly every message is the large one, an event")]
mod events_v1 {
    include!("generated/keiko.events.v1.rs");
}

/// The description of the services, for reflection.
const DESCRIPTOR: &[u8] = include_bytes!("generated/descriptor.bin");

use crate::http::{HttpSettings, Server, Tls};
use app::App;
use axum::extract::ConnectInfo;
use events_v1::event_service_server::EventServiceServer;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tonic::Request;
use tonic::service::Routes;
use v1::worker_server::WorkerServer;

/// The gRPC interface on a bound address: connections are served as those of HTTP are.
pub async fn server(listener: TcpListener, app: App, settings: &HttpSettings, tls: Option<Tls>) -> Result<Server, String> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<WorkerServer<service::Service>>().await;
    reporter.set_serving::<EventServiceServer<events::Service>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let followed = EventServiceServer::new(events::Service::new(app.clone()));
    let worker =
        WorkerServer::new(service::Service::new(app, settings.json_depth_max)).max_decoding_message_size(settings.body_bytes_max);
    let routes = Routes::new(worker)
        .add_service(followed)
        .add_service(health)
        .add_service(reflection().build_v1().map_err(|e| e.to_string())?)
        // Many clients still ask by its older name.
        .add_service(reflection().build_v1alpha().map_err(|e| e.to_string())?);
    Ok(Server::of(listener, routes.into_axum_router(), tls))
}

/// Where a request comes from.
fn peer<T>(request: &Request<T>) -> Option<SocketAddr> {
    request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer)
}
