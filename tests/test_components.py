"""Health with dependencies: what is outside is looked at, what follows for whom is worked out, and flapping is damped."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness import absent, command, done, free_port, refused, tool_server, unique, until

KEIKO_ENV = {"KEIKO_GATEWAY_ALLOW_PRIVATE": "true", "KEIKO_AGENT_LEASE": "2s"}
SOON = {"every_ms": 1_000, "timeout_ms": 300, "failures": 1, "successes": 1}


class Outside:
    """Something that answers, or does not: `answer` is what an HTTP GET gets; over plain TCP it says `says`."""

    def __init__(self, says=None):
        self.answer, self.asked = 200, 0
        if says is None:
            outside = self

            class Handler(BaseHTTPRequestHandler):
                def log_message(self, *_):
                    pass

                def do_GET(self):
                    outside.asked += 1
                    if outside.answer == "hang":
                        time.sleep(2)
                    self.send_response(outside.answer if outside.answer != "hang" else 200)
                    self.send_header("location", "http://127.0.0.1:1/")
                    self.send_header("content-length", "0")
                    self.end_headers()

            ThreadingHTTPServer.daemon_threads = True
            self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            self.port = self.server.server_port
            threading.Thread(target=self.server.serve_forever, daemon=True).start()
        else:
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.port, self.heard = self.listener.getsockname()[1], []
            threading.Thread(target=self.speak, args=(says,), daemon=True).start()

    def speak(self, says):
        while True:
            taken, _ = self.listener.accept()
            self.heard.append(taken.recv(64))
            taken.sendall(says)
            taken.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/health"

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"


def add(admin, subject, *needs, name=None, likes=()):
    name = name or unique("c")
    wanted = [{"component": need} for need in needs] + [{"component": like, "is_required": False} for like in likes]
    made = done(admin.post("/components", {"name": name, "subject": subject, "needs": wanted}), 201)
    assert made["type"] == "component" and made["attributes"]["status"] == "unknown"
    return name


def probe(kind, where, **more):
    return {"type": "probe", "probe": {"type": kind, ("url" if kind == "http" else "address"): where}, **SOON, **more}


GROUP = {"type": "group"}


def get(admin, name):
    return done(admin.get(f"/components/{name}"))["attributes"]


def becomes(admin, name, status, cause=None, timeout=8):
    def is_so():
        shown = get(admin, name)
        because = shown["cause"] and shown["cause"]["component"]
        return shown["status"] == status and because == cause and shown

    return until(is_so, f"{name} is {status} because of {cause}", timeout=timeout)


def changes(admin, name):
    component = done(admin.get(f"/components/{name}"))["id"]
    return [event["data"]["status"] for event in admin.events(stream=component) if event["type"] == "registry.component.health_changed"]


# What is outside


@pytest.mark.parametrize("answer, reason", [(503, "HTTP 503"), (302, "HTTP 302"), ("hang", "300 ms")])
def test_should_look_at_http_and_say_what_is_wrong(admin, answer, reason):
    outside = Outside()
    name = add(admin, probe("http", outside.url))
    becomes(admin, name, "up")
    outside.answer = answer
    assert reason in becomes(admin, name, "down", name)["cause"]["reason"]
    outside.answer = 200
    becomes(admin, name, "up")
    assert changes(admin, name) == ["up", "down", "up"]


def test_should_say_that_nobody_listens(admin):
    name = add(admin, probe("tcp", f"127.0.0.1:{free_port()}"))
    assert "refused" in becomes(admin, name, "down", name)["cause"]["reason"]


@pytest.mark.parametrize("kind, says, status", [
    ("tcp", b"", "up"), ("redis", b"+PONG\r\n", "up"), ("redis", b"-NOAUTH Authentication required.\r\n", "up"), ("redis", b"HTTP/1.1 400 Bad\r\n", "down"),
    ("postgres", b"N", "up"), ("postgres", b"S", "up"), ("postgres", b"E", "down"),
])  # fmt: skip
def test_should_ask_in_the_words_of_what_is_outside(admin, kind, says, status):
    outside = Outside(says)
    name = add(admin, probe(kind, outside.address))
    becomes(admin, name, status, name if status == "down" else None)
    heard = outside.heard[0]
    assert heard == {"tcp": b"", "redis": b"PING\r\n", "postgres": bytes([0, 0, 0, 8, 4, 210, 22, 47])}[kind]


def test_should_look_at_a_real_database(admin, backend):
    if backend != "postgres":
        pytest.skip("there is one when the tests run on PostgreSQL")
    import postgres

    server = postgres.shared()
    name = add(admin, probe("postgres", f"127.0.0.1:{server.port}"))
    becomes(admin, name, "up")


def test_should_wait_for_more_than_one_failure(admin):
    outside = Outside()
    name = add(admin, probe("http", outside.url, failures=3, successes=2))
    becomes(admin, name, "up")
    asked, outside.answer = outside.asked, 500
    becomes(admin, name, "down", name)
    assert outside.asked - asked >= 3
    asked, outside.answer = outside.asked, 200
    becomes(admin, name, "up")
    assert outside.asked - asked >= 2
    assert changes(admin, name) == ["up", "down", "up"]


# What follows


def test_should_name_where_trouble_began(admin):
    outside = Outside()
    database = add(admin, probe("http", outside.url))
    api = add(admin, GROUP, database)
    shop = add(admin, GROUP, api)
    report = add(admin, GROUP, likes=[api])
    apart = add(admin, GROUP)
    for name in (database, api, shop, report, apart):
        becomes(admin, name, "up")
    outside.answer = 500
    for name, status in ((database, "down"), (api, "down"), (shop, "down"), (report, "degraded")):
        shown = becomes(admin, name, status, database)
        assert "HTTP 500" in shown["cause"]["reason"]
    assert get(admin, apart)["status"] == "up"
    down = {item["attributes"]["name"] for item in done(admin.get("/components", limit=500, **{"filter[status]": "down"}))}
    assert {database, api, shop} <= down and report not in down
    outside.answer = 200
    for name in (database, api, shop, report):
        becomes(admin, name, "up")


def test_should_say_who_is_hit_before_it_happens(admin, tmp_path):
    database = add(admin, probe("tcp", f"127.0.0.1:{free_port()}"))
    server = tool_server(admin, tmp_path)[1].split("__")[0]
    search = add(admin, {"type": "mcp_server", "mcp_server": server}, database)
    report = add(admin, GROUP, likes=[search])
    impact = done(admin.get(f"/components/{database}/impact"))
    assert impact["type"] == "component_impact"
    hit = {entry["component"]: entry["goes_down"] for entry in impact["attributes"]["components"]}
    assert hit == {search: True, report: False}
    assert impact["attributes"]["mcp_servers"] == [server]
    assert impact["attributes"]["tools"] and all(tool.startswith(f"{server}__") for tool in impact["attributes"]["tools"])


def test_should_bear_circles(admin):
    outside = Outside()
    database = add(admin, probe("http", outside.url))
    first = add(admin, GROUP)
    second = add(admin, GROUP, first)
    body = {"name": first, "subject": GROUP, "needs": [{"component": second}, {"component": database}]}
    done(admin.put(f"/components/{first}", body))
    becomes(admin, first, "up")
    outside.answer = 500
    becomes(admin, first, "down", database)
    becomes(admin, second, "down", database)
    outside.answer = 200
    becomes(admin, first, "up")
    becomes(admin, second, "up")


def test_should_follow_agents_by_their_heartbeats(keiko, admin):
    agent = keiko.agent(admin, unique("cap"))
    name = add(admin, {"type": "agent", "agent": agent.id})
    fleet = add(admin, GROUP, name)
    agent.heartbeat()
    becomes(admin, fleet, "up")
    shown = becomes(admin, fleet, "down", name)
    assert "heartbeats" in shown["cause"]["reason"]
    agent.heartbeat()
    becomes(admin, fleet, "up")
    admin.delete(f"/agents/{agent.id}")
    assert "not registered" in becomes(admin, name, "down", name)["cause"]["reason"]


def test_should_learn_from_calls_that_a_server_is_in_trouble(admin, tmp_path):
    server = tool_server(admin, tmp_path)[1].split("__")[0]
    name = add(admin, {"type": "mcp_server", "mcp_server": server})
    becomes(admin, name, "up")
    admin.delete(f"/mcp-servers/{server}")
    becomes(admin, name, "down", name)


def test_should_damp_what_changes_all_the_time(admin):
    outside = Outside()
    name = add(admin, probe("http", outside.url))
    above = add(admin, GROUP, name)
    becomes(admin, name, "up")
    for _ in range(8):
        outside.answer = 500 if outside.answer == 200 else 200
        asked = outside.asked
        until(lambda: outside.asked > asked, "it was looked at")
        time.sleep(0.5)
    until(lambda: get(admin, name)["is_flapping"], "it is flapping")
    assert "again and again" in becomes(admin, name, "degraded", name)["cause"]["reason"]
    becomes(admin, above, "degraded", name)
    told = len(changes(admin, name)) + len(changes(admin, above))
    for _ in range(3):
        outside.answer = 500 if outside.answer == 200 else 200
        asked = outside.asked
        until(lambda: outside.asked > asked, "it was looked at")
    time.sleep(0.5)
    assert len(changes(admin, name)) + len(changes(admin, above)) == told, "nothing more is told of it"


# Life


def test_should_go_on_after_a_kill(new_keiko):
    keiko, outside = new_keiko(env=KEIKO_ENV).start(), Outside()
    admin = keiko.login()
    database = add(admin, probe("http", outside.url))
    api = add(admin, GROUP, database)
    outside.answer = 500
    since = becomes(admin, api, "down", database)["since"]
    keiko.kill()
    admin = keiko.start().login()
    assert get(admin, api)["status"] == "down" and get(admin, api)["since"] == since, "nothing is unknown again"
    outside.answer = 200
    becomes(admin, api, "up")
    assert changes(admin, api)[-2:] == ["down", "up"]


def test_should_forget_what_is_removed(admin):
    outside = Outside()
    outside.answer = 500
    database = add(admin, probe("http", outside.url))
    api = add(admin, GROUP, database)
    becomes(admin, api, "down", database)
    assert admin.delete(f"/components/{database}").status_code == 204
    becomes(admin, api, "up")
    assert get(admin, api)["needs"][0]["component"] is None
    asked = outside.asked
    time.sleep(2.2)
    assert outside.asked - asked <= 1, "nobody looks any more"
    refused(admin.get(f"/components/{database}"), 404, "COMPONENT_NOT_FOUND")


def test_should_show_how_things_were(admin):
    outside = Outside()
    name = add(admin, probe("http", outside.url))
    becomes(admin, name, "up")
    position = admin.events(stream=done(admin.get(f"/components/{name}"))["id"])[-1]["position"]
    outside.answer = 500
    becomes(admin, name, "down", name)
    assert done(admin.get(f"/components/{name}", at=position))["attributes"]["status"] == "up"


def test_should_keep_what_is_known_when_only_the_way_of_looking_changes(admin):
    outside = Outside()
    outside.answer = 500
    database = add(admin, probe("http", outside.url))
    api = add(admin, GROUP, database)
    becomes(admin, api, "down", database)
    done(admin.put(f"/components/{database}", {"name": database, "subject": probe("http", outside.url, failures=5, every_ms=2_000)}))
    assert get(admin, database)["status"] == "down"
    time.sleep(1)
    assert get(admin, api)["status"] == "down" and "up" not in changes(admin, api)[1:]


def test_should_say_nothing_new_of_a_server_that_is_started_again(admin, tmp_path):
    server = tool_server(admin, tmp_path)[1].split("__")[0]
    name = add(admin, {"type": "mcp_server", "mcp_server": server})
    becomes(admin, name, "up")
    done(admin.post(f"/mcp-servers/{server}/actions/restart", {}))
    until(lambda: done(admin.get(f"/mcp-servers/{server}"))["attributes"]["status"] == "ready", "it is back")
    time.sleep(0.6)
    assert changes(admin, name) == ["up"]


# Bad input


@pytest.mark.parametrize("subject, status", [
    ({"type": "probe", "probe": {"type": "http", "url": "file:///etc/passwd"}}, 422), ({"type": "probe", "probe": {"type": "tcp", "address": "nowhere"}}, 422),
    ({"type": "probe", "probe": {"type": "tcp", "address": "user@host:1"}}, 422), ({"type": "probe", "probe": {"type": "http", "url": "https://a.example/?token=x"}}, 422), ({"type": "probe", "probe": {"type": "ldap", "address": "a:1"}}, 400),
    ({"type": "probe", "probe": {"type": "tcp", "address": "a:1"}, "every_ms": 1}, 400), ({"type": "agent", "agent": absent("agent")}, 422),
    ({"type": "mcp_server", "mcp_server": "nobody"}, 422), ({"type": "group", "more": 1}, 400), ({}, 400),
])  # fmt: skip
def test_should_refuse_what_cannot_be_followed(admin, subject, status):
    refused(admin.post("/components", {"name": unique("c"), "subject": subject}), status)


def test_should_refuse_needs_that_make_no_sense(admin):
    name = add(admin, GROUP)
    other = add(admin, GROUP)
    refused(admin.post("/components", {"name": name, "subject": GROUP}), 409, "NAME_TAKEN")
    refused(admin.put(f"/components/{name}", {"name": name, "subject": GROUP, "needs": [{"component": name}]}), 422, "RULE_VIOLATED")
    refused(admin.put(f"/components/{name}", {"name": name, "subject": GROUP, "needs": [{"component": other}, {"component": other}]}), 422, "RULE_VIOLATED")
    refused(admin.put(f"/components/{name}", {"name": name, "subject": GROUP, "needs": [{"component": "nobody"}]}), 422, "RULE_VIOLATED")


def test_should_look_at_no_private_address(new_keiko):
    admin = new_keiko().start().login()
    for where in ("127.0.0.1:5432", "localhost:5432", "[::1]:5432", "169.254.169.254:80", "10.0.0.1:5432"):
        error = refused(admin.post("/components", {"name": unique("c"), "subject": probe("tcp", where)}), 422, "RULE_VIOLATED")
        assert "private" in error["message"]
    refused(admin.post("/components", {"name": unique("c"), "subject": probe("http", "http://127.0.0.1/")}), 422, "RULE_VIOLATED")


def test_should_keep_components_of_other_tenants_apart(keiko, admin):
    name = add(admin, GROUP)
    other = keiko.tenant(admin)
    refused(other.get(f"/components/{name}"), 404, "COMPONENT_NOT_FOUND")
    refused(other.get(f"/components/{name}/impact"), 404, "COMPONENT_NOT_FOUND")
    refused(other.post("/components", {"name": unique("c"), "subject": GROUP, "needs": [{"component": name}]}), 422, "RULE_VIOLATED")
    refused(keiko.user(admin, ["analyst"]).get("/components"), 403, "PERMISSION_DENIED")


def test_should_be_used_from_the_command_line(keiko, admin, tmp_path):
    outside, database, api = Outside(), unique("db"), unique("api")
    env = {"KEIKO_SERVER": keiko.client().base, "KEIKO_API_KEY": done(admin.post("/api-keys", {"name": unique("k"), "permissions": ["registry.*"]}), 201)["attributes"]["key"]}

    def run(*args):
        ran = command(tmp_path, "components", *args, "--output", "json", env=env)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout) if ran.stdout.strip().startswith(("{", "[")) else ran.stdout

    run("add", database, "--http", outside.url, "--every", "1", "--failures", "1", "--successes", "1")
    run("add", api, "--of-others", "--needs", database)
    becomes(admin, api, "up")
    outside.answer = 500
    becomes(admin, api, "down", database)
    assert api in json.dumps(run("list", "--status", "down"))
    assert api in json.dumps(run("impact", database))
    run("set", api, "--of-others", "--likes", database)
    becomes(admin, api, "degraded", database)
    run("delete", database)
    becomes(admin, api, "up")
