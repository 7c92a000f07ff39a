"""An MCP server that lets nobody in without a token of its own authorization server, and both at one address, in this process.

It speaks 2025-11-25 or 2026-07-28, gives short-lived tokens, changes its refresh tokens at each use and ends everything when an old
one comes back (as RFC 9700 wants), and remembers every byte that reached it.
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

MODERN = "2026-07-28"


class Guarded:
    """Use it as a context. `account` is who allows what is asked for next; what may be changed is an attribute."""

    def __init__(self, era="2025-11-25", lifetime=3600, port=0):
        self.era, self.lifetime, self.account = era, lifetime, "ada"
        self.seen, self.asked, self.grants = [], [], []
        self.tokens, self.refreshes, self.codes, self.clients = {}, {}, {}, {}
        self.reused, self.renewals, self.is_down, self.delay, self.waiting = 0, 0, False, 0, False
        self.issuer = self.iss = self.resource = self.authorization_endpoint = None
        self.scopes, self.registers, self.documents, self.refresh = ["read"], True, False, True
        self.names_itself, self.gives_client = True, None
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.answer(self, b"")

            def do_POST(self):
                outer.answer(self, self.rfile.read(int(self.headers.get("Content-Length") or 0)))

            do_DELETE = do_GET

        ThreadingHTTPServer.daemon_threads = True
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.base = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.base}/mcp"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def bytes_seen(self):
        return b"".join(self.seen)

    def answer(self, handler, body):
        self.seen.append(f"{handler.command} {handler.path}\n{handler.headers}\n".encode() + body)
        path, query = urlsplit(handler.path).path, parse_qs(urlsplit(handler.path).query)
        form = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        routes = {
            "/mcp": lambda: self.mcp(handler, body), "/.well-known/oauth-protected-resource/mcp": self.described,
            "/.well-known/oauth-authorization-server": self.metadata, "/register": lambda: self.register(json.loads(body)),
            "/authorize": lambda: self.authorize({name: values[0] for name, values in query.items()}),
            "/token": lambda: self.token(form, handler.headers.get("Authorization")), "/revoke": lambda: self.revoke(form),
        }
        status, headers, answer = routes.get(path, lambda: (404, {}, {}))()
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(text))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(text)

    # The authorization server

    def described(self):
        return 200, {}, {"resource": self.resource or self.url, "authorization_servers": [self.base], "scopes_supported": self.scopes}

    def metadata(self):
        found = {
            "issuer": self.issuer or self.base, "authorization_endpoint": self.authorization_endpoint or f"{self.base}/authorize",
            "token_endpoint": f"{self.base}/token", "revocation_endpoint": f"{self.base}/revoke", "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt", "none"],
            "authorization_response_iss_parameter_supported": self.names_itself, "client_id_metadata_document_supported": self.documents,
        }
        return 200, {}, {**found, **({"registration_endpoint": f"{self.base}/register"} if self.registers else {})}

    def register(self, wanted):
        made = {"client_id": self.gives_client or secrets.token_urlsafe(8), "client_secret": secrets.token_urlsafe(16)}
        self.clients[made["client_id"]] = {**wanted, **made}
        return 201, {}, {**wanted, **made}

    def authorize(self, asked):
        self.asked.append(asked)
        known = self.clients.get(asked["client_id"], {}).get("redirect_uris")
        if known and asked["redirect_uri"] not in known:
            return 400, {}, {"error": "invalid_request", "error_description": "not a redirect URI of this client"}
        code = secrets.token_urlsafe(16)
        self.codes[code] = {**asked, "account": self.account}
        answer = {"code": code, "state": asked.get("state", "")} | ({"iss": self.iss or self.base} if self.names_itself else {})
        return 302, {"Location": f"{asked['redirect_uri']}?{urlencode(answer)}"}, {}

    def token(self, form, authorization):
        self.waiting = self.delay > 0
        time.sleep(self.delay)
        self.waiting = False
        if self.is_down:
            return 503, {}, {}
        client = base64.b64decode(authorization[6:]).decode().split(":") if authorization else [form.get("client_id"), form.get("client_secret")]
        self.grants.append({**form, "client": client[0]})
        known = self.clients.get(client[0])
        if known and known.get("client_secret") and known["client_secret"] != client[1] and "client_assertion" not in form:
            return 401, {}, {"error": "invalid_client"}
        with self.lock:
            kind = form.get("grant_type")
            if kind == "authorization_code":
                asked = self.codes.pop(form["code"], None)
                challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
                if not asked or asked["code_challenge"] != challenge or asked["client_id"] != client[0] or asked["resource"] != form.get("resource"):
                    return 400, {}, {"error": "invalid_grant"}
                return self.give(asked["account"], asked.get("scope", ""), secrets.token_hex(4))
            if kind == "refresh_token":
                family = self.refreshes.get(form["refresh_token"])
                if not family or family["used"]:
                    # Somebody has an old one: everything that came of it ends.
                    self.reused += bool(family)
                    for token in [t for t, known in self.tokens.items() if family and known["family"] == family["family"]]:
                        del self.tokens[token]
                    self.refreshes = {t: f for t, f in self.refreshes.items() if not family or f["family"] != family["family"]}
                    return 400, {}, {"error": "invalid_grant", "error_description": "this refresh token was used before"}
                family["used"], self.renewals = True, self.renewals + 1
                return self.give(family["account"], family["scope"], family["family"])
            if kind == "client_credentials":
                return self.give(f"client {client[0]}", form.get("scope", ""), secrets.token_hex(4), refresh=False)
        return 400, {}, {"error": "unsupported_grant_type"}

    def give(self, account, scope, family, refresh=True):
        access, again = f"at-{secrets.token_urlsafe(24)}", f"rt-{secrets.token_urlsafe(24)}"
        self.tokens[access] = {"account": account, "scopes": scope.split(), "until": time.monotonic() + self.lifetime, "family": family}
        given = {"access_token": access, "token_type": "Bearer", "expires_in": self.lifetime, "scope": scope}
        if refresh and self.refresh:
            self.refreshes[again] = {"account": account, "scope": scope, "family": family, "used": False}
            given["refresh_token"] = again
        return 200, {}, given

    def revoke(self, form):
        with self.lock:
            family = (self.refreshes.get(form["token"]) or self.tokens.get(form["token"]) or {}).get("family")
            self.tokens = {t: known for t, known in self.tokens.items() if known["family"] != family}
            self.refreshes = {t: known for t, known in self.refreshes.items() if known["family"] != family}
        return 200, {}, {}

    def forget_tokens(self):
        """Nobody who was let in before is let in again; refresh tokens stay good."""
        self.tokens = {}

    # The server

    def mcp(self, handler, body):
        if handler.command != "POST":
            return 405, {}, {}
        shown = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        known = self.tokens.get(shown)
        where = f'Bearer resource_metadata="{self.base}/.well-known/oauth-protected-resource/mcp"'
        if not known or known["until"] < time.monotonic():
            error = ', error="invalid_token"' if shown else ""
            return 401, {"WWW-Authenticate": f'{where}, scope="{" ".join(self.scopes)}"{error}'}, {"error": "invalid_token"}
        asked = json.loads(body)
        name = asked.get("params", {}).get("name")
        if name == "write" and "write" not in known["scopes"]:
            return 403, {"WWW-Authenticate": f'{where}, error="insufficient_scope", scope="write"'}, {"error": "insufficient_scope"}
        if "id" not in asked:
            return 202, {}, b""
        result = self.result(asked["method"], name, known["account"], shown)
        return 200, {}, {"jsonrpc": "2.0", "id": asked["id"], **result}

    def result(self, method, name, account, shown):
        info = {"name": "guarded", "version": "1"}
        tool = lambda tool_name: {"name": tool_name, "description": f"Says {tool_name}", "inputSchema": {"type": "object"}}
        modern = {"resultType": "complete"} if self.era == MODERN else {}
        listed = {"ttlMs": 0, "cacheScope": "private"} if self.era == MODERN else {}
        if method == "initialize" and self.era != MODERN:
            return {"result": {"protocolVersion": self.era, "capabilities": {"tools": {}}, "serverInfo": info}}
        if method == "server/discover" and self.era == MODERN:
            meta = {"io.modelcontextprotocol/serverInfo": info}
            return {"result": {**modern, **listed, "supportedVersions": [MODERN], "capabilities": {"tools": {}}, "_meta": meta}}
        if method == "tools/list":
            return {"result": {**modern, **listed, "tools": [tool("whoami"), tool("write"), tool("leak")]}}
        if method == "tools/call" and name == "leak":
            return {"error": {"code": -32000, "message": f"no such thing: {shown}", "data": {"header": f"Bearer {shown}"}}}
        if method == "tools/call":
            return {"result": {**modern, "content": [{"type": "text", "text": account}]}}
        if method == "ping":
            return {"result": {}}
        return {"error": {"code": -32601, "message": "unknown"}}
