"""Tasks that MCP servers make of calls: followed by those who know them, waited for in the place of all others."""

import json
import queue
import shutil
import subprocess
import time
from pathlib import Path

import httpx2
import pytest

import mcp_clients
from harness import clean_env, done, unique, until
from mcp_clients import Legacy, Modern
from proxy import Proxy
from upstream import Upstream, kept

KEIKO_ENV = {"KEIKO_GATEWAY_ALLOW_PRIVATE": "true"}
HERE = Path(__file__).parent
NODE_MODULES = HERE / "conformance" / "node_modules"
SUITE = NODE_MODULES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
SERVER = "tasks.py"
EXTENSION = "io.modelcontextprotocol/tasks"
KNOWS = {**mcp_clients.ABLE, "extensions": {EXTENSION: {}}}
KINDS = ["modern-http", "legacy-http", "legacy-stdio"]


@pytest.fixture(scope="module")
def upstreams(admin):
    yield from kept(admin, SERVER)


def cancelled(upstream, label):
    """Whether the server was told to call the call with this label off."""
    called_off = done(upstream.admin.post(f"/tools/{upstream.name}__called_off/actions/call", {"arguments": {}}))["attributes"]
    return label in called_off["content"][0]["text"]


@pytest.fixture
def client(keiko, admin):
    opened = []

    def make(kind, upstream, by=None, **more):
        opened.append(kind(f"{keiko.url}/mcp/{upstream.door}", (by or admin).headers, **more).begin())
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def result(asked):
    answer, _ = asked
    assert "result" in answer, answer
    return answer["result"]


def error(asked):
    answer, _ = asked
    assert "error" in answer, answer
    return answer["error"]


def begun(one, tool, **arguments):
    """Calls a tool that makes a task of it."""
    task = result(one.ask("tools/call", {"name": tool, "arguments": arguments}))
    assert task["resultType"] == "task" and not {"result", "error", "inputRequests"} & set(task), task
    return task


def task_of(one, id_):
    return result(one.ask("tasks/get", {"taskId": id_}))


def ended(one, id_):
    return until(lambda: (task := task_of(one, id_))["status"] in ("completed", "failed", "cancelled") and task, "the task is over", 20, every=0.05)


def journal(admin):
    return admin.everything("/journal")


def said(result_):
    return result_["content"][0]["text"]


SCENARIOS = {
    "tasks-capability-negotiation": 4, "tasks-lifecycle": 8, "tasks-dispatch-and-envelope": 8, "tasks-mrtr-input": 3, "tasks-mrtr-composition": 1,
    "tasks-request-headers": 4, "tasks-request-state-removal": 2, "tasks-required-task-error": 2, "tasks-wire-fields": 3,
}  # fmt: skip


@pytest.mark.embedded  # The protocol is the same on every store.
@pytest.mark.timeout(180)
def test_should_pass_the_scenarios_of_tasks_of_the_conformance_suite(keiko, admin, upstreams, tmp_path):
    assert SUITE.exists() and shutil.which("node"), "run 'npm ci' in tests/conformance first"
    key = done(admin.post("/api-keys", {"name": unique("key")}), 201)["attributes"]["key"]
    passed = 0
    with Proxy(keiko.port, {"X-API-Key": key}) as proxy:
        for scenario, least in SCENARIOS.items():
            out = tmp_path / scenario
            out.mkdir()
            command = [NODE_MODULES / "node" / "bin" / "node", SUITE, "server", "--url", f"{proxy.url}/mcp/{upstreams('modern-http').door}", "-o", out, "--scenario", scenario]
            ran = subprocess.run(command, capture_output=True, text=True, cwd=out, env=clean_env(out), timeout=90)
            checks = [check for path in out.rglob("checks.json") for check in json.loads(path.read_text())]
            wrong = [f"{check['id']}: {check['status']}: {check.get('errorMessage')}" for check in checks if check["status"] != "SUCCESS"]
            assert not wrong, f"{scenario}: {wrong}"
            assert len(checks) >= least, f"{scenario}: {len(checks)}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}"
            passed += len(checks)
    print(f"conformance of tasks: {passed} checks passed in {len(SCENARIOS)} scenarios")
    assert passed >= 44


@pytest.mark.parametrize("kind", KINDS)
def test_should_let_a_client_that_knows_tasks_follow_them(upstreams, client, kind):
    one = client(Modern, upstreams(kind), capabilities=KNOWS)
    task = begun(one, "slow_compute", seconds=0.5, label="x")
    assert task["ttlMs"] == 600_000 and task["pollIntervalMs"] == 50 and len(task["taskId"]) > 100
    assert task_of(one, task["taskId"])["status"] == "working"
    over = ended(one, task["taskId"])
    assert over["status"] == "completed" and said(over["result"]) == "computed x for 0.5 s"
    assert over["taskId"] == task["taskId"] and "_meta" not in over["result"]
    # What came of it stays there to be asked for.
    assert task_of(one, task["taskId"])["result"] == over["result"]


@pytest.mark.parametrize("kind", KINDS)
def test_should_tell_failures_of_tools_from_those_of_the_protocol(upstreams, client, kind):
    one = client(Modern, upstreams(kind), capabilities=KNOWS)
    over = ended(one, begun(one, "failing_job")["taskId"])
    assert over["status"] == "completed" and over["result"]["isError"] is True
    over = ended(one, begun(one, "protocol_error_job")["taskId"])
    assert over["status"] == "failed" and over["error"] == {"code": -32603, "message": "it broke down", "data": {"why": "on purpose"}}


@pytest.mark.parametrize("kind", KINDS)
def test_should_call_a_task_off_however_often(upstreams, client, kind):
    one = client(Modern, upstreams(kind), capabilities=KNOWS)
    task = begun(one, "slow_compute", seconds=60)
    for _ in range(2):
        assert {"resultType": "complete"}.items() == {k: v for k, v in result(one.ask("tasks/cancel", {"taskId": task["taskId"]})).items() if k != "_meta"}.items()
    assert ended(one, task["taskId"])["status"] == "cancelled"


def test_should_hand_questions_and_answers_of_a_task_on(upstreams, client):
    one = client(Modern, upstreams("modern-http"), capabilities=KNOWS)
    id_ = begun(one, "asks_in_turn")["taskId"]
    for number, name in enumerate(["Ada", "Bob"], 1):
        asking = until(lambda key=f"ask-{number}": (task := task_of(one, id_))["status"] == "input_required" and key in task["inputRequests"] and task, "it asks", 10)
        assert asking["inputRequests"][f"ask-{number}"]["method"] == "elicitation/create"
        answers = {f"ask-{number}": {"action": "accept", "content": {"name": name}}, "nobody": {"action": "accept"}}
        result(one.ask("tasks/update", {"taskId": id_, "inputResponses": answers}))
    assert said(ended(one, id_)["result"]) == "Ada, then Bob"


@pytest.mark.parametrize("kind", KINDS)
def test_should_tell_a_client_that_follows_a_task_how_it_is(upstreams, client, kind):
    one, told = client(Modern, upstreams(kind), capabilities=KNOWS), queue.Queue()
    ids = [begun(one, "slow_compute", seconds=s, label="f")["taskId"] for s in (0.6, 1.2)]
    honoured = one.follow(told, taskIds=[*ids, "nobody's"])
    assert set(honoured["taskIds"]) == set(ids)
    last = {}
    while any(last.get(id_, {}).get("status") != "completed" for id_ in ids):
        message = told.get(timeout=10)
        assert message["method"] == "notifications/tasks" and message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] is not None, message
        last[message["params"]["taskId"]] = message["params"]
    assert {said(task["result"]) for task in last.values()} == {"computed f for 0.6 s", "computed f for 1.2 s"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", [Modern, Legacy])
def test_should_wait_for_a_task_in_the_place_of_a_client_that_knows_none(upstreams, client, era, kind):
    if (era, kind) == (Modern, "modern-http"):
        one = client(era, upstreams(kind))
        refusal = error(one.ask("tools/call", {"name": "failing_job", "arguments": {}}))
        assert refusal["code"] == -32021 and EXTENSION in refusal["data"]["requiredCapabilities"]["extensions"]
        return
    one = client(era, upstreams(kind))
    answer = result(one.ask("tools/call", {"name": "failing_job", "arguments": {}}))
    assert said(answer) == "it did not work" and answer["isError"] is True
    assert error(one.ask("tools/call", {"name": "protocol_error_job", "arguments": {}}))["code"] == -32603
    assert said(result(one.ask("tools/call", {"name": "slow_compute", "arguments": {"seconds": 0.1, "label": "y"}}))) == "computed y for 0.1 s"


@pytest.mark.parametrize("kind", KINDS)
def test_should_wait_for_a_task_of_a_call_over_the_api(admin, upstreams, kind):
    name = f"{upstreams(kind).name}__failing_job"
    answer = done(admin.post(f"/tools/{name}/actions/call", {"arguments": {}}))["attributes"]
    assert answer["is_error"] is True and answer["content"][0]["text"] == "it did not work"
    assert done(admin.post(f"/tools/{name.replace('failing_job', 'slow_compute')}/actions/call", {"arguments": {"seconds": 0.1}}))


def test_should_ask_an_older_client_what_a_task_wants_to_know_meanwhile(upstreams, client):
    asked = []

    def answers(method, params):
        asked.append(params["message"])
        return {"action": "accept", "content": {"name": f"answer {len(asked)}", "confirm": True}}

    one = client(Legacy, upstreams("modern-http"), answers=answers)
    assert said(result(one.ask("tools/call", {"name": "asks_in_turn", "arguments": {}}))) == "answer 1, then answer 2"
    assert asked == ["One?", "Two?"]
    assert said(result(one.ask("tools/call", {"name": "confirm_delete", "arguments": {"filename": "f"}}))) == "deleted f: accept"


@pytest.mark.parametrize("kind", ["legacy-http", "legacy-stdio"])
def test_should_serve_tasks_as_version_2025_11_25_has_them(upstreams, client, kind):
    one = client(Legacy, upstreams(kind))
    assert one.introduced["capabilities"]["tasks"] == {"cancel": {}, "requests": {"tools": {"call": {}}}}
    support = {tool["name"]: tool.get("execution", {}).get("taskSupport") for tool in result(one.ask("tools/list", {}))["tools"]}
    # Keiko waits where the server would insist.
    assert support["failing_job"] == support["slow_compute"] == "optional" and support["greet"] == "forbidden"
    made = result(one.ask("tools/call", {"name": "slow_compute", "arguments": {"seconds": 0.4, "label": "z"}, "task": {"ttl": 12_345}}))["task"]
    assert made["status"] == "working" and made["ttl"] == 600_000 and made["pollInterval"] == 50 and made["asked"] == {"ttl": 12_345}
    id_ = made["taskId"]
    assert task_of(one, id_)["status"] == "working"
    answer = result(one.ask("tasks/result", {"taskId": id_}))
    assert said(answer) == "computed z for 0.4 s" and answer["_meta"]["io.modelcontextprotocol/related-task"] == {"taskId": id_}
    over = task_of(one, id_)
    assert over["status"] == "completed" and "result" not in over
    assert error(one.ask("tasks/cancel", {"taskId": id_}))["code"] == -32602
    # What fails is told as failed, and asked for all the same.
    id_ = result(one.ask("tools/call", {"name": "failing_job", "arguments": {}, "task": {}}))["task"]["taskId"]
    assert result(one.ask("tasks/result", {"taskId": id_}))["isError"] is True and task_of(one, id_)["status"] == "failed"
    id_ = result(one.ask("tools/call", {"name": "protocol_error_job", "arguments": {}, "task": {}}))["task"]["taskId"]
    assert error(one.ask("tasks/result", {"taskId": id_}))["message"] == "it broke down"
    id_ = result(one.ask("tools/call", {"name": "slow_compute", "arguments": {"seconds": 60}, "task": {}}))["task"]["taskId"]
    assert result(one.ask("tasks/cancel", {"taskId": id_}))["status"] == "cancelled"
    assert error(one.ask("tools/call", {"name": "greet", "arguments": {}, "task": {}}))["code"] == -32601
    # What makes no tasks is asked for as if no task was wanted.
    assert "no prompt" in error(one.ask("prompts/get", {"name": "none", "task": {}}))["message"]
    assert error(one.ask("tasks/list", {}))["code"] == -32601
    assert error(one.ask("tasks/get", {"taskId": "nobody's"}))["code"] == -32602


def test_should_show_a_task_to_nobody_else(keiko, admin, upstreams, client):
    upstream = upstreams("modern-http")
    one = client(Modern, upstream, capabilities=KNOWS)
    id_ = begun(one, "slow_compute", seconds=60)["taskId"]
    other = Modern(f"{keiko.url}/mcp/{upstream.door}", keiko.user(admin, ["developer"]).headers, capabilities=KNOWS)
    elsewhere = Modern(f"{keiko.url}/mcp", admin.headers, capabilities=KNOWS)
    changed = Modern(f"{keiko.url}/mcp/{upstream.door}", admin.headers, capabilities=KNOWS)
    for stranger, id__ in [(other, id_), (elsewhere, id_), (changed, id_[:-2] + ("AA" if not id_.endswith("AA") else "BB")), (changed, "x" * 5_000)]:
        for method, more in [("tasks/get", {}), ("tasks/cancel", {}), ("tasks/update", {"inputResponses": {}})]:
            refusal = error(stranger.ask(method, {"taskId": id__, **more}))
            assert refusal["code"] == -32602 and refusal["data"]["code"] == "MCP_TASK_NOT_FOUND", method
    assert task_of(one, id_)["status"] == "working", "nobody called it off"
    result(one.ask("tasks/cancel", {"taskId": id_}))


def test_should_refuse_what_is_no_request_about_a_task(upstreams, client):
    one = client(Modern, upstreams("modern-http"), capabilities=KNOWS)
    assert error(one.ask("tasks/get", {}))["code"] == -32602
    id_ = begun(one, "slow_compute", seconds=60)["taskId"]
    assert error(one.ask("tasks/update", {"taskId": id_}))["code"] == -32602
    response = one.http.post(one.url, json=one.body("tasks/get", {"taskId": id_}), headers={**one.headers("tasks/get", {}), "Mcp-Name": "other"})
    assert response.status_code == 400 and response.json()["error"]["code"] == -32020
    none = client(Modern, upstreams("modern-http"))
    response = none.http.post(none.url, json=none.body("tasks/get", {"taskId": id_}), headers={**none.headers("tasks/get", {"taskId": id_})})
    assert response.status_code == 400 and response.json()["error"]["code"] == -32021
    listening = {"notifications": {"taskIds": [id_]}}
    response = none.http.post(none.url, json=none.body("subscriptions/listen", listening), headers=none.headers("subscriptions/listen", {}))
    assert response.status_code == 400 and response.json()["error"]["code"] == -32021
    result(one.ask("tasks/cancel", {"taskId": id_}))


@pytest.mark.parametrize("tool, problem", [("another_id", "another one than was asked for"), ("no_status", "its status is not known"), ("asks_for_roots", "'roots/list', which")])
def test_should_refuse_tasks_that_lie(upstreams, client, tool, problem):
    able = {**KNOWS}
    del able["roots"]
    one = client(Modern, upstreams("modern-http"), capabilities=able)
    id_ = begun(one, tool, seconds=60)["taskId"]
    refusal = until(lambda: "error" in (answer := one.ask("tasks/get", {"taskId": id_})[0]) and answer["error"], "it is refused", 5)
    assert refusal["data"]["code"] == "TOOL_ANSWER_UNUSABLE" and problem in refusal["message"], refusal


def test_should_refuse_a_task_that_nobody_can_follow(upstreams, client):
    one = client(Modern, upstreams("modern-http"))
    answer = result(one.ask("tools/call", {"name": "unasked_task", "arguments": {}}))
    assert answer["isError"] and json.loads(said(answer))["code"] == "TOOL_ANSWER_UNUSABLE"


@pytest.mark.parametrize("kind", ["modern-http", "legacy-http"])
def test_should_call_a_task_off_that_nobody_waits_for_any_more(admin, upstreams, client, kind):
    upstream, label = upstreams(kind), unique("left")
    one = client(Legacy, upstream)
    with pytest.raises(httpx2.TimeoutException):
        one.http.post(one.url, json={"jsonrpc": "2.0", "id": 99, "method": "tools/call", "params": {"name": "long_job", "arguments": {"seconds": 60, "label": label}}}, headers={**mcp_clients.STREAM, **one.session}, timeout=1)
    calls = lambda: [e["attributes"] for e in journal(admin) if e["attributes"]["kind"] == "tools.call.failed" and label in json.dumps(e)]  # noqa: E731
    until(calls, "it is written down", 10)
    until(lambda: cancelled(upstream, label), "the server was told", 10)


@pytest.mark.parametrize("kind", ["modern-http", "legacy-http"])
def test_should_not_give_work_up_for_a_look_that_goes_wrong(upstreams, client, kind):
    one, label = client(Legacy, upstreams(kind)), unique("shaky")
    answer = one.ask("tools/call", {"name": "long_job", "arguments": {"seconds": 0.5, "label": label, "shaky": 2}})
    assert said(result(answer)).startswith(f"computed {label}")


def test_should_call_a_task_off_whose_client_leaves_while_it_is_asked(upstreams, client):
    upstream, label = upstreams("modern-http"), unique("asked")
    one = client(Legacy, upstream)
    call = {"jsonrpc": "2.0", "id": 98, "method": "tools/call", "params": {"name": "asks_in_turn", "arguments": {"label": label}}}
    with one.http.stream("POST", one.url, json=call, headers={**mcp_clients.STREAM, **one.session}) as response:
        _, question = next(mcp_clients.events(response))
        assert json.loads(question)["method"] == "elicitation/create"
    until(lambda: cancelled(upstream, label), "the server was told", 10)


def test_should_show_no_task_to_whoever_lost_the_right(keiko, admin, upstreams):
    upstream, name = upstreams("modern-http"), unique("ada")
    user = done(admin.post("/users", {"username": name, "password": "a long enough password", "roles": ["developer"]}), 201)
    ada = keiko.login(name, "a long enough password")
    one, told = Modern(f"{keiko.url}/mcp/{upstream.door}", ada.headers, capabilities=KNOWS), queue.Queue()
    id_ = begun(one, "slow_compute", seconds=3)["taskId"]
    one.follow(told, taskIds=[id_])
    assert told.get(timeout=10)["params"]["status"] == "working"
    looker = done(admin.post("/roles", {"name": unique("looker"), "permissions": ["discovery.read"]}), 201)["attributes"]["name"]
    done(admin.put(f"/users/{user['id']}", {"roles": [looker]}))
    refusal = until(lambda: "error" in (answer := one.ask("tasks/get", {"taskId": id_})[0]) and answer["error"], "it is refused", 10)
    assert refusal["code"] in (-32602, -32603), refusal
    time.sleep(3)
    assert all(message.get("params", {}).get("status") != "completed" for message in list(told.queue))


def test_should_find_a_task_again_after_a_restart(new_keiko):
    keiko = new_keiko(env=KEIKO_ENV).start()
    admin = keiko.login()
    key = {"X-API-Key": done(admin.post("/api-keys", {"name": "k"}), 201)["attributes"]["key"]}
    upstream = Upstream(admin, SERVER, "modern-http")
    try:
        url = f"{keiko.url}/mcp/{upstream.door}"
        with Modern(url, key, capabilities=KNOWS) as one:
            id_ = begun(one, "slow_compute", seconds=1, label="r")["taskId"]
        keiko.kill()
        keiko.restart(same_port=True)
        with Modern(url, key, capabilities=KNOWS) as one:
            until(lambda: "result" in one.ask("tasks/get", {"taskId": id_})[0], "the server is there again", 20)
            assert said(ended(one, id_)["result"]) == "computed r for 1 s"
    finally:
        upstream.close()


def test_should_write_down_what_becomes_of_a_task(admin, upstreams, client):
    one = client(Modern, upstreams("modern-http"), capabilities=KNOWS)
    label = unique("written")
    id_ = begun(one, "slow_compute", seconds=0.1, label=label)["taskId"]
    ended(one, id_)
    result(one.ask("tasks/cancel", {"taskId": id_}))

    def entries():
        found = [e["attributes"] for e in journal(admin)]
        call = next((e for e in found if e["kind"] == "tools.task.begun" and label in json.dumps(e)), None)
        return call and [e["kind"] for e in found if e["data"].get("call_id") == call["data"]["call_id"]]

    kinds = until(lambda: (found := entries()) and len(found) >= 3 and found, "it is written down", 10)
    # A task is told of each time that somebody asks for it.
    assert sorted(kinds) == ["tools.task.begun", "tools.task.cancelled", "tools.task.ended"], kinds
    entry = next(e["attributes"]["data"] for e in journal(admin) if label in json.dumps(e) and e["attributes"]["kind"] == "tools.task.ended")
    assert entry["result"]["status"] == "completed" and entry["result"]["is_error"] is False
