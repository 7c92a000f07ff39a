"""What all parts of the client share: opening answers, paths, lists page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from .connection import Connection
from .models import Model, Page

M = TypeVar("M", bound=Model)

PAGE_MAX = 500


class Resource:
    """One part of the API, over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._http = connection

    async def _pages(self, kind: type[M], path: str, params: Mapping[str, Any]) -> AsyncIterator[M]:
        """All items of a list, fetched page by page."""
        cursor: str | None = None
        while True:
            page = opened_list(kind, await self._http.get(path, {**params, **({"cursor": cursor} if cursor else {})}))
            for item in page:
                yield item
            cursor = page.next_cursor
            if not cursor:
                return


def path_of(*parts: str) -> str:
    """A path of names and ids as people type them."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def flat(resource: Mapping[str, Any]) -> dict[str, Any]:
    """A resource with its id beside its attributes; an event, which has no attributes, as it is."""
    return {"id": resource["id"], **resource["attributes"]} if "attributes" in resource else dict(resource)


def opened(kind: type[M], answer: Mapping[str, Any]) -> M:
    """The resource of an answer."""
    return kind.model_validate(flat(answer["data"]))


def opened_list(kind: type[M], answer: Mapping[str, Any]) -> Page[M]:
    """The resources of an answer, with where the list goes on."""
    meta = answer["meta"]
    items = [kind.model_validate(flat(item)) for item in answer["data"]]
    return Page(items=items, next_cursor=meta.get("next_cursor"), position=meta.get("position"))


def given(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
