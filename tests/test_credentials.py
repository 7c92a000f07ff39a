"""How Keiko is let in at MCP servers: accounts for everybody or for one person, tokens renewed in time, and nobody's secrets anywhere else."""

import base64
import concurrent.futures
import threading
import time
from urllib.parse import parse_qs, urlsplit

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from guarded import MODERN, Guarded
from harness import ADMIN_PASSWORD, command, done, refused, unique, until
from mcp_clients import Legacy, Modern
from oauth import Browser, service_app
from tokens import claims_of

KEIKO_ENV = {"KEIKO_GATEWAY_ALLOW_PRIVATE": "true"}
PASSWORD = "a long enough password"
ERAS = ["2025-11-25", MODERN]


@pytest.fixture(params=ERAS)
def guarded(request):
    with Guarded(request.param) as server:
        yield server


@pytest.fixture
def one():
    with Guarded() as server:
        yield server


def registered(admin, guarded, **oauth):
    """Makes the server known. Answers its name."""
    name = unique("g").replace("-", "")
    transport = {"type": "http", "url": guarded.url, **({"oauth": oauth} if oauth else {})}
    done(admin.post("/mcp-servers", {"name": name, "transport": transport}), 201)
    return name


def status(admin, name):
    return done(admin.get(f"/mcp-servers/{name}"))["attributes"]


def ready(admin, name):
    return until(lambda: (s := status(admin, name))["status"] == "ready" and s, f"{name} is ready")


def away(address):
    """At the authorization server, which allows it at once and sends the browser back. (Without cookies: they know no ports.)"""
    answer = httpx2.get(address, follow_redirects=False, trust_env=False)
    assert answer.status_code == 302, answer.text
    return answer.headers["location"]


def connect(keiko, name, who=("admin", ADMIN_PASSWORD), browser=None, **query):
    """A person connects the server in a browser. Answers the last page."""
    browser = browser or Browser(keiko)
    page, left = browser.sign_in(f"/oauth/connect/{name}" + (f"?for={query['for_']}" if query else ""), *who)
    assert left is None
    if "Connect" not in page.text or "decision" not in page.text:
        return page
    page, left = browser.send(page, decision="connect")
    assert page is None, page.text
    page, left = browser.visit(away(left))
    assert left is None
    return page


def person(keiko, admin):
    """Somebody who may call tools, and how they sign in at a browser."""
    client = keiko.user(admin, ["developer"], PASSWORD)
    client.who = (client.name, PASSWORD)
    return client


def call(client, name, tool="whoami"):
    return client.post(f"/tools/{name}__{tool}/actions/call", {"arguments": {}})


def said(answer):
    return done(answer)["attributes"]["content"][0]["text"]


def credential(client, name, owner):
    return done(client.get(f"/mcp-servers/{name}/credentials/{owner}"))["attributes"]


def kinds(admin, name):
    id_ = done(admin.get(f"/mcp-servers/{name}/credentials/everybody"))["id"]
    return [event["type"].rsplit(".", 1)[1] for event in admin.events() if event["stream"] == id_]


# One account for everybody


def test_should_be_let_in_with_the_account_that_somebody_connected(keiko, admin, guarded):
    name = registered(admin, guarded)
    failed = until(lambda: (s := status(admin, name))["status"] == "failed" and s, "it lets nobody in")
    assert "connect it to an account" in failed["reason"] and failed["connect_url"] == f"{keiko.url}/oauth/connect/{name}"
    page = connect(keiko, name)
    assert page.status_code == 200 and "Connected" in page.text
    server = ready(admin, name)
    assert server["client"] == {"issuer": guarded.base, "client_id": next(iter(guarded.clients)), "is_given": False}
    assert said(call(admin, name)) == "ada"
    kept = credential(admin, name, "everybody")
    assert (kept["source"], kept["status"], kept["issuer"], kept["scopes"], kept["is_renewable"]) == ("oauth", "active", guarded.base, ["read"], True)
    asked = guarded.asked[-1]
    assert asked["resource"] == guarded.url and asked["code_challenge_method"] == "S256" and asked["scope"] == "read"
    registration = next(iter(guarded.clients.values()))
    [back] = registration["redirect_uris"]
    assert back.startswith(f"{keiko.url}/oauth/connect-back/") and asked["redirect_uri"] == back and registration["application_type"] == "native"
    assert "refresh_token" in registration["grant_types"]


def test_should_never_show_the_callers_credentials_to_a_server(keiko, admin, guarded):
    name = registered(admin, guarded)
    browser = Browser(keiko)
    connect(keiko, name, browser=browser)
    ready(admin, name)
    key = done(admin.post("/api-keys", {"name": unique("key")}), 201)["attributes"]["key"]
    assert said(call(admin, name)) == "ada" and said(call(keiko.client(api_key=key), name)) == "ada"
    mcp = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": f"{name}__whoami", "arguments": {}, "_meta": {
        "io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"}, "io.modelcontextprotocol/clientCapabilities": {}}}}
    headers = {"Mcp-Method": "tools/call", "Mcp-Name": f"{name}__whoami", "MCP-Protocol-Version": MODERN, "Accept": "application/json, text/event-stream"}
    answer = keiko.client(api_key=key).post("/mcp", mcp, headers)
    assert answer.status_code == 200 and "ada" in answer.text, answer.text
    seen = guarded.bytes_seen()
    assert len(seen) > 2_000
    cookies = [value for name, value in browser.http.cookies.items() if "login" in name]
    for secret in [admin.session["access_token"], admin.session["refresh_token"], key, key.rsplit("_", 1)[1], ADMIN_PASSWORD, *cookies]:
        assert len(secret) > 8 and secret.encode() not in seen


def test_should_keep_tokens_from_every_place_but_the_vault(new_keiko):
    keiko = new_keiko(env=KEIKO_ENV).start()
    admin = keiko.login()
    with Guarded() as guarded:
        name = registered(admin, guarded)
        connect(keiko, name)
        ready(admin, name)
        refused(call(admin, name, "leak"), 502, "TOOL_REFUSED")
        put = unique("static-token")
        done(admin.put(f"/mcp-servers/{name}/credentials/me", {"token": put}))
        secrets = [*guarded.tokens, *guarded.refreshes, *(client["client_secret"] for client in guarded.clients.values()), put]
        shown = [admin.get(f"/mcp-servers/{name}").text, admin.get(f"/mcp-servers/{name}/credentials").text, str(admin.events())]
        shown += [str(done(admin.get("/journal", limit=500)))]
        keiko.stop()
        written = [path.read_bytes() for path in keiko.data_dir.rglob("*") if path.is_file()]
        for secret in secrets:
            assert not any(secret in text for text in shown), secret
            assert secret not in keiko.logs() and not any(secret.encode() in text for text in written), secret


def test_should_take_what_a_server_repeats_of_its_token_out_of_answers(keiko, admin, guarded):
    name = registered(admin, guarded)
    connect(keiko, name)
    ready(admin, name)
    error = refused(call(admin, name, "leak"), 502, "TOOL_REFUSED")
    assert "no such thing: ********" in error["message"]
    assert not any(token in str(error) for token in guarded.tokens)


# An account for each person


def test_should_use_the_account_of_whoever_calls(keiko, admin, guarded):
    name = registered(admin, guarded, per="user")
    guarded.account = "the catalogue"
    connect(keiko, name, for_="everybody")
    ready(admin, name)
    ada, grace, nobody = (person(keiko, admin) for _ in range(3))
    for somebody, account in ((ada, "ada"), (grace, "grace")):
        guarded.account = account
        page = connect(keiko, name, somebody.who)
        assert "Connected" in page.text
    assert [said(call(somebody, name)) for somebody in (ada, grace, ada)] == ["ada", "grace", "ada"]
    error = refused(call(nobody, name), 403, "CREDENTIAL_REQUIRED")
    assert error["details"]["connect_url"] == f"{keiko.url}/oauth/connect/{name}"
    # What lists the tools is never used for a call, whoever calls.
    refused(call(admin, name), 403, "CREDENTIAL_REQUIRED")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: (n % 2, said(call((ada, grace)[n % 2], name))), range(64)))
    assert all(account == ("ada", "grace")[who] for who, account in answers)
    owners = {entry["attributes"]["owner"] for entry in done(admin.get(f"/mcp-servers/{name}/credentials"))}
    assert owners == {"everybody", ada.id, grace.id}


def test_should_use_the_persons_account_for_an_agent_that_acts_for_them(keiko, admin, one):
    name = registered(admin, one, per="user")
    connect(keiko, name, for_="everybody")
    ready(admin, name)
    ada = person(keiko, admin)
    one.account = "ada"
    connect(keiko, name, ada.who)
    service, agent = service_app(keiko, admin, ["developer"]), keiko.agent(admin, "x")
    exchanged = service.post(
        "token", grant_type="urn:ietf:params:oauth:grant-type:token-exchange", subject_token=ada.session["access_token"],
        subject_token_type="urn:ietf:params:oauth:token-type:access_token", scope="tools.call",
    ).json()
    assert claims_of(exchanged["access_token"])["act"], exchanged
    assert said(call(keiko.client(token=exchanged["access_token"]), name)) == "ada"
    refused(call(agent.api, name), 403, "CREDENTIAL_REQUIRED")
    # Whoever acts for somebody, or only calls tools in their name, does not change whose account that is.
    delegate = keiko.client(token=exchanged["access_token"])
    refused(delegate.put(f"/mcp-servers/{name}/credentials/me", {"token": "mallorys-token"}), 403, "PERMISSION_DENIED")
    refused(delegate.delete(f"/mcp-servers/{name}/credentials/me"), 403, "PERMISSION_DENIED")
    # An agent by itself has what somebody put in for it.
    one.tokens["agents-own-token"] = {"account": "robot", "scopes": [], "until": time.monotonic() + 600, "family": ""}
    done(admin.put(f"/mcp-servers/{name}/credentials/{agent.id}", {"token": "agents-own-token"}))
    assert said(call(agent.api, name)) == "robot"


def test_should_let_people_change_their_own_credential_only(keiko, admin, one):
    name = registered(admin, one, per="user")
    ada, grace = person(keiko, admin), person(keiko, admin)
    one.tokens["adas-token"] = {"account": "ada", "scopes": [], "until": time.monotonic() + 600, "family": ""}
    done(ada.put(f"/mcp-servers/{name}/credentials/me", {"token": "adas-token"}))
    for owner in (ada.id, "everybody", grace.id):
        for answer in (grace.get(f"/mcp-servers/{name}/credentials/{owner}"), grace.put(f"/mcp-servers/{name}/credentials/{owner}", {"token": "x"}), grace.delete(f"/mcp-servers/{name}/credentials/{owner}")):
            refused(answer, 403, "PERMISSION_DENIED")
    assert credential(ada, name, "me")["owner"] == ada.id and credential(admin, name, ada.id)["source"] == "token"
    refused(admin.put(f"/mcp-servers/{name}/credentials/user_01h455vb4pex5vsknk084sn02q", {"token": "x"}), 404, "CREDENTIAL_NOT_FOUND")
    page = connect(keiko, name, grace.who, for_="everybody")
    assert page.status_code == 403 and "mcp-servers.update" in page.text
    refused(grace.get(f"/mcp-servers/{name}/credentials/me"), 404, "CREDENTIAL_NOT_FOUND")
    assert ada.delete(f"/mcp-servers/{name}/credentials/me").status_code == 204
    refused(ada.get(f"/mcp-servers/{name}/credentials/me"), 404, "CREDENTIAL_NOT_FOUND")
    stranger = keiko.tenant(admin)
    refused(stranger.get(f"/mcp-servers/{name}/credentials/me"), 404, "MCP_SERVER_NOT_FOUND")


@pytest.mark.parametrize("body", [{}, {"token": ""}, {"token": "a b"}, {"token": "a\r\nX: y"}, {"token": "ä"}, {"token": "x" * 9000}, {"token": 1}, {"token": "x", "expires_at": "2020-01-01T00:00:00Z"}, {"token": "x", "expires_at": "soon"}, {"token": "x", "more": 1}])
def test_should_refuse_what_is_no_token(admin, one, body):
    name = registered(admin, one)
    refused(admin.put(f"/mcp-servers/{name}/credentials/everybody", body), (400, 422))


def test_should_forget_credentials_with_their_owner_and_their_server(keiko, admin, one):
    name = registered(admin, one, per="user")
    ada = person(keiko, admin)
    connect(keiko, name, ada.who)
    assert len(done(admin.get(f"/mcp-servers/{name}/credentials"))) == 1
    assert admin.delete(f"/users/{ada.id}").status_code == 204
    assert done(admin.get(f"/mcp-servers/{name}/credentials")) == []
    done(admin.put(f"/mcp-servers/{name}/credentials/everybody", {"token": "x"}))
    id_ = done(admin.get(f"/mcp-servers/{name}/credentials/everybody"))["id"]
    assert admin.delete(f"/mcp-servers/{name}").status_code == 204
    assert [event["type"] for event in admin.events() if event["stream"] == id_][-1] == "registry.credential.removed"


def test_should_give_tokens_back_that_are_not_needed_any_more(keiko, admin, one):
    name = registered(admin, one)
    connect(keiko, name)
    ready(admin, name)
    assert admin.delete(f"/mcp-servers/{name}/credentials/everybody").status_code == 204
    until(lambda: not one.tokens and not one.refreshes, "its authorization server knows them no more")
    until(lambda: status(admin, name)["status"] == "failed", "it lets nobody in any more")


# In time


def test_should_renew_a_token_before_it_ends_and_once_for_all_who_need_it(keiko, admin):
    with Guarded(lifetime=8) as guarded:
        name = registered(admin, guarded)
        connect(keiko, name)
        ready(admin, name)
        begun, answers = time.monotonic(), []
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            while time.monotonic() - begun < 14:
                answers += list(pool.map(lambda _: said(call(admin, name)), range(32)))
        assert set(answers) == {"ada"} and len(answers) > 100
        assert guarded.reused == 0 and 1 <= guarded.renewals <= 4, guarded.renewals
        renewals = kinds(admin, name)
        assert renewals.count("renewal_begun") == renewals.count("renewed") == guarded.renewals


def test_should_renew_a_token_that_a_server_does_not_accept_any_more(keiko, admin, guarded):
    name = registered(admin, guarded)
    connect(keiko, name)
    ready(admin, name)
    guarded.forget_tokens()
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: call(admin, name), range(50)))
    assert [said(answer) for answer in answers] == ["ada"] * 50
    assert (guarded.renewals, guarded.reused) == (1, 0)


def test_should_say_when_somebody_must_connect_again(keiko, admin, one):
    name = registered(admin, one)
    connect(keiko, name)
    ready(admin, name)
    one.forget_tokens()
    one.refreshes = {}
    error = refused(call(admin, name), 403, "CREDENTIAL_REQUIRED")
    assert "connect it again" in error["message"] or "no good any more" in error["message"], error
    kept = until(lambda: (c := credential(admin, name, "everybody"))["status"] == "refused" and c, "the credential is refused")
    assert "invalid_grant" in kept["reason"]
    one.account = "ada again"
    connect(keiko, name)
    until(lambda: call(admin, name).status_code == 200, "it is let in again")
    assert said(call(admin, name)) == "ada again"


def test_should_outlast_an_authorization_server_that_is_away(keiko, admin):
    with Guarded(lifetime=8) as guarded:
        name = registered(admin, guarded)
        connect(keiko, name)
        ready(admin, name)
        guarded.is_down = True
        error = until(lambda: (a := call(admin, name)).status_code == 403 and refused(a, 403, "CREDENTIAL_REQUIRED"), "the token has ended", timeout=20, every=0.3)
        assert "does not answer" in error["message"]
        assert credential(admin, name, "everybody")["status"] == "active"
        guarded.is_down = False
        until(lambda: call(admin, name).status_code == 200, "it is let in again by itself", timeout=40, every=0.3)
        assert guarded.reused == 0


@pytest.mark.timeout(180)
def test_should_go_on_after_a_crash_also_in_the_middle_of_a_renewal(new_keiko):
    keiko = new_keiko(env=KEIKO_ENV).start()
    admin = keiko.login()
    with Guarded() as guarded:
        name = registered(admin, guarded)
        connect(keiko, name)
        ready(admin, name)
        keiko.kill()
        keiko.restart()
        admin = keiko.login()
        ready(admin, name)
        assert said(call(admin, name)) == "ada"
        # It asks for another token, and ends before that comes.
        guarded.forget_tokens()
        guarded.delay = 3
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            lost = pool.submit(call, admin, name)
            until(lambda: guarded.waiting, "it asks for another token")
            keiko.kill()
            assert lost.exception() is not None
            until(lambda: guarded.renewals == 1, "its authorization server gave one")
        guarded.delay = 0
        keiko.restart()
        admin = keiko.login()
        # On a database that others may use, too, nobody takes over before its time is up (30 s).
        # The answer is lost, and with it the one refresh token that was good: it says so, and somebody can help.
        error = until(lambda: (a := call(admin, name)).status_code == 403 and refused(a, 403, "CREDENTIAL_REQUIRED"), "it says what to do", timeout=90, every=0.5)
        assert "connect it again" in error["message"] and credential(admin, name, "everybody")["status"] == "refused"
        connect(keiko, name)
        until(lambda: call(admin, name).status_code == 200, "it is let in again")


# More rights


def test_should_ask_for_what_a_server_wants_beside_what_it_has_given(keiko, admin, guarded):
    name = registered(admin, guarded)
    connect(keiko, name)
    ready(admin, name)
    error = refused(call(admin, name, "write"), 403, "CREDENTIAL_REQUIRED")
    assert "'write'" in error["message"]
    assert credential(admin, name, "everybody")["scopes_wanted"] == ["write"]
    assert said(call(admin, name)) == "ada", "what it may do it goes on doing"
    refused(call(admin, name, "write"), 403, "CREDENTIAL_REQUIRED")
    assert kinds(admin, name).count("scopes_wanted") == 1
    connect(keiko, name)
    assert set(guarded.asked[-1]["scope"].split()) == {"read", "write"}
    until(lambda: call(admin, name, "write").status_code == 200, "it may write")
    assert credential(admin, name, "everybody")["scopes_wanted"] == []


# Without anybody's help


def own_client(guarded, secret="s3cr3t"):
    guarded.clients["robot"] = {"client_id": "robot", "client_secret": secret}


def test_should_get_tokens_for_itself_where_that_is_said(keiko, admin, guarded):
    own_client(guarded)
    name = registered(admin, guarded, grant="client_credentials", client={"id": "robot", "issuer": guarded.base, "authentication": {"type": "secret", "secret": "s3cr3t"}})
    ready(admin, name)
    assert said(call(admin, name)) == "client robot"
    assert credential(admin, name, "everybody")["grant"] == "client_credentials"
    assert said(call(admin, name, "write")) == "client robot", "it gets more rights by itself, too"
    shown = status(admin, name)["transport"]["oauth"]
    assert shown["client"] == {"id": "robot", "issuer": guarded.base, "authentication": {"type": "secret"}} and "s3cr3t" not in str(shown)
    # The known secret stays where null is said.
    kept = {"id": "robot", "issuer": guarded.base, "authentication": {"type": "secret", "secret": None}}
    done(admin.put(f"/mcp-servers/{name}", {"name": name, "transport": {"type": "http", "url": guarded.url, "oauth": {"grant": "client_credentials", "client": kept}}}))
    guarded.forget_tokens()
    until(lambda: call(admin, name).status_code == 200, "it is let in with the secret that it knows")


def test_should_show_who_it_is_by_a_signature(keiko, admin, one):
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    client = {"id": "robot", "issuer": one.base, "authentication": {"type": "private_key", "private_key": pem}}
    name = registered(admin, one, grant="client_credentials", client=client)
    ready(admin, name)
    grant = one.grants[-1]
    said_ = jwt.decode(grant["client_assertion"], key.public_key(), algorithms=["ES256"], audience=one.base)
    assert said_["iss"] == said_["sub"] == "robot" and said_["exp"] - said_["iat"] <= 60 and said_["jti"]
    assert "BEGIN PRIVATE KEY" not in admin.get(f"/mcp-servers/{name}").text


@pytest.mark.parametrize("oauth", [
    {"grant": "client_credentials"}, {"grant": "client_credentials", "client": {"id": "a", "authentication": {"type": "secret", "secret": "x"}}}, {"grant": "client_credentials", "per": "user", "client": {"id": "a", "authentication": {"type": "secret", "secret": "x"}}},
    {"client": {"id": "a", "authentication": {"type": "secret", "secret": None}}}, {"client": {"id": "a", "authentication": {"type": "private_key", "private_key": "x"}}},
    {"client": {"id": "", "authentication": {"type": "none"}}}, {"scopes": ["a b"]}, {"scopes": ["s"] * 51}, {"per": "team"}, {"client": {"id": "a"}}, {"more": 1},
])  # fmt: skip
def test_should_refuse_what_cannot_work(admin, one, oauth):
    body = {"name": unique("g").replace("-", ""), "transport": {"type": "http", "url": one.url, "oauth": oauth}}
    refused(admin.post("/mcp-servers", body), (400, 422))


def test_should_not_take_a_header_and_tokens_for_the_same(admin, one):
    transport = {"type": "http", "url": one.url, "headers": {"authorization": "Bearer x"}, "oauth": {"per": "user"}}
    refused(admin.post("/mcp-servers", {"name": unique("g").replace("-", ""), "transport": transport}), 422, "RULE_VIOLATED")
    echo = {"name": unique("g").replace("-", ""), "transport": {"type": "stdio", "command": "true"}}
    done(admin.post("/mcp-servers", echo), 201)
    refused(admin.put(f"/mcp-servers/{echo['name']}/credentials/everybody", {"token": "x"}), 422, "CREDENTIAL_UNUSABLE")


# Attacks


def test_should_not_join_an_account_to_somebody_else(keiko, admin, one):
    name = registered(admin, one, per="user")
    mallory, ada = person(keiko, admin), person(keiko, admin)
    browser = Browser(keiko)
    page, _ = browser.sign_in(f"/oauth/connect/{name}", *mallory.who)
    _, left = browser.send(page, decision="connect")
    # Mallory sends Ada to the authorization server in her own name; Ada comes back with a code of her account.
    victim = Browser(keiko)
    victim.sign_in(f"/oauth/connect/{name}", *ada.who)
    back = away(left)
    page, _ = victim.visit(back)
    assert page.status_code == 400 and "belongs to nothing that you began" in page.text
    stranger, _ = Browser(keiko).visit(back)
    assert stranger.status_code == 400
    for somebody in (mallory, ada):
        refused(somebody.get(f"/mcp-servers/{name}/credentials/me"), 404)
    assert not one.grants, "the code was shown to nobody"


def test_should_use_an_answer_once_and_only_as_it_came(keiko, admin, one):
    name = registered(admin, one)
    browser = Browser(keiko)
    page, _ = browser.sign_in(f"/oauth/connect/{name}")
    _, left = browser.send(page, decision="connect")
    back = away(left)
    state = parse_qs(urlsplit(back).query)["state"][0]
    for changed in (back.replace(state, state[:-4] + "AAAA"), back.replace(state, ""), back + "&code=other", back.replace("&iss=", "&was=")):
        page, _ = browser.visit(changed)
        assert page.status_code == 400, changed
    assert not one.grants
    page, _ = browser.visit(back)
    assert "Connected" in page.text
    page, _ = browser.visit(back)
    assert page.status_code == 400 and "invalid_grant" in page.text


def test_should_not_show_a_code_where_another_authorization_server_answered(keiko, admin, one):
    name = registered(admin, one)
    one.iss = "https://evil.example"
    page = connect(keiko, name)
    assert page.status_code == 400 and "another authorization server answered" in page.text and not one.grants


def test_should_not_take_a_code_of_one_authorization_server_to_another(keiko, admin, one):
    connect(keiko, registered(admin, one))
    [client] = one.clients
    with Guarded() as evil:
        # It sends people to the honest one, with the client that Keiko is there, and wants to have the code itself.
        evil.authorization_endpoint, evil.names_itself, evil.gives_client = f"{one.base}/authorize", False, client
        one.names_itself = False
        name = registered(admin, evil)
        browser = Browser(keiko)
        page, _ = browser.sign_in(f"/oauth/connect/{name}")
        _, left = browser.send(page, decision="connect")
        assert left.startswith(one.base) and f"client_id={client}" in left
        assert httpx2.get(left, trust_env=False).status_code == 400, "it knows another address for the answer"
        # An authorization server that does not look at it sends the answer where the other's belong.
        state, mine = parse_qs(urlsplit(left).query)["state"][0], next(iter(one.clients.values()))["redirect_uris"][0]
        page, _ = browser.visit(f"{mine}?code=stolen&state={state}")
        assert page.status_code == 400 and not evil.grants


def test_should_show_the_page_again_when_it_says_something_else(keiko, admin, one):
    name = registered(admin, one)
    browser = Browser(keiko)
    page, _ = browser.sign_in(f"/oauth/connect/{name}")
    one.scopes = ["read", "delete-everything"]
    page, left = browser.send(page, decision="connect")
    assert left is None and page.status_code == 400 and "look at the page again" in page.text and not one.asked


def test_should_not_lose_a_token_with_the_call_that_needed_it(keiko, admin, one):
    name = registered(admin, one)
    connect(keiko, name)
    ready(admin, name)
    one.forget_tokens()
    one.delay = 2
    impatient = admin.post(f"/tools/{name}__whoami/actions/call", {"arguments": {}, "timeout_ms": 200})
    assert impatient.status_code == 502, impatient.text
    one.delay = 0
    assert said(until(lambda: (a := call(admin, name)).status_code == 200 and a, "the next call gets it")) == "ada"
    assert (one.renewals, one.reused) == (1, 0)


@pytest.mark.parametrize(("what", "value"), [
    ("issuer", "https://honest.example"), ("resource", "https://evil.example/mcp"), ("authorization_endpoint", "javascript:alert(1)"),
    ("authorization_endpoint", "file:///etc/passwd"),
])  # fmt: skip
def test_should_send_nobody_where_the_descriptions_do_not_fit(keiko, admin, one, what, value):
    name = registered(admin, one)
    setattr(one, what, value)
    page = connect(keiko, name)
    assert page.status_code == 400 and "could not be connected" in page.text and "<form" not in page.text
    assert not one.asked and not one.clients


def test_should_show_nothing_at_another_address_than_it_was_given_for(keiko, admin, one):
    client = {"id": "robot", "authentication": {"type": "secret", "secret": "s3cr3t-of-the-first"}}
    own_client(one, "s3cr3t-of-the-first")
    name = unique("g").replace("-", "")
    transport = {"type": "http", "url": one.url, "headers": {"X-Key": "a-header-of-the-first"}, "oauth": {"client": client}}
    done(admin.post("/mcp-servers", {"name": name, "transport": transport}), 201)
    connect(keiko, name)
    ready(admin, name)
    with Guarded() as other:
        # Nobody gets at a secret by sending it to themselves.
        kept = {"id": "robot", "authentication": {"type": "secret", "secret": None}}
        for wanted in ({"headers": {"X-Key": None}}, {"oauth": {"client": kept}}):
            refused(admin.put(f"/mcp-servers/{name}", {"name": name, "transport": {"type": "http", "url": other.url, **wanted}}), 422, "RULE_VIOLATED")
        done(admin.put(f"/mcp-servers/{name}", {"name": name, "transport": {"type": "http", "url": other.url}}))
        until(lambda: "elsewhere" in (status(admin, name)["reason"] or ""), "it says why it lets nobody in")
        refused(call(admin, name), 403, "CREDENTIAL_REQUIRED")
        seen = other.bytes_seen()
        assert not any(secret.encode() in seen for secret in [*one.tokens, *one.refreshes, "s3cr3t-of-the-first", "a-header-of-the-first"])
        connect(keiko, name)
        until(lambda: call(admin, name).status_code == 200, "it is let in where it is now")


def test_should_not_show_a_given_secret_to_another_authorization_server(keiko, admin, one):
    client = {"id": "robot", "authentication": {"type": "secret", "secret": "s3cr3t-of-the-first"}}
    own_client(one, "s3cr3t-of-the-first")
    name = registered(admin, one, client=client)
    connect(keiko, name)
    ready(admin, name)
    with Guarded() as other:
        described = one.described
        one.described = lambda: (200, {}, {"resource": one.url, "authorization_servers": [other.base]})
        page = connect(keiko, name)
        assert page.status_code == 400 and other.base in page.text, page.text
        assert b"s3cr3t-of-the-first" not in other.bytes_seen() and not other.asked
        assert base64.b64encode(b"robot:s3cr3t-of-the-first") not in other.bytes_seen()
        one.described = described


def test_should_reach_no_private_authorization_server_unless_that_is_allowed(new_keiko):
    keiko = new_keiko(env={"KEIKO_GATEWAY_ALLOW_PRIVATE": "false"}).start()
    admin = keiko.login()
    refused(admin.post("/mcp-servers", {"name": "g", "transport": {"type": "http", "url": "http://127.0.0.1:9/mcp"}}), 422, "TARGET_REFUSED")


def test_should_describe_itself_to_authorization_servers(keiko, admin, one):
    document = keiko.client().get("/oauth/client.json").json()
    assert document["client_id"] == f"{keiko.url}/oauth/client.json" and document["redirect_uris"] == [f"{keiko.url}/oauth/connect-back"]
    assert document["token_endpoint_auth_method"] == "none" and "refresh_token" in document["grant_types"]


# Another Keiko as the server


def test_should_be_let_in_at_another_keiko(keiko, admin, new_keiko, tmp_path):
    other = new_keiko("other", env={"KEIKO_OAUTH_REGISTRATION": "true", "KEIKO_TOKEN_TTL": "10s"}).start()
    boss = other.login()
    name = unique("k").replace("-", "")
    done(admin.post("/mcp-servers", {"name": name, "transport": {"type": "http", "url": f"{other.url}/mcp"}}), 201)
    browser, there = Browser(keiko), Browser(other)
    page, left = browser.sign_in(f"/oauth/connect/{name}")
    page, left = browser.send(page, decision="connect")
    assert left.startswith(f"{other.url}/oauth/authorize?")
    page, left = there.sign_in(left)
    assert left.startswith(f"{keiko.url}/oauth/connect-back/")
    page, _ = browser.visit(left)
    assert "Connected" in page.text, page.text
    ready(admin, name)
    tool = next(t["attributes"]["name"] for t in admin.everything("/tools") if t["attributes"]["name"].startswith(f"{name}__"))
    assert admin.get(f"/tools/{tool}").status_code == 200
    before = credential(admin, name, "everybody")["expires_at"]
    until(lambda: credential(admin, name, "everybody")["expires_at"] > before or not call_any(admin, tool), "its token was renewed", timeout=30, every=0.5)
    ends = [event["type"] for event in boss.events() if event["type"] == "identity.session.refreshed"]
    assert status(admin, name)["status"] == "ready" and credential(admin, name, "everybody")["status"] == "active", ends


def call_any(admin, tool):
    return admin.post(f"/tools/{tool}/actions/call", {"arguments": {}}).status_code == 0


# A client that can send a person to an address

OPENS = {"elicitation": {"form": {}, "url": {}}}


@pytest.mark.parametrize("client", [Legacy, Modern])
def test_should_send_the_person_behind_a_client_to_connect_and_go_on(keiko, admin, guarded, client):
    name = registered(admin, guarded, per="user")
    connect(keiko, name, for_="everybody")
    ready(admin, name)
    ada = person(keiko, admin)
    bearer, asked = {"Authorization": f"Bearer {ada.session['access_token']}"}, []

    def opens(method, params):
        asked.append((method, params))
        guarded.account = "ada by her client"
        threading.Thread(target=lambda: (time.sleep(1), connect(keiko, name, ada.who)), daemon=True).start()
        return {"action": "accept"}

    with client(f"{keiko.url}/mcp", bearer, capabilities=OPENS, answers=opens) as mcp:
        assert mcp.call(f"{name}__whoami")[0] == "ada by her client"
        assert mcp.call(f"{name}__whoami")[0] == "ada by her client"
    [(method, params)] = asked
    assert method == "elicitation/create" and params["mode"] == "url" and params["url"] == f"{keiko.url}/oauth/connect/{name}"
    assert params["message"] and params["elicitationId"]


@pytest.mark.parametrize("client", [Legacy, Modern])
def test_should_send_nobody_twice_and_nobody_who_cannot_go(keiko, admin, one, client):
    name = registered(admin, one, per="user")
    connect(keiko, name, for_="everybody")
    ready(admin, name)
    ada = person(keiko, admin)
    bearer, asked = {"Authorization": f"Bearer {ada.session['access_token']}"}, []
    declines = lambda method, params: asked.append(method) or {"action": "decline"}
    with client(f"{keiko.url}/mcp", bearer, capabilities=OPENS, answers=declines) as mcp:
        answer = mcp.ask("tools/call", {"name": f"{name}__whoami", "arguments": {}})[0]
    assert "CREDENTIAL_REQUIRED" in str(answer) and asked == ["elicitation/create"]
    # One that knows forms only gets the refusal, and so does somebody who may not connect the account of all.
    with client(f"{keiko.url}/mcp", bearer, capabilities={"elicitation": {}}, answers=declines) as mcp:
        assert "/oauth/connect/" in str(mcp.ask("tools/call", {"name": f"{name}__whoami", "arguments": {}})[0])
    shared = registered(admin, one)
    connect(keiko, shared)
    ready(admin, shared)
    with client(f"{keiko.url}/mcp", bearer, capabilities=OPENS, answers=declines) as mcp:
        assert "CREDENTIAL_REQUIRED" in str(mcp.ask("tools/call", {"name": f"{shared}__write", "arguments": {}})[0])
    assert asked == ["elicitation/create"]


# On the command line


def test_should_connect_and_disconnect_on_the_command_line(keiko, admin, one, tmp_path):
    name = registered(admin, one)
    key = done(admin.post("/api-keys", {"name": unique("key")}), 201)["attributes"]["key"]
    env = {"KEIKO_SERVER": keiko.url, "KEIKO_API_KEY": key}
    run = lambda *args, **kw: command(tmp_path, *args, env=env, **kw)
    waiting = concurrent.futures.ThreadPoolExecutor(1).submit(run, "mcp", "servers", "connect", name, "--timeout", "20s")
    time.sleep(1.5)
    connect(keiko, name)
    connected = waiting.result()
    assert connected.returncode == 0 and f"/oauth/connect/{name}" in connected.stderr, connected.stderr
    listed = run("mcp", "servers", "credentials", name)
    assert listed.returncode == 0 and "everybody" in listed.stdout and "active" in listed.stdout
    assert run("mcp", "servers", "disconnect", name, "--owner", "everybody").returncode == 0
    refused(admin.get(f"/mcp-servers/{name}/credentials/everybody"), 404)
    token = tmp_path / "token"
    token.write_text("a-token-of-mine\n")
    put = run("mcp", "servers", "connect", name, "--token-file", str(token))
    assert put.returncode == 0 and "a-token-of-mine" not in put.stdout + put.stderr
    late = run("mcp", "servers", "connect", name, "--timeout", "1s")
    assert late.returncode != 0 and "not connected in time" in late.stderr
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t\n")
    added = run("mcp", "servers", "add", unique("c").replace("-", ""), "--url", one.url, "--client-id", "robot", "--client-secret-file", str(secret), "--issuer", one.base, "--client-credentials", "--scope", "read")
    assert added.returncode == 0, added.stderr
    assert run("mcp", "servers", "add", "x", "--per-user", "--", "true").returncode != 0
