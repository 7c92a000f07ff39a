"""The loop of an agent: claims tasks, works on them side by side, keeps their claims, reports, and winds up when told.

Owns the claims that it was given. Works on each once, and drops the work of a claim that is over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from .capability import Capability
from .client import Client
from .connection import pause
from .errors import ClaimStale, Forbidden, KeikoError, NotFound, TaskFailed, Unauthenticated
from .models import TaskInfo
from .resources import opened_list
from .sync import Task as SyncTask
from .work import TTL_S, Task, time_left

log = logging.getLogger("keiko.agent")

WAIT_MS = 30_000
CLAIM_MAX = 100
HEARTBEATS_PER_TTL = 3
CLAIMS_REMEMBERED = 10_000


class Worker:
    """One life of an agent."""

    def __init__(self, name: str, client: Client, capabilities: Mapping[str, Capability], max_concurrency: int, grace_s: float) -> None:
        self._name = name
        self._client = client
        self._capabilities = capabilities
        self._max = max_concurrency
        self._grace_s = grace_s
        self._running: dict[asyncio.Task[None], Task] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()

    async def work(self, stopping: asyncio.Event) -> None:
        """Claims and works until the event is set, then winds up."""
        stop = asyncio.create_task(stopping.wait())
        log.info("%s serves %s at %s", self._name, ", ".join(self._capabilities) or "nothing", self._client.connection.server)
        try:
            await self._claim_until(stop)
        finally:
            stop.cancel()
            await self._wind_up()

    async def _claim_until(self, stop: asyncio.Task[Any]) -> None:
        failures = 0
        while not stop.done():
            free = self._max - len(self._running)
            if free < 1:
                await asyncio.wait({stop, *self._running}, return_when=asyncio.FIRST_COMPLETED)
                continue
            asked = asyncio.create_task(self._ask(free))
            await asyncio.wait({stop, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                await cancelled(asked)
                return
            try:
                started, restart = asked.result()
            except KeikoError as error:
                if isinstance(error, (Unauthenticated, Forbidden, NotFound)):
                    raise
                log.warning("cannot claim: %s", error)
                failures += 1
            else:
                if restart:
                    log.info("asked to restart: taking no new work")
                    return
                failures = 0 if started else 1
            if failures:
                await asyncio.wait({stop}, timeout=pause(failures - 1))

    async def _ask(self, most: int) -> tuple[bool, bool]:
        """Starts the tasks that are handed over. Answers whether the request was worth its while, and whether to restart."""
        began = time.monotonic()
        order = {"max": min(most, CLAIM_MAX), "wait_ms": WAIT_MS}
        answer = await self._client.connection.request("POST", "/tasks/actions/claim", order, timeout=WAIT_MS / 1000 + 15, retry_for=0)
        fresh = [task for task in opened_list(TaskInfo, answer) if self._is_new(task)]
        for task in fresh:
            self._start(task, answer["meta"]["timestamp"])
        return bool(fresh) or time.monotonic() - began > 1, bool(answer["meta"].get("restart_requested"))

    def _is_new(self, task: TaskInfo) -> bool:
        """Whether the claim was not handed over before."""
        assert task.claim is not None, "a claimed task has a claim"
        if task.claim.id in self._seen:
            return False
        self._seen[task.claim.id] = None
        while len(self._seen) > CLAIMS_REMEMBERED:
            self._seen.popitem(last=False)
        return True

    def _start(self, info: TaskInfo, now: str) -> None:
        assert info.claim is not None, "a claimed task has a claim"
        expires = info.claim.expires_at.isoformat() if info.claim.expires_at else None
        task = Task(self._client, info, info.claim, time_left(expires, now) or TTL_S)
        job = asyncio.create_task(self._handle(task), name=info.id)
        self._running[job] = task
        job.add_done_callback(lambda job: self._running.pop(job, None))

    async def _handle(self, task: Task) -> None:
        """Works on a task while its claim is kept, and reports."""
        log.info("%s: %s, attempt %s", task.id, task.info.capability, task.attempt)
        report = asyncio.create_task(self._work_and_report(task))
        keeper = asyncio.create_task(keep(task))
        try:
            await asyncio.wait({report, keeper}, return_when=asyncio.FIRST_COMPLETED)
            if report.done():
                await report
            else:
                log.warning("%s: the claim is over, the work is dropped", task.id)
        except ClaimStale:
            log.warning("%s: the claim is over, its result is dropped", task.id)
        except KeikoError as error:
            log.error("%s: the report was refused: %s", task.id, error)
        finally:
            await cancelled(report, keeper)

    async def _work_and_report(self, task: Task) -> None:
        try:
            output = await self._output(task)
        except TaskFailed as failure:
            log.warning("%s failed: %s", task.id, failure)
            return await task.fail(failure.code, failure.message, failure.retryable)
        try:
            await task.complete(output)
        except KeikoError as error:
            if error.status not in (400, 413, 422):
                raise
            log.error("%s: its output was refused: %s", task.id, error)
            await task.fail(error.code, f"The agent's output was refused. {error.message}", False)
        else:
            log.info("%s completed", task.id)

    async def _output(self, task: Task) -> dict[str, Any]:
        """The output of the task's capability; whatever goes wrong there as TaskFailed."""
        capability = self._capabilities.get(task.info.capability)
        if capability is None:
            raise TaskFailed("CAPABILITY_MISSING", f"{self._name} has no function for {task.info.capability}.")
        handle = task if capability.is_async else SyncTask(task, asyncio.get_running_loop())
        try:
            return await capability.run(handle, task.input)
        except (TaskFailed, ClaimStale):
            raise
        except Exception as error:
            log.exception("%s: %s raised", task.id, task.info.capability)
            raise TaskFailed("WORK_FAILED", f"{type(error).__name__}: {error}") from error

    async def _wind_up(self) -> None:
        """Lets running work end within the grace period, then gives the rest back."""
        if self._running:
            log.info("%s tasks in work; they have %s s", len(self._running), self._grace_s)
            await asyncio.wait(set(self._running), timeout=self._grace_s)
        left = dict(self._running)
        await cancelled(*left)
        await asyncio.gather(*(give_back(task) for task in left.values()))
        log.info("%s has stopped", self._name)


async def keep(task: Task) -> None:
    """Keeps a claim. Ends when it is over; a server that is away is asked again."""
    while True:
        await asyncio.sleep(task.ttl_s / HEARTBEATS_PER_TTL)
        try:
            await task.heartbeat()
        except (ClaimStale, NotFound):
            return
        except KeikoError as error:
            log.warning("%s: heartbeat: %s", task.id, error)


async def give_back(task: Task) -> None:
    try:
        await task.release("the agent stops")
        log.info("%s released", task.id)
    except KeikoError as error:
        log.warning("%s could not be released: %s", task.id, error)


async def cancelled(*jobs: asyncio.Task[Any]) -> None:
    """Cancels what still runs and waits for its end."""
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
