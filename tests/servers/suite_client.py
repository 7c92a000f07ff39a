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
from oauth import Browser

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


def oauth():
    """What is said of a client that was registered by hand."""
    if "client_id" not in CONTEXT:
        return {}
    proof = {"type": "private_key", "private_key": CONTEXT["private_key_pem"]} if "private_key_pem" in CONTEXT else {"type": "secret", "secret": CONTEXT["client_secret"]}
    client = {"id": CONTEXT["client_id"], "authentication": proof}
    if "client-credentials" not in SCENARIO:
        return {"oauth": {"client": client}}
    # Whoever gives a secret says whom it is for.
    described = sys.argv[1].replace("/mcp", "/.well-known/oauth-protected-resource/mcp")
    client["issuer"] = httpx2.get(described, trust_env=False).json()["authorization_servers"][0]
    return {"oauth": {"grant": "client_credentials", "client": client}}


def status(*wanted):
    deadline = time.monotonic() + 15
    while (server := api("GET", f"/mcp-servers/{NAME}"))["status"] not in wanted:
        assert time.monotonic() < deadline, server
        time.sleep(0.05)
    return server["status"]


def connect():
    """An administrator connects the server in a browser; its authorization server allows everything at once."""
    browser = Browser(type("Keiko", (), {"url": KEIKO}))
    page, left = browser.sign_in(f"/oauth/connect/{NAME}", "admin", os.environ["SUITE_PASSWORD"])
    if page.status_code == 200:
        page, left = browser.send(page, decision="connect")
    if left:
        page, left = browser.visit(httpx2.get(left, follow_redirects=False, trust_env=False).headers["location"])
    print(page.status_code, page.text)
    return "Connected" in page.text


def authorized():
    """Calls the tool. Connects the server whenever that is asked for, as somebody would who does not do so for ever."""
    for _ in range(3):
        if status("ready", "failed") == "ready":
            answer = httpx2.post(f"{KEIKO}/api/v1/tools/{NAME}__test-tool/actions/call", json={"arguments": {}}, headers=HEADERS, timeout=30, trust_env=False)
            print(answer.status_code, answer.text)
            if answer.status_code != 403:
                return
        if not connect():
            sys.exit("not connected")
        # It is connected anew at once.
        time.sleep(0.3)


api("POST", "/mcp-servers", {"name": NAME, "transport": {"type": "http", "url": sys.argv[1], **oauth()}})
if SCENARIO.startswith("auth/"):
    try:
        authorized()
    finally:
        httpx2.delete(f"{KEIKO}/api/v1/mcp-servers/{NAME}", headers=HEADERS, trust_env=False)
    sys.exit(0)
status("ready")
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
