"""An agent: its capabilities, its entry in the registry, its key, and its life until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from .capability import Capability, Function, Schema
from .client import Client
from .errors import KeikoError
from .models import IssuedKey
from .work import Task
from .worker import Worker

log = logging.getLogger("keiko.agent")

F = TypeVar("F", bound=Function)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_S = 10.0


class Agent:
    """A program that claims tasks and works on them.

    With `api_key` (or KEIKO_AGENT_KEY) it is the agent of that key. Otherwise it registers itself, or brings its entry up to
    date, and gets a key, with the credentials of somebody who may register agents: `username` and `password`, or
    KEIKO_USERNAME and KEIKO_PASSWORD, or KEIKO_API_KEY.
    """

    def __init__(
        self,
        name: str,
        *,
        description: str = "",
        agent_type: str = "generic",
        max_concurrency: int = 10,
        cost_per_task: float = 0.0,
        labels: Mapping[str, str] | None = None,
        server: str | None = None,
        api_key: str | None = None,
        username: str | None = None,
        password: str | None = None,
        tenant: str | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self.name = name
        self.max_concurrency = max_concurrency
        self.capabilities: dict[str, Capability] = {}
        self._said = {
            "name": name, "description": description, "agent_type": agent_type, "max_concurrency": max_concurrency,
            "cost_per_task": cost_per_task, "labels": dict(labels or {}),
        }  # fmt: skip
        self._server = server
        self._api_key = api_key
        self._person = {"username": username, "password": password, "tenant": tenant}
        self._grace_s = grace_s
        self._stopping: asyncio.Event | None = None

    def capability(
        self,
        name: str,
        *,
        input: type[BaseModel] | Schema | None = None,
        output: type[BaseModel] | Schema | None = None,
        description: str | None = None,
        version: str | None = None,
        domains: Sequence[str] = (),
        tags: Sequence[str] = (),
    ) -> Callable[[F], F]:
        """Makes a function a capability. Its parameters are the fields of a task's input; one annotated `Task` gets the task."""
        if name in self.capabilities:
            raise ValueError(f"the agent {self.name!r} has a capability {name!r} already")

        def add(function: F) -> F:
            self.capabilities[name] = Capability(
                name, function, input=input, output=output, description=description, version=version,
                domains=domains, tags=tags, task_types=task_types(),
            )  # fmt: skip
            return function

        return add

    @property
    def body(self) -> dict[str, Any]:
        """What the agent says of itself to the registry."""
        return {**self._said, "capabilities": [capability.body for capability in self.capabilities.values()]}

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Logs to standard error unless logging is set up already."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        asyncio.run(self.serve())

    async def serve(self) -> None:
        """Works until `stop()`, or a signal when this is the main thread: takes nothing new, finishes what runs, releases the rest."""
        self._stopping = stopping = asyncio.Event()
        handled = on_signals(stopping)
        try:
            await self._live(stopping)
        finally:
            for number in handled:
                asyncio.get_running_loop().remove_signal_handler(number)

    def stop(self) -> None:
        """Ends `serve()` as SIGTERM does. To be called in the loop that it runs in."""
        if self._stopping:
            self._stopping.set()

    async def _live(self, stopping: asyncio.Event) -> None:
        key = self._api_key or os.environ.get("KEIKO_AGENT_KEY")
        if key:
            return await self._work(key, stopping)
        # The registrar waits as long as it takes for a server that is not there yet.
        async with Client(self._server, **self._person, retry_for=math.inf) as registrar:
            joining = asyncio.create_task(self._join(registrar))
            if not await done_before(stopping, joining):
                return
            issued = joining.result()
            try:
                await self._work(issued.key if issued else None, stopping)
            finally:
                if issued:
                    await revoke(registrar, issued)

    async def _join(self, registrar: Client) -> IssuedKey | None:
        """Registers the agent and gets it a key; None when the credentials are the agent's own."""
        if (await registrar.me()).kind == "agent":
            return None
        agent = await registrar.agents.ensure(self.body)
        log.info("%s is registered as %s", self.name, agent.id)
        return await registrar.agents.issue_key(agent.id)

    async def _work(self, key: str | None, stopping: asyncio.Event) -> None:
        async with Client(self._server, api_key=key) as client:
            await Worker(self.name, client, self.capabilities, self.max_concurrency, self._grace_s).work(stopping)


async def done_before(stopping: asyncio.Event, job: asyncio.Task[Any]) -> bool:
    """Waits for the job, unless the event comes first; then the job is cancelled."""
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait((job, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    return job.done() or not job.cancel()


async def revoke(registrar: Client, issued: IssuedKey) -> None:
    """Ends a key that nobody will use again, where the caller may do that."""
    try:
        await asyncio.wait_for(registrar.agents.revoke_key(issued.id), 3.0)
    except (KeikoError, TimeoutError):
        log.info("the key %s stays: it could not be revoked", issued.prefix)


def on_signals(stopping: asyncio.Event) -> list[signal.Signals]:
    """The first signal sets the event, the second ends the process at once. Answers the signals that are handled."""
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if stopping.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        log.info("%s: taking no new work", number.name)
        stopping.set()

    handled: list[signal.Signals] = []
    for number in SIGNALS:
        try:
            loop.add_signal_handler(number, stop, number)
        except (NotImplementedError, RuntimeError, ValueError):
            return handled  # not the main thread
        handled.append(number)
    return handled


def task_types() -> tuple[type, ...]:
    """The annotations by which a parameter asks for the task."""
    from .sync import Task as SyncTask

    return (Task, SyncTask)
