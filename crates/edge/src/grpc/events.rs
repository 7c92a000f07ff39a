//! `keiko.events.v1`: the log, followed live.

use super::caller::{caller, status};
use super::events_v1::event_service_server::EventService;
use super::events_v1::subscribe_response::What;
use super::events_v1::{Actor, Event, Metadata, Place, SubscribeRequest, SubscribeResponse};
use super::peer;
use crate::follow::{Follower, PERMISSION, Rooms, Step};
use crate::http::category;
use app::{App, EventFilter, Filter, Selection};
use futures_util::stream::{self, StreamExt};
use kernel::{Recorded, Rejection};
use std::pin::Pin;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

pub(super) struct Service {
    app: App,
    rooms: Rooms,
}

impl Service {
    pub fn new(app: App) -> Self {
        Service { rooms: Rooms::new(app.clone()), app }
    }

    async fn follow(&self, request: Request<SubscribeRequest>) -> Result<Follower, Rejection> {
        let (metadata, peer) = (request.metadata().clone(), peer(&request));
        let reader = caller(&self.app, &metadata, peer, PERMISSION).await?;
        let asked = request.into_inner();
        let (after, is_told) = (asked.after, asked.status);
        self.rooms.follow(reader.actor, PERMISSION, selection(asked)?, after, is_told).await
    }
}

/// What a request wants to see; an empty text says nothing.
fn selection(asked: SubscribeRequest) -> Result<Selection, Rejection> {
    let said = |text: String| (!text.is_empty()).then_some(text);
    let category = said(asked.category).map(|word| category::parse(&word)).transpose()?;
    let plain = EventFilter { kind: said(asked.r#type), stream: said(asked.stream), category };
    Ok(Selection { plain, filter: said(asked.filter).as_deref().map(Filter::compile).transpose()? })
}

#[tonic::async_trait]
impl EventService for Service {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<SubscribeResponse, Status>> + Send>>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let follower = self.follow(request).await.map_err(|rejection| status(&rejection))?;
        let steps = stream::unfold(follower, async |mut follower| Some((answers(&follower.next().await?), follower)));
        Ok(Response::new(Box::pin(steps.flat_map(stream::iter))))
    }
}

fn answers(step: &Step) -> Vec<Result<SubscribeResponse, Status>> {
    let events = step.page.iter().flat_map(|page| &page.events).map(|recorded| What::Event(event(recorded)));
    let place = step.place.as_ref().map(|place| {
        let said = Place { position: place.position, behind: place.behind };
        if place.is_caught_up { What::CaughtUp(said) } else { What::FellBehind(said) }
    });
    events.chain(place).map(|what| Ok(SubscribeResponse { what: Some(what) })).collect()
}

fn event(recorded: &Recorded) -> Event {
    let h = &recorded.header;
    let parts = recorded.parts().and_then(Result::ok);
    let (address, client) = parts.as_ref().map(|p| (p.address.clone(), p.client.clone())).unwrap_or_default();
    let actor = Actor {
        kind: h.actor.kind.as_str().to_owned(),
        id: h.actor.id.clone(),
        address: address.unwrap_or_default(),
        client: client.unwrap_or_default(),
    };
    let metadata = Metadata {
        correlation_id: h.correlation.clone(),
        causation_id: h.causation.map(|id| id.to_string()).unwrap_or_default(),
        user_id: h.user.map(|id| id.to_string()).unwrap_or_default(),
        trace_parent: h.trace_parent.clone().unwrap_or_default(),
        actor: Some(actor),
    };
    Event {
        id: h.id.to_string(),
        r#type: h.kind.clone(),
        timestamp_ms: h.occurred_at.0,
        source: h.source(),
        category: category::word(h.category).to_owned(),
        stream: h.stream.clone(),
        version: h.version,
        position: h.position,
        data_json: parts.map(|parts| parts.data.get().to_owned()).unwrap_or_default(),
        metadata: Some(metadata),
    }
}
