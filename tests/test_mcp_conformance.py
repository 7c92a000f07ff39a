"""The MCP conformance suite's scenarios for authorization servers, in every version that has them, with a person's browser played here."""

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import httpx2
import pytest

from harness import clean_env, done, free_port, unique
from oauth import Browser

KEIKO_ENV = {"KEIKO_OAUTH_REGISTRATION": "true"}
HERE = Path(__file__).parent / "conformance" / "node_modules"
SUITE = HERE / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
VERSIONS = ["2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"]


def checks(keiko, client_id, port, version, out, resource=None):
    """One run of the suite: its checks, by id and status."""
    out.mkdir(parents=True)
    command = [HERE / "node" / "bin" / "node", SUITE, "authorization", "--url", keiko.url, "--client-id", client_id, "--port", str(port), "-o", out, "--spec-version", version]
    suite = subprocess.Popen(command + (["--resource", resource] if resource else []), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=out, env=clean_env(out))
    watchdog = threading.Timer(60, suite.kill)
    watchdog.start()
    page, said = None, []
    for line in suite.stdout:
        said.append(line)
        if line.startswith("http") and "code_challenge=" in line:
            page = line.strip()
        # It prints the address before it listens for the answer.
        if page and line.startswith("Callback server started"):
            _, left = Browser(keiko).sign_in(page)
            httpx2.get(left, trust_env=False, timeout=10)
            page = None
    suite.wait()
    watchdog.cancel()
    found = [check for path in out.rglob("checks.json") for check in json.loads(path.read_text())]
    assert found, "".join(said)[-2000:]
    return found


@pytest.mark.timeout(180)
def test_should_pass_the_conformance_suite_as_an_authorization_server(keiko, admin, tmp_path):
    assert SUITE.exists() and shutil.which("node") and os.access(SUITE, os.R_OK), "run 'npm ci' in tests/conformance first"
    port = free_port()
    callback = f"http://127.0.0.1:{port}/callback"
    made = done(admin.post("/clients", {"name": unique("conformance"), "redirect_uris": [callback], "token_endpoint_auth_method": "none"}), 201)
    known = made["attributes"]["client_id"]
    registered = keiko.client().post("/oauth/register", {"client_name": "conformance", "redirect_uris": [callback], "token_endpoint_auth_method": "none", "application_type": "native"})
    assert registered.status_code == 201, registered.text
    runs = [(known, version, None) for version in VERSIONS]
    runs += [(known, VERSIONS[-1], f"{keiko.url}/mcp"), (registered.json()["client_id"], VERSIONS[-1], f"{keiko.url}/mcp")]
    passed = 0
    for n, (client, version, resource) in enumerate(runs):
        for check in checks(keiko, client, port, version, tmp_path / str(n), resource):
            assert check["status"] == "SUCCESS", f"{version}: {check}"
            passed += 1
    print(f"conformance: {passed} checks passed in {len(runs)} runs")
    assert passed >= 16
