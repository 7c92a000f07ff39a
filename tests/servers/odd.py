"""An MCP server over standard streams that misbehaves on request. Knows the protocol by hand, so that it can break it.

Its list of tools is read from the file in its first argument at each `tools/list`; how it starts is its second argument:
`well`, `silent` (answers nothing), `garbage` (prints no JSON-RPC), `flood` (prints notifications without end), `dies`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

TOOLS, START = Path(sys.argv[1]), sys.argv[2]


def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def answer(asked, result):
    say({"jsonrpc": "2.0", "id": asked["id"], "result": result})


def text(value, **more):
    return {"content": [{"type": "text", "text": value}], **more}


def call(asked):
    name, arguments = asked["params"]["name"], asked["params"].get("arguments", {})
    if name == "echo":
        answer(asked, text(arguments["text"], structuredContent={"text": arguments["text"]}, extra="kept out"))
    elif name == "fail":
        answer(asked, text("it did not work", isError=True))
    elif name == "refuse":
        say({"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32602, "message": "not these"}})
    elif name == "wait":
        time.sleep(arguments["s"])
        answer(asked, text("waited"))
    elif name == "big":
        answer(asked, text("x" * arguments["bytes"]))
    elif name == "die":
        print("last words with", os.environ.get("TOKEN", "no token"), file=sys.stderr, flush=True)
        os._exit(3)
    elif name == "environment":
        answer(asked, text(json.dumps(dict(os.environ))))
    elif name == "child":
        child = subprocess.Popen(["sleep", "600"])
        answer(asked, text(json.dumps([os.getpid(), child.pid])))
    elif name == "eat":
        try:
            answer(asked, text(str(len(bytearray(arguments["bytes"])))))
        except MemoryError:
            answer(asked, text("no memory", isError=True))
    elif name == "open":
        files = []
        try:
            for _ in range(arguments["files"]):
                files.append(open(os.devnull))
        except OSError as error:
            answer(asked, text(f"{len(files)} files, then {error.strerror}", isError=True))
        else:
            answer(asked, text("all open"))
        for file in files:
            file.close()
    elif name == "spin":
        while True:
            pass
    elif name == "forge":
        answer(asked, {"resultType": "input_required", "inputRequests": {"x": {"method": "elicitation/create", "params": {}}}, "content": []})
    elif name == "nonsense":
        answer(asked, {"content": "no list"})
    elif name == "relist":
        TOOLS.write_text(arguments["tools"])
        say({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        answer(asked, text("done"))


def main():
    if START == "dies":
        sys.exit("cannot start without " + os.environ.get("TOKEN", "a token"))
    while START == "garbage":
        print("this is no JSON-RPC", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if START == "silent":
            continue
        if asked.get("method") == "initialize":
            info = {"name": "odd", "version": "1"}
            answer(asked, {"protocolVersion": "2025-06-18", "capabilities": {"tools": {"listChanged": True}}, "serverInfo": info})
        elif asked.get("method") == "tools/list":
            answer(asked, {"tools": json.loads(TOOLS.read_text())})
            while START == "flood":
                say({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "more"}})
        elif asked.get("method") == "ping":
            answer(asked, {})
        elif asked.get("method") == "tools/call":
            call(asked)
        elif "id" in asked:
            say({"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32601, "message": "Method not found"}})


main()
