"""The log of everything that changed: page by page, or followed as it grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2

from .connection import pause
from .errors import Disconnected, KeikoError
from .models import Event, Page
from .resources import PAGE_MAX, Resource, given, opened_list


class Events(Resource):
    """`client.events`. `type` is an exact type or a prefix that ends in `.*`; `stream` is the id of an entity."""

    async def page(self, after: int = 0, *, type: str | None = None, stream: str | None = None, limit: int = PAGE_MAX) -> Page[Event]:
        """Events after a position, oldest first. Go on with `after=page.position`."""
        return opened_list(Event, await self._http.get("/events", given(after=after, type=type, stream=stream, limit=limit)))

    async def follow(self, after: int | None = None, *, type: str | None = None, stream: str | None = None) -> AsyncIterator[Event]:
        """Each event once, in order, as it happens, for ever: connects again after the last one seen.

        Begins after `after`, else at the end of the log as it is now.
        """
        last = after if after is not None else await self._end()
        attempt = 0
        while True:
            try:
                async for event in self._connected(last, given(type=type, stream=stream)):
                    last, attempt = event.position, 0
                    yield event
            except Disconnected:
                pass
            except KeikoError as error:
                if error.status not in (429, 503) and error.code != "TOKEN_INVALID":
                    raise
            await asyncio.sleep(pause(attempt))
            attempt += 1

    async def _connected(self, after: int, params: Mapping[str, Any]) -> AsyncIterator[Event]:
        """The events of one connection."""
        async with self._http.stream("/events/stream", params, {"Last-Event-ID": str(after)}) as response:
            async for message in httpx2.EventSource(response):
                yield Event.model_validate_json(message.data)

    async def _end(self) -> int:
        """The position of the log's last event. Far behind the end a page is empty and says where the end is."""
        return (await self.page(2**53, limit=1)).position or 0
