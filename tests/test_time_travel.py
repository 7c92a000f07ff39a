"""How things were: `?at=` a position or an instant."""

import json
import time
from pathlib import Path

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


def test_should_show_every_list_as_it_was_seen_then(keiko, admin):
    """What the lists showed at each moment is what they show now of that moment."""
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    paths = ("tasks", "agents", "users", "roles", "queues", "api-keys", "tenants", "mcp-servers")
    seen = {}

    def look():
        at = position(admin)
        seen[at] = {path: admin.everything(f"/{path}") for path in paths}
        assert position(admin) == at, "nothing else happens meanwhile"

    look()
    task = submit(admin, capability)
    look()
    agent.complete(agent.take(), {"answer": 42})
    role = done(admin.post("/roles", {"name": unique("role"), "permissions": []}), 201)
    look()
    other = submit(admin, capability)
    done(admin.post(f"/tasks/{other['id']}/actions/cancel"))
    assert admin.delete(f"/roles/{role['id']}").status_code == 204
    done(admin.put(f"/queues/{unique('queue')}", {"paused": True}), 200, 201)
    look()
    for at, lists in seen.items():
        for path, items in lists.items():
            was = admin.everything(f"/{path}", at=at)
            if path == "agents":
                # What an agent reports of its load is no event.
                assert [a["id"] for a in was] == [a["id"] for a in items]
            else:
                assert was == items, (at, path)
    first, *_, last = seen
    of_then = opened(admin.get("/tasks", at=first, limit=1))
    assert of_then["meta"]["position"] == first
    assert task["id"] not in [t["id"] for t in admin.everything("/tasks", at=first)]
    pending = admin.everything("/tasks", at=list(seen)[1], **{"filter[status]": "pending"})
    assert task["id"] in [t["id"] for t in pending]
    assert task["id"] not in [t["id"] for t in admin.everything("/tasks", at=last, **{"filter[status]": "pending"})]
    assert admin.everything("/tasks", at=last, sort="created_at") == admin.everything("/tasks", at=last)[::-1]


def test_should_page_through_a_list_of_the_past(keiko, admin):
    capability = unique("cap")
    keiko.agent(admin, capability)
    tasks = [submit(admin, capability)["id"] for _ in range(7)]
    at = position(admin)
    submit(admin, capability)
    found, cursor = [], None
    while True:
        body = opened(admin.get("/tasks", at=at, limit=3, **{"filter[capability]": capability}, **({"cursor": cursor} if cursor else {})))
        found += [task["id"] for task in body["data"]]
        cursor = body["meta"].get("next_cursor")
        if not cursor:
            break
    assert found == tasks[::-1]


def test_should_refuse_lists_of_no_past(keiko, admin):
    refused(admin.get("/tasks", at="yesterday"), 400)
    refused(admin.get("/tasks", at=10**9), 422, "POSITION_AHEAD")
    refused(admin.get("/consumer-groups", at=1), 400)
    assert admin.everything("/tasks", at=0) == []


def test_should_show_lists_of_the_past_only_to_those_who_may_see_them(keiko, admin):
    capability = unique("cap")
    keiko.agent(admin, capability)
    reader = keiko.user(admin, ["user"])
    own, other = submit(reader, capability), submit(admin, capability)
    at = position(admin)
    ids = [task["id"] for task in reader.everything("/tasks", at=at)]
    assert own["id"] in ids and other["id"] not in ids
    stranger = keiko.tenant(admin)
    assert stranger.everything("/tasks", at=1) == []


def test_should_answer_while_a_long_past_is_put_together_and_forget_it_again(keiko, admin):
    """More moments than sessions are kept: old ones make room, and each answers what it should."""
    capability = unique("cap")
    keiko.agent(admin, capability)
    moments = []
    for _ in range(12):
        submit(admin, capability)
        moments.append((position(admin), len(moments) + 1))
    for at, count in moments + moments[::-1]:
        assert len(admin.everything("/tasks", at=at, **{"filter[capability]": capability})) == count


def test_should_show_the_past_on_the_command_line(keiko, admin, tmp_path):
    login = command(tmp_path, "login", "--server", keiko.url, "admin", "--password-stdin", stdin=ADMIN_PASSWORD)
    assert login.returncode == 0, login.stderr
    made = done(admin.post("/agents", {"name": unique("x"), "description": "first"}), 201)
    at = position(admin)
    assert admin.delete(f"/agents/{made['id']}").status_code == 204
    ran = command(tmp_path, "at", at, "agents", "list", "--all")
    assert ran.returncode == 0 and made["id"] in ran.stdout, ran.stderr
    assert made["id"] not in command(tmp_path, "agents", "list", "--all").stdout
    assert command(tmp_path, "at", at, "agents", "get", made["id"]).returncode == 0
    ran = command(tmp_path, "at", at, "users", "delete", "admin")
    assert ran.returncode == 1 and "The past cannot be changed" in ran.stderr


def test_should_hold_no_more_of_the_past_than_it_says(new_keiko):
    """Many moments, one after another: what made room is really gone."""
    server = new_keiko(env={"KEIKO_AGENT_LEASE": "10m"}).start()
    admin = server.login()
    capability = unique("cap")
    server.agent(admin, capability)
    for n in range(150):
        submit(admin, capability, input={"text": "x" * 15_000, "n": n})
    head = position(admin)

    def resident():
        line = next(line for line in Path(f"/proc/{server.proc.pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    for at in range(head - 10, head):
        opened(admin.get("/tasks", at=at, limit=1))
    before = resident()
    for at in range(head - 110, head - 10):
        opened(admin.get("/tasks", at=at, limit=1))
    assert resident() - before < 60, "100 more lists of 2 MB each are not held"
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 8, "nothing that is kept holds up the end"
