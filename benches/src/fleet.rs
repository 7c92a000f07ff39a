//! Agents and tasks as the figures need them.

use crate::http::{Connection, Credential, text};
use serde_json::{Value, json};

/// The capability that measured tasks ask for.
pub(crate) const CAPABILITY: &str = "bench";

/// An agent with a key of its own that is up.
pub(crate) struct Agent {
    /// With its key.
    pub credential: Credential,
}

impl Agent {
    /// Registers an agent of [`CAPABILITY`], gives it a key and lets it report for the first time.
    pub async fn register(
        connection: &mut Connection,
        admin: &Credential,
        name: &str,
        max_concurrency: u32,
    ) -> anyhow::Result<Agent> {
        let body = json!({ "name": name, "capabilities": [{ "name": CAPABILITY }], "max_concurrency": max_concurrency });
        let id = register(connection, admin, &body).await?;
        let issued = connection.post(admin, &format!("/api/v1/agents/{id}/actions/issue-key"), &json!({})).await?.data(200)?;
        let credential = Credential::key(text(&issued, "/attributes/key")?)?;
        report(connection, &credential, &id).await?;
        Ok(Agent { credential })
    }
}

/// Registers an agent and answers its id.
pub(crate) async fn register(connection: &mut Connection, admin: &Credential, body: &Value) -> anyhow::Result<String> {
    let made = connection.post(admin, "/api/v1/agents", body).await?.data(201)?;
    Ok(text(&made, "/id")?.to_owned())
}

/// A heartbeat; the agent is up after it.
pub(crate) async fn report(connection: &mut Connection, by: &Credential, id: &str) -> anyhow::Result<()> {
    let path = format!("/api/v1/agents/{id}/actions/heartbeat");
    let agent = connection.post(by, &path, &json!({})).await?.data(200)?;
    let status = text(&agent, "/attributes/status")?;
    anyhow::ensure!(status == "up", "after its heartbeat an agent is '{status}'");
    Ok(())
}

/// The body of a task that differs from every other task.
pub(crate) fn task(run: usize, number: usize) -> Value {
    json!({ "description": format!("bench run {run} task {number}"), "capability": CAPABILITY, "input": { "number": number } })
}

/// A claimed task.
pub(crate) struct Claimed {
    /// The task's id.
    pub id: String,
    token: String,
}

/// Asks for work.
pub(crate) async fn claim(connection: &mut Connection, agent: &Agent, max: u32, wait_ms: u32) -> anyhow::Result<Vec<Claimed>> {
    let body = json!({ "max": max, "wait_ms": wait_ms });
    let tasks = connection.post(&agent.credential, "/api/v1/tasks/actions/claim", &body).await?.data(200)?;
    let tasks = tasks.as_array().map(Vec::as_slice).unwrap_or_default();
    let claimed =
        |task| Ok(Claimed { id: text(task, "/id")?.to_owned(), token: text(task, "/attributes/claim/token")?.to_owned() });
    tasks.iter().map(claimed).collect()
}

/// Reports a claimed task as done.
pub(crate) async fn complete(connection: &mut Connection, agent: &Agent, task: &Claimed) -> anyhow::Result<()> {
    let body = json!({ "claim_token": task.token, "output": {} });
    let path = format!("/api/v1/tasks/{}/actions/complete", task.id);
    connection.post(&agent.credential, &path, &body).await?.expect(200)?;
    Ok(())
}
