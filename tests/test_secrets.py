"""Canaries: no secret shows up in logs, events, answers or, in plain text, in any file of the data directory."""

import re

import pytest

from harness import Keiko, command, done, refused, submit, unique
from tokens import is_owner_only, public_key, signing_key

KEIKO_ENV = {"KEIKO_LOG_LEVEL": "debug", "KEIKO_CLAIM_TTL": "30s"}


def secret(name):
    return f"canary-{name}-{unique('x')}"


def run_through(server):
    """Does everything that touches a secret, also wrongly. Returns what must stay hidden, by name."""
    admin = server.login()
    hidden = {"admin password": server.password, "access token": admin.session["access_token"], "refresh token": admin.session["refresh_token"]}
    anyone = server.client()

    renewed = done(anyone.post("/auth/refresh", {"refresh_token": admin.session["refresh_token"]}), 200, 201)["attributes"]
    hidden |= {"second access token": renewed["access_token"], "second refresh token": renewed["refresh_token"]}
    admin = server.client(token=renewed["access_token"])

    user = server.user(admin, ["admin"], password=secret("user"))
    hidden["user password"] = user.password
    hidden["new password"] = secret("new")
    done(admin.put(f"/users/{user.id}", {"password": hidden["new password"]}))
    server.login(user.name, hidden["new password"])
    hidden["tenant password"] = secret("tenant")
    body = {"slug": unique("team"), "name": "x", "admin": {"username": "boss", "password": hidden["tenant password"]}}
    done(admin.post("/tenants", body), 201)

    key = done(admin.post("/api-keys", {"name": unique("key"), "permissions": ["tasks.read"]}), 201)["attributes"]["key"]
    hidden["api key"] = key.split("_", 2)[2]
    server.client(api_key=key).get("/tasks")
    agent = server.agent(admin, "canary-work")
    hidden["agent key"] = agent.key.split("_", 2)[2]
    submit(admin, "canary-work")
    agent.complete(agent.take())

    # Mistyped and stolen ones are secrets, too, and so is what a refused request carried.
    hidden |= {"wrong password": secret("wrong"), "wrong key": secret("key"), "wrong token": secret("token"), "wrong refresh": secret("refresh")}
    misplaced = hidden["misplaced password"] = secret("misplaced")
    answers = [
        anyone.post("/auth/login", {"username": "admin", "password": hidden["wrong password"]}),
        anyone.get("/tasks", headers={"X-API-Key": f"kk_default_{hidden['wrong key']}"}),
        anyone.get("/tasks", headers={"Authorization": f"Bearer {hidden['wrong token']}"}),
        anyone.post("/auth/refresh", {"refresh_token": hidden["wrong refresh"]}),
        admin.post("/users", {"username": 5, "password": misplaced}),
        admin.post("/users", {"username": "x", "password": [misplaced]}),
        anyone.post("/auth/login", {"username": "x", "password": {"is": misplaced}}),
    ]
    for answer in answers:
        refused(answer, (400, 401))
    server.client(token=admin.headers["Authorization"][7:]).post("/auth/logout")
    return hidden, "".join(answer.text for answer in answers)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A server with its secrets, after everything was done and it was stopped."""
    server = Keiko(tmp_path_factory.mktemp("secrets") / "data", env=KEIKO_ENV, password=secret("admin"))
    try:
        hidden, errors = run_through(server.start())
        admin = server.login()
        events = admin.get("/events", after=0, limit=500).text
        lists = ("/users", "/api-keys", "/agents", "/tasks", "/roles", "/queues")
        pages = "".join(admin.get(path, limit=500).text for path in lists) + admin.get("/metrics").text
        jwks = server.client().get("/.well-known/jwks.json").json()
        found = signing_key(server.data_dir, public_key(jwks, admin.session["access_token"])[1])
        with open(f"/proc/{server.proc.pid}/cmdline") as shown:
            process = shown.read()
        assert server.stop() == 0
        yield {"server": server, "hidden": hidden, "events": events, "pages": pages, "errors": errors, "key": found, "process": process}
    finally:
        server.close()


def leaks(hidden, text):
    """Names of the secrets in a text; for long ones a piece is enough."""
    return [name for name, value in hidden.items() if value in text or len(value) > 60 and value[-40:] in text]


def test_should_have_canaries_that_can_be_found(story):
    assert len(story["hidden"]) >= 14 and all(len(value) > 10 for value in story["hidden"].values())
    assert leaks(story["hidden"], f"x {story['hidden']['api key']} y") == ["api key"]
    assert len(story["server"].log_lines()) >= 20, "there are logs to search"
    assert story["events"].count('"evt_') >= 10, "there are events to search"


def test_should_keep_secrets_out_of_logs(story):
    assert leaks(story["hidden"], story["server"].logs() + story["server"].stdout()) == []


def test_should_keep_secrets_out_of_events_and_answers(story):
    assert leaks(story["hidden"], story["events"]) == []
    assert leaks(story["hidden"], story["pages"]) == []
    assert leaks(story["hidden"], story["errors"]) == [], "a refusal does not repeat a secret"


def test_should_keep_secrets_out_of_the_data_directory(story):
    files = [p for p in story["server"].data_dir.rglob("*") if p.is_file()]
    assert files
    for path in files:
        assert leaks(story["hidden"], path.read_bytes().decode("latin-1")) == [], path


def test_should_keep_secrets_out_of_the_process_list(story):
    assert leaks(story["hidden"], story["process"]) == []


def test_should_keep_key_files_to_their_owner(story):
    assert story["key"], "no file in the data directory holds the signing key in a known form"
    named = [p for p in story["server"].data_dir.rglob("*") if p.is_file() and re.search(r"(?i)key|secret|pem|seed|jwk", p.name)]
    for path in {story["key"][1], *named}:
        assert is_owner_only(path), f"{path} is readable by others"


def test_should_log_requests_with_their_ids(story):
    lines = story["server"].log_lines()
    assert all({"timestamp", "level"} <= set(line) for line in lines)
    text = story["server"].logs()
    for word in ("request_id", "tenant", "actor", "correlation_id"):
        assert word in text, f"logs carry {word}"


def test_should_mask_secrets_where_settings_are_shown(story):
    result = command(story["server"].home, "config", "show", env={"KEIKO_ADMIN_PASSWORD": story["server"].password})
    assert result.returncode == 0, result.stderr
    assert leaks(story["hidden"], result.stdout + result.stderr) == []
