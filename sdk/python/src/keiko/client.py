"""The client: one server, one identity, the parts of the API as attributes."""

from __future__ import annotations

import os
from types import TracebackType

from .agents import Agents
from .connection import Connection, identity
from .events import Events
from .models import DiscoveredAgent, Me
from .resources import given, opened, opened_list
from .tasks import Tasks
from .tools import Journal, McpServers, Tools

SERVER = "http://127.0.0.1:8080"
RETRY_FOR_S = 30.0


class Client:
    """A person's, a service's or an agent's view of a Keiko server.

    Without arguments: KEIKO_SERVER, and KEIKO_API_KEY or KEIKO_USERNAME, KEIKO_PASSWORD and KEIKO_TENANT.
    Requests that can be sent again without harm are, for up to `retry_for` seconds.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        api_key: str | None = None,
        username: str | None = None,
        password: str | None = None,
        tenant: str | None = None,
        retry_for: float = RETRY_FOR_S,
    ) -> None:
        address = server or os.environ.get("KEIKO_SERVER") or SERVER
        self.connection = Connection(address, identity(api_key, username, password, tenant), retry_for)
        self.tasks = Tasks(self.connection)
        self.agents = Agents(self.connection)
        self.events = Events(self.connection)
        self.tools = Tools(self.connection)
        self.mcp_servers = McpServers(self.connection)
        self.journal = Journal(self.connection)

    async def me(self) -> Me:
        """Who this client is to the server."""
        return opened(Me, await self.connection.get("/auth/me"))

    async def discover(
        self,
        *,
        capability: str | None = None,
        q: str | None = None,
        tag: str | None = None,
        healthy: bool | None = None,
        limit: int | None = None,
    ) -> list[DiscoveredAgent]:
        """The agents that fit best, best first."""
        wanted = None if healthy is None else str(healthy).lower()
        params = given(capability=capability, q=q, tag=tag, healthy=wanted, limit=limit)
        return opened_list(DiscoveredAgent, await self.connection.get("/discovery", params)).items

    async def close(self) -> None:
        """Closes all connections."""
        await self.connection.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
