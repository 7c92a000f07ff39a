//! What is asked, the same in every binding: read from JSON or from a path and its query, checked, and nothing unknown refused.

use super::errors::A2aError;
use app::NewPush;
use app::a2a::{SKILL, SendOrder, TaskFilter};
use domain::task::Message;
use kernel::{Json, Problem, Rejection, Timestamp, limits};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Tasks of a page when nothing is said.
const PAGE_DEFAULT: u32 = 50;
const PAGE_MAX: u32 = 100;

/// An operation of A2A.
pub(super) enum Operation {
    Send(Box<Send>),
    SendStreaming(Box<Send>),
    Get { id: String, history_max: Option<usize> },
    List(Box<List>),
    Cancel { id: String },
    Subscribe { id: String },
    CreatePush { task: String, push: NewPush },
    GetPush { task: String, id: String },
    ListPushes { task: String },
    DeletePush { task: String, id: String },
    Card,
}

/// A message with what is wanted of the answer.
pub(super) struct Send {
    pub order: SendOrder,
    pub history_max: Option<usize>,
    /// Whether to answer before the task is over.
    pub is_immediate: bool,
    pub push: Option<NewPush>,
}

/// Which tasks, and what of them.
pub(super) struct List {
    pub filter: TaskFilter,
    pub history_max: Option<usize>,
    pub with_artifacts: bool,
}

/// Every field of every request; each operation looks at its own.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Params {
    tenant: Option<String>,
    id: Option<String>,
    task_id: Option<String>,
    message: Option<MessageIn>,
    configuration: Configuration,
    metadata: Option<Map<String, Value>>,
    history_length: Option<i64>,
    context_id: Option<String>,
    status: Option<String>,
    page_size: Option<i64>,
    page_token: Option<String>,
    status_timestamp_after: Option<String>,
    include_artifacts: Option<bool>,
    url: Option<String>,
    token: Option<String>,
    authentication: Option<Authentication>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MessageIn {
    message_id: String,
    context_id: Option<String>,
    task_id: Option<String>,
    role: Option<String>,
    parts: Vec<Value>,
    metadata: Option<Map<String, Value>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    history_length: Option<i64>,
    return_immediately: bool,
    task_push_notification_config: Option<PushIn>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PushIn {
    url: Option<String>,
    token: Option<String>,
    authentication: Option<Authentication>,
    /// What it is called, where it stands inside of something else.
    id: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Authentication {
    scheme: String,
    credentials: Option<String>,
}

type Read<T> = Result<T, A2aError>;

fn wrong(pointer: &str, message: &str) -> A2aError {
    let problem = Problem { pointer: pointer.into(), message: message.into() };
    A2aError::of(super::errors::Asked::Anything, Rejection::invalid(&[problem]))
}

/// What is said at all: an empty text is none, as in protocol buffers.
fn said(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

impl Params {
    /// From a JSON object.
    pub fn read(value: Value) -> Read<Params> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            wrong(&format!("/{}", path.trim_start_matches('.').replace('.', "/")), "is not of the documented form")
        })
    }

    /// From the names and values of a query.
    pub fn of_query(query: &str) -> Read<Params> {
        let number =
            |text: &str, pointer: &str| text.parse::<i64>().map(Some).map_err(|_| wrong(pointer, "must be a whole number"));
        let mut params = Params::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let value = value.into_owned();
            match name.as_ref() {
                "tenant" => params.tenant = Some(value),
                "contextId" => params.context_id = Some(value),
                "status" => params.status = Some(value),
                "pageToken" => params.page_token = Some(value),
                "statusTimestampAfter" => params.status_timestamp_after = Some(value),
                "historyLength" => params.history_length = number(&value, "/historyLength")?,
                "pageSize" => params.page_size = number(&value, "/pageSize")?,
                "includeArtifacts" => params.include_artifacts = Some(value == "true"),
                _ => {}
            }
        }
        Ok(params)
    }

    /// With what stands in a path.
    pub fn of_task(mut self, task: String) -> Params {
        self.id = Some(task);
        self
    }

    /// With the task that stands in a path before what is asked of it.
    pub fn with_task(mut self, task: String) -> Params {
        self.task_id = Some(task);
        self
    }

    /// The tenant that is named, which must be the caller's.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref().filter(|tenant| !tenant.is_empty())
    }

    fn id(&mut self) -> Read<String> {
        said(self.id.take()).ok_or_else(|| wrong("/id", "must be there"))
    }

    fn task(&mut self) -> Read<String> {
        said(self.task_id.take()).ok_or_else(|| wrong("/taskId", "must be there"))
    }

    pub fn get(mut self) -> Read<Operation> {
        let history_max = length(self.history_length)?;
        Ok(Operation::Get { id: self.id()?, history_max })
    }

    pub fn cancel(mut self) -> Read<Operation> {
        Ok(Operation::Cancel { id: self.id()? })
    }

    pub fn subscribe(mut self) -> Read<Operation> {
        Ok(Operation::Subscribe { id: self.id()? })
    }

    pub fn list(self) -> Read<Operation> {
        let limit = match self.page_size {
            None | Some(0) => PAGE_DEFAULT,
            Some(size) => {
                u32::try_from(size).ok().filter(|size| *size <= PAGE_MAX).ok_or_else(|| wrong("/pageSize", "must be 1 to 100"))?
            }
        };
        let state = said(self.status).filter(|state| state != "TASK_STATE_UNSPECIFIED");
        if state.as_ref().is_some_and(|state| !state.starts_with("TASK_STATE_")) {
            return Err(wrong("/status", "must be a state such as TASK_STATE_WORKING"));
        }
        let since = said(self.status_timestamp_after).map(|text| {
            text.parse::<Timestamp>()
                .map_err(|_| wrong("/statusTimestampAfter", "must be a time such as 2026-01-01T00:00:00.000Z"))
        });
        let after =
            said(self.page_token).map(|token| place(&token).ok_or_else(|| wrong("/pageToken", "is none of this listing's")));
        let filter = TaskFilter {
            context: said(self.context_id),
            state,
            since: since.transpose()?,
            limit: limit as usize,
            after: after.transpose()?,
        };
        let history_max = length(self.history_length)?;
        Ok(Operation::List(Box::new(List { filter, history_max, with_artifacts: self.include_artifacts == Some(true) })))
    }

    pub fn create_push(mut self) -> Read<Operation> {
        let task = self.task()?;
        let push = PushIn { id: self.id, url: self.url, token: self.token, authentication: self.authentication };
        Ok(Operation::CreatePush { task, push: push.push("/")? })
    }

    pub fn get_push(mut self) -> Read<Operation> {
        Ok(Operation::GetPush { task: self.task()?, id: self.id()? })
    }

    pub fn list_pushes(mut self) -> Read<Operation> {
        Ok(Operation::ListPushes { task: self.task()? })
    }

    pub fn delete_push(mut self) -> Read<Operation> {
        Ok(Operation::DeletePush { task: self.task()?, id: self.id()? })
    }

    pub fn send(self) -> Read<Send> {
        let said_it = self.message.ok_or_else(|| wrong("/message", "must be there"))?;
        if !matches!(said_it.role.as_deref(), None | Some("ROLE_USER" | "ROLE_UNSPECIFIED")) {
            return Err(wrong("/message/role", "must be ROLE_USER"));
        }
        check_parts(&said_it)?;
        let message_metadata = said_it.metadata.unwrap_or_default();
        let named = message_metadata.get(SKILL).or(self.metadata.as_ref().and_then(|metadata| metadata.get(SKILL)));
        let skill = named.and_then(Value::as_str).map(str::to_owned);
        let json = |value: &Value| Json::of(value).map_err(|_| wrong("/message", "cannot be kept"));
        let push = self.configuration.task_push_notification_config;
        let push = push.map(|push| push.push("/configuration/taskPushNotificationConfig/"));
        Ok(Send {
            order: SendOrder {
                message: Message {
                    id: said_it.message_id,
                    parts: json(&Value::Array(said_it.parts))?,
                    metadata: json(&Value::Object(message_metadata))?,
                },
                context: said(said_it.context_id),
                task: said(said_it.task_id),
                skill,
            },
            history_max: length(self.configuration.history_length)?,
            is_immediate: self.configuration.return_immediately,
            push: push.transpose()?,
        })
    }
}

impl PushIn {
    fn push(self, at: &str) -> Read<NewPush> {
        let url = said(self.url).ok_or_else(|| wrong(&format!("{at}url"), "must be there"))?;
        let authentication = self.authentication.map(|a| (a.scheme, said(a.credentials)));
        Ok(NewPush { name: said(self.id), url, token: said(self.token), authentication })
    }
}

fn check_parts(message: &MessageIn) -> Read<()> {
    if message.message_id.is_empty() || message.message_id.chars().count() > limits::NAME_CHARS_MAX {
        return Err(wrong("/message/messageId", "must have 1 to 128 characters"));
    }
    if message.parts.is_empty() {
        return Err(wrong("/message/parts", "at least one part is required"));
    }
    Ok(())
}

fn length(said: Option<i64>) -> Read<Option<usize>> {
    let number = said.map(|said| usize::try_from(said).map_err(|_| wrong("/historyLength", "must be 0 or more")));
    number.transpose()
}

/// The place in a listing that a token stands for.
fn place(token: &str) -> Option<(Timestamp, String)> {
    let (at, id) = token.split_once('.')?;
    Some((Timestamp(at.parse().ok()?), id.to_owned()))
}

/// The token of a place in a listing.
pub(super) fn token(place: Option<&(Timestamp, String)>) -> String {
    place.map(|(at, id)| format!("{}.{id}", at.0)).unwrap_or_default()
}
