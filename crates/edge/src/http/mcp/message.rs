//! JSON-RPC messages of clients, and answers to them.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use kernel::{Json, Kind, Rejection};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

pub(super) const INVALID_REQUEST: i64 = -32_600;
pub(super) const METHOD_NOT_FOUND: i64 = -32_601;
pub(super) const INVALID_PARAMS: i64 = -32_602;
pub(super) const INTERNAL_ERROR: i64 = -32_603;
pub(super) const PARSE_ERROR: i64 = -32_700;
pub(super) const HEADER_MISMATCH: i64 = -32_020;
pub(super) const CAPABILITY_MISSING: i64 = -32_021;
pub(super) const VERSION_UNSUPPORTED: i64 = -32_022;
/// A resource that is not there, in versions before the newest.
const RESOURCE_NOT_FOUND: i64 = -32_002;

/// Anything that a client sends.
#[derive(Deserialize)]
pub(super) struct Incoming {
    #[serde(default, deserialize_with = "said")]
    pub id: Option<Box<RawValue>>,
    pub method: Option<String>,
    pub params: Option<Box<RawValue>>,
    pub result: Option<Box<RawValue>>,
    pub error: Option<Value>,
}

/// An id that is `null` is one that must not be, and not none.
fn said<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// What a message is.
pub(super) enum Message {
    /// It wants an answer.
    Request(Request),
    /// It wants none.
    Notification { method: String, params: Params },
    /// It answers a question of ours; nothing where the client refused.
    Response { id: String, answer: Option<Value> },
}

/// A request of a client.
pub(super) struct Request {
    /// As it came, to be repeated.
    pub id: Box<RawValue>,
    pub method: String,
    pub params: Params,
}

/// The parameters of every method; each looks at its own.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Params {
    pub name: Option<String>,
    pub uri: Option<String>,
    pub cursor: Option<String>,
    pub arguments: Option<Box<RawValue>>,
    #[serde(rename = "_meta")]
    pub meta: Option<Map<String, Value>>,
    pub input_responses: Option<Map<String, Value>>,
    pub request_state: Option<String>,
    pub level: Option<String>,
    pub protocol_version: Option<String>,
    pub capabilities: Option<Map<String, Value>>,
    pub notifications: Option<Map<String, Value>>,
    #[serde(rename = "ref")]
    pub reference: Option<Map<String, Value>>,
    pub argument: Option<Box<RawValue>>,
    pub context: Option<Box<RawValue>>,
    pub request_id: Option<Box<RawValue>>,
    pub task: Option<Box<RawValue>>,
    pub task_id: Option<String>,
}

/// An error of JSON-RPC.
#[derive(Debug)]
pub(super) struct RpcError {
    pub code: i64,
    pub message: String,
    pub data: Option<Value>,
}

/// What a request is answered: the text of its result, or an error.
pub(super) type Answer = Result<String, RpcError>;

impl RpcError {
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        RpcError { code, message: message.into(), data: None }
    }

    pub fn with(self, data: Value) -> Self {
        RpcError { data: Some(data), ..self }
    }

    pub fn no_method(method: &str) -> Self {
        RpcError::new(METHOD_NOT_FOUND, format!("There is no method '{}'.", shown(method)))
    }

    /// A refusal, as an error of the protocol. An error of a server behind Keiko is passed on with its own words.
    pub fn of(rejection: &Rejection, is_modern: bool, is_resource: bool) -> Self {
        if let Some(upstream) = rejection.details.get("upstream") {
            let code = upstream["code"].as_i64().unwrap_or(INTERNAL_ERROR);
            let message = upstream["message"].as_str().unwrap_or_default().to_owned();
            let data = Some(upstream["data"].clone()).filter(|data| !data.is_null());
            return RpcError { code: translated(code, is_modern), message, data };
        }
        let code = match rejection.kind {
            Kind::NotFound if is_resource && !is_modern => RESOURCE_NOT_FOUND,
            Kind::NotFound | Kind::Invalid | Kind::Refused => INVALID_PARAMS,
            _ => INTERNAL_ERROR,
        };
        let mut data = json!({ "code": rejection.code, "hint": rejection.hint });
        for name in ["server", "uri", "call_id"] {
            if let Some(value) = rejection.details.get(name) {
                data[name] = value.clone();
            }
        }
        RpcError { code, message: rejection.message.clone(), data: Some(data) }
    }
}

/// A server's code of an error in the version of the client: some mean something else there, or nothing.
pub(super) fn translated(code: i64, is_modern: bool) -> i64 {
    match code {
        RESOURCE_NOT_FOUND if is_modern => INVALID_PARAMS,
        CAPABILITY_MISSING if is_modern => code,
        RESOURCE_NOT_FOUND => code,
        // Reserved for what Keiko itself has to say about headers and versions, or of one version only.
        -32_099..=-32_020 => INTERNAL_ERROR,
        code => code,
    }
}

pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

impl Incoming {
    /// What it is.
    pub fn message(self) -> Result<Message, RpcError> {
        let is_id = |id: &RawValue| matches!(id.get().as_bytes().first(), Some(b'"' | b'-' | b'0'..=b'9'));
        let no_request = || RpcError::new(INVALID_REQUEST, "This is no JSON-RPC message.");
        match (self.method, self.id) {
            (Some(method), Some(id)) if is_id(&id) => Ok(Message::Request(Request { id, method, params: params(self.params)? })),
            (Some(_), Some(_)) => Err(no_request()),
            (Some(method), None) => Ok(Message::Notification { method, params: params(self.params).unwrap_or_default() }),
            (None, Some(id)) if self.result.is_some() || self.error.is_some() => {
                let answer = self.result.and_then(|result| serde_json::from_str(result.get()).ok());
                Ok(Message::Response { id: id.get().to_owned(), answer })
            }
            (None, _) => Err(no_request()),
        }
    }
}

fn params(params: Option<Box<RawValue>>) -> Result<Params, RpcError> {
    match params {
        None => Ok(Params::default()),
        Some(raw) if raw.get().starts_with('{') => {
            serde_json::from_str(raw.get()).map_err(|e| RpcError::new(INVALID_PARAMS, format!("The parameters do not fit: {e}.")))
        }
        Some(_) => Err(RpcError::new(INVALID_PARAMS, "The parameters must be an object.")),
    }
}

impl Params {
    /// The client's token of progress.
    pub fn progress_token(&self) -> Option<&Value> {
        self.meta.as_ref()?.get("progressToken").filter(|token| token.is_string() || token.is_number())
    }

    /// What of `_meta` is not the protocol's own.
    pub fn foreign_meta(&self) -> Map<String, Value> {
        let is_own = |name: &str| name == "progressToken" || name.starts_with("io.modelcontextprotocol/");
        let meta = self.meta.iter().flatten().filter(|(name, _)| !is_own(name));
        meta.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// A raw value as JSON that is carried on.
pub(super) fn carried(raw: &RawValue) -> Json {
    Json::of(raw).unwrap_or_default()
}

/// The text of an answer.
pub(super) fn written(id: &RawValue, answer: &Answer) -> String {
    match answer {
        Ok(result) => format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.get()),
        Err(error) => {
            let mut body = json!({ "code": error.code, "message": error.message });
            if let Some(data) = &error.data {
                body["data"] = data.clone();
            }
            format!(r#"{{"jsonrpc":"2.0","id":{},"error":{body}}}"#, id.get())
        }
    }
}

/// An answer as a whole response.
pub(super) fn whole(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// A refusal of what is no request.
pub(super) fn refused(error: RpcError) -> Response {
    whole(StatusCode::BAD_REQUEST, written(RawValue::NULL, &Err(error)))
}

/// The text of a notification.
pub(super) fn notification(method: &str, params: &Value) -> String {
    json!({ "jsonrpc": "2.0", "method": method, "params": params }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Result<Message, RpcError> {
        serde_json::from_str::<Incoming>(text).unwrap().message()
    }

    #[test]
    fn messages_are_told_apart() {
        assert!(matches!(message(r#"{"id":1,"method":"ping"}"#), Ok(Message::Request(r)) if r.id.get() == "1"));
        assert!(matches!(message(r#"{"method":"notifications/initialized"}"#), Ok(Message::Notification { .. })));
        assert!(matches!(message(r#"{"id":"a","result":{}}"#), Ok(Message::Response { answer: Some(_), .. })));
        assert!(matches!(message(r#"{"id":"a","error":{"code":1}}"#), Ok(Message::Response { answer: None, .. })));
        for bad in [
            r#"{"id":{},"method":"ping"}"#,
            r#"{"id":null,"method":"ping"}"#,
            r#"{"id":true,"method":"ping"}"#,
            r#"{"id":1}"#,
            "{}",
            r#"{"id":1,"method":"m","params":[]}"#,
        ] {
            assert!(message(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn codes_of_servers_are_told_as_the_clients_version_has_them() {
        assert_eq!(translated(-32_002, true), -32_602);
        assert_eq!(translated(-32_002, false), -32_002);
        assert_eq!(translated(-32_021, true), -32_021);
        assert_eq!(translated(-32_021, false), -32_603);
        assert_eq!(translated(-32_042, true), -32_603);
        assert_eq!(translated(-32_602, false), -32_602);
        assert_eq!(translated(1_234, true), 1_234);
    }
}
