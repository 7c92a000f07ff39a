"""Servers by other hands behind Keiko, before it clients by other hands, of four generations: each uses each.

It prints how many of these pairs worked, which may only grow.
"""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import clean_env, done, free_port, unique, until

KEIKO_ENV = {"KEIKO_GATEWAY_ALLOW_PRIVATE": "true"}
HERE = Path(__file__).parent
MODULES, PEERS = HERE / "node_modules", HERE / "peers" / "mcp"
# Where older versions of the Python client lie; `make test` puts them there.
OLDER = Path(os.environ.get("KEIKO_PEERS", HERE.parent / ".cache" / "peers"))
PYTHON = {"1.9.4": "2025-03-26", "1.16.0": "2025-06-18", "1.30.0": "2025-11-25"}
JAVASCRIPT = {"mcp-sdk-1-10": "2024-11-05", "mcp-sdk-1-17": "2025-06-18", "mcp-sdk-1-24": "2025-11-25", "@modelcontextprotocol/sdk": "2025-11-25", "@modelcontextprotocol/client": "2026-07-28"}
pytestmark = [pytest.mark.embedded, pytest.mark.timeout(240)]  # The protocol is the same on every store.


def text(said):
    return lambda answer: answer["content"][0]["text"] == said


def says(word):
    return lambda answer: word in json.dumps(answer)


def fleet(folder):
    """Servers by name: how each is started, and what is asked of it with what it must answer."""
    repository = folder / "repository"
    repository.mkdir()
    git = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-C", str(repository)]
    subprocess.run([*git, "init", "-q"], check=True)
    (repository / "note.txt").write_text("Buy milk.\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "the first commit"], check=True)
    node = lambda package, *args: {"type": "stdio", "command": shutil.which("node"), "args": [str(MODULES / "@modelcontextprotocol" / package / "dist" / "index.js"), *args]}  # noqa: E731
    python = lambda module, *args: {"type": "stdio", "command": sys.executable, "args": ["-m", module, *args]}  # noqa: E731
    call = lambda name, check, **arguments: (["tools/call", {"name": name, "arguments": arguments}], check)  # noqa: E731
    today = (["resources/read", {"uri": "memo://today"}], says("Buy milk."))
    milk = (["resources/read", {"uri": "memo://milk"}], says("The note milk."))
    fast = [call("shout", text("HELLO!"), text="hello"), call("add", lambda a: a["structuredContent"] == {"sum": 5}, a=2, b=3), call("count", text("3"), to=3), today, milk]
    everything = [
        call("echo", text("Echo: hello"), message="hello"), call("get-sum", says("is 5"), a=2, b=3), call("get-tiny-image", says("image/png")),
        call("get-structured-content", lambda a: "temperature" in a["structuredContent"], location="Chicago"),
        call("trigger-long-running-operation", says("completed"), duration=1, steps=3), call("get-resource-links", says("demo://"), count=2),
        (["resources/read", {"uri": "demo://resource/static/document/features.md"}], says("Features")), (["prompts/get", {"name": "simple-prompt"}], says("simple prompt")),
        # It makes a task of every call; whoever knows none is waited for.
        call("simulate-research-query", says("Research Report: bees"), topic="bees"),
    ]  # fmt: skip
    return {
        "everything": (node("server-everything", "stdio"), everything),
        "filesystem": (node("server-filesystem", str(repository)), [call("list_directory", says("note.txt"), path=str(repository)), call("read_text_file", says("Buy milk."), path=str(repository / "note.txt"))]),
        "memory": (
            node("server-memory") | {"env": {"MEMORY_FILE_PATH": str(folder / "memory.jsonl")}},
            [call("create_entities", says("entities"), entities=[{"name": "Ada", "entityType": "person", "observations": ["writes programs"]}]), call("search_nodes", says("writes programs"), query="Ada")],
        ),
        "time": (python("mcp_server_time"), [call("convert_time", says("T09:00:00+06:00"), source_timezone="Asia/Tokyo", time="12:00", target_timezone="Asia/Dhaka")]),
        "git": (python("mcp_server_git", "--repository", str(repository)), [call("git_log", says("the first commit"), repo_path=str(repository)), call("git_status", says("clean"), repo_path=str(repository))]),
        "fast_stdio": (python("fast_server", "stdio") | {"env": {"PYTHONPATH": str(PEERS)}}, fast),
        "fast_http": (None, fast),
    }  # fmt: skip


class Fleet:
    def __init__(self, admin, folder):
        self.members, self.processes, self.names = fleet(folder), [], {}
        for name, (how, _) in self.members.items():
            self.names[name] = unique(name).replace("-", "_")
            done(admin.post("/mcp-servers", {"name": self.names[name], "transport": how or self.over_http()}), 201)
        for name in self.names.values():
            until(lambda name=name: done(admin.get(f"/mcp-servers/{name}"))["attributes"]["status"] == "ready", f"{name} is ready", 60)
        self.doors = {}
        for name, own in self.names.items():
            self.doors[name] = unique(name.replace("_", "-"))
            done(admin.post("/virtual-servers", {"name": self.doors[name], "members": [{"server": own, "prefix": ""}]}), 201)
        self.key = done(admin.post("/api-keys", {"name": unique("key")}), 201)["attributes"]["key"]

    def over_http(self):
        port = free_port()
        self.processes.append(subprocess.Popen([sys.executable, PEERS / "fast_server.py", "http", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return {"type": "http", "url": f"http://127.0.0.1:{port}/mcp", "headers": {}}

    def work(self, name):
        """What is asked of one server, and what each answer must be."""
        steps = self.members[name][1]
        return [step for step, _ in steps], [check for _, check in steps]


@pytest.fixture(scope="module")
def servers(admin, tmp_path_factory):
    assert (MODULES / "@modelcontextprotocol" / "server-everything").exists() and shutil.which("node"), "run 'npm ci' in tests/ first"
    made = Fleet(admin, tmp_path_factory.mktemp("fleet"))
    yield made
    for name in made.names.values():
        admin.delete(f"/mcp-servers/{name}")
    for process in made.processes:
        process.kill()
        process.wait()


def clients(folder):
    """Commands of the clients with their environments, by name, and the version that each must agree on."""
    env = clean_env(folder)
    for package, version in JAVASCRIPT.items():
        yield f"javascript {package}", ["node", PEERS / "client.mjs", package], env, version
    for release, version in PYTHON.items():
        assert (OLDER / release / "mcp").exists(), f"run 'make test' once, or put mcp {release} into {OLDER / release}"
        yield f"python {release}", [sys.executable, PEERS / "client.py"], {**env, "PYTHONPATH": str(OLDER / release)}, version
    yield "python 2.3.0", [sys.executable, PEERS / "client.py"], env, "2026-07-28"
    yield "fastmcp", [sys.executable, PEERS / "fast_client.py"], env, None


def used(servers, keiko, command, env, server, path="mcp"):
    """What a client says of its work at one server: the version, and what was wrong."""
    steps, checks = servers.work(server)
    env = {**env, "KEIKO_URL": f"{keiko.url}/{path}/{servers.doors[server]}", "KEIKO_KEY": servers.key}
    ran = subprocess.run(command, input=json.dumps([["tools/list", {}], *steps]), capture_output=True, text=True, env=env, cwd=PEERS, timeout=120)
    assert ran.returncode == 0, f"{server}: {ran.stderr[-2000:]}"
    said = json.loads(ran.stdout)
    tools, *answers = said["answers"]
    wrong = [] if tools.get("tools") else [("tools/list", tools)]
    for step, check, answer in zip(steps, checks, answers, strict=True):
        if "failed" in answer or not check(answer):
            wrong.append((step, json.dumps(answer)[:500]))
    return said["version"], wrong, len(answers) + 1


def test_should_let_every_client_use_every_server(keiko, servers, tmp_path):
    pairs = [(client, server) for client in clients(tmp_path) for server in servers.names]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda pair: used(servers, keiko, *pair[0][1:3], pair[1]), pairs))
    wrong = [f"{client[0]} at {server}: {problems}" for (client, server), (_, problems, _) in zip(pairs, found, strict=True) if problems]
    assert not wrong, "\n".join(wrong)
    for (client, server), (version, _, _) in zip(pairs, found, strict=True):
        assert version is None or version == client[3], f"{client[0]} at {server} speaks {version}"
    print(f"fleet: {len(pairs)} pairs of {len(servers.names)} servers and {len(pairs) // len(servers.names)} clients, {sum(asked for _, _, asked in found)} requests")
    assert len(pairs) >= 70


@pytest.mark.parametrize("release", ["python 1.9.4", "javascript mcp-sdk-1-10"])
def test_should_let_the_oldest_way_in_be_used(keiko, servers, tmp_path, release):
    _, command, env, _ = next(client for client in clients(tmp_path) if client[0] == release)
    for server in servers.names:
        _, wrong, _ = used(servers, keiko, command, env, server, "sse")
        assert not wrong, f"{server}: {wrong}"


@pytest.mark.parametrize("release", ["python 2.3.0", "python 1.30.0", "javascript @modelcontextprotocol/sdk", "javascript @modelcontextprotocol/client"])
def test_should_ask_the_person_before_each_client(keiko, servers, tmp_path, release, monkeypatch):
    _, command, env, _ = next(client for client in clients(tmp_path) if client[0] == release)
    for server in ("fast_http", "fast_stdio"):
        monkeypatch.setitem(servers.members, server, (None, [(["tools/call", {"name": "greet", "arguments": {}}], text("Hello, Ada!"))]))
        _, wrong, _ = used(servers, keiko, command, env, server)
        assert not wrong, wrong


def test_should_let_the_official_client_follow_a_task_of_a_real_server(keiko, servers, tmp_path):
    env = clean_env(tmp_path, {"KEIKO_URL": f"{keiko.url}/mcp/{servers.doors['everything']}", "KEIKO_KEY": servers.key})
    ran = subprocess.run(["node", PEERS / "tasks_client.mjs", "simulate-research-query", '{"topic": "ants"}'], capture_output=True, text=True, env=env, timeout=60)
    assert ran.returncode == 0, ran.stderr
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    assert told[0]["type"] == "taskCreated" and told[-1]["type"] == "result", told
    assert "Research Report: ants" in told[-1]["result"]["content"][0]["text"]
    assert {"taskStatus"} <= {message["type"] for message in told}


@pytest.mark.parametrize("release", ["fastmcp", "python 1.9.4", "javascript mcp-sdk-1-17", "python 1.30.0"])
@pytest.mark.parametrize("server", ["fast_http", "fast_stdio"])
def test_should_bring_tasks_of_fastmcp_to_an_end(keiko, servers, tmp_path, release, server, monkeypatch):
    """Its own client follows them; older ones know nothing of them and are waited for."""
    _, command, env, _ = next(client for client in clients(tmp_path) if client[0] == release)
    calls = [(["tools/call", {"name": name, "arguments": {"n": 7}}], text(said)) for name, said in (("patient", "14"), ("ready", "21"))]
    monkeypatch.setitem(servers.members, server, (None, calls))
    _, wrong, _ = used(servers, keiko, command, env, server)
    assert not wrong, wrong


def inspect(servers, keiko, folder, server, *args):
    command = [MODULES / ".bin" / "mcp-inspector", "--cli", f"{keiko.url}/mcp/{servers.doors[server]}", "--transport", "http", "--header", f"X-API-Key: {servers.key}", *args]
    ran = subprocess.run(command, capture_output=True, text=True, env=clean_env(folder), timeout=60, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return json.loads(ran.stdout)


def test_should_be_looked_at_by_the_inspector(keiko, servers, tmp_path):
    tools = inspect(servers, keiko, tmp_path, "everything", "--method", "tools/list")["tools"]
    assert {"echo", "get-sum"} <= {tool["name"] for tool in tools}
    answer = inspect(servers, keiko, tmp_path, "everything", "--method", "tools/call", "--tool-name", "get-sum", "--tool-arg", "a=2", "b=3")
    assert "is 5" in json.dumps(answer)
    assert inspect(servers, keiko, tmp_path, "fast_http", "--method", "resources/list")["resources"][0]["uri"] == "memo://today"
    assert "milk" in json.dumps(inspect(servers, keiko, tmp_path, "fast_http", "--method", "resources/read", "--uri", "memo://milk"))
    prompts = inspect(servers, keiko, tmp_path, "fast_http", "--method", "prompts/get", "--prompt-name", "summarise", "--prompt-args", "text=this")
    assert "Summarise: this" in json.dumps(prompts)
