"""The erasure of a person: a canary in everything the person said is found nowhere afterwards, and the record is whole."""

import json
import socket
import threading
import time

import pytest

import postgres
from harness import ADMIN_PASSWORD, absent, command, done, refused, submit, task_of, tool_server, unique, until

CANARY = "cq7-" + "w5vkx9"


def erase(client, subject, **kw):
    """Asks for an erasure and waits until it is complete."""
    asked = done(client.post("/erasures", {"subject": subject}, **kw), 202)
    return until(lambda: (e := done(client.get(f"/erasures/{asked['id']}"))) and e["attributes"]["status"] == "completed" and e, "the erasure is complete", 30)


def person(keiko, admin, mark=CANARY, role="developer"):
    """A user whose name, client, tasks, keys and tool calls all hold the mark."""
    name, password = f"{mark}-{unique('maria')}", "a long enough password"
    made = done(admin.post("/users", {"username": name, "password": password, "roles": [role]}), 201)
    session = done(keiko.client().post("/auth/login", {"username": name, "password": password}, headers={"User-Agent": f"{mark}-browser"}), 200, 201)
    client = keiko.client(token=session["attributes"]["access_token"])
    client.headers["User-Agent"] = f"{mark}-browser"
    client.id, client.name = made["id"], name
    return client


def traces(keiko, mark):
    """Where a mark is found in what the server keeps."""
    found = [str(path) for path in keiko.data_dir.rglob("*") if path.is_file() and mark.encode() in path.read_bytes()]
    if keiko.database:
        found += in_tables(keiko.env["KEIKO_DATABASE_URL"].rsplit("/", 1)[1], mark)
    return found


def in_tables(database, mark):
    server = postgres.shared()
    tables = server.sql(database, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace").split()
    assert "events" in tables
    like = f"t::text LIKE '%{mark}%' OR t::text LIKE '%{mark.encode().hex()}%'"
    return [table for table in tables if server.sql(database, f"SELECT count(*) FROM {table} t WHERE {like}") != "0"]


def log_in(keiko, home):
    ran = command(home, "login", "--server", keiko.url, "admin", "--password-stdin", stdin=ADMIN_PASSWORD)
    assert ran.returncode == 0, ran.stderr


def idle(keiko, admin):
    """A capability whose only agent asks for nothing."""
    capability = unique("idle")
    keiko.agent(admin, capability)
    return capability


@pytest.fixture(scope="module")
def erased(keiko, admin, tmp_path_factory):
    """A person who did everything a person can do, and was erased."""
    capability = unique("cap")
    worker = keiko.agent(admin, capability)
    maria = person(keiko, admin, role="admin")
    done_task = submit(maria, capability, f"{CANARY} small", input={"note": f"{CANARY} small"})
    worker.complete(worker.take(), {"answer": f"{CANARY} small"})
    large = {"text": f"{CANARY} large " * 3_000}
    submit(maria, capability, input=large, headers={"Idempotency-Key": f"{CANARY}-key"})
    worker.complete(worker.take(), large)
    held = submit(maria, capability, f"{CANARY} held")
    claimed = worker.take()
    waiting = submit(maria, idle(keiko, admin), f"{CANARY} waiting")
    done(maria.post("/api-keys", {"name": f"{CANARY} key"}), 201)
    server, tool = tool_server(admin, tmp_path_factory.mktemp("tools"))
    done(admin.post(f"/tools/{tool}/actions/approve"), 200)
    for times in (2_000, 1):
        done(maria.post(f"/tools/{tool}/actions/call", {"arguments": {"text": f"{CANARY} called " * times}}))
    done(admin.post("/agents", {"name": unique("agent"), "capabilities": []}), 201)
    others = submit(admin, capability, "somebody else's", input={"note": "stays"})
    until(lambda: any(CANARY in str(entry) for entry in done(admin.get("/journal", limit=100))), "the call is in the journal")
    assert traces(keiko, CANARY), "the canary is found where it was put"
    result = erase(admin, maria.id)
    return {"result": result, "maria": maria, "tasks": [done_task["id"], held["id"], waiting["id"]], "claimed": claimed, "worker": worker, "others": others}


def test_should_leave_no_trace_of_what_a_person_said_in_any_file_or_table(keiko, erased):
    assert traces(keiko, CANARY) == []


def test_should_say_what_was_removed_and_what_stays(admin, erased):
    result = erased["result"]["attributes"]["result"]
    assert result["streams"] >= 7 and result["events"] >= 12 and result["journal_entries"] >= 1 and result["values"] >= 2, result
    listed = admin.everything("/erasures")
    assert erased["result"]["id"] in [e["id"] for e in listed]
    assert erased["result"]["attributes"]["subject"] == erased["maria"].id


def test_should_still_verify_and_count_what_was_erased(keiko, admin, erased, tmp_path):
    head = done(admin.get("/events", limit=500))[-1]["position"]
    until(lambda: int(admin.get("/audit/log/checkpoint").text.splitlines()[1]) >= head, "the record is sealed")
    log_in(keiko, tmp_path)
    ran = command(tmp_path, "audit", "verify")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for position in (1, head):
        proof = done(admin.get("/audit/log/inclusion", position=position))
        assert proof, "proofs of sealed entries are still given"


def test_should_show_erased_events_without_what_they_said(admin, erased):
    for task in erased["tasks"]:
        events = admin.events(stream=task)
        assert events[-1]["type"] == "audit.payload.erased" and events[-1]["data"] == {"erasure": erased["result"]["id"]}
        assert all(event["data"] is None for event in events[:-1]) and len(events) >= 2
        assert all(event["metadata"]["actor"]["address"] is None for event in events[:-1])


def test_should_not_find_the_person_any_more(keiko, admin, erased):
    maria = erased["maria"]
    for path in (f"/users/{maria.id}", f"/users/{maria.name}", *[f"/tasks/{task}" for task in erased["tasks"]]):
        refused(admin.get(path), 404)
        refused(admin.get(path, at=5), 404)
    refused(maria.get("/tasks"), 401)
    refused(keiko.client().post("/auth/login", {"username": maria.name, "password": "a long enough password"}), 401)
    again = done(admin.post("/users", {"username": maria.name, "password": "a long enough password", "roles": []}), 201)
    assert again["id"] != maria.id, "the name is free for somebody else"
    erase(admin, again["id"])


def test_should_call_off_work_that_was_still_open(admin, erased):
    refused(erased["worker"].act(erased["claimed"], "complete", output={}), (404, 409))


def test_should_leave_everybody_elses_work_alone(admin, erased):
    assert task_of(admin, erased["others"]["id"])["input"] == {"note": "stays"}


def test_should_answer_the_same_request_with_the_same_erasure(keiko, admin):
    mark = unique("twice")
    other = person(keiko, admin, mark)
    key = {"Idempotency-Key": unique("erase")}
    first = done(admin.post("/erasures", {"subject": other.name}, headers=key), 202)
    assert done(admin.post("/erasures", {"subject": other.name}, headers=key), 200, 202)["id"] == first["id"]
    until(lambda: done(admin.get(f"/erasures/{first['id']}"))["attributes"]["status"] == "completed", "it is complete", 30)
    refused(admin.post("/erasures", {"subject": other.name}), 404, "USER_NOT_FOUND")
    assert erase(admin, other.id)["attributes"]["result"]["events"] == 0, "by the id it can be asked for again, for what came late"


def test_should_refuse_what_makes_no_sense(keiko, admin):
    refused(admin.post("/erasures", {"subject": absent("user")}), 404, "USER_NOT_FOUND")
    refused(admin.post("/erasures", {"subject": "nobody of this name"}), 404, "USER_NOT_FOUND")
    refused(admin.post("/erasures", {"subject": "admin"}), (409, 422), "SELF_DELETE")
    refused(admin.post("/erasures", {"subject": ""}), 400)
    refused(admin.post("/erasures", {}), 400)
    refused(admin.post("/erasures", {"subject": "x", "why": "because"}), 400)
    refused(admin.get("/erasures/erasure_1"), 404, "ERASURE_NOT_FOUND")
    refused(admin.get(f"/erasures/{absent('erasure')}"), 404, "ERASURE_NOT_FOUND")


def test_should_let_nobody_erase_who_may_not(keiko, admin):
    victim = person(keiko, admin, unique("victim"))
    for role in ("developer", "analyst", "user", "ml-engineer"):
        refused(keiko.user(admin, [role]).post("/erasures", {"subject": victim.id}), 403, "PERMISSION_DENIED")
    officer = keiko.user(admin, ["security-officer"])
    refused(officer.post("/erasures", {"subject": victim.id}), 403, "PERMISSION_ESCALATION")
    done(victim.get("/tasks"))
    boss = person(keiko, admin, unique("boss"), role="admin")
    assert admin.delete(f"/users/{boss.id}").status_code == 204
    refused(officer.post("/erasures", {"subject": boss.id}), 403, "PERMISSION_ESCALATION")
    harmless = keiko.user(admin, [])
    erase(officer, harmless.id)


def test_should_not_erase_another_tenants_person(keiko, admin):
    victim = person(keiko, admin, unique("victim"))
    refused(keiko.tenant(admin).post("/erasures", {"subject": victim.id}), 404, "USER_NOT_FOUND")
    done(victim.get("/tasks"))


def test_should_finish_an_erasure_that_a_crash_cut_short(new_keiko):
    """Killed at some moment after the request was acknowledged: whatever was done by then, the rest follows."""
    server = new_keiko().start()
    admin = server.login()
    for delay in (0.0, 0.02, 0.08):
        mark = unique("crash")
        maria, capability = person(server, admin, mark), idle(server, admin)
        for n in range(120):
            # Large values too: they lie beside the events, and only the events know them.
            submit(maria, capability, f"{mark} {n}", input={"text": f"{mark} {n} " * 1_500})
        assert traces(server, mark)
        asked = done(admin.post("/erasures", {"subject": maria.id}), 202)
        time.sleep(delay)
        server.kill()
        server.start()
        admin = server.login()
        until(lambda: done(admin.get(f"/erasures/{asked['id']}"))["attributes"]["status"] == "completed", "it is complete after the crash", 30)
        assert traces(server, mark) == []


def test_should_go_on_working_while_a_person_is_erased(new_keiko):
    server = new_keiko().start()
    admin = server.login()
    maria, capability = person(server, admin), idle(server, admin)
    # Values that others have too are kept once, and belong to whoever refers to them.
    shared = [{"text": f"shared {n} " * 3_000} for n in range(20)]
    for n in range(200):
        submit(maria, capability, f"{CANARY} {n}", input=shared[n % len(shared)])
    failures, stop, theirs = [], threading.Event(), []

    def write():
        client = server.login()
        while not stop.is_set():
            value = shared[len(theirs) % len(shared)]
            answer = client.post("/tasks", {"capability": capability, "description": "others go on", "input": value})
            if answer.status_code != 201:
                failures.append(answer.text)
            else:
                theirs.append((answer.json()["data"]["id"], value))

    writer = threading.Thread(target=write)
    writer.start()
    erase(admin, maria.id)
    stop.set()
    writer.join()
    assert not failures and len(theirs) > len(shared)
    assert traces(server, CANARY) == []
    for task, value in theirs:
        assert task_of(admin, task)["input"] == value, "what others said is whole"


def test_should_erase_from_the_command_line(keiko, admin, tmp_path):
    maria = person(keiko, admin, unique("cli"))
    log_in(keiko, tmp_path)
    asked = command(tmp_path, "erasures", "create", maria.name)
    assert asked.returncode != 0 and "--yes" in asked.stderr, "nothing is erased without a yes"
    done(maria.get("/tasks"))
    ran = command(tmp_path, "erasures", "create", maria.name, "--yes")
    assert ran.returncode == 0 and "completed" in ran.stdout, ran.stdout + ran.stderr
    assert maria.id in command(tmp_path, "erasures", "list").stdout


def test_should_also_remove_what_a_request_brings_that_was_under_way(keiko, admin):
    """Its head came before the account ended, its body after the erasure was complete."""
    mark, capability = unique("late"), idle(keiko, admin)
    maria = person(keiko, admin, mark)
    host, port = keiko.url.removeprefix("http://").split(":")
    body = json.dumps({"capability": capability, "description": f"{mark} comes late"}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: {maria.headers['Authorization']}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + body[:10])
        time.sleep(0.3)
        erase(admin, maria.id)
        connection.sendall(body[10:])
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    status = int(answer.split(b" ")[1])
    assert status in (201, 401), answer
    if status == 201:
        assert traces(keiko, mark)
        erase(admin, maria.id)
    assert traces(keiko, mark) == []
