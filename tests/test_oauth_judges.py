"""Keiko as an OAuth 2.1 and OpenID Connect provider, judged by libraries of other hands, and compared with a provider of other hands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import clean_env

KEIKO_ENV = {"KEIKO_OAUTH_REGISTRATION": "true"}
HERE = Path(__file__).parent
PEERS = HERE / "peers" / "oauth"
# The script, and how many of its scenarios pass: all of them.
JUDGES = {"oauth4webapi.mjs": 33, "openid_client.mjs": 32, "oracle.mjs": 79, "authlib_client.py": 8, "mcp_client.mjs": 3}


def interpreter(script):
    if script.endswith(".py"):
        return sys.executable
    assert (HERE / "node_modules" / "oauth4webapi").exists() and shutil.which("node"), "run 'npm ci' in tests/ first"
    return "node"


@pytest.mark.timeout(150)
@pytest.mark.parametrize("script", JUDGES)
def test_should_satisfy_the_judge(keiko, script, tmp_path):
    env = clean_env(tmp_path, {"KEIKO_URL": keiko.url, "KEIKO_PASSWORD": keiko.password, "PYTHONPATH": os.environ.get("PYTHONPATH")})
    ran = subprocess.run([interpreter(script), PEERS / script], capture_output=True, text=True, timeout=120, env=env, cwd=tmp_path)
    failed = "\n".join(line for line in ran.stdout.splitlines() if line.startswith("not ok"))
    assert ran.returncode == 0, f"{failed}\n{ran.stdout[-300:]}\n{ran.stderr[-3000:]}"
    count = re.search(r"(?m)^judges: (\d+) passed, 0 failed$", ran.stdout)
    assert count, ran.stdout
    print(f"{script}: {count[0]}")
    assert int(count[1]) >= JUDGES[script]


def test_should_play_pages_as_a_browser_does(tmp_path):
    ran = subprocess.run([interpreter("x.mjs"), "--test", PEERS / "browser.test.mjs"], capture_output=True, text=True, timeout=60, env=clean_env(tmp_path))
    assert ran.returncode == 0, ran.stdout
