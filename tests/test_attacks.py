"""What an attacker, or bad luck, would try: widening a key, `:own` where nothing is own, ending another's session, guessing
passwords at once, starving a capability, foreign references to stored values."""

import concurrent.futures
import hashlib
import json

import pytest

from harness import done, refused, submit, task_of, unique, until

KEIKO_ENV = {"KEIKO_AGENT_LEASE": "10m"}


@pytest.fixture
def capability():
    return unique("cap")


def test_should_not_let_a_limited_key_make_a_wider_one(keiko, admin):
    narrow = keiko.client(api_key=done(admin.post("/api-keys", {"permissions": ["keys.create"]}), 201)["attributes"]["key"])
    refused(narrow.get("/users"), 403)
    made = done(narrow.post("/api-keys", {}), 201)["attributes"]
    refused(keiko.client(api_key=made["key"]).get("/users"), 403)
    assert "keys.create" in made["permissions"] and "*" not in made["permissions"]


def test_should_not_let_an_expiring_key_outlive_itself(keiko, admin):
    end = "2999-01-01T00:00:00.000Z"
    expiring = keiko.client(api_key=done(admin.post("/api-keys", {"expires_at": end}), 201)["attributes"]["key"])
    assert done(expiring.post("/api-keys", {}), 201)["attributes"]["expires_at"] == end


def test_should_allow_nothing_by_own_where_nothing_is_own(keiko, admin):
    role = unique("role")
    permissions = ["events.read:own", "users.read:own", "keys.read:own", "keys.delete:own", "users.update:own"]
    done(admin.post("/roles", {"name": role, "permissions": permissions}), 201)
    someone = keiko.user(admin, [role])
    for path in ("/events", "/users", "/api-keys"):
        refused(someone.get(path), 403, "PERMISSION_DENIED")
    key = done(admin.post("/api-keys", {}), 201)["id"]
    refused(someone.delete(f"/api-keys/{key}"), 403)


def test_should_not_let_a_made_up_token_end_a_session(keiko, admin):
    victim = keiko.login()
    events = done(admin.get("/events?type=identity.session.opened&limit=500"))
    for session in {event["stream"] for event in events}:
        refused(keiko.client().post("/auth/refresh", {"refresh_token": f"kr_default_{session}.made-up"}), 401)
    done(victim.get("/auth/me"))


def test_should_count_guesses_that_come_at_once(keiko, admin):
    name = unique("user")
    done(admin.post("/users", {"username": name, "password": "a long enough password"}), 201)

    def guess(n):
        return keiko.client().post("/auth/login", {"username": name, "password": f"wrong {n}"}).status_code

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(guess, range(40)))
    assert statuses.count(401) < 20 and 429 in statuses, statuses


def test_should_cut_off_a_user_whose_role_is_gone(keiko, admin):
    role = unique("role")
    made = done(admin.post("/roles", {"name": role, "permissions": ["tasks.read"]}), 201)
    user = done(admin.post("/users", {"username": unique("user"), "password": "a long enough password", "roles": [role]}), 201)
    assert admin.delete(f"/roles/{made['id']}").status_code == 204
    done(admin.put(f"/users/{user['id']}", {"roles": []}))
    assert admin.delete(f"/users/{user['id']}").status_code == 204


def test_should_not_resolve_a_foreign_reference_to_a_stored_value(keiko, admin, capability):
    keiko.agent(admin, capability)
    secret = {"secret": "x" * 20_000}
    submit(admin, capability, input=secret)
    digest = hashlib.sha256(json.dumps(secret, separators=(",", ":")).encode()).hexdigest()
    forged = {"$value": digest}
    task = submit(keiko.user(admin, ["user"]), capability, input=forged)
    assert task["attributes"]["input"] == forged
    assert task_of(admin, task["id"])["input"] == forged


def test_should_not_let_a_paused_queue_starve_the_others(keiko, admin, capability):
    agent, slow, other = keiko.agent(admin, capability), unique("slow"), unique("other")
    done(admin.put(f"/queues/{slow}", {"paused": True}))
    for _ in range(300):
        submit(admin, capability, unique("work"), queue=slow)
    wanted = submit(admin, capability, queue=other)
    assert agent.take()["id"] == wanted["id"]


def test_should_answer_a_repeated_action_as_the_first_time(keiko, admin, capability):
    agent = keiko.agent(admin, capability)
    submit(admin, capability)
    task = agent.take()
    body = {"claim_token": task["attributes"]["claim"]["token"], "reason": "not now"}
    for _ in range(2):
        answer = agent.api.post(f"/tasks/{task['id']}/actions/release", body, headers={"Idempotency-Key": "release-once"})
        assert done(answer)["id"] == task["id"]


def test_should_hand_over_no_more_than_was_asked_for_after_a_crash(new_keiko):
    server = new_keiko().start()
    admin, capability = server.login(), unique("cap")
    agent = server.agent(admin, capability)
    for _ in range(3):
        submit(admin, capability, unique("work"))
    until(lambda: len(agent.claim(5, wait_ms=500)) > 0, "the agent claims")
    server.kill()
    server.restart(same_port=True)
    assert len(agent.claim(1, wait_ms=2_000)) == 1


def test_should_ask_an_agent_again_when_its_schema_has_changed(keiko, admin, capability):
    strict = {"name": capability, "input_schema": {"type": "object", "required": ["n"]}}
    lenient = keiko.agent(admin, capability)
    agent = done(admin.post("/agents", {"name": unique("agent"), "capabilities": [strict]}), 201)
    api = keiko.client(api_key=done(admin.post(f"/agents/{agent['id']}/actions/issue-key", {}))["attributes"]["key"])
    task = submit(admin, capability)
    assert done(api.post("/tasks/actions/claim", {"wait_ms": 300})) == [], "its schema refuses the input"
    done(admin.put(f"/agents/{agent['id']}", {"name": agent["attributes"]["name"], "capabilities": [{"name": capability}]}))
    assert [t["id"] for t in done(api.post("/tasks/actions/claim", {"wait_ms": 5_000}, timeout=20))] == [task["id"]]
    assert lenient.claim() == []
