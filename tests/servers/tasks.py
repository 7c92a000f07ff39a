"""An MCP server that makes tasks of calls, as the extension of 2026-07-28 has them or as version 2025-11-25 does, by hand.

    tasks.py ERA TRANSPORT [PORT]      ERA: legacy | modern, TRANSPORT: http | stdio

Its tools are those that the conformance suite's scenarios of tasks ask for, and some that lie.
"""

import itertools
import json
import secrets
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from words import Refusal, form, text

ERA, TRANSPORT = sys.argv[1], sys.argv[2]
MODERN, LEGACY = "2026-07-28", "2025-11-25"
META = "io.modelcontextprotocol/"
TASKS = META + "tasks"
INFO = {"name": "tasks", "version": "1.0"}
POLL_MS, TTL_MS = 50, 600_000
JOBS, CALLED_OFF = {}, []


class Job:
    """Work in a thread of its own. What it does may ask with `ask`, and should look whether it `is_off`."""

    def __init__(self, work, arguments, capabilities, **lies):
        self.id, self.status, self.lies = secrets.token_hex(16), "working", lies
        self.made = self.changed = datetime.now(UTC).isoformat()
        self.result = self.error = None
        self.arguments, self.label = arguments, arguments.get("label")
        self.questions, self.answers = {}, {}
        self.names = (f"ask-{n}" for n in itertools.count(1))
        self.capabilities, self.is_off = capabilities, threading.Event()
        self.moved = threading.Condition()
        JOBS[self.id] = self
        threading.Thread(target=self.run, args=(work, arguments), daemon=True).start()

    def move(self, status, result=None, error=None):
        with self.moved:
            if self.status not in ("completed", "failed", "cancelled"):
                self.status, self.result, self.error = status, result, error
                self.changed = datetime.now(UTC).isoformat()
            self.moved.notify_all()

    def run(self, work, arguments):
        try:
            result = work(self, arguments)
            if ERA == "legacy" and result.get("isError"):
                self.move("failed", result)
            else:
                self.move("completed", result)
        except Refusal as refusal:
            self.move("failed", error=refusal.error)

    def ask(self, *questions):
        names = [next(self.names) for _ in questions]
        with self.moved:
            self.questions |= dict(zip(names, questions, strict=True))
        self.move("input_required")
        with self.moved:
            self.moved.wait_for(lambda: self.is_off.is_set() or not self.questions, 60)
        self.move("working")
        return [self.answers.get(name, {}) for name in names]

    def answer(self, answers):
        with self.moved:
            for name, answer in answers.items():
                if self.questions.pop(name, None):
                    self.answers[name] = answer
            self.moved.notify_all()

    def cancel(self):
        CALLED_OFF.append(self.label)
        self.is_off.set()
        self.move("cancelled")

    def shown(self):
        shown = {"taskId": self.id, "status": self.status, "createdAt": self.made, "lastUpdatedAt": self.changed}
        return shown | ({"ttl": TTL_MS, "pollInterval": POLL_MS} if ERA == "legacy" else {"ttlMs": TTL_MS, "pollIntervalMs": POLL_MS})

    def detailed(self):
        shown = self.shown() | self.lies
        if self.status == "completed":
            shown["result"] = self.result
        elif self.status == "failed":
            shown["error"] = self.error
        elif self.status == "input_required":
            shown["inputRequests"] = dict(self.questions)
        return shown


# What tools do in their own time.


def slow_compute(job, arguments):
    if job and job.is_off.wait(arguments.get("seconds", 0)):
        return text("called off")
    if not job:
        time.sleep(arguments.get("seconds", 0))
    return text(f"computed {arguments.get('label', '')} for {arguments.get('seconds', 0)} s")


def failing_job(job, arguments):
    job.is_off.wait(0.3)
    return text("it did not work", isError=True)


def protocol_error_job(job, arguments):
    raise Refusal(-32603, "it broke down", {"why": "on purpose"})


def confirm_delete(job, arguments):
    if "elicitation" not in job.capabilities:
        return text("nobody to ask")
    (answer,) = job.ask(form("Really?", confirm={"type": "boolean"}))
    return text(f"deleted {arguments.get('filename', '')}: {answer.get('action')}")


def multi_input(job, arguments):
    first, second = job.ask(form("One?", name={"type": "string"}), form("Two?", name={"type": "string"}))
    return text(f"{first['content']['name']} and {second['content']['name']}")


def asks_in_turn(job, arguments):
    (first,) = job.ask(form("One?", name={"type": "string"}))
    (second,) = job.ask(form("Two?", name={"type": "string"}))
    return text(f"{first['content']['name']}, then {second['content']['name']}")


def asks_for_roots(job, arguments):
    job.ask({"method": "roots/list", "params": {}})
    return text("has roots")


def greet_named(job, arguments):
    return text(f"Hello, {arguments['name']}!")


TOOLS = {
    "slow_compute": ("optional", slow_compute),
    "failing_job": ("required", failing_job),
    "protocol_error_job": ("required", protocol_error_job),
    "confirm_delete": ("required", confirm_delete),
    "multi_input": ("required", multi_input),
    "asks_in_turn": ("required", asks_in_turn),
    "asks_for_roots": ("required", asks_for_roots),
    "test_tool_with_task": ("required", greet_named),
    "another_id": ("required", slow_compute),
    "no_status": ("required", slow_compute),
    "long_job": ("required", slow_compute),
    "called_off": ("forbidden", None),
    "unasked_task": ("forbidden", slow_compute),
    "greet": ("forbidden", None),
}
LIES = {"another_id": {"taskId": "another"}, "no_status": {"status": "dozing"}}


def at_once(name, arguments):
    return text(f"Hello, {arguments.get('name')}!" if name == "greet" else json.dumps(CALLED_OFF))


def listed():
    def tool(name, support):
        schema = {"type": "object", "properties": {"seconds": {"type": "number"}, "label": {"type": "string"}, "filename": {"type": "string"}, "name": {"type": "string"}, "shaky": {"type": "integer"}}}
        entry = {"name": name, "description": f"The tool {name}.", "inputSchema": schema}
        return entry | ({"execution": {"taskSupport": support}} if ERA == "legacy" else {})

    return {"tools": [tool(name, support) for name, (support, _) in TOOLS.items()]}


def job_of(params):
    job = JOBS.get(params.get("taskId"))
    if not job:
        raise Refusal(-32602, "Failed to retrieve task: Task not found")
    return job


def call_modern(params, capabilities):
    name, arguments = params["name"], params.get("arguments") or {}
    support, work = TOOLS.get(name, (None, None))
    if support is None:
        raise Refusal(-32602, f"Unknown tool: {name}")
    if work is None:
        return at_once(name, arguments)
    if TASKS not in capabilities.get("extensions", {}) and name != "unasked_task":
        if support == "required":
            raise Refusal(-32021, "Missing required client capability", {"requiredCapabilities": {"extensions": {TASKS: {}}}})
        return work(None, arguments)
    if name == "test_tool_with_task" and not params.get("inputResponses"):
        return {"resultType": "input_required", "inputRequests": {"who": form("Who?", name={"type": "string"})}, "requestState": "r1"}
    if name == "test_tool_with_task":
        arguments = {"name": params["inputResponses"]["who"]["content"]["name"]}
    return {"resultType": "task", **Job(work, arguments, capabilities, **LIES.get(name, {})).shown()}


def modern(message):
    method, params = message["method"], message.get("params") or {}
    capabilities = params.get("_meta", {}).get(META + "clientCapabilities", {})
    if method == "server/discover":
        return {"supportedVersions": [MODERN], "capabilities": {"tools": {}, "extensions": {TASKS: {}}}, "_meta": {META + "serverInfo": INFO}}
    if method == "tools/list":
        return listed()
    if method == "tools/call":
        return call_modern(params, capabilities)
    if method.startswith("tasks/") and TASKS not in capabilities.get("extensions", {}):
        raise Refusal(-32021, "Missing required client capability")
    if method == "tasks/get":
        return job_of(params).detailed()
    if method == "tasks/update":
        job_of(params).answer(params["inputResponses"])
        return {}
    if method == "tasks/cancel":
        job_of(params).cancel()
        return {}
    raise Refusal(-32601, f"Unknown method: {method}")


def legacy(message):
    method, params = message["method"], message.get("params") or {}
    if method == "initialize":
        legacy.capabilities = params["capabilities"]
        tasks = {"cancel": {}, "requests": {"tools": {"call": {}}}}
        return {"protocolVersion": LEGACY, "capabilities": {"tools": {}, "tasks": tasks}, "serverInfo": INFO}
    if method == "ping":
        return {}
    if method == "tools/list":
        return listed()
    if method == "tools/call":
        name, arguments = params["name"], params.get("arguments") or {}
        support, work = TOOLS[name]
        if "task" not in params and support == "required":
            raise Refusal(-32601, f"Task augmentation required for {name}")
        if "task" not in params:
            return work(None, arguments) if work else at_once(name, arguments)
        return {"task": Job(work, arguments, legacy.capabilities, **LIES.get(name, {})).shown() | {"asked": params["task"]}}
    if method == "tasks/get":
        return job_of(params).shown() | job_of(params).lies
    if method == "tasks/result":
        job = job_of(params)
        with job.moved:
            job.moved.wait_for(lambda: job.status in ("completed", "failed", "cancelled"), 60)
        if job.error:
            raise Refusal(job.error["code"], job.error["message"], job.error.get("data"))
        return (job.result or {}) | {"_meta": {META + "related-task": {"taskId": job.id}}}
    if method == "tasks/cancel":
        job = job_of(params)
        if job.status in ("completed", "failed", "cancelled"):
            raise Refusal(-32602, f"Cannot cancel task: already in terminal status '{job.status}'")
        job.cancel()
        return job.shown()
    raise Refusal(-32601, f"Unknown method: {method}")


def answered(message):
    try:
        result = (modern if ERA == "modern" else legacy)(message)
        if ERA == "modern":
            result = {"resultType": "complete", **result}
        return {"jsonrpc": "2.0", "id": message["id"], "result": result}
    except Refusal as refusal:
        return {"jsonrpc": "2.0", "id": message["id"], "error": refusal.error}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_old = ERA == "modern" and self.headers.get("MCP-Protocol-Version") != MODERN
        if is_old or (ERA == "legacy" and message["method"] == "server/discover"):
            return self.send(400, {"jsonrpc": "2.0", "id": message.get("id"), "error": {"code": -32600, "message": "another version"}})
        if "id" not in message:
            return self.send(202)
        task = (message.get("params") or {}).get("taskId")
        job = JOBS.get(task)
        if job and job.arguments.get("shaky", 0) > 0:
            job.arguments["shaky"] -= 1
            return self.send(502)
        if ERA == "modern" and task and self.headers.get("Mcp-Name") != task:
            return self.send(400, {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32020, "message": "Mcp-Name is not the task"}})
        self.send(200, answered(message))

    def do_GET(self):
        self.send(405)

    def do_DELETE(self):
        self.send(200)

    def send(self, status, body=None):
        data = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if ERA == "legacy" and status == 200:
            self.send_header("Mcp-Session-Id", "one")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def streams():
    lock = threading.Lock()

    def say(message):
        with lock:
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()

    for line in sys.stdin:
        message = json.loads(line)
        if "method" in message and "id" in message:
            threading.Thread(target=lambda message=message: say(answered(message)), daemon=True).start()


if TRANSPORT == "stdio":
    streams()
else:
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Handler).serve_forever()
