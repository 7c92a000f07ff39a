//! Looks after the health of a tenant's components, on the replica that leads its log: looks at what is outside, works out what
//! follows for whom, and writes down what changed.

use crate::app::App;
use crate::workers::TenantRuntime;
use domain::component::{Component, ComponentCommand, HealthChanged, Probe, Subject};
use domain::health::{Damper, Node, Row, Status, effective};
use domain::mcp_server::{CircuitOpened, McpServer, ServerStatus};
use engine::{Context, Engine, Env, Extras, HandleError, Handled, Step};
use gateway::Look;
use kernel::id::ComponentId;
use kernel::{Kind, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often what is known here is looked through.
const TICK_MS: u64 = 250;
/// Looks at the same time, of one tenant.
const LOOKS_MAX: usize = 64;
/// Changes that are written down before everything is looked through again.
const MARKS_MAX: usize = 200;
/// Before something is tried again that could not be written.
const AGAIN_MS: u64 = 2_000;
/// Who writes it down.
const HEALTH: &str = "health";

/// What has been seen of what is outside.
#[derive(Default)]
struct Seen {
    probes: BTreeMap<ComponentId, Looked>,
    running: BTreeSet<ComponentId>,
}

/// What has been seen of one.
struct Looked {
    probe: Probe,
    row: Row,
    status: Status,
    reason: String,
    at: Timestamp,
}

/// What is told of components of their own, by what they stand for.
type Dampers = BTreeMap<ComponentId, (Subject, Damper)>;

/// Follows the health of a tenant's components while its log is led here.
pub(crate) async fn look_after(app: App, runtime: Arc<TenantRuntime>, engine: Engine) {
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let mut dampers = Dampers::new();
    let mut rest_ms = TICK_MS;
    loop {
        tokio::select! {
            biased;
            () = engine.env().stop().cancelled() => return,
            () = engine.env().sleep_ms(rest_ms) => {}
        }
        if runtime.catalogue.known().components.is_empty() {
            continue;
        }
        start_looks(&app, &runtime, &engine, &seen);
        let changed = changed(&runtime, &seen, &mut dampers, engine.env().now());
        rest_ms = if write_down(&runtime, &engine, changed).await { TICK_MS } else { AGAIN_MS };
    }
}

/// Writes down how components are now; whether that could be done.
async fn write_down(runtime: &TenantRuntime, engine: &Engine, changed: Vec<(ComponentId, u64, HealthChanged)>) -> bool {
    for (id, version, health) in changed.into_iter().take(MARKS_MAX) {
        if engine.env().stop().is_cancelled() {
            return true;
        }
        // Whoever changed it meanwhile may have made it something else.
        let context = Context { if_match: Some(version), ..Context::system(HEALTH) };
        let step = Step::on::<Component>(id, ComponentCommand::Mark(health));
        match engine.handle::<Component>(runtime.id, step, &context, Extras::default()).await {
            Ok(marked) => runtime.catalogue.put_component(id, marked),
            Err(HandleError::Rejected(rejection)) if rejection.kind == Kind::NotFound => runtime.catalogue.forget_component(id),
            // What is known here is behind; it is heard of soon.
            Err(HandleError::Rejected(_)) => {}
            Err(error) => {
                tracing::error!(component = %id, %error, "a component's health could not be written; trying again");
                return false;
            }
        }
    }
    true
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at whatever it is time for, first at what has waited for the longest.
fn start_looks(app: &App, runtime: &TenantRuntime, engine: &Engine, seen: &Arc<Mutex<Seen>>) {
    let now = engine.env().now();
    let known = runtime.catalogue.known();
    let mut held = locked(seen);
    let probe_of = |id: &ComponentId| known.components.get(id).map(|component| &component.state.profile.subject);
    held.probes.retain(|id, looked| matches!(probe_of(id), Some(Subject::Probe { probe, .. }) if *probe == looked.probe));
    let mut due = vec![];
    for (id, component) in &known.components {
        if let Subject::Probe { every_ms, .. } = component.state.profile.subject {
            let at = held.probes.get(id).map_or(Timestamp(0), |looked| looked.at.plus_ms(every_ms));
            if at <= now && !held.running.contains(id) {
                due.push((at, *id, component.clone()));
            }
        }
    }
    due.sort_by_key(|(at, id, _)| (*at, *id));
    for (_, id, component) in due {
        if held.running.len() >= LOOKS_MAX {
            return;
        }
        held.running.insert(id);
        let (seen, env, allow_private) = (seen.clone(), engine.env().clone(), app.0.gateway.settings().allow_private);
        engine.env().spawn(look(id, component, seen, env, allow_private));
    }
}

/// Looks once, and remembers what was seen.
async fn look(id: ComponentId, component: Arc<Handled<Component>>, seen: Arc<Mutex<Seen>>, env: Env, allow_private: bool) {
    let Subject::Probe { probe, timeout_ms, failures, successes, .. } = &component.state.profile.subject else { return };
    let what = look_of(probe);
    let outcome = tokio::select! {
        biased;
        () = env.stop().cancelled() => return,
        outcome = gateway::look(&what, allow_private, Duration::from_millis(*timeout_ms)) => outcome,
    };
    let mut held = locked(&seen);
    held.running.remove(&id);
    let looked = held.probes.entry(id).or_insert_with(|| {
        let (status, reason) = said_before(id, &component.state.health);
        let row = if status == Status::Unknown { Row::default() } else { Row::known() };
        Looked { probe: probe.clone(), row, status, reason, at: Timestamp(0) }
    });
    // It may be another thing by now.
    if looked.probe != *probe {
        return;
    }
    looked.at = env.now();
    if let Err(reason) = &outcome {
        looked.reason.clone_from(reason);
    }
    if let Some(status) = looked.row.put(outcome.is_ok(), *failures, *successes) {
        looked.status = status;
    }
}

/// What was said of a component itself: whoever leads anew, or waits for a server to start, does not make everything unknown.
fn said_before(id: ComponentId, health: &HealthChanged) -> (Status, String) {
    match (health.status, &health.cause) {
        (status, Some(cause)) if cause.component_id == id && !health.is_flapping => (status, cause.reason.clone()),
        // It is only as bad as what it needs.
        (Status::Up, _) | (Status::Down | Status::Degraded, Some(_)) => (Status::Up, String::new()),
        _ => (Status::Unknown, String::new()),
    }
}

pub(crate) fn look_of(probe: &Probe) -> Look {
    match probe {
        Probe::Http { url } => Look::Http(url.clone()),
        Probe::Tcp { address } => Look::Tcp(address.clone()),
        Probe::Redis { address } => Look::Redis(address.clone()),
        Probe::Postgres { address } => Look::Postgres(address.clone()),
    }
}

/// Components that are another way than is written down, and the versions that this is known of.
fn changed(
    runtime: &TenantRuntime,
    seen: &Mutex<Seen>,
    dampers: &mut Dampers,
    now: Timestamp,
) -> Vec<(ComponentId, u64, HealthChanged)> {
    let (versions, mut nodes) = nodes(runtime, seen);
    dampers.retain(|id, _| nodes.contains_key(id));
    let mut flapping = BTreeSet::new();
    for (id, node) in &mut nodes {
        let Some(component) = versions.get(id) else { continue };
        let subject = &component.state.profile.subject;
        let was_flapping = component.state.health.is_flapping;
        let (of, damper) = dampers.entry(*id).or_insert_with(|| (subject.clone(), Damper::new(was_flapping, now)));
        if !of.is_same_thing(subject) {
            (*of, *damper) = (subject.clone(), Damper::new(false, now));
        }
        if damper.put(node.own, now) {
            flapping.insert(*id);
            (node.own, node.reason) = (Status::Degraded, "it changes again and again".into());
        }
    }
    let found = effective(&nodes).into_iter().filter_map(|(id, (status, cause))| {
        let component = versions.get(&id)?;
        let health = HealthChanged { status, cause, is_flapping: flapping.contains(&id) };
        (!component.state.health.is_same(&health)).then_some((id, component.version, health))
    });
    found.collect()
}

type Components = BTreeMap<ComponentId, Arc<Handled<Component>>>;

/// Components, and how they are themselves.
fn nodes(runtime: &TenantRuntime, seen: &Mutex<Seen>) -> (Components, BTreeMap<ComponentId, Node>) {
    let (known, fleet, held) = (runtime.catalogue.known(), runtime.fleet.read(), locked(seen));
    let node = |(id, component): (&ComponentId, &Arc<Handled<Component>>)| {
        let (profile, before) = (&component.state.profile, || said_before(*id, &component.state.health));
        let (own, reason) = match &profile.subject {
            Subject::Group => (Status::Up, String::new()),
            Subject::Agent { agent_id } => match fleet.get(agent_id) {
                Some(agent) => of_agent(agent.state.status()),
                None => (Status::Down, "the agent is not registered any more".into()),
            },
            Subject::McpServer { server_id } => match known.servers.get(server_id) {
                Some(server) if server.state.status == ServerStatus::Starting => before(),
                Some(server) => of_server(&server.state),
                None => (Status::Down, "the MCP server is not registered any more".into()),
            },
            Subject::Probe { probe, .. } => match held.probes.get(id).filter(|looked| looked.probe == *probe) {
                Some(looked) => (looked.status, looked.reason.clone()),
                None => before(),
            },
        };
        let needs = profile.needs.iter().map(|need| (need.component_id, need.is_required)).collect();
        (*id, Node { own, reason, needs })
    };
    (known.components.clone(), known.components.iter().map(node).collect())
}

fn of_agent(status: &str) -> (Status, String) {
    match status {
        "up" => (Status::Up, String::new()),
        "registered" => (Status::Unknown, String::new()),
        "degraded" => (Status::Degraded, "the agent says that it is degraded".into()),
        "down" => (Status::Down, "the agent sends no heartbeats".into()),
        other => (Status::Degraded, format!("the agent is {other}")),
    }
}

fn of_server(server: &McpServer) -> (Status, String) {
    let left_alone = server.circuits.iter().filter(|circuit| circuit.part.tool.is_none()).count();
    let circuit = server.circuits.iter().min_by(|one, other| one.part.cmp(&other.part));
    match (server.status, circuit) {
        (ServerStatus::Failed, _) => (Status::Down, server.reason.clone().unwrap_or_default()),
        (ServerStatus::Starting | ServerStatus::Ready, None) => (Status::Up, String::new()),
        (ServerStatus::Starting | ServerStatus::Ready, Some(CircuitOpened { part, reason })) => match (&part.tool, &part.address)
        {
            (Some(tool), _) => (Status::Degraded, format!("the circuit of its tool '{tool}' is open: {reason}")),
            (None, Some(address)) if left_alone < server.profile.transport.urls().len() => {
                (Status::Degraded, format!("its address {address} is left alone: {reason}"))
            }
            (None, _) => (Status::Down, format!("its circuit is open: {reason}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::mcp_server::{Part, ServerProfile, Transport, Tuning};

    /// How a server at two addresses is with these circuits open: of which tool, at which address.
    fn health(open: &[(Option<&str>, Option<&str>)]) -> Status {
        let circuit = |(tool, address): &(Option<&str>, Option<&str>)| CircuitOpened {
            part: Part { tool: tool.map(str::to_owned), address: address.map(str::to_owned) },
            reason: "lost".into(),
        };
        let transport = Transport::Http { url: "a".into(), other_urls: vec!["b".into()], headers: vec![], oauth: None };
        let server = McpServer {
            profile: ServerProfile { name: "s".into(), transport },
            status: ServerStatus::Ready,
            reason: None,
            is_locked: false,
            introduced: None,
            tuning: Tuning::default(),
            circuits: open.iter().map(circuit).collect(),
            client: None,
            is_deleted: false,
        };
        of_server(&server).0
    }

    #[test]
    fn a_server_is_down_when_all_its_addresses_are_left_alone() {
        assert_eq!(health(&[]), Status::Up);
        assert_eq!(health(&[(None, Some("a"))]), Status::Degraded);
        assert_eq!(health(&[(None, Some("a")), (Some("t"), Some("b"))]), Status::Degraded, "its other tools can be called");
        assert_eq!(health(&[(Some("t"), Some("a")), (Some("t"), Some("b"))]), Status::Degraded);
        assert_eq!(health(&[(None, Some("a")), (None, Some("b"))]), Status::Down);
        assert_eq!(health(&[(Some("t"), None), (None, None)]), Status::Down);
    }
}
