"""MCP clients by hand, one for each era, with the same face: `ask(method, params)` answers the message, and what came before it."""

import json
import queue
import threading

import httpx2

MODERN = "2026-07-28"
META = "io.modelcontextprotocol/"
ABLE = {"elicitation": {}, "sampling": {}, "roots": {"listChanged": True}}
STREAM = {"Accept": "application/json, text/event-stream"}


def person(method, params):
    """Answers whatever a server asks."""
    if method == "elicitation/create":
        values = {"string": "Ada", "boolean": True, "integer": 7, "number": 7.5}
        properties = params["requestedSchema"]["properties"]
        return {"action": "accept", "content": {name: values.get(schema.get("type"), "x") for name, schema in properties.items()}}
    if method == "sampling/createMessage":
        return {"role": "assistant", "content": {"type": "text", "text": "Paris"}, "model": "m", "stopReason": "endTurn"}
    assert method == "roots/list", method
    return {"roots": [{"uri": "file:///home/ada", "name": "home"}]}


def events(response):
    """The messages of a stream, with the names of their events."""
    kind, data = "message", []
    for line in response.iter_lines():
        if line.startswith("event:"):
            kind = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].strip())
        elif not line and data:
            yield kind, "\n".join(data)
            kind, data = "message", []


class Client:
    """What all have in common."""

    def __init__(self, url, headers, capabilities=None, answers=person, level=None):
        self.url, self.answers, self.level = url, answers, level
        self.capabilities = ABLE if capabilities is None else capabilities
        self.http = httpx2.Client(headers=headers, timeout=30, trust_env=False)
        self.number = 0

    def call(self, name, arguments=None, **meta):
        """The text that a tool answers, and what came before."""
        answer, before = self.ask("tools/call", {"name": name, "arguments": arguments or {}, **({"_meta": meta} if meta else {})})
        assert "result" in answer, answer
        return answer["result"]["content"][0].get("text"), before

    def names(self, kind="tools"):
        answer, _ = self.ask(f"{kind}/list", {})
        return [entry["name"] for entry in answer["result"][kind]]

    def next(self):
        self.number += 1
        return self.number

    def close(self):
        self.http.close()

    def __enter__(self):
        return self.begin()

    def __exit__(self, *_):
        self.close()

    def begin(self):
        return self


class Modern(Client):
    """Version 2026-07-28."""

    def headers(self, method, params):
        name = params.get("name") or params.get("uri") or params.get("taskId")
        named = {"Mcp-Name": name} if name and method in ("tools/call", "prompts/get", "resources/read", "tasks/get", "tasks/update", "tasks/cancel") else {}
        return {**STREAM, "MCP-Protocol-Version": MODERN, "Mcp-Method": method, **named}

    def body(self, method, params):
        own = {META + "protocolVersion": MODERN, META + "clientCapabilities": self.capabilities}
        own |= {META + "logLevel": self.level} if self.level else {}
        return {"jsonrpc": "2.0", "id": self.next(), "method": method, "params": {**params, "_meta": {**own, **params.get("_meta", {})}}}

    def once(self, method, params):
        before = []
        with self.http.stream("POST", self.url, json=self.body(method, params), headers=self.headers(method, params)) as response:
            if "event-stream" not in response.headers["content-type"]:
                return json.loads(response.read()), before
            for _, data in events(response):
                message = json.loads(data)
                if "id" in message:
                    return message, before
                before.append(message)
        raise AssertionError("the stream ended without an answer")

    def ask(self, method, params):
        everything, more = [], {}
        while True:
            answer, before = self.once(method, {**params, **more})
            everything += before
            result = answer.get("result", {})
            if result.get("resultType") != "input_required":
                return answer, everything
            asked = result.get("inputRequests", {})
            more = {"inputResponses": {key: self.answers(q["method"], q.get("params")) for key, q in asked.items()}}
            more |= {"requestState": result["requestState"]} if "requestState" in result else {}

    def follow(self, told, **filter_):
        """Puts every notification into the queue until it is closed. Answers what was agreed to."""

        def listen():
            body, headers = self.body("subscriptions/listen", {"notifications": filter_}), self.headers("subscriptions/listen", {})
            try:
                with httpx2.stream("POST", self.url, json=body, headers={**self.http.headers, **headers}, timeout=60, trust_env=False) as response:
                    for _, data in events(response):
                        told.put(json.loads(data))
            except httpx2.HTTPError:
                pass

        threading.Thread(target=listen, daemon=True).start()
        first = told.get(timeout=10)
        assert first["method"] == "notifications/subscriptions/acknowledged"
        return first["params"]["notifications"]


class Legacy(Client):
    """Versions 2025-03-26 to 2025-11-25."""

    version = "2025-11-25"

    def begin(self):
        params = {"protocolVersion": self.version, "capabilities": self.capabilities, "clientInfo": {"name": "t", "version": "1"}}
        response = self.http.post(self.url, json={"jsonrpc": "2.0", "id": self.next(), "method": "initialize", "params": params}, headers=STREAM)
        assert response.status_code == 200, response.text
        self.introduced = response.json()["result"]
        self.session = {"Mcp-Session-Id": response.headers["mcp-session-id"], "MCP-Protocol-Version": self.introduced["protocolVersion"]}
        assert self.post({"jsonrpc": "2.0", "method": "notifications/initialized"}).status_code == 202
        if self.level:
            assert self.ask("logging/setLevel", {"level": self.level})[0]["result"] == {}
        return self

    def post(self, message):
        return self.http.post(self.url, json=message, headers={**STREAM, **self.session})

    def ask(self, method, params):
        before = []
        body = {"jsonrpc": "2.0", "id": self.next(), "method": method, "params": params}
        with self.http.stream("POST", self.url, json=body, headers={**STREAM, **self.session}) as response:
            if "event-stream" not in response.headers.get("content-type", ""):
                text = response.read()
                return json.loads(text) if text else response.status_code, before
            for _, data in events(response):
                message = json.loads(data)
                if "method" not in message:
                    return message, before
                if "id" in message:
                    answer = {"jsonrpc": "2.0", "id": message["id"], "result": self.answers(message["method"], message.get("params"))}
                    assert self.post(answer).status_code == 202
                else:
                    before.append(message)
        raise AssertionError("the stream ended without an answer")

    def follow(self, told, resourceSubscriptions=(), **_):
        opened = threading.Event()

        def listen():
            try:
                with httpx2.stream("GET", self.url, headers={**self.http.headers, "Accept": "text/event-stream", **self.session}, timeout=60, trust_env=False) as response:
                    assert response.status_code == 200
                    opened.set()
                    for _, data in events(response):
                        told.put(json.loads(data))
            except httpx2.HTTPError:
                pass

        threading.Thread(target=listen, daemon=True).start()
        assert opened.wait(10)
        for uri in resourceSubscriptions:
            assert self.ask("resources/subscribe", {"uri": uri})[0]["result"] == {}


class Oldest(Client):
    """Version 2024-11-05: everything comes on one stream."""

    def begin(self):
        self.told, self.followed, self.came, opened = queue.Queue(), queue.Queue(), {}, queue.Queue()

        def listen():
            try:
                with httpx2.stream("GET", self.url, headers={**self.http.headers, "Accept": "text/event-stream"}, timeout=60, trust_env=False) as response:
                    for kind, data in events(response):
                        if kind == "endpoint":
                            opened.put(data)
                        else:
                            self.take(json.loads(data))
            except httpx2.HTTPError:
                pass

        threading.Thread(target=listen, daemon=True).start()
        base = self.url.split("/", 3)
        self.endpoint = "/".join(base[:3]) + opened.get(timeout=10)
        params = {"protocolVersion": "2024-11-05", "capabilities": self.capabilities, "clientInfo": {"name": "t", "version": "1"}}
        self.introduced = self.ask("initialize", params)[0]["result"]
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        if self.level:
            assert self.ask("logging/setLevel", {"level": self.level})[0]["result"] == {}
        return self

    def take(self, message):
        if "method" in message and "id" in message:
            answer = self.answers(message["method"], message.get("params"))
            self.send({"jsonrpc": "2.0", "id": message["id"], "result": answer})
        elif "method" in message:
            is_aside = message["method"] in ("notifications/progress", "notifications/message")
            (self.told if is_aside else self.followed).put(message)
        else:
            self.came[message["id"]].put(message)

    def send(self, message):
        response = httpx2.post(self.endpoint, json=message, headers=self.http.headers, timeout=30, trust_env=False)
        assert response.status_code == 202, response.text

    def ask(self, method, params):
        number = self.next()
        self.came[number] = queue.Queue()
        self.send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        answer = self.came[number].get(timeout=30)
        before = []
        while not self.told.empty():
            before.append(self.told.get())
        return answer, before

    def follow(self, told, resourceSubscriptions=(), **_):
        self.followed = told
        for uri in resourceSubscriptions:
            assert self.ask("resources/subscribe", {"uri": uri})[0]["result"] == {}
