"""Every route × every role, against an oracle written down here from the table in `api.md`, not taken from the server."""

import pytest

from harness import absent, done, refused, submit, tool_server, unique

OPEN = {
    "/health", "/ready", "/openapi.json", "/docs", "/.well-known/jwks.json", "/api/v1/auth/login", "/api/v1/auth/refresh",
    # The authorization server: who asks is found out there, by its own rules (test_oauth.py).
    "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration", "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-protected-resource/mcp", "/oauth/authorize", "/oauth/token", "/oauth/device_authorization", "/oauth/device",
    "/oauth/revoke", "/oauth/introspect", "/oauth/connect/{id}", "/oauth/connect-back", "/oauth/connect-back/{id}", "/oauth/client.json", "/oauth/register", "/oauth/logout",
    # Who has no account yet, or no password any more: what a mail proves is found out there (test_mail.py).
    "/api/v1/auth/register", "/api/v1/auth/invitations/accept", "/api/v1/auth/password-resets", "/api/v1/auth/password-resets/confirm",
    "/api/v1/auth/email/confirm", "/.well-known/agent-card.json", "/account/register", "/account/join", "/account/reset", "/account/password", "/account/verify",
}
EVERYONE = ["discovery.read", "profile.*"]
ROLES = {
    "admin": ["*"],
    "ml-engineer": ["models.*", "inference.*", "training.*", "orchestrator.tasks.*", "memory.write"],
    "developer": [
        "orchestrator.*", "agents.*", "memory.*", "tasks.create", "tasks.read", "tasks.update",
        "registry.*", "discovery.read", "events.read", "workflows.*", "runs.*", "tools.call",
    ],
    "analyst": ["tasks.read", "memory.read", "stats.read", "metrics.*", "observability.*"],
    "user": ["tasks.create", "tasks.read:own", "agents.query", "memory.read:own"],
    "security-officer": ["audit.read", "audit.verify", "erasures.*", "transparency.*", "incidents.*"],
}
# What an agent may do is told in words in api.md; these are the words as permissions.
AGENT = [
    "discovery.read", "tools.call", "events.publish", "tasks.create", "tasks.claim", "tasks.work", "tasks.heartbeat", "tasks.finish",
    "tasks.read:own", "tasks.update:own", "agents.read:own", "agents.heartbeat:own", "agents.update:own", "memory.*:own", "audit.read:own",
]
# A permission that anyone who is logged in has: to ask who they are, to leave.
LOGGED_IN = {"authenticated", "self", "login"}


def grants(held, needed):
    """'all', 'own' or 'none': what one held permission says about a needed one. `orchestrator.tasks.X` is `tasks.X` by another name."""
    held, _, limit = held.partition(":")
    names = {needed}
    if needed.startswith("tasks."):
        names.add(f"orchestrator.{needed}")
    if needed.startswith("orchestrator.tasks."):
        names.add(needed.removeprefix("orchestrator."))
    matches = held == "*" or any(name == held or held.endswith(".*") and name.startswith(held[:-1]) for name in names)
    return (limit or "all") if matches else "none"


def allowed(permissions, needed):
    """'all', 'own' or 'none' for a whole list of permissions."""
    needed = needed.removesuffix(":own")
    if needed in LOGGED_IN:
        return "all"
    found = {grants(held, needed) for held in [*permissions, *EVERYONE]}
    return "all" if "all" in found else "own" if "own" in found else "none"


def routes(document, *methods):
    """(method, path, permission, operation) of every operation in the document."""
    for path, operations in sorted(document["paths"].items()):
        for method, operation in sorted(operations.items()):
            if method in ("get", "put", "post", "delete", "patch", "head") and (not methods or method in methods):
                assert "x-permission" in operation, f"{method} {path} declares no x-permission"
                yield method, path, operation["x-permission"], operation


@pytest.fixture(scope="module")
def things(keiko, admin, tmp_path_factory):
    """One thing of each kind, none of them owned by the callers of the matrix."""
    capability = unique("cap")
    worker = keiko.agent(admin, capability)
    task = worker.work(admin, capability)
    role = done(admin.post("/roles", {"name": unique("role"), "permissions": []}), 201)
    key = done(admin.post("/api-keys", {"name": unique("key"), "permissions": []}), 201)
    queue = unique("queue")
    done(admin.put(f"/queues/{queue}", {"paused": False}), 200, 201)
    server, tool = tool_server(admin, tmp_path_factory.mktemp("odd"))
    group = done(admin.post("/consumer-groups", {"name": unique("group")}), 201)
    client = done(admin.post("/clients", {"name": unique("client"), "redirect_uris": ["https://client.example/back"]}), 201)
    erasure = done(admin.post("/erasures", {"subject": keiko.user(admin, []).id}), 202)
    rebuild = done(admin.post("/views/agent_stats/actions/rebuild", {}), 202)
    mail = done(admin.post("/users/actions/invite", {"email": f"{unique('ada')}@example.com"}), 201)
    told = submit(admin, capability, delay_ms=3_600_000)
    hook = {"id": "mine", "url": "https://client.example/hook"}
    assert admin.post(f"/a2a/fleet/tasks/{told['id']}/pushNotificationConfigs", hook, headers={"A2A-Version": "1.0"}).status_code == 200
    virtual = done(admin.post("/virtual-servers", {"name": unique("door"), "members": [{"server": server}]}), 201)
    component = done(admin.post("/components", {"name": unique("component"), "subject": {"type": "group"}}), 201)
    elsewhere = {"name": unique("far").replace("-", ""), "transport": {"type": "http", "url": "https://tools.example/mcp"}}
    far = done(admin.post("/mcp-servers", elsewhere), 201)
    done(admin.put(f"/mcp-servers/{far['id']}/credentials/everybody", {"token": "x"}))
    return {
        "far": far["id"], "components": component["id"],
        "virtual-servers": virtual["id"], "mcp": virtual["id"], "sse": virtual["id"], "mails": mail["id"],
        "teams": done(admin.post("/teams", {"name": unique("team")}), 201)["id"], "clients": client["id"], "consumer-groups": group["id"], "erasures": erasure["id"], "rebuilds": rebuild["id"], "views": "agent_stats",
        # Registering the server wrote the journal's first entry.
        "mcp-servers": server, "tools": tool, "journal": "1",
        "agents": worker.id, "tasks": task["id"], "users": keiko.user(admin, []).id, "roles": role["id"], "api-keys": key["id"],
        "a2a": "fleet", "told": told["id"], "queues": queue, "tenants": "default", "capability": capability, "audit": "log", "events": "1",
    }


@pytest.fixture(scope="module")
def callers(keiko, admin, things):
    """One client per role, and one agent by its key."""
    clients = {role: keiko.user(admin, [role]) for role in ROLES}
    clients["agent"] = keiko.agent(admin, things["capability"]).api
    for client in clients.values():
        done(client.put(f"/mcp-servers/{things['far']}/credentials/me", {"token": "x"}))
    return clients


def filled(path, things):
    """The path with the id of a thing that exists."""
    if "{" not in path:
        return path + ("?from=1" if path.endswith("/diff") else "?subject=admin&action=tasks.read" if path.endswith("/explain") else "")
    kind = path.removeprefix("/api/v1").split("/")[1]
    if kind == "auth":
        return path.replace("{id}", absent("consent"))
    assert kind in things, f"{path}: this test does not know how to make one of '{kind}'; teach it"
    kind = "far" if "/credentials" in path else kind
    path = path.replace(path[path.index("{"): path.index("}") + 1], things[kind]).replace("{owner}", "everybody")
    if kind == "a2a":
        return path.replace("{task}", things["told"]).replace("{config}", "mine") + "?A2A-Version=1.0"
    needed = {"/inclusion": "?position=1", "/consistency": "?from=1"}
    return path.replace("{path}", "0/000.p/1") + next((query for end, query in needed.items() if path.endswith(end)), "")


def status(client, method, path):
    """The status alone; an event stream is left after its headers."""
    if path.endswith("/stream") or path.startswith("/sse"):
        with client._http.stream(method.upper(), path, headers=client.headers, timeout=10) as answer:
            return answer.status_code
    return client.request(method.upper(), path).status_code


def test_should_have_an_oracle_that_can_tell():
    assert grants("*", "users.read") == "all"
    assert grants("tasks.read:own", "tasks.read") == "own"
    assert grants("orchestrator.tasks.*", "tasks.claim") == "all"
    assert grants("orchestrator.*", "tasks.create") == "all"
    assert grants("tasks.*", "tasksets.read") == grants("tasks.read", "tasks.readall") == grants("agents.*", "tasks.read") == "none"
    assert allowed(ROLES["user"], "metrics.read") == "none" and allowed([], "discovery.read") == "all"


def test_should_open_no_route_but_the_known_ones(document):
    found = {path for _, path, permission, _ in routes(document) if permission == "open"}
    assert found <= OPEN, f"open, but not meant to be: {found - OPEN}"


def test_should_name_permissions_in_the_words_of_the_convention(document):
    areas = {
        "tasks", "orchestrator", "agents", "registry", "discovery", "events", "users", "roles", "keys", "tenants", "metrics", "profile",
        "settings", "stats", "observability", "queues", "sessions", "tools", "mcp-servers", "virtual-servers", "audit", "consumer-groups",
        "backups", "erasures", "views", "clients", "incidents",
    }
    for method, path, permission, _ in routes(document):
        known = permission == "open" or permission in LOGGED_IN or permission.split(".")[0] in areas
        assert known and "*" not in permission, f"{method} {path}: {permission}"


def test_should_answer_401_on_every_route_without_a_token(keiko, document):
    anyone = keiko.client()
    count = 0
    for method, path, permission, operation in routes(document):
        if permission == "open":
            continue
        kind = path.removeprefix("/api/v1").split("/")[1]
        url = path
        while "{" in url:
            url = url.replace(url[url.index("{"): url.index("}") + 1], absent(kind.rstrip("s")))
        kw = {"body": {}} if "requestBody" in operation else {}
        answer = anyone.request(method.upper(), url, **kw)
        assert answer.status_code == 401, f"{method} {path}: {answer.status_code} {answer.text}"
        refused(answer, 401)
        assert answer.headers.get("www-authenticate", "").startswith("Bearer"), f"{method} {path} does not say how to authenticate"
        count += 1
    assert count >= 40, "the document lists too few closed routes to be whole"


@pytest.mark.parametrize("role", [*ROLES, "agent"])
def test_should_allow_and_refuse_reading_as_the_table_says(keiko, document, things, callers, role):
    held = ROLES.get(role, AGENT)
    wrong, seen = [], {"all": 0, "own": 0, "none": 0}
    for method, path, permission, _ in routes(document, "get"):
        if permission == "open":
            continue
        verdict = allowed(held, permission)
        seen[verdict] += 1
        got = status(callers[role], method, filled(path, things))
        # Somebody else's thing is "not there or not yours"; a list shows the caller's own ones.
        expected = {"all": (200,), "own": (200, 403, 404) if role == "agent" else (403, 404) if "{" in path.replace("{door}", "") else (200,), "none": (403,)}[verdict]
        if path.endswith("/{config}") and got == 404:
            continue  # An address that is told is its owner's, whatever others may (test_a2a.py).
        if path.startswith("/mcp") and got == 405:
            continue  # It may come in, and without a session there is nothing to follow (test_mcp_bridge.py).
        if got not in expected:
            wrong.append(f"GET {path} needs {permission}: {role} holds '{verdict}', expected {expected}, got {got}")
    assert not wrong, "\n".join(wrong)
    assert seen["all"] >= 2 and (role == "admin") == (seen["none"] == 0), seen


@pytest.mark.parametrize("role", [*ROLES, "agent"])
def test_should_refuse_writing_as_the_table_says(document, callers, role):
    """Only refusals: nothing is changed, so every route can be tried. 403 comes before anything about the thing is told."""
    wrong = []
    for method, path, permission, operation in routes(document, "post", "put", "delete", "patch"):
        if permission == "open" or allowed(ROLES.get(role, AGENT), permission) != "none":
            continue
        kind = path.removeprefix("/api/v1").split("/")[1]
        url = path
        while "{" in url:
            url = url.replace(url[url.index("{"): url.index("}") + 1], absent(kind.rstrip("s")))
        answer = callers[role].request(method.upper(), url, **({"body": {}} if "requestBody" in operation else {}))
        if answer.status_code != 403:
            wrong.append(f"{method} {path} needs {permission}: {role} got {answer.status_code} {answer.text[:200]}")
    assert not wrong, "\n".join(wrong)


def test_should_name_the_missing_permission(callers):
    error = refused(callers["user"].get("/users"), 403)
    assert "users.read" in str(error), f"the refusal names what is missing: {error}"


def test_should_allow_writing_what_a_role_may_write(keiko, callers, things):
    task = {"description": unique("do"), "capability": things["capability"]}
    for role in ("admin", "developer", "user", "agent", "ml-engineer"):
        done(callers[role].post("/tasks", {**task, "description": unique("do")}), 201)
    for role in ("analyst", "security-officer"):
        refused(callers[role].post("/tasks", task), 403)
    for role in ("admin", "developer"):
        done(callers[role].post("/agents", {"name": unique("agent")}), 201)
    for role in ("analyst", "user", "ml-engineer", "security-officer", "agent"):
        refused(callers[role].post("/agents", {"name": unique("agent")}), 403)


def test_should_show_a_user_only_own_tasks(keiko, admin, things):
    mine, other = keiko.user(admin, ["user"]), keiko.user(admin, ["user"])
    task = submit(mine, things["capability"])
    foreign = submit(other, things["capability"])
    assert done(mine.get(f"/tasks/{task['id']}"))["id"] == task["id"]
    assert [t["id"] for t in mine.everything("/tasks")] == [task["id"]]
    for suffix in ("", "/events", "/decision"):
        refused(mine.get(f"/tasks/{foreign['id']}{suffix}"), (403, 404))


def test_should_keep_an_agent_to_its_own_affairs(keiko, admin):
    capability = unique("cap")
    one, other = keiko.agent(admin, capability), keiko.agent(admin, capability)
    for verb in ("heartbeat", "pause", "issue-key"):
        body = {"body": {}} if verb == "heartbeat" else {}
        refused(one.api.request("POST", f"/agents/{other.id}/actions/{verb}", **body), (403, 404))
    refused(one.api.delete(f"/agents/{other.id}"), (403, 404))
    refused(one.api.put(f"/agents/{other.id}", {"name": other.name, "capabilities": []}), (403, 404))
    submit(admin, capability)
    task = one.take()
    refused(other.act(task, "complete", output={}), 409, "CLAIM_STALE")


def test_should_refuse_claiming_to_people(admin, callers):
    refused(admin.post("/tasks/actions/claim", {"max": 1, "wait_ms": 0}), (403, 422))
    refused(callers["analyst"].post("/tasks/actions/claim", {"max": 1, "wait_ms": 0}), 403)
