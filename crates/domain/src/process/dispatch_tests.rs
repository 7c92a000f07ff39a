//! Given agents, tasks and requests, when something happens, then these commands follow.

use super::*;
use crate::agent::{Capability, Liveness, Mode, Profile};
use crate::golden::recorded;
use crate::queue::Weights;
use crate::task::{Collision, Status, Submitted};
use kernel::{ActorRef, Json};
use serde_json::json;

const SETTINGS: DispatchSettings = DispatchSettings { claim_ttl_ms: 1_000, lru_patience_ms: 5_000 };

fn agent(n: u8) -> AgentId {
    AgentId::from_bytes([n; 16])
}

fn task(n: u8) -> TaskId {
    TaskId::from_bytes([n; 16])
}

fn entity(name: &str, change: impl FnOnce(&mut Agent)) -> Agent {
    let capability = Capability {
        name: "work".into(),
        version: "1".into(),
        description: String::new(),
        input_schema: None,
        output_schema: None,
        domains: vec![],
        tags: vec![],
    };
    let mut agent = Agent {
        profile: Profile {
            name: name.into(),
            agent_type: "t".into(),
            description: String::new(),
            capabilities: vec![capability],
            max_concurrency: 2,
            cost_per_task: 0.0,
            labels: BTreeMap::new(),
        },
        mandate: Default::default(),
        liveness: Liveness::Up,
        degraded_reason: None,
        mode: Mode::Active,
        is_restart_requested: false,
        suspended: None,
        endpoint: None,
        is_deleted: false,
    };
    change(&mut agent);
    agent
}

fn loaded(change: impl FnOnce(&mut Task), handled: &[AgentId]) -> LoadedTask {
    let submitted = Submitted {
        description: "d".into(),
        capability: "work".into(),
        input: Json::empty_object(),
        context: Json::empty_object(),
        task_hash: "h".into(),
        priority: 5,
        queue: "default".into(),
        not_before: None,
        deadline: None,
        max_attempts: 3,
        collision: Collision::Lru,
        keywords: vec!["rust".into()],
        agent: None,
        conversation: None,
        message: None,
    };
    let mut task = Task {
        submitted,
        submitted_by: ActorRef::system("test"),
        status: Status::Pending,
        claim: None,
        attempts_spent: 0,
        attempts: vec![],
        handled: vec![],
        not_before: None,
        progress: None,
        outcome: None,
        error: None,
        messages: vec![],
        handed_over: None,
    };
    change(&mut task);
    LoadedTask { version: 1, task: Box::new(task), handled: handled.to_vec() }
}

/// A dispatcher with agents 1 to `n`.
fn with_agents(n: u8) -> Dispatch {
    let mut dispatch = Dispatch::new(SETTINGS, 0, BTreeMap::new());
    for i in 1..=n {
        dispatch.put_agent(agent(i), 1, &entity(&format!("agent-{i}"), |_| {}), Timestamp(0));
    }
    dispatch
}

fn ask(dispatch: &mut Dispatch, who: u8, waiter: WaiterId, now: i64, wait_ms: i64) {
    dispatch.signal(
        DispatchSignal::Ask(Ask { waiter, agent: agent(who), max: 2, until: Timestamp(now + wait_ms), min_position: 0 }),
        Timestamp(now),
    );
}

fn granted(commands: &[DispatchCommand]) -> Vec<(AgentId, Vec<TaskId>)> {
    let claims = commands.iter().filter_map(|c| match c {
        DispatchCommand::Claim { agent, tasks, .. } => Some((*agent, tasks.iter().map(|(id, _)| *id).collect())),
        _ => None,
    });
    claims.collect()
}

fn decision_of(commands: &[DispatchCommand]) -> Decision {
    let DispatchCommand::Claim { tasks, .. } = &commands[0] else { panic!("a claim was expected, not {commands:?}") };
    tasks[0].1.clone()
}

fn event(kind: &str, id: u8, version: u64, data: serde_json::Value) -> Recorded {
    recorded(kind, &task(id).to_string(), version, version, data)
}

#[test]
fn given_a_waiting_agent_when_a_task_comes_then_it_gets_it_with_a_decision() {
    let mut dispatch = with_agents(2);
    ask(&mut dispatch, 1, 7, 0, 1_000);
    assert_eq!(dispatch.decide(Timestamp(0), 0), []);
    dispatch.put_task(task(1), loaded(|_| {}, &[]), Timestamp(1));
    let commands = dispatch.decide(Timestamp(1), 0);
    assert_eq!(granted(&commands), [(agent(1), vec![task(1)])]);
    let decision = decision_of(&commands);
    assert_eq!(decision.candidates.len(), 1);
    assert_eq!(decision.excluded, BTreeMap::from([("NOT_ASKING".to_owned(), 1)]));
}

#[test]
fn given_a_task_when_it_is_submitted_then_it_is_read_and_read_again_if_an_event_overtook() {
    let mut dispatch = with_agents(1);
    let data = serde_json::from_str(include_str!("../../golden/tasks.task.submitted.1.json")).unwrap();
    dispatch.react(&event("tasks.task.submitted", 1, 1, data), Timestamp(0));
    assert_eq!(dispatch.decide(Timestamp(0), 0), [DispatchCommand::LoadTask(task(1))]);
    dispatch.react(&event("tasks.task.cancelled", 1, 2, json!({})), Timestamp(0));
    dispatch.signal(DispatchSignal::TaskLoaded(task(1), Some(loaded(|_| {}, &[]))), Timestamp(0));
    assert_eq!(dispatch.decide(Timestamp(0), 0), [DispatchCommand::LoadTask(task(1))]);
}

#[test]
fn given_urgent_and_old_tasks_then_the_urgent_come_first_and_then_the_oldest() {
    let mut dispatch = with_agents(1);
    for (n, priority) in [(1, 5), (2, 9), (3, 9)] {
        dispatch.put_task(task(n), loaded(|t| t.submitted.priority = priority, &[]), Timestamp(0));
    }
    ask(&mut dispatch, 1, 7, 0, 0);
    assert_eq!(granted(&dispatch.decide(Timestamp(0), 0)), [(agent(1), vec![task(2), task(3)])]);
}

#[test]
fn given_nothing_to_do_then_the_request_ends_empty_at_its_time_and_not_before_the_log_was_seen() {
    let mut dispatch = with_agents(1);
    ask(&mut dispatch, 1, 7, 0, 100);
    assert_eq!(dispatch.decide(Timestamp(99), 0), []);
    assert_eq!(dispatch.decide(Timestamp(100), 0), [DispatchCommand::Deliver { agent: agent(1), waiter: 7, tasks: vec![] }]);
    let behind = Ask { waiter: 8, agent: agent(1), max: 1, until: Timestamp(100), min_position: 5 };
    dispatch.signal(DispatchSignal::Ask(behind), Timestamp(100));
    assert_eq!(dispatch.decide(Timestamp(100), 0), []);
    dispatch.react(&recorded("identity.session.opened", "sess_x", 1, 5, json!({})), Timestamp(101));
    assert_eq!(dispatch.decide(Timestamp(102), 0), [DispatchCommand::Deliver { agent: agent(1), waiter: 8, tasks: vec![] }]);
}

#[test]
fn given_a_request_that_nobody_waits_for_any_more_then_nothing_is_claimed_for_it() {
    let mut dispatch = with_agents(1);
    ask(&mut dispatch, 1, 7, 0, 30_000);
    dispatch.signal(DispatchSignal::Left(agent(1), 7), Timestamp(1));
    dispatch.put_task(task(1), loaded(|_| {}, &[]), Timestamp(2));
    assert_eq!(granted(&dispatch.decide(Timestamp(2), 0)), []);
    ask(&mut dispatch, 1, 8, 3, 1_000);
    assert_eq!(granted(&dispatch.decide(Timestamp(3), 0)), [(agent(1), vec![task(1)])]);
    // Its claim is on the way: it is handed over with the agent's next request.
    dispatch.signal(DispatchSignal::Left(agent(1), 8), Timestamp(4));
    assert_eq!(granted(&dispatch.decide(Timestamp(4), 0)), []);
}

#[test]
fn given_paused_draining_or_busy_agents_then_they_get_nothing() {
    for (mode, word) in [(Mode::Paused, "PAUSED"), (Mode::Draining, "DRAINING")] {
        let mut dispatch = with_agents(2);
        dispatch.put_agent(agent(1), 2, &entity("agent-1", |a| a.mode = mode), Timestamp(0));
        ask(&mut dispatch, 1, 7, 0, 1_000);
        dispatch.put_task(task(1), loaded(|_| {}, &[]), Timestamp(0));
        assert_eq!(dispatch.decide(Timestamp(0), 0), []);
        ask(&mut dispatch, 2, 8, 0, 1_000);
        assert_eq!(decision_of(&dispatch.decide(Timestamp(0), 0)).excluded, BTreeMap::from([(word.to_owned(), 1)]));
    }
}

#[test]
fn given_a_full_agent_then_it_gets_more_only_when_something_ended() {
    let mut dispatch = with_agents(1);
    for n in 1..=3 {
        dispatch.put_task(task(n), loaded(|t| t.submitted.task_hash = format!("h{n}"), &[]), Timestamp(0));
    }
    ask(&mut dispatch, 1, 7, 0, 1_000);
    assert_eq!(granted(&dispatch.decide(Timestamp(0), 0)), [(agent(1), vec![task(1), task(2)])]);
    let results = vec![(task(1), ClaimResult::Claimed(2)), (task(2), ClaimResult::Claimed(2))];
    dispatch
        .signal(DispatchSignal::ClaimDone(ClaimDone { agent: agent(1), waiter: 7, results, is_delivered: true }), Timestamp(1));
    ask(&mut dispatch, 1, 8, 1, 10_000);
    assert_eq!(dispatch.decide(Timestamp(1), 0), []);
    let done = json!({"agent_id": agent(1), "capability": "work", "task_hash": "h1", "duration_ms": 1,
        "outcome": {"output": {}, "learned_patterns": [], "metrics": {}}});
    dispatch.react(&event("tasks.task.completed", 1, 3, done), Timestamp(2));
    assert_eq!(granted(&dispatch.decide(Timestamp(2), 0)), [(agent(1), vec![task(3)])]);
}

#[test]
fn given_a_claim_then_it_expires_unless_it_is_renewed_with_its_token() {
    let mut dispatch = with_agents(1);
    dispatch.put_task(task(1), loaded(|_| {}, &[]), Timestamp(0));
    ask(&mut dispatch, 1, 7, 0, 1_000);
    dispatch.decide(Timestamp(0), 0);
    let results = vec![(task(1), ClaimResult::Claimed(2))];
    dispatch
        .signal(DispatchSignal::ClaimDone(ClaimDone { agent: agent(1), waiter: 7, results, is_delivered: true }), Timestamp(0));
    dispatch.signal(DispatchSignal::Renew(task(1), 2), Timestamp(900));
    dispatch.signal(DispatchSignal::Renew(task(1), 99), Timestamp(1_800));
    assert_eq!(dispatch.decide(Timestamp(1_899), 0), []);
    assert_eq!(dispatch.decide(Timestamp(1_900), 0), [DispatchCommand::Expire(task(1), 2)]);
    assert_eq!(dispatch.decide(Timestamp(2_900), 0), [DispatchCommand::Expire(task(1), 2)], "asked again if that was lost");
}

#[test]
fn given_a_task_claimed_anew_then_a_late_look_at_the_old_claim_leaves_it_alone() {
    let mut dispatch = with_agents(2);
    dispatch.put_task(task(1), loaded(|_| {}, &[]), Timestamp(0));
    let claimed = |dispatch: &mut Dispatch, who: u8, waiter, token, now: i64| {
        ask(dispatch, who, waiter, now, 60_000);
        assert_eq!(granted(&dispatch.decide(Timestamp(now), 0)), [(agent(who), vec![task(1)])]);
        let results = vec![(task(1), ClaimResult::Claimed(token))];
        dispatch.signal(
            DispatchSignal::ClaimDone(ClaimDone { agent: agent(who), waiter, results, is_delivered: true }),
            Timestamp(now),
        );
    };
    claimed(&mut dispatch, 1, 7, 2, 0);
    assert_eq!(dispatch.decide(Timestamp(1_000), 0), [DispatchCommand::Expire(task(1), 2)]);
    let expired = json!({"agent_id": agent(1), "capability": "work", "task_hash": "h"});
    dispatch.react(&event("tasks.task.claim_expired", 1, 3, expired), Timestamp(1_500));
    claimed(&mut dispatch, 2, 8, 4, 1_500);
    assert_eq!(dispatch.decide(Timestamp(2_400), 0), [], "the second look at the first claim was due at 2000");
}

#[test]
fn given_claims_that_never_arrived_then_they_come_first() {
    let mut dispatch = with_agents(1);
    dispatch.put_task(task(1), loaded(|_| {}, &[]), Timestamp(0));
    ask(&mut dispatch, 1, 7, 0, 1_000);
    dispatch.decide(Timestamp(0), 0);
    let results = vec![(task(1), ClaimResult::Claimed(2))];
    dispatch
        .signal(DispatchSignal::ClaimDone(ClaimDone { agent: agent(1), waiter: 7, results, is_delivered: false }), Timestamp(0));
    dispatch.put_task(task(2), loaded(|t| t.submitted.task_hash = "other".into(), &[]), Timestamp(0));
    ask(&mut dispatch, 1, 8, 1, 1_000);
    assert_eq!(dispatch.decide(Timestamp(1), 0), [DispatchCommand::Deliver { agent: agent(1), waiter: 8, tasks: vec![task(1)] }]);
}

#[test]
fn given_strict_then_an_agent_that_handled_the_hash_or_works_on_it_is_left_out() {
    let strict = |t: &mut Task| t.submitted.collision = Collision::Strict;
    let mut dispatch = with_agents(2);
    dispatch.put_task(task(1), loaded(strict, &[agent(1)]), Timestamp(0));
    ask(&mut dispatch, 1, 7, 0, 60_000);
    assert_eq!(dispatch.decide(Timestamp(0), 0), []);
    dispatch.put_task(task(2), loaded(strict, &[agent(1)]), Timestamp(0));
    ask(&mut dispatch, 2, 8, 0, 60_000);
    assert_eq!(granted(&dispatch.decide(Timestamp(0), 0)), [(agent(2), vec![task(1)])], "the second one has the same hash");
}

#[test]
fn given_a_strict_retry_with_nobody_left_then_it_is_given_up_and_a_first_try_waits() {
    let strict = |t: &mut Task| t.submitted.collision = Collision::Strict;
    let mut dispatch = with_agents(1);
    dispatch.put_task(task(1), loaded(strict, &[agent(1)]), Timestamp(0));
    assert_eq!(dispatch.decide(Timestamp(0), 0), []);
    let tried = |t: &mut Task| {
        t.submitted.collision = Collision::Strict;
        t.handled = vec![agent(1)];
    };
    dispatch.put_task(task(2), loaded(tried, &[]), Timestamp(0));
    let commands = dispatch.decide(Timestamp(0), 0);
    assert!(
        matches!(&commands[..], [DispatchCommand::GiveUp(id, error)] if *id == task(2) && error.code == "NO_ELIGIBLE_AGENT"),
        "{commands:?}"
    );
}

#[test]
fn given_lru_then_the_least_recently_used_agent_repeats_it_with_a_warning_when_nobody_fresh_can() {
    let mut dispatch = with_agents(2);
    dispatch.put_task(task(1), loaded(|_| {}, &[agent(1), agent(2)]), Timestamp(0));
    ask(&mut dispatch, 1, 7, 0, 60_000);
    let commands = dispatch.decide(Timestamp(0), 0);
    assert_eq!(granted(&commands), [(agent(1), vec![task(1)])]);
    assert!(decision_of(&commands).warnings[0].starts_with("TASK_COLLISION"));
}

#[test]
fn given_lru_and_a_fresh_agent_that_is_up_then_it_is_waited_for_but_not_for_ever() {
    let mut dispatch = with_agents(2);
    dispatch.put_task(task(1), loaded(|_| {}, &[agent(1)]), Timestamp(0));
    ask(&mut dispatch, 1, 7, 0, 60_000);
    assert_eq!(dispatch.decide(Timestamp(0), 0), []);
    assert_eq!(dispatch.decide(Timestamp(4_999), 0), []);
    assert_eq!(granted(&dispatch.decide(Timestamp(5_000), 0)), [(agent(1), vec![task(1)])]);
}

#[test]
fn given_a_queue_that_is_paused_full_or_slow_then_its_tasks_wait() {
    let configured = |change: fn(&mut Configured)| {
        let mut configured = Configured::unconfigured("default");
        change(&mut configured);
        configured
    };
    let mut paused = with_agents(1);
    paused.configure(configured(|q| q.is_paused = true));
    paused.put_task(task(1), loaded(|_| {}, &[]), Timestamp(0));
    ask(&mut paused, 1, 7, 0, 60_000);
    assert_eq!(paused.decide(Timestamp(0), 0), []);
    paused.configure(configured(|_| {}));
    assert_eq!(granted(&paused.decide(Timestamp(1), 0)).len(), 1);

    for limit in [(|q| q.max_concurrency = Some(1)) as fn(&mut Configured), |q| q.rate_per_s = Some(1.0)] {
        let mut limited = with_agents(1);
        limited.configure(configured(limit));
        for n in 1..=2 {
            limited.put_task(task(n), loaded(|t| t.submitted.task_hash = format!("h{n}"), &[]), Timestamp(0));
        }
        ask(&mut limited, 1, 7, 0, 60_000);
        assert_eq!(granted(&limited.decide(Timestamp(0), 0)), [(agent(1), vec![task(1)])]);
    }
}

#[test]
fn given_specialised_successful_free_or_cheap_agents_then_the_weights_decide_who_is_best() {
    let weights = |w: [f64; 4]| Weights { specialisation: w[0], success: w[1], load: w[2], cost: w[3] };
    let best = |w: [f64; 4]| {
        let stats =
            BTreeMap::from([(crate::view::stats::key(&agent(2), "work"), AgentStats { completed: 50, ..AgentStats::default() })]);
        let mut dispatch = Dispatch::new(SETTINGS, 0, stats);
        dispatch.put_agent(agent(2), 1, &entity("proven", |a| a.profile.cost_per_task = 9.0), Timestamp(0));
        dispatch.put_agent(agent(3), 1, &entity("cheap", |a| a.profile.cost_per_task = 1.0), Timestamp(0));
        dispatch.put_agent(
            agent(1),
            2,
            &entity("special", |a| {
                a.profile.capabilities[0].domains = vec!["rust".into()];
                a.profile.cost_per_task = 9.0;
            }),
            Timestamp(0),
        );
        dispatch.signal(DispatchSignal::Reported(agent(1), 0.8), Timestamp(0));
        dispatch.signal(DispatchSignal::Reported(agent(2), 0.8), Timestamp(0));
        dispatch.configure(Configured { weights: weights(w), ..Configured::unconfigured("default") });
        for who in 1..=3 {
            ask(&mut dispatch, who, u64::from(who), 0, 60_000);
        }
        dispatch.put_task(task(1), loaded(|_| {}, &[]), Timestamp(0));
        decision_of(&dispatch.decide(Timestamp(0), 0)).candidates[0].name.clone()
    };
    assert_eq!(best([1.0, 0.0, 0.0, 0.0]), "special");
    assert_eq!(best([0.0, 1.0, 0.0, 0.0]), "proven");
    assert_eq!(best([0.0, 0.0, 1.0, 0.0]), "cheap");
    assert_eq!(best([0.0, 0.0, 0.0, 1.0]), "cheap");
}

#[test]
fn given_a_delay_or_a_deadline_then_nothing_happens_before_and_everything_after() {
    let mut dispatch = with_agents(1);
    ask(&mut dispatch, 1, 7, 0, 60_000);
    let delayed = |t: &mut Task| {
        t.not_before = Some(Timestamp(500));
        t.submitted.deadline = Some(Timestamp(9_000));
    };
    dispatch.put_task(task(1), loaded(delayed, &[]), Timestamp(0));
    assert_eq!(dispatch.decide(Timestamp(499), 0), []);
    assert_eq!(granted(&dispatch.decide(Timestamp(500), 0)).len(), 1);
    assert!(dispatch.decide(Timestamp(9_000), 0).contains(&DispatchCommand::MissDeadline(task(1))));
}

#[test]
fn given_a_drain_then_nothing_more_is_given_out() {
    let mut dispatch = with_agents(1);
    dispatch.put_task(task(1), loaded(|_| {}, &[]), Timestamp(0));
    dispatch.signal(DispatchSignal::Drain, Timestamp(0));
    ask(&mut dispatch, 1, 7, 0, 0);
    assert_eq!(granted(&dispatch.decide(Timestamp(0), 0)), []);
}

#[test]
fn given_a_request_that_says_again_that_it_waits_then_it_waits_on_and_gets_one_answer() {
    let mut dispatch = with_agents(1);
    ask(&mut dispatch, 1, 7, 0, 1_000);
    assert_eq!(dispatch.decide(Timestamp(0), 0), []);
    ask(&mut dispatch, 1, 7, 800, 1_000);
    assert_eq!(dispatch.decide(Timestamp(1_000), 0), [], "its first time is over, its second is not");
    assert_eq!(dispatch.decide(Timestamp(1_800), 0), [DispatchCommand::Deliver { agent: agent(1), waiter: 7, tasks: vec![] }]);
    assert_eq!(dispatch.decide(Timestamp(9_000), 0), []);
}

#[test]
fn given_tasks_for_one_agent_then_they_wait_for_it_and_never_before_others() {
    let mut dispatch = with_agents(2);
    let for_second = |t: &mut Task| (t.submitted.agent, t.submitted.priority) = (Some(agent(2)), 9);
    dispatch.put_task(task(1), loaded(for_second, &[]), Timestamp(0));
    dispatch.put_task(task(2), loaded(|t| t.submitted.task_hash = "other".into(), &[]), Timestamp(0));
    ask(&mut dispatch, 1, 7, 0, 1_000);
    assert_eq!(granted(&dispatch.decide(Timestamp(0), 0)), [(agent(1), vec![task(2)])]);
    ask(&mut dispatch, 2, 8, 0, 1_000);
    let commands = dispatch.decide(Timestamp(0), 0);
    assert_eq!(granted(&commands), [(agent(2), vec![task(1)])]);
    assert_eq!(decision_of(&commands).excluded, BTreeMap::new(), "nobody else was ever asked");
}

#[test]
fn given_an_agent_that_is_removed_then_tasks_for_it_end_and_others_stay() {
    let mut dispatch = with_agents(2);
    for (n, only) in [(1, Some(agent(2))), (2, None)] {
        dispatch.put_task(task(n), loaded(|t| t.submitted.agent = only, &[]), Timestamp(0));
    }
    dispatch.put_agent(agent(2), 2, &entity("agent-2", |a| a.is_deleted = true), Timestamp(1));
    let commands = dispatch.decide(Timestamp(1), 0);
    let [DispatchCommand::GiveUp(id, error)] = &commands[..] else { panic!("one task ends, not {commands:?}") };
    assert_eq!((*id, error.code.as_str()), (task(1), "AGENT_GONE"));
}

#[test]
fn given_a_task_for_an_agent_that_is_gone_when_it_waits_again_then_it_is_asked_whether_it_is_the_end() {
    let mut dispatch = with_agents(1);
    dispatch.put_task(task(1), loaded(|t| t.submitted.agent = Some(agent(9)), &[]), Timestamp(0));
    assert_eq!(dispatch.decide(Timestamp(0), 0), [DispatchCommand::LoadAgent(agent(9))]);
    let gone = entity("gone", |a| a.is_deleted = true);
    dispatch.signal(DispatchSignal::AgentLoaded(agent(9), 2, Box::new(gone)), Timestamp(1));
    let commands = dispatch.decide(Timestamp(1), 0);
    assert!(
        matches!(&commands[..], [DispatchCommand::GiveUp(id, error)] if *id == task(1) && error.code == "AGENT_GONE"),
        "{commands:?}"
    );
}
