//! The service as the `.proto` file declares it.

use super::caller::{caller, status};
use super::peer;
use super::v1::worker_server::Worker;
use super::v1::{SubmitRequest, SubmitResponse, WorkRequest, WorkResponse};
use super::work;
use app::{App, NewTask};
use kernel::{Json, Problem, Rejection, limits};
use sha2::{Digest, Sha256};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Answers that wait for a slow reader; then its messages wait too.
const OUTGOING_MAX: usize = 256;

pub(super) struct Service {
    app: App,
    json_depth_max: usize,
}

impl Service {
    pub fn new(app: App, json_depth_max: usize) -> Self {
        Service { app, json_depth_max }
    }
}

#[tonic::async_trait]
impl Worker for Service {
    type WorkStream = Pin<Box<dyn Stream<Item = Result<WorkResponse, Status>> + Send>>;

    async fn work(&self, request: Request<Streaming<WorkRequest>>) -> Result<Response<Self::WorkStream>, Status> {
        let (metadata, peer) = (request.metadata().clone(), peer(&request));
        let (out, answers) = mpsc::channel(OUTGOING_MAX);
        let session = work::Session::open(self.app.clone(), metadata, peer, out, self.json_depth_max).await;
        let session = session.map_err(|rejection| status(&rejection))?;
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn submit(&self, request: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
        let (metadata, peer) = (request.metadata().clone(), peer(&request));
        let submitted = async {
            let mut caller = caller(&self.app, &metadata, peer, "tasks.create").await?;
            let body = request.into_inner();
            caller.idempotency = idempotency(&body)?;
            self.app.submit(&caller, self.new_task(body)?).await
        };
        let task = submitted.await.map_err(|rejection: Rejection| status(&rejection))?.entity;
        let status = task.state.status.as_str().to_owned();
        Ok(Response::new(SubmitResponse { task_id: task.stream, status, position: task.position }))
    }
}

impl Service {
    fn new_task(&self, body: SubmitRequest) -> Result<NewTask, Rejection> {
        Ok(NewTask {
            input: object(&body.input_json, "/input_json", self.json_depth_max)?,
            context: object(&body.context_json, "/context_json", self.json_depth_max)?,
            description: body.description,
            capability: body.capability,
            priority: body.priority.map(|priority| u8::try_from(priority).unwrap_or(u8::MAX)),
            delay_ms: None,
            deadline: None,
            max_attempts: body.max_attempts,
            queue: (!body.queue.is_empty()).then_some(body.queue),
            collision: None,
            agent: None,
            conversation: None,
            message: None,
        })
    }
}

fn idempotency(body: &SubmitRequest) -> Result<Option<(String, [u8; 32])>, Rejection> {
    let key = &body.idempotency_key;
    if key.is_empty() {
        return Ok(None);
    }
    if key.len() > limits::IDEMPOTENCY_KEY_CHARS_MAX || !key.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        let message = format!("must have 1 to {} printable ASCII characters", limits::IDEMPOTENCY_KEY_CHARS_MAX);
        return Err(Rejection::invalid(&[Problem { pointer: "/idempotency_key".into(), message }]));
    }
    let request_hash = Sha256::digest(prost::Message::encode_to_vec(body)).into();
    Ok(Some((key.clone(), request_hash)))
}

/// A JSON object in a text; an empty text is an empty object.
pub(super) fn object(text: &str, pointer: &str, depth_max: usize) -> Result<Json, Rejection> {
    if text.is_empty() {
        return Ok(Json::empty_object());
    }
    let invalid = |message: &str| Rejection::invalid(&[Problem { pointer: pointer.to_owned(), message: message.to_owned() }]);
    if crate::http::json_depth(text) > depth_max {
        return Err(invalid("is nested too deep"));
    }
    let json = Json::parse(text.to_owned()).map_err(|_| invalid("is not JSON"))?;
    if json.text().trim_start().starts_with('{') { Ok(json) } else { Err(invalid("must be a JSON object")) }
}
