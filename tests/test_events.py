"""The log as its readers see it: lists, filters, the live stream and its resumption."""

import contextlib
import json
import pathlib
import re
import socket
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import cloudevents.core.bindings.http as ce
import cloudevents.core.formats.json as ce_json
import pytest

from harness import done, opened, refused, submit, unique

# No agent goes down under a test that counts events.
KEIKO_ENV = {"KEIKO_AGENT_LEASE": "10m"}


@pytest.fixture(scope="module")
def capability(keiko, admin):
    name = unique("cap")
    keiko.agent(admin, name)
    return name


def make(admin):
    return done(admin.post("/agents", {"name": unique("agent")}), 201)["id"]


def head(client):
    """The position of the newest event."""
    return opened(client.get("/agents", limit=1))["meta"]["position"]


def blocks(lines):
    """Server-sent blocks as lists of (field, value), comments left out."""
    block = []
    for line in lines:
        if line == "" and block:
            yield block
            block = []
        elif line and not line.startswith(":"):
            field, _, value = line.partition(":")
            block.append((field, value.removeprefix(" ")))


@contextlib.contextmanager
def listening(client, last_id, **params):
    """An open stream: an iterator of (position, event) after `last_id`."""
    with client.stream("/events/stream", headers={"Last-Event-ID": str(last_id), "Accept": "text/event-stream"}, **params) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")

        def events():
            for block in blocks(answer.iter_lines()):
                fields = dict(block)
                if "id" in fields:
                    assert set(fields) == {"id", "data"}, f"an event has id and data only: {block}"
                    yield int(fields["id"]), json.loads(fields["data"])

        yield events()


# Lists


def test_should_show_events_in_the_published_shape(admin, capability):
    task = submit(admin, capability)
    (event,) = admin.events(stream=task["id"])
    assert event["type"] == "tasks.task.submitted" and event["category"] == "domain"
    assert event["id"].startswith("evt_") and event["stream"] == task["id"] and event["version"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["timestamp"])
    me = done(admin.get("/auth/me"))["id"]
    assert event["metadata"]["actor"]["kind"] == "user" and event["metadata"]["actor"]["id"] == me
    assert event["metadata"]["correlation_id"] and event["source"]
    assert isinstance(event["data"], dict) and isinstance(event["position"], int)
    assert done(admin.get(f"/tasks/{task['id']}/events")) == [event]


def test_should_name_who_did_it_and_why(keiko, admin):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    task = agent.work(admin, capability)
    by_type = {e["type"]: e for e in admin.events(stream=task["id"])}
    finished = by_type["tasks.task.completed"]
    assert finished["metadata"]["actor"]["kind"] == "agent" and finished["metadata"]["actor"]["id"] == agent.id
    assert agent.name in finished["source"] or agent.id in finished["source"]
    assert finished["version"] == len(by_type)


def test_should_order_events_without_gaps(admin, capability):
    before = head(admin)
    for _ in range(5):
        make(admin)
    positions = [e["position"] for e in admin.events(after=before)]
    assert positions == list(range(before + 1, before + 1 + len(positions))) and len(positions) >= 5


def test_should_page_by_position(admin):
    before = head(admin)
    for _ in range(5):
        make(admin)
    whole = admin.events(after=before)
    first = done(admin.get("/events", after=before, limit=2))
    second = done(admin.get("/events", after=first[-1]["position"], limit=2))
    assert first + second == whole[:4]
    assert done(admin.get("/events", after=head(admin) + 1000)) == []


def test_should_filter_by_type_and_stream(admin, capability):
    before = head(admin)
    agent, task = make(admin), submit(admin, capability)
    found = admin.events(after=before, type="tasks.task.submitted")
    assert [e["stream"] for e in found] == [task["id"]]
    assert {e["stream"] for e in admin.events(after=before, stream=agent)} == {agent}
    assert admin.events(after=before, type="tasks.task.submitted", stream=agent) == []
    for query in ({"after": "soon"}, {"after": -1}, {"limit": 0}, {"limit": 501}, {"colour": "red"}):
        refused(admin.get("/events", **query), 400)


# The live stream


def test_should_stream_what_happened_and_what_happens(admin):
    before = head(admin)
    old = make(admin)
    with listening(admin, before) as events:
        position, event = next(events)
        assert event["stream"] == old and event["position"] == position > before
        made = []
        later = threading.Thread(target=lambda: made.append(make(admin)))
        later.start()
        position2, event2 = next(events)
        later.join()
        assert event2["stream"] == made[0] and position2 == position + 1
    assert admin.events(after=before)[:2] == [event, event2], "the same events as in the list"


def test_should_resume_after_the_last_id_without_gap_or_repetition(admin):
    before = head(admin)
    for _ in range(20):
        make(admin)
    wanted = [e["position"] for e in admin.events(after=before)]
    seen, last = [], before
    for size in (3, 1, 7, 9):
        with listening(admin, last) as events:
            for _ in range(size):
                last, _event = next(events)
                seen.append(last)
    assert seen == wanted[:20]


def test_should_show_all_readers_one_order_while_many_write(keiko, admin, capability):
    before, size = head(admin), 120
    orders = [[] for _ in range(3)]

    def read(order):
        with listening(admin, before) as events:
            for position, event in events:
                order.append((position, event["id"]))
                if len(order) == size:
                    return

    readers = [threading.Thread(target=read, args=(order,)) for order in orders]
    writers = [threading.Thread(target=lambda: [submit(admin, capability) for _ in range(size // 4)]) for _ in range(4)]
    for thread in readers + writers:
        thread.start()
    for thread in readers + writers:
        thread.join(60)
    assert orders[0] == orders[1] == orders[2]
    assert [position for position, _ in orders[0]] == list(range(before + 1, before + 1 + size))


def test_should_refuse_streams_to_strangers_and_nonsense(keiko, admin):
    refused(keiko.client().get("/events/stream"), 401)
    refused(keiko.user(admin, ["user"]).get("/events/stream"), 403)
    refused(admin.get("/events/stream", headers={"Last-Event-ID": "soon"}), 400)


@pytest.mark.timeout(30)
def test_should_end_a_stream_when_its_session_ends(keiko, admin):
    reader = keiko.login()
    with listening(reader, head(admin)) as events:
        reader.post("/auth/logout")
        make(admin)
        remaining = list(events)  # The server closes the stream; otherwise this read times out.
    assert len(remaining) <= 3


# CloudEvents, read by their own SDK


def cloud_of(native):
    """What a native event must be as a CloudEvent."""
    meta = native["metadata"]
    expected = {
        "id": native["id"], "type": native["type"], "source": "/" + native["source"], "subject": native["stream"],
        "sequence": f"{native['position']:020}", "partitionkey": native["stream"], "correlationid": meta["correlation_id"],
        "causationid": meta["causation_id"], "traceparent": meta["trace_parent"], "authid": meta["user_id"],
    }
    return {name: value for name, value in expected.items() if value}


def same(event, native):
    attributes = event.get_attributes()
    assert {name: attributes.get(name) for name in cloud_of(native)} == cloud_of(native)
    assert event.get_data() == native["data"] and event.get_datacontenttype() == "application/json"
    assert event.get_time().isoformat(timespec="milliseconds").replace("+00:00", "Z") == native["timestamp"]


def test_should_show_an_event_as_cloudevents_in_both_modes(admin, capability):
    task = submit(admin, capability, "wörk with \"quotes\" and %")
    native = done(admin.get("/events", stream=task["id"]))[0]
    for handle in (native["id"], native["position"]):
        assert done(admin.get(f"/events/{handle}")) == native
        for mode, read in (("cloudevents", ce.from_structured_event), ("cloudevents-binary", ce.from_binary_event)):
            answer = admin.get(f"/events/{handle}", format=mode)
            assert answer.status_code == 200
            same(read(ce.HTTPMessage(dict(answer.headers), answer.content), ce_json.JSONFormat()), native)
    refused(admin.get(f"/events/{native['id']}", format="avro"), 400)
    refused(admin.get("/events", format="cloudevents-binary"), 400)
    for absent_one in ("0", "99999999", "evt_01h455vb4pex5vsknk084sn02q", "nothing"):
        refused(admin.get(f"/events/{absent_one}"), 404, "EVENT_NOT_FOUND")


def test_should_give_a_batch_and_a_stream_of_cloudevents(admin, capability):
    before = head(admin)
    for _ in range(3):
        make(admin)
    natives = done(admin.get("/events", after=before))
    answer = admin.get("/events", after=before, format="cloudevents")
    assert answer.headers["content-type"] == "application/cloudevents-batch+json" and int(answer.headers["keiko-position"]) == head(admin)
    for raw, native in zip(answer.json(), natives, strict=True):
        same(ce.from_structured_event(ce.HTTPMessage({"content-type": "application/cloudevents+json"}, json.dumps(raw).encode()), ce_json.JSONFormat()), native)
    with admin.stream("/events/stream", after=before, format="cloudevents") as live:
        first = next(blocks(live.iter_lines()))
    assert json.loads(dict(first)["data"]) == answer.json()[0]


def test_should_filter_by_category(admin):
    assert done(admin.get("/events", category="domain", limit=5))
    assert done(admin.get("/events", category="integration")) == []
    refused(admin.get("/events", category="other"), 400)


def test_should_say_when_a_subscriber_has_caught_up(admin, capability):
    before = head(admin)
    make(admin)
    with admin.stream("/events/stream", after=before, status="true") as live:
        found = blocks(live.iter_lines())
        assert dict(next(found))["id"] == str(before + 1)
        told = dict(next(found))
        assert told["event"] == "caught_up" and "id" not in told and json.loads(told["data"]) == {"position": before + 1, "behind": 0}
        make(admin)
        assert dict(next(found))["id"] == str(before + 2), "it is said once, not after each event"


def test_should_refuse_a_subscription_from_the_future(admin):
    error = refused(admin.get("/events/stream", after=head(admin) + 1000), 422, "POSITION_AHEAD")
    assert error["details"]["position"] >= 1
    refused(admin.get("/events/stream", headers={"Last-Event-ID": "99999999"}), 422, "POSITION_AHEAD")


# Filters


def test_should_show_what_an_expression_is_true_of(admin, capability):
    before = head(admin)
    for priority in (1, 5, 9):
        submit(admin, capability, f"work of priority {priority}", priority=priority)
    make(admin)
    high = "type == 'tasks.task.submitted' && data.priority > 4"
    assert [e["data"]["priority"] for e in admin.events(after=before, filter=high)] == [5, 9]
    assert [e["data"]["priority"] for e in admin.events(after=before, filter="data.priority > 4")] == [5, 9], "agents have no priority"
    assert [e["type"] for e in admin.events(after=before, filter="!has(data.priority)")] == ["registry.agent.registered"]
    assert admin.events(after=before, type="registry.*", filter=high) == [], "both must hold"
    me = done(admin.get("/auth/me"))["id"]
    said = f"actor.kind == 'user' && actor.id == '{me}' && category == 'domain' && position > {before} && data.description.matches('priority [19]$')"
    assert [e["data"]["priority"] for e in admin.events(after=before, filter=said)] == [1, 9]
    assert admin.events(after=before, filter="data.priority") == [], "what is no boolean is not true"


def test_should_follow_what_an_expression_is_true_of(admin, capability):
    before = head(admin)
    submit(admin, capability, "quiet work", priority=1)
    with listening(admin, before, filter="data.priority == 9") as events:
        submit(admin, capability, "loud work", priority=9)
        position, event = next(events)
        assert position == head(admin) and event["data"]["description"] == "loud work"
    with admin.stream("/events/stream", after=before, status="true", filter="false") as live:
        told = dict(next(blocks(live.iter_lines())))
        assert told["event"] == "caught_up" and json.loads(told["data"])["position"] == head(admin), "it gets on without a match"


@pytest.fixture(scope="module")
def long_log(admin):
    """The end of a log of more than 5,000 events, each with some content."""
    missing = max(0, 5_300 - head(admin))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: admin.post("/agents", {"name": unique("agent"), "description": "d" * 1_000}), range(missing)))
    return head(admin)


def test_should_look_through_a_long_log_in_bounded_steps(admin, long_log):
    found, after, steps = [], 0, 0
    while not found:
        page = opened(admin.get("/events", filter=f"position == {long_log}", limit=1, after=after))
        assert after < page["meta"]["position"] <= after + 2_000, "it says how far it looked"
        found, after, steps = page["data"], page["meta"]["position"], steps + 1
    assert [e["position"] for e in found] == [long_log] and steps >= 3


def test_should_tell_a_follower_that_it_fell_behind(admin, long_log):
    with admin.stream("/events/stream", after=0, status="true") as live:
        seen, told = [], []
        for block in blocks(live.iter_lines()):
            fields = dict(block)
            if "id" in fields:
                seen.append(int(fields["id"]))
                continue
            told.append((fields["event"], json.loads(fields["data"])))
            if fields["event"] == "caught_up":
                break
    assert [name for name, _ in told] == ["fell_behind", "caught_up"]
    behind = told[0][1]
    assert behind["behind"] >= 5_000 and behind["position"] + behind["behind"] >= long_log
    assert seen == list(range(1, seen[-1] + 1)) and seen[-1] >= long_log, "and nothing is left out"


def test_should_keep_little_for_followers_that_do_not_read(keiko, admin, long_log):
    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{keiko.proc.pid}/status").read_text())[1])

    before, sockets = resident(), []
    address = urllib.parse.urlsplit(keiko.url)
    for _ in range(50):
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        stalled.connect((address.hostname, address.port))
        stalled.sendall(f"GET /api/v1/events/stream?after=0 HTTP/1.1\r\nHost: x\r\nAuthorization: {admin.headers['Authorization']}\r\n\r\n".encode())
        sockets.append(stalled)
    with listening(admin, 0) as events:
        assert [next(events)[0] for _ in range(2_000)] == list(range(1, 2_001)), "others are served"
    grown = (resident() - before) / len(sockets)
    for stalled in sockets:
        stalled.close()
    assert grown < 1_024, f"{grown:.0f} KiB for each"


@pytest.mark.parametrize(("expression", "line", "column"), [
    ("data.priority >", 1, 16),
    ("type == 'a' &&\n  data.priority >> 5", 2, 18),
    ("colour == 'red'", 1, 1),
    ("data.tags.exists(t, t == 'a')", 1, 11),
    ("(" * 2_000, None, None),
    ("x" * 3_000, None, None),
    ("data.a.matches('(a{1000}){1000}')", 1, 8),
])
def test_should_say_where_a_filter_does_not_compile(admin, expression, line, column):
    for path in ("/events", "/events/stream"):
        error = refused(admin.get(path, filter=expression), 400, "FILTER_INVALID")
        assert (error["details"]["line"], error["details"]["column"]) == (line, column), error
        assert error["details"]["reason"] in error["message"]
