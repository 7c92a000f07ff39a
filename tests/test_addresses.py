"""One server at several addresses: calls are shared out, an address in trouble is left alone, and what was begun at one goes on there."""

import collections
import concurrent.futures
import subprocess
import sys
import threading
import time

import pytest

from harness import binary, clean_env, done, refused, unique, until
from mcp_clients import Legacy, Modern
from test_mcp_tasks import KNOWS, begun, ended, said
from test_resilience import TOOLS, Upstream, call, events, failing, live, tool, tune
from upstream import SERVERS
from upstream import Upstream as Several

KEIKO_ENV = {"KEIKO_GATEWAY_ALLOW_PRIVATE": "true", "KEIKO_GATEWAY_CALL_TIMEOUT": "3s"}
pytestmark = pytest.mark.embedded  # Nothing of it depends on the store.


@pytest.fixture
def server(admin):
    """Makes a server of so many addresses: `server(2, **settings)` answers them and its name."""
    made = []

    def make(count, tools=None, **settings):
        upstreams, name = [Upstream((tools or {}).get(at, TOOLS)) for at in range(count)], unique("u").replace("-", "_")
        made.append((upstreams, name))
        first, *others = (upstream.url for upstream in upstreams)
        shown = done(admin.post("/mcp-servers", {"name": name, "transport": {"type": "http", "url": first, "other_urls": others}}), 201)
        assert shown["attributes"]["transport"]["other_urls"] == others
        if settings:
            tune(admin, name, **settings)
        until(lambda: all(address["is_ready"] for address in live(admin, name)["addresses"]), f"{name} is ready", 20)
        until(lambda: done(admin.get(f"/mcp-servers/{name}"))["attributes"]["status"] == "ready", f"{name} is ready")
        return upstreams, name

    yield make
    for upstreams, name in made:
        admin.delete(f"/mcp-servers/{name}")
        for upstream in upstreams:
            upstream.server.shutdown()
            upstream.server.server_close()


@pytest.fixture
def several(admin):
    """Makes a server of `servers/` at several addresses, in a process each."""
    made = []

    def make(script, kind, addresses):
        made.append(Several(admin, script, kind, addresses))
        until(lambda: all(address["is_ready"] for address in live(admin, made[-1].name)["addresses"]), "all are ready", 20)
        return made[-1]

    yield make
    for upstream in made:
        upstream.close()


def answered(admin, name, which, count):
    """Who answered so many calls, one after another."""
    return collections.Counter(done(call(admin, name, which))["attributes"]["content"][0]["text"] for _ in range(count))


def shown(admin, name):
    return done(admin.get(f"/mcp-servers/{name}"))["attributes"]


# Sharing out


def test_should_share_calls_out(admin, server):
    upstreams, name = server(3)
    by = answered(admin, name, "write", 60)
    assert set(by) == {upstream.url for upstream in upstreams} and max(by.values()) < 57, by
    figures = live(admin, name)
    assert [a["url"] for a in figures["addresses"]] == [upstream.url for upstream in upstreams]
    assert figures["circuits"] == [] and all(a["running"] == 0 and a["reason"] is None for a in figures["addresses"])
    assert shown(admin, name)["tools"] == len(TOOLS), "it is one server"


def test_should_give_fewer_calls_to_a_slow_address(admin, server):
    upstreams, name = server(2)
    upstreams[1].behaviour["write"] = lambda _: time.sleep(0.4) or 200
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: done(call(admin, name, "write")), range(60)))
    counts = [upstream.count("write") for upstream in upstreams]
    assert sum(counts) == 60 and counts[0] > 3 * counts[1] > 0, counts
    times = [address["usual_ms"] for address in live(admin, name)["addresses"]]
    assert times[0] < times[1], times


# Trouble of one


def test_should_leave_an_address_alone_that_fails_and_try_it_again(admin, server):
    upstreams, name = server(2, failures_max=3, open_ms=1_500)
    component = unique("c")
    done(admin.post("/components", {"name": component, "subject": {"type": "mcp_server", "mcp_server": name}}), 201)
    upstreams[1].behaviour["read"] = failing
    until(lambda: done(call(admin, name, "read")) and live(admin, name)["circuits"], "it is left alone")
    [circuit] = live(admin, name)["circuits"]
    assert circuit["tool"] is None and circuit["address"] == upstreams[1].url and "503" in circuit["reason"]
    before = upstreams[1].count("read")
    assert answered(admin, name, "read", 20) == {upstreams[0].url: 20} and upstreams[1].count("read") == before
    until(lambda: shown(admin, name)["circuits"], "it is written down")
    assert shown(admin, name)["status"] == "ready"
    assert [opened["address"] for opened in events(admin, name, "circuit_opened")] == [upstreams[1].url]
    health = lambda: done(admin.get(f"/components/{component}"))["attributes"]  # noqa: E731
    until(lambda: health()["status"] == "degraded", "its health says so")
    upstreams[1].behaviour.clear()
    until(lambda: answered(admin, name, "read", 1) and not live(admin, name)["circuits"], "it is tried, and is back", 20)
    until(lambda: [closed["address"] for closed in events(admin, name, "circuit_closed")] == [upstreams[1].url], "that is told")
    until(lambda: health()["status"] == "up", "and it is well again")
    until(lambda: upstreams[1].url in answered(admin, name, "read", 5), "it gets calls again", 30)


def test_should_not_repeat_elsewhere_what_may_have_been_done(admin, server):
    upstreams, name = server(2, failures_max=1_000, failure_percent=100)
    for upstream in upstreams:
        upstream.behaviour["write"] = failing
    refused(call(admin, name, "write"), 502, "TOOL_LOST")
    assert sum(upstream.count("write") for upstream in upstreams) == 1
    done(call(admin, name, "read"))


def test_should_answer_every_reading_call_while_an_address_fails(admin, server):
    upstreams, name = server(2, failures_max=5)
    upstreams[0].behaviour["read"] = failing
    assert answered(admin, name, "read", 40) == {upstreams[1].url: 40}


def test_should_leave_a_tool_alone_where_it_takes_too_long(admin, server):
    upstreams, name = server(2, failures_max=2, open_ms=60_000, timeout_min_ms=100)
    answered(admin, name, "write", 25)
    free = threading.Event()
    upstreams[1].behaviour["write"] = lambda _: 200 if free.wait(20) else 503
    seen = collections.Counter()
    until(lambda: seen.update([call(admin, name, "write").status_code]) or live(admin, name)["circuits"], "it is left alone", 60)
    [circuit] = live(admin, name)["circuits"]
    assert circuit["address"] == upstreams[1].url and circuit["tool"] == "write", circuit
    assert seen[502] == 2 and set(seen) <= {200, 502}, seen
    assert answered(admin, name, "write", 10) == {upstreams[0].url: 10}
    until(lambda: upstreams[1].url in answered(admin, name, "other", 5), "another tool is called there", 30)
    free.set()


def test_should_refuse_a_tool_that_takes_too_long_everywhere(admin, server):
    upstreams, name = server(2, failures_max=2, open_ms=60_000, timeout_min_ms=100)
    answered(admin, name, "write", 25)
    free = threading.Event()
    for upstream in upstreams:
        upstream.behaviour["write"] = lambda _: 200 if free.wait(20) else 503
    for _ in range(4):
        refused(call(admin, name, "write"), 502, "TOOL_TIMEOUT")
    refused(call(admin, name, "write"), 503, "TOOL_UNAVAILABLE")
    assert {(c["tool"], c["address"]) for c in live(admin, name)["circuits"]} == {("write", upstream.url) for upstream in upstreams}
    assert sum(answered(admin, name, "other", 10).values()) == 10
    free.set()


def test_should_refuse_when_all_addresses_fail(admin, server):
    upstreams, name = server(2, failures_max=2, open_ms=60_000)
    for upstream in upstreams:
        upstream.behaviour["write"] = failing
    until(lambda: call(admin, name, "write").status_code == 503, "it is left alone")
    error = refused(call(admin, name, "other"), 503, "TOOL_UNAVAILABLE")
    assert error["details"]["reason"] == "circuit_open" and error["details"]["retry_after_ms"] > 0
    assert sum(upstream.count("write") for upstream in upstreams) == 4
    assert {c["address"] for c in live(admin, name)["circuits"]} == {upstream.url for upstream in upstreams}


def test_should_leave_a_tool_alone_that_never_answered_in_time(admin, server):
    upstreams, name = server(1, failures_max=1, open_ms=60_000)
    free = threading.Event()
    upstreams[0].behaviour["write"] = lambda _: 200 if free.wait(20) else 503
    refused(call(admin, name, "write"), 502, "TOOL_TIMEOUT")
    refused(call(admin, name, "write"), 503, "TOOL_UNAVAILABLE")
    assert [(c["tool"], c["address"]) for c in live(admin, name)["circuits"]] == [("write", None)]
    free.set()


# An address that is gone


def test_should_go_on_when_an_address_is_gone_and_take_it_back(admin, several):
    upstream = several("everything.py", "modern-http", 2)
    name, url = upstream.name, f"http://127.0.0.1:{upstream.ports[0]}/mcp"
    done(call(admin, name, "test_simple_text"))
    upstream.processes[0].kill()
    upstream.processes[0].wait()
    # What was being sent there when it ended may be lost, and nothing else.
    codes = collections.Counter(call(admin, name, "test_simple_text").status_code for _ in range(30))
    assert codes[200] >= 29 and set(codes) <= {200, 502}, codes
    until(lambda: not live(admin, name)["addresses"][0]["is_ready"], "it is seen")
    assert "reach" in live(admin, name)["addresses"][0]["reason"]
    until(lambda: [c["address"] for c in shown(admin, name)["circuits"]] == [url], "it is written down")
    assert shown(admin, name)["status"] == "ready" and shown(admin, name)["tools"] > 10, "another one speaks"
    command = [sys.executable, SERVERS / "everything.py", "modern", "http", str(upstream.ports[0])]
    upstream.processes[0] = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until(lambda: live(admin, name)["addresses"][0]["is_ready"], "it is back", 30)
    until(lambda: shown(admin, name)["circuits"] == [], "that is written down")
    for process in upstream.processes:
        process.kill()
        process.wait()
    until(lambda: call(admin, name, "test_simple_text").status_code == 503, "none of them answers")
    until(lambda: shown(admin, name)["status"] == "failed", "the server has failed", 20)
    assert "reach" in shown(admin, name)["reason"]


def test_should_call_a_tool_only_where_it_is_what_was_approved(admin, server):
    newer = [tool("read", annotations={"readOnlyHint": True}), tool("write", title="Newer"), tool("other")]
    upstreams, name = server(2, tools={1: newer})
    [speaks] = answered(admin, name, "write", 1)
    assert answered(admin, name, "write", 20) == {speaks: 20}, "while a server is replaced, some are ahead"
    until(lambda: len(answered(admin, name, "other", 5)) == 2, "another tool is called at both", 30)
    assert done(admin.get(f"/tools/{name}__write"))["attributes"]["status"] == "ready", "the list does not change to and fro"


# What was begun goes on


def test_should_find_a_task_again_where_it_was_made(keiko, admin, several):
    upstream = several("tasks.py", "modern-http", 3)
    one = Modern(f"{keiko.url}/mcp/{upstream.door}", admin.headers, capabilities=KNOWS).begin()
    labels = [f"t{n}" for n in range(12)]
    ids = {label: begun(one, "slow_compute", seconds=0.1, label=label)["taskId"] for label in labels}
    for label, id_ in ids.items():
        assert said(ended(one, id_)["result"]) == f"computed {label} for 0.1 s"
    one.close()


@pytest.mark.parametrize("kind", ["legacy-http", "modern-http"])
def test_should_bring_answers_to_where_it_was_asked(keiko, admin, several, kind):
    upstream = several("everything.py", kind, 3)
    for client in (Modern, Legacy):
        one = client(f"{keiko.url}/mcp/{upstream.door}", admin.headers).begin()
        for _ in range(6):
            assert one.call("test_elicitation", {"message": "Who?"})[0].startswith("User response: action=accept")
        one.close()


# What is refused


def http(url, *others, **more):
    return {"name": unique("n").replace("-", "_"), "transport": {"type": "http", "url": url, "other_urls": list(others), **more}}


def test_should_refuse_addresses_that_make_no_sense(admin):
    one, two = "http://127.0.0.1:9/mcp", "http://127.0.0.1:9/other"
    for body, field in [
        (http(one, one), "/transport/other_urls/0"),
        (http(one, two, "http://127.0.0.1:9/./other"), "/transport/other_urls/1"),
        (http(one, f"{one}{'x' * 2100}"), "/transport/other_urls/0"),
        (http(one, two, oauth={"per": "user"}), "/transport/other_urls"),
    ]:
        error = refused(admin.post("/mcp-servers", body), 422, "RULE_VIOLATED")
        assert [problem["pointer"] for problem in error["details"]["errors"]] == [field], error
    refused(admin.post("/mcp-servers", http(one, *(f"{one}{n}" for n in range(16)))), 400, "VALIDATION_FAILED")
    error = refused(admin.post("/mcp-servers", http(one, "file:///etc/passwd")), 422, "TARGET_REFUSED")
    assert error["details"]["url"] == "file:///etc/passwd"


def test_should_not_show_a_kept_secret_at_an_address_that_is_new(admin):
    one, two = "http://127.0.0.1:9/mcp", "http://127.0.0.1:9/other"
    body = http(one, two, headers={"X-Key": "a secret"})
    name = done(admin.post("/mcp-servers", body), 201)["attributes"]["name"]
    kept = lambda *others: admin.put(f"/mcp-servers/{name}", {**http(one, *others, headers={"X-Key": None}), "name": name})  # noqa: E731
    done(kept(two))
    error = refused(kept(two, "http://127.0.0.1:10/evil"), 422, "RULE_VIOLATED")
    assert "/transport/headers/X-Key" in [problem["pointer"] for problem in error["details"]["errors"]]
    done(kept())
    refused(kept(two), 422, "RULE_VIOLATED")
    admin.delete(f"/mcp-servers/{name}")


def test_should_show_no_token_to_a_server_at_several_addresses(admin):
    one, two = "http://127.0.0.1:9/mcp", "http://127.0.0.1:9/other"
    body = http(one, two)
    name = done(admin.post("/mcp-servers", body), 201)["attributes"]["name"]
    put = lambda: admin.put(f"/mcp-servers/{name}/credentials/everybody", {"token": "a-secret-token"})  # noqa: E731
    refused(put(), 422, "CREDENTIAL_UNUSABLE")
    assert shown(admin, name)["connect_url"] is None
    done(admin.put(f"/mcp-servers/{name}", {**http(one), "name": name}))
    done(put(), 200, 201)
    error = refused(admin.put(f"/mcp-servers/{name}", {**http(one, two), "name": name}), 422, "RULE_VIOLATED")
    assert [problem["pointer"] for problem in error["details"]["errors"]] == ["/transport/other_urls"]
    assert admin.delete(f"/mcp-servers/{name}/credentials/everybody").status_code == 204
    done(admin.put(f"/mcp-servers/{name}", {**http(one, two), "name": name}))
    admin.delete(f"/mcp-servers/{name}")


def test_should_take_addresses_at_the_command_line(keiko, admin, server):
    upstreams, _ = server(2)
    name = unique("c").replace("-", "_")
    env = clean_env(keiko.home, {"KEIKO_SERVER": keiko.url, "KEIKO_API_KEY": done(admin.post("/api-keys", {"name": unique("k"), "permissions": ["*"]}), 201)["attributes"]["key"]})
    run = lambda *args: subprocess.run([binary(), "mcp", "servers", *args], capture_output=True, text=True, env=env, timeout=30)  # noqa: E731
    ran = run("add", name, "--url", upstreams[0].url, "--other-url", upstreams[1].url)
    assert ran.returncode == 0, ran.stderr
    assert shown(admin, name)["transport"]["other_urls"] == [upstreams[1].url]
    until(lambda: upstreams[1].url in run("resilience", name).stdout, "each is shown")
    assert run("add", unique("c"), "--other-url", upstreams[1].url, "--", "true").returncode == 2
    admin.delete(f"/mcp-servers/{name}")
