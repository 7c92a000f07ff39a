"""Agents of Keiko as A2A agents, judged by the official clients of other hands, by hand where they cannot, and through crashes."""

import asyncio
import http.server
import json
import re
import subprocess
import threading
import uuid
from pathlib import Path

import httpx
import pytest
from a2a.client import ClientConfig, create_client
from a2a.types import a2a_pb2 as pb
from a2a.utils import errors as a2a_errors
from a2a.utils.signing import create_signature_verifier
from google.protobuf.json_format import MessageToDict
from jwt import PyJWK

from harness import absent, clean_env, done, refused, submit, task_of, unique, until

KEIKO_ENV = {"KEIKO_GATEWAY_ALLOW_PRIVATE": "true"}
HERE = Path(__file__).parent
BINDINGS = ["JSONRPC", "HTTP+JSON"]
VERSION = {"A2A-Version": "1.0"}
AVAILABILITY = "urn:keiko:a2a:availability:1"


class Working:
    """An agent that pulls and does what `how(task, agent)` says, in a thread of its own, until the block ends."""

    def __init__(self, agent, how):
        self.agent, self.how, self.is_over = agent, how, False
        self.thread = threading.Thread(target=self.work, daemon=True)

    def work(self):
        while not self.is_over:
            for task in self.agent.claim(1, 200):
                output = self.how(task, self.agent)
                if output is not None:
                    self.agent.complete(task, output)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_over = True
        self.thread.join(10)


def echo(task, _agent):
    return {"text": f"done: {task['attributes']['description']}"}


def message(text, **more):
    parts = more.pop("parts", [pb.Part(text=text)])
    return pb.Message(message_id=more.pop("message_id", str(uuid.uuid4())), role=pb.ROLE_USER, parts=parts, **more)


class Peer:
    """The official Python client at a door, with a fresh connection for each use."""

    def __init__(self, keiko, api, door, binding, streaming=False, **headers):
        self.url, self.binding, self.streaming = f"{keiko.url}/a2a/{door}", binding, streaming
        self.headers = {**api.headers, **headers}

    def run(self, use, streaming=False):
        async def connected():
            async with httpx.AsyncClient(headers=self.headers, timeout=20, trust_env=False) as http_client:
                config = ClientConfig(httpx_client=http_client, supported_protocol_bindings=[self.binding], streaming=self.streaming or streaming)
                return await use(await create_client(self.url, config))

        return asyncio.run(connected())

    def send(self, said, **configuration):
        """All that comes, as dictionaries."""
        async def use(client):
            request = pb.SendMessageRequest(message=said, configuration=pb.SendMessageConfiguration(**configuration))
            return [MessageToDict(one) async for one in client.send_message(request)]

        return self.run(use)

    def task(self, said, **configuration):
        [one] = self.send(said, **configuration)
        return one["task"]

    def ask(self, method, request):
        async def use(client):
            return await getattr(client, method)(request)

        return self.run(use)

    def follow(self, task_id, into=None):
        into = [] if into is None else into

        async def use(client):
            async for one in client.subscribe(pb.SubscribeToTaskRequest(id=task_id)):
                into.append(MessageToDict(one))
            return into

        return self.run(use, streaming=True)


def states(updates):
    return [u["statusUpdate"]["status"]["state"].removeprefix("TASK_STATE_") for u in updates if "statusUpdate" in u]


@pytest.fixture(scope="module")
def agent(keiko, admin):
    """An agent with two skills."""
    skills = [
        {"name": "review", "description": "Reviews code and finds bugs", "tags": ["code"]},
        {"name": "translate", "description": "Translates texts into German", "domains": ["language"]},
    ]
    return keiko.agent(admin, *skills, max_concurrency=4, description="Knows code and German")


@pytest.fixture(scope="module")
def worker(keiko, admin):
    """An agent that does at once what it is told."""
    agent = keiko.agent(admin, unique("echo"), max_concurrency=8)
    with Working(agent, echo):
        yield agent


# Cards


def verifier(keiko):
    keys = {key["kid"]: key for key in keiko.client().get("/.well-known/jwks.json").json()["keys"]}

    def key_of(kid, jku):
        assert jku == f"{keiko.url}/.well-known/jwks.json"
        return PyJWK(keys[kid]).key

    return create_signature_verifier(key_of, ["ES256", "EdDSA", "Ed25519"])


def card_of(document):
    from google.protobuf.json_format import ParseDict

    return ParseDict(document, pb.AgentCard())


def test_should_show_everybody_a_signed_card_that_names_nobody(keiko, admin, agent):
    answer = keiko.client().get("/.well-known/agent-card.json")
    assert answer.status_code == 200 and answer.headers["cache-control"] == "public, max-age=300"
    card = answer.json()
    assert agent.name not in answer.text and "review" not in answer.text
    assert [one["protocolBinding"] for one in card["supportedInterfaces"]] == BINDINGS
    assert card["capabilities"]["streaming"] and card["capabilities"]["pushNotifications"] and card["capabilities"]["extendedAgentCard"]
    verifier(keiko)(card_of(card))
    known = keiko.client().get("/.well-known/agent-card.json", headers={"If-None-Match": answer.headers["etag"]})
    assert known.status_code == 304 and known.content == b""


def test_should_sign_the_card_of_an_agent(keiko, admin, agent):
    card = admin.get(f"/a2a/{agent.name}/.well-known/agent-card.json").json()
    assert card["name"] == agent.name and card["description"] == "Knows code and German"
    assert [(s["id"], s["tags"]) for s in card["skills"]] == [("review", ["code"]), ("translate", ["language"])]
    assert card["supportedInterfaces"][0]["url"] == f"{keiko.url}/a2a/{agent.id}"
    verifier(keiko)(card_of(card))
    forged = card_of({**card, "name": "somebody else"})
    with pytest.raises(Exception, match="signature"):
        verifier(keiko)(forged)


def test_should_show_agents_only_to_those_who_may_know_them(keiko, admin, agent):
    path = f"/a2a/{agent.name}/.well-known/agent-card.json"
    refused(keiko.client().get(path), 401, "CREDENTIALS_MISSING")
    refused(keiko.tenant(admin).get(path), 404, "AGENT_NOT_FOUND")
    refused(admin.get(f"/a2a/{absent('agent')}/.well-known/agent-card.json"), 404, "AGENT_NOT_FOUND")


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_list_the_skills_of_the_fleet_in_the_extended_card(keiko, admin, agent, binding):
    card = Peer(keiko, admin, "fleet", binding).ask("get_extended_agent_card", pb.GetExtendedAgentCardRequest())
    assert {"any", "review", "translate"} <= {skill.id for skill in card.skills}
    verifier(keiko)(card)


def test_should_say_whether_an_agent_can_take_work_now(keiko, admin):
    agent = keiko.agent(admin, unique("skill"), max_concurrency=1)
    peer = Peer(keiko, admin, agent.name, "JSONRPC", **{"A2A-Extensions": AVAILABILITY})

    def now():
        [extension] = admin.get(f"/a2a/{agent.name}/extendedAgentCard", headers=VERSION).json()["capabilities"]["extensions"]
        assert extension["uri"] == AVAILABILITY
        return extension["params"]

    assert now() == {"status": "up", "accepting": True, "running": 0, "waiting": 0, "maxConcurrency": 1, "expectedWaitMs": 0}
    first = peer.task(message("one"), return_immediately=True)
    assert first["metadata"][AVAILABILITY]["waiting"] == 1
    task = agent.take()
    peer.task(message("two"), return_immediately=True)
    assert now() == {"status": "up", "accepting": False, "running": 1, "waiting": 1, "maxConcurrency": 1}
    agent.complete(task)
    agent.complete(agent.take())
    assert now()["accepting"]
    done(admin.post(f"/agents/{agent.id}/actions/pause"))
    assert now()["status"] == "paused" and not now()["accepting"]


# Messages and tasks


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_answer_when_the_agent_is_done(keiko, admin, worker, binding):
    task = Peer(keiko, admin, worker.name, binding).task(message("Say hello"))
    assert task["status"]["state"] == "TASK_STATE_COMPLETED"
    assert task["artifacts"] == [{"artifactId": "output", "name": "output", "parts": [{"text": "done: Say hello", "mediaType": "text/plain"}]}]
    assert [(m["role"], m["parts"]) for m in task["history"]] == [("ROLE_USER", [{"text": "Say hello"}])]
    own = task_of(admin, task["id"])
    assert (own["status"], own["assigned_to"], own["conversation"]) == ("completed", worker.id, task["contextId"])


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_stream_what_happens_to_a_task(keiko, admin, binding):
    def slowly(task, agent):
        done(agent.act(task, "progress", percent=50, message="halfway"))
        return {"pages": 3}

    agent = keiko.agent(admin, unique("skill"))
    with Working(agent, slowly):
        first, *updates = Peer(keiko, admin, agent.name, binding, streaming=True).send(message("Read it"))
    assert first["task"]["status"]["state"] == "TASK_STATE_SUBMITTED"
    assert states(updates) == ["WORKING", "WORKING", "COMPLETED"]
    assert updates[1]["statusUpdate"]["status"]["message"]["parts"] == [{"text": "halfway (50 %)"}]
    assert updates[2]["artifactUpdate"]["artifact"]["parts"] == [{"data": {"pages": 3.0}, "mediaType": "application/json"}]
    assert {next(iter(u.values()))["contextId"] for u in updates} == {first["task"]["contextId"]}


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_let_an_agent_ask_and_go_on_with_the_answer(keiko, admin, binding):
    def curious(task, agent):
        asked = done(agent.act(task, "ask", message={"text": "Which branch?"}))["attributes"]
        assert asked["is_input_wanted"]

        def answer():
            now = done(agent.act(task, "heartbeat"))["attributes"]
            return not now["is_input_wanted"] and now["messages"][-1]["parts"]

        return {"text": f"reviewed {until(answer, 'an answer comes')[0]['text']}"}

    agent = keiko.agent(admin, unique("skill"))
    peer = Peer(keiko, admin, agent.name, binding, streaming=True)
    with Working(agent, curious):
        first, *updates = peer.send(message("Review the change"))
        task_id = first["task"]["id"]
        assert states(updates) == ["WORKING", "INPUT_REQUIRED"], "the stream ends where somebody is waited for"
        assert updates[-1]["statusUpdate"]["status"]["message"]["parts"] == [{"text": "Which branch?"}]
        assert task_of(admin, task_id)["is_input_wanted"]
        again, *updates = peer.send(message("main", task_id=task_id))
        assert again["task"]["id"] == task_id and states(updates)[-1] == "COMPLETED"
    task = MessageToDict(peer.ask("get_task", pb.GetTaskRequest(id=task_id)))
    assert task["artifacts"][0]["parts"][0]["text"] == "reviewed main"
    said = [(m["role"], m["parts"][0]["text"]) for m in task["history"]]
    assert said == [("ROLE_USER", "Review the change"), ("ROLE_AGENT", "Which branch?"), ("ROLE_USER", "main")]
    short = peer.ask("get_task", pb.GetTaskRequest(id=task_id, history_length=1))
    assert [m.parts[0].text for m in short.history] == ["main"]
    none = peer.ask("get_task", pb.GetTaskRequest(id=task_id, history_length=0))
    assert not none.history


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_refuse_what_does_not_fit_the_task(keiko, admin, worker, binding):
    peer = Peer(keiko, admin, worker.name, binding)
    task = peer.task(message("Say hello"))
    with pytest.raises(a2a_errors.UnsupportedOperationError):
        peer.send(message("more", task_id=task["id"]))
    with pytest.raises(a2a_errors.UnsupportedOperationError):
        peer.follow(task["id"])
    with pytest.raises(a2a_errors.TaskNotCancelableError):
        peer.ask("cancel_task", pb.CancelTaskRequest(id=task["id"]))
    for wrong in (absent("task"), "no-id"):
        with pytest.raises(a2a_errors.TaskNotFoundError):
            peer.ask("get_task", pb.GetTaskRequest(id=wrong))
        with pytest.raises(a2a_errors.TaskNotFoundError):
            peer.send(message("more", task_id=wrong))


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_call_a_task_off_once_and_again(keiko, admin, agent, binding):
    peer = Peer(keiko, admin, agent.id, binding)
    task = peer.task(message("Review it"), return_immediately=True)
    assert task["status"]["state"] == "TASK_STATE_SUBMITTED"
    for _ in range(2):
        off = peer.ask("cancel_task", pb.CancelTaskRequest(id=task["id"]))
        assert off.status.state == pb.TASK_STATE_CANCELED
    assert task_of(admin, task["id"])["status"] == "cancelled"


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_follow_a_task_that_runs(keiko, admin, binding):
    agent = keiko.agent(admin, unique("skill"))
    peer = Peer(keiko, admin, agent.name, binding)
    task = peer.task(message("Wait"), return_immediately=True)
    followed = []
    follower = threading.Thread(target=peer.follow, args=[task["id"], followed])
    follower.start()
    until(lambda: followed, "the task comes first")
    claimed = agent.take()
    done(agent.act(claimed, "fail", error={"code": "REJECTED", "message": "not mine"}, retryable=False))
    follower.join(15)
    assert followed[0]["task"]["id"] == task["id"]
    assert states(followed)[-1] == "REJECTED"
    assert followed[-1]["statusUpdate"]["status"]["message"]["parts"] == [{"text": "not mine"}]


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_list_tasks_page_by_page(keiko, admin, binding):
    agent = keiko.agent(admin, unique("skill"), max_concurrency=9)
    peer = Peer(keiko, admin, agent.name, binding)
    first = peer.task(message("0"), return_immediately=True)
    more = [peer.task(message(str(n), context_id=first["contextId"]), return_immediately=True) for n in range(1, 5)]
    other = peer.task(message("other"), return_immediately=True)
    agent.complete(agent.take(), {"text": "x"})  # the oldest, which now changed last

    def listed(**fields):
        return peer.ask("list_tasks", pb.ListTasksRequest(**fields))

    page = listed(page_size=2)
    assert page.total_size == 6 and page.page_size == 2 and page.next_page_token
    assert [t.id for t in page.tasks] == [first["id"], other["id"]]
    found, token = list(page.tasks), page.next_page_token
    while token:
        page = listed(page_size=2, page_token=token)
        found, token = found + list(page.tasks), page.next_page_token
    assert [t.id for t in found] == [first["id"], other["id"], *[t["id"] for t in reversed(more)]]
    assert not found[0].artifacts
    in_context = listed(context_id=first["contextId"], include_artifacts=True)
    assert in_context.total_size == 5 and in_context.tasks[0].artifacts
    waiting = listed(status=pb.TASK_STATE_SUBMITTED)
    assert waiting.total_size == 5
    with pytest.raises(a2a_errors.A2AError, match="page"):
        listed(page_token="nonsense")


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_make_one_task_of_a_message_that_comes_twice(keiko, admin, agent, binding):
    peer = Peer(keiko, admin, agent.name, binding)
    said = message("Review it once")
    first, second = (peer.task(said, return_immediately=True) for _ in range(2))
    assert first["id"] == second["id"]
    said.parts[0].text = "Review something else"
    with pytest.raises(a2a_errors.A2AError, match="400|other request"):
        peer.task(said, return_immediately=True)
    peer.ask("cancel_task", pb.CancelTaskRequest(id=first["id"]))


def test_should_keep_the_conversation(keiko, admin, agent):
    peer = Peer(keiko, admin, agent.name, "JSONRPC")
    one = peer.task(message("Review a"), return_immediately=True)
    two = peer.task(message("Review b", context_id=one["contextId"]), return_immediately=True)
    assert two["contextId"] == one["contextId"] and two["id"] != one["id"]
    with pytest.raises(a2a_errors.A2AError, match="(?i)contextId|valid"):
        peer.send(message("more", task_id=one["id"], context_id="another"))
    own = peer.task(message("Review c", context_id="my own"), return_immediately=True)
    assert own["contextId"] == "my own"
    for task in (one, two, own):
        peer.ask("cancel_task", pb.CancelTaskRequest(id=task["id"]))


# Skills


def test_should_choose_the_skill_that_the_words_or_the_client_name(keiko, admin, agent):
    peer = Peer(keiko, admin, agent.name, "JSONRPC")

    def skill(said):
        task = peer.task(said, return_immediately=True)
        peer.ask("cancel_task", pb.CancelTaskRequest(id=task["id"]))
        return task["metadata"]["skillId"]

    assert skill(message("Please look for bugs in my code")) == "review"
    assert skill(message("Please put this text into German")) == "translate"
    assert skill(message("hm")) == "review", "the first one when no word fits"
    assert skill(message("hm", metadata={"skillId": "translate"})) == "translate"
    with pytest.raises(a2a_errors.A2AError, match="has no skill 'cook'"):
        skill(message("hm", metadata={"skillId": "cook"}))


def test_should_give_work_for_the_fleet_to_whoever_fits(keiko, admin, worker):
    fleet = Peer(keiko, admin, "fleet", "JSONRPC")
    skill = done(admin.get(f"/agents/{worker.id}"))["attributes"]["capabilities"][0]["name"]
    task = fleet.task(message("hello", metadata={"skillId": skill}))
    assert task["status"]["state"] == "TASK_STATE_COMPLETED" and task["metadata"]["agentId"] == worker.id
    with pytest.raises(a2a_errors.A2AError, match="No agent"):
        fleet.send(message("xyzzy plugh"))
    only = Peer(keiko, admin, worker.name, "HTTP+JSON")
    with pytest.raises(a2a_errors.TaskNotFoundError):
        only.ask("get_task", pb.GetTaskRequest(id=task["id"]))


def test_should_hand_data_and_files_to_agents_that_pull(keiko, admin):
    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    agent = keiko.agent(admin, {"name": unique("skill"), "input_schema": schema})
    peer = Peer(keiko, admin, agent.name, "JSONRPC")
    parts = [pb.Part(text="Review"), pb.Part(url="https://files.example/a.rs", media_type="text/plain"), pb.Part(raw=b"\x00\xff", filename="b")]
    with pytest.raises(a2a_errors.A2AError, match="schema"):
        peer.send(message("", parts=parts), return_immediately=True)
    parts.append(pb.Part())
    parts[-1].data.struct_value.update({"path": "a.rs"})
    peer.task(message("", parts=parts), return_immediately=True)
    task = agent.take()["attributes"]
    assert (task["description"], task["input"]) == ("Review", {"path": "a.rs"})
    [asked] = task["messages"]
    assert asked["by"] == "submitter" and asked["parts"][1]["url"] == "https://files.example/a.rs" and asked["parts"][2]["raw"] == "AP8="


def test_should_give_words_to_an_agent_that_wants_an_input(keiko, admin):
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    agent = keiko.agent(admin, {"name": unique("skill"), "input_schema": schema})
    Peer(keiko, admin, agent.name, "JSONRPC").task(message("Tell me"), return_immediately=True)
    assert agent.take()["attributes"]["input"] == {"text": "Tell me"}


def test_should_take_long_words_and_large_files_whole(keiko, admin):
    agent = keiko.agent(admin, unique("skill"))
    peer = Peer(keiko, admin, agent.name, "JSONRPC")
    text, file = "word " * 3_000, bytes(range(256)) * 1_000
    task = peer.task(message("", parts=[pb.Part(text=text), pb.Part(raw=file)]), return_immediately=True)
    claimed = agent.take()
    assert len(claimed["attributes"]["description"]) == 8_000
    assert claimed["attributes"]["messages"][0]["parts"][0]["text"] == text
    agent.complete(claimed, {"parts": [{"raw": "AP8=", "mediaType": "application/octet-stream"}]})
    shown = peer.ask("get_task", pb.GetTaskRequest(id=task["id"]))
    assert shown.history[0].parts[1].raw == file and shown.artifacts[0].parts[0].raw == b"\x00\xff"


def test_should_satisfy_the_javascript_client(keiko, admin, worker, tmp_path):
    key = done(admin.post("/api-keys", {"name": unique("key"), "permissions": ["*"]}), 201)["attributes"]["key"]
    env = clean_env(tmp_path, {"KEIKO_URL": keiko.url, "KEIKO_KEY": key, "DOOR": worker.name})
    ran = subprocess.run(["node", HERE / "peers" / "a2a" / "client.mjs"], capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path)
    count = re.search(r"(?m)^judges: (\d+) passed, 0 failed$", ran.stdout)
    assert ran.returncode == 0 and count, ran.stdout + ran.stderr[-3000:]
    print(f"@a2a-js/sdk: {count[0]}")
    assert int(count[1]) >= 12


# Who may what


def test_should_show_tasks_only_to_those_who_may_see_them(keiko, admin, agent):
    ada, bob = keiko.user(admin, ["user"]), keiko.user(admin, ["user"])
    task = Peer(keiko, ada, agent.name, "JSONRPC").task(message("Mine"), return_immediately=True)
    stranger = keiko.tenant(admin)
    for binding in BINDINGS:
        theirs = Peer(keiko, bob, agent.name, binding)
        with pytest.raises(a2a_errors.TaskNotFoundError):
            theirs.ask("get_task", pb.GetTaskRequest(id=task["id"]))
        assert theirs.ask("list_tasks", pb.ListTasksRequest()).total_size == 0
        assert Peer(keiko, ada, agent.name, binding).ask("list_tasks", pb.ListTasksRequest()).total_size == 1
        elsewhere = Peer(keiko, stranger, "fleet", binding)
        with pytest.raises(a2a_errors.TaskNotFoundError):
            elsewhere.ask("get_task", pb.GetTaskRequest(id=task["id"]))
    refused(stranger.post(f"/a2a/{agent.name}/message:send", {}, headers=VERSION), 404, "AGENT_NOT_FOUND")
    # A role that may submit and read its own may not change a task, whatever the binding.
    for binding in BINDINGS:
        with pytest.raises(a2a_errors.A2AError, match="tasks.update|403"):
            Peer(keiko, ada, agent.name, binding).ask("cancel_task", pb.CancelTaskRequest(id=task["id"]))
    assert task_of(admin, task["id"])["status"] == "pending"


def test_should_refuse_a_tenant_that_is_not_the_callers(keiko, admin, agent):
    rpc = {"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": {"tenant": "another"}}
    answer = admin.post(f"/a2a/{agent.name}", rpc, headers=VERSION).json()
    assert answer["error"]["code"] == -32097 and "another" in answer["error"]["message"]
    own = admin.post(f"/a2a/{agent.name}", {**rpc, "params": {"tenant": "default"}}, headers=VERSION).json()
    assert "tasks" in own["result"]


def test_should_end_a_stream_when_the_caller_is_locked_out(keiko, admin, agent):
    user = keiko.user(admin, ["user"])
    task = Peer(keiko, user, agent.name, "JSONRPC").task(message("Wait"), return_immediately=True)
    followed = []
    follower = threading.Thread(target=Peer(keiko, user, agent.name, "HTTP+JSON").follow, args=[task["id"], followed])
    follower.start()
    until(lambda: followed, "the task comes first")
    done(admin.post(f"/users/{user.id}/actions/suspend", {"reason": "test"}), 200)
    follower.join(10)
    assert not follower.is_alive(), "the stream goes on for somebody who is locked out"


# By hand: what clients must not send


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 500, -32700),
        (b"[]", -32600),
        (b'{"jsonrpc":"2.0","method":"GetTask"}', -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"GetTask"}', -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"GetTask"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"tasks/get"}', -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"GetTask"}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"GetTask","params":[]}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"GetTask","params":{"id":"x","historyLength":-1}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"ListTasks","params":{"pageSize":101}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"ListTasks","params":{"status":"done"}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{"message":{"messageId":"a","role":"ROLE_USER","parts":[]}}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{"message":{"role":"ROLE_USER","parts":[{"text":"a"}]}}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{"message":{"messageId":"a","role":"ROLE_AGENT","parts":[{"text":"a"}]}}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{"message":{"messageId":"a","parts":[{"text":"a","url":"b"}]}}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{"message":{"messageId":"a","parts":[{"text":7}]}}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{"message":{"messageId":"a","parts":["a"]}}}', -32602),
    ],
)
def test_should_name_what_is_wrong_with_a_message(admin, agent, body, code):
    headers = {**VERSION, "Content-Type": "application/json"}
    answer = admin.request("POST", f"/a2a/{agent.name}", headers=headers, content=body)
    assert answer.status_code == 200, answer.text
    error = answer.json()["error"]
    assert error["code"] == code and error["message"], error
    assert error["data"][0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"


def test_should_name_the_field_that_is_wrong_in_both_bindings(admin, agent):
    wrong = {"message": {"messageId": "a", "parts": []}}
    over_http = admin.post(f"/a2a/{agent.name}/message:send", wrong, headers=VERSION)
    assert over_http.status_code == 400 and over_http.headers["content-type"] == "application/a2a+json"
    rpc = admin.post(f"/a2a/{agent.name}", {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": wrong}, headers=VERSION)
    over_http, rpc = over_http.json()["error"], rpc.json()["error"]
    assert over_http["status"] == "INVALID_ARGUMENT" and over_http["code"] == 400
    assert over_http["details"] == rpc["data"]
    assert rpc["data"][1]["fieldViolations"][0]["field"] == "message.parts"


@pytest.mark.parametrize("version", [None, "", "0.3", "2.0", "x" * 500])
def test_should_refuse_other_versions_by_name(admin, agent, version):
    headers = {} if version is None else {"A2A-Version": version}
    over_http = admin.get(f"/a2a/{agent.name}/tasks", headers=headers)
    assert over_http.status_code == 400
    info = over_http.json()["error"]["details"][0]
    assert (info["reason"], info["domain"]) == ("VERSION_NOT_SUPPORTED", "a2a-protocol.org")
    rpc = admin.post(f"/a2a/{agent.name}", {"jsonrpc": "2.0", "id": 1, "method": "ListTasks"}, headers=headers)
    assert rpc.json()["error"]["code"] == -32009
    assert admin.get(f"/a2a/{agent.name}/tasks?A2A-Version=1.0").status_code == 200


def test_should_refuse_bodies_that_are_no_json_or_too_large(admin, agent):
    path = f"/a2a/{agent.name}/message:send"
    refused(admin.request("POST", path, headers={**VERSION, "Content-Type": "text/plain"}, content=b"{}"), 415, "UNSUPPORTED_MEDIA_TYPE")
    large = {"message": {"messageId": "a", "parts": [{"text": "x" * 20_000_000}]}}
    refused(admin.post(path, large, headers=VERSION), 413, "BODY_TOO_LARGE")
    refused(admin.post("/a2a/nobody/message:send", {}, headers=VERSION), 404, "AGENT_NOT_FOUND")
    assert admin.post(f"/a2a/{agent.name}/tasks/{absent('task')}:explode", {}, headers=VERSION).status_code == 400


def test_should_take_so_many_messages_and_no_more(keiko, admin):
    agent = keiko.agent(admin, unique("skill"))
    peer = Peer(keiko, admin, agent.name, "JSONRPC")
    task = peer.task(message("Listen"), return_immediately=True)

    async def talk(client):
        for n in range(101):
            request = pb.SendMessageRequest(message=message(str(n), task_id=task["id"]), configuration=pb.SendMessageConfiguration(return_immediately=True))
            async for _ in client.send_message(request):
                pass

    with pytest.raises(a2a_errors.UnsupportedOperationError, match="100 messages"):
        peer.run(talk)
    assert len(task_of(admin, task["id"])["messages"]) == 101


# Addresses that are told


class Hook:
    """An address that keeps what it is told. `answers` are the statuses of the first answers; 200 afterwards."""

    def __init__(self, *answers):
        self.told, answers = [], list(answers)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status = answers.pop(0) if answers else 200
                if status == 200:
                    outer.told.append((dict(self.headers.items()), json.loads(body)))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?secret=s3cr3t"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()

    def states(self):
        return states([body for _, body in self.told])


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_tell_an_address_what_happens(keiko, admin, binding):
    agent = keiko.agent(admin, unique("skill"))
    with Hook(503) as hook:
        config = pb.TaskPushNotificationConfig(url=hook.url, token="t0ken", authentication=pb.AuthenticationInfo(scheme="Bearer", credentials="cr3dentials"))
        peer = Peer(keiko, admin, agent.name, binding)
        task = peer.task(message("Do it"), return_immediately=True, task_push_notification_config=config)
        agent.complete(agent.take(), {"text": "done"})
        until(lambda: hook.states()[-1:] == ["COMPLETED"], "the end is told")
    assert hook.states() == ["WORKING", "COMPLETED"]
    headers, body = hook.told[1]
    assert body["artifactUpdate"]["artifact"]["parts"][0]["text"] == "done"
    headers = {name.lower(): value for name, value in headers.items()}
    assert headers["authorization"] == "Bearer cr3dentials" and headers["x-a2a-notification-token"] == "t0ken"
    assert headers["content-type"] == "application/a2a+json"
    until(lambda: peer.ask("list_task_push_notification_configs", pb.ListTaskPushNotificationConfigsRequest(task_id=task["id"])).configs == [], "it is over")
    # The address and its secrets stand in no event.
    events = json.dumps(admin.events())
    assert "tasks.push.ended" in events
    for secret in ("s3cr3t", "t0ken", "cr3dentials"):
        assert secret not in events and secret not in keiko.logs()


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_keep_addresses_by_name(keiko, admin, agent, binding):
    peer = Peer(keiko, admin, agent.name, binding)
    task = peer.task(message("Review"), return_immediately=True)
    with Hook() as hook:
        made = peer.ask("create_task_push_notification_config", pb.TaskPushNotificationConfig(task_id=task["id"], id="mine", url=hook.url, token="x"))
        assert (made.id, made.task_id, made.url, made.token) == ("mine", task["id"], hook.url, "")
        again = peer.ask("create_task_push_notification_config", pb.TaskPushNotificationConfig(task_id=task["id"], id="mine", url=hook.url + "&b=2"))
        fresh = peer.ask("create_task_push_notification_config", pb.TaskPushNotificationConfig(task_id=task["id"], url=hook.url))
        assert fresh.id.startswith("push_")
        one = peer.ask("get_task_push_notification_config", pb.GetTaskPushNotificationConfigRequest(task_id=task["id"], id="mine"))
        assert one.url == again.url
        listed = peer.ask("list_task_push_notification_configs", pb.ListTaskPushNotificationConfigsRequest(task_id=task["id"]))
        assert {c.id for c in listed.configs} == {"mine", fresh.id}
        for _ in range(2):
            peer.ask("delete_task_push_notification_config", pb.DeleteTaskPushNotificationConfigRequest(task_id=task["id"], id="mine"))
        with pytest.raises(a2a_errors.TaskNotFoundError):
            peer.ask("get_task_push_notification_config", pb.GetTaskPushNotificationConfigRequest(task_id=task["id"], id="mine"))
        peer.ask("cancel_task", pb.CancelTaskRequest(id=task["id"]))
        until(lambda: hook.states() == ["CANCELED"], "only the one that is left is told")


def test_should_give_up_an_address_that_does_not_want_it(keiko, admin):
    agent = keiko.agent(admin, unique("skill"))
    with Hook(410) as hook:
        task = Peer(keiko, admin, agent.name, "JSONRPC").task(
            message("Do it"), return_immediately=True, task_push_notification_config=pb.TaskPushNotificationConfig(url=hook.url)
        )
        agent.complete(agent.take())
        ended = until(lambda: [e for e in admin.events(type="tasks.push.ended") if e["data"]["reason"] == "undeliverable"], "it is given up")
    assert ended[-1]["data"]["detail"] == "answered 410"
    assert hook.told == [] and task_of(admin, task["id"])["status"] == "completed"


def test_should_do_nothing_when_the_address_is_wrong(keiko, admin, agent):
    peer = Peer(keiko, admin, agent.name, "JSONRPC")
    before = peer.ask("list_tasks", pb.ListTasksRequest()).total_size
    with pytest.raises(a2a_errors.A2AError):
        peer.task(message("Review"), return_immediately=True, task_push_notification_config=pb.TaskPushNotificationConfig(url="ftp://x"))
    assert peer.ask("list_tasks", pb.ListTasksRequest()).total_size == before


def test_should_tell_nothing_to_somebody_who_is_locked_out(keiko, admin):
    agent, user = keiko.agent(admin, unique("skill")), keiko.user(admin, ["user"])
    with Hook() as hook:
        peer = Peer(keiko, user, agent.name, "JSONRPC")
        task = peer.task(message("Do it"), return_immediately=True, task_push_notification_config=pb.TaskPushNotificationConfig(url=hook.url))
        claimed = agent.take()
        until(lambda: hook.states() == ["WORKING"], "the claim is told")
        done(admin.post(f"/users/{user.id}/actions/suspend", {"reason": "test"}), 200)
        agent.complete(claimed)
        until(lambda: [e for e in admin.events(type="tasks.push.ended") if e["data"]["reason"] == "revoked"], "it is over")
        assert hook.states() == ["WORKING"] and task_of(admin, task["id"])["status"] == "completed"


def test_should_keep_addresses_to_whoever_named_them(keiko, admin, agent):
    user = keiko.user(admin, ["user"])
    theirs, ours = Peer(keiko, user, agent.name, "JSONRPC"), Peer(keiko, admin, agent.name, "JSONRPC")
    task = theirs.task(message("Review"), return_immediately=True)
    with Hook() as hook:
        for peer, url in ((theirs, hook.url), (ours, hook.url + "&admin=1")):
            peer.ask("create_task_push_notification_config", pb.TaskPushNotificationConfig(task_id=task["id"], id="mine", url=url))
        for peer, url in ((theirs, hook.url), (ours, hook.url + "&admin=1")):
            listed = peer.ask("list_task_push_notification_configs", pb.ListTaskPushNotificationConfigsRequest(task_id=task["id"]))
            assert [c.url for c in listed.configs] == [url], "nobody sees or replaces another's address"
    done(admin.post(f"/tasks/{task['id']}/actions/cancel", {}))


def test_should_refuse_addresses_of_this_network(new_keiko):
    keiko = new_keiko()
    keiko.start()
    admin = keiko.login()
    agent = keiko.agent(admin, unique("skill"))
    peer = Peer(keiko, admin, agent.name, "JSONRPC")
    task = peer.task(message("Do it"), return_immediately=True)
    for url in ("http://127.0.0.1:9/", "http://169.254.169.254/latest", "http://[::1]/", "file:///etc/passwd", "https://user:pw@example.com/"):
        with pytest.raises(a2a_errors.A2AError):
            peer.ask("create_task_push_notification_config", pb.TaskPushNotificationConfig(task_id=task["id"], url=url))
    wrong = pb.TaskPushNotificationConfig(task_id=task["id"], url="https://example.com/", authentication=pb.AuthenticationInfo(scheme="Bearer\r\nX: y"))
    with pytest.raises(a2a_errors.A2AError):
        peer.ask("create_task_push_notification_config", wrong)


def test_should_tell_so_many_addresses_and_no_more(keiko, admin, agent):
    peer = Peer(keiko, admin, agent.name, "JSONRPC")
    task = peer.task(message("Review"), return_immediately=True)
    with Hook() as hook:
        for _ in range(8):
            peer.ask("create_task_push_notification_config", pb.TaskPushNotificationConfig(task_id=task["id"], url=hook.url))
        with pytest.raises(a2a_errors.A2AError, match="At most 8"):
            peer.ask("create_task_push_notification_config", pb.TaskPushNotificationConfig(task_id=task["id"], url=hook.url))
        peer.ask("cancel_task", pb.CancelTaskRequest(id=task["id"]))
        until(lambda: len(hook.told) == 8, "all of them are told")


# The ledger


def test_should_have_the_same_task_once_after_a_crash(new_keiko):
    keiko = new_keiko(env=KEIKO_ENV)
    keiko.start()
    admin = keiko.login()
    agent = keiko.agent(admin, unique("skill"), max_concurrency=4)
    api = keiko.client(api_key=agent.key)
    peer = Peer(keiko, api, agent.name, "JSONRPC")
    said = message("Survive")
    with Hook() as hook:
        task = peer.task(said, return_immediately=True, task_push_notification_config=pb.TaskPushNotificationConfig(url=hook.url))
        claimed = agent.take()
        until(lambda: hook.states() == ["WORKING"], "the claim is told")
        keiko.kill()
        keiko.restart(same_port=True)
        again = peer.task(said, return_immediately=True)
        assert again["id"] == task["id"], "a client that heard nothing sends again, and it is one task"
        assert MessageToDict(peer.ask("get_task", pb.GetTaskRequest(id=task["id"])))["status"]["state"] == "TASK_STATE_WORKING"
        agent.complete(claimed, {"text": "survived"})
        until(lambda: hook.states()[-1:] == ["COMPLETED"], "the end is told after the crash")
    told = hook.states()
    assert told in (["WORKING", "COMPLETED"], ["WORKING", "WORKING", "COMPLETED"]), "at least once, in order"
    assert peer.ask("list_tasks", pb.ListTasksRequest()).total_size == 1


def test_should_end_streams_in_order_when_the_server_stops(new_keiko):
    keiko = new_keiko()
    keiko.start()
    admin = keiko.login()
    agent = keiko.agent(admin, unique("skill"))
    peer = Peer(keiko, admin, agent.name, "HTTP+JSON", streaming=True)
    heard = []
    sender = threading.Thread(target=lambda: heard.extend(peer.send(message("Wait"))))
    sender.start()
    agent.take()
    until(lambda: admin.get(f"/a2a/{agent.name}/tasks", headers=VERSION).json()["tasks"][0]["status"]["state"] == "TASK_STATE_WORKING", "it works")
    assert keiko.stop() == 0
    sender.join(10)
    assert not sender.is_alive() and states(heard)[-1:] == ["WORKING"]


# Tasks for one agent, without A2A


def test_should_give_a_task_for_one_agent_to_nobody_else(keiko, admin):
    skill = unique("skill")
    one, other = keiko.agent(admin, skill), keiko.agent(admin, skill)
    task = submit(admin, skill, agent=other.name, conversation="talk")
    assert one.claim(1, 300) == []
    taken = other.take()
    assert taken["id"] == task["id"] and taken["attributes"]["assigned_to"] == other.id
    refused(admin.post("/tasks", {"capability": skill, "description": "x", "agent": "nobody"}), 404, "AGENT_NOT_FOUND")
    error = refused(admin.post("/tasks", {"capability": "cook", "description": "x", "agent": other.id}), 422, "CAPABILITY_UNKNOWN")
    assert error["details"]["near"] == [skill]


def test_should_not_let_tasks_for_an_absent_agent_hold_up_the_others(keiko, admin):
    skill = unique("skill")
    away, here = keiko.agent(admin, skill), keiko.agent(admin, skill)
    for _ in range(5):
        submit(admin, skill, agent=away.id, priority=9)
    wanted = submit(admin, skill, priority=0)
    assert here.take()["id"] == wanted["id"]


def test_should_end_tasks_for_an_agent_that_is_removed(keiko, admin):
    skill = unique("skill")
    agent = keiko.agent(admin, skill, max_concurrency=1)
    held, waiting = submit(admin, skill, agent=agent.id), submit(admin, skill, agent=agent.id)
    assert agent.take()["id"] == held["id"]
    done_ = admin.delete(f"/agents/{agent.id}")
    assert done_.status_code in (200, 204), done_.text
    ended = until(lambda: (t := task_of(admin, waiting["id"]))["status"] == "dead" and t, "the task that waits ends")
    assert ended["error"]["code"] == "AGENT_GONE"


def test_should_talk_about_a_task_over_rest(keiko, admin):
    agent = keiko.agent(admin, unique("skill"))
    skill = done(admin.get(f"/agents/{agent.id}"))["attributes"]["capabilities"][0]["name"]
    task = submit(admin, skill)
    claimed = agent.take()
    asked = done(agent.act(claimed, "ask", message={"id": "q1", "text": "Which?"}))["attributes"]
    assert asked["claim"]["expires_at"] and asked["is_input_wanted"]
    again = done(agent.act(claimed, "ask", message={"id": "q1", "text": "Which?"}))["attributes"]
    assert len(again["messages"]) == 1, "the same message twice is once"
    refused(agent.act(claimed, "ask", token="1", message={"text": "Which?"}), 409, "CLAIM_STALE")
    refused(agent.act(claimed, "ask", message={"text": "a", "parts": [{"text": "b"}], "more": 1}), 400, "VALIDATION_FAILED")
    refused(agent.act(claimed, "ask", message={}), 400, "VALIDATION_FAILED")
    said = done(admin.post(f"/tasks/{task['id']}/actions/say", {"text": "That one"}))["attributes"]
    assert [(m["by"], m["parts"]) for m in said["messages"]] == [("agent", [{"text": "Which?"}]), ("submitter", [{"text": "That one"}])]
    assert not said["is_input_wanted"]
    own = done(admin.post(f"/tasks/{task['id']}/actions/say", {"id": "q1", "text": "an id of the other side"}))["attributes"]
    assert len(own["messages"]) == 3
    refused(admin.post(f"/tasks/{task['id']}/actions/say", {"id": "q1", "text": "something else"}), 409, "IDEMPOTENCY_CONFLICT")
    refused(admin.post(f"/tasks/{task['id']}/actions/say", {"text": "ä" * 8_000, "parts": [{"text": "x" * 60_000}]}), 400, "VALIDATION_FAILED")
    agent.complete(claimed)
    refused(admin.post(f"/tasks/{task['id']}/actions/say", {"text": "too late"}), 409, "TASK_NOT_OPEN")
    refused(keiko.user(admin, ["developer"]).post(f"/tasks/{absent('task')}/actions/say", {"text": "x"}), 404, "TASK_NOT_FOUND")
