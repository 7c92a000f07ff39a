"""Tools in the hands of an agent of this fleet: calls are counted, and a server that is away is asked once only."""

from dataclasses import dataclass, field
from typing import Any

from keiko import KeikoError, NotFound, Task, ToolCall, Unavailable


@dataclass
class Toolkit:
    """The tools of one task. What goes wrong becomes a note: the part can be made without the answer."""

    task: Task
    notes: list[str] = field(default_factory=list)
    away: set[str] = field(default_factory=set)

    async def ask(self, tool: str, arguments: dict[str, Any]) -> str | None:
        """The text of a tool's answer; None when there is none, or the tool says that it failed."""
        server = tool.partition("__")[0]
        if server in self.away:
            return None
        try:
            call = await self.task.tools.call(tool, arguments)
        except (Unavailable, NotFound) as error:
            self.away.add(server)
            self.notes.append(f"The MCP server '{server}' cannot be asked: {error.message}")
            return None
        except KeikoError as error:
            self.notes.append(f"A call of {tool} went wrong: {error.message}")
            return None
        return None if call.is_error else call.text

    @property
    def calls(self) -> list[dict[str, object]]:
        """The calls that were answered, for the report."""
        return [called(call) for call in self.task.tools.calls]


def called(call: ToolCall) -> dict[str, object]:
    return {"id": call.id, "tool": call.tool, "is_error": call.is_error, "duration_ms": call.duration_ms}
