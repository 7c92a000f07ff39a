"""The console: its files as the binary serves them, and in Chromium."""

import os
import shutil
import subprocess

import pytest

from harness import REPO, refused


def test_should_serve_the_page_under_a_strict_policy(keiko):
    page = keiko.client()._http.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert page.headers["cache-control"] == "no-cache" and page.headers["content-encoding"] in ("br", "gzip")


def test_should_serve_its_files_compressed_and_for_ever(keiko):
    anyone = keiko.client()._http
    names = [part.split('"')[0] for part in anyone.get("/").text.split('"./')[1:]]
    assert len(names) >= 2
    total = 0
    for name in names:
        file = anyone.get(f"/{name}", headers={"Accept-Encoding": "br"})
        assert file.status_code == 200 and "immutable" in file.headers["cache-control"] and file.headers["content-encoding"] == "br"
        total += int(file.headers["content-length"])
    assert total < 120_000


@pytest.mark.parametrize("path", ["/assets/../Cargo.toml", "/assets/..%2f..%2fCargo.toml", "/index.html", "/assets/", "/etc/passwd"])
def test_should_serve_nothing_else(keiko, path):
    refused(keiko.client()._http.get(path), 404, "ROUTE_NOT_FOUND")


@pytest.mark.timeout(120)
def test_should_show_a_task_finish_live_in_chromium(keiko, tmp_path):
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert chromium, "no Chromium; 'make helpers' installs it"
    env = {**os.environ, "KEIKO_URL": keiko.url, "KEIKO_PASSWORD": keiko.password, "SCREENSHOTS": str(tmp_path), "CHROMIUM": chromium}
    ran = subprocess.run(["npm", "run", "--silent", "e2e"], cwd=REPO / "console", env=env, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "console.png").stat().st_size > 10_000
