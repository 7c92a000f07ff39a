"""The command line as a person and a script use it. Each test file has a home of its own, so that logins do not mix."""

import json
import stat
from pathlib import Path

import pytest

from harness import command, done, free_port, submit, unique

COMMANDS = [
    "serve", "login", "logout", "agents", "tasks", "events", "users", "keys", "tenants", "queues", "discover", "doctor", "admin", "config",
    "completions", "version",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cli(keiko, home):
    """Runs a command as a user who has logged in. Fails the test when the command fails."""
    run(home, "login", "admin", "--server", keiko.url, env={"KEIKO_PASSWORD": keiko.password})

    def call(*args, **kw):
        return run(home, *args, **kw).stdout

    return call


def run(home, *args, **kw):
    result = command(home, *args, **kw)
    assert result.returncode == 0, f"keiko {' '.join(map(str, args))} ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def items(text):
    """The list in a command's JSON: the API's envelope or the bare list."""
    value = json.loads(text)
    return value["data"] if isinstance(value, dict) else value


def item(text):
    """The resource in a command's JSON."""
    value = json.loads(text)
    return value.get("data", value)


def fields(resource):
    return {**resource, **resource.get("attributes", {})}


def failed(result):
    """What a person reads when a command fails: on stderr, no panic, no trace."""
    assert result.returncode != 0, result.stdout
    assert result.stderr.strip() and "panicked" not in result.stderr and "RUST_BACKTRACE" not in result.stderr
    return result.stderr


def test_should_say_its_version(home):
    for args in (["version"], ["--version"]):
        assert run(home, *args).stdout.strip().startswith("keiko ")


@pytest.mark.parametrize("name", COMMANDS)
def test_should_explain_every_command(home, name):
    overview = run(home, "--help").stdout
    assert name in overview
    text = run(home, name, "--help").stdout
    assert "Usage" in text and len(text.splitlines()) >= 4


def test_should_log_in_and_keep_the_tokens_for_the_owner_only(cli, home, keiko):
    kept = [p for p in Path(home).rglob("*") if p.is_file()]
    assert kept, "the login is remembered under the home"
    assert all(str(p).startswith(str(home / ".config")) for p in kept), "where XDG_CONFIG_HOME says"
    for path in kept:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert keiko.password not in path.read_text()
    assert isinstance(items(cli("agents", "list", "--output", "json")), list)


def test_should_not_log_in_with_a_wrong_password(keiko, tmp_path):
    result = command(tmp_path, "login", "admin", "--server", keiko.url, "--password-stdin", stdin="wrong\n")
    assert "INVALID_CREDENTIALS" in failed(result)
    assert "password" in failed(command(tmp_path, "login", "admin", "--server", keiko.url)).lower(), "without a terminal it says how to give one"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_should_list_agents_for_people_and_programs(cli, keiko, admin):
    agent = keiko.agent(admin, unique("cap"))
    table = cli("agents", "list")
    assert agent.name in table and "up" in table and not table.lstrip().startswith(("{", "["))
    found = [fields(a) for a in items(cli("agents", "list", "--output", "json"))]
    assert agent.id in [a["id"] for a in found] and agent.name in [a["name"] for a in found]
    assert fields(item(cli("agents", "get", agent.name, "--output", "json")))["id"] == agent.id


def test_should_submit_list_and_show_tasks(cli, keiko, admin):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    args = ["--capability", capability, "--description", "From the command line", "--input", '{"a": [1, 2]}', "--output", "json"]
    task = fields(item(cli("tasks", "submit", *args)))
    assert task["status"] == "pending" and task["input"] == {"a": [1, 2]}
    claimed = agent.take()
    assert claimed["id"] == task["id"]
    agent.complete(claimed, {"answer": 42})
    shown = fields(item(cli("tasks", "get", task["id"], "--output", "json")))
    assert shown["status"] == "completed" and shown["output"] == {"answer": 42}
    assert task["id"] in cli("tasks", "get", task["id"])
    assert task["id"] in [t["id"] for t in items(cli("tasks", "list", "--output", "json"))]
    assert task["id"] in cli("tasks", "list")


def test_should_explain_what_the_server_refused(cli, home):
    text = failed(command(home, "tasks", "submit", "--capability", unique("nobody"), "--description", "x"))
    assert "CAPABILITY_UNKNOWN" in text
    text = failed(command(home, "tasks", "get", "task_01h455vb4pex5vsknk084sn02q"))
    assert "TASK_NOT_FOUND" in text
    failed(command(home, "tasks", "submit", "--capability", "x", "--description", "x", "--input", "{no json"))
    failed(command(home, "dance"))


def test_should_list_events_and_users(cli, keiko, admin):
    capability = unique("cap")
    keiko.agent(admin, capability)
    task = submit(admin, capability)
    before = done(admin.get(f"/tasks/{task['id']}/events"))[0]["position"] - 1
    events = items(cli("events", "list", "--after", before, "--output", "json"))
    assert [e["stream"] for e in events][:1] == [task["id"]] and events[0]["type"] == "tasks.task.submitted"
    assert "tasks.task.submitted" in cli("events", "list", "--after", before)
    assert "admin" in [fields(u)["username"] for u in items(cli("users", "list", "--output", "json"))]
    assert "admin" in cli("users", "list")


def test_should_create_keys_that_work(cli, keiko):
    made = fields(item(cli("keys", "create", "--name", unique("key"), "--permission", "tasks.read", "--output", "json")))
    assert keiko.client(api_key=made["key"]).get("/tasks").status_code == 200
    assert keiko.client(api_key=made["key"]).get("/users").status_code == 403
    assert made["key"] not in cli("keys", "list") and made["id"] in cli("keys", "list", "--output", "json")
    cli("keys", "revoke", made["id"])
    assert keiko.client(api_key=made["key"]).get("/tasks").status_code == 401


def test_should_log_in_with_a_password_on_standard_input_and_log_out(keiko, tmp_path):
    run(tmp_path, "login", "admin", "--server", keiko.url, "--password-stdin", stdin=keiko.password + "\n")
    run(tmp_path, "agents", "list")
    run(tmp_path, "logout")
    assert "keiko login" in failed(command(tmp_path, "agents", "list", "--server", keiko.url))


def test_should_renew_a_login_whose_access_token_is_refused(keiko, tmp_path):
    run(tmp_path, "login", "admin", "--server", keiko.url, env={"KEIKO_PASSWORD": keiko.password})
    (kept,) = [p for p in tmp_path.rglob("*.json")]
    stored = json.loads(kept.read_text())
    for login in stored["logins"].values():
        login["access_token"] = "no.longer.good"
    kept.write_text(json.dumps(stored))
    run(tmp_path, "agents", "list")
    assert "no.longer.good" not in kept.read_text()


def test_should_show_why_an_agent_was_chosen(cli, keiko, admin):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    task = agent.work(admin, capability)
    table = cli("tasks", "decision", task["id"])
    assert agent.name in table and "LOAD" in table.upper() and "COST" in table.upper()


def test_should_examine_an_installation(cli, keiko):
    assert "ok" in cli("doctor", "--data-dir", keiko.data_dir).lower()


def test_should_show_settings_with_their_source_and_without_secrets(home):
    canary = unique("canary")
    text = run(home, "config", "show", env={"KEIKO_ADMIN_PASSWORD": canary, "KEIKO_CLAIM_TTL": "17s"}).stdout
    assert canary not in text
    lines = {line for line in text.splitlines() if "17s" in line}
    assert len(lines) == 1 and "KEIKO_CLAIM_TTL" in lines.pop(), "a value is shown with where it came from"
    assert "default" in text.lower()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_should_write_completions(home, shell):
    script = run(home, "completions", shell).stdout
    assert "keiko" in script and "agents" in script and len(script.splitlines()) > 20


def test_should_say_what_to_do_when_no_server_answers(home, tmp_path, keiko):
    url = f"http://127.0.0.1:{free_port()}"
    text = failed(command(tmp_path, "login", "admin", "--server", url, env={"KEIKO_PASSWORD": "x"}))
    assert url in text and "keiko serve" in text
    text = failed(command(tmp_path, "agents", "list", "--server", keiko.url))
    assert "keiko login" in text, "who has not logged in is told to"


def test_should_refuse_settings_that_make_no_sense(home, tmp_path):
    for name, value in (("KEIKO_CLAIM_TTL", "soon"), ("KEIKO_STORE_DISK_FREE_MIN", "much"), ("KEIKO_LOG_LEVEL", "loud")):
        text = failed(command(home, "serve", "--data-dir", tmp_path / "data", "--listen", "127.0.0.1:0", env={name: value}, timeout=10))
        assert name in text and value in text
    assert "--listen" in failed(command(home, "serve", "--data-dir", tmp_path / "data", "--listen", "nowhere"))
