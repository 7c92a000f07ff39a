"""One upstream in trouble: its calls are bounded, repeated where that is safe, refused for a while, answered elsewhere; others notice nothing."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness import done, refused, unique, until

KEIKO_ENV = {"KEIKO_GATEWAY_ALLOW_PRIVATE": "true"}
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}


def tool(name, **more):
    return {"name": name, "description": f"The tool {name}", "inputSchema": TEXT} | more


TOOLS = [tool("read", annotations={"readOnlyHint": True}), tool("write"), tool("other")]


class Upstream:
    """An MCP server over HTTP whose tools do what the test says: `behaviour[tool]` is called for each call, and answers a status."""

    def __init__(self, tools=TOOLS):
        self.tools, self.behaviour = tools, {}
        self.calls, self.running, self.most, self.greeted = [], 0, 0, 0
        self.lock = threading.Lock()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.reply(405, None)

            do_DELETE = do_GET

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                upstream.answer(self, asked)

            def reply(self, status, message):
                body = json.dumps(message).encode() if message is not None else b""
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        ThreadingHTTPServer.daemon_threads = True
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/mcp"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler, asked):
        method, number = asked["method"], asked.get("id")
        if number is None:
            return handler.reply(202, None)
        if method == "initialize":
            self.greeted += 1
            result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "flaky", "version": "1"}}
        elif method == "tools/list":
            result = {"tools": self.tools}
        elif method == "ping":
            result = {}
        elif method == "tools/call":
            name = asked["params"]["name"]
            with self.lock:
                self.calls.append(asked["params"])
                self.running += 1
                self.most = max(self.most, self.running)
            try:
                status = self.behaviour.get(name, lambda _: 200)(asked["params"].get("arguments") or {})
            finally:
                with self.lock:
                    self.running -= 1
            if status != 200:
                return handler.reply(status, {"error": "no"})
            result = {"content": [{"type": "text", "text": self.url}], "isError": False}
        else:
            return handler.reply(200, {"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": "no such method"}})
        return handler.reply(200, {"jsonrpc": "2.0", "id": number, "result": result})

    def count(self, name):
        return sum(call["name"] == name for call in self.calls)


@pytest.fixture
def upstreams(admin):
    """Makes upstreams that Keiko knows: `upstreams(**settings)` answers the upstream and its name."""
    made = []

    def make(tools=TOOLS, **settings):
        upstream, name = Upstream(tools), unique("u").replace("-", "_")
        made.append((upstream, name))
        done(admin.post("/mcp-servers", {"name": name, "transport": {"type": "http", "url": upstream.url}}), 201)
        until(lambda: done(admin.get(f"/mcp-servers/{name}"))["attributes"]["status"] == "ready", f"{name} is ready")
        if settings:
            tune(admin, name, **settings)
        return upstream, name

    yield make
    for upstream, name in made:
        admin.delete(f"/mcp-servers/{name}")
        upstream.server.shutdown()
        upstream.server.server_close()


def tune(admin, name, **settings):
    tuned = done(admin.put(f"/mcp-servers/{name}/resilience", settings))["attributes"]
    assert settings.items() <= tuned["settings"].items()
    # It is carried out when the log has been followed that far.
    time.sleep(0.15)
    return tuned


def live(admin, name):
    return done(admin.get(f"/mcp-servers/{name}/resilience"))["attributes"]["live"]


def call(client, name, which, **more):
    return client.post(f"/tools/{name}__{which}/actions/call", {"arguments": {}, **more})


def failing(_):
    return 503


def events(admin, name, kind):
    server = done(admin.get(f"/mcp-servers/{name}"))["id"]
    kind = f"registry.mcp_server.{kind}"
    return [event["data"] for event in admin.events(stream=server) if event["type"] == kind]


# Circuit


def test_should_leave_a_failing_server_alone_and_come_back_by_one_trial(admin, upstreams):
    upstream, name = upstreams(failures_max=3, open_ms=2_000)
    upstream.behaviour["write"] = failing
    for _ in range(3):
        refused(call(admin, name, "write"), 502, "TOOL_LOST")
    error = refused(call(admin, name, "other"), 503, "TOOL_UNAVAILABLE")
    assert error["details"]["reason"] == "circuit_open" and 0 < error["details"]["retry_after_ms"] <= 2_000
    assert "503" in error["message"], "the failure that opened it is named"
    assert len(upstream.calls) == 3, "it is left alone"
    until(lambda: done(admin.get(f"/mcp-servers/{name}"))["attributes"]["circuits"], "the open circuit is shown")
    component = unique("c")
    done(admin.post("/components", {"name": component, "subject": {"type": "mcp_server", "mcp_server": name}}), 201)
    until(lambda: done(admin.get(f"/components/{component}"))["attributes"]["status"] == "down", "its health follows its calls")
    assert [opened["tool"] for opened in events(admin, name, "circuit_opened")] == [None]
    until(lambda: live(admin, name)["circuits"][0]["state"] == "half_open", "it may be tried")
    refused(call(admin, name, "write"), 502, "TOOL_LOST")
    refused(call(admin, name, "other"), 503, "TOOL_UNAVAILABLE")
    assert len(upstream.calls) == 4, "one trial, and it is left alone for twice as long"
    upstream.behaviour.clear()
    until(lambda: live(admin, name)["circuits"][0]["state"] == "half_open", "it may be tried again")
    done(call(admin, name, "write"))
    done(call(admin, name, "other"))
    until(lambda: events(admin, name, "circuit_closed"), "that it closed is told")
    assert done(admin.get(f"/mcp-servers/{name}"))["attributes"]["circuits"] == []
    assert live(admin, name)["circuits"] == []
    until(lambda: done(admin.get(f"/components/{component}"))["attributes"]["status"] == "up", "and it is well again")


def test_should_open_the_circuit_of_a_slow_tool_alone(admin, upstreams):
    upstream, name = upstreams(failures_max=2, open_ms=60_000, timeout_min_ms=100)
    for _ in range(20):
        done(call(admin, name, "write"))
    hanging = threading.Event()
    upstream.behaviour["write"] = lambda _: hanging.wait(40) and 200 or 200
    for _ in range(2):
        refused(call(admin, name, "write"), 502, "TOOL_TIMEOUT")
    refused(call(admin, name, "write"), 503, "TOOL_UNAVAILABLE")
    hanging.set()
    done(call(admin, name, "other"))
    assert [(circuit["tool"], circuit["state"]) for circuit in live(admin, name)["circuits"]] == [("write", "open")]


def test_should_not_let_an_impatient_caller_open_a_circuit_for_others(admin, upstreams):
    upstream, name = upstreams(failures_max=2, timeout_min_ms=100)
    upstream.behaviour["write"] = lambda _: time.sleep(0.2) or 200
    for _ in range(30):
        refused(call(admin, name, "write", timeout_ms=20), 502, "TOOL_TIMEOUT")
    done(call(admin, name, "write"))
    (times,) = [times for times in live(admin, name)["times"] if times["tool"] == "write"]
    assert times["samples"] == 1 and times["timeout_ms"] == 60_000, "and nothing is learned of it"


def test_should_not_let_a_caller_open_a_circuit_by_what_it_sends(admin, upstreams):
    upstream, name = upstreams(failures_max=2)
    upstream.behaviour["write"] = lambda arguments: 413 if "text" in arguments else 200
    for _ in range(5):
        refused(admin.post(f"/tools/{name}__write/actions/call", {"arguments": {"text": "too large"}}), 502, "TOOL_LOST")
    done(call(admin, name, "write"))


def test_should_take_errors_of_tools_for_answers(admin, upstreams):
    upstream, name = upstreams([tool("read"), tool("gone")], failures_max=1)
    for _ in range(3):
        refused(admin.post(f"/tools/{name}__read/actions/call", {"arguments": {"text": 1}}), 422, "ARGUMENTS_INVALID")
    done(call(admin, name, "read"))


# Repetition


def test_should_repeat_what_only_reads_and_nothing_else(admin, upstreams):
    upstream, name = upstreams()
    for which in ("read", "write"):
        upstream.behaviour[which] = lambda _: 503 if len(upstream.calls) % 3 else 200
    done(call(admin, name, "read"))
    assert upstream.count("read") == 3
    refused(call(admin, name, "write"), 502, "TOOL_LOST")
    assert upstream.count("write") == 1
    assert live(admin, name)["retried"] == 2


def test_should_repeat_no_more_than_its_budget(admin, upstreams):
    upstream, name = upstreams(retry_percent=0, failures_max=1_000, failure_percent=100)
    upstream.behaviour["read"] = failing
    done(call(admin, name, "other"))
    for _ in range(30):
        refused(call(admin, name, "read"), 502, "TOOL_LOST")
    # Ten are saved up, time earns one in ten seconds.
    assert 10 <= live(admin, name)["retried"] <= 12
    assert upstream.count("read") == 30 + live(admin, name)["retried"]


def test_should_wait_for_a_server_that_is_just_starting(admin, upstreams):
    upstream, name = upstreams()
    for _ in range(5):
        done(admin.post(f"/mcp-servers/{name}/actions/restart", {}))
        done(call(admin, name, "write"))


# Time


def test_should_learn_how_long_calls_take(admin, upstreams):
    upstream, name = upstreams(timeout_min_ms=300, failures_max=1_000, failure_percent=100)
    for _ in range(25):
        done(call(admin, name, "write"))
    hanging = threading.Event()
    upstream.behaviour["write"] = lambda _: hanging.wait(40) and 200 or 200
    began = time.monotonic()
    refused(call(admin, name, "write"), 502, "TOOL_TIMEOUT")
    assert time.monotonic() - began < 30, "not the 60 s of the limit"
    (times,) = [times for times in live(admin, name)["times"] if times["tool"] == "write"]
    assert times["longest_ms"] >= 600 and times["timeout_ms"] >= 2_400, "the next one gets more"
    hanging.set()
    tune(admin, name, timeout_is_adaptive=False)
    (times,) = [times for times in live(admin, name)["times"] if times["tool"] == "write"]
    assert times["timeout_ms"] == 60_000


# Bounds


@pytest.fixture
def crowd():
    with ThreadPoolExecutor(24) as pool:
        yield pool


def test_should_run_no_more_calls_than_allowed_and_change_that_at_once(admin, upstreams, crowd):
    upstream, name = upstreams(calls_max=2)
    gate = threading.Event()
    upstream.behaviour["write"] = lambda _: gate.wait(10) and 200
    calls = [crowd.submit(call, admin, name, "write") for _ in range(6)]
    until(lambda: live(admin, name)["waiting"] == 4, "four wait")
    assert live(admin, name)["running"] == 2 and upstream.running == 2
    tune(admin, name, calls_max=3)
    until(lambda: upstream.running == 3, "another one runs at once")
    gate.set()
    for one in calls:
        done(one.result())
    assert upstream.most == 3 and upstream.greeted == 1, "it was not connected to anew"


def test_should_turn_away_the_least_important_first(keiko, admin, upstreams, crowd):
    upstream, name = upstreams(calls_max=1, waiting_max=2)
    gate = threading.Event()
    upstream.behaviour["write"] = lambda _: gate.wait(10) and 200
    user = keiko.user(admin, ["developer"])
    first = crowd.submit(call, admin, name, "write")
    until(lambda: upstream.running == 1, "one runs")
    low = crowd.submit(call, user, name, "write", priority="low")
    until(lambda: live(admin, name)["waiting"] == 1, "one waits")
    normal = crowd.submit(call, keiko.login(), name, "write")
    until(lambda: live(admin, name)["waiting"] == 2, "two wait")
    refused(call(user, name, "write", priority="low"), 503, "TOOL_UNAVAILABLE")
    # Nobody takes more than half of the places to wait: a third caller, and only one who may go before others.
    refused(call(user, name, "write", priority="high"), 403, "PERMISSION_DENIED")
    other = keiko.user(admin, ["admin"])
    high = crowd.submit(call, other, name, "write", priority="high")
    assert "waiting" in refused(low.result(), 503, "TOOL_UNAVAILABLE")["message"]
    order = []
    for who, one in (("first", first), ("high", high), ("normal", normal)):
        one.add_done_callback(lambda _, who=who: order.append(who))
    gate.set()
    for one in (first, normal, high):
        done(one.result())
    until(lambda: len(order) == 3, "all are done")
    assert order.index("high") < order.index("normal")
    assert live(admin, name)["shed"] == 2


def test_should_let_nobody_fill_the_queue(keiko, admin, upstreams, crowd):
    upstream, name = upstreams(calls_max=1, waiting_max=8)
    gate = threading.Event()
    upstream.behaviour["write"] = lambda _: gate.wait(10) and 200
    flood = [crowd.submit(call, admin, name, "write") for _ in range(16)]
    until(lambda: live(admin, name)["waiting"] == 4, "half of the places to wait are taken")
    other = crowd.submit(call, keiko.user(admin, ["developer"]), name, "write")
    until(lambda: live(admin, name)["waiting"] == 5, "another caller finds one")
    gate.set()
    done(other.result())
    codes = sorted(one.result().status_code for one in flood)
    assert codes == [200] * 5 + [503] * 11


def test_should_keep_a_slow_server_from_all_others(admin, upstreams, crowd):
    slow, slow_name = upstreams(calls_max=4, waiting_max=4)
    _, quick_name = upstreams()
    gate = threading.Event()
    slow.behaviour["write"] = lambda _: gate.wait(20) and 200
    hanging = [crowd.submit(call, admin, slow_name, "write") for _ in range(12)]
    until(lambda: slow.running == 4, "the slow one is full")
    took = []
    for _ in range(20):
        began = time.monotonic()
        done(call(admin, quick_name, "write"))
        took.append(time.monotonic() - began)
    assert sorted(took)[10] < 1
    gate.set()
    assert sorted(one.result().status_code for one in hanging) == [200] * 6 + [503] * 6


# In its place


def test_should_answer_from_the_server_that_is_declared_in_its_place(admin, upstreams):
    first, name = upstreams()
    second, standby = upstreams()
    tune(admin, name, fallback=standby, failures_max=2)
    assert done(call(admin, name, "write"))["attributes"]["answered_by"] is None
    first.behaviour |= {"write": failing, "read": failing}
    refused(call(admin, name, "write"), 502, "TOOL_LOST")
    assert second.calls == [], "it may have been carried out"
    got = done(call(admin, name, "read"))
    assert got["attributes"]["answered_by"] == standby and got["attributes"]["content"][0]["text"] == second.url
    # The circuit is open now, so that nothing is carried out twice.
    got = done(call(admin, name, "write"))
    assert got["attributes"]["answered_by"] == standby and second.count("write") == 1

    def written():
        entries = done(admin.get("/journal", limit=500, **{"class": "tool_call"}))
        return [entry["attributes"]["data"] for entry in entries if entry["attributes"]["data"]["call_id"] == got["id"]]

    assert until(written, "the entry is there")[0]["answered_by"] == standby
    first.server.shutdown()
    first.server.server_close()
    assert done(call(admin, name, "other"))["attributes"]["answered_by"] == standby


def test_should_tell_mcp_clients_who_answered(keiko, admin, upstreams):
    first, name = upstreams(failures_max=1)
    _, standby = upstreams()
    tune(admin, name, fallback=standby)
    first.behaviour["read"] = failing

    def asked(meta=None):
        meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}, **(meta or {})}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": f"{name}__read", "arguments": {}, "_meta": meta}}
        headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": f"{name}__read", "Accept": "application/json, text/event-stream"}
        answered = admin.request("POST", "/mcp", body, headers)
        text = answered.text
        return json.loads(text.split("data:", 1)[1].split("\n\n")[0] if text.startswith(("event:", "data:", "id:")) else text)

    assert asked()["result"]["_meta"]["keiko/answered-by"] == standby
    assert asked({"keiko/priority": "low"})["result"]["_meta"]["keiko/answered-by"] == standby
    assert "keiko~1priority" in json.dumps(asked({"keiko/priority": "urgent"}))
    assert not any("keiko/priority" in (sent.get("_meta") or {}) for sent in first.calls)


def test_should_not_answer_from_a_tool_that_takes_something_else(admin, upstreams):
    first, name = upstreams()
    schema = {"type": "object", "properties": {"path": {"type": "string"}}}
    second, standby = upstreams([tool("read", annotations={"readOnlyHint": True}) | {"inputSchema": schema}])
    tune(admin, name, fallback=standby)
    first.behaviour["read"] = failing
    refused(call(admin, name, "read"), 502, "TOOL_LOST")
    assert second.calls == []


def test_should_not_answer_from_a_tool_that_may_not_be_repeated(admin, upstreams):
    first, name = upstreams()
    second, standby = upstreams([tool("read")])
    tune(admin, name, fallback=standby, failures_max=3)
    first.behaviour["read"] = failing
    refused(call(admin, name, "read"), 502, "TOOL_LOST")
    assert first.count("read") == 3 and second.calls == [], "it may have been carried out"
    done(call(admin, name, "read"))
    assert second.count("read") == 1, "now it is not asked at all"


def test_should_not_answer_from_a_tool_that_nobody_approved(admin, upstreams):
    first, name = upstreams()
    second, standby = upstreams()
    tune(admin, name, fallback=standby)
    second.tools = [tool("read", annotations={"readOnlyHint": True}) | {"description": "Another one"}]
    done(admin.post(f"/mcp-servers/{standby}/actions/restart", {}))
    until(lambda: done(admin.get(f"/tools/{standby}__read"))["attributes"]["status"] == "needs_approval", "it changed")
    first.behaviour["read"] = failing
    refused(call(admin, name, "read"), 502, "TOOL_LOST")
    assert second.calls == []


# Settings


def test_should_keep_settings_over_a_restart(new_keiko):
    keiko = new_keiko(env=KEIKO_ENV)
    keiko.start()
    admin, upstream = keiko.login(), Upstream()
    done(admin.post("/mcp-servers", {"name": "kept", "transport": {"type": "http", "url": upstream.url}}), 201)
    until(lambda: done(admin.get("/mcp-servers/kept"))["attributes"]["status"] == "ready", "it is ready")
    tune(admin, "kept", failures_max=1, open_ms=60_000)
    upstream.behaviour["write"] = failing
    refused(call(admin, "kept", "write"), 502, "TOOL_LOST")
    until(lambda: done(admin.get("/mcp-servers/kept"))["attributes"]["circuits"], "its circuit is open")
    keiko.kill()
    keiko.start()
    admin = keiko.login()
    until(lambda: done(admin.get("/mcp-servers/kept"))["attributes"]["circuits"] == [], "it starts anew, and nothing says that it fails", 30)
    until(lambda: done(admin.get("/mcp-servers/kept"))["attributes"]["status"] == "ready", "it is ready again")
    shown = done(admin.get("/mcp-servers/kept/resilience"))["attributes"]
    assert (shown["settings"]["failures_max"], shown["settings"]["open_ms"], shown["live"]["answered"]) == (1, 60_000, 0)


def test_should_refuse_settings_that_nobody_can_mean(keiko, admin, upstreams):
    _, name = upstreams()
    at = f"/mcp-servers/{name}/resilience"
    error = refused(admin.put(at, {"calls_max": 0, "attempts_max": 9, "open_ms": 1}), 400, "VALIDATION_FAILED")
    assert [problem["pointer"] for problem in error["details"]["errors"]] == ["/attempts_max", "/calls_max", "/open_ms"]
    refused(admin.put(at, {"fallback": name}), 422, "RULE_VIOLATED")
    refused(admin.put(at, {"fallback": "nobody"}), 422, "RULE_VIOLATED")
    refused(admin.put(at, {"calls_max": -1}), 400)
    refused(admin.put(at, {"call_max": 1}), 400)
    refused(keiko.user(admin, ["analyst"]).put(at, {}), 403, "PERMISSION_DENIED")
    refused(admin.get("/mcp-servers/nobody/resilience"), 404, "MCP_SERVER_NOT_FOUND")


def test_should_keep_servers_of_other_tenants_out(keiko, admin, upstreams):
    _, name = upstreams()
    other = keiko.tenant(admin)
    refused(other.get(f"/mcp-servers/{name}/resilience"), 404, "MCP_SERVER_NOT_FOUND")
    refused(other.put(f"/mcp-servers/{name}/resilience", {}), 404, "MCP_SERVER_NOT_FOUND")


def test_should_count_what_comes_of_calls(keiko, admin, upstreams):
    upstream, name = upstreams(failures_max=1)
    done(call(admin, name, "other"))
    upstream.behaviour["write"] = failing
    refused(call(admin, name, "write"), 502, "TOOL_LOST")
    refused(call(admin, name, "write"), 503, "TOOL_UNAVAILABLE")
    metrics = admin.get("/metrics").text
    labels = f'tenant="default",server="{name}"'
    for outcome, count in (("answered", 1), ("failed", 1), ("circuit_open", 1), ("shed", 0)):
        assert f'keiko_upstream_calls_total{{{labels},outcome="{outcome}"}} {count}\n' in metrics
    assert f"keiko_upstream_circuits_open{{{labels}}} 1\n" in metrics and f"keiko_upstream_ready{{{labels}}} 1\n" in metrics
