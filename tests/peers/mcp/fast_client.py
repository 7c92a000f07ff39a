"""The client of fastmcp against Keiko, which knows tasks; see client.py."""

import asyncio
import json
import os
import sys

import fastmcp_tasks  # noqa: F401 - teaches the client tasks
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from mcp_types import CreateMessageResult, TextContent


async def elicit(message, response_type, params, context):
    return {"value": "Ada"}


async def sample(messages, params, context):
    return CreateMessageResult(role="assistant", content=TextContent(type="text", text="a sampled answer"), model="m")


async def main():
    transport = StreamableHttpTransport(os.environ["KEIKO_URL"], headers={"X-API-Key": os.environ["KEIKO_KEY"]})
    async with Client(transport, elicitation_handler=elicit, sampling_handler=sample, roots=["file:///home/ada"]) as client:
        ways = {
            "tools/list": lambda params: client.list_tools_mcp(),
            "tools/call": lambda params: client.call_tool_mcp(params["name"], params.get("arguments") or {}),
            "resources/list": lambda params: client.list_resources_mcp(),
            "resources/read": lambda params: client.read_resource_mcp(params["uri"]),
            "prompts/list": lambda params: client.list_prompts_mcp(),
            "prompts/get": lambda params: client.get_prompt_mcp(params["name"], params.get("arguments")),
        }
        answers = []
        for method, params in json.load(sys.stdin):
            try:
                answers.append((await ways[method](params)).model_dump(mode="json", by_alias=True, exclude_none=True))
            except Exception as error:
                answers.append({"failed": str(error)})
        print(json.dumps({"version": None, "answers": answers}))


asyncio.run(main())
