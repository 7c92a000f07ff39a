//! `/api/v1/discovery`: who can do this?

use super::agents::{AgentAttributes, attributes};
use crate::http::access::By;
use crate::http::body::{Params, limit};
use crate::http::envelope::{Many, Outcome, Reply, Resource};
use crate::http::state::EdgeState;
use app::DiscoveryQuery;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(discover))
}

/// What is looked for. All conditions must hold.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DiscoveryParams {
    /// Agents that can do this.
    capability: Option<String>,
    /// Free text: names, types, descriptions, domains, tags.
    q: Option<String>,
    /// A tag or domain.
    tag: Option<String>,
    /// Only agents that are there and take work.
    healthy: Option<bool>,
    /// How many; 50 when nothing is said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// An agent that was found.
#[derive(Serialize, ToSchema)]
struct DiscoveredAttributes {
    /// Where it stands, 0 to 1.
    score: f64,
    /// Its place, from 1.
    rank: usize,
    /// Why.
    reasons: Vec<String>,
    /// Share of attempts with the capability that succeeded.
    success_rate: Option<f64>,
    /// Mean time of a task with the capability.
    latency_ms: Option<f64>,
    /// The agent.
    #[serde(flatten)]
    agent: AgentAttributes,
}

/// Find agents, ranked, with the reasons
#[utoipa::path(get, path = "/api/v1/discovery", tag = "discovery", extensions(("x-permission" = json!("discovery.read"))),
    params(DiscoveryParams), responses((status = 200, body = Many<DiscoveredAttributes>)))]
async fn discover(State(state): State<Arc<EdgeState>>, By(caller): By, Params(params): Params<DiscoveryParams>) -> Outcome {
    let query = DiscoveryQuery {
        capability: params.capability,
        q: params.q,
        tag: params.tag,
        healthy: params.healthy.unwrap_or(false),
        limit: limit(params.limit)?,
    };
    let (found, total) = state.app.discover(&caller, &query)?;
    let items: Vec<_> = found
        .iter()
        .enumerate()
        .map(|(i, d)| Resource {
            id: d.agent.stream.clone(),
            kind: "agent",
            attributes: DiscoveredAttributes {
                score: d.score,
                rank: i + 1,
                reasons: d.reasons.clone(),
                success_rate: d.record.and_then(|r| r.success_rate()),
                latency_ms: d.record.and_then(|r| r.mean_ms()),
                agent: attributes(&d.agent),
            },
        })
        .collect();
    Ok(Reply::list(&items, None, state.app.position(caller.actor.tenant))?.of(total))
}
