//! `/api/v1/queues`: how tasks are given out.

use crate::http::asof::AsOf;
use crate::http::body::{Input, ListParams, Params, whole};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::Handle;
use crate::http::state::EdgeState;
use axum::extract::State;
use axum::http::StatusCode;
use domain::queue::{Configured, Weights, queue_id};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(put))
}

/// How much each score counts when an agent is chosen; only the ratio matters.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WeightsBody {
    /// How well domains, tags and description fit; 0.4 when nothing is said.
    #[schema(minimum = 0, maximum = 1000)]
    specialisation: Option<f64>,
    /// How often it succeeded; 0.3 when nothing is said.
    #[schema(minimum = 0, maximum = 1000)]
    success: Option<f64>,
    /// How free it is; 0.2 when nothing is said.
    #[schema(minimum = 0, maximum = 1000)]
    load: Option<f64>,
    /// How cheap it is; 0.1 when nothing is said.
    #[schema(minimum = 0, maximum = 1000)]
    cost: Option<f64>,
}

/// All settings of a queue; what is left out gets its default.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct QueueBody {
    /// Whether no task of it is given out.
    #[serde(default)]
    paused: bool,
    /// What counts when an agent is chosen.
    weights: Option<WeightsBody>,
    /// Tasks of it in work at a time; no limit when nothing is said.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "whole")]
    max_concurrency: Option<u32>,
    /// Tasks of it given out per second; no limit when nothing is said.
    #[schema(minimum = 0.001, maximum = 1000000)]
    rate_per_s: Option<f64>,
}

/// A queue.
#[derive(Serialize, ToSchema)]
struct QueueAttributes {
    /// Its name.
    name: String,
    /// Whether no task of it is given out.
    paused: bool,
    /// What counts when an agent is chosen.
    weights: WeightsBody,
    /// Tasks of it in work at a time.
    max_concurrency: Option<u32>,
    /// Tasks of it given out per second.
    rate_per_s: Option<f64>,
    /// Counts its changes.
    version: u64,
}

fn attributes(queue: &Configured, version: u64) -> QueueAttributes {
    let w = queue.weights;
    QueueAttributes {
        name: queue.name.clone(),
        paused: queue.is_paused,
        weights: WeightsBody {
            specialisation: Some(w.specialisation),
            success: Some(w.success),
            load: Some(w.load),
            cost: Some(w.cost),
        },
        max_concurrency: queue.max_concurrency,
        rate_per_s: queue.rate_per_s,
        version,
    }
}

/// List queues that were configured, and the default one
#[utoipa::path(get, path = "/api/v1/queues", tag = "tasks", extensions(("x-permission" = json!("tasks.queues.read"))),
    params(ListParams), responses((status = 200, body = Many<QueueAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ListParams>) -> Outcome {
    let (page, default) = state.app.queues(&caller, &params.order()?).await?;
    let id = |queue: &Configured| queue_id(&caller.actor.tenant, &queue.name).to_string();
    let shipped = default.iter().map(|q| Resource { id: id(q), kind: "queue", attributes: attributes(q, 0) });
    let own =
        page.items.iter().map(|q| Resource { id: q.stream.clone(), kind: "queue", attributes: attributes(&q.state, q.version) });
    let items: Vec<_> = shipped.chain(own).collect();
    Reply::list(&items, page.next, page.position)
}

/// Set up a queue
#[utoipa::path(put, path = "/api/v1/queues/{name}", tag = "tasks", extensions(("x-permission" = json!("tasks.queues.update"))),
    params(("name" = String, Path, description = "Name")), request_body = QueueBody,
    responses((status = 200, body = One<QueueAttributes>)))]
async fn put(State(state): State<Arc<EdgeState>>, Handle(name): Handle, input: Input<QueueBody>) -> Outcome {
    let body = input.body;
    let d = Weights::default();
    let w = body.weights.unwrap_or(WeightsBody { specialisation: None, success: None, load: None, cost: None });
    let weights = Weights {
        specialisation: w.specialisation.unwrap_or(d.specialisation),
        success: w.success.unwrap_or(d.success),
        load: w.load.unwrap_or(d.load),
        cost: w.cost.unwrap_or(d.cost),
    };
    let configured =
        Configured { name, is_paused: body.paused, weights, max_concurrency: body.max_concurrency, rate_per_s: body.rate_per_s };
    let queue = state.app.configure_queue(&input.by, configured).await?;
    Reply::entity(StatusCode::OK, "queue", &queue, attributes(&queue.state, queue.version))
}
