"""Tasks from submission to their end: hash, schemas, claims, completion, failure, retry, cancelling."""

import datetime
import hashlib
import json
import threading
import time
import unicodedata

import pytest
import rfc8785

from harness import absent, done, refused, submit, task_of, unique, until

KEIKO_ENV = {"KEIKO_AGENT_LEASE": "10m", "KEIKO_RETRY_DELAY_BASE": "400ms"}
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture
def capability():
    return unique("cap")


@pytest.fixture
def agent(keiko, admin, capability):
    """An agent that is up and the only one with this test's capability."""
    return keiko.agent(admin, capability)


def in_seconds(seconds):
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


# Submission


def test_should_fill_in_defaults(admin, agent, capability):
    task = submit(admin, capability, "Do it")
    assert task["type"] == "task" and task["id"].startswith("task_")
    got = task["attributes"]
    expected = {
        "description": "Do it", "capability": capability, "input": {}, "context": {}, "status": "pending", "priority": 5, "queue": "default",
        "max_attempts": 3, "output": None, "error": None, "claim": None, "agent_id": None, "deadline": None, "version": 1,
    }
    assert {name: got.get(name) for name in expected} == expected
    assert {"task_hash", "attempt", "created_at", "updated_at"} <= set(got)
    assert done(admin.get(f"/tasks/{task['id']}"))["attributes"] == got


def oracle(capability, description, input_, context):
    """The task hash, written down a second time."""
    normal = " ".join(unicodedata.normalize("NFKC", description).split()).lower()
    canonical = rfc8785.dumps({"capability": capability, "description": normal, "input": input_, "context": context})
    return hashlib.sha256(canonical).hexdigest()


@pytest.mark.parametrize("description, input_, context", [
    ("Review it", {}, {}),
    ("  Review \t THE\n\n  Code  ", {"b": 2.50, "a": [1e3, None, True, "ü\u2028\\\""]}, {"file_paths": ["b", "a"]}),
    ("ﬁx the Ⅳ ＦＵＬＬ width", {"€": 1, "\r": 2, "1": 3, "😀": 4, "\ufb33": 5, "ö": 6}, {}),
    ("a\u3000b\u00a0c STRASSE ß İ", {"n": [1e21, 1e-7, 0.1, -0.0, 5e-324, 333333333.33333329, 9007199254740991]}, {"operation_type": "x"}),
    ("é e\u0301 É", {"deep": {"z": {"y": [], "x": {}}}}, {"a": {"b": None}}),
], ids=["plain", "blanks", "utf16", "numbers", "composition"])
def test_should_hash_tasks_as_published(admin, agent, capability, description, input_, context):
    got = submit(admin, capability, description, input=input_, context=context)["attributes"]
    assert got["task_hash"] == oracle(capability, description, input_, context)


def test_should_hash_the_work_and_nothing_else(admin, agent, capability):
    def hash_of(description="do it", **fields):
        return submit(admin, capability, description, **fields)["attributes"]["task_hash"]

    plain = hash_of()
    assert plain == hash_of(" DO   it", priority=9, delay_ms=60_000, max_attempts=1, collision="lru") == hash_of()
    assert len({plain, hash_of(input={"a": 1}), hash_of(context={"a": 1}), hash_of("do that")}) == 4


def test_should_refuse_input_that_the_capability_does_not_take(keiko, admin, capability):
    keiko.agent(admin, {"name": capability, "input_schema": NUMBER})
    submit(admin, capability, input={"n": 1})
    error = refused(admin.post("/tasks", {"description": "x", "capability": capability, "input": {"n": "one"}}), 422)
    assert "/input/n" in json.dumps(error)
    refused(admin.post("/tasks", {"description": "x", "capability": capability}), 422)
    assert len(admin.everything("/tasks", **{"filter[capability]": capability})) == 1, "nothing is half-done"


def test_should_name_near_capabilities_when_one_is_unknown(admin, agent, capability):
    error = refused(admin.post("/tasks", {"description": "x", "capability": capability[:-1] + "_"}), 422, "CAPABILITY_UNKNOWN")
    assert capability in json.dumps(error)


@pytest.mark.parametrize("field, value", [
    ("description", None), ("description", 5), ("capability", 7), ("priority", "high"), ("priority", 1.5), ("delay_ms", "1s"), ("collision", "maybe"),
    ("queue", 5), ("input", "text"), ("context", []), ("deadline", "tomorrow"), ("colour", "red"),
])
def test_should_refuse_tasks_of_the_wrong_shape(admin, agent, capability, field, value):
    error = refused(admin.post("/tasks", {"description": "x", "capability": capability, field: value}), 400)
    assert field in json.dumps(error)


@pytest.mark.parametrize("field, value", [
    ("description", ""), ("description", "x" * 100_000), ("priority", 10), ("priority", -1), ("delay_ms", -1), ("max_attempts", 0),
    ("max_attempts", 10**9),
], ids=lambda value: str(value)[:20])
def test_should_refuse_tasks_out_of_bounds(admin, agent, capability, field, value):
    error = refused(admin.post("/tasks", {"description": "x", "capability": capability, field: value}), (400, 422))
    assert field in json.dumps(error)


def test_should_show_a_task_only_where_it_is(admin):
    for suffix in ("", "/decision", "/events"):
        refused(admin.get(f"/tasks/{absent('task')}{suffix}"), 404, "TASK_NOT_FOUND")


# Claiming and finishing


def test_should_give_a_task_and_take_its_completion(admin, agent, capability):
    submitted = submit(admin, capability, input={"a": 1})
    task = agent.take()
    got = task["attributes"]
    assert task["id"] == submitted["id"] and got["status"] == "claimed" and got["agent_id"] == agent.id
    assert got["attempt"] == 1 and got["input"] == {"a": 1}
    assert {"id", "token", "expires_at"} <= set(got["claim"]) and isinstance(got["claim"]["token"], str)
    finished = agent.complete(task, {"answer": 42}, metrics={"tokens": 5}, learned_patterns=["small steps"])["attributes"]
    assert finished["status"] == "completed" and finished["output"] == {"answer": 42} and finished["agent_id"] == agent.id
    types = [e["type"] for e in done(admin.get(f"/tasks/{task['id']}/events"))]
    assert types[0] == "tasks.task.submitted" and types[-1] == "tasks.task.completed"
    assert types.count("tasks.task.claimed") == 1


def test_should_answer_an_empty_list_when_there_is_nothing_to_do(agent):
    assert agent.claim() == []
    assert done(agent.api.post("/tasks/actions/claim", {})) == []
    started = time.monotonic()
    assert agent.claim(wait_ms=600) == []
    assert 0.5 <= time.monotonic() - started < 5


@pytest.mark.parametrize("body", [{"wait_ms": 60_001}, {"wait_ms": -1}, {"max": 0}, {"max": "all"}, {"colour": 1}], ids=json.dumps)
def test_should_refuse_claims_out_of_bounds(agent, body):
    refused(agent.api.post("/tasks/actions/claim", body), (400, 422))


def test_should_wake_a_waiting_claim_with_a_submission(admin, agent, capability):
    got = []
    waiting = threading.Thread(target=lambda: got.extend(agent.claim(wait_ms=30_000)))
    waiting.start()
    waiting.join(0.4)
    assert waiting.is_alive(), "it waits"
    task = submit(admin, capability)
    waiting.join(5)
    assert not waiting.is_alive(), "the long poll was not woken"
    assert [t["id"] for t in got] == [task["id"]]


def test_should_give_at_most_as_many_as_asked_for(keiko, admin, agent, capability):
    ids = {submit(admin, capability)["id"] for _ in range(5)}
    first = agent.claim(3, wait_ms=5_000)
    assert 1 <= len(first) <= 3
    seen = {t["id"] for t in first}
    while len(seen) < 5:
        more = agent.claim(3, wait_ms=5_000)
        assert more and not seen & {t["id"] for t in more}, "each task is given once"
        seen |= {t["id"] for t in more}
    assert seen == ids and agent.claim(5) == []


def test_should_answer_a_repeated_completion_and_refuse_another_one(admin, agent, capability):
    submit(admin, capability)
    task = agent.take()
    first = agent.complete(task, {"n": 1})
    again = agent.complete(task, {"n": 1})
    assert again["attributes"] == first["attributes"]
    refused(agent.act(task, "complete", output={"n": 2}), 409)
    refused(agent.act(task, "fail", error={"code": "X", "message": "x"}, retryable=True), 409)
    assert task_of(admin, task["id"])["output"] == {"n": 1}
    types = [e["type"] for e in admin.events(stream=task["id"])]
    assert types.count("tasks.task.completed") == 1


@pytest.mark.parametrize("output", [{"n": "one"}, {}, {"n": 1, "extra": []}], ids=json.dumps)
def test_should_refuse_output_that_the_capability_does_not_give_and_keep_the_claim(keiko, admin, capability, output):
    agent = keiko.agent(admin, {"name": capability, "output_schema": {**NUMBER, "additionalProperties": False}})
    submit(admin, capability)
    task = agent.take()
    before = task_of(admin, task["id"])["version"]
    error = refused(agent.act(task, "complete", output=output), 422)
    assert "/output" in json.dumps(error)
    now = task_of(admin, task["id"])
    assert now["status"] == "claimed" and now["version"] == before
    assert agent.complete(task, {"n": 1})["attributes"]["status"] == "completed"


def test_should_take_progress_and_heartbeats_of_the_holder(admin, agent, capability):
    submit(admin, capability)
    task = agent.take()
    done(agent.act(task, "progress", percent=40, message="nearly half"))
    done(agent.act(task, "heartbeat"))
    for body in ({"percent": 101, "message": "x"}, {"percent": "half", "message": "x"}, {"percent": 1, "message": "x", "colour": 1}):
        refused(agent.act(task, "progress", **body), (400, 422))
    assert agent.complete(task)["attributes"]["status"] == "completed"


def test_should_release_a_claim_for_others(admin, agent, capability):
    submit(admin, capability)
    task = agent.take()
    released = done(agent.act(task, "release", reason="no time"))["attributes"]
    assert released["status"] == "pending" and released["claim"] is None
    again = agent.take()
    assert again["id"] == task["id"] and again["attributes"]["claim"]["token"] != task["attributes"]["claim"]["token"]


# Failing and retrying


def test_should_retry_later_and_later(admin, agent, capability):
    submit(admin, capability)
    task = agent.take()
    for attempt, base in ((1, 0.4), (2, 0.8)):
        assert task["attributes"]["attempt"] == attempt
        failed = agent.fail(task)["attributes"]
        since = time.monotonic()
        assert failed["status"] == "pending" and failed["error"]["code"] == "BROKEN"
        assert agent.claim() == [], "not at once"
        task = agent.take()
        assert base * 0.45 <= time.monotonic() - since <= base * 2 + 3
    assert agent.complete(task)["attributes"]["status"] == "completed"


def test_should_fail_for_good_when_not_retryable_and_run_again_when_asked(admin, agent, capability):
    submit(admin, capability)
    task = agent.take()
    failed = agent.fail(task, retryable=False)["attributes"]
    assert failed["status"] == "failed" and failed["error"] == {"code": "BROKEN", "message": "it broke"}
    assert agent.claim(wait_ms=300) == []
    assert done(admin.post(f"/tasks/{task['id']}/actions/retry"))["attributes"]["status"] == "pending"
    assert agent.complete(agent.take())["attributes"]["status"] == "completed"


def test_should_be_dead_when_attempts_are_spent_and_revive_by_retry(admin, agent, capability):
    submit(admin, capability, max_attempts=2)
    task = agent.take()
    agent.fail(task)
    second = agent.take()
    assert agent.fail(second)["attributes"]["status"] == "dead"
    assert agent.claim(wait_ms=300) == []
    revived = done(admin.post(f"/tasks/{task['id']}/actions/retry"))["attributes"]
    assert revived["status"] == "pending"
    assert agent.complete(agent.take())["attributes"]["status"] == "completed"


def test_should_refuse_to_retry_what_has_not_failed(admin, agent, capability):
    task = submit(admin, capability)
    refused(admin.post(f"/tasks/{task['id']}/actions/retry"), 409)
    agent.complete(agent.take())
    refused(admin.post(f"/tasks/{task['id']}/actions/retry"), 409)


def test_should_cancel_waiting_and_claimed_tasks(admin, agent, capability):
    waiting = submit(admin, capability)
    assert done(admin.post(f"/tasks/{waiting['id']}/actions/cancel"))["attributes"]["status"] == "cancelled"
    assert agent.claim(wait_ms=300) == []
    submit(admin, capability)
    task = agent.take()
    assert done(admin.post(f"/tasks/{task['id']}/actions/cancel"))["attributes"]["status"] == "cancelled"
    refused(agent.act(task, "complete", output={}), 409)
    refused(agent.act(task, "heartbeat"), 409)
    assert task_of(admin, task["id"])["status"] == "cancelled"
    submit(admin, capability)
    finished = agent.complete(agent.take())
    refused(admin.post(f"/tasks/{finished['id']}/actions/cancel"), 409)


def test_should_take_actions_with_and_without_a_body_but_not_with_unknown_fields(admin, agent, capability):
    for kw in ({}, {"body": {}}):
        task = submit(admin, capability, delay_ms=60_000)
        refused(admin.post(f"/tasks/{task['id']}/actions/cancel", {"colour": "red"}), 400)
        assert done(admin.post(f"/tasks/{task['id']}/actions/cancel", **kw))["attributes"]["status"] == "cancelled"
        assert done(admin.post(f"/agents/{agent.id}/actions/pause", **kw))["attributes"]["status"] == "paused"
    refused(admin.post(f"/tasks/{task['id']}/actions/dance"), 404)


# Order and time


def test_should_give_urgent_tasks_first_and_older_ones_before_newer(admin, agent, capability):
    wanted = {}
    for priority in (1, 9, 5, 9, 0):
        wanted.setdefault(priority, []).append(submit(admin, capability, priority=priority)["id"])
    got = [agent.take()["id"] for _ in range(5)]
    assert got == wanted[9] + wanted[5] + wanted[1] + wanted[0]


def test_should_hold_a_delayed_task_back(admin, agent, capability):
    started = time.monotonic()
    task = submit(admin, capability, delay_ms=900)
    assert task["attributes"]["status"] == "pending" and agent.claim() == []
    assert agent.take()["id"] == task["id"]
    assert time.monotonic() - started >= 0.85


def test_should_not_give_a_task_after_its_deadline(admin, agent, capability):
    task = submit(admin, capability, delay_ms=5_000, deadline=in_seconds(1))
    assert task["attributes"]["deadline"]
    until(lambda: task_of(admin, task["id"])["status"] in ("failed", "dead", "cancelled"), "a missed deadline ends the task", timeout=5)
    assert "DEADLINE" in json.dumps(task_of(admin, task["id"])["error"]).upper()
    assert agent.claim(wait_ms=300) == []
    refused(admin.post("/tasks", {"description": "x", "capability": capability, "deadline": in_seconds(-5)}), (400, 422))


# Looking back


def test_should_list_tasks_by_status_capability_and_agent(admin, agent, capability):
    finished = agent.work(admin, capability)
    submit(admin, capability)
    claimed = agent.take()
    waiting = submit(admin, capability, delay_ms=60_000)

    def ids(**filters):
        return [t["id"] for t in admin.everything("/tasks", **{f"filter[{k}]": v for k, v in {"capability": capability, **filters}.items()})]

    assert ids() == [waiting["id"], claimed["id"], finished["id"]], "newest first"
    assert ids(status="pending") == [waiting["id"]] and ids(status="claimed") == [claimed["id"]] and ids(status="completed") == [finished["id"]]
    assert claimed["id"] in [t["id"] for t in admin.everything(f"/agents/{agent.id}/tasks")]
    assert waiting["id"] not in [t["id"] for t in admin.everything(f"/agents/{agent.id}/tasks")]


def test_should_keep_the_history_of_an_agent(admin, agent, capability):
    good = agent.work(admin, capability)
    submit(admin, capability)
    learned = agent.take()
    agent.complete(learned, {"ok": True}, learned_patterns=["small diffs"], metrics={"tokens": 7})
    submit(admin, capability, max_attempts=1)
    bad = agent.take()
    agent.fail(bad, retryable=False)
    submit(admin, capability)
    open_ = agent.take()

    def rows():
        found = {row["attributes"]["task_id"]: row["attributes"] for row in admin.everything(f"/agents/{agent.id}/history")}
        return found if len(found) == 4 else None

    found = until(rows, "four rows of history", timeout=5)
    states = {good["id"]: "completed", learned["id"]: "completed", bad["id"]: "failed", open_["id"]: "in_progress"}
    until(lambda: {k: v["status"] for k, v in rows().items()} == states, f"{states}", timeout=5)
    row = rows()[learned["id"]]
    assert row["task_hash"] == learned["attributes"]["task_hash"] and row["agent_id"] == agent.id
    assert row["learned_patterns"] == ["small diffs"] and row["performance_metrics"] == {"tokens": 7}
    assert row["started_at"] and row["completed_at"] and set(found) == set(states)
