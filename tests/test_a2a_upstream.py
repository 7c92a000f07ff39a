"""Agents elsewhere that speak A2A: work is brought to them. Against agents by the official SDKs, by hand where they are too well-behaved."""

import http.server
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

from harness import absent, clean_env, done, free_port, refused, submit, task_of, unique, until

KEIKO_ENV = {"KEIKO_GATEWAY_ALLOW_PRIVATE": "true", "KEIKO_CLAIM_TTL": "3s", "KEIKO_AGENT_LEASE": "3s"}
HERE = Path(__file__).parent
BINDINGS = ["JSONRPC", "HTTP+JSON"]


class Elsewhere:
    """An agent of `servers/`, in a process of its own."""

    def __init__(self, folder, binding="JSONRPC", secret=None, script="a2a_agent.py"):
        self.folder, self.binding, self.secret, self.script, self.port = folder, binding, secret, script, free_port()
        self.log = folder / f"{unique('heard')}.jsonl"
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        interpreter = sys.executable if self.script.endswith(".py") else "node"
        args = [interpreter, HERE / "servers" / self.script, str(self.port), self.binding, self.log, *([self.secret] if self.secret else [])]
        self.process = subprocess.Popen(args, env=clean_env(self.folder), stderr=subprocess.PIPE)
        until(self.answers, "the agent answers", 20)

    def answers(self):
        assert self.process.poll() is None, self.process.stderr.read().decode()[-2000:]
        try:
            return httpx2.get(self.url + "/.well-known/agent-card.json", trust_env=False).status_code
        except httpx2.TransportError:
            return None

    def heard(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def stop(self):
        self.process.kill()
        self.process.wait(10)
        self.process.stderr.close()


@pytest.fixture(scope="module", params=BINDINGS)
def elsewhere(request, tmp_path_factory):
    agent = Elsewhere(tmp_path_factory.mktemp("elsewhere"), request.param)
    yield agent
    agent.stop()


def connect(admin, url, headers=None, **fields):
    """Registers an agent and connects it."""
    agent = done(admin.post("/agents", {"name": unique("far"), **fields}), 201)
    return done(admin.post(f"/agents/{agent['id']}/actions/connect", {"url": url, **({"headers": headers} if headers else {})}))


@pytest.fixture(scope="module")
def far(admin, elsewhere):
    return connect(admin, elsewhere.url)


def ended(admin, task_id, timeout=20):
    return until(lambda: (t := task_of(admin, task_id))["status"] not in ("pending", "claimed") and t, "the task ends", timeout)


def do(admin, far, text, **fields):
    return submit(admin, "do", text, agent=far["id"], **fields)["id"]


def test_should_take_the_skills_of_the_card(admin, far, elsewhere):
    [skill] = far["attributes"]["capabilities"]
    assert (skill["name"], skill["description"], skill["tags"]) == ("do", "Does what it is told", ["work"])
    assert far["attributes"]["endpoint"] == {"url": elsewhere.url, "headers": []}
    until(lambda: done(admin.get(f"/agents/{far['id']}"))["attributes"]["status"] == "up", "it is up while it can be reached")


def test_should_bring_work_and_fetch_the_result(admin, far, elsewhere):
    task = ended(admin, do(admin, far, "work hard", input={"pages": 2}))
    assert (task["status"], task["output"], task["agent_id"]) == ("completed", {"text": "did work hard"}, far["id"])
    sent = elsewhere.heard()[-1]
    assert sent["parts"] == [{"text": "work hard"}, {"data": {"pages": 2.0}}] and sent["metadata"]["skillId"] == "do"


def test_should_take_an_answer_that_comes_at_once(admin, far):
    assert ended(admin, do(admin, far, "say hello"))["output"] == {"text": "said hello"}


def test_should_fetch_data_as_it_is(admin, far):
    assert ended(admin, do(admin, far, "data please"))["output"] == {"pages": 3}


@pytest.mark.parametrize(("verb", "code"), [("reject", "REJECTED"), ("sign-in", "AGENT_WANTS_SIGN_IN")])
def test_should_end_what_the_agent_does_not_want(admin, far, verb, code):
    task = ended(admin, do(admin, far, f"{verb} it"))
    assert (task["status"], task["error"]["code"]) == ("failed", code)


def test_should_try_again_what_failed(admin, far, elsewhere):
    before = len(elsewhere.heard())
    task = ended(admin, do(admin, far, "fail it", max_attempts=2))
    assert (task["status"], task["error"]) == ("dead", {"code": "FAILED", "message": "it broke"})
    ids = [m["messageId"] for m in elsewhere.heard()[before:]]
    assert len(ids) == len(set(ids)) == 2, "an attempt is a message of its own"


def test_should_carry_questions_and_answers(admin, far):
    task_id = do(admin, far, "ask me")
    asked = until(lambda: (t := task_of(admin, task_id))["is_input_wanted"] and t, "the question arrives")
    assert asked["messages"][-1]["parts"] == [{"text": "Which one?"}]
    done(admin.post(f"/tasks/{task_id}/actions/say", {"text": "that one"}))
    assert ended(admin, task_id)["output"] == {"text": "did that one"}
    assert [m["by"] for m in task_of(admin, task_id)["messages"]] == ["agent", "submitter"]


def test_should_speak_a2a_on_both_sides(keiko, admin, far):
    """An A2A client in front, an A2A agent behind, Keiko's ledger between them."""
    said = {"message": {"messageId": unique("m"), "role": "ROLE_USER", "parts": [{"text": "ask through"}]}}
    headers = {"A2A-Version": "1.0"}
    task = admin.post(f"/a2a/{far['id']}/message:send", said, headers=headers).json()["task"]
    assert task["status"]["state"] == "TASK_STATE_INPUT_REQUIRED" and task["status"]["message"]["parts"] == [{"text": "Which one?"}]
    said["message"] = {"messageId": unique("m"), "taskId": task["id"], "parts": [{"text": "this one"}]}
    task = admin.post(f"/a2a/{far['id']}/message:send", said, headers=headers).json()["task"]
    assert task["status"]["state"] == "TASK_STATE_COMPLETED" and task["artifacts"][0]["parts"][0]["text"] == "did this one"


def test_should_call_off_there_what_is_called_off_here(admin, far, elsewhere):
    task_id = do(admin, far, "slow work")
    until(lambda: any(m.get("parts") == [{"text": "slow work"}] for m in elsewhere.heard()), "it is sent")
    until(lambda: task_of(admin, task_id)["progress"], "it is on it")
    done(admin.post(f"/tasks/{task_id}/actions/cancel", {}))
    until(lambda: any("cancelled" in m for m in elsewhere.heard()), "it is called off there")


def test_should_keep_a_claim_longer_than_its_time(admin, far):
    task_id = do(admin, far, "slow and long")
    until(lambda: task_of(admin, task_id)["progress"], "it is on it")
    time.sleep(4)  # longer than claim.ttl
    task = task_of(admin, task_id)
    assert (task["status"], task["attempt"]) == ("claimed", 1)
    done(admin.post(f"/tasks/{task_id}/actions/cancel", {}))


def test_should_send_its_headers_and_show_only_their_names(keiko, admin, tmp_path):
    agent = Elsewhere(tmp_path, secret="s3cr3t-word")
    try:
        name = done(admin.post("/agents", {"name": unique("far")}), 201)["id"]
        error = refused(admin.post(f"/agents/{name}/actions/connect", {"url": agent.url}), 422, "AGENT_UNUSABLE")
        assert "401" in error["message"]
        far = connect(admin, agent.url, {"X-Secret": "s3cr3t-word"})
        assert far["attributes"]["endpoint"]["headers"] == ["X-Secret"]
        assert ended(admin, do(admin, far, "work"))["status"] == "completed"
        assert "s3cr3t-word" not in json.dumps(admin.events()) + keiko.logs() + admin.get("/agents").text
        # Callers' credentials never leave.
        assert admin.headers["Authorization"].split()[1][:30] not in agent.log.read_text()
    finally:
        agent.stop()


def test_should_send_a_task_once_through_a_crash(new_keiko, tmp_path):
    agent = Elsewhere(tmp_path)
    keiko = new_keiko(env=KEIKO_ENV)
    keiko.start()
    admin = keiko.login()
    try:
        far = connect(admin, agent.url)
        task_id = do(admin, far, "ask before the crash")
        until(lambda: task_of(admin, task_id)["is_input_wanted"], "the question arrives")
        keiko.kill()
        keiko.restart(same_port=True)
        admin = keiko.login()
        done(admin.post(f"/tasks/{task_id}/actions/say", {"text": "after it"}))
        task = ended(admin, task_id)
        assert task["output"] == {"text": "did after it"} and task["attempt"] == 1
        assert [m["parts"][0]["text"] for m in agent.heard()] == ["ask before the crash", "after it"], "nothing was sent twice"
    finally:
        agent.stop()


def test_should_go_on_when_the_agent_was_away(keiko, admin, tmp_path):
    agent = Elsewhere(tmp_path)
    try:
        far = connect(admin, agent.url)
        until(lambda: done(admin.get(f"/agents/{far['id']}"))["attributes"]["status"] == "up", "it is up")
        agent.stop()
        until(lambda: done(admin.get(f"/agents/{far['id']}"))["attributes"]["status"] == "down", "it is down", 30)
        task_id = do(admin, far, "work later")
        agent.start()
        assert ended(admin, task_id, 60)["output"] == {"text": "did work later"}
    finally:
        agent.stop()


def test_should_try_again_what_the_agent_forgot(admin, tmp_path):
    agent = Elsewhere(tmp_path)
    try:
        far = connect(admin, agent.url)
        task_id = do(admin, far, "slow until it forgets")
        until(lambda: task_of(admin, task_id)["progress"], "it is on it")
        agent.stop()  # its tasks are in its memory only
        agent.start()
        until(lambda: [a for a in admin.events(stream=task_id) if a["type"] == "tasks.task.attempt_failed"], "the attempt fails", 30)
        [failed] = [e for e in admin.events(stream=task_id) if e["type"] == "tasks.task.attempt_failed"]
        assert failed["data"]["error"]["code"] == "AGENT_FORGOT" and failed["data"]["is_retryable"]
        done(admin.post(f"/tasks/{task_id}/actions/cancel", {}))
    finally:
        agent.stop()


def test_should_bring_nothing_any_more_when_disconnected_paused_or_suspended(admin, elsewhere):
    far = connect(admin, elsewhere.url)
    assert ended(admin, do(admin, far, "work first"))["status"] == "completed"
    done(admin.post(f"/agents/{far['id']}/actions/pause"))
    waits = do(admin, far, "work paused")
    done(admin.post(f"/agents/{far['id']}/actions/resume"))
    assert ended(admin, waits)["status"] == "completed"
    cut = done(admin.post(f"/agents/{far['id']}/actions/disconnect"))
    assert cut["attributes"]["endpoint"] is None
    until(lambda: done(admin.get(f"/agents/{far['id']}"))["attributes"]["status"] == "down", "nobody speaks for it", 30)
    task_id = do(admin, far, "work never")
    time.sleep(1)
    assert task_of(admin, task_id)["status"] == "pending", "nothing is claimed for a request that nobody waits for"
    done(admin.post(f"/tasks/{task_id}/actions/cancel", {}))


@pytest.mark.parametrize("binding", BINDINGS)
def test_should_work_with_an_agent_by_the_javascript_sdk(admin, tmp_path, binding):
    agent = Elsewhere(tmp_path, binding, script="a2a_agent.mjs")
    try:
        far = connect(admin, agent.url)
        assert ended(admin, do(admin, far, "hello"))["output"] == {"text": "echo hello"}
        task_id = do(admin, far, "ask me")
        until(lambda: task_of(admin, task_id)["is_input_wanted"], "the question arrives")
        done(admin.post(f"/tasks/{task_id}/actions/say", {"text": "that one"}))
        assert ended(admin, task_id)["output"] == {"text": "echo that one"}
    finally:
        agent.stop()


# Agents that do not behave


class Liar:
    """Answers its card, and to everything else what `answer(method, params)` says: (status, body as bytes)."""

    def __init__(self, answer, card=None):
        outer = self
        self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, status, body):
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.reply(200, json.dumps(outer.card).encode())

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append(request["method"])
                try:
                    self.reply(*answer(request["method"], request["params"]))
                except (BrokenPipeError, ConnectionResetError):
                    pass

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        interface = {"url": f"{self.url}/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
        self.card = card(self.url) if card else {"name": "liar", "skills": [{"id": "do", "name": "do"}], "supportedInterfaces": [interface]}
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()


def rpc(result):
    return 200, json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda *_: (200, b"not json"), "AGENT_ANSWER_UNUSABLE"),
        (lambda *_: (200, b"{}"), "AGENT_ANSWER_UNUSABLE"),
        (lambda *_: (200, b"[" * 100_000), "AGENT_ANSWER_UNUSABLE"),
        (lambda *_: (200, b'"' + b"x" * 11_000_000 + b'"'), "AGENT_ANSWER_UNUSABLE"),
        (lambda *_: rpc({}), "AGENT_ANSWER_UNUSABLE"),
        (lambda *_: rpc({"task": {"id": "x" * 5_000}}), "AGENT_ANSWER_UNUSABLE"),
        (lambda *_: (302, b""), "AGENT_REFUSED"),
        (lambda *_: (400, b"no"), "AGENT_REFUSED"),
        (lambda *_: (200, b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"boom"}}'), "AGENT_REFUSED"),
        (lambda method, _: rpc({"task": {"id": "a"}}) if method == "SendMessage" else rpc({"id": "a", "status": {"state": "DONE"}}), "AGENT_ANSWER_UNUSABLE"),
        (lambda method, _: rpc({"task": {"id": "a"}}) if method == "SendMessage" else rpc(7), "AGENT_ANSWER_UNUSABLE"),
    ],
)
def test_should_end_what_an_agent_answers_wrongly(admin, answer, code):
    with Liar(answer) as liar:
        task = ended(admin, do(admin, connect(admin, liar.url), "work"))
        assert (task["status"], task["error"]["code"]) == ("failed", code), task["error"]


def test_should_keep_the_claim_while_an_agent_takes_its_time_to_answer(admin):
    def answer(method, params):
        time.sleep(5 if method == "SendMessage" else 0)  # longer than claim.ttl
        done_ = {"id": "a", "status": {"state": "TASK_STATE_COMPLETED"}, "artifacts": [{"parts": [{"text": "slow"}]}]}
        return rpc({"task": {"id": "a"}}) if method == "SendMessage" else rpc(done_)

    with Liar(answer) as liar:
        task = ended(admin, do(admin, connect(admin, liar.url), "work"))
        assert (task["output"], task["attempt"]) == ({"text": "slow"}, 1)
        assert liar.asked.count("SendMessage") == 1


def test_should_end_what_runs_when_an_agent_is_disconnected(admin, elsewhere):
    far = connect(admin, elsewhere.url)
    task_id = do(admin, far, "slow then cut")
    until(lambda: task_of(admin, task_id)["progress"], "it is on it")
    before = sum("cancelled" in m for m in elsewhere.heard())
    done(admin.post(f"/agents/{far['id']}/actions/disconnect"))
    until(lambda: sum("cancelled" in m for m in elsewhere.heard()) > before, "it is called off there")
    until(lambda: task_of(admin, task_id)["status"] == "pending", "it waits for its agent again")
    assert admin.delete(f"/agents/{far['id']}").status_code in (200, 204)
    assert until(lambda: (t := task_of(admin, task_id))["status"] == "dead" and t, "nobody is left")["error"]["code"] == "AGENT_GONE"


def test_should_ask_a_flooding_agent_no_more_than_a_task_takes(admin):
    asked = iter(range(10_000))

    def answer(method, _):
        question = {"messageId": f"q{next(asked)}", "parts": [{"text": "again?"}]}
        return rpc({"task": {"id": "a"}}) if method == "SendMessage" else rpc({"id": "a", "status": {"state": "TASK_STATE_INPUT_REQUIRED", "message": question}})

    with Liar(answer) as liar:
        task_id = do(admin, connect(admin, liar.url), "work")
        until(lambda: len(task_of(admin, task_id)["messages"]) >= 3, "it asks again and again")
        assert len(task_of(admin, task_id)["messages"]) <= 101
        done(admin.post(f"/tasks/{task_id}/actions/cancel", {}))


def test_should_send_credentials_to_no_other_origin(admin):
    other = lambda url: {"supportedInterfaces": [{"url": "http://127.0.0.1:1/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}]}  # noqa: E731
    with Liar(lambda *_: rpc({}), other) as liar:
        agent = done(admin.post("/agents", {"name": unique("far")}), 201)["id"]
        error = refused(admin.post(f"/agents/{agent}/actions/connect", {"url": liar.url, "headers": {"X-Secret": "x"}}), 422, "AGENT_UNUSABLE")
        assert "another origin" in error["message"]


@pytest.mark.parametrize("card", [{}, {"supportedInterfaces": [{"url": "x", "protocolBinding": "GRPC", "protocolVersion": "1.0"}]}, {"supportedInterfaces": 7}])
def test_should_refuse_cards_that_cannot_be_used(admin, card):
    with Liar(lambda *_: rpc({}), lambda _: card) as liar:
        agent = done(admin.post("/agents", {"name": unique("far")}), 201)["id"]
        refused(admin.post(f"/agents/{agent}/actions/connect", {"url": liar.url}), 422, "AGENT_UNUSABLE")
        assert done(admin.get(f"/agents/{agent}"))["attributes"]["endpoint"] is None


@pytest.mark.parametrize(
    "body",
    [{}, {"url": "ftp://a.example"}, {"url": "https://u:p@a.example"}, {"url": "https://a.example/?key=s"}, {"url": "https://a.example", "headers": {"X Y": "z"}}, {"url": "https://a.example", "headers": {"X": "a\r\nb: c"}}],
)
def test_should_name_what_is_wrong_with_an_endpoint(admin, body):
    agent = done(admin.post("/agents", {"name": unique("far")}), 201)["id"]
    refused(admin.post(f"/agents/{agent}/actions/connect", body), 400, "VALIDATION_FAILED")


def test_should_refuse_private_addresses_unless_they_are_allowed(new_keiko):
    keiko = new_keiko()
    keiko.start()
    admin = keiko.login()
    agent = done(admin.post("/agents", {"name": unique("far")}), 201)["id"]
    for url in ("http://127.0.0.1:9", "http://169.254.169.254/latest", "http://localhost:1"):
        error = refused(admin.post(f"/agents/{agent}/actions/connect", {"url": url}), 400, "VALIDATION_FAILED")
        assert "private" in str(error)


def test_should_let_only_some_connect_agents(keiko, admin):
    agent = keiko.agent(admin, unique("skill"))
    refused(agent.api.post(f"/agents/{agent.id}/actions/connect", {"url": "https://a.example"}), 403, "PERMISSION_DENIED")
    refused(keiko.user(admin, ["user"]).post(f"/agents/{agent.id}/actions/connect", {"url": "https://a.example"}), 403, "PERMISSION_DENIED")
    refused(admin.post(f"/agents/{absent('agent')}/actions/connect", {"url": "https://a.example"}), 404, "AGENT_NOT_FOUND")
