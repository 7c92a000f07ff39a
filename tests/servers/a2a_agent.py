"""An agent by the official Python SDK of A2A: `a2a_agent.py PORT BINDING LOG [SECRET]`. What it does, the first word of a message says.

`say` answers with a message, `work` with a task that makes progress and ends well, `data` with data, `ask` asks back, `fail`, `reject`, `sign-in`
and `slow` do so. Every message that it gets is a line of LOG. With a SECRET it wants it in `x-secret`.
"""

import asyncio
import json
import sys

import uvicorn
from a2a.helpers import proto_helpers as make
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import a2a_pb2 as pb
from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse

PORT, BINDING, LOG, *SECRET = sys.argv[1:]
URL = f"http://127.0.0.1:{PORT}/a2a"


class Doer(AgentExecutor):
    async def execute(self, context, queue):
        with open(LOG, "a") as log:
            log.write(json.dumps(MessageToDict(context.message)) + "\n")
        text = make.get_message_text(context.message)
        verb = text.split()[0] if text else ""
        if verb == "say":
            await queue.enqueue_event(make.new_text_message(f"said {text[4:]}", context_id=context.context_id))
            return
        task = context.current_task
        if not task:
            task = make.new_task_from_user_message(context.message)
            await queue.enqueue_event(task)
        updater = TaskUpdater(queue, task.id, task.context_id)
        await updater.start_work(updater.new_agent_message([pb.Part(text="on it")]))
        words = lambda text: updater.new_agent_message([pb.Part(text=text)])  # noqa: E731
        if verb == "ask":
            await updater.requires_input(words("Which one?"))
            return
        if verb == "fail":
            await updater.failed(words("it broke"))
        elif verb == "reject":
            await updater.reject(words("not mine"))
        elif verb == "sign-in":
            await updater.requires_auth(words("who are you?"))
        elif verb == "slow":
            await asyncio.sleep(60)
        elif verb == "data":
            await updater.add_artifact([make.new_data_part({"pages": 3})])
            await updater.complete()
        else:
            await asyncio.sleep(0.3)
            await updater.add_artifact([pb.Part(text=f"did {text}")])
            await updater.complete()

    async def cancel(self, context, queue):
        with open(LOG, "a") as log:
            log.write(json.dumps({"cancelled": context.task_id}) + "\n")
        await TaskUpdater(queue, context.task_id, context.context_id).cancel()


class Guard:
    """Refuses whoever does not know the secret."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and SECRET and dict(scope["headers"]).get(b"x-secret") != SECRET[0].encode():
            return await PlainTextResponse("who are you?", 401)(scope, receive, send)
        return await self.app(scope, receive, send)


card = pb.AgentCard(
    name="doer", description="Does things", version="1",
    supported_interfaces=[pb.AgentInterface(url=URL, protocol_binding=BINDING, protocol_version="1.0")],
    capabilities=pb.AgentCapabilities(streaming=True), default_input_modes=["text/plain"], default_output_modes=["text/plain"],
    skills=[pb.AgentSkill(id="do", name="Do", description="Does what it is told", tags=["work"])],
)
handler = DefaultRequestHandler(agent_executor=Doer(), task_store=InMemoryTaskStore(), agent_card=card)
bound = create_jsonrpc_routes(handler, "/a2a") if BINDING == "JSONRPC" else create_rest_routes(handler, path_prefix="/a2a")
uvicorn.run(Guard(Starlette(routes=[*create_agent_card_routes(card), *bound])), host="127.0.0.1", port=int(PORT), log_level="warning")
