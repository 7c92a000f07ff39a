"""The Python SDK (sdk/python) against the real server: clients, agents, and what they do when the server or they themselves are ended."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from pydantic import BaseModel

import keiko as sdk
from harness import ADMIN_PASSWORD, clean_env, free_port, unique, until
from keiko.capability import Capability
from keiko.sync import Agent, Client
from keiko.sync import Task as SyncTask

# Claims are kept often enough for tests to see it, retries come soon.
KEIKO_ENV = {"KEIKO_CLAIM_TTL": "2s", "KEIKO_RETRY_DELAY_BASE": "100ms"}

FIVE_LINES = """
from keiko import Agent
agent = Agent("counter")
@agent.capability("count-words")
async def count(text: str) -> dict: return {"words": len(text.split())}
agent.run()
"""

# Tells of each start in a file; ends when the task's file appears.
WAITING_AGENT = """
import asyncio, pathlib, sys
from keiko import Agent, Task
folder = pathlib.Path(sys.argv[1])
agent = Agent(sys.argv[2], max_concurrency=2, grace_s=float(sys.argv[3]))
@agent.capability(sys.argv[2])
async def wait(task: Task, word: str) -> dict:
    with open(folder / "started", "a") as started:
        started.write(word + chr(10))
    while not (folder / word).exists():
        await asyncio.sleep(0.01)
    return {"word": word}
agent.run()
"""


@pytest.fixture
def client(keiko):
    """The first user, with a client that waits."""
    with Client(keiko.url, username="admin", password=ADMIN_PASSWORD) as client:
        yield client


def agent_of(server, name=None, **settings):
    """An agent that registers itself as the first user."""
    return Agent(name or unique("agent"), server=server.url, username="admin", password=ADMIN_PASSWORD, **settings)


@contextlib.contextmanager
def script(server, source, *args):
    """A Python program with the first user's credentials in its environment. Ended with the test."""
    env = clean_env(server.home, {"KEIKO_SERVER": server.url, "KEIKO_USERNAME": "admin", "KEIKO_PASSWORD": ADMIN_PASSWORD})
    process = subprocess.Popen([sys.executable, "-c", source, *map(str, args)], env=env, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def submitted(client, capability, input=None, **fields):
    """A task, as soon as an agent with the capability is registered."""

    def attempt():
        try:
            return client.tasks.submit(capability, input, **fields)
        except sdk.Refused as error:
            assert error.code == "CAPABILITY_UNKNOWN"
            return None

    return until(attempt, f"somebody can {capability}")


def types(client, task):
    return [event.type.rpartition(".")[2] for event in client.tasks.events(task.id)]


# Capabilities


def test_a_functions_parameters_are_the_fields_of_the_input():
    def add(first: int, json: str, second: int = 2, *, model_config: list[str] | None = None) -> dict:
        """Adds."""
        return {"sum": first + second, "rest": [json, model_config]}

    capability = Capability("add", add)
    schema = capability.body["input_schema"]
    assert schema["required"] == ["first", "json"]
    assert set(schema["properties"]) == {"first", "json", "second", "model_config"}
    assert (capability.body["description"], capability.body["output_schema"]) == ("Adds.", None)
    assert asyncio.run(capability.run(None, {"first": 1, "json": "x", "other": 1})) == {"sum": 3, "rest": ["x", None]}
    with pytest.raises(sdk.TaskFailed, match="INPUT_INVALID") as failure:
        asyncio.run(capability.run(None, {"first": "one"}))
    assert not failure.value.retryable


class Point(BaseModel):
    x: int
    y: int = 0


def test_models_are_input_and_output():
    async def mirror(task: sdk.Task, point: Point) -> Point:
        return Point(x=-point.x, y=-point.y)

    capability = Capability("mirror", mirror, task_types=(sdk.Task, SyncTask))
    assert capability.body["input_schema"]["required"] == ["x"]
    assert capability.body["output_schema"]["type"] == "object"
    assert asyncio.run(capability.run(None, {"x": 3, "y": 4})) == {"x": -3, "y": -4}


def test_a_schema_of_ones_own_hands_over_the_whole_input():
    def keys(values: dict[str, Any]) -> dict:
        return {"keys": sorted(values)}

    one = Capability("keys", keys, input={"type": "object", "maxProperties": 3})
    assert one.body["input_schema"] == {"type": "object", "maxProperties": 3}
    assert asyncio.run(one.run(None, {"b": 1, "a": 2})) == {"keys": ["a", "b"]}
    with pytest.raises(sdk.TaskFailed, match="OUTPUT_NO_OBJECT"):
        asyncio.run(Capability("list", lambda: [1]).run(None, {}))


# The client


def test_errors_by_kind(keiko, client):
    agent = client.agents.register({"name": unique("agent"), "capabilities": [{"name": "nothing"}]})
    key = client.agents.issue_key(agent.id).key
    with Client(keiko.url, api_key=key) as other:
        assert (other.me().kind, other.me().name) == ("agent", agent.name)
        with pytest.raises(sdk.Forbidden) as refused:
            other.agents.register({"name": "x"})
    assert refused.value.code == "PERMISSION_DENIED"
    assert refused.value.status == 403
    assert refused.value.message and refused.value.hint and refused.value.request_id and refused.value.details
    with pytest.raises(sdk.NotFound):
        client.tasks.get("task_01h455vb4pex5vsknk084sn02q")
    with pytest.raises(sdk.Conflict, match="NAME_TAKEN"):
        client.agents.register({"name": agent.name})
    with pytest.raises(sdk.Refused, match="CAPABILITY_UNKNOWN"):
        client.tasks.submit(unique("nobody-can"))
    with pytest.raises(sdk.Invalid, match="VALIDATION_FAILED"):
        client.agents.register({"name": "x", "unknown": 1})
    with Client(keiko.url, api_key="kk_default_wrong") as nobody, pytest.raises(sdk.Unauthenticated, match="KEY_INVALID"):
        nobody.me()
    with Client(f"http://127.0.0.1:{free_port()}", api_key="x", retry_for=0) as lost, pytest.raises(sdk.Disconnected):
        lost.me()


class LosesAnswers:
    """Passes connections on to a server, but closes the first `lose` ones whose request begins with `start` instead of answering."""

    def __init__(self, port, start, lose):
        self.port, self.start, self.left, self.lost = port, start, lose, 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.socket.accept()
                threading.Thread(target=self.serve, args=(near,), daemon=True).start()

    def serve(self, near):
        with near, socket.create_connection(("127.0.0.1", self.port)) as far:
            losing = threading.Event()
            threading.Thread(target=self.answer, args=(far, near, losing), daemon=True).start()
            with contextlib.suppress(OSError):
                while request := near.recv(65536):
                    if self.left and request.startswith(self.start):
                        self.left -= 1
                        losing.set()
                    far.sendall(request)
                far.shutdown(socket.SHUT_RDWR)

    def answer(self, far, near, losing):
        with contextlib.suppress(OSError):
            while answer := far.recv(65536):
                if losing.is_set():  # the server has done it
                    self.lost += 1
                    break
                near.sendall(answer)
            near.shutdown(socket.SHUT_RDWR)


def test_what_was_not_answered_is_repeated_and_done_once(keiko, client):
    capability = unique("repeat")
    client.agents.register({"name": unique("agent"), "capabilities": [{"name": capability}]})
    link = LosesAnswers(keiko.port, b"POST /api/v1/tasks ", lose=2)
    with Client(link.url, username="admin", password=ADMIN_PASSWORD) as unlucky:
        task = unlucky.tasks.submit(capability)
    assert link.lost == 2
    assert [t.id for t in client.tasks.list(capability=capability)] == [task.id]
    assert client.tasks.submit(capability, idempotency_key=capability).id == client.tasks.submit(capability, idempotency_key=capability).id


def test_a_call_that_may_not_be_repeated_is_not(keiko, client):
    agent = client.agents.register({"name": unique("agent")})
    link = LosesAnswers(keiko.port, b"POST /api/v1/agents/", lose=1)
    with Client(link.url, username="admin", password=ADMIN_PASSWORD) as unlucky, pytest.raises(sdk.Disconnected):
        unlucky.agents.issue_key(agent.id)


def test_tokens_are_renewed(new_keiko):
    server = new_keiko(env={"KEIKO_TOKEN_TTL": "1s"}).start()
    with Client(server.url, username="admin", password=ADMIN_PASSWORD) as client:
        began = time.monotonic()
        while time.monotonic() < began + 2.5:
            assert client.me().name == "admin"


def test_lists_go_on_over_pages_and_ensure_writes_only_what_differs(client):
    capability = unique("many")
    body = {"name": unique("agent"), "capabilities": [{"name": capability, "input_schema": {"type": "object"}}], "labels": {"a": "b"}}
    first = client.agents.ensure(body)
    assert client.agents.ensure(body).version == first.version
    assert client.agents.ensure({**body, "description": "new"}).version == first.version + 1
    tasks = {client.tasks.submit(capability, {"n": n}).id for n in range(7)}
    assert {t.id for t in client.tasks.list(capability=capability)} == tasks
    assert [a.name for a in client.discover(capability=capability)] == [body["name"]]
    victim = tasks.pop()
    assert client.tasks.cancel(victim).status == "cancelled"
    assert client.tasks.wait(victim).ended
    with pytest.raises(TimeoutError):
        client.tasks.wait(tasks.pop(), timeout=0.2)


# Agents


def test_five_lines_make_an_agent(keiko, client):
    with script(keiko, FIVE_LINES) as agent:
        task = client.tasks.wait(submitted(client, "count-words", {"text": "one two three"}).id, timeout=15)
        assert (task.status, task.output) == ("completed", {"words": 3})
        assert client.agents.get("counter").capabilities[0].input_schema["properties"]["text"]["type"] == "string"
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(10) == 0


def test_progress_and_context_reach_both_sides(keiko, client):
    agent, seen, go = agent_of(keiko), unique("progress"), threading.Event()

    @agent.capability(seen)
    def work(task: SyncTask) -> dict:
        task.progress(40, "page 2 of 5")
        assert go.wait(10)
        return {"run": task.context["run"], "input": task.input, "attempt": task.attempt, "id": task.id}

    with agent:
        task = submitted(client, seen, {"a": 1}, context={"run": "7"})
        progress = until(lambda: client.tasks.get(task.id).progress, "progress is shown")
        assert (progress.percent, progress.message) == (40, "page 2 of 5")
        go.set()
        assert client.tasks.wait(task.id, 10).output == {"run": "7", "input": {"a": 1}, "attempt": 1, "id": task.id}


def test_an_agent_asks_and_is_answered(keiko, client):
    agent, skill = agent_of(keiko), unique("paint")

    @agent.capability(skill)
    def paint(task: SyncTask) -> dict:
        return {"colour": task.ask("Which colour?", timeout=20)}

    with agent:
        task = submitted(client, skill, conversation="fence")
        asked = until(lambda: (now := client.tasks.get(task.id)).is_input_wanted and now, "the agent asks")
        assert (asked.messages[0].by, asked.messages[0].text, asked.conversation) == ("agent", "Which colour?", "fence")
        client.tasks.say(task.id, "green")
        assert client.tasks.wait(task.id, 20).output == {"colour": "green"}


def test_failures_say_whether_another_attempt_helps(keiko, client):
    agent, name, attempts = agent_of(keiko), unique("fail"), []

    @agent.capability(name)
    async def work(task: sdk.Task, how: str) -> dict:
        attempts.append(how)
        if how == "never":
            raise sdk.TaskFailed("NO_SUCH_FILE", "there is none", retryable=False)
        if how == "later" and task.attempt < 2:
            raise ValueError("not yet")
        return {"attempt": task.attempt}

    with agent:
        never = client.tasks.wait(submitted(client, name, {"how": "never"}).id, 10)
        later = client.tasks.wait(submitted(client, name, {"how": "later"}).id, 10)
    assert (never.status, never.error.code, never.error.message, never.attempt) == ("failed", "NO_SUCH_FILE", "there is none", 1)
    assert (later.status, later.output) == ("completed", {"attempt": 2})
    assert [e.data["error"] for e in client.tasks.events(later.id) if e.type.endswith("failed")] == [
        {"code": "WORK_FAILED", "message": "ValueError: not yet"}
    ]
    assert attempts == ["never", "later", "later"]


def test_an_output_that_the_server_refuses_fails_the_task(keiko, client):
    agent, name = agent_of(keiko), unique("refused")

    @agent.capability(name, output={"type": "object", "required": ["x"]})
    async def work() -> dict:
        return {}

    with agent:
        task = client.tasks.wait(submitted(client, name).id, 10)
    assert (task.status, task.error.code) == ("failed", "OUTPUT_INVALID")


def test_works_side_by_side_up_to_its_limit(keiko, client):
    agent, name = agent_of(keiko, max_concurrency=2), unique("parallel")
    pair, lock, now, most = threading.Barrier(2), threading.Lock(), [0], [0]

    @agent.capability(name)
    def work() -> dict:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        pair.wait(10)
        with lock:
            now[0] -= 1
        return {}

    with agent:
        tasks = [submitted(client, name, {"n": n}) for n in range(8)]
        assert {client.tasks.wait(task.id, 15).status for task in tasks} == {"completed"}
    assert most[0] == 2


def test_a_long_task_keeps_its_claim(keiko, client):
    agent, name, go = agent_of(keiko), unique("long"), threading.Event()

    @agent.capability(name)
    def work() -> dict:
        return {"went": go.wait(20)}

    with agent:
        task = submitted(client, name)
        began = time.monotonic()
        until(lambda: time.monotonic() > began + 3, "the claim would have ended", 5)
        assert client.tasks.get(task.id).status == "claimed"
        go.set()
        assert client.tasks.wait(task.id, 10).attempt == 1
    assert types(client, task) == ["submitted", "claimed", "completed"]


def test_the_work_of_a_stale_claim_is_dropped(keiko, client):
    agent, name, began, dropped = agent_of(keiko, max_concurrency=1), unique("stale"), threading.Event(), threading.Event()

    @agent.capability(name)
    async def work(how: str) -> dict:
        if how == "quick":
            return {}
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            dropped.set()
            raise
        return {}

    with agent:
        task = submitted(client, name, {"how": "slow"})
        assert began.wait(10)
        client.tasks.cancel(task.id)
        assert dropped.wait(10), "the heartbeat was told that the claim is over"
        assert client.tasks.wait(submitted(client, name, {"how": "quick"}).id, 10).status == "completed"
    assert client.tasks.get(task.id).status == "cancelled"


def test_two_lives_of_an_agent_share_its_entry(keiko, client):
    name = unique("agent")
    for description in ("first", "second", "second"):
        with agent_of(keiko, name, description=description):
            until(lambda said=description: known(client, name) == said, "the registry says what the agent says")
    told = [e["type"] for e in keiko.login().events(stream=client.agents.get(name).id)]
    assert [kind for kind in told if kind != "registry.agent.went_up"] == ["registry.agent.registered", "registry.agent.updated"]


def known(client, name):
    try:
        return client.agents.get(name).description
    except sdk.NotFound:
        return None


# Ends


def test_sigterm_lets_running_work_end_and_gives_the_rest_back(keiko, client, tmp_path):
    name = unique("drain")
    with script(keiko, WAITING_AGENT, tmp_path, name, 2) as agent:
        short, endless, waiting = (submitted(client, name, {"word": word}) for word in ("short", "endless", "waiting"))
        until(lambda: lines(tmp_path / "started") == {"short", "endless"}, "two tasks are in work")
        agent.send_signal(signal.SIGTERM)
        until(lambda: "taking no new work" in agent.stderr.readline(), "the signal has arrived", every=0)
        (tmp_path / "short").touch()
        assert agent.wait(10) == 0
    assert types(client, short) == ["submitted", "claimed", "completed"]
    assert types(client, endless) == ["submitted", "claimed", "released"]
    assert types(client, waiting) == ["submitted"]


def test_a_second_signal_ends_it_at_once(keiko, client, tmp_path):
    name = unique("impatient")
    with script(keiko, WAITING_AGENT, tmp_path, name, 60) as agent:
        submitted(client, name, {"word": "endless"})
        until(lambda: lines(tmp_path / "started") == {"endless"}, "the task is in work")
        agent.send_signal(signal.SIGINT)
        until(lambda: "taking no new work" in agent.stderr.readline(), "the signal has arrived", every=0)
        agent.send_signal(signal.SIGINT)
        assert agent.wait(5) == -signal.SIGINT


def lines(path):
    return set(path.read_text().splitlines()) if path.exists() else set()


def test_nothing_is_lost_or_done_twice_when_the_server_is_killed(new_keiko):
    server = new_keiko(port=free_port()).start()
    agent, name, runs, lock = agent_of(server, max_concurrency=10), unique("durable"), [], threading.Lock()

    @agent.capability(name)
    async def work(n: int) -> dict:
        with lock:
            runs.append(n)
        await asyncio.sleep(0.4)  # longer than the server is away: claims are handed over again while they are in work
        return {"n": n}

    with Client(server.url, username="admin", password=ADMIN_PASSWORD) as client, agent:
        tasks = [submitted(client, name, {"n": n}) for n in range(60)]
        for share in (5, 20, 35):
            until(lambda share=share: len(runs) >= share, "the agent is at work")
            server.kill()
            server.start()
        ended = [client.tasks.wait(task.id, 40) for task in tasks]
        assert [task.output for task in ended] == [{"n": n} for n in range(60)]
        for task in tasks:
            assert types(client, task).count("completed") == 1
            assert types(client, task).count("claimed") == 1
    assert sorted(runs) == list(range(60)), "a claim that is handed over again is worked on once"


def test_an_agent_waits_for_a_server_that_is_not_there_yet(new_keiko):
    server = new_keiko(port=free_port())
    server.start()
    server.stop()
    agent, name = agent_of(server), unique("early")

    @agent.capability(name)
    async def work() -> dict:
        return {}

    with agent:
        server.start()
        with Client(server.url, username="admin", password=ADMIN_PASSWORD) as client:
            assert client.tasks.wait(submitted(client, name).id, 15).status == "completed"


def test_following_events_goes_on_after_a_restart(new_keiko):
    server = new_keiko(port=free_port()).start()
    with Client(server.url, username="admin", password=ADMIN_PASSWORD) as client:
        names = [unique("agent") for _ in range(3)]
        start = client.events.page(10**9).position
        found = client.events.follow(after=start, type="registry.agent.registered")
        client.agents.register({"name": names[0]})
        first = next(found)
        server.kill()
        server.start()
        client.agents.register({"name": names[1]})
        server.restart(same_port=True)
        client.agents.register({"name": names[2]})
        assert [named(event) for event in (first, next(found), next(found))] == names
        found.close()


def named(event):
    return event.data["profile"]["name"]


def test_without_credentials_it_says_what_to_do(monkeypatch):
    for name in [name for name in os.environ if name.startswith("KEIKO_")]:
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match="KEIKO_API_KEY"):
        sdk.Client()
