"""Who is asking: logins, tokens, users, roles, API keys, the first start, tenants."""

import datetime
import json
import socket
import time

import pytest

from harness import absent, command, done, path_of, printed_password, refused, submit, tool_server, unique, until
from tokens import claims_of, expired, forgeries, public_key, signing_key

PASSWORD = "a long enough password"


def works(client):
    return client.get("/auth/me").status_code == 200


def in_seconds(seconds):
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.000Z")


# Login


def test_should_give_tokens_that_say_who_is_asking(keiko):
    client = keiko.login()
    assert client.session["token_type"] == "Bearer"
    assert 0 < client.session["expires_in"] <= 900
    claims = claims_of(client.session["access_token"])
    assert 0 < claims["exp"] - time.time() <= 901, "an access token lives 15 minutes"
    me = done(client.get("/auth/me"))["attributes"]
    assert me["name"] == "admin" and me["tenant"] == "default"
    assert "admin" in me["roles"]


def test_should_not_tell_whether_the_user_exists(keiko, admin):
    anyone, bodies, known = keiko.client(), [], keiko.user(admin, ["user"]).name
    for name in (known, unique("nobody")):
        answer = anyone.post("/auth/login", {"username": name, "password": "wrong wrong wrong"})
        bodies.append(json.loads(json.dumps(refused(answer, 401, "INVALID_CREDENTIALS")).replace(name, "NAME")))
    unknown_tenant = anyone.post("/auth/login", {"username": known, "password": "wrong wrong wrong", "tenant": "nowhere"})
    bodies.append(json.loads(json.dumps(refused(unknown_tenant, 401, "INVALID_CREDENTIALS")).replace(known, "NAME")))
    assert bodies[0] == bodies[1] == bodies[2]


def test_should_refuse_logins_of_the_wrong_shape(keiko):
    anyone = keiko.client()
    for body in ({}, {"username": "admin"}, {"username": "admin", "password": 5}, {"username": "admin", "password": "x", "extra": 1}, []):
        refused(anyone.post("/auth/login", body), 400)


def test_should_slow_down_guessing_for_one_account_only(keiko, admin):
    anyone, victim = keiko.client(), keiko.user(admin, ["user"])
    for name in (victim.name, unique("nobody")):
        answers = [anyone.post("/auth/login", {"username": name, "password": f"guess number {n}"}) for n in range(12)]
        assert answers[0].status_code == 401
        assert refused(answers[-1], 429, "LOGIN_THROTTLED") and int(answers[-1].headers["retry-after"]) >= 1
    assert works(keiko.login()) and works(victim), "others and open sessions are not hurt"


def test_should_rotate_refresh_tokens_and_end_the_session_on_reuse(keiko):
    first = keiko.login()
    anyone = keiko.client()
    second = done(anyone.post("/auth/refresh", {"refresh_token": first.session["refresh_token"]}), 200, 201)["attributes"]
    assert second["refresh_token"] != first.session["refresh_token"]
    renewed = keiko.client(token=second["access_token"])
    assert works(renewed)
    third = done(anyone.post("/auth/refresh", {"refresh_token": second["refresh_token"]}), 200, 201)["attributes"]
    # The first one again: somebody has stolen it. Nobody keeps the session.
    refused(anyone.post("/auth/refresh", {"refresh_token": first.session["refresh_token"]}), 401)
    refused(anyone.post("/auth/refresh", {"refresh_token": third["refresh_token"]}), 401)
    refused(keiko.client(token=third["access_token"]).get("/auth/me"), 401)


def test_should_end_access_with_logout_and_leave_other_sessions_alone(keiko):
    leaving, staying = keiko.login(), keiko.login()
    assert leaving.post("/auth/logout").status_code in (200, 204)
    refused(leaving.get("/auth/me"), 401)
    refused(keiko.client().post("/auth/refresh", {"refresh_token": leaving.session["refresh_token"]}), 401)
    assert works(staying)


# Tokens


def test_should_refuse_forged_tokens(keiko):
    token = keiko.login().session["access_token"]
    jwks = keiko.client().get("/.well-known/jwks.json").json()
    assert all("d" not in key for key in jwks["keys"]), "the private part is published"
    jwk, public = public_key(jwks, token)
    for name, forged in forgeries(token, jwk, public).items():
        answer = keiko.client().get("/auth/me", headers={"Authorization": f"Bearer {forged}"})
        assert answer.status_code == 401, f"{name}: {answer.text}"
        refused(answer, 401)


def test_should_refuse_an_expired_token(keiko):
    token = keiko.login().session["access_token"]
    _, public = public_key(keiko.client().get("/.well-known/jwks.json").json(), token)
    found = signing_key(keiko.data_dir, public)
    assert found, "no file in the data directory holds the signing key in a known form"
    too_old, control = expired(token, found[0])
    assert works(keiko.client(token=control)), "the control, signed the same way, must work"
    refused(keiko.client(token=too_old).get("/auth/me"), 401)


def test_should_refuse_tokens_and_keys_of_another_installation(keiko, new_keiko):
    other = new_keiko().start()
    admin = other.login()
    key = done(admin.post("/api-keys", {"name": unique("key"), "permissions": ["tasks.read"]}), 201)["attributes"]["key"]
    refused(keiko.client(token=admin.session["access_token"]).get("/auth/me"), 401)
    refused(keiko.client(api_key=key).get("/tasks"), 401)


def test_should_refuse_other_schemes_and_ambiguous_credentials(keiko, admin):
    for value in ("Basic YWRtaW46YWRtaW4=", "Bearer", admin.headers["Authorization"][7:]):
        refused(keiko.client().get("/auth/me", headers={"Authorization": value}), (400, 401))
    refused(keiko.client(api_key="kk_default_nonsense").get("/auth/me"), 401)


# Users and roles


def test_should_create_read_change_and_delete_users(keiko, admin):
    name = unique("user")
    made = done(admin.post("/users", {"username": name, "password": PASSWORD, "roles": ["user"]}), 201)
    assert made["type"] == "user" and made["id"].startswith("user_")
    assert made["attributes"]["username"] == name and made["attributes"]["roles"] == ["user"]
    assert "password" not in json.dumps(made["attributes"])
    refused(admin.post("/users", {"username": name, "password": PASSWORD, "roles": []}), 409)
    for handle in (made["id"], name):
        assert done(admin.get(path_of("users", handle)))["id"] == made["id"]
    assert made["id"] in [u["id"] for u in admin.everything("/users")]

    client = keiko.login(name, PASSWORD)
    refused(client.get("/users"), 403)
    changed = done(admin.put(f"/users/{made['id']}", {"roles": ["admin"]}))["attributes"]
    assert changed["roles"] == ["admin"] and changed["version"] > made["attributes"]["version"]
    assert keiko.login(name, PASSWORD).get("/users").status_code == 200

    assert admin.delete(f"/users/{made['id']}").status_code == 204
    refused(admin.get(f"/users/{made['id']}"), 404)
    assert made["id"] not in [u["id"] for u in admin.everything("/users")]
    refused(keiko.client().post("/auth/login", {"username": name, "password": PASSWORD}), 401, "INVALID_CREDENTIALS")
    until(lambda: not works(client), "a deleted user's token ends", timeout=2)


def test_should_refuse_users_with_unknown_roles_or_weak_passwords(admin):
    refused(admin.post("/users", {"username": unique("user"), "password": PASSWORD, "roles": ["emperor"]}), 422)
    refused(admin.post("/users", {"username": unique("user"), "password": "a", "roles": ["user"]}), (400, 422))


def test_should_change_a_password_and_refuse_the_old_one(keiko, admin):
    user = keiko.user(admin, ["user"])
    done(admin.put(f"/users/{user.id}", {"password": "the new long password"}))
    refused(keiko.client().post("/auth/login", {"username": user.name, "password": user.password}), 401)
    assert works(keiko.login(user.name, "the new long password"))


def test_should_grant_exactly_what_a_custom_role_says(keiko, admin):
    name = unique("auditor")
    role = done(admin.post("/roles", {"name": name, "permissions": ["users.read"]}), 201)
    assert role["attributes"]["permissions"] == ["users.read"]
    user = keiko.user(admin, [name])
    assert user.get("/users").status_code == 200
    refused(user.post("/users", {"username": unique("user"), "password": PASSWORD, "roles": []}), 403)
    refused(user.get("/tasks"), 403)
    done(admin.put(path_of("roles", name), {"permissions": ["tasks.read"]}))
    again = keiko.login(user.name, user.password)
    assert again.get("/tasks").status_code == 200
    refused(again.get("/users"), 403)
    refused(admin.post("/roles", {"name": name, "permissions": []}), 409)


def test_should_not_let_anyone_grant_more_than_they_hold(keiko, admin):
    name = unique("clerk")
    done(admin.post("/roles", {"name": name, "permissions": ["users.*", "roles.*", "keys.*", "tasks.read"]}), 201)
    clerk = keiko.user(admin, [name])
    refused(clerk.post("/api-keys", {"name": unique("key"), "permissions": ["tenants.create"]}), (403, 422))
    refused(clerk.post("/api-keys", {"name": unique("key"), "permissions": ["*"]}), (403, 422))
    refused(clerk.post("/users", {"username": unique("user"), "password": PASSWORD, "roles": ["admin"]}), (403, 422))
    refused(clerk.put(f"/users/{clerk.id}", {"roles": ["admin"]}), (403, 422))
    refused(clerk.post("/roles", {"name": unique("king"), "permissions": ["*"]}), (403, 422))
    refused(clerk.put(path_of("roles", name), {"permissions": ["*"]}), (403, 422))


# API keys


def make_key(admin, permissions, **fields):
    return done(admin.post("/api-keys", {"name": unique("key"), "permissions": permissions, **fields}), 201)


def test_should_show_an_api_key_once(admin):
    made = make_key(admin, ["tasks.read"])
    key = made["attributes"]["key"]
    assert key.startswith("kk_default_") and len(key) > len("kk_default_") + 20
    assert made["id"].startswith("key_")
    later = [admin.get(f"/api-keys/{made['id']}"), admin.get("/api-keys", limit=500)]
    assert all(answer.status_code == 200 and key not in answer.text for answer in later)
    assert "key" not in done(later[0])["attributes"]


def test_should_limit_an_api_key_to_its_permissions(keiko, admin):
    client = keiko.client(api_key=make_key(admin, ["tasks.read"])["attributes"]["key"])
    assert client.get("/tasks").status_code == 200
    refused(client.get("/users"), 403)
    refused(client.post("/tasks", {"description": "x", "capability": "y"}), 403)


def test_should_refuse_an_expired_api_key(keiko, admin):
    key = make_key(admin, ["tasks.read"], expires_at=in_seconds(2))["attributes"]["key"]
    client = keiko.client(api_key=key)
    assert client.get("/tasks").status_code == 200
    until(lambda: client.get("/tasks").status_code == 401, "the key expires", timeout=5)
    refused(client.get("/tasks"), 401)
    refused(admin.post("/api-keys", {"name": unique("key"), "permissions": [], "expires_at": in_seconds(-60)}), (400, 422))


def test_should_refuse_a_revoked_api_key_and_keep_the_others(keiko, admin):
    one, other = make_key(admin, ["tasks.read"]), make_key(admin, ["tasks.read"])
    assert admin.delete(f"/api-keys/{one['id']}").status_code == 204
    refused(keiko.client(api_key=one["attributes"]["key"]).get("/tasks"), 401)
    assert keiko.client(api_key=other["attributes"]["key"]).get("/tasks").status_code == 200


def test_should_refuse_a_key_whose_secret_or_prefix_is_altered(keiko, admin):
    key = make_key(admin, ["tasks.read"])["attributes"]["key"]
    flipped = key[:-1] + ("a" if key[-1] != "a" else "b")
    for wrong in (flipped, key.replace("kk_default_", "kk_other_"), key[:-4], key + "0", "kk_default_", "kk__", "", "kk_default_" + "x" * 5000):
        refused(keiko.client().get("/tasks", headers={"X-API-Key": wrong}), 401)


# First start and reset


def test_should_print_a_random_admin_password_once(new_keiko):
    server = new_keiko(password=None).start()
    shown = printed_password(server.stdout() + server.logs())
    assert len(shown) == 1, f"the random password is printed once: {server.stdout()}"
    assert works(server.login(password=shown[0]))
    server.restart()
    assert len(printed_password(server.stdout() + server.logs())) == 1, "it is not printed again"
    assert works(server.login(password=shown[0]))


@pytest.mark.embedded
def test_should_reset_the_admin_password_on_a_stopped_server(new_keiko):
    server = new_keiko().start()
    old = server.login()
    running = command(server.home, "admin", "reset-password", "--data-dir", server.data_dir)
    assert running.returncode != 0, "refused while the server runs"
    assert server.stop() == 0
    result = command(server.home, "admin", "reset-password", "--data-dir", server.data_dir)
    assert result.returncode == 0, result.stderr
    shown = printed_password(result.stdout + result.stderr)
    assert len(shown) == 1, result.stdout + result.stderr
    server.restart()
    refused(server.client().post("/auth/login", {"username": "admin", "password": server.password}), 401)
    assert works(server.login(password=shown[0]))
    assert not works(server.client(token=old.session["access_token"])), "a reset ends the old sessions"


# Tenants


@pytest.fixture(scope="module")
def neighbours(keiko, admin, tmp_path_factory):
    """Tenant A (the default one) with one thing of each kind, and tenant B."""
    capability = unique("cap")
    worker = keiko.agent(admin, capability)
    submit(admin, capability)
    task = worker.take()
    user = keiko.user(admin, ["user"])
    role = done(admin.post("/roles", {"name": unique("role"), "permissions": ["tasks.read"]}), 201)
    key = make_key(admin, ["tasks.read"])
    queue = unique("queue")
    done(admin.put(path_of("queues", queue), {"paused": True}), 200, 201)
    boss = keiko.tenant(admin)
    server, tool = tool_server(admin, tmp_path_factory.mktemp("odd"))
    tool = done(admin.get(f"/tools/{tool}"))["id"]
    event = done(admin.get("/events", stream=worker.id))[0]["id"]
    group = done(admin.post("/consumer-groups", {"name": unique("group")}), 201)["id"]
    erasure = done(admin.post("/erasures", {"subject": keiko.user(admin, []).id}), 202)["id"]
    rebuild = done(admin.post("/views/agent_stats/actions/rebuild", {}), 202)["id"]
    client = done(admin.post("/clients", {"name": unique("client"), "redirect_uris": ["https://client.example/back"]}), 201)["id"]
    team = done(admin.post("/teams", {"name": unique("team"), "roles": ["user"]}), 201)["id"]
    mail = done(admin.post("/users/actions/invite", {"email": f"{unique('ada')}@example.com"}), 201)["id"]
    virtual = done(admin.post("/virtual-servers", {"name": unique("door"), "members": [{"server": server}]}), 201)["id"]
    component = done(admin.post("/components", {"name": unique("component"), "subject": {"type": "group"}}), 201)["id"]
    ids = {"components": component, "virtual-servers": virtual, "mails": mail, "teams": team, "clients": client, "erasures": erasure, "rebuilds": rebuild, "events": event, "consumer-groups": group, "mcp-servers": server, "tools": tool, "agents": worker.id, "tasks": task["id"], "users": user.id, "roles": role["id"], "api-keys": key["id"], "queues": queue}
    return {"ids": ids, "boss": boss, "agent": keiko.agent(boss, capability), "token": task["attributes"]["claim"]["token"]}


def body_for(path, token):
    """A body that is right in shape, so that only the foreign id can be the reason for a refusal."""
    error = {"code": "X", "message": "x"}
    by_verb = {
        "complete": {"claim_token": token, "output": {}}, "fail": {"claim_token": token, "error": error, "retryable": True},
        "progress": {"claim_token": token, "percent": 1, "message": "x"}, "release": {"claim_token": token, "reason": "x"},
        "ask": {"claim_token": token, "message": {"text": "x"}}, "say": {"text": "x"}, "connect": {"url": "https://agent.example"}, "tasks/heartbeat": {"claim_token": token}, "agents/heartbeat": {},
        "agents": {"name": unique("agent"), "capabilities": []}, "users": {"roles": ["user"]}, "roles": {"permissions": []},
        "api-keys": {"name": unique("key")}, "queues": {"paused": False}, "tenants": {"name": "x"},
        "fetch": {"consumer": "c"}, "ack": {"tokens": ["1-x"]}, "nak": {"tokens": ["1-x"]}, "extend": {"tokens": ["1-x"]},
        "park": {"tokens": ["1-x"], "reason": "x"}, "seek": {"position": 0}, "replay": {"all": True},
        "suspend": {"reason": "x"}, "teams": {"roles": []}, "add-member": {"member": "x"}, "remove-member": {"member": "x"},
        "mcp-servers": {"name": "x", "transport": {"type": "stdio", "command": "true"}},
        "credentials": {"token": "x"}, "virtual-servers": {"name": "x", "members": []}, "components": {"name": "x", "subject": {"type": "group"}},
    }
    kind, *rest = path.removeprefix("/api/v1/").removesuffix("/me").removesuffix("/{owner}").split("/")
    verb = rest[-1] if len(rest) > 1 else ""
    return by_verb.get(f"{kind}/{verb}", by_verb.get(verb if verb else kind, {}))


def test_should_answer_404_to_every_handle_of_another_tenant(neighbours, admin, document):
    tried = 0
    for path, operations in document["paths"].items():
        kind = path.removeprefix("/api/v1").split("/")[1]
        # Doors of MCP are virtual servers, those of A2A agents.
        kind = {"mcp": "virtual-servers", "sse": "virtual-servers", "a2a": "agents"}.get(kind, kind)
        if "{" not in path or kind in ("tenants", "journal", "audit", "views", "auth", "oauth"):
            continue  # The record has no handles: test_audit.py shows that each tenant sees its own. Consents and what a browser connects are a person's own (test_oauth.py, test_credentials.py).
        assert kind in neighbours["ids"], f"{path}: this test does not know how to make one of '{kind}'; teach it"
        url = path.replace(path[path.index("{"): path.index("}") + 1], neighbours["ids"][kind])
        url = url.replace("{task}", neighbours["ids"]["tasks"]).replace("{config}", "mine").replace("{owner}", "everybody")
        assert "{" not in url, path
        for method, operation in operations.items():
            if method == "parameters" or (kind == "queues" and method == "put"):
                continue  # A queue's name is chosen by its tenant: PUT makes B's own queue of that name, see below.
            holder = kind == "tasks" and url.rsplit("/", 1)[-1] in ("complete", "fail", "progress", "ask", "release", "heartbeat")
            client = neighbours["agent"].api if holder else neighbours["boss"]
            kw = {"body": body_for(path, neighbours["token"])} if "requestBody" in operation else {}
            answer = client.request(method.upper(), url, **kw)
            assert answer.status_code == 404, f"{method} {path}: {answer.status_code} {answer.text}"
            refused(answer, 404)
            tried += 1
    assert tried >= 20
    for kind, handle in neighbours["ids"].items():
        assert admin.get(f"/{kind}/{handle}").status_code in (200, 405), f"{kind} of A must have survived"


def test_should_keep_lists_events_discovery_and_queues_of_tenants_apart(neighbours, admin):
    boss, ids = neighbours["boss"], neighbours["ids"]
    for kind, handle in ids.items():
        assert handle not in boss.get(f"/{kind}", limit=500).text, kind
    assert done(boss.get("/events", stream=ids["tasks"], after=0)) == []
    assert ids["tasks"] not in boss.get("/events", after=0, limit=500).text
    assert ids["agents"] not in boss.get("/discovery").text
    done(boss.put(path_of("queues", ids["queues"]), {"paused": False}), 200, 201)
    mine = [q for q in admin.everything("/queues") if q["attributes"]["name"] == ids["queues"]]
    assert len(mine) == 1 and mine[0]["attributes"]["paused"] is True, "B's queue of the same name is another queue"


def test_should_let_only_the_default_tenant_make_tenants(neighbours, admin, keiko):
    body = {"slug": unique("team"), "name": "x", "admin": {"username": "a", "password": PASSWORD}}
    refused(neighbours["boss"].post("/tenants", body), 403)
    refused(keiko.user(admin, ["developer"]).post("/tenants", body), 403)
    refused(admin.post("/tenants", {**body, "slug": neighbours["boss"].slug}), 409)
    refused(admin.post("/tenants", {**body, "slug": "Not A Slug"}), (400, 422))
    for path in ("/tenants", f"/tenants/{absent('tnt')}", "/tenants/default"):
        answer = neighbours["boss"].get(path, limit=500) if path == "/tenants" else neighbours["boss"].get(path)
        assert answer.status_code in (403, 404, 405) or path == "/tenants" and '"default"' not in answer.text, answer.text


def settled(admin, slug):
    until(lambda: admin.get(f"/tenants/{slug}").status_code == 404, "the tenant is deleted", 60)


def test_should_delete_a_tenant_with_everything_in_it(keiko, admin, tmp_path):
    boss, other = keiko.tenant(admin), keiko.tenant(admin)
    marker, id = unique("secretly"), done(admin.get(f"/tenants/{boss.slug}"))["id"]
    agent = keiko.agent(boss, marker, description=marker)
    agent.work(boss, marker, input={"said": marker})
    submit(boss, marker, description=marker)
    done(boss.post("/users", {"username": marker, "password": PASSWORD, "roles": ["user"]}), 201)
    tool_server(boss, tmp_path)
    position = boss.events()[-1]["position"]
    assert admin.delete(f"/tenants/{boss.slug}?reason=ended").status_code == 202
    until(lambda: boss.get("/auth/me").status_code == 401, "its tokens are refused")
    refused(agent.api.post("/tasks/actions/claim", {"max": 1, "wait_ms": 0}), 401)
    refused(keiko.client().post("/auth/login", {"username": "boss", "password": "another long password", "tenant": boss.slug}), 401, "INVALID_CREDENTIALS")
    admin.post(f"/tenants/{boss.slug}/actions/reinstate", {})  # Nothing brings it back.
    refused(boss.get("/auth/me"), 401)
    settled(admin, boss.slug)
    assert boss.slug not in str(admin.everything("/tenants"))
    assert done(other.get("/auth/me"))["attributes"]["tenant"] == other.slug, "others go on"
    # The name is free, and leads to nothing of what was.
    done(admin.post("/tenants", {"slug": boss.slug, "name": "x", "admin": {"username": "boss", "password": "quite another password"}}), 201)
    again = keiko.login("boss", "quite another password", boss.slug)
    assert again.everything("/agents") == [] and again.everything("/tasks") == [] and again.events()[0]["position"] == 1
    refused(boss.get("/auth/me"), 401)
    assert position > 10 and done(admin.get("/security/events", kind="identity.tenant.deletion_requested", limit=500))
    assert id not in str(admin.everything("/tenants"))


def test_should_take_nothing_in_for_a_tenant_that_was_deleted_meanwhile(keiko, admin):
    boss = keiko.tenant(admin)
    body = json.dumps({"username": "late", "password": PASSWORD, "roles": []}).encode()
    with socket.create_connection(("127.0.0.1", keiko.port)) as slow:
        head = f"POST /api/v1/users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{''.join(f'{k}: {v}' for k, v in boss.headers.items())}\r\nConnection: close\r\n\r\n"
        slow.sendall(head.encode() + body[:10])
        time.sleep(0.3)
        assert admin.delete(f"/tenants/{boss.slug}?reason=ended").status_code == 202
        settled(admin, boss.slug)
        slow.sendall(body[10:])
        slow.settimeout(10)
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 401"), answer[:300]


@pytest.mark.embedded
def test_should_keep_nothing_of_a_deleted_tenant_but_the_sealed_record(new_keiko):
    keiko = new_keiko().start()
    admin = keiko.login()
    boss, marker = keiko.tenant(admin), unique("secretly")
    agent = keiko.agent(boss, marker, description=marker)
    for _ in range(30):
        agent.work(boss, marker, input={"said": marker * 50})
    done(boss.post("/users", {"username": marker, "password": PASSWORD, "roles": ["user"]}), 201)
    admin.delete(f"/tenants/{boss.slug}?reason=ended")
    for pause in (0.1, 2.3, 2.6):
        time.sleep(pause)
        keiko.kill()  # In the middle: it goes on where it was.
        keiko.start()
    admin = keiko.login()
    settled(admin, boss.slug)
    keiko.stop()
    kept = [file.name for file in keiko.data_dir.rglob("*") if file.is_file() and marker.encode() in file.read_bytes()]
    assert kept == [], "what was said is gone"
    verified = command(keiko.home, "audit", "verify", "--from", str(keiko.data_dir))
    assert verified.returncode == 0, verified.stderr + verified.stdout
    looked = command(keiko.home, "doctor", "--deep", "--data-dir", str(keiko.data_dir))
    assert looked.returncode == 0, looked.stdout + looked.stderr
    keiko.start()
    assert [tenant["attributes"]["slug"] for tenant in keiko.login().everything("/tenants")] == ["default"]


def test_should_delete_no_tenant_by_mistake_or_by_others(keiko, admin, neighbours, tmp_path):
    refused(admin.delete("/tenants/default?reason=x"), 422, "RULE_VIOLATED")
    refused(admin.delete(f"/tenants/{neighbours['boss'].slug}"), 400, "VALIDATION_FAILED")
    refused(neighbours["boss"].delete(f"/tenants/{neighbours['boss'].slug}?reason=x"), 403)
    refused(keiko.user(admin, ["developer"]).delete(f"/tenants/{neighbours['boss'].slug}?reason=x"), 403)
    refused(admin.delete("/tenants/nobody-here?reason=x"), 404, "TENANT_NOT_FOUND")
    env = {"KEIKO_SERVER": keiko.url, "KEIKO_PASSWORD": keiko.password}
    assert command(tmp_path, "login", "admin", env=env).returncode == 0
    wrong = command(tmp_path, "tenants", "delete", neighbours["boss"].slug, "--reason", "x", "--confirm", "default", env=env)
    assert wrong.returncode == 1 and "nothing was deleted" in wrong.stderr
    assert done(admin.get(f"/tenants/{neighbours['boss'].slug}"))["attributes"]["status"] == "ready"


def test_should_not_log_in_with_another_tenants_password(keiko, neighbours):
    anyone, boss = keiko.client(), neighbours["boss"]
    refused(anyone.post("/auth/login", {"username": "admin", "password": keiko.password, "tenant": boss.slug}), 401)
    refused(anyone.post("/auth/login", {"username": "boss", "password": "another long password"}), 401)
