"""What the conformance suite starts as the client under test: Keiko is the client of the suite's server, and this asks Keiko.

Its argument is the suite's server. Keiko and a key of its administrator stand in the environment.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import httpx2
from mcp_clients import ABLE, Legacy, Modern

SCENARIO, KEIKO, KEY = os.environ["MCP_CONFORMANCE_SCENARIO"], os.environ["SUITE_KEIKO"], os.environ["SUITE_KEY"]
CONTEXT = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
ERA = Legacy if os.environ.get("MCP_CONFORMANCE_PROTOCOL_VERSION", "") < "2026" else Modern
HEADERS = {"X-API-Key": KEY}
NAME = f"suite{time.time_ns()}"


def api(method, path, body=None):
    answer = httpx2.request(method, f"{KEIKO}/api/v1{path}", json=body, headers=HEADERS, timeout=30, trust_env=False)
    assert answer.status_code < 300, answer.text
    return answer.json()["data"]["attributes"] if answer.content else None


def default(method, params):
    """A person who fills in nothing: what has a default gets it."""
    assert method == "elicitation/create", method
    properties = params["requestedSchema"]["properties"]
    return {"action": "accept", "content": {name: schema["default"] for name, schema in properties.items() if "default" in schema}}


def value(schema):
    return {"string": "x", "integer": 5, "number": 5, "boolean": True, "object": {}, "array": []}.get(schema.get("type"), "x")


api("POST", "/mcp-servers", {"name": NAME, "transport": {"type": "http", "url": sys.argv[1]}})
deadline = time.monotonic() + 15
while api("GET", f"/mcp-servers/{NAME}")["status"] != "ready":
    assert time.monotonic() < deadline, api("GET", f"/mcp-servers/{NAME}")
    time.sleep(0.05)
api("POST", "/virtual-servers", {"name": NAME, "members": [{"server": NAME, "prefix": ""}]})
try:
    answers = default if "elicitation" in SCENARIO else None
    # A client that can be asked gets a connection of its own; only then does the suite's server see what such a client can do.
    capabilities = {} if SCENARIO == "sse-retry" else ABLE
    with ERA(f"{KEIKO}/mcp/{NAME}", HEADERS, capabilities=capabilities, **({"answers": answers} if answers else {})) as client:
        tools = {tool["name"]: tool for tool in client.ask("tools/list", {})[0]["result"]["tools"]}
        if "toolCalls" in CONTEXT:
            calls = [(call["name"], call["arguments"]) for call in CONTEXT["toolCalls"]]
        elif SCENARIO == "json-schema-2020-12-preservation":
            echo = next(name for name, tool in tools.items() if "schema" in tool["inputSchema"].get("properties", {}))
            focal = next(tool for name, tool in tools.items() if name != echo)
            calls = [(echo, {"schema": focal["inputSchema"]})]
        elif SCENARIO == "json-schema-ref-no-deref":
            calls = []
        else:
            calls = [(name, {key: value(schema) for key, schema in tool["inputSchema"].get("properties", {}).items()}) for name, tool in tools.items()]
        for name, arguments in calls:
            if "headers" in SCENARIO:
                # Whoever asks over this interface need not know which arguments are said in headers.
                answer = httpx2.post(f"{KEIKO}/api/v1/tools/{NAME}__{name}/actions/call", json={"arguments": arguments}, headers=HEADERS, timeout=30, trust_env=False).text
            else:
                answer = client.ask("tools/call", {"name": name, "arguments": arguments})[0]
            print(name, answer)
        for kind, method, key in (("resources", "resources/read", "uri"), ("prompts", "prompts/get", "name")):
            for entry in client.ask(f"{kind}/list", {})[0]["result"][kind]:
                print(entry[key], client.ask(method, {key: entry[key]})[0])
finally:
    httpx2.delete(f"{KEIKO}/api/v1/virtual-servers/{NAME}", headers=HEADERS, trust_env=False)
    httpx2.delete(f"{KEIKO}/api/v1/mcp-servers/{NAME}", headers=HEADERS, trust_env=False)
