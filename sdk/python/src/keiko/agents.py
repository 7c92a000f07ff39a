"""The registry of agents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from .errors import Conflict, NotFound
from .models import AgentInfo, CapabilityInfo, IssuedKey
from .resources import PAGE_MAX, Resource, given, opened, path_of


class Agents(Resource):
    """`client.agents`. An agent is named by its name or its id."""

    async def register(self, body: Mapping[str, Any]) -> AgentInfo:
        """Registers a new agent. Only `name` is needed."""
        return opened(AgentInfo, await self._http.append("/agents", body))

    async def update(self, agent: str, body: Mapping[str, Any]) -> AgentInfo:
        """Replaces what an agent says of itself."""
        return opened(AgentInfo, await self._http.request("PUT", path_of("agents", agent), body))

    async def ensure(self, body: Mapping[str, Any]) -> AgentInfo:
        """Registers the agent, or updates it when the registry says something else of it."""
        try:
            known = await self.get(body["name"])
        except NotFound:
            try:
                return await self.register(body)
            except Conflict as error:
                if error.code != "NAME_TAKEN":
                    raise
                known = await self.get(body["name"])
        return known if says(known, body) else await self.update(known.id, body)

    async def get(self, agent: str) -> AgentInfo:
        """The agent as it is now."""
        return opened(AgentInfo, await self._http.get(path_of("agents", agent)))

    def list(self, *, status: str | None = None, capability: str | None = None) -> AsyncIterator[AgentInfo]:
        """All agents, newest first."""
        filters = {"filter[status]": status, "filter[capability]": capability, "limit": PAGE_MAX}
        return self._pages(AgentInfo, "/agents", given(**filters))

    async def issue_key(self, agent: str) -> IssuedKey:
        """A key with which a program is this agent. Not repeated when its answer is lost: that would make a second key."""
        path = path_of("agents", agent, "actions", "issue-key")
        return opened(IssuedKey, await self._http.request("POST", path, {}, repeatable=False))

    async def revoke_key(self, key_id: str) -> None:
        """Ends a key."""
        await self._http.request("DELETE", path_of("api-keys", key_id))


def says(known: AgentInfo, body: Mapping[str, Any]) -> bool:
    """Whether the registry holds just this of the agent. What is not given stands for its default, as in an update."""
    wanted = [CapabilityInfo.model_validate(capability) for capability in body.get("capabilities", [])]
    return (
        known.capabilities == wanted
        and known.agent_type == body.get("agent_type", "generic")
        and known.description == body.get("description", "")
        and known.max_concurrency == body.get("max_concurrency", 10)
        and known.cost_per_task == body.get("cost_per_task", 0)
        and known.labels == body.get("labels", {})
    )
