//! A task: one unit of work, who may do it now, and how it ended.
//!
//! The claim token is the stream version of the claim event. Token and agent are both checked on every later write. A
//! claim ends only by an event, so a completion that arrives late but before the expiry event counts.

use kernel::id::{AgentId, UserId};
use kernel::rules::Meta;
use kernel::{ActorRef, Decider, Facts, IndexField, Json, Kind, Rejection, Timestamp};
use serde::{Deserialize, Serialize};

pub use crate::message::{Message, Said, Side};

/// Attempts that a task's own record keeps; older ones are in its events.
const ATTEMPTS_KEPT: usize = 100;

/// What happens when every agent that could do the task has done the same before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Collision {
    /// Nobody does it.
    Strict,
    /// The least recently used agent does it, with a warning.
    Lru,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits for an agent.
    Pending,
    /// An agent works on it.
    Claimed,
    /// Done.
    Completed,
    /// It failed and is not to be tried again.
    Failed,
    /// Somebody called it off.
    Cancelled,
    /// Its attempts are spent, or nobody is left. It can be replayed.
    Dead,
}

impl Status {
    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Claimed => "claimed",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
            Status::Dead => "dead",
        }
    }
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskError {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// One agent's score when an agent was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Who.
    pub agent_id: AgentId,
    /// What it is called.
    pub name: String,
    /// The weighted sum of the parts, 0 to 1.
    pub score: f64,
    /// Specialisation, success, load, cost: each 0 to 1, before weighting.
    pub parts: [f64; 4],
}

/// Why this agent got the task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// What counted.
    pub weights: crate::queue::Weights,
    /// The best candidates, best first, at most 20.
    pub candidates: Vec<Candidate>,
    /// How many others were left out, by reason.
    pub excluded: std::collections::BTreeMap<String, u64>,
    /// What people should know, for example that the agent has done this before.
    pub warnings: Vec<String>,
}

/// What may be asked of a task.
#[derive(Clone, Debug)]
pub enum TaskCommand {
    /// Take it in.
    Submit(Box<Submitted>),
    /// Give it to an agent.
    Claim {
        /// To whom.
        agent: AgentId,
        /// Its type at that time.
        agent_type: String,
        /// Why.
        decision: Box<Decision>,
    },
    /// The claim's time is over.
    Expire {
        /// Which claim.
        token: u64,
    },
    /// The agent gives it back.
    Release {
        /// Who and which claim.
        by: Holder,
        /// Why.
        reason: String,
    },
    /// The agent says how far it is.
    Progress {
        /// Who and which claim.
        by: Holder,
        /// 0 to 100.
        percent: Option<f64>,
        /// For people.
        message: Option<String>,
    },
    /// The agent did it.
    Complete {
        /// Who and which claim.
        by: Holder,
        /// The outcome.
        result: Box<Outcome>,
    },
    /// The agent could not.
    Fail {
        /// Who and which claim.
        by: Holder,
        /// What went wrong.
        error: TaskError,
        /// Whether another attempt may help.
        is_retryable: bool,
        /// The first retry's delay; doubled with each attempt.
        retry_delay_base_ms: u64,
    },
    /// The agent asks whoever submitted it.
    Ask {
        /// Who and which claim.
        by: Holder,
        /// What it wants to know.
        message: Box<Message>,
    },
    /// The agent, which is elsewhere, has taken it there.
    HandOver {
        /// Who and which claim.
        by: Holder,
        /// What it is called there.
        remote_id: String,
        /// How many messages of the submitter it has heard.
        heard: u32,
    },
    /// Whoever submitted it says more.
    Say {
        /// What.
        message: Box<Message>,
    },
    /// A write with a token that no longer counts was refused: keep that it happened.
    NoteStale {
        /// Who and which claim.
        by: Holder,
    },
    /// Call it off.
    Cancel {
        /// Why, for people.
        reason: Option<String>,
    },
    /// Try again after it ended without success.
    Retry,
    /// Nobody is left who could do it.
    GiveUp(TaskError),
    /// Its deadline passed.
    MissDeadline,
}

/// An agent with the claim token that it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub agent: AgentId,
    /// The token.
    pub token: u64,
}

/// How a task was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The result.
    pub output: Json,
    /// What the agent learned.
    pub learned_patterns: Vec<Json>,
    /// Numbers the agent reports.
    pub metrics: Json,
}

/// `tasks.task.submitted`. Large values are references to stored values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submitted {
    /// What to do, for people and agents.
    pub description: String,
    /// Which capability it needs.
    pub capability: String,
    /// Checked against the capability's schema.
    pub input: Json,
    /// What else matters.
    pub context: Json,
    /// What makes it the same work as another task.
    pub task_hash: String,
    /// 0 to 9, 9 first.
    pub priority: u8,
    /// In which queue.
    pub queue: String,
    /// Not before.
    pub not_before: Option<Timestamp>,
    /// Not after.
    pub deadline: Option<Timestamp>,
    /// How often it is tried.
    pub max_attempts: u32,
    /// What happens when everybody has done it before.
    pub collision: Collision,
    /// Words of description and context by which specialised agents are found.
    pub keywords: Vec<String>,
    /// The only agent that may do it, if it is for one.
    #[serde(default)]
    pub agent: Option<AgentId>,
    /// What it belongs to together with other tasks and messages.
    #[serde(default)]
    pub conversation: Option<String>,
    /// The message that asked for it, if one did.
    #[serde(default)]
    pub message: Option<Message>,
}

/// `tasks.task.submitted` before a task could be for one agent, or be asked for by a message
#[derive(Deserialize)]
#[serde(transparent)]
struct SubmittedFirst(Submitted);

impl From<SubmittedFirst> for Submitted {
    fn from(first: SubmittedFirst) -> Self {
        first.0
    }
}

/// `tasks.task.claimed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claimed {
    /// By whom.
    pub agent_id: AgentId,
    /// Its type at that time.
    pub agent_type: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Why this agent.
    pub decision: Decision,
}

/// `tasks.task.claim_expired`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClaimExpired {
    /// Whose claim.
    pub agent_id: AgentId,
    /// For which capability.
    pub capability: String,
    /// The hash that the agent has now handled.
    pub task_hash: String,
}

/// `tasks.task.released`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Released {
    /// Whose claim.
    pub agent_id: AgentId,
    /// Why.
    pub reason: String,
}

/// `tasks.task.progressed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progressed {
    /// Who.
    pub agent_id: AgentId,
    /// 0 to 100.
    pub percent: Option<f64>,
    /// For people.
    pub message: Option<String>,
}

/// `tasks.task.handed_over`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HandedOver {
    /// To whom.
    pub agent_id: AgentId,
    /// With which claim.
    pub token: u64,
    /// What the task is called there.
    pub remote_id: String,
    /// How many messages of the submitter it has heard.
    pub heard: u32,
}

/// `tasks.task.input_requested`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputRequested {
    /// Who asks.
    pub agent_id: AgentId,
    /// What.
    pub message: Message,
}

/// `tasks.task.input_given`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputGiven {
    /// What is said.
    pub message: Message,
}

/// `tasks.task.completed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completed {
    /// By whom.
    pub agent_id: AgentId,
    /// For which capability.
    pub capability: String,
    /// The hash that the agent has now handled.
    pub task_hash: String,
    /// From claim to completion.
    pub duration_ms: u64,
    /// How.
    pub outcome: Outcome,
}

/// `tasks.task.attempt_failed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptFailed {
    /// By whom.
    pub agent_id: AgentId,
    /// For which capability.
    pub capability: String,
    /// The hash that the agent has now handled.
    pub task_hash: String,
    /// What went wrong.
    pub error: TaskError,
    /// Whether another attempt may help.
    pub is_retryable: bool,
}

/// `tasks.task.retry_scheduled`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetryScheduled {
    /// Not before.
    pub not_before: Timestamp,
}

/// `tasks.task.failed`, `tasks.task.died`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// Why.
    pub error: TaskError,
}

/// `tasks.task.retried`, and `tasks.task.cancelled` before it had a reason
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nothing {}

/// `tasks.task.cancelled`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cancelled {
    /// Why, for people.
    pub reason: Option<String>,
}

impl From<Nothing> for Cancelled {
    fn from(_: Nothing) -> Self {
        Cancelled { reason: None }
    }
}

/// `tasks.task.stale_write_refused`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StaleWriteRefused {
    /// Who wrote.
    pub agent_id: AgentId,
    /// With which token.
    pub token: u64,
}

kernel::events! {
    /// What happened to a task.
    TaskEvent {
        Submitted(Submitted) = "tasks.task.submitted" @ 2 [1: SubmittedFirst],
        Claimed(Claimed) = "tasks.task.claimed" @ 1,
        ClaimExpired(ClaimExpired) = "tasks.task.claim_expired" @ 1,
        Released(Released) = "tasks.task.released" @ 1,
        Progressed(Progressed) = "tasks.task.progressed" @ 1,
        HandedOver(HandedOver) = "tasks.task.handed_over" @ 1,
        InputRequested(InputRequested) = "tasks.task.input_requested" @ 1,
        InputGiven(InputGiven) = "tasks.task.input_given" @ 1,
        Completed(Completed) = "tasks.task.completed" @ 1,
        AttemptFailed(AttemptFailed) = "tasks.task.attempt_failed" @ 1,
        RetryScheduled(RetryScheduled) = "tasks.task.retry_scheduled" @ 1,
        Failed(Ended) = "tasks.task.failed" @ 1,
        Died(Ended) = "tasks.task.died" @ 1,
        Cancelled(Cancelled) = "tasks.task.cancelled" @ 2 [1: Nothing],
        Retried(Nothing) = "tasks.task.retried" @ 1,
        StaleWriteRefused(StaleWriteRefused) = "tasks.task.stale_write_refused" @ 1,
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptStatus {
    /// It goes on.
    InProgress,
    /// Done.
    Completed,
    /// Failed.
    Failed,
    /// It expired, was given back, or the task was called off.
    Abandoned,
}

/// One agent's try.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Who.
    pub agent_id: AgentId,
    /// Its type at that time.
    pub agent_type: String,
    /// The claim token.
    pub token: u64,
    /// From when.
    pub started_at: Timestamp,
    /// Until when.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub status: AttemptStatus,
    /// Error message or the like, for people.
    pub summary: Option<String>,
    /// Whether a stale write with its token was recorded.
    #[serde(default)]
    pub is_stale_noted: bool,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// As it was submitted.
    pub submitted: Submitted,
    /// By whom.
    pub submitted_by: ActorRef,
    /// Where it stands.
    pub status: Status,
    /// Token of the claim in force.
    pub claim: Option<Claim>,
    /// Attempts that count against the limit.
    pub attempts_spent: u32,
    /// The latest attempts.
    pub attempts: Vec<Attempt>,
    /// Agents that completed it, failed it or let it expire, in that order.
    pub handled: Vec<AgentId>,
    /// Not before, after a failure.
    pub not_before: Option<Timestamp>,
    /// How far it is.
    pub progress: Option<Progressed>,
    /// How it was done.
    pub outcome: Option<Outcome>,
    /// What went wrong last.
    pub error: Option<TaskError>,
    /// What was said after the message that asked for it.
    #[serde(default)]
    pub messages: Vec<Said>,
    /// Where it was taken last, when its agent is elsewhere.
    #[serde(default)]
    pub handed_over: Option<HandedOver>,
}

/// A claim in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Whose.
    pub agent_id: AgentId,
    /// The fencing token.
    pub token: u64,
    /// Since when.
    pub claimed_at: Timestamp,
}

impl Task {
    /// Number of the attempt in work, or of those made.
    pub fn attempt(&self) -> u32 {
        self.attempts_spent + u32::from(self.claim.is_some())
    }

    /// The agent that works on it or finished it.
    pub fn agent(&self) -> Option<AgentId> {
        let last = self.attempts.last().filter(|_| self.status == Status::Completed);
        self.claim.map(|c| c.agent_id).or(last.map(|a| a.agent_id))
    }

    /// Whether the agent has asked something and waits for an answer.
    pub fn is_input_wanted(&self) -> bool {
        let asked = self.messages.last().filter(|said| said.by == Side::Agent);
        self.claim.zip(asked).is_some_and(|(claim, asked)| asked.at >= claim.claimed_at)
    }

    /// Whether a message of a side is not there already; one more may be too many.
    fn takes(&self, by: Side, message: &Message) -> Result<bool, Rejection> {
        let first = self.submitted.message.iter().filter(|_| by == Side::Submitter);
        crate::message::is_new(first, &self.messages, by, message)
    }

    fn held(&self, by: &Holder) -> Result<Claim, Rejection> {
        match self.claim {
            Some(claim) if claim.agent_id == by.agent && claim.token == by.token => Ok(claim),
            _ => Err(stale(by)),
        }
    }
}

fn stale(by: &Holder) -> Rejection {
    Rejection::new(
        Kind::Conflict,
        "CLAIM_STALE",
        format!("The claim with token '{}' is not, or no longer, the claim of agent {} on this task.", by.token, by.agent),
        "Drop this work: the claim expired, was released or belongs to another agent. Ask for new work with POST /api/v1/tasks/actions/claim.",
    )
    .with("claim_token", by.token.to_string())
    .with("agent_id", by.agent)
}

fn not_open(task: &Task, wanted: &str) -> Rejection {
    Rejection::new(
        Kind::Conflict,
        "TASK_NOT_OPEN",
        format!("The task is {} and cannot be {wanted}.", task.status.as_str()),
        "Read it with GET /api/v1/tasks/{id}.",
    )
    .with("status", task.status)
}

/// The answer for a task that is not there or not the caller's.
pub fn not_found(searched: &str) -> Rejection {
    let message = format!("There is no task '{searched}' in this tenant.");
    Rejection::new(Kind::NotFound, "TASK_NOT_FOUND", message, "List tasks with GET /api/v1/tasks.").with("searched_id", searched)
}

impl Decider for Task {
    const KIND: &'static str = "task";
    type State = Task;
    type Command = TaskCommand;
    type Event = TaskEvent;

    fn decide(state: Option<&Task>, command: &TaskCommand, facts: &Facts) -> Result<Vec<TaskEvent>, Rejection> {
        let task = match (command, state) {
            (TaskCommand::Submit(submitted), None) => return Ok(vec![TaskEvent::Submitted(submitted.as_ref().clone())]),
            (TaskCommand::Submit(_), Some(task)) => return Err(not_open(task, "submitted again")),
            (_, None) => return Err(not_found("")),
            (_, Some(task)) => task,
        };
        match command {
            TaskCommand::Submit(_) => Ok(vec![]),
            TaskCommand::Claim { agent, agent_type, decision } => claim(task, *agent, agent_type, decision),
            TaskCommand::Expire { token } => Ok(expire(task, *token)),
            TaskCommand::Release { by, reason } => {
                let claim = task.held(by)?;
                Ok(vec![TaskEvent::Released(Released { agent_id: claim.agent_id, reason: reason.clone() })])
            }
            TaskCommand::Progress { by, percent, message } => {
                let agent_id = task.held(by)?.agent_id;
                Ok(vec![TaskEvent::Progressed(Progressed { agent_id, percent: *percent, message: message.clone() })])
            }
            TaskCommand::Complete { by, result } => complete(task, by, result, facts),
            TaskCommand::Fail { by, error, is_retryable, retry_delay_base_ms } => {
                let claim = task.held(by)?;
                Ok(fail(task, claim, error, *is_retryable, *retry_delay_base_ms, facts))
            }
            TaskCommand::Ask { by, message } => {
                let agent_id = task.held(by)?.agent_id;
                let asked = || TaskEvent::InputRequested(InputRequested { agent_id, message: message.as_ref().clone() });
                Ok(task.takes(Side::Agent, message)?.then(asked).into_iter().collect())
            }
            TaskCommand::HandOver { by, remote_id, heard } => {
                let (claim, remote_id) = (task.held(by)?, remote_id.clone());
                let (agent_id, token, heard) = (claim.agent_id, claim.token, *heard);
                Ok(vec![TaskEvent::HandedOver(HandedOver { agent_id, token, remote_id, heard })])
            }
            TaskCommand::Say { message } => match task.status {
                Status::Pending | Status::Claimed => {
                    let said = || TaskEvent::InputGiven(InputGiven { message: message.as_ref().clone() });
                    Ok(task.takes(Side::Submitter, message)?.then(said).into_iter().collect())
                }
                _ => Err(not_open(task, "told anything")),
            },
            TaskCommand::NoteStale { by } => Ok(note_stale(task, by)),
            TaskCommand::Cancel { reason } => match task.status {
                Status::Pending | Status::Claimed => Ok(vec![TaskEvent::Cancelled(Cancelled { reason: reason.clone() })]),
                Status::Cancelled => Ok(vec![]),
                _ => Err(not_open(task, "cancelled")),
            },
            TaskCommand::Retry => match task.status {
                Status::Dead | Status::Failed | Status::Cancelled => Ok(vec![TaskEvent::Retried(Nothing {})]),
                _ => Err(not_open(task, "retried")),
            },
            TaskCommand::GiveUp(error) => Ok(match task.status {
                Status::Pending => vec![TaskEvent::Died(Ended { error: error.clone() })],
                _ => vec![],
            }),
            TaskCommand::MissDeadline => Ok(miss_deadline(task, facts)),
        }
    }

    fn evolve(state: Option<Task>, event: &TaskEvent, meta: &Meta) -> Option<Task> {
        if let TaskEvent::Submitted(submitted) = event {
            return Some(Task {
                submitted: submitted.clone(),
                submitted_by: meta.actor.clone(),
                status: Status::Pending,
                claim: None,
                attempts_spent: 0,
                attempts: vec![],
                handled: vec![],
                not_before: submitted.not_before,
                progress: None,
                outcome: None,
                error: None,
                messages: vec![],
                handed_over: None,
            });
        }
        let mut task = state?;
        apply(&mut task, event, meta);
        Some(task)
    }

    fn is_terminal(state: &Task) -> bool {
        !matches!(state.status, Status::Pending | Status::Claimed)
    }

    fn index(state: &Task) -> Vec<IndexField> {
        let mut fields = vec![
            IndexField::new("status", state.status.as_str()),
            IndexField::new("capability", &state.submitted.capability),
            IndexField::new("task_hash", &state.submitted.task_hash),
            IndexField::new("creator", &state.submitted_by.id),
        ];
        fields.extend(state.submitted.agent.map(|agent| IndexField::new("assigned", agent.to_string())));
        fields.extend(state.submitted.conversation.as_ref().map(|of| IndexField::new("conversation", of)));
        fields.extend(state.attempts.iter().map(|a| IndexField::new("agent", a.agent_id.to_string())));
        fields.extend(
            state.handled.iter().map(|agent| IndexField::new("handled", handled_value(&state.submitted.task_hash, agent))),
        );
        fields.sort();
        fields.dedup();
        fields
    }
}

/// The value of the index `handled`: which agents have handled which hash.
pub fn handled_value(task_hash: &str, agent: &AgentId) -> String {
    format!("{task_hash}:{agent}")
}

fn claim(task: &Task, agent: AgentId, agent_type: &str, decision: &Decision) -> Result<Vec<TaskEvent>, Rejection> {
    if task.status != Status::Pending {
        return Err(not_open(task, "claimed"));
    }
    if task.submitted.agent.is_some_and(|only| only != agent) {
        let message = format!("The task is for another agent than {agent}.");
        return Err(Rejection::new(Kind::Refused, "NO_ELIGIBLE_AGENT", message, "Ask for other work."));
    }
    if task.submitted.collision == Collision::Strict && task.handled.contains(&agent) {
        return Err(Rejection::new(
            Kind::Conflict,
            "TASK_COLLISION",
            format!("Agent {agent} has handled this task before."),
            "Another agent has to do it, or submit it with \"collision\": \"lru\".",
        ));
    }
    Ok(vec![TaskEvent::Claimed(Claimed {
        agent_id: agent,
        agent_type: agent_type.to_owned(),
        attempt: task.attempts_spent + 1,
        decision: decision.clone(),
    })])
}

fn expire(task: &Task, token: u64) -> Vec<TaskEvent> {
    let Some(claim) = task.claim.filter(|c| c.token == token) else { return vec![] };
    let mut events = vec![TaskEvent::ClaimExpired(ClaimExpired {
        agent_id: claim.agent_id,
        capability: task.submitted.capability.clone(),
        task_hash: task.submitted.task_hash.clone(),
    })];
    if task.attempts_spent + 1 >= task.submitted.max_attempts {
        let error = TaskError { code: "CLAIM_EXPIRED".into(), message: "The last attempt's claim expired.".into() };
        events.push(TaskEvent::Died(Ended { error }));
    }
    events
}

fn complete(task: &Task, by: &Holder, result: &Outcome, facts: &Facts) -> Result<Vec<TaskEvent>, Rejection> {
    if task.status == Status::Completed {
        let last = task.attempts.last();
        let is_same_claim = last.is_some_and(|a| a.agent_id == by.agent && a.token == by.token);
        return match (is_same_claim, task.outcome.as_ref() == Some(result)) {
            (true, true) => Ok(vec![]),
            (true, false) => Err(not_open(task, "completed with another result")),
            (false, _) => Err(stale(by)),
        };
    }
    let claim = task.held(by)?;
    Ok(vec![TaskEvent::Completed(Completed {
        agent_id: claim.agent_id,
        capability: task.submitted.capability.clone(),
        task_hash: task.submitted.task_hash.clone(),
        duration_ms: facts.now.since_ms(claim.claimed_at),
        outcome: result.clone(),
    })])
}

fn fail(task: &Task, claim: Claim, error: &TaskError, is_retryable: bool, base_ms: u64, facts: &Facts) -> Vec<TaskEvent> {
    let failed = TaskEvent::AttemptFailed(AttemptFailed {
        agent_id: claim.agent_id,
        capability: task.submitted.capability.clone(),
        task_hash: task.submitted.task_hash.clone(),
        error: error.clone(),
        is_retryable,
    });
    let then = if !is_retryable {
        TaskEvent::Failed(Ended { error: error.clone() })
    } else if task.attempts_spent + 1 >= task.submitted.max_attempts {
        TaskEvent::Died(Ended { error: error.clone() })
    } else {
        let delay_ms = retry_delay_ms(task.attempts_spent, base_ms, facts.random);
        TaskEvent::RetryScheduled(RetryScheduled { not_before: facts.now.plus_ms(delay_ms) })
    };
    vec![failed, then]
}

/// `base × 2^n` with up to a fifth more or less, at most 60 s.
pub fn retry_delay_ms(attempts_before: u32, base_ms: u64, random: u64) -> u64 {
    const RETRY_DELAY_MS_MAX: u64 = 60_000;
    let doubled = base_ms.saturating_mul(1u64 << attempts_before.min(30)).min(RETRY_DELAY_MS_MAX);
    let jitter = 800 + random % 401;
    (doubled.saturating_mul(jitter) / 1000).min(RETRY_DELAY_MS_MAX)
}

fn note_stale(task: &Task, by: &Holder) -> Vec<TaskEvent> {
    // Only a genuine earlier claim is worth a record, and only once: nobody may fill the log with refusals.
    let is_new = task.attempts.iter().any(|a| a.agent_id == by.agent && a.token == by.token && !a.is_stale_noted);
    let is_current = task.claim.is_some_and(|c| c.token == by.token);
    match is_new && !is_current {
        true => vec![TaskEvent::StaleWriteRefused(StaleWriteRefused { agent_id: by.agent, token: by.token })],
        false => vec![],
    }
}

fn miss_deadline(task: &Task, facts: &Facts) -> Vec<TaskEvent> {
    let is_missed = task.submitted.deadline.is_some_and(|d| d <= facts.now);
    match (task.status, is_missed) {
        (Status::Pending | Status::Claimed, true) => {
            let error = TaskError { code: "DEADLINE_EXCEEDED".into(), message: "The task's deadline passed.".into() };
            vec![TaskEvent::Failed(Ended { error })]
        }
        _ => vec![],
    }
}

fn apply(task: &mut Task, event: &TaskEvent, meta: &Meta) {
    match event {
        TaskEvent::Submitted(_) => {}
        TaskEvent::Claimed(c) => {
            task.status = Status::Claimed;
            task.claim = Some(Claim { agent_id: c.agent_id, token: meta.version, claimed_at: meta.at });
            task.progress = None;
            task.attempts.push(Attempt {
                agent_id: c.agent_id,
                agent_type: c.agent_type.clone(),
                token: meta.version,
                started_at: meta.at,
                ended_at: None,
                status: AttemptStatus::InProgress,
                summary: None,
                is_stale_noted: false,
            });
            let surplus = task.attempts.len().saturating_sub(ATTEMPTS_KEPT);
            task.attempts.drain(..surplus);
        }
        TaskEvent::ClaimExpired(e) => {
            end_attempt(task, AttemptStatus::Abandoned, Some("The claim expired.".into()), meta);
            spend(task, e.agent_id);
        }
        TaskEvent::Released(r) => end_attempt(task, AttemptStatus::Abandoned, Some(r.reason.clone()), meta),
        TaskEvent::Progressed(p) => task.progress = Some(p.clone()),
        TaskEvent::HandedOver(handed) => task.handed_over = Some(handed.clone()),
        TaskEvent::InputRequested(asked) => {
            task.messages.push(Said { by: Side::Agent, at: meta.at, message: asked.message.clone() });
        }
        TaskEvent::InputGiven(given) => {
            task.messages.push(Said { by: Side::Submitter, at: meta.at, message: given.message.clone() });
        }
        TaskEvent::Completed(c) => {
            end_attempt(task, AttemptStatus::Completed, None, meta);
            spend(task, c.agent_id);
            task.status = Status::Completed;
            task.outcome = Some(c.outcome.clone());
            task.error = None;
        }
        TaskEvent::AttemptFailed(f) => {
            end_attempt(task, AttemptStatus::Failed, Some(f.error.message.clone()), meta);
            spend(task, f.agent_id);
            task.error = Some(f.error.clone());
        }
        TaskEvent::RetryScheduled(r) => task.not_before = Some(r.not_before),
        TaskEvent::Failed(e) => end(task, Status::Failed, Some(&e.error), meta),
        TaskEvent::Died(e) => end(task, Status::Dead, Some(&e.error), meta),
        TaskEvent::Cancelled(cancelled) => {
            let why = |reason: &String| TaskError { code: "CANCELLED".into(), message: reason.clone() };
            end(task, Status::Cancelled, cancelled.reason.as_ref().map(why).as_ref(), meta)
        }
        TaskEvent::Retried(_) => {
            task.status = Status::Pending;
            task.attempts_spent = 0;
            task.not_before = None;
            task.error = None;
        }
        TaskEvent::StaleWriteRefused(s) => {
            for attempt in task.attempts.iter_mut().filter(|a| a.token == s.token) {
                attempt.is_stale_noted = true;
            }
        }
    }
}

fn end_attempt(task: &mut Task, status: AttemptStatus, summary: Option<String>, meta: &Meta) {
    if task.claim.take().is_some() {
        task.status = Status::Pending;
        if let Some(attempt) = task.attempts.last_mut() {
            attempt.status = status;
            attempt.ended_at = Some(meta.at);
            attempt.summary = summary;
        }
    }
}

fn spend(task: &mut Task, agent: AgentId) {
    task.attempts_spent += 1;
    if !task.handled.contains(&agent) {
        task.handled.push(agent);
    }
}

fn end(task: &mut Task, status: Status, error: Option<&TaskError>, meta: &Meta) {
    end_attempt(task, AttemptStatus::Abandoned, None, meta);
    task.status = status;
    if let Some(error) = error {
        task.error = Some(error.clone());
    }
}

/// The person behind a task, for its history.
pub fn user_of(task: &Task) -> Option<UserId> {
    task.submitted_by.id.parse().ok()
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
