"""What all routes have in common: envelope, headers, idempotency, conditions, pages, limits, the document, probes."""

import json
import re
import threading

import httpx2
import pytest

from harness import REPO, absent, done, opened, refused, submit, unique

KEIKO_ENV = {"KEIKO_AGENT_LEASE": "10m"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def capability(keiko, admin):
    """A capability that somebody has."""
    name = unique("cap")
    keiko.agent(admin, name)
    return name


def make(admin):
    return done(admin.post("/agents", {"name": unique("agent")}), 201)


# Envelope, ids of requests


def test_should_wrap_answers_and_say_which_position_they_reflect(admin):
    answer = admin.post("/agents", {"name": unique("agent")})
    body = opened(answer, 201)
    assert set(body["data"]) >= {"id", "type", "attributes"}
    position = body["meta"]["position"]
    assert isinstance(position, int) and position > 0
    later = opened(admin.get(f"/agents/{body['data']['id']}"))["meta"]
    assert later["position"] >= position and later["request_id"] != body["meta"]["request_id"]
    assert admin.events(after=position - 1)[0]["stream"] == body["data"]["id"]


def test_should_take_or_make_a_request_id(admin):
    given = admin.get("/agents", headers={"X-Request-Id": "my-request-7"})
    assert given.headers["x-request-id"] == "my-request-7" == given.json()["meta"]["request_id"]
    failed = admin.get(f"/agents/{absent('agent')}", headers={"X-Request-Id": "my-request-8"})
    assert failed.headers["x-request-id"] == "my-request-8" == failed.json()["meta"]["request_id"]
    made = admin.get("/agents")
    assert made.headers["x-request-id"] == made.json()["meta"]["request_id"] and made.headers["x-request-id"].startswith("req_")
    for strange in ("x" * 5000, 'a"b\\c<script>'):
        answer = admin.get("/agents", headers={"X-Request-Id": strange})
        assert answer.status_code in (200, 400) and len(answer.headers["x-request-id"]) <= 256


def test_should_honour_and_return_traceparent(admin):
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = admin.post("/agents", {"name": unique("agent")}, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    assert re.fullmatch(rf"00-{trace}-[0-9a-f]{{16}}-0[01]", answer.headers["traceparent"])
    event = admin.events(stream=done(answer, 201)["id"])[0]
    assert trace in event["metadata"]["trace_parent"] and trace in event["metadata"]["correlation_id"]
    for broken in ("00-xyz", "garbage", f"00-{'0' * 32}-b7ad6b7169203331-01"):
        assert admin.get("/agents", headers={"traceparent": broken}).status_code == 200


# Conditions and repetitions


def test_should_write_only_the_version_that_was_read(admin):
    made = make(admin)
    path, body = f"/agents/{made['id']}", {"name": made["attributes"]["name"], "description": "new"}
    tag = admin.get(path).headers["etag"]
    assert tag.strip('W/"') == str(made["attributes"]["version"])
    changed = admin.put(path, body, headers={"If-Match": tag})
    assert changed.status_code == 200 and changed.headers["etag"] != tag
    refused(admin.put(path, {**body, "description": "stale"}, headers={"If-Match": tag}), 412, "VERSION_CONFLICT")
    refused(admin.delete(path, headers={"If-Match": tag}), 412, "VERSION_CONFLICT")
    refused(admin.put(path, body, headers={"If-Match": '"999"'}), 412, "VERSION_CONFLICT")
    assert done(admin.get(path))["attributes"]["description"] == "new"
    assert admin.put(path, body, headers={"If-Match": "*"}).status_code == 200
    assert admin.delete(path, headers={"If-Match": admin.get(path).headers["etag"]}).status_code == 204


def test_should_answer_a_repeated_post_with_the_same_resource_as_it_is(admin, capability):
    key, body = {"Idempotency-Key": unique("once")}, {"description": unique("do"), "capability": capability}
    first = done(admin.post("/tasks", body, headers=key), 201)
    assert done(admin.post("/tasks", body, headers=key), 200, 201)["id"] == first["id"]
    done(admin.post(f"/tasks/{first['id']}/actions/cancel"))
    assert done(admin.post("/tasks", body, headers=key), 200, 201)["attributes"]["status"] == "cancelled"
    refused(admin.post("/tasks", {**body, "description": "other"}, headers=key), 409, "IDEMPOTENCY_CONFLICT")
    agent, key = {"name": unique("agent")}, {"Idempotency-Key": unique("once")}
    made = done(admin.post("/agents", agent, headers=key), 201)
    assert done(admin.post("/agents", agent, headers=key), 200, 201)["id"] == made["id"], "not a conflict of names"


def test_should_make_one_task_of_many_concurrent_repetitions(admin, capability):
    key, body = {"Idempotency-Key": unique("once")}, {"description": unique("do"), "capability": capability}
    ids = []
    threads = [threading.Thread(target=lambda: ids.append(done(admin.post("/tasks", body, headers=key), 200, 201)["id"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8 and len(set(ids)) == 1


def test_should_keep_idempotency_keys_of_tenants_and_refusals_apart(keiko, admin, capability):
    key = {"Idempotency-Key": unique("once")}
    refused(admin.post("/tasks", {"description": "x", "capability": unique("unknown")}, headers=key), 422)
    mine = submit(admin, capability, headers=key)
    boss = keiko.tenant(admin)
    keiko.agent(boss, capability)
    assert submit(boss, capability, headers=key)["id"] != mine["id"]
    refused(admin.post("/agents", {"name": unique("agent")}, headers={"Idempotency-Key": "x" * 5000}), 400)


# Pages


def test_should_page_through_a_list_in_order(keiko, admin):
    capability = unique("cap")
    keiko.agent(admin, capability)
    ids = [submit(admin, capability)["id"] for _ in range(7)]
    query = {"filter[capability]": capability, "limit": 3}
    seen, cursor, sizes = [], {}, []
    while True:
        page = opened(admin.get("/tasks", **query, **cursor))
        seen += [t["id"] for t in page["data"]]
        sizes.append(len(page["data"]))
        if len(sizes) == 1:
            submit(admin, capability)  # A newcomer must not shift the pages.
        if not page["meta"].get("next_cursor"):
            break
        cursor = {"cursor": page["meta"]["next_cursor"]}
    assert seen == ids[::-1] and sizes == [3, 3, 1]
    oldest_first = [t["id"] for t in done(admin.get("/tasks", **{**query, "sort": "created_at"}))]
    assert oldest_first == ids[:3]


@pytest.mark.parametrize("query", [
    {"limit": "0"}, {"limit": "501"}, {"limit": "-1"}, {"limit": "many"}, {"cursor": "garbage"}, {"sort": "colour"}, {"filter[colour]": "red"},
    {"filter[status]": "sleeping"}, {"colour": "red"},
], ids=str)
def test_should_refuse_queries_that_make_no_sense(admin, query):
    error = refused(admin.get("/tasks", **query), 400)
    assert next(iter(query)).split("[")[0] in json.dumps(error)


def test_should_take_the_largest_page(admin):
    assert opened(admin.get("/tasks", limit=500))["meta"]


def test_should_wait_for_the_position_that_is_asked_for(admin):
    here = opened(admin.get("/agents"))["meta"]["position"]
    assert opened(admin.get("/agents", headers={"Keiko-Min-Position": str(here)}))["meta"]["position"] >= here
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(admin.get("/agents", headers={"Keiko-Min-Position": str(here + 3)})))
    waiting.start()
    for _ in range(3):
        make(admin)
    waiting.join(20)
    assert opened(answers[0])["meta"]["position"] >= here + 3
    refused(admin.get("/agents", headers={"Keiko-Min-Position": "soon"}), 400)
    assert refused(admin.get("/agents", headers={"Keiko-Min-Position": str(here + 10**9)}), (408, 409, 412, 422, 503, 504))


# Bad input


def test_should_answer_unknown_routes_and_methods_with_an_error(keiko, admin):
    for path in ("/api/v1/nothing", "/api/v2/agents", "/api/v1/agents/x/y/z", "/api/v1/"):
        refused(admin.get(path), 404)
    many, one = {"GET", "POST"}, {"GET", "PUT", "DELETE"}
    for method, path, wanted in (("PATCH", "/agents", many), ("DELETE", "/agents", many), ("PATCH", "/agents/x", one)):
        answer = admin.request(method, path)
        refused(answer, 405)
        assert wanted <= {m.strip() for m in answer.headers["allow"].split(",")}


def answered(send, tries=10):
    """The answer to a request that the server may refuse before it has read it: the reset can overtake the answer, so try again."""
    for _ in range(tries):
        try:
            return send()
        except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
            continue
    raise AssertionError(f"no answer in {tries} tries")


def test_should_refuse_bodies_over_a_mebibyte(admin, capability):
    body = {"description": "x", "capability": capability, "input": {"a": "x" * (1024 * 1024)}}
    refused(answered(lambda: admin.post("/tasks", body)), 413)
    refused(answered(lambda: admin.request("POST", "/tasks", content=(b" " * 65536 for _ in range(40)), headers=JSON)), 413)
    body["input"]["a"] = "x" * (1024 * 1024 - 1000)
    done(admin.post("/tasks", body), 201)


def nested(depth):
    """A task whose body is `depth` levels deep, the body itself being the first."""
    inner = depth - 2
    return '{"description":"x","capability":"CAP","input":{"a":' + "[" * inner + "]" * inner + "}}"


def test_should_refuse_json_deeper_than_64_levels(admin, capability):
    def send(depth):
        return admin.request("POST", "/tasks", content=nested(depth).replace("CAP", capability).encode(), headers=JSON)

    done(send(64), 201)
    refused(send(65), 400)
    refused(send(100_000), 400)
    refused(admin.request("POST", "/tasks", content=b"[" * 500_000, headers=JSON), 400)
    refused(admin.request("POST", "/tasks", content=b'{"a":' * 100_000, headers=JSON), 400)


@pytest.mark.parametrize("content", [
    b"", b"{", b"{]", b'{"name":}', b"nonsense", b'{"name":"a"} {"name":"b"}', b'{"name":"\xff\xfe"}', b'{"name":"\xc0\xaf"}', b'{"name":"\\ud800"}',
    b'\xef\xbb\xbf{"name":"bom', b"NaN", b'{"name":"a","max_concurrency":NaN}', b'{"name":"a","name":"b"}',
], ids=repr)
def test_should_refuse_what_is_no_json(admin, content):
    error = refused(admin.request("POST", "/agents", content=content, headers=JSON), 400)
    assert "panicked" not in error["message"]


def test_should_refuse_arrays_where_objects_belong(keiko, admin, capability):
    refused(keiko.client().post("/auth/login", ["admin", keiko.password, None]), 400)
    refused(admin.post("/roles", [unique("role"), []]), 400)
    refused(keiko.agent(admin, capability).api.post("/tasks/actions/claim", [1, 0]), 400)


def test_should_refuse_input_with_numbers_that_have_no_canonical_form(admin, capability):
    for number in (b"1e400", b"-1e400"):
        content = b'{"description":"x","capability":"' + capability.encode() + b'","input":{"n":' + number + b"}}"
        refused(admin.request("POST", "/tasks", content=content, headers=JSON), (400, 422))


def test_should_refuse_other_content_types(admin):
    content = json.dumps({"name": unique("agent")}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml", "jsonish"):
        refused(admin.request("POST", "/agents", content=content, headers={"Content-Type": kind}), 415)
    refused(admin.request("POST", "/agents", content=content), 415)
    done(admin.request("POST", "/agents", content=content, headers={"Content-Type": "application/json; charset=utf-8"}), 201)


def test_should_refuse_handles_that_hurt(admin):
    for handle in ("..%2F..%2Fetc", "%00", "%FF%FE", "a" * 3000, "%F0%9F%98%80", "'%20OR%201=1--", "%3Cscript%3E"):
        refused(admin.get(f"/agents/{handle}"), (400, 404, 414))


# The document


def test_should_publish_the_committed_document(document):
    assert document["openapi"].startswith("3.1")
    committed = json.loads((REPO / "openapi.json").read_text())
    assert document == committed, "openapi.json in the repository differs from what the server publishes: bless it"


def test_should_describe_every_operation(document):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method == "parameters":
                continue
            assert operation.get("summary") or operation.get("description"), f"{method} {path} has no description"
            assert any(status.startswith("2") for status in operation["responses"]), f"{method} {path}"
            if operation["x-permission"] != "open":
                assert {"401", "4XX"} & set(operation["responses"]), f"{method} {path} does not declare refusals"


def test_should_show_a_page_for_people_without_outside_requests(keiko, document):
    answer = keiko.client().get("/docs")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    page = answer.text
    outside = re.findall(r"""(?i)(?:src|href|action|data|poster|srcset)\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]*""", page)
    outside += re.findall(r"""(?i)(?:@import\s+["']?|url\(\s*["']?|fetch\(\s*["'`]|import\(\s*["'`])(?:https?:)?//[^"')\s]*""", page)
    assert outside == []
    for path in ("/api/v1/tasks", "/api/v1/agents"):
        assert path in page or "openapi.json" in page, "the page shows the routes or reads the document"


# Probes


def test_should_answer_probes_without_a_login(keiko):
    anyone = keiko.client()
    assert anyone.get("/health").status_code == 200
    ready = anyone.get("/ready")
    assert ready.status_code == 200 and "store" in ready.text.lower(), "each dependency is listed with its state"


def test_should_show_metrics_to_those_who_may(keiko, admin):
    refused(keiko.client().get("/metrics"), 401)
    refused(keiko.user(admin, ["user"]).get("/metrics"), 403)
    answer = keiko.user(admin, ["analyst"]).get("/metrics")
    assert answer.status_code == 200 and re.search(r"(?m)^# TYPE keiko_\w+ \w+", answer.text)
    assert re.search(r"(?m)^keiko_\w+(\{.*\})? \d", answer.text)
