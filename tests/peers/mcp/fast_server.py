"""A server written with fastmcp: fast_server.py stdio | http PORT."""

import asyncio
import sys

from fastmcp import Context, FastMCP
from fastmcp.utilities.tasks import TaskConfig
from fastmcp_tasks import TasksExtension
from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

server = FastMCP("fast", instructions="For tests.")
server.add_extension(TasksExtension())
NAME = {"type": "object", "properties": {"value": {"type": "string"}}, "required": ["value"]}


@server.tool
def shout(text: str) -> str:
    """Says it loudly."""
    return text.upper() + "!"


@server.tool(annotations={"readOnlyHint": True})
def add(a: int, b: int) -> dict[str, int]:
    """Adds two numbers."""
    return {"sum": a + b}


@server.tool
async def greet(context: Context) -> str | InputRequiredResult:
    """Asks for a name, and greets."""
    if not context.input_responses:
        question = ElicitRequest(params=ElicitRequestFormParams(message="Who are you?", requested_schema=NAME))
        return InputRequiredResult(input_requests={"who": question})
    answer = context.input_responses["who"]
    return f"Hello, {answer.content['value']}!" if answer.action == "accept" else "Hello, nobody!"


@server.tool(task=TaskConfig(mode="required"))
async def patient(n: int) -> int:
    """Makes a task of every call."""
    await asyncio.sleep(0.3)
    return n * 2


@server.tool(task=True)
async def ready(n: int) -> int:
    """Makes a task of a call for whoever knows tasks."""
    await asyncio.sleep(0.1)
    return n * 3


@server.tool
async def count(context: Context, to: int) -> int:
    """Counts, and tells how far it is."""
    for n in range(to):
        await context.report_progress(n + 1, to)
    return to


@server.resource("memo://today")
def today() -> str:
    """A note."""
    return "Buy milk."


@server.resource("memo://{name}")
def memo(name: str) -> str:
    """A note by its name."""
    return f"The note {name}."


@server.prompt
def summarise(text: str) -> str:
    """Asks for a summary."""
    return f"Summarise: {text}"


if sys.argv[1] == "http":
    server.run(transport="http", host="127.0.0.1", port=int(sys.argv[2]), show_banner=False)
else:
    server.run(show_banner=False)
