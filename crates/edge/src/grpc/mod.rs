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

use app::App;
use events_v1::event_service_server::EventServiceServer;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use v1::worker_server::WorkerServer;

/// How often a silent connection is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Streams of one connection.
const STREAMS_MAX: u32 = 256;

/// A gRPC server that is bound and ready to run.
pub struct GrpcServer {
    listener: TcpListener,
    app: App,
    message_bytes_max: usize,
    json_depth_max: usize,
}

impl GrpcServer {
    /// A server on a bound address.
    pub fn new(listener: TcpListener, app: App, settings: &crate::http::HttpSettings) -> Self {
        let (message_bytes_max, json_depth_max) = (settings.body_bytes_max, settings.json_depth_max);
        GrpcServer { listener, app, message_bytes_max, json_depth_max }
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` ends; then streams have `grace` to finish.
    pub async fn run(self, stop: impl Future<Output = ()>, grace: Duration) -> Result<(), String> {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<WorkerServer<service::Service>>().await;
        reporter.set_serving::<EventServiceServer<events::Service>>().await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTOR)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let followed = EventServiceServer::new(events::Service::new(self.app.clone()));
        let worker = WorkerServer::new(service::Service::new(self.app, self.json_depth_max))
            .max_decoding_message_size(self.message_bytes_max);
        let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(Some(STREAMS_MAX))
            .add_service(worker)
            .add_service(followed)
            .add_service(health)
            .add_service(reflection().build_v1().map_err(|e| e.to_string())?)
            // Many clients still ask by its older name.
            .add_service(reflection().build_v1alpha().map_err(|e| e.to_string())?)
            .serve_with_incoming_shutdown(TcpIncoming::from(self.listener).with_nodelay(Some(true)), async {
                // Dropping the sender stops it too.
                let _ = stopped.await;
            });
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            biased;
            () = stop => {}
            ended = serving.as_mut() => return ended.map_err(|e| e.to_string()),
        }
        drop(stopping);
        match tokio::time::timeout(grace, serving).await {
            Ok(ended) => ended.map_err(|e| e.to_string()),
            Err(_) => {
                tracing::warn!("gRPC streams were cut off at the end of the grace time");
                Ok(())
            }
        }
    }
}
