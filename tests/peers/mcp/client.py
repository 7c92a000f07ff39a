"""An official Python client against Keiko, of version 1 (`mcp.ClientSession`) or 2 (`mcp.Client`), whichever is on the path.

With KEIKO_URL (that of /mcp or /sse) and KEIKO_KEY. Reads a list of [method, params] from its standard input and prints what each
answers, as a list. A person who says yes to everything sits before it.
"""

import asyncio
import json
import os
import sys

from mcp import types

URL, HEADERS = os.environ["KEIKO_URL"], {"X-API-Key": os.environ["KEIKO_KEY"]}
CONTENT = {"value": "Ada"}


def sampled():
    return types.CreateMessageResult(role="assistant", content=types.TextContent(type="text", text="a sampled answer"), model="m")


async def sample(context, params):
    return sampled()


async def elicit(context, params):
    return types.ElicitResult(action="accept", content=CONTENT)


async def roots(context):
    return types.ListRootsResult(roots=[types.Root(uri="file:///home/ada", name="home")])


async def asked(client, work):
    ways = {
        "tools/list": lambda params: client.list_tools(),
        "tools/call": lambda params: client.call_tool(params["name"], params.get("arguments")),
        "resources/list": lambda params: client.list_resources(),
        "resources/read": lambda params: client.read_resource(params["uri"]),
        "prompts/list": lambda params: client.list_prompts(),
        "prompts/get": lambda params: client.get_prompt(params["name"], params.get("arguments")),
    }
    answers = []
    for method, params in work:
        try:
            answers.append((await ways[method](params)).model_dump(mode="json", by_alias=True, exclude_none=True))
        except Exception as error:
            answers.append({"failed": str(error)})
    return answers


async def version_one(work):
    from mcp import ClientSession
    from mcp.client.sse import sse_client
    from mcp.client.streamable_http import streamablehttp_client

    able = {"sampling_callback": sample, "list_roots_callback": roots}
    if hasattr(types, "ElicitResult"):
        able["elicitation_callback"] = elicit
    async with (sse_client if "/sse" in URL else streamablehttp_client)(URL, headers=HEADERS) as streams, ClientSession(streams[0], streams[1], **able) as client:
        begun = await client.initialize()
        return {"version": begun.protocolVersion, "answers": await asked(client, work)}


async def version_two(work):
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    async with httpx2.AsyncClient(headers=HEADERS, timeout=30, trust_env=False) as http:
        async with Client(streamable_http_client(URL, http_client=http), sampling_callback=sample, elicitation_callback=elicit, list_roots_callback=roots) as client:
            return {"version": client.protocol_version, "answers": await asked(client, work)}


def main():
    import mcp

    work = json.load(sys.stdin)
    print(json.dumps(asyncio.run(version_two(work) if hasattr(mcp, "Client") else version_one(work))))


main()
