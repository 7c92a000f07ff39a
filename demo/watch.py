"""Watches tasks until they end: follows the log, and writes a line for each change, with the agent and how far it is."""

import asyncio
import sys
import time
from typing import Any

from fleet import Fleet

from keiko import Client, Event, TaskInfo

LOOK_S = 1.0
ENDS = ("completed", "failed", "died", "cancelled")


def say(line: str) -> None:
    """A line of progress, apart from the report."""
    print(line, file=sys.stderr, flush=True)


class Watch:
    """The tasks of a run, each with the agent that it is meant for. Used with `async with`."""

    def __init__(self, client: Client, fleet: Fleet, timeout_s: float) -> None:
        self._client, self._fleet = client, fleet
        self._until = time.monotonic() + timeout_s
        self._agents: dict[str, str] = {}
        self._percent: dict[str, float] = {}
        self._over: set[str] = set()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> "Watch":
        start = (await self._client.events.page(2**53, limit=1)).position or 0
        self._following = asyncio.create_task(self._follow(start))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)

    async def ended(self, agent: str, task: TaskInfo) -> TaskInfo:
        """The task when it has ended. It is cancelled when its agent is gone, or when it takes too long."""
        self._agents[task.id] = agent
        self._tell(task.id, "submitted")
        while not (task := await self._client.tasks.get(task.id)).ended:
            if trouble := self._fleet.ended(agent) or (time.monotonic() > self._until and "takes too long"):
                self._tell(task.id, trouble)
                task = await self._client.tasks.cancel(task.id)
                break
            await self._change()
        self._end(task.id, task.status, {"error": task.error.model_dump()} if task.error else {})
        return task

    async def _change(self) -> None:
        """Waits for an event of any task of the run; looks again without one too."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait(), LOOK_S)
            except TimeoutError:
                return

    async def _follow(self, start: int) -> None:
        async for event in self._client.events.follow(start, type="tasks.*"):
            if event.stream in self._agents and not event.type.endswith("submitted"):
                self._note(event)
                async with self._changed:
                    self._changed.notify_all()

    def _note(self, event: Event) -> None:
        data, what = event.data or {}, event.type.rpartition(".")[2]
        if what in ENDS:
            return self._end(event.stream, what, data)
        if what == "progressed":
            self._percent[event.stream] = data.get("percent") or 0.0
        if event.stream not in self._over:
            self._tell(event.stream, words(what, data))

    def _end(self, task_id: str, what: str, data: dict[str, Any]) -> None:
        """The last line of a task: said once, by whichever of the log and the question for the task tells it first."""
        if task_id in self._over:
            return
        self._over.add(task_id)
        if what == "completed":
            self._percent[task_id] = 100.0
        self._tell(task_id, words(what, data))

    def _tell(self, task_id: str, what: str) -> None:
        say(f"{self._agents[task_id]:<10} {self._percent.get(task_id, 0):>3.0f}% {what}")


def words(what: str, data: dict[str, Any]) -> str:
    """An event in words."""
    error = data.get("error") or {}
    if error:
        return f"{what}: {error.get('code')}: {error.get('message')}"
    return data.get("message") or what
