//! Server-sent events: how an event and a follower's place are written down, and the body that a follower reads.
//!
//! Owns the bytes. An event is written down once for each form, and its bytes are shared by whoever follows.

use super::cloudevents;
use super::v1::events::event_body;
use crate::follow::{Follower, Page, Place, Step};
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use kernel::Recorded;
use kernel::id::TenantId;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// A comment is sent after so much silence.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const COMMENT: Bytes = Bytes::from_static(b":\n\n");
/// Events as they were lately written down: many readers with different filters follow the same ones.
const FRAMES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The form of events.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// As everywhere in the API.
    Native = 0,
    /// As structured CloudEvents.
    Structured = 1,
}

/// What a follower is told, as the body of an answer that does not end. Nothing is prepared before the client reads.
pub(crate) fn response(follower: Follower, form: Form, frames: Arc<Frames>) -> Response {
    let pieces = stream::unfold((follower, frames), move |(mut follower, frames)| async move {
        let piece = match timeout(KEEP_ALIVE, follower.next()).await {
            Err(_) => COMMENT,
            Ok(step) => written(&step?, form, &frames),
        };
        Some((Ok::<_, Infallible>(piece), (follower, frames)))
    });
    ([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")], Body::from_stream(pieces)).into_response()
}

fn written(step: &Step, form: Form, frames: &Frames) -> Bytes {
    let events = step.page.as_deref().map(|page| frames.page(page, form));
    match (events, &step.place) {
        (Some(events), None) => events,
        (events, place) => {
            let mut both = BytesMut::from(events.unwrap_or_default());
            both.extend_from_slice(place.as_ref().map(said).unwrap_or_default().as_bytes());
            both.freeze()
        }
    }
}

fn said(place: &Place) -> String {
    let name = if place.is_caught_up { "caught_up" } else { "fell_behind" };
    let data = serde_json::json!({ "position": place.position, "behind": place.behind });
    format!("event: {name}\ndata: {data}\n\n")
}

/// The latest events as they were written down.
#[derive(Default)]
pub(crate) struct Frames(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    known: BTreeMap<Key, Bytes>,
    order: VecDeque<Key>,
    bytes: usize,
}

/// Which event in which form, and whether it still had its content.
type Key = (TenantId, u64, Form, bool);

impl Frames {
    /// A page's events, one behind the other.
    fn page(&self, page: &Page, form: Form) -> Bytes {
        page.written(form as usize, |events| {
            let mut bytes = BytesMut::new();
            for event in events {
                bytes.extend_from_slice(&self.frame(event, form));
            }
            bytes.freeze()
        })
    }

    fn frame(&self, event: &Recorded, form: Form) -> Bytes {
        let key = (event.header.tenant, event.header.position, form, event.payload.is_some());
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).known.get(&key) {
            return known.clone();
        }
        let made = frame(event, form);
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.known.insert(key, made.clone()).is_none() {
            recent.order.push_back(key);
            recent.bytes += made.len();
        }
        while recent.bytes > FRAMES_BYTES_MAX {
            let Some(oldest) = recent.order.pop_front() else { break };
            recent.bytes -= recent.known.remove(&oldest).map_or(0, |frame| frame.len());
        }
        made
    }
}

fn frame(event: &Recorded, form: Form) -> Bytes {
    let data = match form {
        Form::Structured => cloudevents::structured(event).to_string(),
        Form::Native => serde_json::to_string(&event_body(event)).unwrap_or_else(|_| Value::Null.to_string()),
    };
    let mut bytes = BytesMut::with_capacity(data.len() + 32);
    bytes.extend_from_slice(format!("id: {}\n", event.header.position).as_bytes());
    // JSON that somebody sent is kept as it came, and may have line ends between its parts.
    for line in data.split(['\n', '\r']) {
        bytes.put_slice(b"data: ");
        bytes.put_slice(line.as_bytes());
        bytes.put_u8(b'\n');
    }
    bytes.put_u8(b'\n');
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::follow::tests::event;
    use serde_json::json;

    #[test]
    fn an_event_is_whole_whatever_line_ends_its_json_has() {
        let raw: Box<serde_json::value::RawValue> = serde_json::from_str("{\"a\":\r\n [1,\n2]}").unwrap();
        let event = event(7, kernel::event::payload(&raw, &kernel::Origin::default()).unwrap());
        let text = String::from_utf8(frame(&event, Form::Native).to_vec()).unwrap();
        let block = text.strip_suffix("\n\n").unwrap();
        let lines: Vec<&str> = block.lines().collect();
        assert_eq!(lines[0], "id: 7");
        let data: Vec<&str> = lines[1..].iter().map(|line| line.strip_prefix("data: ").unwrap()).collect();
        let shown: Value = serde_json::from_str(&data.join("\n")).unwrap();
        assert_eq!((&shown["data"], &shown["position"]), (&json!({ "a": [1, 2] }), &json!(7)));
    }

    #[test]
    fn what_is_kept_of_the_latest_events_is_bounded() {
        let frames = Frames::default();
        let large = kernel::event::payload(&"x".repeat(FRAMES_BYTES_MAX / 3), &kernel::Origin::default()).unwrap();
        let made: Vec<Bytes> = (1..=9).map(|at| frames.frame(&event(at, large.clone()), Form::Native)).collect();
        assert_eq!(frames.frame(&event(9, large.clone()), Form::Native).as_ptr(), made[8].as_ptr(), "the latest is shared");
        assert_ne!(frames.frame(&event(9, large), Form::Structured), made[8], "each form has its own");
        let recent = frames.0.lock().unwrap();
        assert!(recent.bytes <= FRAMES_BYTES_MAX && recent.known.len() == recent.order.len() && recent.known.len() < 4);
    }
}
