"""Backup, restore, point in time, drill: what is restored is what was, and nothing else is believed."""

import gzip
import json
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

import postgres
from harness import ADMIN_PASSWORD, Keiko, binary, clean_env, command, done, opened, refused, submit, task_of, tool_server, unique, until

CANARY = "zr4-" + "q8hhtm"
LISTS = ("tasks", "users", "roles", "queues", "api-keys", "tenants", "erasures", "mcp-servers")


class Site:
    """A server with something of everything, and a home for its operator, who is logged in."""

    def __init__(self, server, home, tools):
        self.server, self.home = server, home
        home.mkdir()
        self.keys = server.data_dir / "keys"
        self.log_in()
        self.admin = admin = server.login()
        self.capability = unique("cap")
        self.worker = server.agent(admin, self.capability)
        self.done = self.worker.work(admin, self.capability, input={"n": 1})
        self.large = self.worker.work(admin, self.capability, input={"text": "large " * 20_000})
        submit(admin, self.capability)
        self.claimed = self.worker.take()
        self.repeated = {"Idempotency-Key": unique("once")}
        self.waiting = submit(admin, self.capability, "once", headers=self.repeated, input={"n": 1.0})
        submit(admin, self.capability, priority=9)
        cancelled = submit(admin, self.capability)
        done(admin.post(f"/tasks/{cancelled['id']}/actions/cancel"))
        done(admin.post("/roles", {"name": unique("role"), "permissions": ["tasks.read"]}), 201)
        done(admin.put(f"/queues/{unique('queue')}", {"paused": True}), 200, 201)
        self.maria = server.user(admin, ["developer"])
        boss = server.tenant(admin)
        self.slug = boss.slug
        server.agent(boss, "theirs").work(boss, "theirs")
        _, tool = tool_server(admin, tools)
        done(admin.post(f"/tools/{tool}/actions/approve"))
        for times in (1, 9_000):
            done(admin.post(f"/tools/{tool}/actions/call", {"arguments": {"text": "called " * times}}))
        until(lambda: len([e for e in done(admin.get("/journal", limit=100)) if e["attributes"]["class"] == "tool_call"]) == 2, "calls are in the journal")

    def log_in(self):
        ran = command(self.home, "login", "--server", self.server.url, "admin", "--password-stdin", stdin=ADMIN_PASSWORD)
        assert ran.returncode == 0, ran.stderr

    def run(self, *args, env=None, code=0, timeout=60):
        ran = command(self.home, *args, "--output", "json", env=env, timeout=timeout)
        assert ran.returncode == code, f"{args}: {ran.stdout} {ran.stderr}"
        return json.loads(ran.stdout)["attributes"] if ran.stdout.startswith("{") else ran.stderr

    def refused(self, *args, env=None):
        return self.run(*args, env=env, code=1)

    def backup(self, name=None, **kw):
        path = self.home / (name or f"{unique('b')}.backup")
        self.run("backup", "create", path, **kw)
        return path

    def restore(self, path, *args, name=None, code=0, keys=None, env=None):
        target = self.home / (name or unique("restored")) / "data"
        told = self.run("backup", "restore", path, "--data-dir", target, "--keys", keys or self.keys, *args, code=code, env=env)
        return target if code == 0 else told


def everything(server, slug):
    """What the lists and the record of two tenants show."""
    admin = server.login()
    boss = server.login("boss", "another long password", slug)
    shown = {path: admin.everything(f"/{path}") for path in LISTS}
    shown["theirs"] = boss.everything("/tasks")
    shown["events"] = [admin.events(), boss.events()]
    # Signing in is an event of its own, and so is what agents do when a server starts.
    noise = ("identity.session.", "registry.agent.")
    shown["events"] = [[e for e in events if not e["type"].startswith(noise)] for events in shown["events"]]
    return json.loads(json.dumps(shown))


def embedded(target):
    """A server on a data directory, whatever the backend under test is."""
    server = Keiko(target, env={"KEIKO_GATEWAY_ALLOW_SPAWN": "false"})
    server.env.pop("KEIKO_DATABASE_URL", None)
    return server


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    home = tmp_path_factory.mktemp("site")
    server = Keiko(home / "server" / "data")
    try:
        yield Site(server.start_in_new_home(), home / "operator", tmp_path_factory.mktemp("tools"))
    finally:
        server.close()


@pytest.fixture
def serve():
    """Starts servers on what was restored."""
    servers = []

    def start(target):
        servers.append(embedded(target))
        return servers[-1].start()

    yield start
    for server in servers:
        server.close()


def test_should_restore_everything_as_it_was(site, serve):
    path = site.backup()
    before = everything(site.server, site.slug)
    server = serve(site.restore(path))
    after = everything(server, site.slug)
    for what in before:
        if what == "events":
            # Events after the backup are not in it.
            for old, new in zip(before[what], after[what]):
                assert new[: len(old)] == old[: len(new)] and len(new) >= len(old) - 5
        elif what == "mcp-servers":
            assert [s["id"] for s in after[what]] == [s["id"] for s in before[what]]
        else:
            assert after[what] == before[what], what
    admin = server.login()
    assert done(admin.get(f"/tasks/{site.large['id']}"))["attributes"]["input"] == {"text": "large " * 20_000}
    assert done(admin.post("/tasks", {"capability": site.capability, "description": "once", "input": {"n": 1.0}}, headers=site.repeated), 200, 201)["id"] == site.waiting["id"], "a repeated request is still the same request"
    agent = server.client(api_key=site.worker.key)
    token = site.claimed["attributes"]["claim"]["token"]
    done(agent.post(f"/tasks/{site.claimed['id']}/actions/complete", {"claim_token": token, "output": {}}))
    assert task_of(admin, site.claimed["id"])["status"] == "completed", "an agent goes on with what it had"
    calls = [e["attributes"]["position"] for e in done(admin.get("/journal", limit=100)) if e["attributes"]["class"] == "tool_call"]
    assert any("called " * 9_000 in admin.get(f"/journal/{call}").text for call in calls), "large values of the journal are there"


def test_should_verify_what_was_restored_before_a_server_saw_it(site):
    target = site.restore(site.backup())
    ran = command(site.home, "audit", "verify", "--from", target, "--forget")
    assert ran.returncode == 0 and ran.stdout.count("yes") == 4, ran.stdout + ran.stderr
    assert command(site.home, "doctor", "--data-dir", target).returncode == 0


def test_should_restore_a_position_and_an_instant(site, serve):
    admin = site.admin
    task = submit(admin, site.capability)
    position = opened(admin.get(f"/tasks/{task['id']}"))["meta"]["position"]
    time.sleep(0.01)
    instant = opened(admin.get("/tasks", limit=1))["meta"]["timestamp"]
    time.sleep(0.01)
    done(admin.post(f"/tasks/{task['id']}/actions/cancel"))
    later = submit(admin, site.capability)
    path = site.backup()
    for until_when in (str(position), instant):
        told = site.run("backup", "restore", path, "--data-dir", site.home / unique("r") / "data", "--keys", site.keys, "--until", until_when)
        assert told["events"] > 0
        target = site.restore(path, "--until", until_when)
        server = serve(target)
        then = server.login()
        assert task_of(then, task["id"])["status"] == "pending" and task_of(admin, task["id"])["status"] == "cancelled"
        refused(then.get(f"/tasks/{later['id']}"), 404)
        assert then.events()[:position] == admin.events()[:position]
        ran = command(site.home, "audit", "verify", "--from", site.restore(path, "--until", until_when), "--forget")
        assert ran.returncode == 0, ran.stderr
    assert "there is no position 99999999 in it" in site.restore(path, "--until", "99999999", code=1)
    assert "there is no position 0 in it" in site.restore(path, "--until", "0", code=1)
    assert "the record begins at" in site.restore(path, "--until", "2001-01-01T00:00:00Z", code=1)
    assert "nothing after that is in it" in site.restore(path, "--until", "2099-01-01T00:00:00Z", code=1)
    refused_as_usage = command(site.home, "backup", "restore", path, "--until", "yesterday")
    assert refused_as_usage.returncode == 2 and "is no position" in refused_as_usage.stderr


def test_should_refuse_a_backup_that_was_cut_short_or_altered(site):
    path = site.backup()
    whole = path.read_bytes()
    dice = random.Random(7)
    cuts = [whole[:n] for n in (0, 1, 20, len(whole) // 2, len(whole) - 1)]
    flips = [whole[:n] + bytes([whole[n] ^ (1 << dice.randrange(8))]) + whole[n + 1:] for n in (dice.randrange(10, len(whole)) for _ in range(40))]
    bad = site.home / "bad.backup"
    for altered in [*cuts, *flips, whole + b"x", whole + whole]:
        bad.write_bytes(altered)
        ran = command(site.home, "backup", "restore", bad, "--data-dir", site.home / "never" / "data", "--keys", site.keys)
        if ran.returncode == 0:
            # Bits of gzip's own that say nothing: the content is what was signed.
            assert altered in flips and gzip.decompress(altered) == gzip.decompress(whole)
            shutil.rmtree(site.home / "never")
            continue
        assert ran.returncode == 1 and ran.stderr.startswith("error: the backup"), ran.stdout + ran.stderr
        assert not (site.home / "never" / "data").exists()


def test_should_refuse_a_backup_that_somebody_rewrote_with_care(site):
    """Right gzip, right JSON, right line count: one word of one payload is another."""
    lines = gzip.decompress(site.backup().read_bytes()).splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if b"tasks.task.submitted" in line)

    def rewritten(change):
        bad = site.home / f"{unique('rewritten')}.backup"
        bad.write_bytes(gzip.compress(b"".join(change(list(lines)))))
        return bad

    def other_word(all_lines):
        event = json.loads(all_lines[place])
        event["event"]["text"] = event["event"]["text"].replace("description", "Description", 1)
        all_lines[place] = json.dumps(event).encode() + b"\n"
        return all_lines

    def other_secret(all_lines):
        at = next(n for n, line in enumerate(all_lines) if line.startswith(b'{"secret"'))
        secret = json.loads(all_lines[at])
        secret["secret"]["sealed"] = secret["secret"]["sealed"][:-8] + "AAAAAAA="
        all_lines[at] = json.dumps(secret).encode() + b"\n"
        return all_lines

    def one_less(all_lines):
        return all_lines[:place] + all_lines[place + 1:]

    def two_swapped(all_lines):
        all_lines[place], all_lines[place + 1] = all_lines[place + 1], all_lines[place]
        return all_lines

    def newer_form(all_lines):
        return [all_lines[0].replace(b'"form":1', b'"form":9'), *all_lines[1:]]

    for change in (other_word, other_secret, one_less, two_swapped):
        error = site.restore(rewritten(change), code=1)
        assert "damaged" in error, (change.__name__, error)
    assert "form 9" in site.restore(rewritten(newer_form), code=1)
    ran = command(site.home, "audit", "verify", "--from", rewritten(other_word))
    assert ran.returncode == 1, ran.stdout


def test_should_verify_a_backup_against_the_servers_key(site):
    path = site.backup()
    ran = command(site.home, "audit", "verify", "--from", path)
    assert ran.returncode == 0 and ran.stdout.count("yes") == 4, ran.stdout + ran.stderr
    stranger = "x+b0c0ffee+AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    assert command(site.home, "audit", "verify", "--from", path, "--key", stranger).returncode == 1


def test_should_refuse_other_keys_a_full_place_and_a_name_that_is_taken(site, tmp_path):
    path = site.backup()
    other = embedded(tmp_path / "other" / "data").start_in_new_home()
    other.stop()
    error = site.restore(path, keys=other.data_dir / "keys", code=1)
    assert "not signed by" in error or "key files are not those" in error, error
    assert "key file" in site.restore(path, keys=tmp_path, code=1)
    full = site.restore(path, name="full")
    (full / "something").write_text("here")
    assert "is not empty" in site.restore(path, name="full", code=1)
    assert "exists already" in site.refused("backup", "create", path)
    (site.home / "empty").mkdir(exist_ok=True)
    assert "there is no backup" in site.restore(site.home / "empty", code=1)
    assert "cannot be read" in site.restore(site.home / "nothing.backup", code=1)
    (site.home / "text.backup").write_text("this is no backup")
    assert "does not begin like a backup" in site.restore(site.home / "text.backup", code=1)


def test_should_make_a_backup_while_others_write_and_lose_nothing_acknowledged_before(site, serve):
    stop, written = threading.Event(), []

    def write():
        client = site.server.login()
        while not stop.is_set():
            written.append(submit(client, site.capability)["id"])

    writers = [threading.Thread(target=write) for _ in range(3)]
    [writer.start() for writer in writers]
    until(lambda: len(written) > 50, "some are written")
    before = list(written)
    path = site.backup()
    stop.set()
    [writer.join() for writer in writers]
    restored = {task["id"] for task in serve(site.restore(path)).login().everything("/tasks")}
    assert set(before) <= restored and len(written) > len(before)
    for task in written:
        done(site.admin.post(f"/tasks/{task}/actions/cancel"))


def test_should_back_up_a_stopped_server_and_leave_no_half_backup_of_a_killed_one(site, tmp_path, serve):
    first = serve(site.restore(site.backup()))
    first.stop()
    path = site.home / "offline.backup"
    told = site.run("backup", "create", path, "--offline", "--data-dir", first.data_dir)
    assert told["events"] > 10 and path.stat().st_mode & 0o077 == 0
    assert "no data directory" in site.refused("backup", "create", site.home / "x.backup", "--offline", "--data-dir", tmp_path / "none")
    server = first.start()
    assert "in use" in site.refused("backup", "create", site.home / "x.backup", "--offline", "--data-dir", first.data_dir)
    home = tmp_path / "other-operator"
    home.mkdir()
    assert command(home, "login", "--server", server.url, "admin", "--password-stdin", stdin=ADMIN_PASSWORD).returncode == 0
    folder = tmp_path / "killed"
    going = subprocess.Popen([str(binary()), "backup", "create", f"{folder}/"], env=clean_env(home, {}), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    server.kill()
    going.wait(30)
    assert going.returncode in (0, 1)
    left = [path.name for path in folder.iterdir()] if folder.exists() else []
    assert all(name.endswith((".backup", ".json")) for name in left) and (going.returncode == 0) == bool(left), left


def test_should_apply_erasures_again_and_keep_the_erased_out_of_new_backups(site, serve):
    folder = site.home / "kept"
    maria = site.server.user(site.admin, ["developer"])
    task = submit(maria, site.capability, f"{CANARY} she said", input={"note": f"{CANARY} " * 5_000})
    site.run("backup", "create", f"{folder}/")
    [old] = folder.glob("*.backup")
    assert CANARY.encode() in gzip.decompress(old.read_bytes())
    asked = done(site.admin.post("/erasures", {"subject": maria.id}), 202)
    until(lambda: done(site.admin.get(f"/erasures/{asked['id']}"))["attributes"]["status"] == "completed", "she is erased", 30)
    site.run("backup", "create", f"{folder}/")
    new = max(folder.glob("*.backup"))
    assert new != old and CANARY.encode() not in gzip.decompress(new.read_bytes())
    for path, more in ((new, ()), (old, ()), (shutil.copy(old, site.home / "alone.backup"), ("--erasures", new))):
        target = site.restore(path, *more)
        found = [str(file) for file in target.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
        assert found == [], (path, found)
        server = serve(target)
        refused(server.login().get(f"/tasks/{task['id']}"), 404)
        server.stop()
        ran = command(site.home, "audit", "verify", "--from", target, "--forget")
        assert ran.returncode == 0, ran.stderr
    shutil.copy(old, site.home / "forgetful.backup")
    target = site.restore(site.home / "forgetful.backup")
    assert any(CANARY.encode() in file.read_bytes() for file in target.rglob("*") if file.is_file()), "this test can see what came back"


def test_should_leave_nothing_half_restored_when_it_is_killed(site):
    for n in range(400):
        site.admin.post("/roles", {"name": unique("role"), "permissions": []})
    path = site.backup()
    for delay in (0.02, 0.05, 0.1):
        target = site.home / unique("half") / "data"
        going = subprocess.Popen(
            [str(binary()), "backup", "restore", str(path), "--data-dir", str(target), "--keys", str(site.keys)],
            env=clean_env(site.home, {}), cwd=site.home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        time.sleep(delay)
        going.kill()
        going.wait()
        assert not target.exists() or going.returncode == 0
        again = site.run("backup", "restore", path, "--data-dir", target, "--keys", site.keys) if not target.exists() else {"events": 1}
        assert again["events"] > 0 and [p.name for p in target.parent.iterdir()] == ["data"]


def test_should_drill_and_say_when_it_takes_too_long(site):
    told = site.run("drill", "restore", "--keys", site.keys)
    assert 0 < told["rto_s"] < 60 and told["rpo_s"] < 5 and told["events"] > 10
    folder = site.home / "drilled"
    site.run("backup", "create", f"{folder}/")
    submit(site.admin, site.capability)
    time.sleep(1.2)
    told = site.run("drill", "restore", "--from", folder, "--keys", site.keys)
    assert told["newer_events"] >= 1 and told["rpo_s"] >= 1.2
    ran = command(site.home, "drill", "restore", "--from", folder, "--keys", site.keys, "--rpo-max", "0", timeout=60)
    assert ran.returncode == 1 and "larger than it may be" in ran.stderr
    ran = command(site.home, "drill", "restore", "--from", folder, "--keys", site.keys, "--server", "http://127.0.0.1:1", timeout=60)
    assert ran.returncode == 0 and "was not read" in ran.stderr, ran.stderr


def test_should_give_backups_to_administrators_of_the_default_tenant_only(site):
    for role in ("developer", "security-officer", "user"):
        refused(site.server.user(site.admin, [role]).post("/backups"), 403, "PERMISSION_DENIED")
    refused(site.server.login("boss", "another long password", site.slug).post("/backups"), 403, "PERMISSION_DENIED")
    refused(site.server.client().post("/backups"), 401)
    assert any(e["attributes"]["kind"] == "audit.backup.made" for e in done(site.admin.get("/journal", limit=500)))


def test_should_restore_between_kinds_of_stores(site, serve):
    """From the store under test into PostgreSQL, and from there into a data directory."""
    before = everything(site.server, site.slug)
    url = postgres.shared().database()
    env = {"KEIKO_DATABASE_URL": url}
    path = site.backup()
    home = site.home / unique("pg")
    told = site.run("backup", "restore", path, "--data-dir", home / "data", "--keys", site.keys, env=env)
    assert told["tenants"] == 2
    assert "a record already" in site.run("backup", "restore", path, "--data-dir", home / "data", env=env, code=1)
    server = embedded(home / "data")
    server.env["KEIKO_DATABASE_URL"] = url
    try:
        after = everything(server.start(), site.slug)
        assert after["tasks"] == before["tasks"] and after["theirs"] == before["theirs"]
        server.stop()
        back = site.home / "back.backup"
        site.run("backup", "create", back, "--offline", "--data-dir", home / "data", env=env)
        again = everything(serve(site.restore(back, keys=home / "data" / "keys")), site.slug)
        assert again["tasks"] == before["tasks"] and again["users"] == before["users"]
    finally:
        server.close()


def test_should_read_what_the_first_form_of_backups_holds(site, serve):
    """A backup by the first version that made them, with an event whose shape has changed since."""
    old = Path(__file__).parent / "data" / "form1"
    admin = serve(site.restore(old / "old.backup", keys=old / "keys")).login()
    tasks = admin.everything("/tasks")
    assert sorted(task["attributes"]["status"] for task in tasks) == ["cancelled", "cancelled", "completed", "failed", "pending"]
    cancelled = [task for task in tasks if task["attributes"]["status"] == "cancelled"]
    for task in cancelled:
        assert task["attributes"]["error"] is None, "it was called off before a reason could be given"
        assert admin.events(stream=task["id"])[-1]["data"] == {}, "what is stored stays as it was"
    pending = next(task for task in tasks if task["attributes"]["status"] == "pending")
    done(admin.post(f"/tasks/{pending['id']}/actions/cancel", {"reason": "no longer needed"}))
    assert task_of(admin, pending["id"])["error"] == {"code": "CANCELLED", "message": "no longer needed"}
    assert admin.events(stream=pending["id"])[-1]["data"] == {"reason": "no longer needed"}


def test_should_restore_a_consumer_group_that_worked_while_the_backup_was_made(site, serve):
    """The group goes on where it was, never ahead of the log that was copied; nothing that it had not done is left out."""
    admin, stop, settled = site.server.login(), threading.Event(), set()
    group = done(admin.post("/consumer-groups", {"name": unique("group"), "mode": "shared", "start": "now", "filter": {"type": "tasks.*"}}), 201)["id"]

    def write():
        client = site.server.login()
        while not stop.is_set():
            submit(client, site.capability)

    def consume():
        client = site.server.login()
        while not stop.is_set():
            got = done(client.post(f"/consumer-groups/{group}/actions/fetch", {"consumer": "c", "limit": 5, "wait_ms": 50}))
            if got:
                done(client.post(f"/consumer-groups/{group}/actions/ack", {"tokens": [d["token"] for d in got]}))
                settled.update(d["event"]["position"] for d in got)

    threads = [threading.Thread(target=work) for work in (write, write, consume)]
    [thread.start() for thread in threads]
    until(lambda: len(settled) > 30, "the group works")
    path = site.backup()
    stop.set()
    [thread.join() for thread in threads]
    then = serve(site.restore(path)).login()
    logged = {e["position"] for e in then.events(type="tasks.*") if e["position"] >= min(settled)}
    again = set()
    while got := done(then.post(f"/consumer-groups/{group}/actions/fetch", {"consumer": "c", "limit": 500})):
        again |= {d["event"]["position"] for d in got}
        done(then.post(f"/consumer-groups/{group}/actions/ack", {"tokens": [d["token"] for d in got]}))
    assert logged <= settled | again, "what was not settled comes again"
    new = submit(then, site.capability)
    got = done(then.post(f"/consumer-groups/{group}/actions/fetch", {"consumer": "c", "wait_ms": 5_000}))
    assert [d["event"]["stream"] for d in got] == [new["id"]], "and what is new follows"


def test_should_take_the_newest_backup_whatever_it_is_called(site):
    folder = site.home / "many"
    folder.mkdir()
    site.run("backup", "create", folder / "zzz-before-the-upgrade.backup")
    submit(site.admin, site.capability)
    newer = site.run("backup", "create", f"{folder}/")
    (folder / "zzzz.backup").write_text("not one")
    assert site.run("backup", "show", folder)["events"] == newer["events"]
    assert command(site.home, "audit", "verify", "--from", folder).returncode == 0


def test_should_restore_beside_key_files_and_never_take_them_away(site):
    path = site.backup()
    target = site.home / unique("keys-only") / "data"
    shutil.copytree(site.keys, target / "keys")
    told = site.run("backup", "restore", path, "--data-dir", target)
    assert told["events"] > 10 and (target / "keys" / "sealing.key").read_bytes() == (site.keys / "sealing.key").read_bytes()
    assert [entry.name for entry in target.parent.iterdir()] == ["data"]
    link, real = site.home / unique("link"), site.home / unique("real")
    real.mkdir()
    link.symlink_to(real)
    site.run("backup", "restore", path, "--data-dir", link, "--keys", site.keys)
    assert link.is_symlink() and (real / "keiko.db").exists()
    left = site.home / "left.restoring"
    shutil.copytree(site.keys, left / "keys")
    assert "move the key files elsewhere" in site.run("backup", "restore", path, "--data-dir", site.home / "left", "--keys", left / "keys", code=1)
    assert (left / "keys" / "sealing.key").exists()


def test_should_leave_nothing_behind_when_it_is_interrupted(site):
    folder = site.home / "kept-for-interrupts"
    site.run("backup", "create", f"{folder}/")
    for command_line in (["drill", "restore", "--from", folder, "--keys", site.keys], ["backup", "create", f"{site.home / 'interrupted'}/"]):
        temporary = site.home / unique("tmp")
        temporary.mkdir()
        going = subprocess.Popen(
            [str(binary()), *map(str, command_line)], env={**clean_env(site.home, {}), "TMPDIR": str(temporary)}, cwd=site.home,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        time.sleep(0.15)
        going.terminate()
        _, stderr = going.communicate(timeout=20)
        assert list(temporary.iterdir()) == [], stderr
        assert not list(site.home.glob("interrupted/*.part"))


def test_should_erase_again_at_a_moment_before_there_was_a_journal(tmp_path, serve):
    server = Keiko(tmp_path / "small" / "data").start_in_new_home()
    try:
        admin = server.login()
        maria = server.user(admin, ["developer"])
        asked = done(admin.post("/erasures", {"subject": maria.id}), 202)
        until(lambda: done(admin.get(f"/erasures/{asked['id']}"))["attributes"]["status"] == "completed", "she is erased", 30)
        home = tmp_path / "operator"
        home.mkdir()
        assert command(home, "login", "--server", server.url, "admin", "--password-stdin", stdin=ADMIN_PASSWORD).returncode == 0
        assert command(home, "backup", "create", home / "mini.backup").returncode == 0
        for position in range(1, 8):
            ran = command(home, "backup", "restore", home / "mini.backup", "--data-dir", home / f"r{position}", "--keys", server.data_dir / "keys", "--until", position)
            assert ran.returncode == 0, (position, ran.stderr)
    finally:
        server.close()
