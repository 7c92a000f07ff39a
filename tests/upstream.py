"""MCP servers written by hand, behind Keiko and behind a door of their own."""

import subprocess
import sys
from pathlib import Path

from harness import done, free_port, unique, until

SERVERS = Path(__file__).parent / "servers"


class Upstream:
    """One of `servers/`, and the virtual server that offers it under its own names. `kind` is its era and its transport. Over HTTP it may
    run at several addresses, in a process each."""

    def __init__(self, admin, script, kind, addresses=1):
        era, transport = kind.split("-")
        self.admin, self.processes = admin, []
        self.name = unique(Path(script).stem).replace("-", "_")
        how = {"type": "stdio", "command": sys.executable, "args": [str(SERVERS / script), era, "stdio"], "env": {}}
        if transport != "stdio":
            self.ports = [free_port() for _ in range(addresses)]
            for port in self.ports:
                command = [sys.executable, SERVERS / script, era, transport, str(port)]
                self.processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
            url, *others = (f"http://127.0.0.1:{port}/mcp" for port in self.ports)
            how = {"type": "http", "url": url, "other_urls": others}
        self.id = done(admin.post("/mcp-servers", {"name": self.name, "transport": how}), 201)["id"]
        until(lambda: self.shown()["status"] == "ready", f"{self.name} is ready", 20)
        self.door = unique("door")
        done(admin.post("/virtual-servers", {"name": self.door, "members": [{"server": self.name, "prefix": ""}]}), 201)

    def shown(self):
        return done(self.admin.get(f"/mcp-servers/{self.name}"))["attributes"]

    def close(self):
        self.admin.delete(f"/mcp-servers/{self.name}")
        for process in self.processes:
            process.kill()
            process.wait()


def kept(admin, script):
    """Servers of a script by their kinds, each begun when it is first wanted; a generator for a fixture."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = Upstream(admin, script, kind)
        return made[kind]

    yield get
    for upstream in made.values():
        upstream.close()
