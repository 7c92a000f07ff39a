"""Claims as fences: who may write, when a claim ends, what happens to answers that never arrive. Claims live one second here."""

import socket
import struct
import threading
import time

import pytest

from harness import done, refused, submit, task_of, unique, until

TTL = 1.0
KEIKO_ENV = {"KEIKO_AGENT_LEASE": "10m", "KEIKO_CLAIM_TTL": "1s", "KEIKO_RETRY_DELAY_BASE": "50ms"}
FAILURE = {"error": {"code": "X", "message": "x"}, "retryable": True}
WRITES = {
    "heartbeat": {}, "progress": {"percent": 1, "message": "x"}, "release": {"reason": "x"}, "complete": {"output": {}}, "fail": FAILURE,
}


@pytest.fixture
def capability():
    return unique("cap")


@pytest.fixture
def agent(keiko, admin, capability):
    return keiko.agent(admin, capability)


@pytest.fixture
def other(keiko, admin, agent, capability):
    return keiko.agent(admin, capability)


class Holder(threading.Thread):
    """Keeps a claim alive by heartbeats until told to stop. Every heartbeat must be accepted."""

    def __init__(self, agent, task):
        super().__init__()
        self.agent, self.task, self.over, self.statuses = agent, task, threading.Event(), []

    def run(self):
        while not self.over.wait(TTL / 5):
            self.statuses.append(self.agent.act(self.task, "heartbeat").status_code)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()
        assert set(self.statuses) <= {200}, self.statuses


@pytest.mark.parametrize("verb", WRITES)
def test_should_refuse_every_write_of_another_agent(admin, agent, other, capability, verb):
    submit(admin, capability)
    task = agent.take()
    with Holder(agent, task):
        before = task_of(admin, task["id"])
        refused(other.act(task, verb, **WRITES[verb]), 409, "CLAIM_STALE")
        token = {"claim_token": task["attributes"]["claim"]["token"]}
        refused(admin.post(f"/tasks/{task['id']}/actions/{verb}", {**token, **WRITES[verb]}), (403, 409, 422))
        now = task_of(admin, task["id"])
        assert (now["status"], now["version"], now["agent_id"]) == ("claimed", before["version"], agent.id)
    assert agent.complete(task)["attributes"]["status"] == "completed"


@pytest.mark.parametrize("verb", WRITES)
def test_should_refuse_every_write_with_an_older_token(admin, agent, capability, verb):
    submit(admin, capability)
    old = agent.take()
    done(agent.act(old, "release", reason="again"))
    refused(agent.act(old, verb, **WRITES[verb]), 409, "CLAIM_STALE")
    new = agent.take()
    assert new["id"] == old["id"]
    with Holder(agent, new):
        refused(agent.act(old, verb, **WRITES[verb]), 409, "CLAIM_STALE")
        assert task_of(admin, new["id"])["status"] == "claimed"
    assert agent.complete(new)["attributes"]["status"] == "completed"


@pytest.mark.parametrize("token", ["", "0", "1", "999999", "garbage", "-1", "x" * 3000])
def test_should_refuse_invented_tokens(admin, agent, capability, token):
    submit(admin, capability)
    task = agent.take()
    answer = agent.api.post(f"/tasks/{task['id']}/actions/complete", {"claim_token": token, "output": {}})
    refused(answer, (400, 409))
    refused(agent.api.post(f"/tasks/{task['id']}/actions/complete", {"output": {}}), 400)
    refused(agent.api.post(f"/tasks/{task['id']}/actions/complete", {"claim_token": 5, "output": {}}), 400)
    assert task_of(admin, task["id"])["status"] in ("claimed", "pending")


def test_should_show_the_token_to_its_holder_only(admin, agent, capability):
    submit(admin, capability)
    task = agent.take()
    assert task_of(admin, task["id"])["claim"]["id"] == task["attributes"]["claim"]["id"]
    for answer in (admin.get(f"/tasks/{task['id']}"), admin.get("/tasks", **{"filter[capability]": capability})):
        assert '"token"' not in answer.text


def test_should_let_tokens_only_grow(admin, agent, capability):
    submit(admin, capability)
    tokens = []
    for _ in range(4):
        task = agent.take()
        tokens.append(int(task["attributes"]["claim"]["token"]))
        assert tokens[-1] == task["attributes"]["version"], "the token is the version of the claim event"
        done(agent.act(task, "release", reason="again"))
    assert tokens == sorted(set(tokens))


def test_should_give_an_expired_task_to_another_agent(admin, agent, other, capability):
    submit(admin, capability)
    lost = agent.take()
    second = other.take()
    assert second["id"] == lost["id"] and second["attributes"]["attempt"] == 2
    with Holder(other, second):
        refused(agent.act(lost, "complete", output={"from": "the dead"}), 409, "CLAIM_STALE")
    finished = other.complete(second, {"from": "the living"})["attributes"]
    assert finished["output"] == {"from": "the living"} and finished["agent_id"] == other.id
    types = [e["type"] for e in admin.events(stream=lost["id"])]
    assert any("expired" in kind for kind in types), f"a claim ends only by an event: {types}"
    assert any("stale" in kind for kind in types), f"a refused stale completion is recorded: {types}"
    assert types.count("tasks.task.completed") == 1


def test_should_keep_a_claim_while_the_agent_sends_heartbeats(admin, agent, other, capability):
    submit(admin, capability)
    task = agent.take()
    with Holder(agent, task):
        assert other.claim(wait_ms=int(TTL * 2500)) == [], "nobody else gets it"
        claim = done(agent.act(task, "heartbeat"))["attributes"]["claim"]
        assert claim["id"] == task["attributes"]["claim"]["id"] and claim["token"] == task["attributes"]["claim"]["token"]
        assert claim["expires_at"] > task["attributes"]["claim"]["expires_at"]
    assert agent.complete(task)["attributes"]["attempt"] == 1


def test_should_never_give_a_strict_task_again_to_an_agent_that_let_it_expire(admin, agent, other, capability):
    submit(admin, capability, collision="strict")
    lost = agent.take()
    until(lambda: task_of(admin, lost["id"])["status"] == "pending", "the claim expires", timeout=TTL * 5)
    assert agent.claim(wait_ms=700) == [], "it has handled this hash"
    assert other.take()["id"] == lost["id"]


def test_should_die_when_the_last_attempt_expires(admin, agent, capability):
    submit(admin, capability, max_attempts=1)
    lost = agent.take()
    until(lambda: task_of(admin, lost["id"])["status"] == "dead", "the only attempt is spent", timeout=TTL * 5)
    assert agent.claim(wait_ms=300) == []


def test_should_record_an_expired_claim_as_abandoned(admin, agent, capability):
    submit(admin, capability, max_attempts=1)
    task = agent.take()

    def status():
        rows = [r["attributes"] for r in admin.everything(f"/agents/{agent.id}/history")]
        return [r["status"] for r in rows if r["task_id"] == task["id"]]

    until(lambda: status() == ["abandoned"], "the history says abandoned", timeout=TTL * 6)


def test_should_complete_exactly_once_under_a_race(admin, agent, capability):
    for round_ in range(5):
        submit(admin, capability)
        task = agent.take()
        answers = []
        racers = [threading.Thread(target=lambda n=n: answers.append(agent.act(task, "complete", output={"n": n}))) for n in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        statuses = sorted(a.status_code for a in answers)
        assert statuses == [200] + [409] * 7, f"round {round_}: {statuses}"
        winner = next(a for a in answers if a.status_code == 200).json()["data"]["attributes"]["output"]
        assert task_of(admin, task["id"])["output"] == winner


def test_should_never_give_one_task_to_two_racing_agents(keiko, admin, capability):
    agents = [keiko.agent(admin, capability) for _ in range(6)]
    got, lock = [], threading.Lock()

    def claim(agent):
        tasks = agent.claim(2, wait_ms=1500)
        with lock:
            got.extend(t["attributes"]["claim"]["id"] + " " + t["id"] for t in tasks)
        for task in tasks:
            agent.complete(task)

    threads = [threading.Thread(target=claim, args=(a,)) for a in agents]
    for thread in threads:
        thread.start()
    ids = {submit(admin, capability)["id"] for _ in range(4)}
    for thread in threads:
        thread.join()
    given = [entry.split()[1] for entry in got]
    assert sorted(given) == sorted(ids)


def test_should_give_a_claim_again_that_never_reached_the_agent(new_keiko):
    server = new_keiko(env={"KEIKO_CLAIM_TTL": "60s"}).start()
    admin, capability = server.login(), unique("cap")
    agent = server.agent(admin, capability)
    for _ in range(5):
        body = b'{"max":1,"wait_ms":20000}'
        head = f"POST /api/v1/tasks/actions/claim HTTP/1.1\r\nHost: x\r\nX-API-Key: {agent.key}\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as wire:
            wire.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wire.settimeout(0.3)
            with pytest.raises(TimeoutError):
                wire.recv(1)  # The request waits on the server.
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The connection is reset: whatever the server gives to that request is lost on the way.
        submitted = submit(admin, capability)
        started = time.monotonic()
        task = agent.take(wait_ms=10_000)
        assert task["id"] == submitted["id"] and time.monotonic() - started < 10
        assert agent.claim() == [], "it is given once"
        assert agent.complete(task)["attributes"]["attempt"] == 1
