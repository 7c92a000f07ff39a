"""The fleet around a report: the two MCP servers and the three agents. Starts them, waits for them, ends what it started."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from repository import NoReport, Repository

import keiko
from keiko import Client, KeikoError

HERE = Path(__file__).resolve().parent
FILES_SERVER = HERE / "node_modules/@modelcontextprotocol/server-filesystem/dist/index.js"
UP_WAIT_S, READY_WAIT_S, END_WAIT_S = 20.0, 15.0, 15.0
GIT_SERVER, FILES = "git", "files"


def transports(repository: Repository) -> dict[str, dict]:
    """How Keiko is to start the two MCP servers, by name."""
    git = os.environ.get("KEIKO_DEMO_MCP_GIT") or beside_python("mcp-server-git")
    files = os.environ.get("KEIKO_DEMO_MCP_FS") or str(FILES_SERVER)
    if not git or not shutil.which(git):
        raise NoReport("The MCP server 'mcp-server-git' is not installed; install demo/requirements.txt or set KEIKO_DEMO_MCP_GIT.")
    if not Path(files).exists():
        raise NoReport("The MCP server 'server-filesystem' is not installed; run npm ci in demo or set KEIKO_DEMO_MCP_FS.")
    command = [required("node"), str(Path(files).resolve())] if Path(files).resolve().suffix in (".js", ".mjs") else [files]
    return {
        GIT_SERVER: keiko.stdio(git, ["--repository", repository.root]),
        FILES: keiko.stdio(command[0], [*command[1:], repository.root]),
    }


def beside_python(program: str) -> str | None:
    """A program installed with this Python, else one in PATH."""
    return shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)


def required(program: str) -> str:
    found = shutil.which(program)
    if not found:
        raise NoReport(f"There is no program {program!r} in PATH.")
    return found


async def servers_ready(client: Client, wanted: dict[str, dict]) -> list[str]:
    """Registers the MCP servers and waits for them. Answers what to say about those that are not ready."""
    return [note for note in await asyncio.gather(*(server_ready(client, name, wanted[name]) for name in wanted)) if note]


async def server_ready(client: Client, name: str, transport: dict) -> str:
    try:
        await client.mcp_servers.ensure(name, transport)
        await client.mcp_servers.wait_ready(name, READY_WAIT_S)
        waiting = [tool.name async for tool in client.tools.list() if tool.server == name and tool.status == "needs_approval"]
    except KeikoError as error:
        return f"The MCP server '{name}' cannot be used: {error.message}"
    return f"Tools are not what was approved before; look at them and approve them: {', '.join(waiting)}" if waiting else ""


class Fleet:
    """The agents, each a process. They end when told, and when this process is gone: they watch the pipe to it."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = tempfile.TemporaryDirectory(prefix="keiko-demo-")

    async def __aenter__(self) -> "Fleet":
        for name in self.names:
            with open(self._log(name), "wb") as log:
                command = [sys.executable, str(HERE / "report.py"), "--agent", name]
                # In a session of its own, so that Ctrl-C reaches this process alone and the end is in order.
                self._processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        await asyncio.gather(*(asyncio.to_thread(self._end, process) for process in self._processes.values()))
        self._logs.cleanup()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin:
            process.stdin.close()

    async def up(self, client: Client) -> None:
        """Waits until every agent has registered and asks for work."""
        async with asyncio.timeout(UP_WAIT_S):
            for name in self.names:
                while not await self._is_up(client, name):
                    await asyncio.sleep(0.05)

    async def _is_up(self, client: Client, name: str) -> bool:
        if ended := self.ended(name):
            raise NoReport(ended)
        if b" serves " not in self._log(name).read_bytes():
            return False
        return (await client.agents.get(name)).status == "up"

    def ended(self, name: str) -> str:
        """What to say when an agent's process is gone; nothing while it runs."""
        code = self._processes[name].poll()
        if code is None:
            return ""
        last = self._log(name).read_text("utf-8", "replace").strip().splitlines()[-1:]
        return f"The agent {name} ended with {code}: {' '.join(last) or 'it said nothing'}"

    def _log(self, name: str) -> Path:
        return Path(self._logs.name) / f"{name}.log"
