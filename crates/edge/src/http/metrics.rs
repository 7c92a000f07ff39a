//! Figures about requests, agents, work and the store, in the text formats of Prometheus and OpenMetrics.

use super::state::EdgeState;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: String,
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabels {
    tenant: String,
    group: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    tenant: String,
    server: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamOutcomeLabels {
    tenant: String,
    server: String,
    outcome: String,
}

/// Counted as it happens; everything else is read when it is asked for.
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram>,
    in_flight: Gauge,
}

/// Counts a request as in flight as long as it lives.
pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn buckets() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

impl Metrics {
    pub fn new() -> Self {
        Metrics { requests: Family::default(), seconds: Family::new_with_constructor(buckets), in_flight: Gauge::default() }
    }

    pub fn enter(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    pub fn request(&self, method: &str, route: &str, status: u16, elapsed: Duration) {
        let (method, route) = (method.to_owned(), route.to_owned());
        self.seconds.get_or_create(&RouteLabels { method: method.clone(), route: route.clone() }).observe(elapsed.as_secs_f64());
        self.requests.get_or_create(&RequestLabels { method, route, status }).inc();
    }
}

/// All figures as text.
pub(super) fn text(state: &EdgeState) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("keiko");
    registry.register("http_requests", "Requests answered", state.metrics.requests.clone());
    registry.register("http_request_duration_seconds", "Time to answer", state.metrics.seconds.clone());
    registry.register("http_requests_in_flight", "Requests being answered", state.metrics.in_flight.clone());
    let status = state.app.status();
    let agents = Family::<StatusLabels, Gauge>::default();
    for word in ["registered", "up", "degraded", "down", "paused", "draining"] {
        let count = status.agents.get(word).copied().unwrap_or(0);
        agents.get_or_create(&StatusLabels { status: word.into() }).set(count as i64);
    }
    registry.register("agents", "Agents by status", agents);
    let attempts = Family::<OutcomeLabels, Counter>::default();
    for (outcome, count) in
        [("completed", status.attempts.completed), ("failed", status.attempts.failed), ("expired", status.attempts.expired)]
    {
        attempts.get_or_create(&OutcomeLabels { outcome: outcome.into() }).inc_by(count);
    }
    registry.register("task_attempts", "Attempts at tasks by outcome", attempts);
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    let (queued, commits, events) = state.readiness.store();
    gauge(&mut registry, "claim_requests_waiting", "Claim requests that wait for work", status.waiting_claims as i64);
    gauge(&mut registry, "tenants", "Tenants that are ready", status.tenants as i64);
    gauge(&mut registry, "store_appends_queued", "Appends that wait for the writer", queued as i64);
    for (name, help, value) in
        [("store_commits", "Transactions made durable", commits), ("store_events", "Events made durable", events)]
    {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
    groups(state, &mut registry);
    upstreams(state, &mut registry);
    let mut out = String::new();
    encode(&mut out, &registry)?;
    Ok(out)
}

/// Figures of MCP servers, of this replica.
fn upstreams(state: &EdgeState, registry: &mut Registry) {
    let (ready, running, waiting) = (Family::default(), Family::default(), Family::default());
    let open = Family::<UpstreamLabels, Gauge>::default();
    let calls = Family::<UpstreamOutcomeLabels, Counter>::default();
    let retries = Family::<UpstreamLabels, Counter>::default();
    let gauge = |family: &Family<UpstreamLabels, Gauge>, labels: &UpstreamLabels, value: usize| {
        family.get_or_create(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
    };
    for upstream in state.app.upstreams_status() {
        let (tenant, server, figures) = (upstream.tenant, upstream.server, upstream.figures);
        let labels = UpstreamLabels { tenant: tenant.clone(), server: server.clone() };
        gauge(&ready, &labels, usize::from(upstream.is_ready));
        gauge(&running, &labels, figures.running);
        gauge(&waiting, &labels, figures.waiting);
        gauge(&open, &labels, figures.circuits.len());
        retries.get_or_create(&labels).inc_by(figures.retried);
        // The counters are read one after another.
        let other = figures.failed.saturating_sub(figures.timed_out + figures.shed + figures.refused);
        for (outcome, count) in [
            ("answered", figures.answered),
            ("timed_out", figures.timed_out),
            ("shed", figures.shed),
            ("circuit_open", figures.refused),
            ("failed", other),
        ] {
            let (tenant, server) = (tenant.clone(), server.clone());
            calls.get_or_create(&UpstreamOutcomeLabels { tenant, server, outcome: outcome.into() }).inc_by(count);
        }
    }
    registry.register("upstream_ready", "Whether a tool server answers", ready);
    registry.register("upstream_calls", "Calls of a tool server by what came of them", calls);
    registry.register("upstream_calls_running", "Calls of a tool server that run", running);
    registry.register("upstream_calls_waiting", "Calls of a tool server that wait for a place", waiting);
    registry.register("upstream_retries", "Attempts after the first", retries);
    registry.register("upstream_circuits_open", "Circuits of a tool server that are not closed", open);
}

/// Figures of consumer groups, by the replica that leads their tenant's log.
fn groups(state: &EdgeState, registry: &mut Registry) {
    let lag_events = Family::<GroupLabels, Gauge>::default();
    let lag_seconds = Family::<GroupLabels, Gauge<f64, AtomicU64>>::default();
    let (open, parked) = (Family::<GroupLabels, Gauge>::default(), Family::<GroupLabels, Gauge>::default());
    let stalled = Family::<GroupLabels, Gauge>::default();
    let last_delivery = Family::<GroupLabels, Gauge<f64, AtomicU64>>::default();
    for group in state.app.groups_status() {
        let Some(figures) = group.state else { continue };
        let labels = GroupLabels { tenant: group.tenant, group: group.name };
        lag_events.get_or_create(&labels).set(i64::try_from(figures.lag_events).unwrap_or(i64::MAX));
        lag_seconds.get_or_create(&labels).set(figures.lag_ms as f64 / 1_000.0);
        open.get_or_create(&labels).set(figures.open as i64);
        parked.get_or_create(&labels).set(figures.parked as i64);
        stalled.get_or_create(&labels).set(i64::from(group.is_stalled));
        if let Some(at) = figures.last_delivery_at {
            last_delivery.get_or_create(&labels).set(at.0 as f64 / 1_000.0);
        }
    }
    registry.register("consumer_group_lag_events", "Events neither acknowledged nor parked", lag_events);
    registry.register("consumer_group_lag_seconds", "Age of the oldest of them", lag_seconds);
    registry.register("consumer_group_open", "Events in delivery, put off or held back", open);
    registry.register("consumer_group_parked", "Events put aside", parked);
    registry.register("consumer_group_stalled", "Whether nothing is acknowledged although events wait", stalled);
    let help = "When something was delivered last, in seconds since 1970";
    registry.register("consumer_group_last_delivery_timestamp_seconds", help, last_delivery);
}
