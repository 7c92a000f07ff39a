"""The authorization server under attack, and what the certified clients do not look at."""

import concurrent.futures
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from harness import done, refused, unique, until
from oauth import REDIRECT, App, Browser, error, hidden, s256, service_app, totp
from tokens import claims_of

KEIKO_ENV = {"KEIKO_OAUTH_REGISTRATION": "true", "KEIKO_GATEWAY_ALLOW_PRIVATE": "true", "KEIKO_SESSION_REFRESH_GRACE": "1s"}
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"


@pytest.fixture(scope="module")
def app(keiko, admin):
    return App(keiko, admin)


def query(address):
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}


# Where answers go


def test_should_never_redirect_to_an_address_that_is_not_registered(keiko, app):
    mutated = [
        "https://client.example/back/", "https://client.example/BACK", "https://CLIENT.example/back", "https://client.example:443/back",
        "https://client.example:8443/back", "https://client.example/back?x=1", "https://client.example/back#x", "https://client.example/back%2f",
        "https://client.example/%62ack", "https://client.example/x/../back", "https://client.example/./back", "https://user@client.example/back",
        "https://client.example@evil.example/back", "https://evil.example/back", "https://client.example.evil.example/back",
        "https://evil.example/?https://client.example/back", "https://evil.example#https://client.example/back", "http://client.example/back",
        "//client.example/back", "/back", "https:client.example/back", "https:/client.example/back", "https:///client.example/back",
        "https://client.example\\@evil.example/back", "https://client.example%00.evil.example/back", "https://client.example%2eevil.example/back",
        "javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "https://client.example/back ", " https://client.example/back",
        "https://client.example/back\r\nX: y", "https://client.example/back\n", "https://client.example/bac", "https://client.example/backk",
        "https://client.example/back;x", "https://[::1]/back", "http://127.0.0.1/back", "https://client.example/back&x=1", "ftp://client.example/back",
        "https://сlient.example/back",
    ]
    assert len(mutated) >= 40
    for uri in mutated:
        page, left = Browser(keiko).visit(app.url("v" * 43, redirect_uri=uri))
        assert left is None and page.status_code == 400 and "<form" not in page.text, uri
        assert "evil.example" not in page.headers.get("content-security-policy", "")


def test_should_say_to_the_client_what_is_wrong_and_who_says_so(keiko, app):
    wrong = [
        ({"response_type": "token"}, "unsupported_response_type"), ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"), ({"scope": "tasks.*"}, "invalid_scope"), ({"scope": "*"}, "invalid_scope"),
        ({"resource": "https://elsewhere.example/"}, "invalid_target"), ({"prompt": "none"}, "login_required"), ({"request": "x"}, "request_not_supported"),
    ]
    for parameters, code in wrong:
        page, left = Browser(keiko).visit(app.url("v" * 43, **parameters))
        assert left and left.startswith(REDIRECT), (parameters, page and page.text)
        assert query(left)["error"] == code and query(left)["iss"] == keiko.url and query(left)["state"] == "s1"


def test_should_refuse_to_register_addresses_that_anybody_could_listen_at(keiko, admin):
    for uri in ("http://client.example/back", "https://*.example/back", "javascript:alert(1)", "https://client.example/#x"):
        refused(admin.post("/clients", {"name": "x", "redirect_uris": [uri]}), 400)
        answer = keiko.client().post("/oauth/register", {"redirect_uris": [uri]})
        assert answer.status_code == 400 and answer.json()["error"] == "invalid_redirect_uri", answer.text


# Codes and refresh tokens


def test_should_end_everything_when_a_code_comes_twice(keiko, app):
    code, verifier = app.code()
    tokens = app.redeem(code, verifier).json()
    api = keiko.client(token=tokens["access_token"])
    assert api.get("/tasks").status_code == 200
    error(app.redeem(code, verifier), "invalid_grant")
    refused(api.get("/tasks"), 401, "TOKEN_INVALID")
    error(app.refresh(tokens["refresh_token"]), "invalid_grant")


def test_should_bind_a_code_to_its_client_its_address_and_its_verifier(keiko, admin, app):
    other = App(keiko, admin)
    code, verifier = app.code()
    error(other.redeem(code, verifier), "invalid_grant")
    error(app.redeem(code, secrets.token_urlsafe(48)), "invalid_grant")
    error(app.post("token", grant_type="authorization_code", code=code, code_verifier=verifier, redirect_uri="https://evil.example/"), "invalid_grant")
    error(app.post("token", grant_type="authorization_code", code=code, redirect_uri=REDIRECT), "invalid_request")
    assert app.redeem(code, verifier).status_code == 200, "wrong tries cost nothing: whoever has no verifier has nothing"


def test_should_forgive_an_honest_repetition_and_end_the_family_of_a_stolen_token(keiko, app):
    first = app.tokens()["refresh_token"]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: app.refresh(first), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1, "one logical session"
    second = answers[0].json()["refresh_token"]
    third = app.refresh(second).json()["refresh_token"]
    error(app.refresh(first), "invalid_grant")
    error(app.refresh(third), "invalid_grant")


def test_should_not_forgive_after_the_grace_time(keiko, app):
    first = app.tokens()["refresh_token"]
    second = app.refresh(first).json()["refresh_token"]
    until(lambda: app.refresh(first).status_code == 400, "the repetition is no longer forgiven", timeout=4, every=1.2)
    error(app.refresh(second), "invalid_grant")


def test_should_take_a_refresh_token_from_its_client_only(keiko, admin, app):
    token = app.tokens()["refresh_token"]
    error(App(keiko, admin).refresh(token), "invalid_grant")
    refused(keiko.client().post("/auth/refresh", {"refresh_token": token}), 401)
    error(app.refresh(keiko.login().session["refresh_token"]), "invalid_grant")
    assert app.refresh(token).status_code == 200


# What a token allows


def test_should_allow_no_more_than_the_scope_and_no_more_than_the_person(keiko, admin, app):
    tokens = app.tokens(scope="openid tasks.read users.read")
    api = keiko.client(token=tokens["access_token"])
    assert api.get("/tasks").status_code == 200 and api.get("/users").status_code == 200
    denied = api.get("/roles")
    refused(denied, 403, "PERMISSION_DENIED")
    challenge = denied.headers["www-authenticate"]
    assert 'error="insufficient_scope"' in challenge and 'scope="roles.read"' in challenge and "resource_metadata=" in challenge
    person = keiko.user(admin, ["user"])
    browser, verifier = Browser(keiko), secrets.token_urlsafe(48)
    _, left = browser.sign_in(app.url(verifier, scope="tasks.read users.read"), person.name, person.password)
    narrow = app.redeem(query(left)["code"], verifier).json()
    assert narrow["scope"] == "tasks.read", "what the person may not do is not granted in name only"
    refused(keiko.client(token=narrow["access_token"]).get("/users"), 403)


def test_should_bind_a_token_to_its_resource(keiko, app):
    mcp = f"{keiko.url}/mcp"
    tokens = app.tokens(resource=mcp, scope="discovery.read tools.call tasks.read")
    api = keiko.client(token=tokens["access_token"])
    assert claims_of(tokens["access_token"])["aud"] == mcp
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert api.post("/mcp", message).status_code == 200
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "agents_discover", "arguments": {}}}
    assert not api.post("/mcp", call).json()["result"]["isError"]
    refused(api.get("/tasks"), 401, "TOKEN_INVALID")
    error(app.refresh(tokens["refresh_token"], resource=keiko.url), "invalid_target")


def test_should_lead_strangers_to_the_authorization_server(keiko):
    anyone = keiko.client()
    for path, resource in (("/mcp", "/mcp"), ("/api/v1/tasks", "")):
        answer = anyone.post(path, {}) if path == "/mcp" else anyone.get("/tasks")
        challenge = answer.headers["www-authenticate"]
        assert answer.status_code == 401 and challenge.startswith("Bearer ")
        assert f'resource_metadata="{keiko.url}/.well-known/oauth-protected-resource{resource}"' in challenge
        assert "error=" not in challenge, "nothing was shown, so nothing was wrong with it"
        document = anyone.get(f"/.well-known/oauth-protected-resource{resource}").json()
        assert document["resource"] == keiko.url + resource and document["authorization_servers"] == [keiko.url]
        assert not any("*" in scope for scope in document["scopes_supported"])
    assert 'error="invalid_token"' in keiko.client(token="garbage").get("/tasks").headers["www-authenticate"]
    assert anyone.get("/tasks", headers={}).status_code == anyone.request("GET", "/tasks?access_token=x").status_code == 401


def test_should_end_tokens_with_the_client_the_session_and_the_person(keiko, admin):
    mine = App(keiko, admin)
    token = mine.tokens()["access_token"]
    assert keiko.client(token=token).get("/tasks").status_code == 200
    assert admin.delete(f"/clients/{mine.id}").status_code == 204
    refused(keiko.client(token=token).get("/tasks"), 401)
    error(mine.post("introspect", token=token), "invalid_client", 401)

    app = App(keiko, admin)
    tokens = app.tokens()
    assert app.post("revoke", token=tokens["access_token"]).status_code == 200
    refused(keiko.client(token=tokens["access_token"]).get("/tasks"), 401)
    assert app.refresh(tokens["refresh_token"]).status_code == 200, "one token was called back, not the session"

    person = keiko.user(admin, ["user"])
    done(admin.post(f"/users/{person.id}/actions/suspend", {"reason": "left"}))
    refused(person.get("/tasks"), 401)
    refused(keiko.client().post("/auth/login", {"username": person.name, "password": person.password}), 401)
    refused(keiko.client().post("/auth/refresh", {"refresh_token": person.session["refresh_token"]}), 401)
    done(admin.post(f"/users/{person.id}/actions/reinstate", {}))
    assert keiko.login(person.name, person.password).get("/tasks").status_code == 200


def test_should_stop_an_agent_at_once_with_everything_it_holds(keiko, admin):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    app = App(keiko, admin, subject=agent.id, grant_types=["client_credentials"], redirect_uris=[])
    token = app.post("token", grant_type="client_credentials").json()["access_token"]
    acting = keiko.client(token=token)
    assert done(acting.get("/auth/me"))["type"] == "agent"
    task = done(admin.post("/tasks", {"capability": capability, "description": unique("work"), "input": {}}), 201)
    held = agent.take()
    assert held["id"] == task["id"]
    done(admin.post(f"/agents/{agent.id}/actions/suspend", {"reason": "acts unlike itself"}))
    refused(acting.get("/auth/me"), 401)
    refused(agent.api.get("/auth/me"), 401)
    assert app.post("token", grant_type="client_credentials").status_code == 400
    until(lambda: done(admin.get(f"/tasks/{task['id']}"))["attributes"]["status"] == "pending", "its claim has ended", timeout=5)
    done(admin.post(f"/agents/{agent.id}/actions/reinstate", {}))
    assert done(agent.api.get("/auth/me"))["id"] == agent.id


# Acting for others


def test_should_keep_the_chain_of_those_who_act_and_never_widen(keiko, admin):
    agent = keiko.agent(admin, unique("cap"))
    first = App(keiko, admin, subject=agent.id, grant_types=["client_credentials", EXCHANGE], redirect_uris=[])
    second = service_app(keiko, admin, ["developer"])
    person = App(keiko, admin)
    subject = person.tokens(scope="tasks.read tasks.create")["access_token"]

    def exchange(app, token, **fields):
        return app.post("token", grant_type=EXCHANGE, subject_token=token, subject_token_type=ACCESS_TOKEN, **fields)

    child = exchange(first, subject, scope="tasks.read").json()
    claims = claims_of(child["access_token"])
    assert claims["act"] == {"sub": agent.id} and claims["scope"] == "tasks.read" and claims["sub"] == claims_of(subject)["sub"]
    acting = keiko.client(token=child["access_token"])
    assert done(acting.get("/auth/me"))["id"] == agent.id, "whoever acts is who does it"
    assert acting.get("/tasks").status_code == 200
    error(exchange(first, child["access_token"], scope="tasks.create"), "invalid_scope")
    error(exchange(first, child["access_token"], resource="https://elsewhere.example"), "invalid_target")
    grandchild = exchange(second, child["access_token"]).json()["access_token"]
    assert claims_of(grandchild)["act"]["act"] == {"sub": agent.id}
    assert claims_of(grandchild)["exp"] <= claims_of(subject)["exp"]
    token = grandchild
    for _ in range(8):
        answer = exchange(second, token)
        if answer.status_code != 200:
            break
        token = answer.json()["access_token"]
    error(answer, "invalid_request")
    # Calling a token back ends what was made of it, and nothing else.
    other = exchange(first, person.tokens(scope="tasks.read")["access_token"]).json()["access_token"]
    made = exchange(second, other).json()["access_token"]
    assert keiko.client(token=made).get("/tasks").status_code == 200
    assert first.post("revoke", token=other).status_code == 200
    for ended in (other, made):
        refused(keiko.client(token=ended).get("/tasks"), 401)
    error(exchange(second, made), "invalid_request")
    assert keiko.client(token=grandchild).get("/tasks").status_code == 200
    # Suspending one of those who act ends what is done through it.
    done(admin.post(f"/agents/{agent.id}/actions/suspend", {"reason": "x"}))
    for stopped in (child["access_token"], grandchild):
        refused(keiko.client(token=stopped).get("/tasks"), 401)


def test_should_not_exchange_or_explain_tokens_of_another_tenant(keiko, admin):
    boss = keiko.tenant(admin)
    stranger = service_app(keiko, boss, ["developer"])
    token = service_app(keiko, admin, ["developer"]).post("token", grant_type="client_credentials").json()["access_token"]
    assert stranger.post("introspect", token=token).json() == {"active": False}
    error(stranger.post("token", grant_type=EXCHANGE, subject_token=token, subject_token_type=ACCESS_TOKEN), "invalid_request")
    foreign = App(keiko, boss)
    page, left = Browser(keiko).sign_in(foreign.url("v" * 43))
    assert left is None and "another tenant" in page.text, "a client of one tenant serves its people only"


# Pages


def test_should_ask_again_for_another_client_and_for_more(keiko, admin):
    browser = Browser(keiko)
    one, two = App(keiko, admin), App(keiko, admin)
    one.code(browser)
    page, left = browser.visit(one.url("v" * 43))
    assert left and "code" in query(left), "allowed before"
    page, left = browser.visit(one.url("v" * 43, scope="openid profile tasks.read tasks.create"))
    assert left is None and hidden(page.text)["step"] == "consent", "more than was allowed"
    page, left = browser.visit(two.url("v" * 43))
    assert left is None and hidden(page.text)["step"] == "consent", "another client"
    assert two.attributes["name"] in page.text and "https://client.example" in page.text


def test_should_not_take_forms_of_other_sites(keiko, app):
    victim = Browser(keiko)
    app.code(victim)
    page, _ = victim.visit(app.url("v" * 43, prompt="consent"))
    fields = hidden(page.text)
    policy = page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy and "script-src" not in policy and "default-src 'none'" in policy
    assert page.headers["x-frame-options"] == "DENY" and page.headers["cache-control"] == "no-store"
    for csrf in (None, "", "x", fields["csrf"][:-1]):
        forged = {**fields, "decision": "allow", "csrf": csrf} if csrf is not None else {"step": "consent", "decision": "allow"}
        answer = victim.http.post(str(page.url), data=forged)
        assert answer.status_code == 400 and "location" not in answer.headers, csrf
    other = Browser(keiko)
    other.visit(app.url("v" * 43))
    stolen = other.http.post(str(page.url), data={**fields, "decision": "allow"})
    assert stolen.status_code == 400, "a form belongs to its browser"
    cookies = " ".join(victim.http.get(app.url("v" * 43)).headers.get_list("set-cookie") + other.http.get("/oauth/device").headers.get_list("set-cookie"))
    assert "HttpOnly" in cookies or not cookies


def test_should_warn_of_clients_that_any_program_on_the_machine_could_be(keiko, admin):
    local = App(keiko, admin, "none", redirect_uris=["http://127.0.0.1/back"])
    browser = Browser(keiko)
    url = local.url("v" * 43, redirect_uri="http://127.0.0.1:4711/back")
    page, left = browser.sign_in(url, decision="deny")
    assert query(left)["error"] == "access_denied"
    for _ in range(2):
        page, left = browser.visit(url)
        assert left is None and 'role="alert"' in page.text, "asked every time"
        _, left = browser.send(page, decision="allow")
        assert left.startswith("http://127.0.0.1:4711/back?code=")


def test_should_sign_the_console_in_like_any_client(keiko, admin):
    person, verifier = keiko.user(admin, ["developer"]), "v" * 43
    ask = lambda home, **more: f"/oauth/authorize?{urlencode({'response_type': 'code', 'client_id': 'keiko-console', 'redirect_uri': home, 'code_challenge': s256(verifier), 'code_challenge_method': 'S256', **more})}"  # noqa: E731
    browser, home = Browser(keiko), f"{keiko.url}/"
    _, left = browser.sign_in(ask(home, state="s"), person.name, person.password)
    assert left.startswith(home + "?code=") and query(left)["iss"] == keiko.url, "nobody is asked whether Keiko may be used"
    form = {"client_id": "keiko-console", "grant_type": "authorization_code", "code": query(left)["code"], "redirect_uri": home}
    assert keiko.client()._http.post("/oauth/token", data={**form, "code_verifier": "w" * 43}).json()["error"] == "invalid_grant"
    tokens = keiko.client()._http.post("/oauth/token", data={**form, "code_verifier": verifier}).json()
    console = keiko.client(token=tokens["access_token"])
    assert done(console.get("/auth/me"))["attributes"]["name"] == person.name and "scope" not in tokens
    # On another port of this machine anything could be it, so the person is asked; elsewhere it is never.
    page, left = browser.visit(ask("http://127.0.0.1:4711/"))
    assert left is None and 'role="alert"' in page.text and hidden(page.text)["step"] == "consent"
    for elsewhere in ("https://evil.example/", f"{home}else", "http://localhost:8080/", home.replace("http:", "https:")):
        page, left = browser.visit(ask(elsewhere))
        assert left is None and page.status_code == 400, elsewhere
    bye = {"client_id": "keiko-console", "id_token_hint": tokens["id_token"], "post_logout_redirect_uri": home, "state": "bye"}
    answer = browser.http.post("/oauth/logout", data=bye)
    assert answer.headers["location"] == f"{home}?state=bye"
    refused(console.get("/auth/me"), 401)


def test_should_show_names_as_text(keiko, admin):
    evil = App(keiko, admin, name='<img src=x onerror="alert(1)">\u202e')
    page, _ = Browser(keiko).sign_in(evil.url("v" * 43), decision="none")
    page, _ = Browser(keiko).visit(evil.url("v" * 43))
    assert "<img" not in page.text and "&lt;img" in page.text and "\u202e" not in page.text


def test_should_sign_out_at_the_browser_and_where_it_led(keiko, admin):
    app = App(keiko, admin, post_logout_redirect_uris=["https://client.example/bye"])
    browser = Browser(keiko)
    tokens = app.redeem(*app.code(browser)).json()
    page, left = browser.visit("/oauth/logout")
    assert left is None and hidden(page.text)["step"] == "logout", "another site cannot sign people out by a link"
    wrong, left = browser.visit("/oauth/logout?" + urlencode({"client_id": app.client_id, "post_logout_redirect_uri": "https://evil.example/"}))
    assert left is None and wrong.status_code == 400
    asked = {"id_token_hint": tokens["id_token"], "post_logout_redirect_uri": "https://client.example/bye", "state": "x y"}
    _, left = browser.visit("/oauth/logout?" + urlencode(asked))
    assert left == "https://client.example/bye?state=x+y"
    refused(keiko.client(token=tokens["access_token"]).get("/tasks"), 401)
    page, left = browser.visit(app.url("v" * 43, prompt="none"))
    assert query(left)["error"] == "login_required"


def test_should_end_the_login_that_a_hint_names_at_whatever_browser_it_is(keiko, admin):
    app = App(keiko, admin, post_logout_redirect_uris=["https://client.example/bye"])
    browser = Browser(keiko)
    tokens = app.redeem(*app.code(browser)).json()
    assert claims_of(tokens["id_token"])["tenant"] == "default"
    late = app.code(browser)
    lasting = app.redeem(*app.code(browser, scope="openid tasks.read offline_access")).json()
    asked = {"id_token_hint": tokens["id_token"], "post_logout_redirect_uri": "https://client.example/bye"}
    other = Browser(keiko)
    other.sign_in("/oauth/device")
    page, left = Browser(keiko).visit("/oauth/logout?" + urlencode({**asked, "id_token_hint": tokens["id_token"][:-4] + "AAAA"}))
    assert left is None and page.status_code == 400, "a forged hint names no client"
    assert keiko.client(token=tokens["access_token"]).get("/tasks").status_code == 200
    _, left = Browser(keiko).visit("/oauth/logout?" + urlencode(asked))
    assert left == "https://client.example/bye"
    refused(keiko.client(token=tokens["access_token"]).get("/tasks"), 401)
    page, _ = browser.visit(app.url("v" * 43))
    assert hidden(page.text)["step"] == "login", "also at the browser where it began"
    error(app.redeem(*late), "invalid_grant")
    assert keiko.client(token=lasting["access_token"]).get("/tasks").status_code == 200, "offline_access outlives it"
    page, _ = other.visit("/oauth/device")
    assert hidden(page.text)["step"] == "code", "somewhere else the person stays signed in"
    _, left = Browser(keiko).visit("/oauth/logout?" + urlencode(asked))
    assert left == "https://client.example/bye", "once more changes nothing"


# Clients


def test_should_take_a_clients_proof_once_and_in_one_way(keiko, admin):
    import jwt
    from cryptography.hazmat.primitives.asymmetric import ec
    import time

    key = ec.generate_private_key(ec.SECP256R1())
    jwk = {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())), "kid": "k1"}
    app = service_app(keiko, admin, ["developer"], method="private_key_jwt", jwks={"keys": [jwk]})

    def assertion(**changed):
        now = int(time.time())
        claims = {"iss": app.client_id, "sub": app.client_id, "aud": keiko.url, "exp": now + 60, "iat": now, "jti": unique("j"), **changed}
        return jwt.encode(claims, key, algorithm="ES256", headers={"kid": "k1"})

    def ask(token, **fields):
        kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        return app.http.post("/oauth/token", data={"grant_type": "client_credentials", "client_assertion_type": kind, "client_assertion": token, **fields})

    good = assertion()
    assert ask(good).status_code == 200
    error(ask(good), "invalid_client", 401)
    now = int(time.time())
    for wrong in ({"aud": "https://elsewhere.example"}, {"exp": now - 60}, {"exp": now + 86_400}, {"sub": "kc_default_x"}, {"iss": "x"}, {"iat": now + 600}):
        answer = ask(assertion(**wrong))
        assert answer.status_code == 401 and answer.json()["error"] == "invalid_client", wrong
    unsigned = assertion().rsplit(".", 1)[0] + "."
    error(ask(unsigned), "invalid_client", 401)
    error(ask(assertion(), client_secret="x"), "invalid_request")
    private = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key))
    refused(admin.post("/clients", {"name": "x", "token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [private]}}), 400)


def test_should_not_let_a_client_be_more_than_its_maker(keiko, admin):
    maker = done(admin.post("/roles", {"name": unique("maker"), "permissions": ["clients.*", "users.read"]}), 201)["attributes"]["name"]
    small = keiko.user(admin, [maker])
    service = unique("root")
    done(admin.post("/users", {"username": service, "kind": "service", "roles": ["admin"]}), 201)
    grants = ["client_credentials"]
    refused(small.post("/clients", {"name": "x", "subject": service, "grant_types": grants}), 403, "PERMISSION_ESCALATION")
    mighty = done(admin.post("/clients", {"name": "x", "subject": service, "grant_types": grants}), 201)["id"]
    refused(small.post(f"/clients/{mighty}/actions/change-secret", {}), 403, "PERMISSION_ESCALATION")


class Documents(BaseHTTPRequestHandler):
    """Client documents, right and wrong, and a trap that counts who comes."""

    pages, visits = {}, []

    def do_GET(self):
        type(self).visits.append(self.path)
        status, headers, body = self.pages.get(self.path, (404, {}, ""))
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def documents():
    server = HTTPServer(("127.0.0.1", 0), Documents)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_should_read_clients_that_are_documents(keiko, documents):
    url = f"{documents}/client.json"
    document = {"client_id": url, "client_name": "Portable", "redirect_uris": [REDIRECT]}
    Documents.pages["/client.json"] = (200, {"Cache-Control": "max-age=600"}, json.dumps(document))
    asked = {"response_type": "code", "client_id": url, "redirect_uri": REDIRECT, "scope": "tasks.read", "code_challenge": s256("v" * 43), "code_challenge_method": "S256", "state": "s1"}
    page, _ = Browser(keiko).visit("/oauth/authorize?" + urlencode(asked))
    browser = Browser(keiko)
    _, left = browser.sign_in("/oauth/authorize?" + urlencode(asked))
    answer = browser.http.post("/oauth/token", data={"grant_type": "authorization_code", "client_id": url, "code": query(left)["code"], "code_verifier": "v" * 43})
    assert answer.status_code == 200 and claims_of(answer.json()["access_token"])["client_id"] == url
    assert Documents.visits.count("/client.json") == 1, "kept as long as its owner says"
    wrong = {
        "/other-id.json": (200, {}, json.dumps({**document, "client_id": url})),
        "/moved.json": (302, {"Location": url}, ""),
        "/large.json": (200, {}, json.dumps({**document, "client_id": f"{documents}/large.json", "x": "y" * 6000})),
        "/html.json": (200, {"Content-Type": "text/html"}, "<p>"),
        "/secret.json": (200, {}, json.dumps({**document, "client_id": f"{documents}/secret.json", "client_secret": "s"})),
    }
    Documents.pages.update(wrong)
    for path in wrong:
        page, left = Browser(keiko).visit("/oauth/authorize?" + urlencode({**asked, "client_id": documents + path}))
        assert left is None and page.status_code == 400, path


def test_should_reach_no_private_address_for_a_clients_document(new_keiko, documents):
    strict = new_keiko(env={"KEIKO_GATEWAY_ALLOW_PRIVATE": "false"}).start()
    port = urlsplit(documents).port
    before = len(Documents.visits)
    hosts = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "localhost."]
    for host in hosts:
        for scheme in ("https", "http"):
            page, left = Browser(strict).visit("/oauth/authorize?" + urlencode({"response_type": "code", "client_id": f"{scheme}://{host}:{port}/client.json", "redirect_uri": REDIRECT}))
            assert left is None and page.status_code == 400, host
    assert len(Documents.visits) == before, "nobody came"


# Devices


def test_should_sign_a_device_in_and_slow_down_guessing(keiko, admin):
    app = App(keiko, admin, "none", grant_types=["urn:ietf:params:oauth:grant-type:device_code", "refresh_token"], redirect_uris=[])
    begun = app.post("device_authorization", scope="tasks.read").json()
    poll = lambda code: app.post("token", grant_type="urn:ietf:params:oauth:grant-type:device_code", device_code=code)  # noqa: E731
    error(poll(begun["device_code"]), "authorization_pending")
    error(poll(begun["device_code"]), "slow_down")
    browser, guesser = Browser(keiko), keiko.user(admin, ["user"])
    page, _ = browser.sign_in("/oauth/device", guesser.name, guesser.password)
    for n in range(8):
        page, _ = browser.send(page, user_code=f"BBBB-{'BCDFGHJK'[n]}BBB")
    assert "Too many" in page.text
    patient = Browser(keiko)
    person = keiko.user(admin, ["user"])
    page, _ = patient.sign_in(begun["verification_uri_complete"], person.name, person.password)
    assert "Connected" in page.text, page.text
    tokens = poll(begun["device_code"])
    assert tokens.status_code == 200 and tokens.json()["scope"] == "tasks.read", tokens.text
    error(poll(begun["device_code"]), "invalid_grant")


# Second factors


def enrolled(keiko, admin, roles=("admin",)):
    """Somebody with a second factor, its secret, and recovery codes."""
    person = keiko.user(admin, list(roles))
    begun = done(person.post("/auth/mfa/actions/begin", {}))["attributes"]
    refused(person.post("/auth/mfa/actions/confirm", {"code": "000000"}), 401, "MFA_CODE_INVALID")
    codes = done(person.post("/auth/mfa/actions/confirm", {"code": totp(begun["secret"])}))["attributes"]["recovery_codes"]
    assert len(codes) == len(set(codes)) == 10
    return person, begun["secret"], codes


def test_should_end_logins_without_the_second_factor_when_it_is_set_up(keiko, admin, app):
    person, verifier = keiko.user(admin, ["developer"]), "v" * 43
    elsewhere, browser = keiko.login(person.name, person.password), Browser(keiko)
    _, left = browser.sign_in(app.url(verifier), person.name, person.password)
    token = app.redeem(query(left)["code"], verifier).json()["access_token"]
    secret = done(person.post("/auth/mfa/actions/begin", {}))["attributes"]["secret"]
    done(person.post("/auth/mfa/actions/confirm", {"code": totp(secret)}))
    assert person.get("/auth/me").status_code == 200
    for before in (elsewhere, keiko.client(token=token)):
        refused(before.get("/auth/me"), 401)
    page, left = browser.visit(app.url(verifier))
    assert left is None and hidden(page.text)["step"] == "login"


def test_should_ask_for_the_second_factor_and_take_each_code_once(keiko, admin):
    person, secret, codes = enrolled(keiko, admin)
    credentials = {"username": person.name, "password": person.password}
    anyone = keiko.client()
    refused(anyone.post("/auth/login", credentials), 401, "MFA_REQUIRED")
    refused(anyone.post("/auth/login", {**credentials, "code": totp(secret)}), 401, "MFA_CODE_INVALID")  # it confirmed the enrolment
    tokens = done(anyone.post("/auth/login", {**credentials, "code": codes[0]}))["attributes"]
    assert claims_of(tokens["access_token"])["acr"] == "mfa"
    refused(anyone.post("/auth/login", {**credentials, "code": codes[0]}), 401, "MFA_CODE_INVALID")
    assert done(anyone.post("/auth/login", {**credentials, "code": codes[1].upper().replace("-", " ")}))
    wrong = [anyone.post("/auth/login", {**credentials, "code": f"{n:06}"}) for n in range(8)]
    assert refused(wrong[-1], 429, "LOGIN_THROTTLED"), "guessing codes is slowed down although the password is right"
    assert secret not in keiko.logs() and codes[2] not in keiko.logs()
    recorded = lambda: [e["attributes"]["data"]["how"] for e in done(admin.get("/security/events", kind="identity.login", limit=500)) if e["attributes"]["actor"]["id"] == person.id]  # noqa: E731
    assert {"MFA_CODE_INVALID", "otp"} <= set(until(lambda: len(recorded()) > 3 and recorded(), "logins are recorded"))


def test_should_show_the_second_factor_at_the_browser(keiko, admin, app):
    person, secret, codes = enrolled(keiko, admin)
    browser, verifier = Browser(keiko), secrets.token_urlsafe(48)
    page, left = browser.sign_in(app.url(verifier), person.name, person.password, code="000000")
    assert left is None and hidden(page.text)["step"] == "mfa"
    stolen = Browser(keiko)
    other, _ = stolen.visit(app.url(verifier))
    answer, left = stolen.send(other, step="mfa", ticket=hidden(page.text)["ticket"], code=codes[0])
    assert left is None and hidden(answer.text)["step"] == "mfa", "a ticket belongs to its browser"
    page, left = browser.send(page, code=codes[0])
    page, left = browser.send(page, decision="allow")
    claims = claims_of(app.redeem(query(left)["code"], verifier).json()["id_token"])
    assert claims["acr"] == "mfa" and claims["amr"] == ["pwd", "otp"]


def test_should_want_a_fresh_proof_for_dangerous_actions(new_keiko):
    keiko = new_keiko(env={"KEIKO_MFA_MAX_AGE": "2s"}).start()
    admin = keiko.login()
    person, secret, codes = enrolled(keiko, admin)
    role = {"name": unique("role"), "permissions": ["tasks.read"]}
    done(person.post("/roles", role), 201)
    until(lambda: person.post("/roles", {**role, "name": unique("role")}).status_code == 401, "the proof is too old", timeout=6, every=0.3)
    answer = person.post("/roles", {**role, "name": unique("role")})
    refused(answer, 401, "STEP_UP_REQUIRED")
    assert 'error="insufficient_user_authentication"' in answer.headers["www-authenticate"] and 'max_age="2"' in answer.headers["www-authenticate"]
    assert person.get("/roles").status_code == 200, "reading goes on"
    done(person.post("/auth/mfa/actions/step-up", {"code": codes[0]}))
    done(person.post("/roles", {**role, "name": unique("role")}), 201)


def test_should_let_administrators_do_nothing_in_production_before_they_have_a_second_factor(new_keiko):
    keiko = new_keiko(env={"KEIKO_SECURITY_PROFILE": "production"}).start()
    admin = keiko.login()
    refused(admin.get("/tasks"), 403, "MFA_ENROLMENT_REQUIRED")
    begun = done(admin.post("/auth/mfa/actions/begin", {}))["attributes"]
    done(admin.post("/auth/mfa/actions/confirm", {"code": totp(begun["secret"])}))
    assert admin.get("/tasks").status_code == 200
    wild = done(admin.post("/api-keys", {"name": "wild", "permissions": ["*"]}), 201)["attributes"]["key"]
    named = done(admin.post("/api-keys", {"name": "named", "permissions": ["keys.create", "tasks.read"]}), 201)["attributes"]["key"]
    refused(keiko.client(api_key=wild).post("/api-keys", {"name": "x"}), 403, "PERMISSION_DENIED")
    done(keiko.client(api_key=named).post("/api-keys", {"name": "x", "permissions": ["tasks.read"]}), 201)
    answer = keiko.client().post("/oauth/register", {"redirect_uris": [REDIRECT]})
    assert answer.status_code == 403, "clients do not register themselves in production"


# Everything at once


def test_should_call_back_everything_in_one_call(keiko, admin):
    boss = keiko.tenant(admin)
    app = App(keiko, boss)
    verifier = secrets.token_urlsafe(48)
    _, left = Browser(keiko).sign_in(app.url(verifier), "boss", "another long password", boss.slug)
    tokens = app.redeem(query(left)["code"], verifier).json()
    key = keiko.client(api_key=done(boss.post("/api-keys", {"name": "k", "permissions": ["tasks.read"]}), 201)["attributes"]["key"])
    done(boss.post("/security/actions/revoke-all", {}))
    refused(boss.get("/tasks"), 401)
    refused(keiko.client(token=tokens["access_token"]).get("/tasks"), 401)
    error(app.refresh(tokens["refresh_token"]), "invalid_grant")
    refused(keiko.client().post("/auth/refresh", {"refresh_token": boss.session["refresh_token"]}), 401)
    assert key.get("/tasks").status_code == 200 and admin.get("/tasks").status_code == 200, "keys and other tenants go on"
    again = keiko.login("boss", "another long password", boss.slug)
    done(again.post("/security/actions/revoke-all", {"keys": True}))
    refused(key.get("/tasks"), 401)


def test_should_record_what_was_seen_of_identities(keiko, admin):
    person = keiko.user(admin, ["user"])
    refused(keiko.client().post("/auth/login", {"username": person.name, "password": "hunter2hunter2"}), 401)
    refused(person.get("/users"), 403)
    refused(keiko.client(token="garbage").get("/tasks"), 401)
    seen = lambda kind: [e["attributes"] for e in done(admin.get("/security/events", kind=kind, limit=500))]  # noqa: E731
    refusal = until(lambda: [e for e in seen("identity.login.refused") if e["actor"]["id"] == person.id], "the failed login is recorded")[0]
    assert refusal["data"]["how"] == "INVALID_CREDENTIALS" and refusal["data"]["address"] == "127.0.0.1" and refusal["data"]["client"]
    denied = until(lambda: [e for e in seen("identity.permission.denied") if e["actor"]["id"] == person.id], "the denial is recorded")[0]
    assert denied["data"]["permission"] == "users.read"
    assert until(lambda: seen("identity.credentials.refused"), "bad credentials are recorded")
    assert [e for e in seen("identity.login.succeeded") if e["actor"]["id"] == person.id]
    assert "hunter2" not in json.dumps(seen("identity"))
    for _ in range(60):
        person.get("/users")
    until(lambda: len([e for e in seen("identity.permission.denied")]) >= 20, "refusals are kept one by one up to a rate")
    assert len(seen("identity.permission.denied")) <= 25, "and counted beyond it: nobody buys disk writes by failing"


def test_should_record_tokens_where_the_person_belongs(keiko, admin):
    boss, verifier, home = keiko.tenant(admin), "v" * 43, f"{keiko.url}/"
    asked = {"response_type": "code", "client_id": "keiko-console", "redirect_uri": home, "code_challenge": s256(verifier), "code_challenge_method": "S256"}
    _, left = Browser(keiko).sign_in("/oauth/authorize?" + urlencode(asked), "boss", "another long password", boss.slug)
    form = {"client_id": "keiko-console", "grant_type": "authorization_code", "code": query(left)["code"], "code_verifier": verifier}
    http = keiko.client()._http
    tokens = http.post("/oauth/token", data=form).json()
    assert http.post("/oauth/token", data=form).json()["error"] == "invalid_grant", "used before"
    me = done(boss.get("/auth/me"))["id"]

    def seen(who, kind):
        found = [e["attributes"] for e in done(who.get("/security/events", kind=kind, limit=500))]
        return [e for e in found if e["data"].get("client") == "keiko-console"]

    [issued] = until(lambda: seen(boss, "identity.token.issued"), "the tenant sees what its people got")
    assert (issued["actor"]["id"], issued["data"]["how"]) == (me, "authorization_code") and tokens["access_token"]
    [late] = until(lambda: seen(boss, "identity.token.refused"), "and what was refused to them")
    assert late["data"]["how"] == "invalid_grant"
    assert not [e for e in seen(admin, "identity.token.issued") if e["actor"]["id"] == me], "others do not"


# The command line


def logged_in(keiko, home, *flags):
    """`keiko login` in the background, with the address that it says to open."""
    import re
    import subprocess

    from harness import binary, clean_env

    login = subprocess.Popen(
        [str(binary()), "login", "--server", keiko.url, *flags], env=clean_env(home), cwd=home, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for line in login.stderr:
        if found := re.search(r"(http://\S+/oauth/(?:authorize|device)\?\S+)", line):
            return login, found[1]
    raise AssertionError(f"no address to open: {login.communicate()}")


def test_should_ask_again_for_the_code_of_the_same_secret(keiko, admin, tmp_path):
    import os
    import pty
    import re
    import subprocess

    from harness import binary, clean_env

    person = keiko.user(admin, ["user"])
    env = clean_env(tmp_path, {"KEIKO_SERVER": keiko.url, "KEIKO_PASSWORD": person.password})
    subprocess.run([str(binary()), "login", person.name], env=env, check=True, capture_output=True)
    typing, terminal = pty.openpty()
    enrol = subprocess.Popen([str(binary()), "mfa", "enrol"], env=env, stdin=terminal, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    secret = next(found[1] for line in enrol.stderr if (found := re.search(r"^  ([A-Z2-7]{32})$", line)))
    os.write(typing, b"000000\n")
    assert next(line for line in enrol.stderr if "Try the one" in line)
    os.write(typing, f"{totp(secret)}\n".encode())
    codes, _ = enrol.communicate(timeout=20)
    os.close(typing)
    os.close(terminal)
    assert enrol.returncode == 0 and len(codes.split()) == 10
    refused(keiko.client().post("/auth/login", {"username": person.name, "password": person.password}), 401, "MFA_REQUIRED")


@pytest.mark.parametrize("flag", ["--browser", "--device"])
def test_should_log_the_command_line_in_with_a_browser(keiko, admin, tmp_path, flag):
    from harness import command

    person = keiko.user(admin, ["developer"])
    login, address = logged_in(keiko, tmp_path, flag)
    browser = Browser(keiko)
    page, left = browser.sign_in(address, person.name, person.password)
    if flag == "--browser":
        wrong = browser.http.get(left.split("?")[0] + "?code=stolen&state=other")
        assert "not the login" in wrong.text, "an answer to another login is turned away"
        assert "go back to the terminal" in browser.http.get(left).text
    out, err = login.communicate(timeout=20)
    assert login.returncode == 0 and f"as {person.name}" in out, out + err
    assert "kr_" not in out + err, "no token is shown"
    assert command(tmp_path, "tasks", "list", "--server", keiko.url).returncode == 0
    stored = json.loads((tmp_path / ".config" / "keiko" / "credentials.json").read_text())
    entry = stored["logins"][keiko.url]
    entry["access_token"] = "expired"
    (tmp_path / ".config" / "keiko" / "credentials.json").write_text(json.dumps(stored))
    renewed = command(tmp_path, "tasks", "list", "--server", keiko.url)
    assert renewed.returncode == 0, renewed.stderr
    assert command(tmp_path, "logout", "--server", keiko.url).returncode == 0


def test_should_enrol_and_step_up_at_the_command_line(keiko, admin, tmp_path):
    import re

    from harness import command

    person = keiko.user(admin, ["admin"])
    at = {"KEIKO_SERVER": keiko.url, "KEIKO_PASSWORD": person.password}
    assert command(tmp_path, "login", person.name, env=at).returncode == 0
    begun = command(tmp_path, "mfa", "enrol", env={**at, "KEIKO_CODE": "000000"})
    assert begun.returncode != 0 and "otpauth://" in begun.stderr and "not good" in begun.stderr
    # The secret is new each time, so the code is made by hand here.
    secret = done(person.post("/auth/mfa/actions/begin", {}))["attributes"]["secret"]
    codes = done(person.post("/auth/mfa/actions/confirm", {"code": totp(secret)}))["attributes"]["recovery_codes"]
    assert "code" in command(tmp_path, "login", person.name, env=at).stderr.lower()
    assert command(tmp_path, "login", person.name, env={**at, "KEIKO_CODE": codes[0]}).returncode == 0
    stepped = command(tmp_path, "mfa", "step-up", env={**at, "KEIKO_CODE": codes[1]})
    assert stepped.returncode == 0 and "Proved" in stepped.stdout
    made = command(tmp_path, "clients", "create", "--name", "portal", "--redirect-uri", REDIRECT, "--output", "json", env=at)
    client = json.loads(made.stdout)
    assert client["attributes"]["client_id"].startswith("kc_default_") and client["attributes"]["client_secret"]
    listed = command(tmp_path, "clients", "list", env=at)
    assert client["id"] in listed.stdout and client["attributes"]["client_secret"] not in listed.stdout
    seen = command(tmp_path, "security", "events", "--kind", "identity.login", "--limit", "500", env=at)
    assert seen.returncode == 0 and re.search(r"identity\.login\.succeeded", seen.stdout)
    refused_all = command(tmp_path, "security", "revoke-all", env=at)
    assert refused_all.returncode != 0 and "--yes" in refused_all.stderr
    assert command(tmp_path, "mfa", "remove", env={**at, "KEIKO_CODE": codes[2]}).returncode == 0


# Found by attacking it


def custom(keiko, admin, *permissions):
    """Somebody who holds just these permissions."""
    role = done(admin.post("/roles", {"name": unique("role"), "permissions": list(permissions)}), 201)["attributes"]["name"]
    return keiko.user(admin, [role])


def test_should_not_let_whoever_changes_a_client_become_its_subject(keiko, admin):
    service = unique("root")
    done(admin.post("/users", {"username": service, "kind": "service", "roles": ["admin"]}), 201)
    mighty = done(admin.post("/clients", {"name": "x", "subject": service, "grant_types": ["client_credentials"], "scopes": ["tasks.read"]}), 201)["id"]
    small = custom(keiko, admin, "clients.*", "users.read")
    refused(small.put(f"/clients/{mighty}", {"scopes": []}), 403, "PERMISSION_ESCALATION")
    agent = keiko.agent(admin, unique("cap"))
    refused(small.post("/clients", {"name": "x", "subject": agent.id, "grant_types": ["client_credentials"]}), 403, "PERMISSION_DENIED")
    registered = keiko.client().post("/oauth/register", {"redirect_uris": [REDIRECT], "client_name": "anyone"}).json()["client_id"]
    refused(admin.put(f"/clients/{registered}", {"redirect_uris": ["https://evil.example/"]}), 422, "CLIENT_FIXED")


def test_should_not_act_in_the_name_of_whose_token_it_holds(keiko, admin):
    app = App(keiko, admin, grant_types=["authorization_code", EXCHANGE])
    admins = app.tokens(scope="discovery.read")["access_token"]
    mallory = custom(keiko, admin, "keys.create", "discovery.read")
    browser, verifier = Browser(keiko), secrets.token_urlsafe(48)
    _, left = browser.sign_in(app.url(verifier, scope="keys.create"), mallory.name, mallory.password)
    own = app.redeem(query(left)["code"], verifier).json()["access_token"]
    exchanged = {"grant_type": EXCHANGE, "subject_token": own, "subject_token_type": ACCESS_TOKEN, "actor_token": admins, "actor_token_type": ACCESS_TOKEN}
    error(app.post("token", **exchanged), "invalid_request")
    refused(keiko.client(token=own).post("/api-keys", {"name": "outlives"}), 403, "KEY_OWNER_REFUSED")


def test_should_want_the_fresh_proof_on_every_way_to_more_power(new_keiko):
    keiko = new_keiko(env={"KEIKO_MFA_MAX_AGE": "1s"}).start()
    admin = keiko.login()
    person, _, codes = enrolled(keiko, admin)
    machine = service_app(keiko, admin, ["admin"])
    exchanged = {"grant_type": EXCHANGE, "subject_token": person.session["access_token"], "subject_token_type": ACCESS_TOKEN}
    stale = lambda: person.post("/roles", {"name": unique("role"), "permissions": []}).status_code == 401  # noqa: E731
    until(stale, "the proof is too old", timeout=6, every=0.3)
    through = keiko.client(token=machine.post("token", **exchanged, scope="roles.create users.create").json()["access_token"])
    for client in (person, through):
        refused(client.post("/roles", {"name": unique("role"), "permissions": []}), 401, "STEP_UP_REQUIRED")
        refused(client.post("/users", {"username": unique("u"), "password": "a long enough password", "roles": ["admin"]}), 401, "STEP_UP_REQUIRED")


def test_should_let_no_application_change_how_a_person_signs_in(keiko, admin):
    app = App(keiko, admin)
    limited = keiko.client(token=app.tokens(scope="profile.update openid")["access_token"])
    for path, body in (("/auth/mfa/actions/begin", {}), ("/auth/mfa/actions/confirm", {"code": "000000"}), ("/auth/password", {"current": keiko.password, "new": "another long password"})):
        refused(limited.post(path, body), 422, "NO_SESSION")


def test_should_ask_each_time_when_the_answer_goes_to_the_persons_machine(keiko, admin):
    both = App(keiko, admin, "none", redirect_uris=[REDIRECT, "http://127.0.0.1/cb"])
    browser = Browser(keiko)
    both.code(browser)
    _, left = browser.visit(both.url("v" * 43))
    assert left and left.startswith(REDIRECT), "allowed before, and nobody else is there"
    page, left = browser.visit(both.url("v" * 43, redirect_uri="http://127.0.0.1:6666/cb"))
    assert left is None and hidden(page.text)["step"] == "consent"
    own = "/oauth/authorize?" + urlencode({"response_type": "code", "client_id": "keiko-cli", "redirect_uri": "http://127.0.0.1:6666/callback", "code_challenge": s256("v" * 43), "code_challenge_method": "S256"})
    page, left = browser.visit(own)
    assert left is None and "Do everything that you may do" in page.text, "also for the command line"


def test_should_give_a_device_what_it_asked_for_until_the_person_signs_out(keiko, admin):
    import httpx2

    http = httpx2.Client(base_url=keiko.url, trust_env=False)
    begun = http.post("/oauth/device_authorization", data={"client_id": "keiko-cli", "scope": "tasks.read"}).json()
    browser = Browser(keiko)
    page, _ = browser.sign_in(begun["verification_uri_complete"])
    assert "Connected" in page.text, page.text
    polled = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "client_id": "keiko-cli", "device_code": begun["device_code"]}
    token = http.post("/oauth/token", data=polled).json()
    api = keiko.client(token=token["access_token"])
    assert token["scope"] == "tasks.read" and api.get("/tasks").status_code == 200
    refused(api.get("/users"), 403)
    page, _ = browser.visit("/oauth/logout")
    browser.send(page, decision="allow")
    refused(api.get("/tasks"), 401)


def test_should_narrow_a_token_to_a_part_that_is_asked_for_later(keiko, app):
    code, verifier = app.code(scope="discovery.read tasks.read")
    tokens = app.redeem(code, verifier, resource=f"{keiko.url}/mcp").json()
    assert claims_of(tokens["access_token"])["aud"] == f"{keiko.url}/mcp"
    refused(keiko.client(token=tokens["access_token"]).get("/tasks"), 401)
    assert claims_of(app.refresh(tokens["refresh_token"]).json()["access_token"])["aud"] == keiko.url


def test_should_let_a_person_take_back_what_was_allowed(keiko, admin):
    person, app = keiko.user(admin, ["user"]), App(keiko, admin)
    browser, verifier = Browser(keiko), secrets.token_urlsafe(48)
    _, left = browser.sign_in(app.url(verifier), person.name, person.password)
    tokens = app.redeem(query(left)["code"], verifier).json()
    consent = next(c for c in done(person.get("/auth/consents")) if c["attributes"]["client_id"] == app.client_id)
    assert consent["attributes"]["scopes"] == ["openid", "profile", "tasks.read"]
    refused(keiko.user(admin, ["user"]).delete(f"/auth/consents/{consent['id']}"), 404, "CONSENT_NOT_FOUND")
    assert person.delete(f"/auth/consents/{consent['id']}").status_code == 204
    refused(keiko.client(token=tokens["access_token"]).get("/auth/me"), 401)
    error(app.refresh(tokens["refresh_token"]), "invalid_grant")
    _, left = browser.visit(app.url(verifier, prompt="none"))
    assert query(left)["error"] in ("consent_required", "login_required"), "asked again"


# Passwords


def test_should_refuse_passwords_that_everybody_knows(new_keiko, tmp_path):
    listed = tmp_path / "known.txt"
    listed.write_text("correct horse battery staple\npassword1234\n")
    keiko = new_keiko(env={"KEIKO_PASSWORD_BREACHED_FILE": str(listed), "KEIKO_PASSWORD_CHARS_MIN": "12"}).start()
    admin = keiko.login()
    for bad in ("password1234", "correct horse battery staple", "short pass"):
        refused(admin.post("/users", {"username": unique("u"), "password": bad, "roles": []}), 422, "PASSWORD_REFUSED")
    person = keiko.user(admin, ["user"])
    other = keiko.login(person.name, person.password)
    refused(person.post("/auth/password", {"current": "wrong wrong wrong", "new": "a quite different sentence"}), 403, "PASSWORD_WRONG")
    refused(person.post("/auth/password", {"current": person.password, "new": "password1234"}), 422, "PASSWORD_REFUSED")
    done(person.post("/auth/password", {"current": person.password, "new": "a quite different sentence"}))
    assert person.get("/auth/me").status_code == 200 and other.get("/auth/me").status_code == 401, "the other sessions end"
    assert keiko.login(person.name, "a quite different sentence").get("/auth/me").status_code == 200
