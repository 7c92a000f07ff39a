"""An MCP server over streamable HTTP with the official Python SDK. Its port is its first argument."""

import sys

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

server = MCPServer("over-http", version="1")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def authorization(ctx: Context) -> str:
    """The Authorization header that the call came with."""
    return ctx.request_context.request.headers.get("authorization", "none")


server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
