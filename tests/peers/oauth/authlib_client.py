"""`authlib` as a client of Keiko, and a person who plays Keiko's pages for it: `python tests/peers/oauth/authlib_client.py`, with KEIKO_URL
and KEIKO_PASSWORD.

Owns one list of scenarios. Never looks into Keiko's data, and knows of its pages only that they are forms.
"""

import os
import sys
import uuid
from html.parser import HTMLParser
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

BASE = os.environ.get("KEIKO_URL", "").rstrip("/")
PASSWORD = os.environ.get("KEIKO_PASSWORD", "")
REDIRECT = "http://127.0.0.1:9/callback"
SCOPE = "openid profile email offline_access tasks.read tasks.create"
STEPS_MAX = 15


def unique(prefix):
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


class Forms(HTMLParser):
    """The POST forms of a page: `found` has one list of (name, value, type) each."""

    def __init__(self, html):
        super().__init__()
        self.found, self._open = [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "form" and attrs.get("method", "get").lower() == "post":
            self._open = []
            self.found.append((attrs.get("action") or "", self._open))
        elif self._open is not None and tag in ("input", "button") and attrs.get("name"):
            kind = attrs.get("type") or ("submit" if tag == "button" else "text")
            self._open.append((attrs["name"], attrs.get("value") or "", kind.lower()))

    def handle_endtag(self, tag):
        self._open = None if tag == "form" else self._open


class Person:
    """Someone at a browser, with cookies."""

    def __init__(self, **answers):
        self.answers = {"tenant": "default", "username": "admin", "login": "admin", "password": PASSWORD, "decision": "allow", **answers}
        self._http = httpx2.Client(trust_env=False, timeout=20)

    def visit(self, url, until):
        """Goes from page to page until an address that starts with `until`; answers that address."""
        request = ("GET", url, None)
        for _ in range(STEPS_MAX):
            method, url, form = request
            answer = self._http.request(method, url, data=form, headers={"Accept": "text/html"})
            if answer.is_redirect:
                url = urljoin(url, answer.headers["location"])
                if url.startswith(until):
                    return url
                request = ("GET", url, None)
                continue
            forms = Forms(answer.text).found
            assert answer.status_code == 200 and forms, f"{method} {url} answered {answer.status_code}: {answer.text[:500]}"
            action, fields = forms[0]
            request = ("POST", urljoin(url, action), dict(self._sent(fields)))
        raise AssertionError(f"no end after {STEPS_MAX} steps, at {url}")

    def _sent(self, fields):
        for name, value, kind in fields:
            if kind == "submit":
                if self.answers.get(name) == value:
                    yield name, value
            else:
                yield name, value if kind == "hidden" else self.answers.get(name, value)


class Keiko:
    """The server under test: its REST as its admin, and what it publishes."""

    def __init__(self):
        self._http = httpx2.Client(base_url=BASE, trust_env=False, timeout=20)
        token = self.post("/auth/login", {"username": "admin", "password": PASSWORD})["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"
        self.service = unique("service")
        self.post("/users", {"username": self.service, "kind": "service", "roles": ["developer"]})
        self.metadata = self._http.get("/.well-known/openid-configuration").json()
        self.keys = KeySet.import_key_set(self._http.get(self.metadata["jwks_uri"]).json())

    def post(self, path, body):
        answer = self._http.post(f"/api/v1{path}", json=body)
        assert answer.is_success, f"POST {path} answered {answer.status_code}: {answer.text[:500]}"
        return answer.json()["data"]["attributes"]

    def client(self, method="client_secret_basic", secret=None, **fields):
        """An authlib session of a client of its own."""
        body = {
            "name": unique("authlib"), "redirect_uris": [REDIRECT], "token_endpoint_auth_method": method, "scopes": SCOPE.split(),
            "grant_types": ["authorization_code", "refresh_token"], **fields,
        }
        if method != "none":
            body |= {"grant_types": [*body["grant_types"], "client_credentials"], "subject": self.service}
        made = self.post("/clients", body)
        session = OAuth2Session(
            made["client_id"], secret or made.get("client_secret"), scope=SCOPE, redirect_uri=REDIRECT, code_challenge_method="S256",
            token_endpoint_auth_method=method, revocation_endpoint_auth_method=method, token_endpoint=self.metadata["token_endpoint"],
        )
        session.trust_env = False
        return session

    def keyed(self):
        """A client that signs with a key made here; authlib names the token endpoint as the audience, and no client_id in the form."""
        key = ECKey.generate_key("P-256", {"kid": unique("key"), "use": "sig", "alg": "ES256"})
        session = self.client("private_key_jwt", secret=key, jwks={"keys": [key.as_dict(private=False)]})
        session.register_client_auth_method(PrivateKeyJWT(self.metadata["token_endpoint"], alg="ES256"))
        return session

    def login(self, session, person=None):
        """Code and PKCE by the pages; answers the tokens and the checked claims of the ID token."""
        verifier, nonce = unique("v") * 5, unique("nonce")
        url, state = session.create_authorization_url(self.metadata["authorization_endpoint"], code_verifier=verifier, nonce=nonce, max_age=600)
        back = (person or Person()).visit(url, until=REDIRECT)
        answer = {name: value for name, [value] in parse_qs(urlsplit(back).query).items()}
        assert answer["iss"] == self.metadata["issuer"] and answer["state"] == state
        if "error" in answer:  # authlib leaves this to its callers
            raise OAuthError(answer["error"], answer.get("error_description"))
        token = session.fetch_token(authorization_response=back, state=state, code_verifier=verifier)
        return token, self.id_token(session, token, nonce)

    def id_token(self, session, token, nonce):
        read = jwt.decode(token["id_token"], self.keys, algorithms=self.metadata["id_token_signing_alg_values_supported"])
        options = {"iss": {"essential": True, "value": self.metadata["issuer"]}, "aud": {"essential": True, "value": session.client_id}}
        params = {"nonce": nonce, "client_id": session.client_id, "access_token": token["access_token"], "max_age": 600}
        claims = CodeIDToken(read.claims, read.header, options, params)
        claims.validate(leeway=5)
        assert claims["at_hash"] and claims["sub"]
        return claims


def refused(code, work):
    try:
        work()
    except OAuthError as error:
        assert error.error == code, f"refused with {error.error}: {error.description}, not {code}"
        return
    raise AssertionError(f"was not refused with {code}")


def should_log_a_person_in_by_code(keiko):
    session = keiko.client()
    token, claims = keiko.login(session)
    assert token["token_type"].lower() == "bearer" and 0 < token["expires_in"] <= 900
    userinfo = session.get(keiko.metadata["userinfo_endpoint"])
    assert userinfo.status_code == 200 and userinfo.json()["sub"] == claims["sub"], userinfo.text


def should_log_a_person_in_for_a_public_client(keiko):
    assert keiko.login(keiko.client("none"))[1]["sub"]


def should_log_a_person_in_for_a_client_with_a_key(keiko):
    assert keiko.login(keiko.keyed())[1]["sub"]


def should_refresh(keiko):
    session = keiko.client("client_secret_post")
    first, _ = keiko.login(session)
    first = dict(first)
    second = dict(session.refresh_token(keiko.metadata["token_endpoint"]))
    assert second["refresh_token"] != first["refresh_token"] and second["access_token"] != first["access_token"]
    again = dict(session.refresh_token(keiko.metadata["token_endpoint"], refresh_token=first["refresh_token"]))
    assert again["refresh_token"] == second["refresh_token"], "an honest repetition gets the same answer"
    session.refresh_token(keiko.metadata["token_endpoint"], refresh_token=second["refresh_token"])
    refused("invalid_grant", lambda: session.refresh_token(keiko.metadata["token_endpoint"], refresh_token=first["refresh_token"]))


def should_give_client_credentials(keiko):
    for session in (keiko.client("client_secret_basic"), keiko.client("client_secret_post"), keiko.keyed()):
        token = session.fetch_token(grant_type="client_credentials", scope="tasks.read")
        assert token["scope"] == "tasks.read" and "refresh_token" not in token
        assert jwt.decode(token["access_token"], keiko.keys, algorithms=["ES256"]).header["typ"] == "at+jwt"


def should_introspect_and_revoke(keiko):
    session = keiko.client()
    token = dict(keiko.login(session)[0])
    introspect = lambda: session.introspect_token(keiko.metadata["introspection_endpoint"], token=token["access_token"]).json()  # noqa: E731
    assert introspect()["active"] is True and introspect()["client_id"] == session.client_id
    for each in ("access_token", "refresh_token"):
        assert session.revoke_token(keiko.metadata["revocation_endpoint"], token=token[each], token_type_hint=each).status_code == 200
    assert introspect() == {"active": False}
    refused("invalid_grant", lambda: session.refresh_token(keiko.metadata["token_endpoint"], refresh_token=token["refresh_token"]))


def should_refuse_a_wrong_secret(keiko):
    for method in ("client_secret_basic", "client_secret_post"):
        session = keiko.client(method, secret="wrong")
        refused("invalid_client", lambda: session.fetch_token(grant_type="client_credentials", scope="tasks.read"))


def should_tell_the_client_that_a_person_denied(keiko):
    refused("access_denied", lambda: keiko.login(keiko.client(), Person(decision="deny")))


def main():
    keiko, failed = Keiko(), 0
    scenarios = [(name, work) for name, work in globals().items() if name.startswith("should_")]
    for name, work in scenarios:
        try:
            work(keiko)
            print(f"ok authlib: {name}")
        except Exception as error:  # whatever a library throws is a failed scenario
            failed += 1
            print(f"not ok authlib: {name}: {type(error).__name__}: {error}".replace("\n", " "))
    print(f"judges: {len(scenarios) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
