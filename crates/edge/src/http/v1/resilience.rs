//! `/api/v1/mcp-servers/{id}/resilience`: how calls of a server are bounded, and how it does.

use crate::http::access::By;
use crate::http::body::{Input, number};
use crate::http::envelope::{One, Outcome, Reply};
use crate::http::names::Handle;
use crate::http::state::EdgeState;
use app::{AddressFigures, Circuit, CircuitState, Figures, Resilience, ToolTimes};
use axum::extract::State;
use axum::http::StatusCode;
use domain::mcp_server::Tuning;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(get, set))
}

/// How calls of a server are bounded. What is left out has its default.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct ResilienceBody {
    /// Calls that run at the same time; 64 by default.
    #[serde(deserialize_with = "number")]
    #[schema(minimum = 1, maximum = 1024)]
    calls_max: u32,
    /// Calls that wait for one of these places, nobody's more than half of them; of more the least important are turned away.
    /// 256 by default.
    #[serde(deserialize_with = "number")]
    #[schema(maximum = 10000)]
    waiting_max: u32,
    /// How often a call is tried: one that never arrived, and after a failure one that only reads or says that a repetition
    /// changes nothing. 3 by default; 1 for no repetition.
    #[serde(deserialize_with = "number")]
    #[schema(minimum = 1, maximum = 5)]
    attempts_max: u32,
    /// Repetitions allowed for each hundred calls, beside one each ten seconds; 20 by default.
    #[serde(deserialize_with = "number")]
    #[schema(maximum = 100)]
    retry_percent: u32,
    /// Failures in a row that open a circuit; 5 by default.
    #[serde(deserialize_with = "number")]
    #[schema(minimum = 1, maximum = 1000)]
    failures_max: u32,
    /// Part of the calls of the last ten seconds, at least 20, that opens a circuit when it fails; 50 by default.
    #[serde(deserialize_with = "number")]
    #[schema(minimum = 1, maximum = 100)]
    failure_percent: u32,
    /// How long a circuit is open before one call tries again; doubled each time that it fails, up to a minute. 5,000 by default.
    #[serde(deserialize_with = "number")]
    #[schema(minimum = 100, maximum = 60000)]
    open_ms: u64,
    /// Whether a call that wants no time of its own gets four times the longest of its tool's last 64 calls instead of
    /// `gateway.call_timeout`; yes by default.
    timeout_is_adaptive: bool,
    /// The least time that it gets then; 10,000 by default.
    #[serde(deserialize_with = "number")]
    #[schema(minimum = 100, maximum = 86_400_000)]
    timeout_min_ms: u64,
    /// Name or id of the server whose tool of the same name and with the same input schema answers when this one does not.
    fallback: Option<String>,
}

impl Default for ResilienceBody {
    fn default() -> Self {
        shown(&Tuning::default(), None)
    }
}

fn shown(tuning: &Tuning, fallback: Option<String>) -> ResilienceBody {
    let &Tuning { calls_max, waiting_max, attempts_max, retry_percent, failures_max, failure_percent, .. } = tuning;
    let &Tuning { open_ms, timeout_is_adaptive, timeout_min_ms, .. } = tuning;
    ResilienceBody {
        calls_max,
        waiting_max,
        attempts_max,
        retry_percent,
        failures_max,
        failure_percent,
        open_ms,
        timeout_is_adaptive,
        timeout_min_ms,
        fallback,
    }
}

fn said(body: &ResilienceBody) -> Tuning {
    let &ResilienceBody { calls_max, waiting_max, attempts_max, retry_percent, failures_max, failure_percent, .. } = body;
    let &ResilienceBody { open_ms, timeout_is_adaptive, timeout_min_ms, .. } = body;
    Tuning {
        calls_max,
        waiting_max,
        attempts_max,
        retry_percent,
        failures_max,
        failure_percent,
        open_ms,
        timeout_is_adaptive,
        timeout_min_ms,
        fallback: None,
    }
}

/// A circuit that is not closed.
#[derive(Serialize, ToSchema)]
struct CircuitBody {
    /// The tool; `null` for the server, or its address, as a whole.
    tool: Option<String>,
    /// The address, of a server that has several; `null` for all of them.
    address: Option<String>,
    /// `open`: calls are refused; `half_open`: the next call is a trial, or one is under way
    state: &'static str,
    /// The failure that opened it.
    reason: String,
    /// When it is tried again.
    retry_after_ms: u64,
}

/// One of several addresses of a server.
#[derive(Serialize, ToSchema)]
struct AddressBody {
    /// Where.
    url: String,
    /// Whether it is connected to.
    is_ready: bool,
    /// Why it is not.
    reason: Option<String>,
    /// Calls that it has.
    running: usize,
    /// How long calls took there lately; what is long ago counts less and less.
    usual_ms: u64,
}

/// How long calls of a tool take.
#[derive(Serialize, ToSchema)]
struct TimesBody {
    /// The tool, or the protocol's method where it is no tool.
    tool: String,
    /// Calls that this is known of, the last 64 at most.
    samples: usize,
    /// Half of them took no longer.
    median_ms: u64,
    /// None of them took longer.
    longest_ms: u64,
    /// What the next call gets that wants no time of its own.
    timeout_ms: u64,
}

/// How a server has been doing on the replica that answers, since it was started there.
#[derive(Serialize, ToSchema)]
struct FiguresBody {
    /// Calls that run.
    running: usize,
    /// Calls that wait for a place.
    waiting: usize,
    /// Calls that were answered, also with an error of the tool's own.
    answered: u64,
    /// Calls that had no usable answer, after all attempts.
    failed: u64,
    /// Those among them that took too long.
    timed_out: u64,
    /// Those among them that were turned away because too many waited.
    shed: u64,
    /// Those among them that were refused by an open circuit.
    refused: u64,
    /// Attempts after the first.
    retried: u64,
    /// Circuits that are not closed.
    circuits: Vec<CircuitBody>,
    /// Its addresses, where it has several: a call goes to the one of two that will probably answer sooner.
    addresses: Vec<AddressBody>,
    /// How long calls take, by tool.
    times: Vec<TimesBody>,
}

/// How calls of a server are bounded, and how it does.
#[derive(Serialize, ToSchema)]
struct ResilienceAttributes {
    /// The server's name.
    server: String,
    /// What is set.
    settings: ResilienceBody,
    /// How it does; `null` where it is not run.
    live: Option<FiguresBody>,
    /// When the server was registered.
    created_at: String,
    /// When the server changed last.
    updated_at: String,
    /// Counts the server's changes.
    version: u64,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn circuit(circuit: Circuit) -> CircuitBody {
    let (state, after) = match circuit.state {
        CircuitState::Open(after) => ("open", after),
        CircuitState::HalfOpen => ("half_open", Duration::ZERO),
    };
    CircuitBody { tool: circuit.subject, address: circuit.address, state, reason: circuit.reason, retry_after_ms: ms(after) }
}

fn times(times: ToolTimes) -> TimesBody {
    let ToolTimes { subject, samples, median, longest, timeout } = times;
    TimesBody { tool: subject, samples, median_ms: ms(median), longest_ms: ms(longest), timeout_ms: ms(timeout) }
}

fn address(address: AddressFigures) -> AddressBody {
    let AddressFigures { url, is_ready, reason, running, usual } = address;
    AddressBody { url, is_ready, reason, running, usual_ms: ms(usual) }
}

fn figures(figures: Figures) -> FiguresBody {
    let Figures { running, waiting, answered, failed, timed_out, retried, shed, refused, .. } = figures;
    let circuits = figures.circuits.into_iter().map(circuit).collect();
    let addresses = figures.addresses.into_iter().map(address).collect();
    let times = figures.times.into_iter().map(times).collect();
    FiguresBody { running, waiting, answered, failed, timed_out, shed, refused, retried, circuits, addresses, times }
}

fn entity(resilience: Resilience) -> Outcome {
    let Resilience { server, fallback, figures: live } = resilience;
    let attributes = ResilienceAttributes {
        server: server.state.profile.name.clone(),
        settings: shown(&server.state.tuning, fallback),
        live: live.map(figures),
        created_at: server.created_at.to_string(),
        updated_at: server.updated_at.to_string(),
        version: server.version,
    };
    Reply::entity(StatusCode::OK, "mcp_server_resilience", &server, attributes)
}

/// Read how calls of an MCP server are bounded, and how it does
///
/// `live` is what the replica that answers has seen since it started the server.
#[utoipa::path(get, path = "/api/v1/mcp-servers/{id}/resilience", tag = "tools", extensions(("x-permission" = json!("mcp-servers.read"))),
    params(("id" = String, Path, description = "Id or name")), responses((status = 200, body = One<ResilienceAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    entity(state.app.resilience(&caller, &id).await?)
}

/// Bound the calls of an MCP server otherwise, while it runs
///
/// Replaces all of them. Calls under way go on as they began.
#[utoipa::path(put, path = "/api/v1/mcp-servers/{id}/resilience", tag = "tools", extensions(("x-permission" = json!("mcp-servers.update"))),
    params(("id" = String, Path, description = "Id or name")), request_body = ResilienceBody,
    responses((status = 200, body = One<ResilienceAttributes>)))]
async fn set(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<ResilienceBody>) -> Outcome {
    let tuning = said(&input.body);
    entity(state.app.tune_mcp_server(&input.by, &id, tuning, input.body.fallback.as_deref()).await?)
}
