//! `/api/v1/audit`: the record's Merkle trees, for whoever wants to check that nothing was changed. Read only, but for the
//! signatures of witnesses. Checkpoints and tiles have the form of C2SP tlog-checkpoint and tlog-tiles.

use crate::http::access::By;
use crate::http::body::{Input, Params};
use crate::http::envelope::{Failure, One, Outcome, Reply, Resource};
use crate::http::state::EdgeState;
use app::{AuditProof, Tree};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kernel::id::EventId;
use kernel::merkle::Hash;
use kernel::{Kind, Problem, Rejection};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(checkpoint))
        .routes(routes!(key))
        .routes(routes!(tile))
        .routes(routes!(inclusion))
        .routes(routes!(consistency))
        .routes(routes!(cosign))
}

fn tree(word: &str) -> Result<Tree, Failure> {
    Tree::parse(word).ok_or_else(|| {
        let message = format!("There is no tree '{word}'.");
        Rejection::new(Kind::NotFound, "ROUTE_NOT_FOUND", message, "The trees are 'log' and 'journal'.").into()
    })
}

fn text(body: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// Which checkpoint.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CheckpointParams {
    /// Whether the latest one is wanted that a witness has signed too.
    #[serde(default)]
    cosigned: bool,
}

/// Read the latest signed checkpoint
///
/// A signed note: name of the tree, number of entries, root; signed with Ed25519.
#[utoipa::path(get, path = "/api/v1/audit/{tree}/checkpoint", tag = "audit",
    extensions(("x-permission" = json!("audit.verify"))),
    params(("tree" = String, Path, description = "`log` or `journal`"), CheckpointParams),
    responses((status = 200, body = String, content_type = "text/plain")))]
async fn checkpoint(
    State(state): State<Arc<EdgeState>>,
    By(caller): By,
    Path(word): Path<String>,
    Params(params): Params<CheckpointParams>,
) -> Result<Response, Failure> {
    let sealed = state.app.checkpoint(&caller, tree(&word)?).await?;
    match (params.cosigned, sealed.cosigned.is_empty()) {
        (false, _) => Ok(text(sealed.note)),
        (true, false) => Ok(text(sealed.cosigned)),
        (true, true) => {
            let hint = "Witnesses are named in audit.witnesses and send their signatures to …/cosignatures.";
            let message = "No witness has signed a checkpoint of this tree yet.";
            Err(Rejection::new(Kind::NotFound, "CHECKPOINT_NOT_FOUND", message, hint).into())
        }
    }
}

/// Read the public key that signs checkpoints
///
/// In the form `name+id+key`. Keep it where the server cannot change it.
#[utoipa::path(get, path = "/api/v1/audit/{tree}/key", tag = "audit",
    extensions(("x-permission" = json!("audit.verify"))), params(("tree" = String, Path, description = "`log` or `journal`")),
    responses((status = 200, body = String, content_type = "text/plain")))]
async fn key(State(state): State<Arc<EdgeState>>, By(caller): By, Path(word): Path<String>) -> Result<Response, Failure> {
    Ok(text(format!("{}\n", state.app.audit_key(&caller, tree(&word)?))))
}

/// Read a tile or a bundle of entries
///
/// `0/x001/x234/067` holds 256 hashes, `0/000.p/5` the first five of a tile at the tree's edge, `entries/000` what the
/// leaves are made of: headers and content hashes, no content.
#[utoipa::path(get, path = "/api/v1/audit/{tree}/tile/{*path}", tag = "audit",
    extensions(("x-permission" = json!("audit.verify"))),
    params(("tree" = String, Path, description = "`log` or `journal`"), ("path" = String, Path, description = "As in C2SP tlog-tiles")),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream")))]
async fn tile(
    State(state): State<Arc<EdgeState>>,
    By(caller): By,
    Path((word, path)): Path<(String, String)>,
) -> Result<Response, Failure> {
    let bytes = state.app.audit_tile(&caller, tree(&word)?, &path).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

/// What is to be proved.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct InclusionParams {
    /// The entry's position; or `event`.
    position: Option<u64>,
    /// The event's id, in the log.
    event: Option<String>,
    /// The size of the tree to prove it in; the latest when nothing is said.
    size: Option<u64>,
}

/// What is to be proved.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ConsistencyParams {
    /// The size of the earlier tree.
    from: u64,
    /// The size of the later tree; the latest when nothing is said.
    to: Option<u64>,
}

/// A proof. Hashes are base64.
#[derive(Serialize, ToSchema)]
struct ProofAttributes {
    /// The entry's position, or the earlier size.
    position: u64,
    /// The entry's leaf.
    leaf: Option<String>,
    /// The size of the tree.
    size: u64,
    /// Its root.
    root: String,
    /// The hashes that lead there, in the order of RFC 9162.
    hashes: Vec<String>,
    /// The latest signed checkpoint.
    checkpoint: String,
}

fn proof(kind: &'static str, proof: &AuditProof) -> Outcome {
    let encoded = |hash: &Hash| STANDARD.encode(hash);
    let attributes = ProofAttributes {
        position: proof.position,
        leaf: proof.leaf.as_ref().map(encoded),
        size: proof.size,
        root: encoded(&proof.root),
        hashes: proof.hashes.iter().map(encoded).collect(),
        checkpoint: proof.checkpoint.clone(),
    };
    Reply::data(StatusCode::OK, &Resource { id: format!("{}/{}", proof.position, proof.size), kind, attributes })
}

/// Prove that an entry is in the record
#[utoipa::path(get, path = "/api/v1/audit/{tree}/inclusion", tag = "audit",
    extensions(("x-permission" = json!("audit.verify"))),
    params(("tree" = String, Path, description = "`log` or `journal`"), InclusionParams),
    responses((status = 200, body = One<ProofAttributes>)))]
async fn inclusion(
    State(state): State<Arc<EdgeState>>,
    By(caller): By,
    Path(word): Path<String>,
    Params(params): Params<InclusionParams>,
) -> Outcome {
    let tree = tree(&word)?;
    let wrong = |pointer: &str, message: &str| {
        Failure::from(Rejection::invalid(&[Problem { pointer: pointer.into(), message: message.into() }]))
    };
    let position = match (params.position, params.event) {
        (Some(position), None) => position,
        (None, Some(id)) if tree == Tree::Log => {
            let id: EventId = id.parse().map_err(|_| wrong("/event", "is no event id, such as evt_01h…"))?;
            state.app.position_of_event(&caller, id).await?
        }
        (None, Some(_)) => return Err(wrong("/event", "names events of the log; in the journal use 'position'")),
        _ => return Err(wrong("/position", "or 'event' is needed, one of them")),
    };
    proof("inclusion_proof", &state.app.prove_inclusion(&caller, tree, position, params.size).await?)
}

/// Prove that an earlier record is the beginning of a later one
#[utoipa::path(get, path = "/api/v1/audit/{tree}/consistency", tag = "audit",
    extensions(("x-permission" = json!("audit.verify"))),
    params(("tree" = String, Path, description = "`log` or `journal`"), ConsistencyParams),
    responses((status = 200, body = One<ProofAttributes>)))]
async fn consistency(
    State(state): State<Arc<EdgeState>>,
    By(caller): By,
    Path(word): Path<String>,
    Params(params): Params<ConsistencyParams>,
) -> Outcome {
    let found = state.app.prove_consistency(&caller, tree(&word)?, params.from, params.to).await?;
    proof("consistency_proof", &found)
}

/// A checkpoint with a witness's signature.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CosignatureBody {
    /// The signed note as it was served, with the witness's line added.
    note: String,
}

/// What is kept.
#[derive(Serialize, ToSchema)]
struct CosignedAttributes {
    /// The note with every signature that was checked.
    note: String,
}

/// Add a witness's signature to a checkpoint
#[utoipa::path(post, path = "/api/v1/audit/{tree}/cosignatures", tag = "audit",
    extensions(("x-permission" = json!("audit.verify"))), params(("tree" = String, Path, description = "`log` or `journal`")),
    request_body = CosignatureBody, responses((status = 200, body = One<CosignedAttributes>)))]
async fn cosign(State(state): State<Arc<EdgeState>>, Path(word): Path<String>, input: Input<CosignatureBody>) -> Outcome {
    let sealed = state.app.cosign(&input.by, tree(&word)?, &input.body.note).await?;
    let attributes = CosignedAttributes { note: sealed.cosigned };
    Reply::data(StatusCode::OK, &Resource { id: word, kind: "checkpoint", attributes })
}
