"""How things were: `?at=` a position or an instant."""

import json
import time

import pytest

from harness import ADMIN_PASSWORD, command, done, opened, refused, submit, unique

KEIKO_ENV = {"KEIKO_AGENT_LEASE": "10m"}


def position(client):
    return opened(client.get("/agents", limit=1))["meta"]["position"]


def test_should_show_a_task_as_it_was_at_every_position(keiko, admin):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    task = submit(admin, capability)
    agent.complete(agent.take(), {"answer": 42})
    story = [(e["position"], e["type"]) for e in admin.events(stream=task["id"])]
    status = {"tasks.task.submitted": "pending", "tasks.task.claimed": "claimed", "tasks.task.completed": "completed"}
    assert [kind for _, kind in story] == list(status)
    for version, (at, kind) in enumerate(story, 1):
        shown = opened(admin.get(f"/tasks/{task['id']}", at=at))
        assert shown["data"]["attributes"]["status"] == status[kind] and shown["meta"]["position"] == at
        assert shown["data"]["attributes"]["version"] == version
    now = done(admin.get(f"/tasks/{task['id']}"))
    assert done(admin.get(f"/tasks/{task['id']}", at=position(admin))) == now
    refused(admin.get(f"/tasks/{task['id']}", at=story[0][0] - 1), 404, "TASK_NOT_FOUND")


def test_should_show_an_agent_at_an_instant_and_after_it_is_gone(keiko, admin):
    made = done(admin.post("/agents", {"name": unique("x"), "description": "first"}), 201)
    time.sleep(0.02)
    instant = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{int(time.time() * 1000) % 1000:03}Z"
    time.sleep(0.02)
    done(admin.put(f"/agents/{made['id']}", {"name": made["attributes"]["name"], "description": "second"}))
    changed = position(admin)
    assert admin.delete(f"/agents/{made['id']}").status_code == 204
    assert done(admin.get(f"/agents/{made['id']}", at=instant))["attributes"]["description"] == "first"
    assert done(admin.get(f"/agents/{made['id']}", at=changed))["attributes"]["description"] == "second"
    refused(admin.get(f"/agents/{made['id']}"), 404)
    refused(admin.get(f"/agents/{made['id']}", at=position(admin)), 404)


@pytest.mark.parametrize("kind", ["users", "roles", "api-keys"])
def test_should_show_who_could_do_what(keiko, admin, kind):
    body = {
        "users": {"username": unique("u"), "password": "a long enough password", "roles": ["user"]},
        "roles": {"name": unique("r"), "permissions": ["tasks.read"]},
        "api-keys": {"name": unique("k"), "permissions": ["tasks.read"]},
    }[kind]
    made = done(admin.post(f"/{kind}", body), 201)
    before = position(admin)
    assert admin.delete(f"/{kind}/{made['id']}").status_code == 204
    assert done(admin.get(f"/{kind}/{made['id']}", at=before))["id"] == made["id"]
    refused(admin.get(f"/{kind}/{made['id']}"), 404)


def test_should_refuse_what_is_no_time_or_has_not_come(keiko, admin):
    made = done(admin.post("/agents", {"name": unique("x")}), 201)
    for bad in ("soon", "-1", "2026-13-01T00:00:00Z", ""):
        refused(admin.get(f"/agents/{made['id']}", at=bad), 400)
    refused(admin.get(f"/agents/{made['id']}", at=10**9), 422, "POSITION_AHEAD")
    refused(admin.get(f"/agents/{made['id']}", at="2020-01-01T00:00:00Z"), 404)


def test_should_keep_to_what_the_reader_may_see(keiko, admin):
    capability = unique("cap")
    keiko.agent(admin, capability)
    task = submit(admin, capability)
    stranger, boss = keiko.user(admin, ["user"]), keiko.tenant(admin)
    refused(stranger.get(f"/tasks/{task['id']}", at=position(admin)), 404)
    refused(boss.get(f"/tasks/{task['id']}", at=1), 404)


def test_should_say_what_changed_between_two_moments(keiko, admin):
    before = position(admin)
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    middle = position(admin)
    task = submit(admin, capability)
    agent.complete(agent.take())
    after = position(admin)
    whole = done(admin.get("/timeline/diff", **{"from": before, "to": after}))
    assert (whole["from"], whole["to"], whole["events"], whole["complete"]) == (before, after, after - before, True)
    by_id = {entity["id"]: entity for entity in whole["entities"]}
    assert by_id[task["id"]] == {
        "id": task["id"], "change": "created", "version_before": 0, "version_after": 3,
        "events": {"tasks.task.submitted": 1, "tasks.task.claimed": 1, "tasks.task.completed": 1},
    }
    later = done(admin.get("/timeline/diff", **{"from": middle}))
    assert {e["id"]: e["change"] for e in later["entities"]}[task["id"]] == "created"
    assert agent.id not in {e["id"] for e in later["entities"] if e["change"] == "created"}
    assert done(admin.get("/timeline/diff", **{"from": after, "to": after}))["entities"] == []
    refused(admin.get("/timeline/diff", **{"from": after, "to": before}), 400)
    refused(admin.get("/timeline/diff"), 400)
    refused(admin.get("/timeline/diff", **{"from": 10**9}), 422, "POSITION_AHEAD")
    boss = keiko.tenant(admin)
    assert task["id"] not in boss.get("/timeline/diff", **{"from": 0}).text


def test_should_replay_a_story_step_by_step(keiko, admin, tmp_path):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    task = submit(admin, capability)
    agent.complete(agent.take(), {"answer": 42})
    login = command(tmp_path, "login", "--server", keiko.url, "admin", "--password-stdin", stdin=ADMIN_PASSWORD)
    assert login.returncode == 0, login.stderr
    told = command(tmp_path, "events", "replay", task["id"])
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert [line.split()[3] for line in lines if "  by " in line] == ["tasks.task.submitted", "tasks.task.claimed", "tasks.task.completed"]
    assert '        status: "claimed"' in lines and '        status: "completed"' in lines
    steps = json.loads(command(tmp_path, "events", "replay", task["id"], "--output", "json").stdout)
    assert [step["changed"]["status"] for step in steps] == ["pending", "claimed", "completed"]
    assert command(tmp_path, "events", "replay", "nothing").returncode == 1
    shown = command(tmp_path, "tasks", "get", task["id"], "--at", steps[0]["event"]["position"])
    assert "pending" in shown.stdout
