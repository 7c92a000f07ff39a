//! How calls of a server are bounded, seen and set; and who answers in its place.

use crate::app::App;
use crate::errors::Problems;
use crate::mcp::wish;
use crate::{Answer, Caller};
use domain::mcp_server::{McpServer, McpServerCommand, Tuning, not_found};
use domain::tool::{Tool, tool_id};
use engine::{Extras, Handled, Step};
use gateway::{Call, CallError, Figures, Key, Outcome, Priority, Tasks};
use kernel::Json;
use kernel::id::McpServerId;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// In `_meta` of a request, how much it matters; in `_meta` of a result, which server answered in another one's place.
const PRIORITY: &str = "keiko/priority";
const ANSWERED_BY: &str = "keiko/answered-by";

/// The least time that makes it worth to ask another server.
const FALLBACK_TIME_MIN: Duration = Duration::from_millis(100);

/// How calls of a server are bounded, and how it has been doing on this replica.
pub struct Resilience {
    /// The server.
    pub server: Handled<McpServer>,
    /// The name of the one that answers in its place.
    pub fallback: Option<String>,
    /// Nothing where it is not run here.
    pub figures: Option<Figures>,
}

/// A server of a tenant and how it has been doing on this replica.
pub struct UpstreamStatus {
    /// The tenant's name.
    pub tenant: String,
    /// The server's name.
    pub server: String,
    /// Whether its tools can be called.
    pub is_ready: bool,
    /// How it has been doing.
    pub figures: Figures,
}

/// What a server answered, and its name where it is not the one that was asked.
pub(crate) struct Answered {
    pub outcome: Outcome,
    pub by: Option<String>,
}

/// As the gateway has it.
pub(crate) fn tuning(tuning: &Tuning) -> gateway::Tuning {
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    gateway::Tuning {
        calls_max: count(tuning.calls_max),
        waiting_max: count(tuning.waiting_max),
        attempts_max: tuning.attempts_max,
        retry_percent: tuning.retry_percent,
        failures_max: tuning.failures_max,
        failure_percent: tuning.failure_percent,
        open: Duration::from_millis(tuning.open_ms),
        timeout_is_adaptive: tuning.timeout_is_adaptive,
        timeout_min: Duration::from_millis(tuning.timeout_min_ms),
    }
}

/// Whether a tool says that it only reads, or that a repetition changes nothing. Somebody approved what it says.
pub(crate) fn is_repeatable(tool: &Tool) -> bool {
    let more = &tool.manifest.more;
    more.text().contains("Hint") && {
        let annotations = &more.value()["annotations"];
        annotations["readOnlyHint"] == true || annotations["idempotentHint"] == true
    }
}

/// How much a request matters, as its client says; taken out, for servers are not asked to know it.
pub(crate) fn priority_of(meta: &mut serde_json::Map<String, Value>) -> Answer<Priority> {
    let Some(said) = meta.remove(PRIORITY) else { return Ok(Priority::Normal) };
    match said.as_str() {
        Some("low") => Ok(Priority::Low),
        Some("normal") => Ok(Priority::Normal),
        Some("high") => Ok(Priority::High),
        _ => {
            let mut problems = Problems::default();
            problems.add(format!("/params/_meta/{}", PRIORITY.replace('/', "~1")), "must be 'low', 'normal' or 'high'");
            problems.refuse().map(|()| Priority::Normal)
        }
    }
}

/// A result that says who gave it.
fn marked(outcome: Outcome, server: &str) -> Outcome {
    let Outcome::Complete(result) = outcome else { return outcome };
    let mut value = result.value();
    if let Value::Object(members) = &mut value {
        let meta = members.entry("_meta").or_insert_with(|| json!({}));
        if let Value::Object(meta) = meta {
            meta.insert(ANSWERED_BY.into(), server.into());
        }
    }
    Outcome::Complete(Json::of(&value).unwrap_or(result))
}

impl App {
    /// How calls of a server are bounded, and how it does.
    pub async fn resilience(&self, caller: &Caller, id_or_name: &str) -> Answer<Resilience> {
        let server = self.mcp_server(caller, id_or_name).await?;
        self.resilience_of(caller, server)
    }

    fn resilience_of(&self, caller: &Caller, server: Handled<McpServer>) -> Answer<Resilience> {
        let id: McpServerId = server.stream.parse().map_err(|_| not_found(&server.stream))?;
        let runtime = self.runtime(caller)?;
        let name = |id: McpServerId| {
            let known = runtime.catalogue.known();
            known.servers.get(&id).map_or_else(|| id.to_string(), |server| server.state.profile.name.clone())
        };
        let fallback = server.state.tuning.fallback.map(name);
        let figures = self.0.gateway.figures(Key { tenant: caller.actor.tenant, server: id });
        Ok(Resilience { server, fallback, figures })
    }

    /// Bounds the calls of a server otherwise; `fallback` is the id or name of the one that answers in its place.
    pub async fn tune_mcp_server(
        &self,
        caller: &Caller,
        id_or_name: &str,
        tuning: Tuning,
        fallback: Option<&str>,
    ) -> Answer<Resilience> {
        let server = self.mcp_server(caller, id_or_name).await?;
        let fallback = match fallback {
            Some(fallback) => Some(self.fallback(caller, &server, fallback).await?),
            None => None,
        };
        let tuning = Tuning { fallback, ..tuning };
        self.witness(caller, "mcp-servers.server.tuned", &json!({ "id": server.stream, "tuning": tuning })).await?;
        let step = Step::on::<McpServer>(&server.stream, McpServerCommand::Tune(tuning));
        let server = self.execute::<McpServer>(caller, step, Extras::default()).await?;
        self.resilience_of(caller, server)
    }

    async fn fallback(&self, caller: &Caller, server: &Handled<McpServer>, id_or_name: &str) -> Answer<McpServerId> {
        let mut problems = Problems::default();
        let found = self.mcp_server(caller, id_or_name).await;
        let id = found.ok().and_then(|found| found.stream.parse::<McpServerId>().ok());
        match id {
            Some(id) if id.to_string() != server.stream => return Ok(id),
            Some(_) => problems.add("/fallback", "must be another server"),
            None => problems.add("/fallback", format!("there is no MCP server '{id_or_name}' in this tenant")),
        }
        problems.refuse()?;
        Err(not_found(id_or_name))
    }

    /// Every server that is run here.
    pub fn upstreams_status(&self) -> Vec<UpstreamStatus> {
        let mut all = vec![];
        for (tenant, runtime) in self.runtimes_by_slug() {
            let known = runtime.catalogue.known();
            for (id, server) in &known.servers {
                if let Some(figures) = self.0.gateway.figures(Key { tenant: runtime.id, server: *id }) {
                    let is_ready = server.state.status == domain::mcp_server::ServerStatus::Ready;
                    let server = server.state.profile.name.clone();
                    all.push(UpstreamStatus { tenant: tenant.clone(), server, is_ready, figures });
                }
            }
        }
        all
    }

    /// Hands a call on to a server; when that has no answer and may be asked elsewhere, to the one declared in its place.
    pub(crate) async fn ask_server(
        &self,
        caller: &Caller,
        server: McpServerId,
        mut call: Call,
        tool: Option<&Tool>,
    ) -> Result<Answered, CallError> {
        let (tenant, begun) = (caller.actor.tenant, self.env().now());
        call.client.holder = self.account_of(caller, server);
        // A task is looked for where it was asked for.
        let may_move = call.ask.task.is_none() || call.client.tasks != Tasks::Followed;
        let fallback = tool.filter(|_| may_move).and_then(|tool| self.stand_in(caller, tool));
        let Some((tool, name)) = fallback else {
            let outcome = self.0.gateway.ask(Key { tenant, server }, call).await?;
            return Ok(Answered { outcome, by: None });
        };
        let error = match self.0.gateway.ask(Key { tenant, server }, call.clone()).await {
            Ok(outcome) => return Ok(Answered { outcome, by: None }),
            Err(error) if call.is_safe_after(&error) => error,
            Err(error) => return Err(error),
        };
        let took = Duration::from_millis(self.env().now().since_ms(begun));
        let mut other = call;
        other.is_repeatable = is_repeatable(&tool.state);
        other.timeout = other.timeout.min(self.0.gateway.settings().call_timeout).saturating_sub(took);
        // What may have been carried out once must be good for a second time there, too; and no time is no chance.
        if !other.is_safe_after(&error) || other.timeout < FALLBACK_TIME_MIN {
            return Err(error);
        }
        other.approved = Some(tool.state.manifest.hash.clone());
        other.client.holder = self.account_of(caller, tool.state.server_id);
        // It cannot ask back: the answers would go to the server that stands first.
        other.client.capabilities.clear();
        other.client.tasks = Tasks::Awaited;
        other.ask.task = wish(&tool.state, Tasks::Awaited, None);
        match self.0.gateway.ask(Key { tenant, server: tool.state.server_id }, other).await {
            Ok(outcome @ Outcome::Complete(_)) => Ok(Answered { outcome: marked(outcome, &name), by: Some(name) }),
            // What is wrong with the first one is what matters.
            Ok(Outcome::InputRequired { .. } | Outcome::Task(_)) | Err(_) => Err(error),
        }
    }

    /// The same tool at the server that is declared in the place of its own: it must be approved and take the same arguments.
    fn stand_in(&self, caller: &Caller, tool: &Tool) -> Option<(Arc<Handled<Tool>>, String)> {
        let runtime = self.runtime(caller).ok()?;
        let known = runtime.catalogue.known();
        let fallback = known.servers.get(&tool.server_id)?.state.tuning.fallback?;
        let name = known.servers.get(&fallback)?.state.profile.name.clone();
        let other = known.tools.get(&tool_id(fallback, &tool.manifest.tool))?;
        let is_usable = other.state.is_listed && other.state.is_approved();
        (is_usable && other.state.manifest.input_schema == tool.manifest.input_schema).then(|| (other.clone(), name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_a_request_matters_is_not_told_to_the_server() {
        let mut meta = serde_json::Map::from_iter([(PRIORITY.to_owned(), json!("low")), ("a".to_owned(), json!(1))]);
        assert_eq!(priority_of(&mut meta).unwrap(), Priority::Low);
        assert_eq!(meta.len(), 1);
        assert!(priority_of(&mut serde_json::Map::from_iter([(PRIORITY.to_owned(), json!(9))])).is_err());
    }

    #[test]
    fn the_defaults_of_a_server_are_those_of_the_gateway() {
        assert_eq!(tuning(&Tuning::default()), gateway::Tuning::default());
    }
}
