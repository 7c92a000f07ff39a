"""An MCP server that offers what the conformance suite asks for, in either era and over every transport, by hand.

    everything.py ERA TRANSPORT [PORT]      ERA: legacy | modern, TRANSPORT: http | stdio | sse

What it does is written once, as a generator that asks its client with `yield`; the eras differ in how that reaches the client.
"""

import hashlib
import hmac
import itertools
import json
import queue
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from words import Refusal, form, text

ERA, TRANSPORT = sys.argv[1], sys.argv[2]
MODERN = "2026-07-28"
META = "io.modelcontextprotocol/"
KEY = b"this key is for tests"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
SOUND = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAAAAA=="
INFO = {"name": "everything", "version": "1.0"}


def sample(prompt, tokens):
    message = {"role": "user", "content": {"type": "text", "text": prompt}}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": tokens}}


ROOTS = {"method": "roots/list", "params": {}}
STRING, BOOLEAN = {"type": "string"}, {"type": "boolean"}


# What tools do. `call` has arguments, capabilities, note(level, text), progress(n). `yield {name: request}` asks, and gives answers.


def simple(call):
    return text("This is a simple text response for testing.")
    yield


def image(call):
    return {"content": [{"type": "image", "data": PIXEL, "mimeType": "image/png"}]}
    yield


def audio(call):
    return {"content": [{"type": "audio", "data": SOUND, "mimeType": "audio/wav"}]}
    yield


def embedded(call):
    resource = {"uri": "test://embedded-resource", "mimeType": "text/plain", "text": "This is an embedded resource content."}
    return {"content": [{"type": "resource", "resource": resource}]}
    yield


def mixed(call):
    resource = {"uri": "test://mixed-content-resource", "mimeType": "application/json", "text": '{"test":"data","value":123}'}
    content = [{"type": "text", "text": "Multiple content types test:"}, {"type": "image", "data": PIXEL, "mimeType": "image/png"}]
    return {"content": [*content, {"type": "resource", "resource": resource}]}
    yield


def link(call):
    return {"content": [{"type": "resource_link", "uri": "test://static-text", "name": "a link"}]}
    yield


def logging(call):
    for said in ["Tool execution started", "Tool processing data", "Tool execution completed"]:
        call.note("info", said)
        time.sleep(0.05)
    return text("logged")
    yield


def progressing(call):
    for n in (0, 50, 100):
        call.progress(n)
        time.sleep(0.05)
    return text("done")
    yield


def failing(call):
    return text("This tool intentionally returns an error for testing", isError=True)
    yield


def sampling(call):
    answers = yield {"sampled": sample(call.arguments["prompt"], 100)}
    return text("LLM response: " + answers["sampled"]["content"]["text"])


def elicitation(call):
    answers = yield {"asked": form(call.arguments["message"], username=STRING, email=STRING)}
    answer = answers["asked"]
    return text(f"User response: action={answer['action']}, content={json.dumps(answer.get('content'))}")


def eliciting(properties):
    def tool(call):
        request = {"method": "elicitation/create", "params": {"message": "Please fill in", "requestedSchema": {"type": "object", "properties": properties}}}
        answers = yield {"asked": request}
        return text(f"Elicitation completed: action={answers['asked']['action']}, content={json.dumps(answers['asked'].get('content'))}")

    return tool


def titled(word, count=3):
    return [{"const": f"value{n}", "title": f"{name} {word}"} for n, name in zip(range(1, count + 1), ["First", "Second", "Third"])]


DEFAULTS = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
OPTIONS = ["option1", "option2", "option3"]
ENUMS = {
    "untitledSingle": {"type": "string", "enum": OPTIONS},
    "titledSingle": {"type": "string", "oneOf": titled("Option")},
    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": OPTIONS}},
    "titledMulti": {"type": "array", "items": {"anyOf": titled("Choice")}},
}


def asking_name(call):
    answers = yield {"user_name": form("What is your name?", name=STRING)}
    return text(f"Hello, {answers['user_name']['content']['name']}!")


def asking_model(call):
    answers = yield {"capital_question": sample("What is the capital of France?", 100)}
    return text(answers["capital_question"]["content"]["text"])


def asking_roots(call):
    answers = yield {"client_roots": ROOTS}
    return text(", ".join(root["uri"] for root in answers["client_roots"]["roots"]))


def asking_with_state(call):
    yield {"confirm": form("Please confirm", ok=BOOLEAN)}
    return text("state-ok")


def asking_much(call):
    answers = yield {"user_name": form("What is your name?", name=STRING), "greeting": sample("Generate a greeting", 50), "client_roots": ROOTS}
    return text(f"{answers['greeting']['content']['text']} {answers['user_name']['content']['name']} {len(answers['client_roots']['roots'])}")


def asking_twice(call):
    first = yield {"step1": form("Step 1: What is your name?", name=STRING)}
    second = yield {"step2": form("Step 2: What is your favorite color?", color=STRING)}
    return text(f"{first['step1']['content']['name']} likes {second['step2']['content']['color']}")


def asking_what_can_be(call):
    wanted = {"elicitation": ("name", form("Your name?", name=STRING)), "sampling": ("thought", sample("Think", 10))}
    asked = dict(request for capability, request in wanted.items() if capability in call.capabilities)
    answers = yield asked
    return text(", ".join(answers))


def needing_sampling(call):
    if "sampling" not in call.capabilities:
        raise Refusal(-32021, "This needs sampling.", {"requiredCapabilities": {"sampling": {}}})
    return text("sampled")
    yield


def logging_twice(call):
    call.note("debug", "seen in detail")
    call.note("info", "seen")
    return text("logged")
    yield


def asking_in_a_stream(call):
    call.progress(1)
    answers = yield {"user_name": form("What is your name?", name=STRING)}
    return text(f"Hello, {answers['user_name']['content']['name']}!")


def changing(field):
    def tool(call):
        time.sleep(0.05)
        EXTRA[field] = not EXTRA[field]
        broadcast(f"notifications/{field}/list_changed", {})
        return text("changed")
        yield

    return tool


def touching(call):
    broadcast("notifications/resources/updated", {"uri": call.arguments["uri"]})
    return text("touched")
    yield


def waiting(call):
    for _ in range(200):
        if call.is_cancelled():
            CANCELLED.append(call.arguments.get("name"))
            return text("cancelled")
        time.sleep(0.05)
    return text("waited")
    yield


def showing_cancelled(call):
    return text(json.dumps(CANCELLED))
    yield


def header_echo(call):
    return text(json.dumps(call.headers))
    yield


def counting(call):
    """What a server remembers of its client's connection."""
    call.memory["count"] = call.memory.get("count", 0) + 1
    return text(str(call.memory["count"]))
    yield


EXTRA = {"tools": False, "prompts": False}
CANCELLED = []
SCHEMA_2020 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"$anchor": "addressDef", "type": "object", "properties": {"street": STRING, "city": STRING}}},
    "properties": {"name": STRING, "address": {"$ref": "#/$defs/address"}, "contactMethod": {"type": "string", "enum": ["phone", "email"]}, "phone": STRING, "email": STRING},
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def needs(**properties):
    return {"type": "object", "properties": properties, "required": sorted(properties)}


HEADERS = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}, "n": {"type": "integer", "x-mcp-header": "N"}}}
TOOLS = {
    "test_simple_text": simple,
    "test_image_content": image,
    "test_audio_content": audio,
    "test_embedded_resource": embedded,
    "test_multiple_content_types": mixed,
    "test_resource_link": link,
    "test_tool_with_logging": logging,
    "test_tool_with_progress": progressing,
    "test_error_handling": failing,
    "test_sampling": (sampling, needs(prompt=STRING)),
    "test_elicitation": (elicitation, needs(message=STRING)),
    "test_elicitation_sep1034_defaults": eliciting(DEFAULTS),
    "test_elicitation_sep1330_enums": eliciting(ENUMS),
    "test_input_required_result_elicitation": asking_name,
    "test_input_required_result_sampling": asking_model,
    "test_input_required_result_list_roots": asking_roots,
    "test_input_required_result_request_state": asking_with_state,
    "test_input_required_result_multiple_inputs": asking_much,
    "test_input_required_result_multi_round": asking_twice,
    "test_input_required_result_tampered_state": asking_with_state,
    "test_input_required_result_capabilities": asking_what_can_be,
    "test_missing_capability": needing_sampling,
    "test_logging_tool": logging_twice,
    "test_streaming_elicitation": asking_in_a_stream,
    "test_trigger_tool_change": changing("tools"),
    "test_trigger_prompt_change": changing("prompts"),
    "test_touch": (touching, needs(uri=STRING)),
    "test_wait": waiting,
    "test_cancelled": showing_cancelled,
    "test_count": counting,
    "test_custom_headers": (header_echo, HEADERS),
    "json_schema_2020_12_tool": (simple, SCHEMA_2020),
}
STATELESS = {"test_input_required_result_elicitation", "test_input_required_result_sampling", "test_input_required_result_list_roots", "test_input_required_result_prompt"}


def tools():
    listed = []
    for name, tool in TOOLS.items():
        schema = tool[1] if isinstance(tool, tuple) else {"type": "object", "properties": {}}
        listed.append({"name": name, "title": name.replace("_", " "), "description": f"The tool {name}", "inputSchema": schema})
    extra = [{"name": "test_appearing", "description": "Comes and goes", "inputSchema": {"type": "object"}}]
    return sorted(listed + (extra if EXTRA["tools"] else []), key=lambda tool: tool["name"])


# Prompts and resources


def said(*contents):
    return {"messages": [{"role": "user", "content": content} for content in contents]}


def prompt(call):
    name, arguments = call.name, call.arguments
    if name == "test_simple_prompt":
        return said({"type": "text", "text": "This is a simple prompt for testing."})
    if name == "test_prompt_with_arguments":
        return said({"type": "text", "text": f"Prompt with arguments: arg1='{arguments['arg1']}', arg2='{arguments['arg2']}'"})
    if name == "test_prompt_with_embedded_resource":
        resource = {"uri": arguments["resourceUri"], "mimeType": "text/plain", "text": "Embedded resource content for testing."}
        return said({"type": "resource", "resource": resource}, {"type": "text", "text": "Please process the embedded resource above."})
    if name == "test_prompt_with_image":
        return said({"type": "image", "data": PIXEL, "mimeType": "image/png"}, {"type": "text", "text": "Please analyze the image above."})
    if name == "test_input_required_result_prompt":
        answers = yield {"user_context": form("What context should the prompt use?", context=STRING)}
        return said({"type": "text", "text": "Context: " + answers["user_context"]["content"]["context"]})
    raise Refusal(-32602, f"Unknown prompt: {name}")


def argument(name):
    return {"name": name, "description": f"The argument {name}", "required": True}


def prompts():
    listed = [
        {"name": "test_simple_prompt", "description": "A simple prompt"},
        {"name": "test_prompt_with_arguments", "description": "With arguments", "arguments": [argument("arg1"), argument("arg2")]},
        {"name": "test_prompt_with_embedded_resource", "description": "With a resource", "arguments": [argument("resourceUri")]},
        {"name": "test_prompt_with_image", "description": "With an image"},
        {"name": "test_input_required_result_prompt", "description": "Asks first"},
    ]
    return listed + ([{"name": "test_appearing", "description": "Comes and goes"}] if EXTRA["prompts"] else [])


RESOURCES = [
    {"uri": "test://static-text", "name": "Static text", "description": "A text", "mimeType": "text/plain"},
    {"uri": "test://static-binary", "name": "Static binary", "description": "An image", "mimeType": "image/png"},
    {"uri": "test://watched-resource", "name": "Watched", "description": "It changes", "mimeType": "text/plain"},
]
TEMPLATES = [{"uriTemplate": "test://template/{id}/data", "name": "Template", "description": "By id", "mimeType": "application/json"}]


def resource(call):
    uri = call.name
    if uri in ("test://static-text", "test://watched-resource"):
        return {"contents": [{"uri": uri, "mimeType": "text/plain", "text": "This is the content of the static text resource."}]}
    if uri == "test://static-binary":
        return {"contents": [{"uri": uri, "mimeType": "image/png", "blob": PIXEL}]}
    if uri.startswith("test://template/") and uri.endswith("/data"):
        key = uri.removeprefix("test://template/").removesuffix("/data")
        content = json.dumps({"id": key, "templateTest": True, "data": f"Data for ID: {key}"})
        return {"contents": [{"uri": uri, "mimeType": "application/json", "text": content}]}
    raise Refusal(-32602 if ERA == "modern" else -32002, "Resource not found", {"uri": uri})
    yield


def completed(call):
    start = call.params["argument"]["value"]
    return {"completion": {"values": [v for v in ["paris", "park", "party"] if v.startswith(start)], "total": 3, "hasMore": False}}
    yield


CAPABILITIES = {"tools": {"listChanged": True}, "prompts": {"listChanged": True}, "resources": {"subscribe": True, "listChanged": True}, "completions": {}, "logging": {}}
LISTS = {
    "tools/list": lambda: {"tools": tools()},
    "prompts/list": lambda: {"prompts": prompts()},
    "resources/list": lambda: {"resources": RESOURCES},
    "resources/templates/list": lambda: {"resourceTemplates": TEMPLATES},
}


class Call:
    """One request, whichever way it came."""

    def __init__(self, method, params, capabilities, say, headers=None, memory=None):
        self.method, self.params, self.say = method, params, say
        self.capabilities, self.headers, self.memory = capabilities, headers or {}, {} if memory is None else memory
        self.arguments = params.get("arguments") or {}
        self.name = params.get("name") or params.get("uri")
        self.meta = params.get("_meta") or {}
        self.level, self.cancelled = None, threading.Event()

    def note(self, level, data):
        levels = ["debug", "info", "notice", "warning", "error"]
        if self.level and levels.index(level) >= levels.index(self.level):
            self.say({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": level, "logger": "everything", "data": data}})

    def progress(self, n):
        token = self.meta.get("progressToken")
        if token is not None:
            self.say({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": n, "total": 100}})

    def is_cancelled(self):
        return self.cancelled.is_set()

    def work(self):
        if self.method == "tools/call":
            tool = TOOLS.get(self.name)
            if tool is None:
                raise Refusal(-32602, f"Unknown tool: {self.name}")
            return (tool[0] if isinstance(tool, tuple) else tool)(self)
        return {"prompts/get": prompt, "resources/read": resource, "completion/complete": completed}[self.method](self)


# The newest version


def seal(body):
    text_ = json.dumps(body)
    return f"{text_}.{hmac.new(KEY, text_.encode(), hashlib.sha256).hexdigest()}"


def unseal(state):
    text_, _, tag = state.rpartition(".")
    if not hmac.compare_digest(tag, hmac.new(KEY, text_.encode(), hashlib.sha256).hexdigest()):
        raise Refusal(-32602, "requestState was changed")
    return json.loads(text_)


def well_formed(request, answer):
    return isinstance(answer, dict) and (request["method"] != "elicitation/create" or "action" in answer)


def modern(call):
    """Runs the work anew with every answer given so far; what it asks next is the result."""
    work = call.work()
    given = list(unseal(call.params["requestState"])) if "requestState" in call.params else []
    fresh = call.params.get("inputResponses") or {}
    if not isinstance(fresh, dict):
        raise Refusal(-32602, "inputResponses must be an object")
    try:
        asked = next(work)
        for answers in given:
            asked = work.send(answers)
        while fresh and all(name in fresh and well_formed(request, fresh[name]) for name, request in asked.items()):
            given.append({name: fresh[name] for name in asked})
            asked, fresh = work.send(given[-1]), {}
    except StopIteration as done:
        return {"resultType": "complete", **done.value}
    result = {"resultType": "input_required", "inputRequests": asked}
    return result if call.name in STATELESS and not given else {**result, "requestState": seal(given)}


def answer_modern(request, headers, say):
    method, params = request["method"], request.get("params") or {}
    meta = params.get("_meta") or {}
    version = meta.get(META + "protocolVersion")
    if version is None or META + "clientCapabilities" not in meta:
        raise Refusal(-32602, "_meta is not complete")
    if headers is not None and headers.get("mcp-protocol-version") != version:
        raise Refusal(-32020, "Header mismatch")
    if version != MODERN:
        raise Refusal(-32022, "Unsupported protocol version", {"supported": [MODERN], "requested": version})
    if headers is not None and headers.get("mcp-method") != method:
        raise Refusal(-32020, "Header mismatch: Mcp-Method")
    if method == "server/discover":
        info = {"_meta": {META + "serverInfo": INFO}}
        return {"resultType": "complete", "supportedVersions": [MODERN], "capabilities": CAPABILITIES, "ttlMs": 0, "cacheScope": "private", **info}
    if method in LISTS:
        return {"resultType": "complete", "ttlMs": 1000, "cacheScope": "public", **LISTS[method]()}
    if method not in ("tools/call", "prompts/get", "resources/read", "completion/complete"):
        raise Refusal(-32601, f"Method not found: {method}")
    call = Call(method, params, meta[META + "clientCapabilities"], say, {n: v for n, v in (headers or {}).items() if n.startswith("mcp-")})
    call.level = meta.get(META + "logLevel")
    result = modern(call)
    return result if method != "resources/read" else {"ttlMs": 0, "cacheScope": "private", **result}


# Older versions


class Session:
    """What is remembered of a client."""

    def __init__(self, say):
        self.say, self.capabilities, self.level, self.memory = say, {}, None, {}
        self.answers, self.ids, self.running, self.watched = {}, itertools.count(1), {}, set()

    def ask(self, request, say):
        number = f"s{next(self.ids)}"
        self.answers[number] = queue.Queue()
        say({"jsonrpc": "2.0", "id": number, **request})
        return self.answers[number]

    def take(self, message, say):
        """Answers a request with its result; anything else with nothing."""
        if "method" not in message:
            waiting = self.answers.pop(message.get("id"), None)
            if waiting:
                waiting.put(message)
            return None
        method, params = message["method"], message.get("params") or {}
        if method == "notifications/cancelled" and params.get("requestId") in self.running:
            self.running[params["requestId"]].cancelled.set()
        if "id" not in message:
            return None
        if method == "initialize":
            self.capabilities = params.get("capabilities") or {}
            return {"protocolVersion": "2025-11-25" if TRANSPORT != "sse" else "2024-11-05", "capabilities": CAPABILITIES, "serverInfo": INFO}
        if method == "ping":
            return {}
        if method == "logging/setLevel":
            self.level = params["level"]
            return {}
        if method in ("resources/subscribe", "resources/unsubscribe"):
            (self.watched.add if method == "resources/subscribe" else self.watched.discard)(params["uri"])
            return {}
        if method in LISTS:
            return LISTS[method]()
        if method not in ("tools/call", "prompts/get", "resources/read", "completion/complete"):
            raise Refusal(-32601, f"Method not found: {method}")
        call = Call(method, params, self.capabilities, say, memory=self.memory)
        call.level = self.level
        self.running[message["id"]] = call
        try:
            return self.run(call.work(), say)
        finally:
            self.running.pop(message["id"], None)

    def run(self, work, say):
        try:
            asked = next(work)
            while True:
                capability = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}
                if any(capability[request["method"]] not in self.capabilities for request in asked.values()):
                    return text("The client cannot be asked.", isError=True)
                waiting = {name: self.ask(request, say) for name, request in asked.items()}
                answers = {name: answered.get(timeout=30) for name, answered in waiting.items()}
                if any("error" in answer for answer in answers.values()):
                    return text("The client refused.", isError=True)
                asked = work.send({name: answer["result"] for name, answer in answers.items()})
        except StopIteration as done:
            return done.value


LISTENERS = []  # (say, wants(method, params), tag)


def broadcast(method, params):
    for say, wants, tag in list(LISTENERS):
        try:
            if wants(method, params):
                say({"jsonrpc": "2.0", "method": method, "params": {**params, **({"_meta": tag} if tag else {})}})
        except OSError:
            pass  # It left.


def reply(request, result):
    try:
        result = result()
        return None if result is None else {"jsonrpc": "2.0", "id": request["id"], "result": result}
    except Refusal as refusal:
        return {"jsonrpc": "2.0", "id": request["id"], "error": refusal.error}


def wanted_by(filter_):
    names = {"notifications/tools/list_changed": "toolsListChanged", "notifications/prompts/list_changed": "promptsListChanged"}
    return lambda method, params: filter_.get(names.get(method)) or params.get("uri") in filter_.get("resourceSubscriptions", [])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sessions = {}

    def log_message(self, *_):
        pass

    def begin_stream(self, **headers):
        self.send_response(200)
        for name, value in {"Content-Type": "text/event-stream", "Connection": "close", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True
        lock = threading.Lock()

        def say(message, event="message"):
            with lock:
                self.wfile.write(f"event: {event}\ndata: {message if isinstance(message, str) else json.dumps(message)}\n\n".encode())
                self.wfile.flush()

        return say

    def whole(self, status, message=None, **headers):
        body = b"" if message is None else json.dumps(message).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        {"modern": self.post_modern, "legacy": self.post_sse if TRANSPORT == "sse" else self.post_legacy}[ERA](request)

    def post_modern(self, request):
        headers = {name.lower(): value for name, value in self.headers.items()}
        if request.get("method") == "subscriptions/listen":
            filter_, tag = request["params"]["notifications"], {META + "subscriptionId": request["id"]}
            say = self.begin_stream()
            listener = (say, wanted_by(filter_), tag)
            say({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {"_meta": tag, "notifications": filter_}})
            return self.hold(listener)
        before = []
        answer = reply(request, lambda: answer_modern(request, headers, before.append))
        code = answer.get("error", {}).get("code")
        if before:
            say = self.begin_stream()
            for message in [*before, answer]:
                say(message)
        else:
            self.whole({-32601: 404, -32602: 400 if "_meta" in answer["error"]["message"] else 200, -32020: 400, -32021: 400, -32022: 400}.get(code, 200) if code else 200, answer)

    def hold(self, listener):
        LISTENERS.append(listener)
        try:
            while True:
                time.sleep(0.5)
                self.wfile.write(b":\n\n")
                self.wfile.flush()
        except OSError:
            LISTENERS.remove(listener)

    def post_legacy(self, message):
        if message.get("method") == "server/discover":
            return self.whole(400, {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "Bad Request: no session"}})
        key = self.headers.get("Mcp-Session-Id")
        if message.get("method") == "initialize":
            key = hashlib.sha256(str(time.time_ns()).encode()).hexdigest()
            self.sessions[key] = Session(None)
        session = self.sessions.get(key)
        if session is None:
            return self.whole(404, {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "Session not found"}})
        if "id" not in message or "method" not in message:
            session.take(message, None)
            return self.whole(202)
        if message["method"] in ("tools/call", "prompts/get"):
            say = self.begin_stream()
            answer = reply(message, lambda: session.take(message, say))
            return say(answer)
        self.whole(200, reply(message, lambda: session.take(message, None)), **({"Mcp_Session_Id": key} if message["method"] == "initialize" else {}))

    def do_GET(self):
        if ERA == "modern":
            return self.whole(405)
        if TRANSPORT == "sse":
            key = hashlib.sha256(str(time.time_ns()).encode()).hexdigest()
            say = self.begin_stream()
            self.sessions[key] = Session(say)
            say(f"/messages?session={key}", event="endpoint")
            return self.hold((say, lambda method, params: "uri" not in params or params["uri"] in self.sessions[key].watched, None))
        session = self.sessions.get(self.headers.get("Mcp-Session-Id"))
        if session is None:
            return self.whole(404)
        say = self.begin_stream()
        self.hold((say, lambda method, params: "uri" not in params or params["uri"] in session.watched, None))

    def post_sse(self, message):
        if not self.path.startswith("/messages"):
            return self.whole(405)
        session = self.sessions[self.path.split("session=")[1]]
        self.whole(202)
        threading.Thread(target=lambda: answered(session, message, session.say)).start()

    def do_DELETE(self):
        if self.headers.get("Mcp-Session-Id") == "all":  # For tests: the server forgets every session.
            self.sessions.clear()
        self.sessions.pop(self.headers.get("Mcp-Session-Id"), None)
        self.whole(200)


def answered(session, message, say):
    answer = reply(message, lambda: session.take(message, say)) if "id" in message and "method" in message else session.take(message, say)
    if answer is not None:
        say(answer)


def over_streams():
    lock = threading.Lock()

    def say(message):
        with lock:
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()

    session = Session(say)
    if ERA == "legacy":
        LISTENERS.append((say, lambda method, params: "uri" not in params or params["uri"] in session.watched, None))
    for line in sys.stdin:
        message = json.loads(line)
        if ERA == "legacy":
            threading.Thread(target=answered, args=(session, message, say), daemon=True).start()
        elif message.get("method") == "subscriptions/listen":
            filter_, tag = message["params"]["notifications"], {META + "subscriptionId": message["id"]}
            LISTENERS.append((say, wanted_by(filter_), tag))
            say({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {"_meta": tag, "notifications": filter_}})
        elif "id" in message:
            threading.Thread(target=lambda m=message: say(reply(m, lambda: answer_modern(m, None, say))), daemon=True).start()


if TRANSPORT == "stdio":
    over_streams()
else:
    ThreadingHTTPServer.daemon_threads = True
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Handler)
    server.serve_forever()
