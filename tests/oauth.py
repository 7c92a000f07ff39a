"""A person with a browser and a client with a secret, as plain HTTP: for the tests of the authorization server."""

import base64
import hashlib
import hmac
import html
import re
import secrets
import struct
import time
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2

from harness import done, unique

REDIRECT = "https://client.example/back"
FORM = "application/x-www-form-urlencoded"


class Browser:
    """Follows redirects on the server, keeps cookies, sends forms as they stand."""

    def __init__(self, keiko):
        self.base = keiko.url
        self.http = httpx2.Client(base_url=keiko.url, trust_env=False, timeout=20, follow_redirects=False)

    def visit(self, url):
        """The page at an address, or where the browser leaves the server: `(answer, None)` or `(None, address)`."""
        return self._settle(self.http.get(url))

    def send(self, answer, **fields):
        """Sends the form of a page with some fields filled in."""
        return self._settle(self.http.post(str(answer.url), data={**hidden(answer.text), **fields}))

    def _settle(self, answer):
        while answer.status_code in (302, 303):
            location = answer.headers["location"]
            url = str(answer.url.join(location))
            # The console is a client too: at home, the pages of the authorization server are left.
            if not url.startswith(self.base) or urlsplit(url).path == "/":
                return None, url
            answer = self.http.get(url)
        return answer, None

    def sign_in(self, url, username="admin", password="correct horse battery", tenant="default", decision="allow", code=None):
        """Visits an address, signs in if asked, answers the consent if asked. Answers `(page, address)` like `visit`."""
        page, left = self.visit(url)
        for _ in range(4):
            if left or not page:
                break
            step = hidden(page.text).get("step")
            if step == "login":
                page, left = self.send(page, tenant=tenant, username=username, password=password)
            elif step == "mfa":
                page, left = self.send(page, code=code)
            elif step == "consent":
                page, left = self.send(page, decision=decision)
            else:
                break
        return page, left


def hidden(text):
    """The hidden fields of a page's form."""
    found = {}
    for tag in re.findall(r"<input[^>]*>", text):
        attributes = {name: html.unescape(value) for name, value in re.findall(r'(\w+)="([^"]*)"', tag)}
        if attributes.get("type") == "hidden":
            found[attributes["name"]] = attributes["value"]
    return found


def s256(verifier):
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


class App:
    """A client: made by REST, with the flows."""

    def __init__(self, keiko, admin, method="client_secret_basic", **fields):
        self.keiko, self.method = keiko, method
        body = {"name": unique("app"), "redirect_uris": [REDIRECT], "token_endpoint_auth_method": method, **fields}
        made = done(admin.post("/clients", body), 201)
        self.id, self.attributes = made["id"], made["attributes"]
        self.client_id, self.secret = self.attributes["client_id"], self.attributes.get("client_secret")
        self.http = httpx2.Client(base_url=keiko.url, trust_env=False, timeout=20)

    def url(self, verifier, **parameters):
        asked = {
            "response_type": "code", "client_id": self.client_id, "redirect_uri": REDIRECT, "scope": "openid profile tasks.read",
            "state": "s1", "code_challenge": s256(verifier), "code_challenge_method": "S256", **parameters,
        }
        return "/oauth/authorize?" + urlencode({name: value for name, value in asked.items() if value is not None})

    def post(self, endpoint, **fields):
        auth = (self.client_id, self.secret) if self.secret else None
        named = {} if self.secret else {"client_id": self.client_id}
        return self.http.post(f"/oauth/{endpoint}", data={**named, **fields}, auth=auth)

    def code(self, browser=None, verifier=None, **parameters):
        """A code for the admin, with its verifier."""
        verifier = verifier or secrets.token_urlsafe(48)
        page, left = (browser or Browser(self.keiko)).sign_in(self.url(verifier, **parameters))
        assert left, page.text
        answer = {name: values[0] for name, values in parse_qs(urlsplit(left).query).items()}
        assert answer["iss"] == self.keiko.url and answer.get("state") == "s1", answer
        return answer["code"], verifier

    def redeem(self, code, verifier, **fields):
        return self.post("token", grant_type="authorization_code", code=code, code_verifier=verifier, redirect_uri=REDIRECT, **fields)

    def tokens(self, **parameters):
        answer = self.redeem(*self.code(**parameters))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refresh(self, token, **fields):
        return self.post("token", grant_type="refresh_token", refresh_token=token, **fields)


def error(answer, code, status=400):
    """A refusal in the words of OAuth."""
    assert answer.status_code == status, answer.text
    assert answer.json()["error"] == code, answer.text
    assert answer.headers["cache-control"] == "no-store"


def service_app(keiko, admin, roles, **fields):
    """A client that is a service by itself."""
    name = unique("service")
    done(admin.post("/users", {"username": name, "kind": "service", "roles": roles}), 201)
    return App(keiko, admin, subject=name, grant_types=["client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"], redirect_uris=[], **fields)


def totp(secret, at=None):
    """The code of an app (RFC 6238)."""
    key = base64.b32decode(secret + "=" * (-len(secret) % 8))
    tag = hmac.new(key, struct.pack(">Q", int((at or time.time()) // 30)), hashlib.sha1).digest()
    offset = tag[19] & 15
    return f"{(struct.unpack('>I', tag[offset:offset + 4])[0] & 0x7FFFFFFF) % 1_000_000:06}"
