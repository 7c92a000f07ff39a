"""Starts the real `keiko` binary and talks to it over its real interfaces.

Owns processes, ports and data directories of the tests. Knows the shapes of `api.md` (envelope, error, claim), but no test.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from urllib.parse import quote

import httpx2

REPO = Path(__file__).resolve().parent.parent
ADMIN_PASSWORD = "correct horse battery"
# A well-formed TypeID suffix that the server has never given out.
ABSENT_SUFFIX = "01h455vb4pex5vsknk084sn02q"
ROOT_PATHS = ("/api/", "/health", "/ready", "/metrics", "/openapi.json", "/docs", "/.well-known/", "/oauth/")
NOTHING = object()


def binary():
    """The binary under test: KEIKO_BIN, else the release build, else the debug build."""
    if os.environ.get("KEIKO_BIN"):
        return Path(os.environ["KEIKO_BIN"])
    target = Path(os.environ.get("CARGO_TARGET_DIR") or "target")
    target = target if target.is_absolute() else REPO / target
    for profile in ("release", "debug"):
        if (target / profile / "keiko").exists():
            return target / profile / "keiko"
    raise FileNotFoundError(f"no keiko binary under {target}; build it (cargo build --release) or set KEIKO_BIN")


def unique(prefix):
    """A name that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


def absent(prefix):
    """A well-formed id that names nothing."""
    return f"{prefix}_{ABSENT_SUFFIX}"


def until(condition, what, timeout=15.0, every=0.02):
    """Polls until `condition()` is truthy and returns its value; fails with `what` at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what} (last seen: {value!r})")
        time.sleep(every)


def free_port():
    """A port outside the ephemeral range: a client that connects while the server is down must not meet itself there."""
    for port in random.SystemRandom().sample(range(20000, 30000), 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise RuntimeError("no free port between 20000 and 30000")


def clean_env(home, env=None):
    """The caller's environment without its Keiko settings and proxies, with a home of its own. None unsets a variable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("KEIKO_") and not k.lower().endswith("_proxy")}
    kept.update(HOME=str(home), XDG_CONFIG_HOME=str(Path(home) / ".config"), NO_COLOR="1")
    kept.update(env or {})
    return {k: v for k, v in kept.items() if v is not None}


def path_of(*parts):
    """A path of names as people type them."""
    return "/" + "/".join(quote(p, safe="") for p in parts)


def printed_password(text):
    """The passwords that a command printed for its user: `… has the password X`, `password …: X`."""
    return re.findall(r"""(?i)\bpassword\b(?:[^\n:=]*[:=])?\s*["'`]?([^\s"'`]{12,})""", text)


class StartFailed(AssertionError):
    """The server exited or did not get ready."""

    def __init__(self, why, keiko):
        self.code = keiko.proc.poll()
        self.output = keiko.stdout() + keiko.logs()
        super().__init__(f"{why}; exit code {self.code}; output:\n{self.output[-4000:]}")


class _Pump(threading.Thread):
    """Collects what a process writes to a pipe (a pipe, so that limits on file sizes do not reach the captured logs)."""

    def __init__(self, pipe):
        super().__init__(daemon=True)
        self._pipe, self._bytes = pipe, bytearray()
        self.start()

    def run(self):
        while chunk := self._pipe.read1(65536):
            self._bytes += chunk
        self._pipe.close()

    def text(self):
        return bytes(self._bytes).decode("utf-8", "replace")


class Keiko:
    """One server process on one data directory. Can be stopped, killed and started again; keeps the logs of all its lives."""

    # Makes a database for a server; None when servers keep everything in their data directory.
    database = None

    def __init__(self, data_dir, env=None, port=0, password=ADMIN_PASSWORD, limits=None):
        self.data_dir = Path(data_dir)
        self.home = self.data_dir.parent
        database = {"KEIKO_DATABASE_URL": self.database()} if self.database else {}
        # On PostgreSQL a server is strict by default: administrators would need a second factor in every test.
        self.env = {"KEIKO_ADMIN_PASSWORD": password, "KEIKO_SECURITY_PROFILE": "development", **database, **(env or {})}
        self.password = password
        self.port_wanted = port
        self.limits = limits
        self.proc = None
        self.url = None
        self._earlier = ["", ""]
        self._clients = []

    def spawn(self, *extra):
        """Starts the process without waiting for it."""
        command = [str(binary()), "serve", "--data-dir", str(self.data_dir), "--listen", f"127.0.0.1:{self.port_wanted}", *extra]
        if self.proc:
            self._earlier = [self.stdout(), self.logs()]
        self.proc = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=clean_env(self.home, self.env), cwd=self.home, preexec_fn=self.limits,
        )
        self._out, self._err = _Pump(self.proc.stdout), _Pump(self.proc.stderr)
        return self

    def start(self, timeout=20.0):
        """Starts the process and waits until it serves."""
        return self.spawn().wait_until_ready(timeout)

    def start_in_new_home(self):
        """The same, where the folder above the data directory may be missing."""
        self.home.mkdir(parents=True, exist_ok=True)
        return self.start()

    def wait_until_ready(self, timeout=20.0):
        deadline = time.monotonic() + timeout
        while not (found := re.search(r"(?m)^listening on (http://127\.0\.0\.1:(\d+))\s*$", self._out.text())):
            if self.proc.poll() is not None:
                self._join()
                raise StartFailed("keiko exited before it listened", self)
            if time.monotonic() > deadline:
                self.kill()
                raise StartFailed(f"no line 'listening on http://127.0.0.1:PORT' on stdout within {timeout} s", self)
            time.sleep(0.005)
        self.url, self.port = found[1], int(found[2])
        anyone = self.client()
        until(lambda: anyone.get("/ready").status_code == 200, "/ready answers 200", timeout)
        return self

    def stop(self, timeout=20.0):
        """SIGTERM, then waits. Returns the exit code."""
        self.proc.send_signal(signal.SIGTERM)
        return self._wait(timeout)

    def kill(self):
        """SIGKILL, then waits."""
        if self.proc and self.proc.poll() is None:
            self.proc.kill()
        return self._wait(10)

    def restart(self, same_port=False):
        """Stops if running, then starts again on the same directory. Clients of an earlier life keep working with `same_port`."""
        if self.alive():
            self.stop()
        self.port_wanted = self.port if same_port else self.port_wanted
        return self.start()

    def alive(self):
        return self.proc is not None and self.proc.poll() is None

    def close(self):
        """Ends the process whatever its state, and closes all clients."""
        for client in self._clients:
            client.close()
        if self.proc:
            self.kill()

    def _wait(self, timeout):
        try:
            code = self.proc.wait(timeout)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait(10)
            raise AssertionError(f"keiko did not end within {timeout} s of the signal; logs:\n{self.logs()[-3000:]}") from None
        self._join()
        return code

    def _join(self):
        self._out.join(5)
        self._err.join(5)

    def stdout(self):
        return self._earlier[0] + self._out.text()

    def logs(self):
        return self._earlier[1] + self._err.text()

    def log_lines(self):
        """The structured log lines, parsed."""
        return [json.loads(line) for line in self.logs().splitlines() if line.startswith("{")]

    def client(self, token=None, api_key=None):
        client = Client(self.url, token, api_key)
        self._clients.append(client)
        return client

    def login(self, username="admin", password=None, tenant=None):
        """A client with a fresh access token. The answer's attributes are in its `session`."""
        body = {"username": username, "password": password or self.password}
        if tenant:
            body["tenant"] = tenant
        session = done(self.client().post("/auth/login", body), 200, 201)["attributes"]
        client = self.client(token=session["access_token"])
        client.session = session
        return client

    def user(self, admin, roles, password="a long enough password", tenant=None):
        """Creates a user with `roles` by `admin` and logs in as that user."""
        name = unique("user")
        made = done(admin.post("/users", {"username": name, "password": password, "roles": roles}), 201)
        client = self.login(name, password, tenant)
        client.id, client.name, client.password = made["id"], name, password
        return client

    def tenant(self, admin):
        """Creates a tenant by the default tenant's admin and logs in as its first user."""
        slug, password = unique("team"), "another long password"
        done(admin.post("/tenants", {"slug": slug, "name": slug, "admin": {"username": "boss", "password": password}}), 201)
        client = self.login("boss", password, slug)
        client.slug = slug
        return client

    def agent(self, admin, *capabilities, **fields):
        """Registers an agent by `admin`, gives it a key and lets it send its first heartbeat."""
        return Agent(self, admin, capabilities, **fields)


class Client:
    """HTTP as one identity. Paths without `/api/v1` get it. Answers are raw responses; `done` and `refused` open them."""

    def __init__(self, base, token=None, api_key=None):
        self.headers = {"Authorization": f"Bearer {token}"} if token else {"X-API-Key": api_key} if api_key else {}
        self.base = base
        self._http = httpx2.Client(base_url=base, trust_env=False, timeout=40, limits=httpx2.Limits(max_connections=64))

    def request(self, method, path, body=NOTHING, headers=None, timeout=None, **kw):
        if body is not NOTHING:
            kw["content"] = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        if timeout:
            kw["timeout"] = timeout
        full = path if path.split("/")[1] in ("mcp", "sse", "a2a") or path.startswith(ROOT_PATHS) else "/api/v1" + path
        return self._http.request(method, full, headers={**self.headers, **(headers or {})}, **kw)

    def get(self, path, headers=None, timeout=None, **params):
        """Query parameters with brackets: `get("/tasks", **{"filter[status]": "pending"})`."""
        return self.request("GET", path, headers=headers, timeout=timeout, params=params or None)

    def post(self, path, body=NOTHING, headers=None, **kw):
        return self.request("POST", path, body, headers, **kw)

    def put(self, path, body=NOTHING, headers=None):
        return self.request("PUT", path, body, headers)

    def delete(self, path, headers=None):
        return self.request("DELETE", path, headers=headers)

    def stream(self, path, headers=None, **params):
        return self._http.stream("GET", "/api/v1" + path, headers={**self.headers, **(headers or {})}, params=params or None, timeout=20)

    def events(self, after=0, **params):
        """All events after a position, page by page, oldest first."""
        found = []
        while page := done(self.get("/events", after=after, limit=500, **params)):
            found += page
            after = page[-1]["position"]
        return found

    def everything(self, path, **params):
        """All items of a list, page by page."""
        found, cursor = [], None
        while True:
            body = opened(self.get(path, limit=500, **params, **({"cursor": cursor} if cursor else {})))
            found += body["data"]
            cursor = body["meta"].get("next_cursor")
            if not cursor:
                return found

    def close(self):
        self._http.close()


def tool_server(admin, folder):
    """Registers an MCP server with one tool. Answers the server's id and the tool's full name."""
    listed, name = Path(folder) / f"{unique('tools')}.json", unique("s").replace("-", "_")
    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    listed.write_text(json.dumps([{"name": "echo", "description": "Says it again", "inputSchema": text}]))
    args = [str(Path(__file__).parent / "servers" / "odd.py"), str(listed), "well"]
    server = done(admin.post("/mcp-servers", {"name": name, "transport": {"type": "stdio", "command": sys.executable, "args": args}}), 201)
    until(lambda: admin.get(f"/tools/{name}__echo").status_code == 200, "the server's tool is listed")
    return server["id"], f"{name}__echo"


class Agent:
    """An agent with its own API key."""

    def __init__(self, keiko, admin, capabilities, **fields):
        body = {"name": unique("agent"), "capabilities": [{"name": c} if isinstance(c, str) else c for c in capabilities], **fields}
        made = done(admin.post("/agents", body), 201)
        self.id, self.name = made["id"], body["name"]
        self.key = done(admin.post(f"/agents/{self.id}/actions/issue-key"), 200, 201)["attributes"]["key"]
        self.api = keiko.client(api_key=self.key)
        self.heartbeat()
        until(lambda: done(admin.get(f"/agents/{self.id}"))["attributes"]["status"] == "up", f"{self.name} is up")

    def heartbeat(self, **load):
        return done(self.api.post(f"/agents/{self.id}/actions/heartbeat", {"load": load} if load else {}))

    def claim(self, most=1, wait_ms=0):
        return done(self.api.post("/tasks/actions/claim", {"max": most, "wait_ms": wait_ms}, timeout=wait_ms / 1000 + 20))

    def take(self, wait_ms=10_000):
        tasks = self.claim(1, wait_ms)
        assert len(tasks) == 1, f"{self.name} got no task within {wait_ms} ms"
        return tasks[0]

    def act(self, task, verb, token=None, **body):
        """An action of the claim's holder, with the task's own token unless another is given."""
        token = token or task["attributes"]["claim"]["token"]
        return self.api.post(f"/tasks/{task['id']}/actions/{verb}", {"claim_token": token, **body})

    def complete(self, task, output=None, **more):
        return done(self.act(task, "complete", output={} if output is None else output, **more))

    def fail(self, task, retryable=True):
        return done(self.act(task, "fail", error={"code": "BROKEN", "message": "it broke"}, retryable=retryable))

    def work(self, admin, capability, **fields):
        """Submits a task of `capability`, claims and completes it. Returns it as completed."""
        submitted = submit(admin, capability, **fields)
        task = self.take()
        assert task["id"] == submitted["id"]
        return self.complete(task)


def submit(client, capability, description=None, headers=None, **fields):
    """Submits a task and returns it."""
    body = {"capability": capability, "description": description or unique("do"), **fields}
    return done(client.post("/tasks", body, headers=headers), 201)


def task_of(client, task_id):
    """The task's attributes now."""
    return done(client.get(f"/tasks/{task_id}"))["attributes"]


def opened(response, *statuses):
    """The body of an answer that must have one of `statuses` (200 when none is named) and the envelope."""
    assert response.status_code in (statuses or (200,)), shown(response)
    body = response.json()
    assert set(body) == {"data", "meta"}, body
    meta = body["meta"]
    assert {"timestamp", "version", "request_id"} <= set(meta), meta
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", meta["timestamp"]), meta
    return body


def done(response, *statuses):
    """The `data` of an answer that must have one of `statuses` (200 when none is named)."""
    return opened(response, *statuses)["data"]


def refused(response, status, code=None):
    """The `error` of an answer that must have `status` (one or several) and the error envelope."""
    assert response.status_code in (status if isinstance(status, tuple) else (status,)), shown(response)
    body = response.json()
    assert set(body) == {"error", "meta"}, body
    error = body["error"]
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+", error["code"]), error
    assert error["message"] and error["hint"], f"an error says what is wrong and what to do: {error}"
    assert {"request_id", "timestamp"} <= set(body["meta"]), body
    assert code is None or error["code"] == code, error
    return error


def shown(response):
    request = response.request
    return f"{request.method} {request.url} answered {response.status_code}: {response.text[:1500]}"


def command(home, *args, env=None, stdin="", timeout=30):
    """Runs the binary as a command of a user whose home is `home`."""
    return subprocess.run(
        [str(binary()), *map(str, args)], input=stdin, capture_output=True, text=True, timeout=timeout, env=clean_env(home, env), cwd=home,
    )
