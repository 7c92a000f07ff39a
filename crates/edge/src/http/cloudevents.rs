//! An event as a CloudEvent 1.0: structured (one JSON object) and binary (attributes in headers, data in the body).

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use kernel::Recorded;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The media type of one event.
pub(crate) const ONE: &str = "application/cloudevents+json";
/// The media type of an array of events.
pub(crate) const BATCH: &str = "application/cloudevents-batch+json";
/// What the data is.
const JSON: &str = "application/json";
/// What a header value of the binary form encodes, beside everything that is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%').add(0x7f);
/// Digits of `sequence`, so that it sorts as text.
const SEQUENCE_DIGITS: usize = 20;

/// Every attribute but the data, in the order of the specification.
fn attributes(event: &Recorded) -> Vec<(&'static str, String)> {
    let h = &event.header;
    let mut found = vec![
        ("specversion", "1.0".to_owned()),
        ("id", h.id.to_string()),
        ("source", format!("/{}", h.source())),
        ("type", h.kind.clone()),
        ("subject", h.stream.clone()),
        ("time", h.occurred_at.to_string()),
        ("sequence", format!("{:0digits$}", h.position, digits = SEQUENCE_DIGITS)),
        ("partitionkey", h.stream.clone()),
        ("recordedtime", h.recorded_at.to_string()),
    ];
    let optional = [
        ("correlationid", Some(h.correlation.clone()).filter(|id| !id.is_empty())),
        ("causationid", h.causation.map(|id| id.to_string())),
        ("traceparent", h.trace_parent.clone()),
        ("authid", h.user.map(|id| id.to_string())),
    ];
    found.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    found
}

/// The data's bytes; `None` when it was erased.
fn data(event: &Recorded) -> Option<&RawValue> {
    event.parts().and_then(Result::ok).map(|parts| parts.data)
}

/// The structured form.
pub(crate) fn structured(event: &Recorded) -> Value {
    let mut object: Map<String, Value> = attributes(event).into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    if let Some(data) = data(event).and_then(|raw| serde_json::from_str(raw.get()).ok()) {
        object.insert("datacontenttype".into(), JSON.into());
        object.insert("data".into(), data);
    }
    object.into()
}

/// The binary form: headers and body.
pub(crate) fn binary(event: &Recorded) -> (HeaderMap, Vec<u8>) {
    let mut headers = HeaderMap::new();
    for (name, value) in attributes(event) {
        let value = utf8_percent_encode(&value, ENCODED).to_string();
        // Attribute names are plain, and the value holds nothing but printable ASCII now.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(format!("ce-{name}")), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    let body = data(event).map(|raw| raw.get().as_bytes().to_vec());
    if body.is_some() {
        headers.insert(axum::http::header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    }
    (headers, body.unwrap_or_default())
}
