"""Every era of MCP in front of Keiko with every era behind it: by the conformance suite, and by hand."""

import asyncio
import concurrent.futures
import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mcp import Client as OfficialClient
from mcp import StdioServerParameters, stdio_client
from mcp.types import ElicitResult

import mcp_clients
from harness import ADMIN_PASSWORD, binary, clean_env, done, refused, unique, until
from mcp_clients import META, Legacy, Modern, Oldest
from proxy import Proxy
from upstream import Upstream, kept

# The address of a client that the conformance suite knows as a document.
KEIKO_ENV = {"KEIKO_GATEWAY_ALLOW_PRIVATE": "true", "KEIKO_GATEWAY_CLIENT_DOCUMENT": "https://conformance-test.local/client-metadata.json"}
HERE = Path(__file__).parent
NODE_MODULES = HERE / "conformance" / "node_modules"
SUITE = NODE_MODULES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
SERVER = "everything.py"
KINDS = ["legacy-http", "legacy-stdio", "legacy-sse", "modern-http", "modern-stdio"]


@pytest.fixture(scope="module")
def upstreams(admin):
    yield from kept(admin, SERVER)


@pytest.fixture
def client(keiko, admin):
    """A client of a kind at a door."""
    opened = []

    def make(kind, door, by=None, **more):
        path = "/sse" if kind is Oldest else "/mcp"
        opened.append(kind(f"{keiko.url}{path}{f'/{door}' if door else ''}", (by or admin).headers, **more).begin())
        return opened[-1]

    yield make
    for one in opened:
        one.close()


# Judged by other hands

# What no bridge can do: an older server asks without names, so the names of its questions are Keiko's; and it asks before it looks
# at answers that nobody asked for.
NAMELESS = {"sep-2322-elicitation-incomplete", "sep-2322-ignore-unexpected-params"}
# A tool that appears later waits for approval, so there is no change to tell of.
UNAPPROVED = {"sep-2575-server-sends-tools-list-changed-on-subscription"}


@pytest.mark.embedded  # The protocol is the same on every store.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind, spec, least", [
    ("legacy-http", "2025-11-25", 80), ("modern-http", "2025-11-25", 80), ("legacy-stdio", "2025-11-25", 80), ("legacy-sse", "2025-11-25", 80),
    ("legacy-http", "2026-07-28", 146), ("modern-http", "2026-07-28", 148), ("modern-stdio", "2026-07-28", 148),
])  # fmt: skip
def test_should_pass_the_conformance_suite_as_a_server(keiko, admin, upstreams, tmp_path, kind, spec, least):
    assert SUITE.exists() and shutil.which("node"), "run 'npm ci' in tests/conformance first"
    key = done(admin.post("/api-keys", {"name": unique("key")}), 201)["attributes"]["key"]
    with Proxy(keiko.port, {"X-API-Key": key}) as proxy:
        command = [NODE_MODULES / "node" / "bin" / "node", SUITE, "server", "--url", f"{proxy.url}/mcp/{upstreams(kind).door}", "-o", tmp_path, "--requirements", spec]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean_env(tmp_path), timeout=280)
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("checks.json")}
    checks = [(name, check) for name, all_ in found.items() if "-tasks-" not in name for check in all_]
    wrong = [(name, check) for name, check in checks if check["status"] in ("FAILURE", "WARNING")]
    excused = UNAPPROVED | (NAMELESS if (kind.split("-")[0], spec) == ("legacy", "2026-07-28") else set())
    unexcused = [f"{name}: {check['id']}: {check.get('errorMessage')}" for name, check in wrong if check["id"] not in excused]
    assert not unexcused, "\n".join(unexcused)
    passed = sum(check["status"] == "SUCCESS" for _, check in checks)
    print(f"conformance as a server, {spec} before {kind}: {passed} checks passed in {len(found)} scenarios")
    assert passed >= least, ran.stdout[-2000:]


CLIENT_SCENARIOS = [
    *(("2025-11-25", name, least) for name, least in [("initialize", 1), ("tools_call", 2), ("elicitation-sep1034-client-defaults", 5), ("sse-retry", 3), ("json-schema-2020-12-preservation", 9)]),
    *(("2026-07-28", name, least) for name, least in [
        ("tools_call", 2), ("request-metadata", 5), ("sep-2322-client-request-state", 5), ("http-standard-headers", 10), ("http-custom-headers", 18),
        ("http-invalid-tool-headers", 12), ("json-schema-ref-no-deref", 1), ("json-schema-2020-12-preservation", 9),
    ]),
]  # fmt: skip
# How it is let in: scenarios of each version, with how many checks pass at least.
AUTH = {
    "2025-03-26": "2025-03-26-oauth-metadata-backcompat 9 2025-03-26-oauth-endpoint-fallback 4",
    "2025-11-25": "metadata-default 15 metadata-var1 15 metadata-var2 15 metadata-var3 15 basic-cimd 10 scope-from-www-authenticate 11 scope-from-scopes-supported 11 "
    "scope-omitted-when-undefined 11 scope-step-up 12 scope-retry-limit 10 token-endpoint-auth-basic 16 token-endpoint-auth-post 16 token-endpoint-auth-none 16 pre-registration 10",
    "2026-07-28": "metadata-default 16 metadata-var1 16 metadata-var2 16 metadata-var3 16 basic-cimd 10 scope-from-www-authenticate 12 scope-from-scopes-supported 12 "
    "scope-omitted-when-undefined 12 scope-step-up 14 scope-retry-limit 11 token-endpoint-auth-basic 17 token-endpoint-auth-post 17 token-endpoint-auth-none 17 pre-registration 10 "
    "resource-mismatch 2 offline-access-scope 10 offline-access-not-supported 12 authorization-server-migration 14 iss-supported 12 iss-not-advertised 12 iss-supported-missing 8 "
    "iss-wrong-issuer 8 iss-unexpected 8 iss-normalized 8 metadata-issuer-mismatch 3",
    None: "client-credentials-jwt 5 client-credentials-basic 5",
}
CLIENT_SCENARIOS += [(spec, f"auth/{name}", int(least)) for spec, row in AUTH.items() for name, least in zip(row.split()[::2], row.split()[1::2], strict=True)]


def as_a_client(folder, env, spec, scenario, least):
    """Runs one scenario of the suite. Answers how many checks passed."""
    out = folder / (spec or "extension") / scenario
    out.mkdir(parents=True)
    command = [NODE_MODULES / "node" / "bin" / "node", SUITE, "client", "--command", f"{sys.executable} {HERE / 'servers' / 'suite_client.py'}"]
    version = ["--spec-version", spec] if spec else []
    ran = subprocess.run([*command, "--scenario", scenario, *version, "-o", out], capture_output=True, text=True, cwd=out, env=env, timeout=90)
    checks = [check for path in out.rglob("checks.json") for check in json.loads(path.read_text())]
    said = "".join(path.read_text() for path in out.rglob("std*.txt"))
    wrong = [f"{check['id']}: {check.get('errorMessage')}" for check in checks if check["status"] in ("FAILURE", "WARNING")]
    assert not wrong and ran.returncode == 0, f"{spec} {scenario}: {wrong}\n{said[-2000:]}"
    good = [check["id"] for check in checks if check["status"] == "SUCCESS"]
    # Some checks are made at each request, however many there are.
    passed = len(set(good)) if scenario.startswith("auth/") else len(good)
    assert passed >= least, f"{spec} {scenario}: {passed} of {least}\n{said[-2000:]}"
    return passed


@pytest.mark.embedded
@pytest.mark.timeout(300)
def test_should_pass_the_conformance_suite_as_a_client(keiko, admin, tmp_path):
    assert SUITE.exists() and shutil.which("node"), "run 'npm ci' in tests/conformance first"
    key = done(admin.post("/api-keys", {"name": unique("key")}), 201)["attributes"]["key"]
    env = clean_env(tmp_path, {"SUITE_KEIKO": keiko.url, "SUITE_KEY": key, "SUITE_PASSWORD": ADMIN_PASSWORD})
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        passed = sum(pool.map(lambda one: as_a_client(tmp_path, env, *one), CLIENT_SCENARIOS))
    print(f"conformance as a client: {passed} checks passed in {len(CLIENT_SCENARIOS)} scenarios")


# Every combination, by hand


@pytest.mark.embedded
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", [Oldest, Legacy, Modern])
def test_should_bridge_every_feature_between_every_pair_of_eras(upstreams, client, era, kind):
    one = client(era, upstreams(kind).door)
    # Asked in the middle: a form, a model, the roots; all at once; one after another.
    assert one.call("test_elicitation", {"message": "Who?"})[0].startswith("User response: action=accept")
    assert one.call("test_sampling", {"prompt": "Capital?"})[0] == "LLM response: Paris"
    assert one.call("test_input_required_result_list_roots")[0] == "file:///home/ada"
    assert one.call("test_input_required_result_multiple_inputs")[0] == "Paris Ada 1"
    assert one.call("test_input_required_result_multi_round")[0] == "Ada likes Ada"
    prompt = one.ask("prompts/get", {"name": "test_input_required_result_prompt"})[0]["result"]
    assert prompt["messages"][0]["content"]["text"] == "Context: Ada"
    # Told in the middle.
    _, before = one.call("test_tool_with_progress", progressToken="mine")
    assert [(n["params"]["progressToken"], n["params"]["progress"]) for n in before] == [("mine", 0), ("mine", 50), ("mine", 100)]
    assert one.call("test_tool_with_progress")[1] == []
    # Prompts, resources, completions, errors.
    assert "test_simple_prompt" in one.names("prompts")
    read = one.ask("resources/read", {"uri": "test://template/5/data"})[0]["result"]["contents"][0]
    assert json.loads(read["text"])["id"] == "5"
    asked = {"ref": {"type": "ref/prompt", "name": "test_prompt_with_arguments"}, "argument": {"name": "arg1", "value": "par"}}
    assert one.ask("completion/complete", asked)[0]["result"]["completion"]["values"] == ["paris", "park", "party"]
    missing = one.ask("resources/read", {"uri": "test://none"})[0]["error"]
    assert missing["code"] == (-32602 if era is Modern else -32002) and missing["data"]["uri"] == "test://none"
    assert one.ask("resources/read", {"uri": "test://template/x/other"})[0]["error"]["code"] == missing["code"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", [Oldest, Legacy, Modern])
def test_should_log_from_the_wanted_level_on(upstreams, client, era, kind):
    door = upstreams(kind).door
    said = lambda one: [n["params"]["data"] for n in one.call("test_logging_tool")[1]]  # noqa: E731
    assert said(client(era, door, level="debug")) == ["seen in detail", "seen"]
    assert said(client(era, door, level="info")) == ["seen"]
    assert said(client(era, door)) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("era", [Oldest, Legacy, Modern])
def test_should_tell_what_changes(upstreams, client, era, kind):
    # Whoever cannot be asked shares a connection: processes of their own would not see each other's changes.
    one, told = client(era, upstreams(kind).door, capabilities={}), queue.Queue()
    one.follow(told, promptsListChanged=True, resourceSubscriptions=["test://watched-resource"])

    def wait_for(method):
        while (message := told.get(timeout=10))["method"] != method:
            pass
        return message["params"]

    until(lambda: one.call("test_touch", {"uri": "test://watched-resource"}) and not told.empty(), "the server was told what is watched", 10)
    assert wait_for("notifications/resources/updated")["uri"] == "test://watched-resource"
    before = "test_appearing" in one.names("prompts")
    one.call("test_trigger_prompt_change")
    wait_for("notifications/prompts/list_changed")
    assert ("test_appearing" in one.names("prompts")) != before


@pytest.mark.parametrize("kind", ["legacy-http", "legacy-stdio", "legacy-sse"])
def test_should_call_off_what_the_client_calls_off(upstreams, client, kind):
    door, name = upstreams(kind).door, unique("wait")
    one = client(Legacy, door, capabilities={})
    running = threading.Thread(target=lambda: pytest.raises(AssertionError, one.ask, "tools/call", {"name": "test_wait", "arguments": {"name": name}}))
    number = one.number + 1
    running.start()
    other = mcp_clients.Legacy(one.url, one.http.headers)
    other.session, other.number = one.session, 1_000
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}}
    # It may not have begun yet when it is called off for the first time.
    until(lambda: other.post(cancelled).status_code == 202 and name in json.loads(other.call("test_cancelled")[0]), "the server heard of it", every=0.1)
    running.join(10)
    # A client of the newest version leaves.
    late, name = client(Modern, door, capabilities={}), unique("wait")
    body = late.body("tools/call", {"name": "test_wait", "arguments": {"name": name}})
    with pytest.raises(mcp_clients.httpx2.ReadTimeout):
        late.http.post(late.url, json=body, headers=late.headers("tools/call", body["params"]), timeout=1)
    until(lambda: name in json.loads(one.call("test_cancelled")[0]), "the server heard of it")
    other.close()


def test_should_ask_only_who_can_be_asked(upstreams, client):
    for kind in KINDS:
        for era in (Oldest, Legacy, Modern):
            mute = client(era, upstreams(kind).door, capabilities={}, answers=lambda *_: pytest.fail("it was asked"))
            answer, _ = mute.ask("tools/call", {"name": "test_elicitation", "arguments": {"message": "Who?"}})
            said = json.dumps(answer)
            assert "cannot be asked" in said, said
    answer, _ = client(Modern, upstreams("modern-http").door, capabilities={}).ask("tools/call", {"name": "test_missing_capability", "arguments": {}})
    assert answer["error"]["code"] == -32021 and answer["error"]["data"]["requiredCapabilities"] == {"sampling": {}}


def test_should_tell_contents_that_a_version_does_not_know_as_text(upstreams, client):
    door = upstreams("legacy-http").door
    content = lambda era, tool: client(era, door).ask("tools/call", {"name": tool, "arguments": {}})[0]["result"]["content"][0]  # noqa: E731
    assert content(Legacy, "test_resource_link")["type"] == "resource_link"
    assert content(Oldest, "test_resource_link") == {"type": "text", "text": "[a link](test://static-text)"}
    assert content(Legacy, "test_audio_content")["type"] == "audio"
    assert "left out" in content(Oldest, "test_audio_content")["text"]


# What a server knows of its client


def test_should_give_each_session_a_connection_of_its_own_and_others_share_one(upstreams, client):
    door = upstreams("legacy-stdio").door
    first, second = client(Legacy, door), client(Legacy, door)
    assert [first.call("test_count")[0] for _ in range(3)] == ["1", "2", "3"]
    assert second.call("test_count")[0] == "1", "nobody sees another session's state"
    mute = client(Legacy, door, capabilities={})
    shared = int(mute.call("test_count")[0])
    assert int(client(Legacy, door, capabilities={}).call("test_count")[0]) == shared + 1


def test_should_open_a_new_session_with_a_server_that_forgot_it_without_the_client_noticing(upstreams, client):
    upstream = upstreams("legacy-http")
    able, mute = client(Legacy, upstream.door), client(Legacy, upstream.door, capabilities={})
    for one in (able, mute):
        assert one.call("test_simple_text")[0]
    mcp_clients.httpx2.delete(f"http://127.0.0.1:{upstream.ports[0]}/mcp", headers={"Mcp-Session-Id": "all"}, trust_env=False)
    for one in (able, mute):
        assert one.call("test_simple_text")[0] == "This is a simple text response for testing."
    assert able.call("test_sampling", {"prompt": "Capital?"})[0] == "LLM response: Paris"
    assert upstream.shown()["status"] == "ready"


def test_should_end_a_session_and_keep_it_from_others(keiko, admin, upstreams, client):
    door = upstreams("legacy-http").door
    one = client(Legacy, door)
    ping = {"jsonrpc": "2.0", "id": 9, "method": "ping"}
    post = lambda headers, path=door: mcp_clients.httpx2.post(f"{keiko.url}/mcp/{path}", json=ping, headers={**headers, **mcp_clients.STREAM, **one.session}, trust_env=False)  # noqa: E731
    assert post(admin.headers).json()["result"] == {}
    other = keiko.user(admin, ["developer"])
    assert post(other.headers).status_code == 404, "a session is its caller's"
    assert post(admin.headers, upstreams("modern-http").door).status_code == 404, "and of its door"
    mixed = {**one.session, "Mcp-Session-Id": one.session["Mcp-Session-Id"][:-4] + "AAAA"}
    assert mcp_clients.httpx2.post(one.url, json=ping, headers={**admin.headers, **mixed}, trust_env=False).status_code == 404
    assert mcp_clients.httpx2.delete(one.url, headers={**admin.headers, **one.session}, trust_env=False).status_code == 204
    assert post(admin.headers).status_code == 404


def test_should_keep_stateless_clients_over_a_restart_and_tell_others_to_begin_again(new_keiko):
    server = new_keiko(env=KEIKO_ENV).start()
    admin = server.login()
    key = done(admin.post("/api-keys", {"name": "k"}), 201)["attributes"]["key"]
    upstream = Upstream(admin, SERVER, "legacy-stdio")
    urls = f"{server.url}/mcp/{upstream.door}", {"X-API-Key": key}
    with Legacy(*urls) as able, Legacy(*urls, capabilities={}) as mute, Modern(*urls) as modern:
        for one in (able, mute, modern):
            assert one.call("test_simple_text")[0]
        server.kill()
        server.restart(same_port=True)
        admin = server.login()
        until(lambda: done(admin.get(f"/mcp-servers/{upstream.name}"))["attributes"]["status"] == "ready", "it is back", 20)
        assert mute.call("test_simple_text")[0] and modern.call("test_sampling", {"prompt": "?"})[0] == "LLM response: Paris"
        # Where there may be other replicas, the process that is gone counts as there until its lease is over.
        again = lambda: json.dumps(able.ask("tools/call", {"name": "test_simple_text", "arguments": {}})[0])  # noqa: E731
        until(lambda: "Begin again" in again(), "it is told", 40)
        assert able.begin().call("test_sampling", {"prompt": "?"})[0] == "LLM response: Paris"


def test_should_accept_a_state_only_from_its_caller_for_its_request(keiko, admin, upstreams, client):
    other = keiko.user(admin, ["developer"])
    for kind in ("modern-http", "legacy-http"):
        door, tool = upstreams(kind).door, "test_input_required_result_request_state"
        one, thief = client(Modern, door), client(Modern, door, by=other)
        first = one.once("tools/call", {"name": tool, "arguments": {}})[0]["result"]
        answers = {key: {"action": "accept", "content": {"ok": True}} for key in first["inputRequests"]}
        again = {"inputResponses": answers, "requestState": first["requestState"]}
        for who, wrong in [(thief, {}), (one, {"name": "test_input_required_result_tampered_state"}), (one, {"arguments": {"a": 1}}), (one, {"requestState": first["requestState"][:-2] + "AA"}), (one, {"requestState": "nonsense"})]:
            error = who.once("tools/call", {"name": tool, "arguments": {}, **again, **wrong})[0]["error"]
            assert error["code"] == -32602 and "requestState" in error["message"], error
        assert "state-ok" in json.dumps(one.once("tools/call", {"name": tool, "arguments": {}, **again})[0]["result"])


# Many servers at one door


def test_should_serve_what_is_known_of_a_server_that_is_gone(keiko, admin, client):
    well, gone = Upstream(admin, SERVER, "legacy-stdio"), Upstream(admin, SERVER, "legacy-http")
    door = unique("both")
    members = [{"server": well.name, "tools": ["test_simple_text"]}, {"server": gone.name, "tools": ["test_simple_text"]}]
    made = done(admin.post("/virtual-servers", {"name": door, "members": members}), 201)["attributes"]
    assert made["path"] == f"/mcp/{door}"
    one = client(Modern, door)
    names = one.names()
    assert names == sorted([f"{well.name}__test_simple_text", f"{gone.name}__test_simple_text"])
    prompts = one.names("prompts")
    gone.processes[0].kill()
    assert one.once("tools/call", {"name": f"{gone.name}__test_simple_text", "arguments": {}})[0]["result"]["isError"]
    until(lambda: gone.shown()["status"] == "failed", "it is seen")
    begun = time.monotonic()
    answer = one.once("tools/list", {})[0]["result"]
    assert time.monotonic() - begun < 1 and [tool["name"] for tool in answer["tools"]] == names and one.names("prompts") == prompts
    away = answer["_meta"]["keiko/unavailable"]
    assert [(a["server"], a["status"]) for a in away] == [(gone.name, "failed")] and "reach" in away[0]["reason"]
    assert one.call(f"{well.name}__test_simple_text")[0] == "This is a simple text response for testing."
    error = json.dumps(one.once("tools/call", {"name": f"{gone.name}__test_simple_text", "arguments": {}})[0]["result"])
    assert "TOOL_UNAVAILABLE" in error and "reach" in error, "it says why"
    well.close()
    gone.close()


def test_should_name_offers_in_a_stable_way(admin, upstreams, client):
    first, second = upstreams("legacy-stdio"), upstreams("modern-stdio")
    door = unique("mixed")
    members = [{"server": first.name, "prefix": "", "tools": ["test_count"]}, {"server": second.name, "prefix": "", "tools": ["test_count", "test_wait"], "prompts": False}]
    done(admin.post("/virtual-servers", {"name": door, "members": members}), 201)
    one = client(Modern, door)
    assert one.names() == sorted(["test_count", "test_wait", f"{second.name}__test_count"])
    uris = [r["uri"] for r in one.ask("resources/list", {})[0]["result"]["resources"]]
    assert "test://static-text" in uris and f"mcp+{second.name}:test://static-text" in uris
    for uri in ("test://static-text", f"mcp+{second.name}:test://static-text"):
        assert "static text" in one.ask("resources/read", {"uri": uri})[0]["result"]["contents"][0]["text"]
    assert one.names("prompts").count("test_simple_prompt") == 1
    # Turned around, the other one keeps the name.
    told = queue.Queue()
    one.follow(told, toolsListChanged=True)
    done(admin.put(f"/virtual-servers/{door}", {"name": door, "members": members[::-1]}))
    assert told.get(timeout=10)["method"] == "notifications/tools/list_changed"
    assert f"{first.name}__test_count" in one.names()
    assert admin.delete(f"/virtual-servers/{door}").status_code == 204
    assert one.once("tools/list", {})[0]["error"]["code"] == "VIRTUAL_SERVER_NOT_FOUND"


def test_should_let_in_only_those_whom_a_virtual_server_is_for(keiko, admin, upstreams, client):
    upstream = upstreams("legacy-stdio")
    done(admin.post("/roles", {"name": "mcp-user", "permissions": ["virtual-servers.use"]}), 201)
    done(admin.post("/roles", {"name": "one-tool", "permissions": [f"tools.call.{upstream.name}.test_simple_text".lower().replace("_", "_")]}), 201)
    user, stranger, single, agent = keiko.user(admin, ["mcp-user"]), keiko.user(admin, ["developer"]), keiko.user(admin, ["one-tool"]), keiko.agent(admin, unique("cap"))
    door = unique("closed")
    body = {"name": door, "members": [{"server": upstream.name, "prefix": ""}], "allowed": [f"user:{user.id}", "role:one-tool", f"agent:{agent.id}"]}
    done(admin.post("/virtual-servers", body), 201)
    assert client(Modern, door, by=user).call("test_simple_text")[0] and client(Modern, door, by=agent.api).call("test_simple_text")[0]
    assert client(Modern, door, by=stranger).once("tools/list", {})[0]["error"]["code"] == "VIRTUAL_SERVER_NOT_FOUND", "who may not use it learns nothing"
    # A tool that is granted by itself, here and at the open door.
    assert client(Modern, door, by=single).names() == ["test_simple_text"]
    broken = unique("broken")
    done(admin.post("/mcp-servers", {"name": broken, "transport": {"type": "stdio", "command": "/no/such/program"}}), 201)
    away = lambda by: json.dumps(client(Modern, "", by=by).once("tools/list", {})[0]["result"]["_meta"].get("keiko/unavailable", []))  # noqa: E731
    until(lambda: "/no/such/program" in away(admin), "an administrator sees why")
    assert broken in away(stranger) and "/no/such/program" not in away(stranger), "a developer sees that"
    assert broken not in away(single) and broken not in away(user), "others see nothing of what they may not use"
    admin.delete(f"/mcp-servers/{broken}")
    assert client(Modern, door, by=single).call("test_simple_text")[0]
    refusal = client(Modern, door, by=single).once("tools/call", {"name": "test_wait", "arguments": {}})[0]["result"]
    assert refusal["isError"] and "PERMISSION_DENIED" in json.dumps(refusal)
    all_ = client(Modern, "", by=user)
    assert not [name for name in all_.names() if name.startswith(upstream.name)], "the open door needs tools.call"
    boss = keiko.tenant(admin)
    assert client(Modern, door, by=boss).once("tools/list", {})[0]["error"]["code"] == "VIRTUAL_SERVER_NOT_FOUND"
    refused(boss.get(f"/virtual-servers/{door}"), 404, "VIRTUAL_SERVER_NOT_FOUND")


def test_should_refuse_bad_descriptions_of_virtual_servers(admin, upstreams):
    upstream = upstreams("legacy-stdio")
    member = {"server": upstream.name}
    for wrong, pointer in [
        ({"members": [{"server": "nobody"}]}, "/members/0/server"), ({"members": [member, member]}, "/members/1/server"),
        ({"members": [{**member, "prefix": "a__b"}]}, "/members/0/prefix"),
    ]:  # fmt: skip
        error = refused(admin.post("/virtual-servers", {"name": unique("v"), **wrong}), 422, "RULE_VIOLATED")
        assert error["details"]["errors"][0]["pointer"] == pointer
    for wrong in ({"name": "a b"}, {"name": ""}, {"allowed": ["everybody"]}, {"members": "all"}, {"unknown": 1}):
        refused(admin.post("/virtual-servers", {"name": unique("v"), "members": [member], **wrong}), 400, "VALIDATION_FAILED")
    name = unique("v")
    done(admin.post("/virtual-servers", {"name": name, "members": [member]}), 201)
    refused(admin.post("/virtual-servers", {"name": name, "members": [member]}), 409)


def journal(admin):
    """Every call that is written down."""
    found, after = [], 0
    while page := done(admin.get("/journal", limit=500, after=after, **{"class": "tool_call"})):
        found, after = found + page, page[-1]["attributes"]["position"]
    return found


def test_should_record_what_went_through_the_door(keiko, admin, upstreams, client):
    one = client(Legacy, upstreams("legacy-http").door)
    one.call("test_sampling", {"prompt": "recorded-7f3a"})
    one.ask("resources/read", {"uri": "test://static-text"})
    one.ask("prompts/get", {"name": "test_simple_prompt"})
    found = lambda kind: [e for e in journal(admin) if e["attributes"]["kind"] == kind]  # noqa: E731
    until(lambda: "recorded-7f3a" in json.dumps(found("tools.call.finished")) and found("tools.resource.read") and found("tools.prompt.got"), "it is written down")


# What an attacker would try


def processes(word):
    """The processes whose command line holds a word."""
    found = [p for p in Path("/proc").iterdir() if p.name.isdigit()]
    return sum(word.encode() in (p / "cmdline").read_bytes() for p in found if (p / "cmdline").exists())


def odd(admin, folder, tools, start="well", **env):
    listed = folder / f"{unique('tools')}.json"
    listed.write_text(json.dumps([{"name": name, "description": name, "inputSchema": {"type": "object"}} for name in tools]))
    name = unique("odd").replace("-", "_")
    transport = {"type": "stdio", "command": sys.executable, "args": [str(HERE / "servers" / "odd.py"), str(listed), start], "env": env}
    done(admin.post("/mcp-servers", {"name": name, "transport": transport}), 201)
    until(lambda: done(admin.get(f"/mcp-servers/{name}"))["attributes"]["status"] == "ready", "it is ready")
    return name, listed


def test_should_leave_no_process_behind_of_clients_that_leave_at_once(keiko, admin, tmp_path, client):
    name, listed = odd(admin, tmp_path, ["echo"])
    one = client(Modern, "")
    for _ in range(12):
        body = one.body("tools/call", {"name": f"{name}__echo", "arguments": {"text": "x"}})
        try:
            one.http.post(one.url, json=body, headers=one.headers("tools/call", body["params"]), timeout=0.02)
        except mcp_clients.httpx2.TimeoutException:
            pass
    assert one.call(f"{name}__echo", {"text": "still there"})[0] == "still there"
    until(lambda: processes(str(listed)) <= 3, f"{processes(str(listed))} processes are left")
    admin.delete(f"/mcp-servers/{name}")
    until(lambda: processes(str(listed)) == 0, "nothing is left of it")


def test_should_hold_every_connection_against_what_was_approved(admin, tmp_path, client):
    name, listed = odd(admin, tmp_path, ["echo"])
    able, mute = client(Modern, ""), client(Modern, "", capabilities={})
    assert able.call(f"{name}__echo", {"text": "a"})[0] == "a"
    # The next process is another version of the server, and says nothing of it.
    listed.write_text(listed.read_text().replace('"description": "echo"', '"description": "now it does something else"'))
    other = client(Legacy, "")
    refusal = other.ask("tools/call", {"name": f"{name}__echo", "arguments": {"text": "b"}})[0]["result"]
    assert refusal["isError"] and "TOOL_NOT_APPROVED" in json.dumps(refusal)
    assert mute.call(f"{name}__echo", {"text": "c"})[0] == "c", "the process that was approved goes on"


def test_should_pass_no_forged_question_on(admin, tmp_path, client):
    name, _ = odd(admin, tmp_path, ["forge"])
    for capabilities in ({}, None):
        answer = client(Modern, "", capabilities=capabilities).once("tools/call", {"name": f"{name}__forge", "arguments": {}})[0]["result"]
        assert answer["resultType"] == "complete" and answer["isError"] and "TOOL_ANSWER_UNUSABLE" in json.dumps(answer)


def test_should_show_no_secret_of_a_server_whose_further_process_fails(admin, tmp_path, client):
    name, listed = odd(admin, tmp_path, ["echo"], TOKEN="canary-9c1f")
    listed.unlink()
    answer = json.dumps(client(Modern, "").once("tools/call", {"name": f"{name}__echo", "arguments": {"text": "x"}})[0])
    assert "TOOL_UNAVAILABLE" in answer and "canary-9c1f" not in answer


def test_should_tell_nothing_more_to_whoever_lost_the_right(keiko, admin, upstreams, client):
    upstream = upstreams("legacy-stdio")
    for era in (Legacy, Modern):
        made = done(admin.post("/api-keys", {"name": unique("key")}), 201)
        key = keiko.client(api_key=made["attributes"]["key"])
        told, trigger = queue.Queue(), client(Modern, upstream.door, capabilities={})
        client(era, upstream.door, by=key, capabilities={}).follow(told, promptsListChanged=True)
        trigger.call("test_trigger_prompt_change")
        assert "prompts/list_changed" in told.get(timeout=10)["method"]
        admin.delete(f"/api-keys/{made['id']}")
        time.sleep(1.2)
        while not told.empty():
            told.get()
        trigger.call("test_trigger_prompt_change")
        time.sleep(1.5)
        said = [message for message in list(told.queue) if "method" in message]
        assert not said, f"{era}: {said}"


def test_should_write_down_calls_whose_client_left(admin, upstreams, client):
    name = unique("left")
    late = client(Modern, upstreams("legacy-http").door, capabilities={})
    body = late.body("tools/call", {"name": "test_wait", "arguments": {"name": name}})
    with pytest.raises(mcp_clients.httpx2.TimeoutException):
        late.http.post(late.url, json=body, headers=late.headers("tools/call", body["params"]), timeout=1)
    entry = until(lambda: [e for e in journal(admin) if name in json.dumps(e)], "it is written down")
    assert entry[0]["attributes"]["kind"] == "tools.call.failed" and entry[0]["attributes"]["data"]["error"]["code"] == "ABANDONED"


def test_should_keep_places_for_others(keiko, admin, upstreams, client):
    door = upstreams("legacy-stdio").door
    greedy, other = client(Modern, door), client(Modern, door, by=keiko.user(admin, ["developer"]))
    results = [greedy.once("tools/call", {"name": "test_elicitation", "arguments": {"message": str(n)}})[0]["result"] for n in range(12)]
    assert not [r for r in results if r.get("resultType") != "input_required"]
    again = lambda r: greedy.once("tools/call", {"name": "test_elicitation", "arguments": {"message": r[0]}, "requestState": r[1]["requestState"], "inputResponses": {key: {"action": "decline"} for key in r[1]["inputRequests"]}})[0]  # noqa: E731
    assert "gone" in json.dumps(again(("0", results[0]))) or "ended" in json.dumps(again(("0", results[0])))
    assert "decline" in json.dumps(again(("11", results[11]))), "the latest ones wait"
    assert other.call("test_elicitation", {"message": "Who?"})[0].startswith("User response")


# Over standard streams


def connect(keiko, key, door, messages):
    """What `keiko mcp connect` answers to these messages, by their ids, and everything else."""
    env = clean_env(keiko.home, {"KEIKO_SERVER": keiko.url, "KEIKO_API_KEY": key})
    ran = subprocess.run([binary(), "mcp", "connect", *(["--door", door] if door else [])], input="".join(json.dumps(m) + "\n" for m in messages), capture_output=True, text=True, env=env, timeout=30)
    assert ran.returncode == 0, ran.stderr
    said = [json.loads(line) for line in ran.stdout.splitlines()]
    return {m["id"]: m for m in said if "id" in m and "method" not in m}, [m for m in said if "method" in m]


def test_should_manage_servers_tools_and_virtual_servers_from_the_command_line(keiko, admin, tmp_path):
    key = done(admin.post("/api-keys", {"name": unique("key")}), 201)["attributes"]["key"]
    env = clean_env(keiko.home, {"KEIKO_SERVER": keiko.url, "KEIKO_API_KEY": key})

    def run(*args, code=0):
        ran = subprocess.run([binary(), "mcp", *args, *([] if "--output" in args else ["--output", "json"])], capture_output=True, text=True, env=env, timeout=60)
        assert ran.returncode == code, ran.stdout + ran.stderr
        return json.loads(ran.stdout) if code == 0 and ran.stdout.startswith(("{", "[")) else ran.stdout + ran.stderr

    listed, name, door = tmp_path / "tools.json", unique("cli").replace("-", "_"), unique("door")
    strict = {"type": "object", "properties": {"text": {"type": "string"}}}
    listed.write_text(json.dumps([*({"name": tool, "inputSchema": {"type": "object"}} for tool in ("echo", "wait", "fail")), {"name": "strict", "inputSchema": strict}]))
    command = [sys.executable, str(HERE / "servers" / "odd.py"), str(listed), "well"]
    assert run("servers", "add", name, "--env", "TOKEN=secret-5d1c", "--output", "json", "--", *command)["attributes"]["status"] == "starting"
    shown = until(lambda: (s := run("servers", "get", name)) and s["attributes"]["status"] == "ready" and s, "it is ready")
    assert shown["attributes"]["transport"]["env"] == ["TOKEN"] and "secret-5d1c" not in json.dumps(run("servers", "list"))
    assert run("tools", "list", name, "echo")[0]["attributes"]["name"] == f"{name}__echo"
    assert run("tools", "call", f"{name}__echo", '{"text": "hi"}')["attributes"]["content"][0]["text"] == "hi"
    assert "no JSON object" in run("tools", "call", f"{name}__echo", "[1]", code=1)
    assert "TOOL_TIMEOUT" in run("tools", "call", f"{name}__wait", '{"s": 3}', "--timeout", "1", code=1)
    assert "TOOL_NOT_FOUND" in run("tools", "call", "no__such", code=1)
    assert "it did not work" in (said := run("tools", "call", f"{name}__fail", code=1)) and "The tool says that it failed." in said
    assert "/arguments/text" in run("tools", "call", f"{name}__strict", '{"text": 7}', code=1)
    made = run("virtual", "create", door, "--member", f"{name}=echo", "--bare", "--allow", "role:developer")
    assert made["attributes"]["allowed"] == ["role:developer"] and made["attributes"]["members"][0]["tools"] == ["echo"]
    assert "--everybody" in run("virtual", "set", door, "--member", name, code=1), "it is not opened by leaving something out"
    assert run("virtual", "set", door, "--member", name, "--everybody")["attributes"]["allowed"] == []
    assert any(v["attributes"]["name"] == door for v in run("virtual", "list", "--all"))
    run("virtual", "delete", door)
    run("servers", "delete", name)
    assert "MCP_SERVER_NOT_FOUND" in run("servers", "get", name, code=1)


@pytest.mark.parametrize("kind", ["legacy-http", "modern-http"])
def test_should_serve_a_client_over_standard_streams_in_both_eras(keiko, admin, upstreams, kind):
    key = done(admin.post("/api-keys", {"name": unique("key")}), 201)["attributes"]["key"]
    door = upstreams(kind).door
    own = {META + "protocolVersion": "2026-07-28", META + "clientCapabilities": {}}
    call = lambda number, name, arguments, **meta: {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": name, "arguments": arguments, "_meta": {**own, **meta}}}  # noqa: E731
    answers, told = connect(keiko, key, door, [
        {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": own}},
        call(2, "test_tool_with_progress", {}, progressToken="p"),
        # Nobody told the client which arguments are said in headers, too.
        call(3, "test_custom_headers", {"region": "eu", "n": 7}),
        call(4, "no_such_tool", {}),
    ])  # fmt: skip
    assert answers[1]["result"]["supportedVersions"] and [m["params"]["progress"] for m in told] == [0, 50, 100]
    assert answers[4]["error"]["code"] == -32602
    if kind == "modern-http":
        headers = json.loads(answers[3]["result"]["content"][0]["text"])
        assert headers["mcp-param-region"] == "eu" and headers["mcp-param-n"] == "7" and headers["mcp-name"] == "test_custom_headers"
    refused_, _ = connect(keiko, "kk_default_nonsense", door, [{"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": own}}])
    assert "KEY_INVALID" in refused_[1]["error"]["message"] or "key" in refused_[1]["error"]["message"].lower()

    async def official():
        env = clean_env(keiko.home, {"KEIKO_SERVER": keiko.url, "KEIKO_API_KEY": key})
        server = StdioServerParameters(command=str(binary()), args=["mcp", "connect", "--door", door], env=env)

        async def elicited(context, params):
            return ElicitResult(action="accept", content={"username": "ada", "email": "a@b"})

        async with OfficialClient(stdio_client(server), elicitation_callback=elicited) as client:
            assert "test_simple_text" in {tool.name for tool in (await client.list_tools()).tools}
            said = await client.call_tool("test_elicitation", {"message": "Who?"})
            assert "ada" in said.content[0].text
            assert (await client.get_prompt("test_simple_prompt")).messages

    asyncio.run(official())


# Bad input


@pytest.mark.parametrize("body, status, code", [
    ("{", 400, -32700), ('{"a":' * 100, 400, -32700), ("[]", 400, -32600), ("7", 400, -32600), ('{"jsonrpc":"2.0","id":{},"method":"ping"}', 400, -32600),
    ('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":[]}', 400, -32602), ('{"jsonrpc":"2.0","id":1,"method":"no/such"}', 200, -32601),
    ('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":7}}', 400, -32602),
    ('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":[]}}', 200, -32602),
])  # fmt: skip
def test_should_refuse_what_is_no_message(keiko, admin, body, status, code):
    headers = {**admin.headers, **mcp_clients.STREAM, "Content-Type": "application/json"}
    answer = mcp_clients.httpx2.post(f"{keiko.url}/mcp", content=body, headers=headers, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


@pytest.mark.parametrize("change, code", [
    ({"MCP-Protocol-Version": "1999-01-01"}, -32020), ({"Mcp-Method": "tools/list"}, -32020), ({"Mcp-Name": "other"}, -32020),
    ({"Mcp-Name": "=?base64?dGVzdF9zaW1wbGVfdGV4dA==?="}, None), ({"Mcp-Name": "=?base64?!!?="}, -32020),
])  # fmt: skip
def test_should_hold_headers_against_the_body(upstreams, client, change, code):
    one = client(Modern, upstreams("legacy-stdio").door)
    params = {"name": "test_simple_text", "arguments": {}}
    answer = one.http.post(one.url, json=one.body("tools/call", params), headers={**one.headers("tools/call", params), **change})
    assert answer.json().get("error", {}).get("code") == code and answer.status_code == (400 if code else 200)


def test_should_name_the_versions_that_it_speaks(keiko, admin, client):
    headers = {**admin.headers, **mcp_clients.STREAM, "MCP-Protocol-Version": "1999-01-01"}
    answer = mcp_clients.httpx2.post(f"{keiko.url}/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, headers=headers, trust_env=False)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == -32022
    assert answer.json()["error"]["data"] == {"requested": "1999-01-01", "supported": ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"]}
    found = client(Modern, "").once("server/discover", {})[0]["result"]
    assert found["supportedVersions"][0] == "2026-07-28" and found["_meta"][META + "serverInfo"]["name"] == "keiko"


def test_should_answer_batches_in_the_version_that_has_them(upstreams, client):
    one = client(Legacy, upstreams("legacy-stdio").door)
    assert one.post([{"jsonrpc": "2.0", "id": 1, "method": "ping"}]).status_code == 400
    one.version = "2025-03-26"
    one.begin()
    answers = one.post([{"jsonrpc": "2.0", "id": 1, "method": "ping"}, {"jsonrpc": "2.0", "method": "notifications/x"}, {"jsonrpc": "2.0", "id": "b", "method": "nope"}]).json()
    assert [a["id"] for a in answers] == [1, "b"] and answers[0]["result"] == {} and answers[1]["error"]["code"] == -32601
