"""Tasks as those see them who submit and watch them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Literal

from .models import Event, TaskInfo
from .resources import PAGE_MAX, Resource, given, opened, opened_list, path_of

POLL_FIRST_S, POLL_MAX_S = 0.05, 1.0


class Tasks(Resource):
    """`client.tasks`"""

    async def submit(
        self,
        capability: str,
        input: Mapping[str, Any] | None = None,
        *,
        description: str | None = None,
        context: Mapping[str, Any] | None = None,
        priority: int | None = None,
        queue: str | None = None,
        collision: Literal["strict", "lru"] | None = None,
        max_attempts: int | None = None,
        delay_ms: int | None = None,
        deadline: datetime | None = None,
        agent: str | None = None,
        conversation: str | None = None,
        idempotency_key: str | None = None,
    ) -> TaskInfo:
        """Submits a task. The same `idempotency_key` again answers the same task; without one, only repeats of this call do."""
        body = given(
            capability=capability, description=description or f"Do {capability}", input=input, context=context,
            priority=priority, queue=queue, collision=collision, max_attempts=max_attempts, delay_ms=delay_ms,
            deadline=deadline.isoformat() if deadline else None, agent=agent, conversation=conversation,
        )  # fmt: skip
        return opened(TaskInfo, await self._http.append("/tasks", body, key=idempotency_key))

    async def get(self, task_id: str) -> TaskInfo:
        """The task as it is now."""
        return opened(TaskInfo, await self._http.get(path_of("tasks", task_id)))

    async def wait(self, task_id: str, timeout: float | None = None) -> TaskInfo:
        """The task once it has ended, well or not. Raises TimeoutError after `timeout` seconds."""
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        every = POLL_FIRST_S
        while not (task := await self.get(task_id)).ended:
            if time.monotonic() + every > until:
                raise TimeoutError(f"{task_id} is still {task.status} after {timeout} s")
            await asyncio.sleep(every)
            every = min(POLL_MAX_S, every * 1.5)
        return task

    async def events(self, task_id: str) -> list[Event]:
        """The events of a task, in order."""
        return opened_list(Event, await self._http.get(path_of("tasks", task_id, "events"))).items

    def list(self, *, status: str | None = None, capability: str | None = None, sort: str | None = None) -> AsyncIterator[TaskInfo]:
        """All tasks, newest first. In lists, values over 16 KiB stand as `{"$value": "<sha-256>"}`."""
        filters = {"filter[status]": status, "filter[capability]": capability, "sort": sort, "limit": PAGE_MAX}
        return self._pages(TaskInfo, "/tasks", given(**filters))

    async def cancel(self, task_id: str) -> TaskInfo:
        """Ends a task that has not ended."""
        return opened(TaskInfo, await self._http.append(path_of("tasks", task_id, "actions", "cancel")))

    async def say(self, task_id: str, text: str) -> TaskInfo:
        """Answers what the agent of a task asks, or tells it more."""
        return opened(TaskInfo, await self._http.append(path_of("tasks", task_id, "actions", "say"), {"text": text}))

    async def retry(self, task_id: str) -> TaskInfo:
        """Brings a failed or dead task back."""
        return opened(TaskInfo, await self._http.append(path_of("tasks", task_id, "actions", "retry")))
