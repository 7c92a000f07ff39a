//! Given-when-then for tasks.

use super::*;
use crate::message::MESSAGES_MAX;
use kernel::{ActorKind, EventSet};
use proptest::prelude::*;

fn agent(n: u8) -> AgentId {
    AgentId::from_bytes([n; 16])
}

fn facts(now: i64, version: u64) -> Facts {
    Facts { now: Timestamp(now), actor: ActorRef { kind: ActorKind::User, id: "user_1".into() }, random: 200, version }
}

fn submitted(collision: Collision, max_attempts: u32) -> TaskCommand {
    TaskCommand::Submit(Box::new(Submitted {
        description: "Review".into(),
        capability: "review".into(),
        input: Json::empty_object(),
        context: Json::empty_object(),
        task_hash: "h".into(),
        priority: 5,
        queue: "default".into(),
        not_before: None,
        deadline: Some(Timestamp(10_000)),
        max_attempts,
        collision,
        keywords: vec![],
        agent: None,
        conversation: None,
        message: None,
    }))
}

fn decision() -> Decision {
    Decision { weights: Default::default(), candidates: vec![], excluded: Default::default(), warnings: vec![] }
}

fn claim_by(n: u8) -> TaskCommand {
    TaskCommand::Claim { agent: agent(n), agent_type: "t".into(), decision: Box::new(decision()) }
}

fn holder(n: u8, token: u64) -> Holder {
    Holder { agent: agent(n), token }
}

fn complete_by(n: u8, token: u64, output: &str) -> TaskCommand {
    let output = Json::parse(output.into()).unwrap();
    TaskCommand::Complete {
        by: holder(n, token),
        result: Box::new(Outcome { output, learned_patterns: vec![], metrics: Json::empty_object() }),
    }
}

fn fail_by(n: u8, token: u64, is_retryable: bool) -> TaskCommand {
    let error = TaskError { code: "E".into(), message: "m".into() };
    TaskCommand::Fail { by: holder(n, token), error, is_retryable, retry_delay_base_ms: 1_000 }
}

/// A task after commands, with its version.
#[derive(Clone, Default)]
struct Story {
    state: Option<Task>,
    version: u64,
}

impl Story {
    fn when(&mut self, command: &TaskCommand) -> Result<Vec<&'static str>, &'static str> {
        let events = Task::decide(self.state.as_ref(), command, &facts(0, self.version)).map_err(|r| r.code)?;
        for event in &events {
            self.version += 1;
            let meta =
                Meta { version: self.version, at: Timestamp(0), actor: ActorRef { kind: ActorKind::User, id: "user_1".into() } };
            self.state = Task::evolve(self.state.take(), event, &meta);
        }
        Ok(events.iter().map(|e| e.kind().rsplit('.').next().unwrap()).collect())
    }

    fn given(commands: &[TaskCommand]) -> Story {
        let mut story = Story::default();
        for command in commands {
            story.when(command).unwrap();
        }
        story
    }

    fn status(&self) -> Status {
        self.state.as_ref().unwrap().status
    }
}

#[test]
fn given_a_claimed_task_when_its_holder_completes_it_then_it_is_completed() {
    let mut story = Story::given(&[submitted(Collision::Lru, 3), claim_by(1)]);
    assert_eq!(story.when(&complete_by(1, 2, "{}")), Ok(vec!["completed"]));
    assert_eq!(story.status(), Status::Completed);
    assert_eq!(story.state.unwrap().handled, [agent(1)]);
}

#[test]
fn given_a_completed_task_then_the_same_completion_is_accepted_and_another_is_not() {
    let mut story = Story::given(&[submitted(Collision::Lru, 3), claim_by(1), complete_by(1, 2, r#"{"a": 1}"#)]);
    assert_eq!(story.when(&complete_by(1, 2, r#"{"a":1}"#)), Ok(vec![]));
    assert_eq!(story.when(&complete_by(1, 2, r#"{"a":2}"#)), Err("TASK_NOT_OPEN"));
    assert_eq!(story.when(&complete_by(2, 2, r#"{"a":1}"#)), Err("CLAIM_STALE"));
}

#[test]
fn given_a_claim_then_another_agent_and_an_older_token_are_refused() {
    let story = Story::given(&[submitted(Collision::Lru, 3), claim_by(1), TaskCommand::Expire { token: 2 }, claim_by(1)]);
    for by in [holder(1, 2), holder(2, 4), holder(1, 5)] {
        let commands = [
            complete_by_holder(by),
            TaskCommand::Release { by, reason: String::new() },
            TaskCommand::Progress { by, percent: None, message: None },
            TaskCommand::Fail {
                by,
                error: TaskError { code: "E".into(), message: String::new() },
                is_retryable: true,
                retry_delay_base_ms: 1,
            },
        ];
        for command in commands {
            assert_eq!(story.clone().when(&command), Err("CLAIM_STALE"), "{command:?}");
        }
    }
}

fn complete_by_holder(by: Holder) -> TaskCommand {
    TaskCommand::Complete {
        by,
        result: Box::new(Outcome { output: Json::empty_object(), learned_patterns: vec![], metrics: Json::empty_object() }),
    }
}

#[test]
fn given_an_expired_claim_then_it_counts_as_handled_and_a_released_one_does_not() {
    let expired = Story::given(&[submitted(Collision::Lru, 3), claim_by(1), TaskCommand::Expire { token: 2 }]);
    assert_eq!(expired.state.as_ref().unwrap().handled, [agent(1)]);
    assert_eq!(expired.state.unwrap().attempts_spent, 1);
    let released = Story::given(&[
        submitted(Collision::Lru, 3),
        claim_by(1),
        TaskCommand::Release { by: holder(1, 2), reason: "no".into() },
    ]);
    assert!(released.state.as_ref().unwrap().handled.is_empty());
    assert_eq!(released.state.unwrap().attempts_spent, 0);
}

#[test]
fn given_an_expiry_that_is_repeated_or_of_an_older_claim_then_nothing_happens() {
    let mut story = Story::given(&[submitted(Collision::Lru, 3), claim_by(1), TaskCommand::Expire { token: 2 }, claim_by(2)]);
    assert_eq!(story.when(&TaskCommand::Expire { token: 2 }), Ok(vec![]));
    assert_eq!(story.status(), Status::Claimed);
}

#[test]
fn given_failures_then_it_is_retried_until_its_attempts_are_spent_and_can_be_replayed() {
    let mut story = Story::given(&[submitted(Collision::Lru, 2), claim_by(1)]);
    assert_eq!(story.when(&fail_by(1, 2, true)), Ok(vec!["attempt_failed", "retry_scheduled"]));
    assert_eq!(story.when(&claim_by(1)), Ok(vec!["claimed"]));
    assert_eq!(story.when(&fail_by(1, 5, true)), Ok(vec!["attempt_failed", "died"]));
    assert_eq!(story.status(), Status::Dead);
    assert_eq!(story.when(&TaskCommand::Retry), Ok(vec!["retried"]));
    assert_eq!(story.status(), Status::Pending);
    assert_eq!(story.when(&claim_by(1)), Ok(vec!["claimed"]));
}

#[test]
fn given_a_failure_that_no_retry_helps_then_the_task_has_failed() {
    let mut story = Story::given(&[submitted(Collision::Lru, 3), claim_by(1)]);
    assert_eq!(story.when(&fail_by(1, 2, false)), Ok(vec!["attempt_failed", "failed"]));
    assert_eq!(story.status(), Status::Failed);
}

#[test]
fn given_strict_then_an_agent_never_claims_what_it_handled() {
    let mut story = Story::given(&[submitted(Collision::Strict, 3), claim_by(1), TaskCommand::Expire { token: 2 }]);
    assert_eq!(story.when(&claim_by(1)), Err("TASK_COLLISION"));
    assert_eq!(story.when(&claim_by(2)), Ok(vec!["claimed"]));
}

#[test]
fn given_a_stale_write_then_it_is_noted_once_and_only_for_a_genuine_claim() {
    let mut story = Story::given(&[submitted(Collision::Lru, 3), claim_by(1), TaskCommand::Expire { token: 2 }]);
    assert_eq!(story.when(&TaskCommand::NoteStale { by: holder(1, 99) }), Ok(vec![]));
    assert_eq!(story.when(&TaskCommand::NoteStale { by: holder(1, 2) }), Ok(vec!["stale_write_refused"]));
    assert_eq!(story.when(&TaskCommand::NoteStale { by: holder(1, 2) }), Ok(vec![]));
}

#[test]
fn given_a_deadline_then_only_an_open_task_misses_it() {
    let late = facts(10_000, 1);
    let open = Story::given(&[submitted(Collision::Lru, 3)]).state;
    let kinds: Vec<_> =
        Task::decide(open.as_ref(), &TaskCommand::MissDeadline, &late).unwrap().iter().map(|e| e.kind()).collect();
    assert_eq!(kinds, ["tasks.task.failed"]);
    assert_eq!(Task::decide(open.as_ref(), &TaskCommand::MissDeadline, &facts(9_999, 1)), Ok(vec![]));
    let done = Story::given(&[submitted(Collision::Lru, 3), claim_by(1), complete_by(1, 2, "{}")]).state;
    assert_eq!(Task::decide(done.as_ref(), &TaskCommand::MissDeadline, &late), Ok(vec![]));
}

#[test]
fn given_a_cancelled_task_then_its_holder_is_refused_and_cancelling_again_changes_nothing() {
    let mut story = Story::given(&[submitted(Collision::Lru, 3), claim_by(1), TaskCommand::Cancel { reason: None }]);
    assert_eq!(story.when(&complete_by(1, 2, "{}")), Err("CLAIM_STALE"));
    assert_eq!(story.when(&TaskCommand::Cancel { reason: None }), Ok(vec![]));
    assert_eq!(story.state.unwrap().attempts[0].status, AttemptStatus::Abandoned);
}

#[test]
fn retries_wait_longer_each_time_and_never_over_a_minute() {
    assert_eq!(retry_delay_ms(0, 1_000, 200), 1_000);
    assert_eq!(retry_delay_ms(3, 1_000, 200), 8_000);
    assert_eq!(retry_delay_ms(0, 1_000, 0), 800);
    assert_eq!(retry_delay_ms(0, 1_000, 400), 1_200);
    assert_eq!(retry_delay_ms(99, 1_000, 400), 60_000);
}

fn any_command() -> impl Strategy<Value = TaskCommand> {
    let who = (1u8..4, 1u64..12);
    prop_oneof![
        (1u8..4).prop_map(claim_by),
        who.clone().prop_map(|(n, t)| complete_by(n, t, "{}")),
        (who.clone(), any::<bool>()).prop_map(|((n, t), r)| fail_by(n, t, r)),
        (1u64..12).prop_map(|token| TaskCommand::Expire { token }),
        who.clone().prop_map(|(n, t)| TaskCommand::Release { by: holder(n, t), reason: String::new() }),
        who.prop_map(|(n, t)| TaskCommand::NoteStale { by: holder(n, t) }),
        Just(TaskCommand::Cancel { reason: Some("no longer needed".into()) }),
        Just(TaskCommand::Retry),
        Just(TaskCommand::MissDeadline),
    ]
}

proptest! {
    #[test]
    fn whatever_is_asked_tokens_rise_and_only_the_holder_ends_a_claim(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut story = Story::given(&[submitted(Collision::Strict, 4)]);
        let mut highest = 0;
        for command in &commands {
            let before = story.state.clone().unwrap();
            let happened = story.when(command);
            let after = story.state.clone().unwrap();
            if let Some(claim) = after.claim {
                prop_assert_eq!(after.status, Status::Claimed);
                if before.claim != after.claim {
                    prop_assert!(claim.token > highest);
                    prop_assert!(!before.handled.contains(&claim.agent_id));
                    highest = claim.token;
                }
            } else {
                prop_assert_ne!(after.status, Status::Claimed);
            }
            if happened == Ok(vec!["completed"]) {
                let claim = before.claim.unwrap();
                let TaskCommand::Complete { by, .. } = command else { panic!("only a completion completes") };
                prop_assert_eq!((claim.agent_id, claim.token), (by.agent, by.token));
            }
            prop_assert!(after.attempts_spent <= after.submitted.max_attempts);
            prop_assert!(after.attempts.iter().filter(|a| a.status == AttemptStatus::InProgress).count() <= 1);
        }
    }
}

fn message(id: &str) -> Box<Message> {
    Box::new(Message { id: id.into(), parts: Json::parse(r#"[{"text":"?"}]"#.into()).unwrap(), metadata: Json::empty_object() })
}

#[test]
fn given_a_claim_when_its_holder_asks_then_it_waits_for_an_answer_and_keeps_the_claim() {
    let by = holder(1, 2);
    let ask = |by, id| TaskCommand::Ask { by, message: message(id) };
    let mut story = Story::given(&[submitted(Collision::Lru, 3), claim_by(1)]);
    assert_eq!(story.when(&ask(holder(2, 2), "q")), Err("CLAIM_STALE"));
    assert_eq!(story.when(&ask(by, "q")), Ok(vec!["input_requested"]));
    assert!(story.state.as_ref().unwrap().is_input_wanted());
    assert_eq!(story.when(&ask(by, "q")), Ok(vec![]), "the same question twice is once");
    let mut expired = story.clone();
    assert_eq!(story.when(&TaskCommand::Say { message: message("a") }), Ok(vec!["input_given"]));
    assert!(!story.state.as_ref().unwrap().is_input_wanted());
    assert_eq!(story.when(&complete_by(1, 2, "{}")), Ok(vec!["completed"]));
    assert_eq!(story.when(&TaskCommand::Say { message: message("b") }), Err("TASK_NOT_OPEN"));
    expired.when(&TaskCommand::Expire { token: 2 }).unwrap();
    assert!(!expired.state.unwrap().is_input_wanted(), "nobody waits any more");
}

#[test]
fn given_as_many_messages_as_a_task_takes_then_one_more_is_refused() {
    let mut story = Story::given(&[submitted(Collision::Lru, 3)]);
    for n in 0..MESSAGES_MAX {
        story.when(&TaskCommand::Say { message: message(&n.to_string()) }).unwrap();
    }
    assert_eq!(story.when(&TaskCommand::Say { message: message("one more") }), Err("MESSAGES_FULL"));
    assert_eq!(story.when(&TaskCommand::Say { message: message("7") }), Ok(vec![]), "what is there already is no more");
}

#[test]
fn given_a_task_for_one_agent_then_no_other_may_claim_it() {
    let TaskCommand::Submit(mut for_one) = submitted(Collision::Lru, 3) else { unreachable!() };
    for_one.agent = Some(agent(1));
    let mut story = Story::given(&[TaskCommand::Submit(for_one)]);
    assert_eq!(story.when(&claim_by(2)), Err("NO_ELIGIBLE_AGENT"));
    assert_eq!(story.when(&claim_by(1)), Ok(vec!["claimed"]));
}
