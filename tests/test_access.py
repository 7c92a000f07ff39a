"""Who may what, and why: teams, explanations, tenants that are stopped."""

import pytest

from harness import command, done, refused, submit, unique
from oauth import service_app

PASSWORD = "a long enough password"


def explained(admin, subject, action, **more):
    return done(admin.get("/authz/explain", subject=subject, action=action, **more))["attributes"]


# Teams


def test_should_give_members_what_the_team_holds_and_take_it_back_at_once(keiko, admin):
    team = done(admin.post("/teams", {"name": unique("team"), "roles": ["analyst"]}), 201)
    person = keiko.user(admin, [])
    refused(person.get("/tasks"), 403)
    joined = done(admin.post(f"/teams/{team['id']}/actions/add-member", {"member": person.name}))["attributes"]
    assert joined["members"] == [person.id]
    assert person.get("/tasks").status_code == 200, "without signing in again"
    assert "analyst" in done(person.get("/auth/me"))["attributes"]["roles"]
    done(admin.put(f"/teams/{team['attributes']['name']}", {"roles": ["developer"]}))
    assert done(person.post("/agents", {"name": unique("agent"), "capabilities": []}), 201)
    done(admin.post(f"/teams/{team['id']}/actions/remove-member", {"member": person.id}))
    refused(person.get("/tasks"), 403)
    done(admin.post(f"/teams/{team['id']}/actions/add-member", {"member": person.id}))
    assert person.get("/tasks").status_code == 200
    assert admin.delete(f"/teams/{team['id']}").status_code == 204
    refused(person.get("/tasks"), 403)
    refused(admin.get(f"/teams/{team['id']}"), 404, "TEAM_NOT_FOUND")


def test_should_not_let_anybody_grow_through_a_team(keiko, admin):
    clerk = done(admin.post("/roles", {"name": unique("clerk"), "permissions": ["users.*"]}), 201)["attributes"]["name"]
    small = keiko.user(admin, [clerk])
    mighty = done(admin.post("/teams", {"name": unique("team"), "roles": ["admin"]}), 201)["id"]
    refused(small.post(f"/teams/{mighty}/actions/add-member", {"member": small.id}), 403, "PERMISSION_ESCALATION")
    refused(small.post("/teams", {"name": unique("team"), "roles": ["admin"]}), 403, "PERMISSION_ESCALATION")
    own = done(small.post("/teams", {"name": unique("team"), "roles": []}), 201)["id"]
    refused(small.put(f"/teams/{own}", {"roles": ["admin"]}), 403, "PERMISSION_ESCALATION")
    refused(admin.post("/teams", {"name": unique("team"), "roles": ["emperor"]}), 422, "ROLE_UNKNOWN")
    # Whoever may change users may not change somebody who is mighty by a team.
    victim = keiko.user(admin, [])
    done(admin.post(f"/teams/{mighty}/actions/add-member", {"member": victim.id}))
    refused(small.put(f"/users/{victim.id}", {"password": "another long password"}), 403, "PERMISSION_ESCALATION")
    refused(small.post(f"/users/{victim.id}/actions/suspend", {"reason": "x"}), 403, "PERMISSION_ESCALATION")
    service = unique("service")
    made = done(admin.post("/users", {"username": service, "kind": "service", "roles": []}), 201)["id"]
    done(admin.post(f"/teams/{mighty}/actions/add-member", {"member": made}))
    keys = done(admin.post("/roles", {"name": unique("keys"), "permissions": ["keys.*", "clients.*", "users.read"]}), 201)["attributes"]["name"]
    maker = keiko.user(admin, [keys])
    refused(maker.post("/api-keys", {"name": "k", "owner": service}), 403, "PERMISSION_ESCALATION")
    refused(maker.post("/clients", {"name": "c", "subject": service, "grant_types": ["client_credentials"]}), 403, "PERMISSION_ESCALATION")


# Explanations


def test_should_explain_what_it_then_does(keiko, admin):
    person = keiko.user(admin, ["user"])
    found = explained(admin, person.name, "tasks.read")
    assert found["allowed"] and found["reach"] == "own"
    assert found["sources"] == [{"kind": "role", "name": "user", "permissions": ["tasks.read:own"]}]
    denied = explained(admin, person.id, "users.create")
    assert not denied["allowed"] and denied["reach"] == "none" and denied["sources"] == [] and "users.create" in denied["because"]
    everybody = explained(admin, person.id, "discovery.read")
    assert everybody["allowed"] and {"everybody"} <= {source["kind"] for source in everybody["sources"]}

    capability = unique("cap")
    worker = keiko.agent(admin, capability)
    mine, others = submit(person, capability), submit(admin, capability)
    assert explained(admin, person.id, "tasks.read", resource=mine["id"])["allowed"] and person.get(f"/tasks/{mine['id']}").status_code == 200
    assert not explained(admin, person.id, "tasks.read", resource=others["id"])["allowed"] and person.get(f"/tasks/{others['id']}").status_code == 404
    assert explained(admin, worker.id, "tasks.claim")["allowed"]

    team = done(admin.post("/teams", {"name": unique("team"), "roles": ["analyst"]}), 201)
    done(admin.post(f"/teams/{team['id']}/actions/add-member", {"member": person.id}))
    wider = explained(admin, person.id, "tasks.read")
    assert wider["reach"] == "all" and {"role", "team"} == {source["kind"] for source in wider["sources"]}
    done(admin.post(f"/users/{person.id}/actions/suspend", {"reason": "left"}))
    stopped = explained(admin, person.id, "tasks.read")
    assert not stopped["allowed"] and "suspended: left" in stopped["because"]


def test_should_explain_keys_and_refuse_nonsense(keiko, admin):
    key = done(admin.post("/api-keys", {"name": "reader", "permissions": ["tasks.read"]}), 201)["id"]
    assert explained(admin, key, "tasks.read")["allowed"] and not explained(admin, key, "users.read")["allowed"]
    for action in ("tasks.*", "*", "tasks", "tasks.read:own", ""):
        refused(admin.get("/authz/explain", subject="admin", action=action), 400)
    refused(admin.get("/authz/explain", subject=unique("nobody"), action="tasks.read"), 404)
    boss = keiko.tenant(admin)
    refused(boss.get("/authz/explain", subject=key, action="tasks.read"), 404)
    refused(keiko.user(admin, ["developer"]).get("/authz/explain", subject="admin", action="tasks.read"), 403)


# Tenants


def test_should_stop_a_tenant_with_everything_in_it_and_start_it_again(keiko, admin):
    boss = keiko.tenant(admin)
    agent = keiko.agent(boss, unique("cap"))
    machine = service_app(keiko, boss, ["developer"])
    token = machine.post("token", grant_type="client_credentials").json()["access_token"]
    callers = [boss, agent.api, keiko.client(token=token)]
    assert [caller.get("/auth/me").status_code for caller in callers] == [200, 200, 200]
    done(admin.post(f"/tenants/{boss.slug}/actions/suspend", {"reason": "not paid"}))
    assert done(admin.get(f"/tenants/{boss.slug}"))["attributes"]["status"] == "suspended"
    assert [caller.get("/auth/me").status_code for caller in callers] == [401, 401, 401]
    refused(keiko.client().post("/auth/login", {"username": "boss", "password": "another long password", "tenant": boss.slug}), 401, "INVALID_CREDENTIALS")
    refused(keiko.client().post("/auth/refresh", {"refresh_token": boss.session["refresh_token"]}), 401)
    assert machine.post("token", grant_type="client_credentials").status_code in (400, 401)
    assert admin.get("/auth/me").status_code == 200
    done(admin.post(f"/tenants/{boss.slug}/actions/reinstate", {}))
    assert [caller.get("/auth/me").status_code for caller in callers] == [200, 200, 200]
    refused(admin.post("/tenants/default/actions/suspend", {"reason": "x"}), 422, "RULE_VIOLATED")
    refused(boss.post(f"/tenants/{boss.slug}/actions/suspend", {"reason": "x"}), 403)


@pytest.mark.embedded
def test_should_do_the_same_at_the_command_line(keiko, admin, tmp_path):
    at = {"KEIKO_SERVER": keiko.url, "KEIKO_PASSWORD": keiko.password}
    assert command(tmp_path, "login", "admin", env=at).returncode == 0
    person, team = keiko.user(admin, []), unique("team")
    assert command(tmp_path, "teams", "create", "--name", team, "--role", "analyst", env=at).returncode == 0
    assert command(tmp_path, "teams", "add", team, person.name, env=at).returncode == 0
    told = command(tmp_path, "explain", person.name, "tasks.read", env=at)
    assert told.returncode == 0 and "allowed  yes" in told.stdout and team in told.stdout
    assert person.id in command(tmp_path, "teams", "list", env=at).stdout
    assert command(tmp_path, "teams", "remove", team, person.name, env=at).returncode == 0
    assert command(tmp_path, "users", "suspend", person.name, "--reason", "left", env=at).returncode == 0
    refused(person.get("/auth/me"), 401)
