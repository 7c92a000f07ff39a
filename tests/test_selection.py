"""Who gets a task: collision rules, queues, the recorded decision."""

import threading
import time

import pytest

from harness import done, path_of, refused, submit, task_of, unique, until

KEIKO_ENV = {"KEIKO_AGENT_LEASE": "10m", "KEIKO_RETRY_DELAY_BASE": "50ms"}


@pytest.fixture
def capability():
    return unique("cap")


@pytest.fixture
def agent(keiko, admin, capability):
    return keiko.agent(admin, capability)


@pytest.fixture
def queue(admin):
    """A queue of this test's own."""
    name = unique("queue")
    done(admin.put(path_of("queues", name), {"paused": False}), 200, 201)
    return name


def decision(admin, task):
    return done(admin.get(f"/tasks/{task['id']}/decision"))["attributes"]


def race(agents, admin, capability, description=None):
    """Lets all agents wait, then submits one delayed task: whoever gets it was chosen, not first. Returns (agent, task)."""
    got = []
    threads = [threading.Thread(target=lambda a=a: got.extend((a, t) for t in a.claim(wait_ms=2_500))) for a in agents]
    for thread in threads:
        thread.start()
    task = submit(admin, capability, description, delay_ms=800)
    until(lambda: got, "somebody gets the task", timeout=6)
    winner, claimed = got[0]
    assert claimed["id"] == task["id"]
    winner.complete(claimed)
    for thread in threads:
        thread.join()
    assert len(got) == 1
    return winner, claimed


# Collision


def test_should_refuse_a_strict_task_that_everybody_has_handled(admin, agent, capability):
    finished = agent.work(admin, capability, description="the same", collision="strict")
    position = admin.get(f"/tasks/{finished['id']}").json()["meta"]["position"]
    body = {"description": "The  SAME", "capability": capability, "collision": "strict"}
    refused(admin.post("/tasks", body, headers={"Keiko-Min-Position": str(position)}), 422, "NO_ELIGIBLE_AGENT")
    submit(admin, capability, "another one", collision="strict")
    agent.take()


def test_should_let_another_agent_do_a_strict_task_again(keiko, admin, agent, capability):
    agent.work(admin, capability, description="the same", collision="strict")
    fresh = keiko.agent(admin, capability)
    task = submit(admin, capability, "the same", collision="strict")
    assert agent.claim(wait_ms=500) == []
    assert fresh.take()["id"] == task["id"]


def test_should_end_a_strict_task_as_dead_when_its_retry_has_nobody_left(admin, agent, capability):
    submit(admin, capability, collision="strict", max_attempts=5)
    task = agent.take()
    agent.fail(task)
    until(lambda: task_of(admin, task["id"])["status"] == "dead", "nobody is left for the retry", timeout=5)
    assert agent.claim(wait_ms=300) == []


def test_should_wait_when_agents_exist_but_are_busy_or_away(keiko, admin, agent, capability):
    agent.work(admin, capability, description="the same", collision="strict")
    away = keiko.agent(admin, capability)
    done(admin.post(f"/agents/{away.id}/actions/pause"))
    task = submit(admin, capability, "the same", collision="strict")
    assert task["attributes"]["status"] == "pending"
    assert agent.claim(wait_ms=500) == []
    done(admin.post(f"/agents/{away.id}/actions/resume"))
    assert away.take()["id"] == task["id"]


def test_should_not_count_a_released_claim_as_handled(admin, agent, capability):
    submit(admin, capability, collision="strict")
    first = agent.take()
    done(agent.act(first, "release", reason="not now"))
    second = agent.take()
    assert second["id"] == first["id"]
    assert agent.complete(second)["attributes"]["status"] == "completed"


def test_should_not_give_two_strict_tasks_of_one_hash_to_one_agent_at_the_same_time(keiko, admin, agent, capability):
    other = keiko.agent(admin, capability)
    ids = [submit(admin, capability, "the same", collision="strict")["id"] for _ in range(2)]
    first = agent.claim(5, wait_ms=5_000)
    assert [t["id"] for t in first] == ids[:1]
    assert agent.claim(5, wait_ms=500) == []
    agent.complete(first[0])
    assert agent.claim(5, wait_ms=500) == []
    assert other.take()["id"] == ids[1]


def test_should_fall_back_to_the_same_agent_with_a_warning(admin, agent, capability):
    first = agent.work(admin, capability, description="the same")
    assert decision(admin, first)["warnings"] == []
    again = agent.work(admin, capability, description="the same")
    assert decision(admin, again)["warnings"], "a fallback is recorded"


def test_should_prefer_an_agent_that_has_not_handled_the_hash(keiko, admin, agent, capability):
    agent.work(admin, capability, description="the same")
    fresh = keiko.agent(admin, capability)
    winner, task = race([agent, fresh], admin, capability, "the same")
    assert winner is fresh and decision(admin, task)["warnings"] == []


def test_should_fall_back_to_the_least_recently_used(keiko, admin, agent, capability):
    agent.work(admin, capability, description="the same")
    second = keiko.agent(admin, capability)
    assert race([agent, second], admin, capability, "the same")[0] is second
    winner, task = race([agent, second], admin, capability, "the same")
    assert winner is agent and decision(admin, task)["warnings"]
    assert race([agent, second], admin, capability, "the same")[0] is second


# The decision


def test_should_record_the_decision_with_scores_and_exclusions(keiko, admin, agent, capability):
    paused, gone = keiko.agent(admin, capability), keiko.agent(admin, capability)
    done(admin.post(f"/agents/{paused.id}/actions/pause"))
    done(admin.post(f"/agents/{gone.id}/actions/drain"))
    submit(admin, capability)
    task = agent.take()
    made = decision(admin, task)
    assert made["task_id"] == task["id"] and made["agent_id"] == agent.id
    chosen = made["candidates"][0]
    assert chosen["agent_id"] == agent.id and chosen["name"] == agent.name
    assert made["weights"] and set(chosen["parts"]) <= set(made["weights"])
    assert all(isinstance(v, (int, float)) for v in [chosen["score"], *chosen["parts"].values(), *made["weights"].values()])
    assert paused.id not in str(made["candidates"]) and sum(made["excluded"].values()) >= 2
    assert len(made["excluded"]) >= 2, "paused and draining are different reasons"
    kinds = [e["type"] for e in done(admin.get(f"/tasks/{task['id']}/events"))]
    assert "tasks.task.claimed" in kinds


def test_should_show_the_best_twenty_candidates_and_count_the_rest(keiko, admin, capability):
    agents = [keiko.agent(admin, capability, cost_per_task=n) for n in range(24)]
    winner, task = race(agents, admin, capability)
    made = decision(admin, task)
    scores = [c["score"] for c in made["candidates"]]
    assert len(scores) == 20 and scores == sorted(scores, reverse=True)
    assert made["candidates"][0]["agent_id"] == winner.id == made["agent_id"]
    assert len(scores) + sum(made["excluded"].values()) >= 24


def test_should_prefer_the_cheaper_of_two_equal_agents(keiko, admin, capability):
    dear, cheap = keiko.agent(admin, capability, cost_per_task=100), keiko.agent(admin, capability, cost_per_task=0.01)
    winner, task = race([dear, cheap], admin, capability)
    assert winner is cheap, decision(admin, task)


def test_should_prefer_the_specialist(keiko, admin, capability):
    plain = keiko.agent(admin, capability)
    skills = {"description": "Finds memory leaks in drivers", "domains": ["drivers"], "tags": ["memory", "leaks"]}
    expert = keiko.agent(admin, {"name": capability, **skills})
    winner, task = race([plain, expert], admin, capability, "find the memory leaks in these drivers")
    assert winner is expert, decision(admin, task)


def test_should_respect_the_agents_own_limit(keiko, admin, capability):
    agent = keiko.agent(admin, capability, max_concurrency=2)
    for _ in range(3):
        submit(admin, capability)
    held = agent.claim(3, wait_ms=5_000)
    if len(held) < 2:
        held += agent.claim(3, wait_ms=5_000)
    assert len(held) == 2 and agent.claim(3, wait_ms=400) == [], "a third one would be too many"
    agent.complete(held[0])
    agent.take()


# Queues


def test_should_have_a_default_queue_and_list_others(admin, queue):
    names = [q["attributes"]["name"] for q in admin.everything("/queues")]
    assert "default" in names and queue in names
    got = next(q["attributes"] for q in admin.everything("/queues") if q["attributes"]["name"] == queue)
    assert got["paused"] is False and {"weights", "max_concurrency", "rate_per_s", "version"} <= set(got)
    for body in ({"paused": "yes"}, {"max_concurrency": -1}, {"rate_per_s": -1}, {"colour": 1}, {"weights": {"load": "much"}}):
        refused(admin.put(path_of("queues", queue), body), (400, 422))


def test_should_hold_tasks_of_a_paused_queue(admin, agent, capability, queue):
    done(admin.put(path_of("queues", queue), {"paused": True}))
    held = submit(admin, capability, queue=queue)
    free = submit(admin, capability)
    assert agent.take()["id"] == free["id"]
    assert agent.claim(wait_ms=400) == []
    got = []
    waiting = threading.Thread(target=lambda: got.extend(agent.claim(wait_ms=10_000)))
    waiting.start()
    done(admin.put(path_of("queues", queue), {"paused": False}))
    waiting.join(5)
    assert [t["id"] for t in got] == [held["id"]], "unpausing wakes those who wait"


def test_should_limit_how_many_tasks_of_a_queue_run(keiko, admin, agent, capability, queue):
    done(admin.put(path_of("queues", queue), {"max_concurrency": 1}))
    other = keiko.agent(admin, capability)
    for _ in range(2):
        submit(admin, capability, queue=queue)
    first = agent.take()
    assert agent.claim(2, wait_ms=300) == [] and other.claim(2, wait_ms=300) == []
    agent.complete(first)
    assert other.take()["id"] != first["id"]


def test_should_limit_the_rate_of_a_queue(admin, agent, capability, queue):
    done(admin.put(path_of("queues", queue), {"rate_per_s": 2}))
    for _ in range(6):
        submit(admin, capability, queue=queue)
    started = time.monotonic()
    for _ in range(6):
        agent.complete(agent.take())
    # At most two (a full bucket) come at once, the other four at two per second.
    assert time.monotonic() - started >= 1.4


def test_should_use_the_weights_of_the_queue(keiko, admin, capability, queue):
    agents = [keiko.agent(admin, capability), keiko.agent(admin, capability)]
    submit(admin, capability)
    weights = decision(admin, agents[0].take())["weights"]
    name = sorted(weights)[0]
    done(admin.put(path_of("queues", queue), {"weights": {name: 0.125}}))
    submit(admin, capability, queue=queue)
    assert decision(admin, agents[1].take())["weights"][name] == 0.125
    refused(admin.put(path_of("queues", queue), {"weights": {"charm": 1.0}}), (400, 422))
