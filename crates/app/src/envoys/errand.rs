//! One task that is taken to an agent elsewhere: sent once, looked at until it is over, questions and answers carried between.

use crate::app::App;
use crate::claims::{ClaimedTask, TaskOutcome};
use crate::{Answer, Caller, TaskView};
use domain::task::{Message, Outcome, Side, Task, TaskError};
use engine::Env;
use gateway::{AgentTrouble, RemoteAgent};
use kernel::id::TaskId;
use kernel::{Json, Kind, Rejection, limits};
use serde_json::{Value, json};
use std::sync::Arc;

/// Pauses between two looks at a task, growing by half.
const LOOK_MS_MIN: u64 = 100;
const LOOK_MS_MAX: u64 = 2_000;
/// How long an agent may be out of reach before the attempt has failed.
const AWAY_MS_MAX: u64 = 60_000;

/// A task on its way.
pub(super) struct Errand {
    app: App,
    caller: Caller,
    remote: Arc<RemoteAgent>,
    task: ClaimedTask,
    env: Env,
    is_still: IsStill,
}

/// Whether the agent is still to be reached where it was.
pub(super) type IsStill = Box<dyn Fn() -> bool + Send + Sync>;

/// Why an errand ends before the agent has ended the task.
enum Stop {
    /// The claim is over, or the server is: nothing is to be said any more.
    Over,
    /// The attempt has failed.
    Failed { code: &'static str, message: String, is_retryable: bool },
}

impl From<Rejection> for Stop {
    fn from(_: Rejection) -> Stop {
        Stop::Over
    }
}

/// What is asked of an agent.
enum Asked<'a> {
    Send(&'a Value),
    Task(&'a str),
}

/// What is known of the task there.
struct There {
    id: String,
    /// The latest word that was passed on.
    said: Option<String>,
    /// How many messages of the submitter it has.
    heard: usize,
    /// Whether it waits for one.
    is_waiting: bool,
}

impl Errand {
    pub fn new(app: App, caller: Caller, remote: Arc<RemoteAgent>, task: ClaimedTask, env: Env, is_still: IsStill) -> Self {
        Errand { app, caller, remote, task, env, is_still }
    }

    /// Runs it to its end.
    pub async fn run(self) {
        match self.carry().await {
            Ok(()) | Err(Stop::Over) => {}
            Err(Stop::Failed { code, message, is_retryable }) => {
                let message = message.chars().take(limits::DESCRIPTION_CHARS_MAX).collect();
                let error = TaskError { code: code.into(), message };
                if let Err(error) = self.report(TaskOutcome::Fail { error, is_retryable }).await {
                    tracing::debug!(task = %self.stream(), %error, "a failed errand could not be reported");
                }
            }
        }
    }

    fn stream(&self) -> &str {
        &self.task.task.entity.stream
    }

    fn state(&self) -> &Task {
        &self.task.task.entity.state
    }

    async fn report(&self, outcome: TaskOutcome) -> Answer<TaskView> {
        let id: TaskId = self.stream().parse().map_err(|_| domain::task::not_found(self.stream()))?;
        loop {
            match self.app.report(&self.caller, id, &self.task.token.to_string(), outcome.clone()).await {
                Ok((task, _)) => return Ok(task),
                // Not now: what was done elsewhere must not be forgotten for that. The claim's time is the end of it.
                Err(rejection) if rejection.kind == Kind::Unavailable => self.env.sleep_ms(LOOK_MS_MAX).await,
                Err(rejection) => return Err(rejection),
            }
        }
    }

    async fn carry(&self) -> Result<(), Stop> {
        let taken = self.state().handed_over.as_ref().filter(|handed| handed.token == self.task.token);
        let (id, heard) = match taken {
            Some(handed) => (handed.remote_id.clone(), handed.heard as usize),
            None => match self.hand_over().await? {
                Some(id) => (id, of_submitter(self.state()).count()),
                None => return Ok(()),
            },
        };
        let there = There { id, said: None, heard, is_waiting: false };
        let followed = self.follow(there).await;
        if let Err((Stop::Over, id)) = &followed
            && self.is_called_off().await
        {
            // Best effort: it may be over there already.
            let _ = self.remote.cancel(id).await;
        }
        followed.map_err(|(stop, _)| stop)
    }

    async fn is_called_off(&self) -> bool {
        let now = self.app.entity::<Task>(self.caller.actor.tenant, self.stream()).await;
        // A task that another claim was made for goes on with another message there.
        now.is_ok_and(|now| now.is_some_and(|now| now.state.claim.is_none_or(|claim| claim.token != self.task.token)))
    }

    /// Sends the task. Answers what it is called there; nothing when the agent answered at once.
    async fn hand_over(&self) -> Result<Option<String>, Stop> {
        let message = message_of(self.stream(), self.task.token, self.state());
        let answer = self.reach(Asked::Send(&message)).await?;
        if let Some(said) = answer.get("message") {
            self.complete(said["parts"].clone()).await?;
            return Ok(None);
        }
        let id = answer["task"]["id"].as_str().filter(|id| !id.is_empty() && id.len() <= limits::NAME_CHARS_MAX);
        let Some(id) = id else { return Err(unusable("it answered neither a task nor a message")) };
        let heard = of_submitter(self.state()).count() as u32;
        if let Err(rejection) = self.report(TaskOutcome::HandedOver { remote_id: id.to_owned(), heard }).await {
            // It was called off meanwhile.
            let _ = self.remote.cancel(id).await;
            return Err(rejection.into());
        }
        Ok(Some(id.to_owned()))
    }

    /// Asks again and again while the agent is out of reach, and keeps the claim meanwhile.
    async fn reach(&self, asked: Asked<'_>) -> Result<Value, Stop> {
        let since = self.env.now();
        let mut pause_ms = LOOK_MS_MIN;
        loop {
            match self.ask_once(&asked).await? {
                Ok(answer) => return Ok(answer),
                Err(AgentTrouble::Unreachable(why)) if self.env.now().since_ms(since) >= AWAY_MS_MAX => {
                    return Err(Stop::Failed { code: "AGENT_UNREACHABLE", message: why, is_retryable: true });
                }
                Err(AgentTrouble::Unreachable(_)) => {
                    self.env.sleep_ms(pause_ms).await;
                    pause_ms = (pause_ms * 2).min(LOOK_MS_MAX);
                    self.report(TaskOutcome::Heartbeat).await?;
                }
                Err(AgentTrouble::Refused { reason, message }) if reason == "TASK_NOT_FOUND" => {
                    return Err(Stop::Failed { code: "AGENT_FORGOT", message, is_retryable: true });
                }
                Err(AgentTrouble::Refused { message, .. }) => {
                    return Err(Stop::Failed { code: "AGENT_REFUSED", message, is_retryable: false });
                }
                Err(AgentTrouble::Unusable(why)) => return Err(unusable(&why)),
            }
        }
    }

    /// One request, during which the claim is kept: an agent may take longer than that to answer.
    async fn ask_once(&self, asked: &Asked<'_>) -> Result<Result<Value, AgentTrouble>, Stop> {
        let request = async {
            match asked {
                Asked::Send(message) => self.remote.send((*message).clone()).await,
                Asked::Task(id) => self.remote.task(id).await,
            }
        };
        let mut request = std::pin::pin!(request);
        let keep_ms = (self.app.0.settings.claim_ttl_ms / 3).max(1);
        loop {
            tokio::select! {
                biased;
                answer = &mut request => return Ok(answer),
                () = self.env.sleep_ms(keep_ms) => drop(self.report(TaskOutcome::Heartbeat).await?),
            }
        }
    }

    /// Looks at the task there until it is over.
    async fn follow(&self, mut there: There) -> Result<(), (Stop, String)> {
        let mut pause_ms = LOOK_MS_MIN;
        loop {
            match self.look(&mut there).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(stop) => return Err((stop, there.id)),
            }
            self.env.sleep_ms(pause_ms).await;
            pause_ms = (pause_ms + pause_ms / 2).min(LOOK_MS_MAX);
        }
    }

    /// One look. Whether it is over.
    async fn look(&self, there: &mut There) -> Result<bool, Stop> {
        if !(self.is_still)() {
            let _ = self.remote.cancel(&there.id).await;
            self.report(TaskOutcome::Release { reason: "The agent is not reached there any more.".into() }).await?;
            return Err(Stop::Over);
        }
        let now = self.report(TaskOutcome::Heartbeat).await?;
        self.pass_on(there, &now).await?;
        let task = self.reach(Asked::Task(&there.id)).await?;
        let status = &task["status"];
        let words = words(&status["message"]["parts"]);
        there.is_waiting = status["state"] == "TASK_STATE_INPUT_REQUIRED";
        match status["state"].as_str().unwrap_or_default() {
            "TASK_STATE_COMPLETED" => {
                self.complete(outputs(&task["artifacts"])).await?;
                return Ok(true);
            }
            "TASK_STATE_FAILED" => return Err(ended("FAILED", words, "it failed", true)),
            "TASK_STATE_REJECTED" => return Err(ended("REJECTED", words, "it does not want this task", false)),
            "TASK_STATE_CANCELED" => return Err(ended("AGENT_CANCELLED", words, "it called the task off", false)),
            "TASK_STATE_AUTH_REQUIRED" => {
                return Err(ended(
                    "AGENT_WANTS_SIGN_IN",
                    words,
                    "it wants somebody to sign in, which cannot be passed on",
                    false,
                ));
            }
            "TASK_STATE_INPUT_REQUIRED" => self.ask(there, &status["message"], &now.entity.state).await?,
            "TASK_STATE_SUBMITTED" | "TASK_STATE_WORKING" => self.progress(there, words).await?,
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(unusable(&format!("it says that the task is '{other}'")));
            }
        }
        Ok(false)
    }

    /// What the submitter said since goes to the agent.
    async fn pass_on(&self, there: &mut There, now: &TaskView) -> Result<(), Stop> {
        let new: Vec<Message> = of_submitter(&now.entity.state).skip(there.heard).cloned().collect();
        for message in new {
            let said = json!({
                "messageId": message.id, "taskId": there.id, "role": "ROLE_USER", "parts": message.parts, "metadata": message.metadata,
            });
            match self.reach(Asked::Send(&said)).await {
                // Not every agent listens while it works; that is no reason to end what it does.
                Err(Stop::Failed { code: "AGENT_REFUSED", message, .. }) if !there.is_waiting => {
                    tracing::info!(task = %self.stream(), why = message, "an agent does not listen while it works");
                }
                sent => drop(sent?),
            }
            there.heard += 1;
            let (remote_id, heard) = (there.id.clone(), there.heard as u32);
            self.report(TaskOutcome::HandedOver { remote_id, heard }).await?;
        }
        Ok(())
    }

    /// What the agent asks goes to the submitter, once.
    async fn ask(&self, there: &mut There, message: &Value, now: &Task) -> Result<(), Stop> {
        let parts = match message["parts"].as_array() {
            Some(parts) if !parts.is_empty() => message["parts"].clone(),
            _ => json!([{ "text": "The agent needs more to go on." }]),
        };
        let id = message["messageId"].as_str().filter(|id| !id.is_empty() && id.len() <= limits::NAME_CHARS_MAX);
        // A question without a name is new after each answer.
        let id = id.map_or_else(|| format!("{}:{}", there.id, there.heard), str::to_owned);
        if now.messages.iter().any(|said| said.by == Side::Agent && said.message.id == id) {
            return Ok(());
        }
        let json = |value: &Value| Json::of(value).map_err(|_| unusable("what it asks cannot be kept"));
        let message = Message { id, parts: json(&parts)?, metadata: Json::empty_object() };
        match self.report(TaskOutcome::Ask { message }).await {
            Err(rejection) if rejection.code == "CLAIM_STALE" => Err(Stop::Over),
            Err(rejection) => Err(unusable(&format!("what it asks is no message: {}", rejection.message))),
            Ok(_) => Ok(()),
        }
    }

    /// What the agent says on its way.
    async fn progress(&self, there: &mut There, words: Option<String>) -> Result<(), Stop> {
        if words.is_some() && words != there.said {
            let message = words.clone().map(|text| text.chars().take(limits::DESCRIPTION_CHARS_MAX).collect());
            self.report(TaskOutcome::Progress { percent: None, message }).await?;
            there.said = words;
        }
        Ok(())
    }

    /// The parts of its result are the output.
    async fn complete(&self, parts: Value) -> Result<(), Stop> {
        let output = Json::of(&output_of(&parts)).map_err(|_| unusable("its result cannot be kept"))?;
        let outcome = Outcome { output, learned_patterns: vec![], metrics: Json::empty_object() };
        match self.report(TaskOutcome::Complete(outcome)).await {
            Err(rejection) if rejection.code == "OUTPUT_INVALID" => Err(unusable(&rejection.message)),
            done => Ok(done.map(|_| ())?),
        }
    }
}

fn unusable(why: &str) -> Stop {
    Stop::Failed { code: "AGENT_ANSWER_UNUSABLE", message: why.to_owned(), is_retryable: false }
}

fn ended(code: &'static str, words: Option<String>, otherwise: &str, is_retryable: bool) -> Stop {
    Stop::Failed { code, message: words.unwrap_or_else(|| otherwise.to_owned()), is_retryable }
}

/// A task as the message that asks for it. The claim names it: sent again, it is the same.
fn message_of(task: &str, token: u64, state: &Task) -> Value {
    let submitted = &state.submitted;
    let mut parts = match &submitted.message {
        Some(message) => message.parts.value(),
        None => {
            let input = submitted.input.value();
            let has_input = input.as_object().is_some_and(|fields| !fields.is_empty());
            let mut parts = vec![json!({ "text": submitted.description })];
            parts.extend(has_input.then(|| json!({ "data": input })));
            json!(parts)
        }
    };
    // What was said before this attempt goes with it.
    if let Some(parts) = parts.as_array_mut() {
        let later = of_submitter(state).filter_map(|message| message.parts.value().as_array().cloned());
        parts.extend(later.flatten());
    }
    let mut metadata = submitted.message.as_ref().map_or_else(|| json!({}), |message| message.metadata.value());
    metadata[crate::a2a::SKILL] = json!(submitted.capability);
    json!({ "messageId": format!("{task}:{token}"), "role": "ROLE_USER", "parts": parts, "metadata": metadata })
}

/// What the submitter said after the message that asked for the task.
fn of_submitter(task: &Task) -> impl Iterator<Item = &Message> {
    task.messages.iter().filter(|said| said.by == Side::Submitter).map(|said| &said.message)
}

/// The words of parts, if they have any.
fn words(parts: &Value) -> Option<String> {
    let texts: Vec<&str> = parts.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect();
    Some(texts.join("\n")).filter(|text| !text.trim().is_empty())
}

/// The parts of all artifacts, in order.
fn outputs(artifacts: &Value) -> Value {
    let all = artifacts.as_array().into_iter().flatten();
    all.flat_map(|artifact| artifact["parts"].as_array().cloned().unwrap_or_default()).collect()
}

/// Parts as an output: one object of data is itself, words alone are `{"text": …}`, anything else `{"parts": […]}`.
fn output_of(parts: &Value) -> Value {
    let all = parts.as_array().map(Vec::as_slice).unwrap_or_default();
    match all {
        [] => json!({}),
        [one] if one["data"].is_object() => one["data"].clone(),
        texts if texts.iter().all(|part| part["text"].is_string()) => json!({ "text": words(parts).unwrap_or_default() }),
        _ => json!({ "parts": parts }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_parts_then_the_output_is_as_plain_as_they_are() {
        assert_eq!(output_of(&json!([])), json!({}));
        assert_eq!(output_of(&json!([{ "data": { "a": 1 }, "mediaType": "application/json" }])), json!({ "a": 1 }));
        assert_eq!(output_of(&json!([{ "text": "a" }, { "text": "b" }])), json!({ "text": "a\nb" }));
        let mixed = json!([{ "text": "a" }, { "url": "https://a.example" }]);
        assert_eq!(output_of(&mixed), json!({ "parts": mixed }));
        assert_eq!(output_of(&json!([{ "data": [1] }])), json!({ "parts": [{ "data": [1] }] }));
        assert_eq!(
            outputs(&json!([{ "parts": [{ "text": "a" }] }, {}, { "parts": [{ "text": "b" }] }])),
            json!([{ "text": "a" }, { "text": "b" }])
        );
    }
}
