"""Views: where they stand, and building them anew while everything goes on."""

import threading

from harness import ADMIN_PASSWORD, absent, command, done, refused, submit, unique, until


def view(admin):
    [found] = [v for v in done(admin.get("/views")) if v["id"] == "agent_stats"]
    return found["attributes"]


def rebuilt(admin, headers=None):
    asked = done(admin.post("/views/agent_stats/actions/rebuild", {}, headers=headers), 202)
    return until(lambda: (r := done(admin.get(f"/rebuilds/{asked['id']}"))) and r["attributes"]["status"] == "completed" and r, "it is rebuilt", 30)


def test_should_list_views_and_rebuild_one_while_work_goes_on(keiko, admin):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    agent.work(admin, capability)
    until(lambda: view(admin)["position"] > 0, "the view is there")
    before = view(admin)
    assert before["version"] == 1 and before["rebuilds"] == 0 and before["rebuilding"] is None
    stop, failures = threading.Event(), []

    def work():
        worker = keiko.agent(admin, capability)
        while not stop.is_set():
            submitted = admin.post("/tasks", {"capability": capability, "description": "goes on"})
            if submitted.status_code != 201:
                failures.append(submitted.text)
            for task in worker.claim():
                worker.complete(task)

    worker = threading.Thread(target=work)
    worker.start()
    first = rebuilt(admin)
    second = rebuilt(admin)
    stop.set()
    worker.join()
    assert not failures and second["attributes"]["position"] >= first["attributes"]["position"] > 0
    after = view(admin)
    assert (after["version"], after["rebuilds"]) == (1, 2) and after["rebuilding"] is None, "rebuilt twice"
    kinds = [event["type"] for event in admin.events(stream=first["id"])]
    assert kinds == ["views.rebuild.requested", "views.rebuild.completed"]
    position = view(admin)["position"]
    submit(admin, capability)
    agent.complete(agent.take())
    until(lambda: view(admin)["position"] > position, "the rebuilt view follows")


def test_should_show_the_same_records_after_a_rebuild_and_a_restart(new_keiko):
    server = new_keiko().start()
    admin = server.login()
    capability = unique("cap")
    agent = server.agent(admin, capability)
    for _ in range(3):
        agent.work(admin, capability)
    submit(admin, capability)
    agent.fail(agent.take(), retryable=False)

    def record(admin):
        found = [a for a in done(admin.get("/discovery", capability=capability)) if a["id"] == agent.id]
        return found[0]["attributes"] if found and found[0]["attributes"]["status"] == "up" else None

    before = until(lambda: record(admin), "the agent is found")
    rebuilt(admin)
    server.kill()
    server.start()
    admin = server.login()
    after = until(lambda: record(admin), "the agent is found again")
    assert after == before
    assert view(admin)["rebuilds"] == 1


def test_should_finish_a_rebuild_after_a_crash(new_keiko):
    server = new_keiko().start()
    asked = done(server.login().post("/views/agent_stats/actions/rebuild", {}), 202)
    server.kill()
    server.start()
    admin = server.login()
    until(lambda: done(admin.get(f"/rebuilds/{asked['id']}"))["attributes"]["status"] == "completed", "it is rebuilt", 30)


def test_should_refuse_what_makes_no_sense(keiko, admin):
    refused(admin.post("/views/nothing/actions/rebuild", {}), 404, "VIEW_NOT_FOUND")
    refused(admin.get(f"/rebuilds/{absent('rebuild')}"), 404, "REBUILD_NOT_FOUND")
    refused(admin.get("/rebuilds/x"), 404, "REBUILD_NOT_FOUND")
    key = {"Idempotency-Key": unique("once")}
    assert rebuilt(admin, key)["id"] == done(admin.post("/views/agent_stats/actions/rebuild", {}, headers=key), 200, 202)["id"]
    for role in ("user", "analyst", "developer", "security-officer"):
        refused(keiko.user(admin, [role]).post("/views/agent_stats/actions/rebuild", {}), 403)


def test_should_rebuild_from_the_command_line(keiko, admin, tmp_path):
    assert command(tmp_path, "login", "--server", keiko.url, "admin", "--password-stdin", stdin=ADMIN_PASSWORD).returncode == 0
    ran = command(tmp_path, "views", "rebuild", "agent_stats")
    assert ran.returncode == 0 and "completed" in ran.stdout, ran.stderr
    assert "agent_stats" in command(tmp_path, "views", "list").stdout
    ran = command(tmp_path, "views", "rebuild", "nothing")
    assert ran.returncode == 1 and "VIEW_NOT_FOUND" in ran.stderr
