"""Fixtures: one server per test file, more on demand. A file sets `KEIKO_ENV` to change its server's settings."""

import pytest

import postgres
from harness import Keiko

# What is about the embedded store itself: its files, its start, its commands.
EMBEDDED_ONLY = {"test_attacks", "test_cli", "test_console", "test_crash", "test_demo", "test_hardening", "test_replicas", "test_schemathesis", "test_secrets", "test_tls"}


def pytest_addoption(parser):
    parser.addoption("--backend", choices=["sqlite", "postgres"], default="sqlite", help="where the servers under test keep everything")


def pytest_collection_modifyitems(config, items):
    """On PostgreSQL the tests that are about the embedded store are left out."""
    if config.getoption("--backend") == "postgres":
        left_out = [item for item in items if item.module.__name__ in EMBEDDED_ONLY or item.get_closest_marker("embedded") or "operator" in item.fixturenames]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def backend(request):
    """Every server that a test makes keeps its data where `--backend` says."""
    chosen = request.config.getoption("--backend")
    if chosen == "postgres":
        Keiko.database = staticmethod(lambda: postgres.shared().database())
    return chosen


@pytest.fixture(scope="module")
def keiko(request, tmp_path_factory):
    """The server of this test file. It must outlive its tests and never panic."""
    server = Keiko(tmp_path_factory.mktemp("keiko") / "data", env=getattr(request.module, "KEIKO_ENV", None))
    try:
        server.start()
        yield server
        assert server.alive(), f"keiko died under the tests:\n{server.logs()[-3000:]}"
        server.stop()
        assert "panicked at" not in server.logs(), server.logs()[-5000:]
    finally:
        server.close()


@pytest.fixture(scope="module")
def admin(keiko):
    """The first user of the default tenant."""
    return keiko.login()


@pytest.fixture(scope="module")
def document(keiko):
    """The OpenAPI document that the server publishes."""
    return keiko.client().get("/openapi.json").json()


@pytest.fixture
def new_keiko(tmp_path):
    """Makes further servers: `new_keiko(env=…)`; not started. All are ended with the test."""
    servers = []

    def make(name="data", **settings):
        servers.append(Keiko(tmp_path / name, **settings))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A failed test shows the last log lines of its server."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Keiko) and value.proc:
                report.sections.append((f"last logs of {name}", value.logs()[-4000:]))
    return report
