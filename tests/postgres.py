"""A PostgreSQL server of its own for tests: on a private port of the loopback interface, in a temporary folder.

Started when it is first asked for, one for a test run; each Keiko gets a database of its own.
"""

import atexit
import glob
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from harness import free_port, unique

_shared = None


def shared():
    """The one server of this test run."""
    global _shared
    if _shared is None:
        _shared = Postgres().start()
        atexit.register(_shared.close)
    return _shared


def _program(name):
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}")) or [shutil.which(name)]
    assert found[-1], f"'{name}' is missing: apt-get install postgresql"
    return found[-1]


def _as_server(name):
    # PostgreSQL refuses root. The server ends with the test run, whatever happens to that.
    user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *user, "--pdeathsig=QUIT", "--", _program(name)]


class Postgres:
    """One server. Can be killed and started again."""

    def __init__(self, *settings):
        self.home = Path(tempfile.mkdtemp(prefix="keiko-tests-postgres-"))
        self.settings = settings
        self.port = free_port()
        self.proc = None
        if os.geteuid() == 0:
            shutil.chown(self.home, "postgres")
        init = [*_as_server("initdb"), "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-k", "-D", self.home / "data"]
        subprocess.run(init, check=True, capture_output=True, cwd=self.home)

    def start(self):
        settings = [part for setting in self.settings for part in ("-c", setting)]
        with (self.home / "log").open("ab") as log:
            self.proc = subprocess.Popen(
                [*_as_server("postgres"), "-D", self.home / "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", self.home,
                 "-c", "max_connections=300", *settings],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home,
            )
        deadline = time.monotonic() + 20
        while subprocess.run(self._psql("postgres", "SELECT 1"), capture_output=True).returncode != 0:
            assert time.monotonic() < deadline, (self.home / "log").read_text()[-2000:]
            time.sleep(0.02)
        return self

    def _psql(self, database, statement):
        return [_program("psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-At", "-v", "ON_ERROR_STOP=1", "-c", statement, database]

    def sql(self, database, statement):
        """Runs a statement as the superuser; answers what it prints."""
        ran = subprocess.run(self._psql(database, statement), capture_output=True, text=True)
        assert ran.returncode == 0, f"{statement}: {ran.stderr}"
        return ran.stdout.strip()

    def database(self):
        """The address of a new, empty database."""
        name = unique("keiko").replace("-", "_")
        self.sql("postgres", f"CREATE DATABASE {name}")
        return f"postgres://postgres@127.0.0.1:{self.port}/{name}"

    def kill(self):
        """Ends the server as a power failure would."""
        subprocess.run([*_as_server("pg_ctl"), "stop", "-m", "immediate", "-s", "-D", self.home / "data"], check=True, cwd=self.home)
        self.proc.wait(20)

    def close(self):
        if self.proc and self.proc.poll() is None:
            self.kill()
        shutil.rmtree(self.home, ignore_errors=True)
