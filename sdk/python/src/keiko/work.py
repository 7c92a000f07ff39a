"""A claimed task in the hands of its agent: what it is about, progress, tools, and the words that end the claim."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .client import Client
from .models import Claim, TaskInfo, ToolCall
from .resources import given, opened, path_of

# When the server does not say how long a claim holds.
TTL_S = 30.0
MESSAGE_MAX = 8000
# Between two looks for an answer.
LOOK_FIRST_S, LOOK_MAX_S = 0.1, 2.0


class TaskTools:
    """`task.tools`: calls on behalf of the task. `calls` holds all of them, in order."""

    def __init__(self, client: Client, task_id: str) -> None:
        self._client, self._task_id = client, task_id
        self.calls: list[ToolCall] = []

    async def call(self, tool: str, arguments: Mapping[str, Any] | None = None, *, timeout_ms: int | None = None) -> ToolCall:
        """Calls a tool (`server__tool`). Look at `is_error` of the answer."""
        call = await self._client.tools.call(tool, arguments, task_id=self._task_id, timeout_ms=timeout_ms)
        self.calls.append(call)
        return call


class Task:
    """What a capability function gets: the task's input and context, and what may be said while working on it."""

    def __init__(self, client: Client, info: TaskInfo, claim: Claim, ttl_s: float) -> None:
        self.client = client
        self.info = info
        self.claim = claim
        self.ttl_s = ttl_s
        self.tools = TaskTools(client, info.id)

    @property
    def id(self) -> str:
        """The task's id."""
        return self.info.id

    @property
    def input(self) -> dict[str, Any]:
        """What it works on."""
        return self.info.input

    @property
    def context(self) -> dict[str, Any]:
        """What else matters."""
        return self.info.context

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.info.attempt

    async def progress(self, percent: float | None = None, message: str | None = None) -> None:
        """Says how far the work is. Keeps the claim like a heartbeat."""
        await self._act("progress", given(percent=percent, message=message))

    async def ask(self, question: str, *, timeout: float | None = None) -> str:
        """Asks whoever submitted the task and waits for the answer's words. Raises TimeoutError after `timeout` seconds."""
        until = time.monotonic() + timeout if timeout is not None else math.inf
        every = LOOK_FIRST_S
        await self._act("ask", {"message": {"text": question}})
        while (task := await self._looked()).is_input_wanted:
            if time.monotonic() + every > until:
                raise TimeoutError(f"nobody answered within {timeout} s")
            await asyncio.sleep(every)
            every = min(LOOK_MAX_S, every * 1.5)
        self.info = task
        return task.messages[-1].text

    async def heartbeat(self) -> None:
        """Keeps the claim. The agent does this by itself."""
        await self._looked()

    async def _looked(self) -> TaskInfo:
        path = path_of("tasks", self.id, "actions", "heartbeat")
        answer = await self.client.connection.request("POST", path, {"claim_token": self.claim.token})
        self._kept(answer)
        return opened(TaskInfo, answer)

    async def complete(self, output: Mapping[str, Any]) -> None:
        """Ends the task well. Repeated until the server answers."""
        await self._act("complete", {"output": output}, math.inf)

    async def fail(self, code: str, message: str, retryable: bool) -> None:
        """Ends the attempt badly. Repeated until the server answers."""
        error = {"code": code[:MESSAGE_MAX], "message": message[:MESSAGE_MAX] or code[:MESSAGE_MAX]}
        await self._act("fail", {"error": error, "retryable": retryable}, math.inf)

    async def release(self, reason: str) -> None:
        """Gives the task back; it counts as not tried."""
        await self._act("release", {"reason": reason}, retry_for=3.0)

    async def _act(self, verb: str, body: Mapping[str, Any], retry_for: float | None = None) -> None:
        path = path_of("tasks", self.id, "actions", verb)
        self._kept(await self.client.connection.append(path, {"claim_token": self.claim.token, **body}, retry_for=retry_for))

    def _kept(self, answer: Mapping[str, Any]) -> None:
        claim = answer["data"]["attributes"].get("claim") or {}
        self.ttl_s = time_left(claim.get("expires_at"), answer["meta"]["timestamp"]) or self.ttl_s


def time_left(expires_at: str | None, now: str) -> float | None:
    """Seconds until a claim ends, both times being the server's."""
    if not expires_at:
        return None
    return max(0.3, (datetime.fromisoformat(expires_at) - datetime.fromisoformat(now)).total_seconds())
