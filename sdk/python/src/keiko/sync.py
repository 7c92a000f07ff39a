"""The same client and agent for programs without asyncio: each call runs in a loop of its own in a background thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from functools import cached_property, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from . import agents, events, tasks, tools, work
from . import client as aio
from .models import DiscoveredAgent, Me

if TYPE_CHECKING:
    from .agent import Agent as AsyncAgent

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")


class Face(Generic[A]):
    """A part of the asynchronous client, and the loop that it lives in."""

    def __init__(self, inner: A, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._loop = inner, loop

    def _wait(self, coroutine: Coroutine[Any, Any, R]) -> R:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def blocking(method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Face[A], P], R]:
    """The method for callers that wait."""

    @wraps(method)
    def call(self: Face[A], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._wait(method(self._inner, *args, **kwargs))

    return call


def iterating(method: Callable[Concatenate[A, P], AsyncIterator[R]]) -> Callable[Concatenate[Face[A], P], Iterator[R]]:
    """The method as a plain iterator."""

    @wraps(method)
    def call(self: Face[A], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        items = method(self._inner, *args, **kwargs)

        async def step() -> tuple[bool, Any]:
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        async def close() -> None:
            await cast(AsyncGenerator[R, None], items).aclose()

        try:
            while (found := self._wait(step()))[0]:
                yield found[1]
        finally:
            if not self._loop.is_closed():
                self._wait(close())

    return call


class Tasks(Face[tasks.Tasks]):
    """`client.tasks`"""

    submit = blocking(tasks.Tasks.submit)
    get = blocking(tasks.Tasks.get)
    wait = blocking(tasks.Tasks.wait)
    list = iterating(tasks.Tasks.list)
    events = blocking(tasks.Tasks.events)
    cancel = blocking(tasks.Tasks.cancel)
    say = blocking(tasks.Tasks.say)
    retry = blocking(tasks.Tasks.retry)


class Agents(Face[agents.Agents]):
    """`client.agents`"""

    register = blocking(agents.Agents.register)
    update = blocking(agents.Agents.update)
    ensure = blocking(agents.Agents.ensure)
    get = blocking(agents.Agents.get)
    list = iterating(agents.Agents.list)
    issue_key = blocking(agents.Agents.issue_key)
    revoke_key = blocking(agents.Agents.revoke_key)


class Events(Face[events.Events]):
    """`client.events`"""

    page = blocking(events.Events.page)
    follow = iterating(events.Events.follow)


class Tools(Face[tools.Tools]):
    """`client.tools`"""

    list = iterating(tools.Tools.list)
    get = blocking(tools.Tools.get)
    call = blocking(tools.Tools.call)
    approve = blocking(tools.Tools.approve)


class McpServers(Face[tools.McpServers]):
    """`client.mcp_servers`"""

    register = blocking(tools.McpServers.register)
    update = blocking(tools.McpServers.update)
    ensure = blocking(tools.McpServers.ensure)
    get = blocking(tools.McpServers.get)
    list = iterating(tools.McpServers.list)
    wait_ready = blocking(tools.McpServers.wait_ready)
    restart = blocking(tools.McpServers.restart)
    delete = blocking(tools.McpServers.delete)


class Journal(Face[tools.Journal]):
    """`client.journal`"""

    page = blocking(tools.Journal.page)


class Background:
    """An event loop in a thread that does not keep the process from ending."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="keiko-loop", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop and waits for its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Client(Face[aio.Client]):
    """A client whose methods wait for their answers. Takes the arguments of `keiko.Client`. Close it, or use it with `with`."""

    def __init__(
        self,
        server: str | None = None,
        *,
        api_key: str | None = None,
        username: str | None = None,
        password: str | None = None,
        tenant: str | None = None,
        retry_for: float = aio.RETRY_FOR_S,
    ) -> None:
        inner = aio.Client(server, api_key=api_key, username=username, password=password, tenant=tenant, retry_for=retry_for)
        self._background = Background()
        super().__init__(inner, self._background.loop)
        self.tasks = Tasks(inner.tasks, self._loop)
        self.agents = Agents(inner.agents, self._loop)
        self.events = Events(inner.events, self._loop)
        self.tools = Tools(inner.tools, self._loop)
        self.mcp_servers = McpServers(inner.mcp_servers, self._loop)
        self.journal = Journal(inner.journal, self._loop)

    def me(self) -> Me:
        """Who this client is to the server."""
        return self._wait(self._inner.me())

    def discover(
        self,
        *,
        capability: str | None = None,
        q: str | None = None,
        tag: str | None = None,
        healthy: bool | None = None,
        limit: int | None = None,
    ) -> list[DiscoveredAgent]:
        """The agents that fit best, best first."""
        return self._wait(self._inner.discover(capability=capability, q=q, tag=tag, healthy=healthy, limit=limit))

    def close(self) -> None:
        """Closes all connections and ends the thread."""
        self._wait(self._inner.close())
        self._background.stop()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class TaskTools(Face[work.TaskTools]):
    """`task.tools`"""

    call = blocking(work.TaskTools.call)


class Task(Face[work.Task]):
    """The task in a plain function: what `keiko.Task` says and does, with methods that wait."""

    progress = blocking(work.Task.progress)
    ask = blocking(work.Task.ask)

    @property
    def id(self) -> str:
        """The task's id."""
        return self._inner.id

    @property
    def input(self) -> dict[str, Any]:
        """What it works on."""
        return self._inner.input

    @property
    def context(self) -> dict[str, Any]:
        """What else matters."""
        return self._inner.context

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self._inner.attempt

    @cached_property
    def tools(self) -> TaskTools:
        """Calls of tools on behalf of the task."""
        return TaskTools(self._inner.tools, self._loop)


class Agent:
    """An agent that serves in the background between `start()` and `stop()`. Takes the arguments of `keiko.Agent`."""

    def __init__(self, name: str, **settings: Any) -> None:
        from .agent import Agent as AsyncAgent

        self._agent: AsyncAgent = AsyncAgent(name, **settings)
        self.capability = self._agent.capability
        self.run = self._agent.run
        self._background: Background | None = None

    def start(self) -> None:
        """Begins to serve in the background."""
        self._background = Background()
        self._serving = asyncio.run_coroutine_threadsafe(self._agent.serve(), self._background.loop)

    def stop(self) -> None:
        """Takes no new work, finishes what runs, releases the rest. Raises what ended the agent before, if anything did."""
        if self._background is None:
            return
        self._background.loop.call_soon_threadsafe(self._agent.stop)
        try:
            self._serving.result()
        finally:
            self._background.stop()
            self._background = None

    def __enter__(self) -> Agent:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
