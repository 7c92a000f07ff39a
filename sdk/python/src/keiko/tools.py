"""MCP servers, the tools they bring, and the journal that records the calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from .errors import Conflict, NotFound, Unavailable
from .models import JournalEntry, Page, ServerInfo, ToolCall, ToolInfo
from .resources import PAGE_MAX, Resource, given, opened, opened_list, path_of

# Above the server's longest call, so that its own word about a slow tool arrives.
CALL_TIMEOUT_S = 90.0
READY_POLL_S = 0.05


def stdio(command: str, args: Sequence[str] = (), env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The transport of an MCP server that Keiko starts as a process."""
    return {"type": "stdio", "command": command, "args": list(args), **({"env": dict(env)} if env else {})}


def http(url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The transport of an MCP server that is reached by streamable HTTP."""
    return {"type": "http", "url": url, **({"headers": dict(headers)} if headers else {})}


class Tools(Resource):
    """`client.tools`. A tool is named by `server__tool` or its id."""

    def list(self, q: str | None = None) -> AsyncIterator[ToolInfo]:
        """All tools; with `q` those that match it."""
        return self._pages(ToolInfo, "/tools", given(q=q, limit=PAGE_MAX))

    async def get(self, tool: str) -> ToolInfo:
        """The tool as it is now."""
        return opened(ToolInfo, await self._http.get(path_of("tools", tool)))

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        task_id: str | None = None,
        timeout_ms: int | None = None,
    ) -> ToolCall:
        """Calls a tool. Look at `is_error`: a tool that says it failed has answered. Never sent twice when it may have run."""
        body = given(arguments=dict(arguments or {}), task_id=task_id, timeout_ms=timeout_ms)
        timeout = max(CALL_TIMEOUT_S, (timeout_ms or 0) / 1000 + 30)
        path = path_of("tools", tool, "actions", "call")
        return opened(ToolCall, await self._http.request("POST", path, body, timeout=timeout, repeatable=False))

    async def approve(self, tool: str) -> ToolInfo:
        """Accepts the tool as it is now."""
        return opened(ToolInfo, await self._http.append(path_of("tools", tool, "actions", "approve")))


class McpServers(Resource):
    """`client.mcp_servers`. A server is named by its name or its id. Transports: `keiko.stdio(…)`, `keiko.http(…)`."""

    async def register(self, name: str, transport: Mapping[str, Any]) -> ServerInfo:
        """Registers a new server; Keiko starts it and lists its tools."""
        return opened(ServerInfo, await self._http.append("/mcp-servers", {"name": name, "transport": transport}))

    async def update(self, server: str, name: str, transport: Mapping[str, Any]) -> ServerInfo:
        """Replaces how a server is reached."""
        body = {"name": name, "transport": transport}
        return opened(ServerInfo, await self._http.request("PUT", path_of("mcp-servers", server), body))

    async def ensure(self, name: str, transport: Mapping[str, Any]) -> ServerInfo:
        """Registers the server, or updates it when it is reached in another way. Values of `env` and `headers` cannot be compared."""
        try:
            known = await self.get(name)
        except NotFound:
            try:
                return await self.register(name, transport)
            except Conflict as error:
                if error.code not in ("NAME_TAKEN", "ALREADY_EXISTS"):
                    raise
                known = await self.get(name)
        hidden = transport.get("env") or transport.get("headers")
        return known if not hidden and shown(known.transport) == shown(transport) else await self.update(known.id, name, transport)

    async def get(self, server: str) -> ServerInfo:
        """The server as it is now."""
        return opened(ServerInfo, await self._http.get(path_of("mcp-servers", server)))

    def list(self) -> AsyncIterator[ServerInfo]:
        """All servers, newest first."""
        return self._pages(ServerInfo, "/mcp-servers", {"limit": PAGE_MAX})

    async def wait_ready(self, server: str, timeout: float = 40.0) -> ServerInfo:
        """The server once its tools can be called. Raises Unavailable, with the last reason, after `timeout` seconds."""
        until = time.monotonic() + timeout
        while (known := await self.get(server)).status != "ready":
            if time.monotonic() > until:
                raise Unavailable(
                    "MCP_SERVER_NOT_READY", f"The MCP server '{known.name}' is {known.status}: {known.reason or 'no reason given'}"
                )
            await asyncio.sleep(READY_POLL_S)
        return known

    async def restart(self, server: str) -> ServerInfo:
        """Ends the server's process or session and starts it again."""
        return opened(ServerInfo, await self._http.append(path_of("mcp-servers", server, "actions", "restart")))

    async def delete(self, server: str) -> None:
        """Removes the server and its tools."""
        await self._http.request("DELETE", path_of("mcp-servers", server))


class Journal(Resource):
    """`client.journal`. Agents see their own entries only."""

    async def page(self, after: int = 0, *, entry_class: str | None = None, limit: int = PAGE_MAX) -> Page[JournalEntry]:
        """Entries after a position, oldest first. An empty page is the end."""
        params = given(after=after, limit=limit, **{"class": entry_class})
        return opened_list(JournalEntry, await self._http.get("/journal", params))


def shown(transport: Mapping[str, Any]) -> dict[str, Any]:
    """A transport without what is empty or never shown."""
    return {name: value for name, value in transport.items() if value and name not in ("env", "headers")}
