"""Keiko as an MCP server: spoken to by the official clients, and by hand."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

import httpx2
from harness import done, refused, submit, tool_server, unique, until
from mcp_clients import Legacy, Modern

BUILTINS = {"task_submit", "task_claim", "task_heartbeat", "task_complete", "task_fail", "agents_discover"}


@pytest.fixture(scope="module")
def echo(admin, tmp_path_factory):
    """The full name of a tool behind Keiko."""
    return tool_server(admin, tmp_path_factory.mktemp("odd"))[1]


def ask(client, method, params=None, headers=None, **more):
    """One JSON-RPC request by hand; answers the HTTP response."""
    body = {"jsonrpc": "2.0", "id": 1, "method": method, **({"params": params} if params is not None else {}), **more}
    return client._http.post("/mcp", json=body, headers={**client.headers, "Accept": "application/json, text/event-stream", **(headers or {})})


def call(client, name, **arguments):
    answer = ask(client, "tools/call", {"name": name, "arguments": arguments})
    assert answer.status_code == 200, answer.text
    return answer.json()


# Clients of other hands


def test_should_let_the_official_python_client_work_as_an_agent(keiko, admin, echo):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    task = submit(admin, capability)

    async def work():
        async with httpx2.AsyncClient(headers=agent.api.headers, timeout=30) as http:
            async with Client(streamable_http_client(f"{keiko.url}/mcp", http_client=http)) as client:
                tools = {tool.name for tool in (await client.list_tools()).tools}
                assert BUILTINS | {echo} <= tools
                said = await client.call_tool(echo, {"text": "hello"})
                assert said.structured_content == {"text": "hello"} and not said.is_error
                claimed = (await client.call_tool("task_claim", {"wait_ms": 5000})).structured_content["data"]
                token = claimed[0]["attributes"]["claim"]["token"]
                own = {"task_id": claimed[0]["id"], "claim_token": token}
                assert not (await client.call_tool("task_heartbeat", own)).is_error
                finished = await client.call_tool("task_complete", {**own, "output": {"n": 1}})
                assert finished.structured_content["data"]["attributes"]["status"] == "completed"

    asyncio.run(work())
    assert done(admin.get(f"/tasks/{task['id']}"))["attributes"]["output"] == {"n": 1}


TYPESCRIPT = """
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
const [url, token, tool] = process.argv.slice(2);
const client = new Client({ name: "test", version: "1" });
const headers = { Authorization: `Bearer ${token}` };
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
const { tools } = await client.listTools();
const said = await client.callTool({ name: tool, arguments: { text: "hello" } });
const wrong = await client.callTool({ name: "task_submit", arguments: { description: "no capability" } });
console.log(JSON.stringify({ names: tools.map((t) => t.name), said, wrong, server: client.getServerVersion() }));
await client.close();
"""


def test_should_answer_the_official_typescript_client(keiko, admin, echo, tmp_path_factory):
    folder = Path(__file__).parent / "node_modules"
    assert folder.exists() and shutil.which("node"), "run 'npm ci' in tests/ first"
    script = Path(__file__).parent / f".client-{unique('x')}.mjs"
    script.write_text(TYPESCRIPT)
    try:
        ran = subprocess.run(["node", script, f"{keiko.url}/mcp", admin.session["access_token"], echo], capture_output=True, text=True, timeout=60)
    finally:
        script.unlink()
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert BUILTINS | {echo} <= set(said["names"]) and said["server"]["name"] == "keiko"
    assert said["said"]["structuredContent"] == {"text": "hello"}
    assert said["wrong"]["isError"] and "VALIDATION_FAILED" in said["wrong"]["content"][0]["text"]


# By hand


def test_should_agree_on_a_version(admin):
    def agreed(asked):
        params = {"protocolVersion": asked, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        return ask(admin, "initialize", params).json()["result"]

    assert agreed("2025-03-26")["protocolVersion"] == "2025-03-26"
    assert agreed("1999-01-01")["protocolVersion"] == "2025-11-25"
    assert agreed("2025-06-18")["serverInfo"]["name"] == "keiko"


def test_should_describe_its_tools_with_whole_schemas(admin):
    tools = {tool["name"]: tool for tool in ask(admin, "tools/list").json()["result"]["tools"]}
    assert "$ref" not in json.dumps(tools)
    assert tools["task_submit"]["inputSchema"]["required"] == ["description", "capability"]
    assert "task_id" in tools["task_complete"]["inputSchema"]["required"]
    assert tools["agents_discover"]["inputSchema"]["properties"].keys() >= {"capability", "q", "tag", "healthy"}


def test_should_tell_refusals_as_results_that_a_model_can_read(keiko, admin, echo):
    user = keiko.user(admin, ["user"])
    refusal = call(user, echo, text="x")["result"]
    assert refusal["isError"] and "PERMISSION_DENIED" in refusal["content"][0]["text"]
    assert "ARGUMENTS_INVALID" in call(admin, echo, text=7)["result"]["content"][0]["text"]
    assert "AGENT_REQUIRED" in call(admin, "task_claim")["result"]["content"][0]["text"]
    assert "TASK_NOT_FOUND" in call(admin, "task_complete", claim_token="1")["result"]["content"][0]["text"]


def test_should_discover_agents(keiko, admin):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    found = call(admin, "agents_discover", capability=capability, healthy=True)["result"]["structuredContent"]["data"]
    assert [item["id"] for item in found] == [agent.id]


def test_should_refuse_what_is_no_message(admin):
    def status(content):
        return admin._http.post("/mcp", content=content, headers={**admin.headers, "Content-Type": "application/json"}).status_code

    assert [status(c) for c in ("{", "[]", "7", '{"id": 1}', '{"id": null, "method": "ping"}', "[" * 500)] == [400] * 6
    assert status('{"jsonrpc": "2.0", "method": "notifications/initialized"}') == 202
    assert ask(admin, "no/such").json()["error"]["code"] == -32601
    assert call(admin, "nobody__nothing")["error"]["code"] == -32602
    assert ask(admin, "tools/call", {"name": "task_submit", "arguments": []}).json()["error"]["code"] == -32602
    assert ask(admin, "tools/call", {}).json()["error"]["code"] == -32602
    assert ask(admin, "tools/list", {"cursor": "x"}).json()["error"]["code"] == -32602
    assert ask(admin, "ping", headers={"MCP-Protocol-Version": "1999-01-01"}).status_code == 400
    assert ask(admin, "ping").json() == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert admin._http.get("/mcp", headers=admin.headers).status_code == 405


def test_should_need_credentials_and_refuse_other_origins(keiko, admin):
    anyone = ask(keiko.client(), "tools/list")
    refused(anyone, 401, "CREDENTIALS_MISSING")
    assert anyone.headers["www-authenticate"].startswith("Bearer")
    refused(ask(admin, "ping", headers={"Origin": "https://evil.example"}), 403, "ORIGIN_REFUSED")
    assert ask(admin, "ping", headers={"Origin": keiko.url}).status_code == 200


def test_should_not_show_another_tenants_tools(keiko, admin, echo):
    other = keiko.tenant(admin)
    names = {tool["name"] for tool in ask(other, "tools/list").json()["result"]["tools"]}
    assert names == BUILTINS
    assert call(other, echo, text="x")["error"]["code"] == -32602


# Tools that are found instead of listed


@pytest.fixture(scope="module")
def many(admin, tmp_path_factory):
    """A server with a hundred tools, and its name."""
    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    tools = [{"name": f"filler_{n}", "description": f"Does something of kind {n}", "inputSchema": text} for n in range(98)]
    tools += [{"name": "echo", "description": "Repeats a sentence word by word", "inputSchema": text}]
    tools += [{"name": "convertCurrency", "description": "Turns an amount of money into another currency", "inputSchema": text}]
    listed, name = tmp_path_factory.mktemp("many") / "tools.json", unique("many").replace("-", "_")
    listed.write_text(json.dumps(tools))
    args = [str(Path(__file__).parent / "servers" / "odd.py"), str(listed), "well"]
    done(admin.post("/mcp-servers", {"name": name, "transport": {"type": "stdio", "command": sys.executable, "args": args}}), 201)
    until(lambda: admin.get(f"/tools/{name}__echo").status_code == 200, "the tools are listed")
    return name


@pytest.mark.parametrize("era", [Modern, Legacy])
def test_should_find_and_call_tools_without_listing_them(keiko, admin, many, era):
    with era(f"{keiko.url}/mcp?tools=search", admin.headers) as client:
        assert set(client.names()) == BUILTINS | {"find_tools", "call_tool"}
        answer, _ = client.ask("tools/call", {"name": "find_tools", "arguments": {"query": "converting money to other currencies", "limit": 3}})
        found = answer["result"]["structuredContent"]["tools"]
        assert found[0]["name"] == f"{many}__convertCurrency" and found[0]["inputSchema"]["required"] == ["text"] and len(found) <= 3
        answer, _ = client.ask("tools/call", {"name": "call_tool", "arguments": {"name": f"{many}__echo", "arguments": {"text": "hello"}}})
        assert answer["result"]["structuredContent"] == {"text": "hello"}
        refused_, _ = client.ask("tools/call", {"name": "call_tool", "arguments": {"name": f"{many}__echo", "arguments": {}}})
        assert refused_["result"]["isError"] and "ARGUMENTS_INVALID" in refused_["result"]["content"][0]["text"]
        empty, _ = client.ask("tools/call", {"name": "find_tools", "arguments": {"query": " "}})
        assert empty["result"]["isError"]
        for wrong in ({}, {"name": ""}, {"name": 7}, {"name": "call_tool"}, {"name": f"{many}__echo", "arguments": []}):
            error, _ = client.ask("tools/call", {"name": "call_tool", "arguments": wrong})
            assert error["error"]["code"] == -32602, wrong
        unknown, _ = client.ask("tools/call", {"name": "call_tool", "arguments": {"name": "nobody__knows"}})
        assert unknown["error"]["code"] == -32602
    with era(f"{keiko.url}/mcp", admin.headers) as client:
        assert "find_tools" not in client.names() and f"{many}__echo" in client.names()
        answer, _ = client.ask("tools/call", {"name": "find_tools", "arguments": {"query": "money"}})
        assert "error" in answer, "where all are listed there is nothing to find"


def test_should_find_only_what_the_caller_may_use(keiko, admin, many):
    role = unique("role")
    done(admin.post("/roles", {"name": role, "permissions": [f"tools.call.{many}.echo"]}), 201)
    user = keiko.user(admin, [role])
    with Modern(f"{keiko.url}/mcp?tools=search", user.headers) as client:
        answer, _ = client.ask("tools/call", {"name": "find_tools", "arguments": {"query": "repeat a sentence, convert money", "limit": 25}})
        assert [t["name"] for t in answer["result"]["structuredContent"]["tools"]] == [f"{many}__echo"]
        answer, _ = client.ask("tools/call", {"name": "call_tool", "arguments": {"name": f"{many}__convertCurrency", "arguments": {"text": "x"}}})
        assert answer.get("error") or answer["result"]["isError"]
