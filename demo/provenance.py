"""How a part came about: its task's positions in the log, and its tool calls with their positions in the journal."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from keiko import Client, JournalEntry

# The journal is written shortly after a call is answered.
JOURNAL_WAIT_S = 3.0
TOLD = ("submitted", "claimed", "released", "failed", "completed")


async def journal_end(client: Client) -> int:
    """A position with nothing behind it, found in few questions."""
    high = 1
    while await client.journal.page(high, limit=1):
        high *= 2
    low = 0
    while low < high:
        middle = (low + high) // 2
        if await client.journal.page(middle, limit=1):
            low = middle + 1
        else:
            high = middle
    return low


async def positions(client: Client, task_id: str) -> dict[str, list[int]]:
    """Where the log has what happened to a task."""
    found: dict[str, list[int]] = {}
    for event in await client.tasks.events(task_id):
        name = event.type.rpartition(".")[2]
        if name in TOLD:
            found.setdefault(name, []).append(event.position)
    return found


async def journalled(client: Client, after: int, tasks: Iterable[str], known: set[str]) -> dict[str, list[dict[str, Any]]]:
    """The calls made for each task, oldest first, once the journal has all that are known to have been answered."""
    until = time.monotonic() + JOURNAL_WAIT_S
    calls: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    while True:
        async for entry in entries(client, after):
            after = entry.position
            data = entry.data or {}
            known.discard(data.get("call_id", ""))
            if data.get("task_id") in calls:
                calls[data["task_id"]].append(call_of(entry, data))
        if not known or time.monotonic() > until:
            return calls
        await asyncio.sleep(0.1)


async def entries(client: Client, after: int):
    """The journal's tool calls after a position."""
    while page := await client.journal.page(after, entry_class="tool_call"):
        for entry in page:
            yield entry
        after = page.items[-1].position


def call_of(entry: JournalEntry, data: dict[str, Any]) -> dict[str, Any]:
    failed = bool(data.get("error")) or bool((data.get("result") or {}).get("is_error"))
    return {"id": data["call_id"], "tool": data["tool"], "failed": failed, "position": entry.position}


def by_tool(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls of a part, tool by tool."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for call in calls:
        grouped.setdefault(call["tool"], []).append(call)
    return [
        {
            "tool": tool,
            "count": len(found),
            "errors": sum(c["failed"] for c in found),
            "ids": [c["id"] for c in found],
            "journal": [c["position"] for c in found],
        }
        for tool, found in sorted(grouped.items())
    ]
