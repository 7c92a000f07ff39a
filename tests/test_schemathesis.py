"""The API against its own document, by schemathesis: generated requests, right and wrong, must get what the document says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import REPO, Keiko, clean_env, done, submit, unique

# Generated requests must not start programs.
KEIKO_ENV = {"KEIKO_AGENT_LEASE": "10m", "KEIKO_GATEWAY_ALLOW_SPAWN": "false"}
SEED = "1"
EXAMPLES = os.environ.get("KEIKO_TEST_EXAMPLES", "12")
# The stream never ends. A logout, and calling everything back, would end the session that the run itself uses; an emergency would slow it down.
# `/mcp` speaks JSON-RPC, which has refusals of its own; MCP clients test it.
LEFT_OUT = ["/api/v1/events/stream", "/api/v1/auth/logout", "/api/v1/security/actions/revoke-all", "/api/v1/security/actions/declare-emergency", "/mcp", "/mcp/{virtual_server}", "/sse", "/sse/{virtual_server}"]


@pytest.mark.timeout(300)
def test_should_keep_its_promises_for_generated_requests(keiko: Keiko, admin, tmp_path):
    fuzzer = keiko.user(admin, ["admin"])
    capability = unique("cap")
    worker = keiko.agent(admin, capability)
    worker.work(admin, capability)
    submit(admin, capability)
    result = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis", "--config-file", REPO / "tests" / "schemathesis.toml", "run", f"{keiko.url}/openapi.json",
            "--header", f"Authorization: Bearer {fuzzer.session['access_token']}", "--checks", "all", "--phases", "examples,coverage,fuzzing",
            "--max-examples", EXAMPLES, "--seed", SEED, "--generation-database", "none", "--continue-on-failure",
            "--warnings", "off", "--no-color", *(part for path in LEFT_OUT for part in ("--exclude-path", path)),
        ],
        cwd=tmp_path, env=clean_env(tmp_path), capture_output=True, text=True, timeout=280,
    )
    assert result.returncode == 0, f"schemathesis found:\n{result.stdout[-20000:]}\n{result.stderr[-4000:]}"
    assert keiko.alive() and done(admin.get("/auth/me"))["attributes"]["name"] == "admin"
    assert done(fuzzer.get("/auth/me"))["attributes"]["roles"] == ["admin"], "the run lost its own rights on the way: it tested less than it seems"
