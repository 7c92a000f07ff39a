"""How much may be asked for: by caller and class, by tenant, by address; in an emergency; on several replicas together."""

import collections
import json
import time
from concurrent.futures import ThreadPoolExecutor

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from harness import done, refused, unique, until
from oauth import service_app
from test_replicas import Fleet


def spent(client, path, times):
    """The answers to many requests, by status."""
    return collections.Counter(client.get(path).status_code for _ in range(times))


def test_should_say_how_much_is_left_and_when_to_come_back(new_keiko):
    keiko = new_keiko(env={"KEIKO_LIMIT_READ": "20/m", "KEIKO_LIMIT_WRITE": "5/m"}).start()
    admin = keiko.login()
    first = admin.get("/tasks")
    assert (first.headers["ratelimit-limit"], first.headers["ratelimit-remaining"]) == ("20", "19")
    # One more comes in each 3 s that the machine may take.
    assert 19 <= spent(admin, "/tasks", 30)[200] <= 24
    answer = until(lambda: (answer := admin.get("/tasks")).status_code == 429 and answer, "all are spent")
    refused(answer, 429, "RATE_LIMITED")
    assert answer.headers["ratelimit-remaining"] == "0" and 1 <= int(answer.headers["retry-after"]) <= 3
    assert int(answer.headers["ratelimit-reset"]) >= 50
    # Classes, callers and keys have their own; health has none.
    done(admin.post("/users", {"username": unique("user"), "password": "a long enough password", "roles": ["user"]}), 201)
    key = keiko.client(api_key=done(admin.post("/api-keys", {"name": "k", "permissions": ["tasks.read"]}), 201)["attributes"]["key"])
    assert key.get("/tasks").status_code == 200
    assert keiko.user(keiko.login(), ["user"]).get("/tasks").status_code == 200
    assert spent(keiko.client(), "/ready", 100) == {200: 100}
    wait = int(answer.headers["retry-after"])
    time.sleep(wait + 0.2)
    assert admin.get("/tasks").status_code == 200, "Retry-After was meant"


def test_should_keep_one_tenant_from_taking_everything(new_keiko):
    keiko = new_keiko(env={"KEIKO_LIMIT_TENANT": "40/m"}).start()
    admin = keiko.login()
    boss = keiko.tenant(admin)
    assert spent(boss, "/tasks", 60)[429] > 15
    assert admin.get("/tasks").status_code == 200


def test_should_give_a_tenant_limits_of_its_own(new_keiko):
    keiko = new_keiko().start()
    admin = keiko.login()
    boss, other = keiko.tenant(admin), keiko.tenant(admin)
    set_limits = lambda **limits: admin.post(f"/tenants/{boss.slug}/actions/set-limits", limits)  # noqa: E731
    shown = done(set_limits(requests="30/m", users_max=2, agents_max=1))["attributes"]["limits"]
    assert shown == {"requests": "30/m", "users_max": 2, "agents_max": 1}
    until(lambda: "ratelimit-limit" in boss.get("/tasks").headers, "it counts")
    assert spent(boss, "/tasks", 60)[429] > 25 and spent(other, "/tasks", 60) == {200: 60}
    keiko.restart(same_port=True)
    assert spent(keiko.login("boss", "another long password", boss.slug), "/tasks", 60)[429] > 25, "also after a restart"
    done(set_limits(users_max=2, agents_max=1))
    until(lambda: boss.get("/tasks").status_code == 200, "it is lifted")
    user = lambda: boss.post("/users", {"username": unique("user"), "password": "a long enough password", "roles": []})  # noqa: E731
    second = done(user(), 201)["id"]
    assert refused(user(), 422, "QUOTA_REACHED")["details"]["limit"] == 2
    assert boss.delete(f"/users/{second}").status_code == 204
    done(user(), 201)
    done(boss.post("/agents", {"name": "a"}), 201)
    refused(boss.post("/agents", {"name": "b"}), 422, "QUOTA_REACHED")
    done(set_limits(users_max=12))
    service = lambda n: boss.post("/users", {"username": f"service-{n}", "kind": "service", "roles": []}).status_code  # noqa: E731
    with ThreadPoolExecutor(32) as pool:
        made = list(pool.map(service, range(64)))
    assert (made.count(201), made.count(422)) == (10, 54), "at the same moment too"
    done(set_limits())
    done(boss.post("/agents", {"name": "b"}), 201)
    refused(set_limits(requests="many"), 400, "VALIDATION_FAILED")
    refused(admin.post("/tenants/default/actions/set-limits", {"users_max": 1}), 422, "RULE_VIOLATED")
    refused(boss.post(f"/tenants/{boss.slug}/actions/set-limits", {}), 403)


def test_should_look_at_no_more_credentials_of_an_address_that_guesses(new_keiko):
    keiko = new_keiko(env={"KEIKO_LIMIT_ADDRESS": "15/h", "KEIKO_LIMIT_AUTH": "8/h"}).start()
    admin = keiko.login()
    guesses = collections.Counter(keiko.client(api_key=f"kk_default_{n}").get("/tasks").status_code for n in range(30))
    assert guesses == {401: 15, 429: 15}
    logins = [keiko.client().post("/auth/login", {"username": unique("nobody"), "password": "wrong wrong"}) for _ in range(12)]
    assert collections.Counter(answer.status_code for answer in logins)[429] >= 4
    refused(keiko.client().post("/oauth/token"), 429, "RATE_LIMITED")
    assert keiko.client().get("/health").status_code == 200
    assert admin.get("/tasks").status_code == 429, "from an address that guesses nothing more is looked at, which is said in the documents"


def test_should_become_strict_in_one_call_and_normal_in_another(new_keiko):
    keiko = new_keiko(env={"KEIKO_LIMIT_READ": "1000/m"}).start()
    admin = keiko.login()
    assert spent(admin, "/tasks", 150) == {200: 150}
    done(admin.post("/security/actions/declare-emergency", {"reason": "stolen laptop"}))
    assert done(admin.get("/security/guard"))["attributes"]["emergency"] == "stolen laptop"
    strict = keiko.user(keiko.login(), ["developer"])
    assert spent(strict, "/tasks", 300)[429] >= 40, "a tenth"
    done(admin.post("/security/actions/lift-emergency", {}))
    free = keiko.user(admin, ["developer"])
    assert spent(free, "/tasks", 150) == {200: 150}


def test_should_lift_an_emergency_that_nobody_declared(new_keiko):
    admin = new_keiko().start().login()
    for _ in range(2):
        done(admin.post("/security/actions/lift-emergency", {}))


def test_should_share_limits_between_replicas(tmp_path):
    with Fleet(tmp_path, 2, KEIKO_LIMIT_READ="200/h") as fleet:
        first, second = fleet.replicas
        admin = first.login()
        key = done(admin.post("/api-keys", {"name": "k", "permissions": ["tasks.read"]}), 201)["attributes"]["key"]
        here, there = first.client(api_key=key), second.client(api_key=key)
        assert spent(here, "/tasks", 150) == {200: 150}
        left = until(lambda: (n := int(there.get("/tasks").headers["ratelimit-remaining"])) < 60 and n + 1, "the other replica knows", timeout=5)
        found = spent(there, "/tasks", 150)
        assert found[200] <= left and found[429] >= 90, found


def test_should_count_guesses_and_shown_assertions_on_every_replica(tmp_path):
    with Fleet(tmp_path, 2) as fleet:
        first, second = fleet.replicas
        admin = first.login()
        key = ec.generate_private_key(ec.SECP256R1())
        jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
        app = service_app(first, admin, ["developer"], method="private_key_jwt", jwks={"keys": [{**jwk, "kid": "k1"}]})
        claims = {"iss": app.client_id, "sub": app.client_id, "aud": [first.url, second.url], "exp": int(time.time()) + 60}
        person = first.user(admin, ["user"])
        other = first.user(admin, ["user"])

        def proven(at, jti):
            assertion = jwt.encode({**claims, "jti": jti}, key, "ES256", {"kid": "k1"})
            kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
            form = {"grant_type": "client_credentials", "client_assertion_type": kind, "client_assertion": assertion}
            return at.client()._http.post("/oauth/token", data=form)

        assert proven(first, "once").status_code == 200
        for pause_s in (0, 0, 0, 0, 1.1, 2.1, 4.1, 2):
            body = {"username": person.name, "password": "wrong wrong wrong"}
            refused(first.client().post("/auth/login", body), 401, "INVALID_CREDENTIALS")
            # From the fifth on it waits, each time twice as long: after the last one for eight seconds.
            time.sleep(pause_s)
        there = proven(second, "once")
        assert there.status_code == 401 and there.json()["error"] == "invalid_client", "shown before, at the other one"
        assert proven(second, "another").status_code == 200
        right = {"username": person.name, "password": person.password}
        refused(second.client().post("/auth/login", right), 429, "LOGIN_THROTTLED")
        second.login(other.name, other.password)
        for n in range(12):
            [first, second][n % 2].login(other.name, other.password)
        done(until(lambda: (answer := second.client().post("/auth/login", right)).status_code == 200 and answer, "it may try again", timeout=15))
        time.sleep(1)
        for _ in range(2):
            refused(first.client().post("/auth/login", {**right, "password": "wrong again"}), 401, "INVALID_CREDENTIALS")


def test_should_refuse_what_was_called_back_on_every_replica_within_a_second(tmp_path):
    with Fleet(tmp_path, 2) as fleet:
        first, second = fleet.replicas
        admin = first.login()
        for end in ("logout", "suspend", "key"):
            person = first.user(admin, ["user"])
            there = second.client(token=person.session["access_token"])
            if end == "key":
                made = done(admin.post("/api-keys", {"name": "k", "permissions": ["tasks.read"]}), 201)
                there = second.client(api_key=made["attributes"]["key"])
            until(lambda: there.get("/tasks").status_code == 200, "the other replica knows it")
            assert spent(there, "/tasks", 20) == {200: 20}, "and remembers it"
            if end == "logout":
                assert person.post("/auth/logout").status_code == 200
            elif end == "suspend":
                done(admin.post(f"/users/{person.id}/actions/suspend", {"reason": "x"}))
            else:
                assert admin.delete(f"/api-keys/{made['id']}").status_code == 204
            called_back = time.monotonic()
            until(lambda: there.get("/tasks").status_code == 401, f"{end} is refused", timeout=3, every=0.01)
            seconds = time.monotonic() - called_back
            print(f"{end}: refused on the other replica after {seconds * 1000:.0f} ms")
            assert seconds < 1


def test_should_delete_a_tenant_on_every_replica(tmp_path):
    with Fleet(tmp_path, 2) as fleet:
        first, second = fleet.replicas
        admin, slug, secret = first.login(), unique("team"), "another long password"
        found = {"slug": slug, "name": slug, "admin": {"username": "boss", "password": secret}}
        done(admin.post("/tenants", found), 201)
        there = until(lambda: second.client().post("/auth/login", {"username": "boss", "password": secret, "tenant": slug}).json().get("data"), "the other replica has it")
        boss = second.client(token=there["attributes"]["access_token"])
        worker = second.agent(boss, "cap")
        worker.work(boss, "cap")
        assert admin.delete(f"/tenants/{slug}?reason=ended").status_code == 202
        asked = time.monotonic()
        until(lambda: boss.get("/tasks").status_code == 401, "it is refused there", timeout=3, every=0.01)
        assert time.monotonic() - asked < 1
        until(lambda: admin.get(f"/tenants/{slug}").status_code == 404, "it is deleted", 60)
        until(lambda: admin.post("/tenants", found).status_code == 201, "the name is free", 10, 0.2)
        again = until(lambda: second.client().post("/auth/login", {"username": "boss", "password": secret, "tenant": slug}).json().get("data"), "the new one is there too")
        assert second.client(token=again["attributes"]["access_token"]).everything("/agents") == []
        assert boss.get("/tasks").status_code == 401
