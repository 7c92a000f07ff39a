"""Consumer groups: every event is delivered until it is acknowledged or parked, in order where that was asked for, whatever happens."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import absent, command, done, refused, unique, until

KEIKO_ENV = {"KEIKO_LOG_LEVEL": "info"}


class Group:
    """A consumer group and how its consumers talk to it."""

    def __init__(self, client, **fields):
        self.client = client
        self.made = done(client.post("/consumer-groups", {"name": unique("group"), **fields}), 201)
        self.id, self.name = self.made["id"], self.made["attributes"]["name"]

    def act(self, verb, body, client=None, **kw):
        return (client or self.client).post(f"/consumer-groups/{self.id}/actions/{verb}", body, **kw)

    def fetch(self, limit=100, wait_ms=0, consumer="c", client=None):
        return done(self.act("fetch", {"consumer": consumer, "limit": limit, "wait_ms": wait_ms}, client, timeout=wait_ms / 1000 + 20))

    def ack(self, *deliveries):
        return self.tokens("ack", deliveries)

    def tokens(self, verb, deliveries, **more):
        return [v["result"] for v in done(self.act(verb, {"tokens": [d["token"] for d in deliveries], **more}))]

    def state(self):
        return done(self.client.get(f"/consumer-groups/{self.id}"))["attributes"]["state"]

    def shown(self):
        return done(self.client.get(f"/consumer-groups/{self.id}"))["attributes"]

    def parked(self):
        return done(self.client.get(f"/consumer-groups/{self.id}/parked"))

    def drain(self, limit=100):
        """Takes and acknowledges until nothing is left; the positions in the order of delivery."""
        taken = []
        while deliveries := self.fetch(limit):
            taken += positions(deliveries)
            assert set(self.ack(*deliveries)) == {"done"}
        return taken


def positions(deliveries):
    return [d["event"]["position"] for d in deliveries]


def head(client):
    return client.get("/agents", limit=1).json()["meta"]["position"]


@pytest.fixture
def feed(admin):
    """Makes events of a stream of its own: `feed()` answers a stream to filter by and a way to make events there."""

    class Feed:
        def __init__(self):
            made = done(admin.post("/roles", {"name": unique("role"), "permissions": []}), 201)
            self.stream, self.count = made["id"], 0
            self.first = done(admin.get("/events", stream=self.stream))[0]["position"]

        def push(self, n=1):
            for _ in range(n):
                self.count += 1
                done(admin.put(f"/roles/{self.stream}", {"permissions": [f"x.y{self.count}"]}))

        def positions(self):
            return [e["position"] for e in admin.events(stream=self.stream)]

    return Feed


# Delivery


def test_should_deliver_each_event_until_it_is_acknowledged(admin, feed):
    one = feed()
    group = Group(admin, mode="shared", filter={"stream": one.stream}, ack_timeout_ms=300)
    assert group.fetch() == [], "it begins now when nothing is said"
    one.push(3)
    first = group.fetch(2)
    assert [d["attempt"] for d in first] == [1, 1] and positions(first) == one.positions()[1:3]
    assert first[0]["event"]["type"] == "identity.role.permissions_changed" and first[0]["event"]["data"]
    second = group.fetch()
    assert positions(second) == one.positions()[3:]
    assert group.fetch() == []
    assert group.ack(first[0], second[0]) == ["done", "done"]
    again = group.fetch(wait_ms=5_000)
    assert positions(again) == positions(first)[1:] and again[0]["attempt"] == 2 and again[0]["token"] != first[1]["token"]
    assert group.ack(*again) == ["done"]
    assert group.fetch() == []
    state = group.state()
    assert state["lag_events"] == 0 and state["open"] == 0 and state["lag_exact"] and state["last_delivery_at"]


def test_should_refuse_an_old_token_and_say_per_token_what_happened(admin, feed):
    one = feed()
    group = Group(admin, mode="shared", filter={"stream": one.stream}, ack_timeout_ms=200)
    one.push(2)
    late, other = group.fetch()
    time.sleep(0.3)
    fresh = group.fetch()
    for verb, more in [("ack", {}), ("nak", {}), ("extend", {"by_ms": 1_000}), ("park", {"reason": "x"})]:
        refused(group.act(verb, {"tokens": [late["token"]], **more}), 409, "DELIVERY_STALE")
        refused(group.act(verb, {"tokens": ["7-0000000000000000", "x"], **more}), 409, "DELIVERY_STALE")
    assert group.ack(late, fresh[0], fresh[0], other) == ["stale", "done", "stale", "stale"]
    refused(group.act("ack", {"tokens": [fresh[0]["token"]]}), 409, "DELIVERY_STALE")


def test_should_keep_the_order_of_each_stream_with_two_consumers(admin, feed):
    feeds = [feed() for _ in range(4)]
    group = Group(admin, mode="ordered", filter={"type": "identity.role.permissions_changed"}, ack_timeout_ms=20_000)
    for _ in range(12):
        for one in feeds:
            one.push()
    busy, seen, lock = set(), [], threading.Lock()

    def consume(name):
        while deliveries := group.fetch(3, 500, name):
            with lock:
                for d in deliveries:
                    assert d["event"]["stream"] not in busy, "two events of one stream at once"
                    busy.add(d["event"]["stream"])
            time.sleep(0.01)
            for d in deliveries:
                with lock:
                    seen.append((d["event"]["stream"], d["event"]["position"]))
                    busy.discard(d["event"]["stream"])
                assert group.ack(d) == ["done"]

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(consume, n) for n in ("a", "b")]:
            future.result()
    for one in feeds:
        assert [p for stream, p in seen if stream == one.stream] == one.positions()[1:]


def test_should_hold_back_a_stream_whose_event_is_open_and_no_other(admin, feed):
    a, b = feed(), feed()
    group = Group(admin, filter={"type": "identity.role.permissions_changed"})
    a.push(2), b.push(1)
    first = group.fetch()
    assert positions(first) == [a.positions()[1], b.positions()[1]], "ordered when nothing is said"
    assert group.fetch() == []
    assert group.tokens("nak", first[:1], delay_ms=600) == ["done"]
    assert group.fetch() == [], "what is put off holds back its stream"
    started = time.monotonic()
    again = group.fetch(wait_ms=5_000)
    assert 0.3 < time.monotonic() - started < 4 and positions(again) == [a.positions()[1]] and again[0]["attempt"] == 2
    assert group.ack(*again) == ["done"]
    assert positions(group.fetch()) == [a.positions()[2]]


def test_should_wake_a_waiting_consumer(admin, feed, keiko):
    one = feed()
    group = Group(admin, filter={"stream": one.stream})
    got = []
    thread = threading.Thread(target=lambda: got.append((group.fetch(wait_ms=20_000, client=keiko.login()), time.monotonic())))
    thread.start()
    time.sleep(0.4)
    assert not got
    at = time.monotonic()
    one.push()
    thread.join(15)
    assert positions(got[0][0]) == one.positions()[1:] and got[0][1] - at < 2
    # An acknowledgement frees the stream for one who waits.
    one.push()
    thread = threading.Thread(target=lambda: got.append((group.fetch(wait_ms=20_000, client=keiko.login()), time.monotonic())))
    thread.start()
    time.sleep(0.4)
    at = time.monotonic()
    group.ack(*got[0][0])
    thread.join(15)
    assert positions(got[1][0]) == one.positions()[2:] and got[1][1] - at < 2


def test_should_extend_a_delivery(admin, feed):
    one = feed()
    group = Group(admin, filter={"stream": one.stream}, ack_timeout_ms=400)
    one.push()
    held = group.fetch()
    for _ in range(3):
        time.sleep(0.25)
        assert group.tokens("extend", held, by_ms=500) == ["done"]
        assert group.fetch() == []
    assert group.tokens("extend", held) == ["done"], "as long as a new delivery when nothing is said"
    assert group.ack(*held) == ["done"]


# Parking


def test_should_park_what_fails_too_often_and_replay_it(admin, feed):
    one = feed()
    group = Group(admin, filter={"stream": one.stream}, max_attempts=2)
    one.push(2)
    assert group.tokens("nak", group.fetch(consumer="w1"), reason="no disk") == ["done"]
    assert group.tokens("nak", group.fetch(consumer="w2"), reason="still no disk") == ["parked"]
    parked = group.parked()
    assert [(p["position"], p["attempts"], p["reason"], p["consumer"], p["type"], p["stream"]) for p in parked] == [
        (one.positions()[1], 2, "still no disk", "w2", "identity.role.permissions_changed", one.stream)
    ]
    assert group.drain() == one.positions()[2:], "its stream goes on"
    assert group.state()["parked"] == 1 and group.state()["lag_events"] == 0
    noted = done(admin.get("/events", stream=group.id, type="events.group.delivery_parked"))
    assert [e["data"]["position"] for e in noted] == [one.positions()[1]] and noted[0]["data"]["reason"] == "still no disk"
    done(group.act("replay", {"positions": [one.positions()[1], 1]}))
    again = group.fetch()
    assert positions(again) == [one.positions()[1]] and again[0]["attempt"] == 1 and group.parked() == []
    assert group.tokens("park", again, reason="not today") == ["done"]
    assert group.parked()[0]["reason"] == "not today"
    done(group.act("replay", {"all": True}))
    assert group.drain() == [one.positions()[1]]
    assert len(done(admin.get("/events", stream=group.id, type="events.group.replayed"))) == 2


def test_should_park_what_nobody_acknowledges(admin, feed):
    one = feed()
    group = Group(admin, filter={"stream": one.stream}, max_attempts=2, ack_timeout_ms=150)
    one.push()
    for attempt in (1, 2):
        assert [d["attempt"] for d in group.fetch(wait_ms=3_000)] == [attempt]
    until(lambda: len(group.parked()) == 1, "it is parked although nobody asks any more", 5)
    assert group.parked()[0]["reason"] == "not acknowledged in time"
    until(lambda: len(done(admin.get("/events", stream=group.id, type="events.group.delivery_parked"))) == 1, "the event is written", 5)


def test_should_page_through_parked_events(admin, feed):
    one = feed()
    group = Group(admin, mode="shared", filter={"stream": one.stream})
    one.push(5)
    assert group.tokens("park", group.fetch(), reason="x") == ["done"] * 5
    seen, after = [], 0
    while True:
        body = admin.get(f"/consumer-groups/{group.id}/parked", limit=2, after=after).json()
        seen += [p["position"] for p in body["data"]]
        if "position" not in body["meta"]:
            break
        after = body["meta"]["position"]
    assert seen == one.positions()[1:]


# Places


def test_should_begin_where_it_is_told(admin, feed):
    one = feed()
    one.push(2)
    before = one.positions()
    # An instant with time on both sides: events are found by when they were written, a little after they happened.
    time.sleep(0.05)
    moment = done(admin.post("/roles", {"name": unique("role"), "permissions": []}), 201)["attributes"]["created_at"]
    time.sleep(0.05)
    one.push(2)
    everything = one.positions()
    filter = {"stream": one.stream}
    assert Group(admin, filter=filter, start="beginning").drain() == everything
    assert Group(admin, filter=filter, start=str(everything[1])).drain() == everything[2:]
    assert Group(admin, filter=filter, start=moment).drain() == everything[len(before):]
    assert Group(admin, filter=filter, start="now").drain() == []
    refused(admin.post("/consumer-groups", {"name": unique("g"), "start": str(head(admin) + 1_000)}), 422, "POSITION_AHEAD")


def test_should_seek_to_a_position_and_to_a_time(admin, feed):
    one = feed()
    group = Group(admin, filter={"stream": one.stream}, start="beginning")
    one.push(2)
    time.sleep(0.05)
    middle = done(admin.post("/roles", {"name": unique("role"), "permissions": []}), 201)["attributes"]["created_at"]
    time.sleep(0.05)
    one.push(2)
    everything = one.positions()
    assert group.drain() == everything
    done(group.act("seek", {"position": everything[0]}))
    held = group.fetch()
    assert positions(held) == everything[1:2]
    done(group.act("seek", {"time": middle}))
    refused(group.act("ack", {"tokens": [held[0]["token"]]}), 409, "DELIVERY_STALE")
    assert group.drain() == everything[3:]
    done(group.act("seek", {"time": "2100-01-01T00:00:00Z"}))
    assert group.drain() == []
    refused(group.act("seek", {"position": head(admin) + 1_000}), 422, "POSITION_AHEAD")
    assert len(done(admin.get("/events", stream=group.id, type="events.group.sought"))) == 3


def test_should_never_deliver_a_group_its_own_events(admin):
    group = Group(admin, mode="shared", filter={"type": "events.*"}, max_attempts=1)
    other = Group(admin, mode="shared")
    got = group.fetch()
    assert [d["event"]["stream"] for d in got] == [other.id]
    assert group.tokens("park", got, reason="x") == ["done"]
    done(group.act("seek", {"position": done(admin.get("/events", stream=group.id))[0]["position"] - 1}))
    assert {d["event"]["stream"] for d in group.fetch()} == {other.id}
    assert group.state()["lag_events"] == 1


def test_should_filter_by_category_and_expression(admin, feed):
    one = feed()
    filter = {"stream": one.stream, "category": "domain", "expression": 'data.permissions.size() > 0 && data.permissions[0] == "x.y2"'}
    group = Group(admin, filter=filter)
    one.push(3)
    assert group.drain() == one.positions()[2:3]
    assert group.shown()["filter"] == {"type": None, **filter}
    assert group.state()["position"] >= one.positions()[-1]
    assert Group(admin, filter={"stream": one.stream, "category": "system"}, start="beginning").drain() == []
    error = refused(admin.post("/consumer-groups", {"name": unique("g"), "filter": {"expression": "data."}}), 400, "FILTER_INVALID")
    assert error["details"]["line"] == 1


def test_should_keep_the_window(admin, feed):
    one = feed()
    group = Group(admin, mode="shared", filter={"stream": one.stream}, window=2)
    one.push(5)
    held = group.fetch()
    assert len(held) == 2 and group.fetch() == []
    group.ack(held[0])
    assert positions(group.fetch()) == one.positions()[3:4]
    assert group.state()["open"] == 2 and group.state()["lag_events"] == 4


def test_should_tell_how_far_a_group_is(admin, feed):
    one = feed()
    group = Group(admin, mode="shared", filter={"stream": one.stream})
    one.push(4)
    time.sleep(0.3)
    state = group.state()
    assert state["lag_events"] == 4 and state["lag_exact"] and 0.2 < state["lag_seconds"] < 60 and state["last_delivery_at"] is None
    held = group.fetch(3)
    group.ack(held[0], held[2])
    state = group.state()
    assert (state["lag_events"], state["open"], state["position"]) == (2, 1, one.positions()[2] - 1)
    group.ack(held[1])
    assert group.state()["position"] == one.positions()[3]


# Definition


def test_should_make_change_list_and_delete(admin, feed):
    one = feed()
    group = Group(admin, filter={"stream": one.stream}, window=5)
    shown = done(admin.get(f"/consumer-groups/{group.name}"))
    assert shown["id"] == group.id and shown["type"] == "consumer_group"
    assert shown["attributes"]["mode"] == "ordered" and shown["attributes"]["ack_timeout_ms"] == 30_000
    assert shown["attributes"]["stalled_after_ms"] == 60_000 and shown["attributes"]["max_attempts"] == 5
    changed = admin.put(f"/consumer-groups/{group.id}", {"ack_timeout_ms": 40_000})
    assert done(changed)["attributes"]["stalled_after_ms"] == 80_000 and changed.headers["etag"] == '"2"'
    assert done(changed)["attributes"]["filter"]["stream"] is None, "what is left out gets its default"
    refused(admin.request("PUT", f"/consumer-groups/{group.id}", {}, {"If-Match": '"1"'}), 412, "VERSION_CONFLICT")
    assert group.id in [g["id"] for g in admin.everything("/consumer-groups")]
    refused(admin.post("/consumer-groups", {"name": group.name}), 409, "NAME_TAKEN")
    assert admin.delete(f"/consumer-groups/{group.name}").status_code == 204
    for answer in (admin.get(f"/consumer-groups/{group.id}"), group.act("fetch", {"consumer": "c"}), group.act("ack", {"tokens": ["1-x"]}), admin.delete(f"/consumer-groups/{group.id}")):
        refused(answer, 404, "GROUP_NOT_FOUND")
    assert group.id not in [g["id"] for g in admin.everything("/consumer-groups")]
    assert [g["attributes"]["state"] for g in admin.everything("/consumer-groups", deleted=True) if g["id"] == group.id] == [None]
    again = Group(admin, name=group.name)
    assert again.id != group.id, "the name is free again"


def test_should_answer_the_same_group_for_the_same_idempotency_key(admin):
    key, body = {"Idempotency-Key": unique("key")}, {"name": unique("group")}
    first = done(admin.post("/consumer-groups", body, headers=key), 201)
    assert done(admin.post("/consumer-groups", body, headers=key), 201)["id"] == first["id"]


def test_should_refuse_what_makes_no_sense(admin):
    group = Group(admin)
    bad = [
        {}, {"name": ""}, {"name": " a"}, {"name": "a", "mode": "random"}, {"name": "a", "window": 0}, {"name": "a", "window": 10_001},
        {"name": "a", "max_attempts": 0}, {"name": "a", "max_attempts": 101}, {"name": "a", "ack_timeout_ms": 99}, {"name": "a", "stalled_after_ms": 999},
        {"name": "a", "filter": {"category": "x"}}, {"name": "a", "filter": {"kind": "x"}},
        {"name": "a", "filter": {"type": ""}}, {"name": "a", "extra": 1}, {"name": absent("group")}, {"name": "a", "window": 1.5},
    ]
    for body in bad:
        assert refused(admin.post("/consumer-groups", body), 400, "VALIDATION_FAILED")["details"]["errors"], body
    long = ["x"] * 501
    actions = [
        ("fetch", {}), ("fetch", {"consumer": ""}), ("fetch", {"consumer": "c", "limit": 0}), ("fetch", {"consumer": "c", "limit": 501}),
        ("fetch", {"consumer": "c", "wait_ms": 30_001}), ("ack", {}), ("ack", {"tokens": []}), ("ack", {"tokens": long}), ("ack", {"tokens": [1]}),
        ("nak", {"tokens": ["x"], "delay_ms": -1}), ("nak", {"tokens": ["x"], "delay_ms": 43_200_001}), ("extend", {"tokens": ["x"], "by_ms": 1}),
        ("park", {"tokens": ["x"]}), ("park", {"tokens": ["x"], "reason": ""}),
        ("seek", {"position": -1}), ("seek", {"time": "soon"}), ("replay", {"positions": []}), ("ack", {"tokens": ["x"], "extra": 1}),
    ]
    for verb, body in actions:
        assert refused(group.act(verb, body), 400, "VALIDATION_FAILED")["details"]["errors"], (verb, body)
    contradictions = [
        ("seek", {}), ("seek", {"position": 1, "time": "2026-01-01T00:00:00Z"}), ("replay", {}), ("replay", {"positions": [1], "all": True}),
        ("replay", {"all": False}),
    ]
    for verb, body in contradictions:
        assert refused(group.act(verb, body), 422, "RULE_VIOLATED")["details"]["errors"], (verb, body)
    for start in ("yesterday", ""):
        refused(admin.post("/consumer-groups", {"name": "a", "start": start}), 422, "RULE_VIOLATED")
    for params in ({"limit": 0}, {"limit": 501}, {"after": -1}, {"x": 1}):
        refused(admin.get(f"/consumer-groups/{group.id}/parked", **params), 400, "VALIDATION_FAILED")


def test_should_let_only_readers_consume(keiko, admin, feed):
    one = feed()
    group = Group(admin, filter={"stream": one.stream})
    one.push()
    viewer = keiko.user(admin, ["analyst"])
    for verb, body in [("fetch", {"consumer": "c"}), ("ack", {"tokens": ["x"]})]:
        refused(group.act(verb, body, viewer), 403, "PERMISSION_DENIED")
    refused(viewer.get("/consumer-groups"), 403)

    def holder(*permissions):
        name = unique("role")
        done(admin.post("/roles", {"name": name, "permissions": list(permissions)}), 201)
        return keiko.user(admin, [name])

    blind = holder("consumer-groups.*")
    assert done(blind.get(f"/consumer-groups/{group.id}"))["id"] == group.id
    error = refused(group.act("fetch", {"consumer": "c"}, blind), 403, "PERMISSION_DENIED")
    assert error["details"]["permission"] == "events.read", "reading follows the reader's permissions"
    reader = holder("consumer-groups.consume", "events.read")
    assert positions(group.fetch(client=reader)) == one.positions()[1:]
    refused(group.act("seek", {"position": 0}, reader), 403)
    refused(reader.delete(f"/consumer-groups/{group.id}"), 403)
    refused(reader.post("/consumer-groups", {"name": unique("g")}), 403)


def test_should_stop_a_waiting_consumer_who_lost_the_permission(keiko, admin, feed):
    one = feed()
    group = Group(admin, filter={"stream": one.stream})
    role = done(admin.post("/roles", {"name": unique("role"), "permissions": ["consumer-groups.consume", "events.read"]}), 201)
    user = keiko.user(admin, [role["attributes"]["name"]])
    got = []
    thread = threading.Thread(target=lambda: got.append(group.fetch(wait_ms=15_000, client=user)))
    thread.start()
    time.sleep(0.3)
    done(admin.put(f"/users/{user.id}", {"roles": []}))
    one.push()
    thread.join(20)
    assert got == [[]]
    assert positions(group.fetch()) == one.positions()[1:]


def test_should_keep_groups_of_tenants_apart(keiko, admin):
    group = Group(admin)
    boss = keiko.tenant(admin)
    mine = Group(boss, name=group.name, start="beginning")
    assert mine.id != group.id
    for path in ("", "/parked"):
        refused(boss.get(f"/consumer-groups/{group.id}{path}"), 404, "GROUP_NOT_FOUND")
    refused(group.act("fetch", {"consumer": "c"}, boss), 404, "GROUP_NOT_FOUND")
    ours = {e["id"] for e in admin.events()}
    got = mine.fetch(500)
    assert got and not {d["event"]["id"] for d in got} & ours


def test_should_have_no_more_groups_than_allowed(keiko, admin):
    boss = keiko.tenant(admin)
    for _ in range(100):
        last = Group(boss)
    refused(boss.post("/consumer-groups", {"name": unique("g")}), 422, "TOO_MANY_GROUPS")
    boss.delete(f"/consumer-groups/{last.id}")
    Group(boss)


# When nothing moves


def test_should_raise_an_alert_when_a_group_stalls_and_when_it_moves_again(keiko, admin, feed):
    one = feed()
    group = Group(admin, filter={"stream": one.stream}, stalled_after_ms=1_000, ack_timeout_ms=60_000)
    kinds = lambda: [e["type"].rsplit(".", 1)[1] for e in done(admin.get("/events", stream=group.id, category="system"))]
    warned = lambda: [w["ids"] for w in keiko.client().get("/ready").json()["warnings"] if group.id in w["ids"]]
    time.sleep(2.5)
    assert kinds() == [] and not warned(), "a group without work is well"
    one.push(2)
    held = group.fetch()
    until(lambda: kinds() == ["stalled"], "the alert is raised", 10)
    until(warned, "/ready shows it", 5)
    assert keiko.client().get("/ready").status_code == 200, "it is no reason to take the server away"
    assert group.shown()["stalled"] and group.shown()["stalled_at"]
    event = done(admin.get("/events", stream=group.id, category="system"))[0]
    assert event["data"]["lag_events"] == 2 and event["source"] == "system/consumer-groups"
    labels = f'{{tenant="default",group="{group.name}"}}'
    figures = lambda: dict(line.rsplit(" ", 1) for line in admin.get("/metrics").text.splitlines() if labels in line)
    found = figures()
    assert float(found[f"keiko_consumer_group_lag_events{labels}"]) == 2 and float(found[f"keiko_consumer_group_lag_seconds{labels}"]) > 1
    assert float(found[f"keiko_consumer_group_open{labels}"]) >= 1 and float(found[f"keiko_consumer_group_parked{labels}"]) == 0
    assert abs(float(found[f"keiko_consumer_group_last_delivery_timestamp_seconds{labels}"]) - time.time()) < 30
    until(lambda: float(figures()[f"keiko_consumer_group_stalled{labels}"]) == 1, "the figure says so", 5)
    group.ack(*held)
    assert group.drain() == one.positions()[2:]
    until(lambda: kinds() == ["stalled", "recovered"], "it has recovered", 10)
    until(lambda: not warned(), "/ready forgets it", 5)
    assert not group.shown()["stalled"]
    until(lambda: float(figures()[f"keiko_consumer_group_lag_events{labels}"]) == 0, "the figure says so", 5)


# Crashes


def test_should_lose_nothing_and_repeat_nothing_acknowledged_when_the_server_is_killed(new_keiko):
    server = new_keiko().start()
    admin = server.login()
    roles = [done(admin.post("/roles", {"name": unique("role"), "permissions": []}), 201)["id"] for _ in range(4)]
    filter = {"type": "identity.role.permissions_changed"}
    ordered = Group(admin, mode="ordered", filter=filter, ack_timeout_ms=500, max_attempts=100)
    shared = Group(admin, mode="shared", filter=filter, ack_timeout_ms=500, max_attempts=100)
    written = 0
    acked = {ordered.id: [], shared.id: []}
    asked = {ordered.id: [], shared.id: []}
    for life in range(4):
        for n in range(30):
            written += 1
            done(admin.put(f"/roles/{roles[n % 4]}", {"permissions": [f"x.y{written}"]}))
        stop = threading.Event()

        def consume(group, stop=stop):
            while not stop.is_set():
                try:
                    for d in group.fetch(5, 200):
                        asked[group.id].append(d["event"]["position"])
                        if group.ack(d) == ["done"]:
                            acked[group.id].append((d["event"]["stream"], d["event"]["position"]))
                except Exception:
                    return  # The server is gone.

        threads = [threading.Thread(target=consume, args=(group,)) for group in (ordered, shared)]
        for thread in threads:
            thread.start()
        time.sleep(0.15 + life * 0.1)
        server.kill()
        stop.set()
        for thread in threads:
            thread.join(20)
        server.start()
        admin = server.login()
        ordered.client = shared.client = admin
    for group in (ordered, shared):
        deadline = time.monotonic() + 30
        while group.state()["lag_events"] and time.monotonic() < deadline:
            deliveries = group.fetch(50, 1_000)
            for d in deliveries:
                assert d["event"]["position"] not in [p for _, p in acked[group.id]], "acknowledged and delivered again"
                asked[group.id].append(d["event"]["position"])
            # Where the machine paused for longer than the time to acknowledge, all of them come again.
            answer = group.act("ack", {"tokens": [d["token"] for d in deliveries]})
            if deliveries and answer.status_code == 200:
                done_now = [d for d, verdict in zip(deliveries, done(answer), strict=True) if verdict["result"] == "done"]
                acked[group.id] += [(d["event"]["stream"], d["event"]["position"]) for d in done_now]
            elif deliveries:
                assert answer.status_code == 409 and answer.json()["error"]["code"] == "DELIVERY_STALE", answer.text
        events = admin.events(type="identity.role.permissions_changed")
        assert len(events) == written
        got = [p for _, p in acked[group.id]]
        assert len(got) == len(set(got)), "acknowledged twice"
        # An acknowledgement whose answer was lost with the server counts, too.
        assert {e["position"] for e in events} == set(asked[group.id]), "every event was delivered"
        assert group.state()["lag_events"] == 0 and group.parked() == []
    for role in roles:
        order = [p for stream, p in acked[ordered.id] if stream == role]
        assert order == sorted(order), "the order of a stream survives"


def test_should_keep_groups_parked_events_and_places_over_a_restart(new_keiko):
    server = new_keiko().start()
    admin = server.login()
    role = done(admin.post("/roles", {"name": unique("role"), "permissions": []}), 201)["id"]
    group = Group(admin, mode="shared", filter={"stream": role}, start="beginning", stalled_after_ms=1_000)
    for n in range(4):
        done(admin.put(f"/roles/{role}", {"permissions": [f"x.y{n}"]}))
    a, b, c, d, e = group.fetch()
    group.ack(a)
    group.tokens("park", [b], reason="later")
    group.tokens("nak", [c], delay_ms=3_600_000)
    until(lambda: group.shown()["stalled"], "d and e are held and not acknowledged", 10)
    server.restart()
    group.client = server.login()
    assert [p["position"] for p in group.parked()] == positions([b]) and group.shown()["stalled"]
    assert group.fetch() == []
    assert group.ack(d, e) == ["done", "done"], "deliveries outlive the server"
    done(group.act("replay", {"all": True}))
    server.restart()
    group.client = server.login()
    assert positions(group.fetch()) == positions([b])
    assert group.state()["lag_events"] == 2


# On the command line


@pytest.mark.embedded
def test_should_consume_on_the_command_line(keiko, admin, feed):
    key = done(admin.post("/api-keys", {"name": unique("cli")}), 201)["attributes"]["key"]
    cli = lambda *args: command(keiko.home, "groups", *args, env={"KEIKO_SERVER": keiko.url, "KEIKO_API_KEY": key})
    one, name = feed(), unique("group")
    assert cli("create", name, "--stream", one.stream, "--start", "beginning", "--max-attempts", "1").returncode == 0
    one.push(3)
    printed = cli("consume", name, "--max", "3").stdout.splitlines()
    assert [json.loads(line)["position"] for line in printed] == one.positions()[:3]
    fetched = json.loads(cli("fetch", name, "--output", "json").stdout)
    assert positions(fetched) == one.positions()[3:]
    assert "parked" in cli("nak", name, fetched[0]["token"]).stdout
    assert str(one.positions()[3]) in cli("parked", name).stdout
    assert cli("replay", name, "--all").returncode == 0
    assert len(cli("consume", name, "--once").stdout.splitlines()) == 1
    assert cli("seek", name, "--position", "0").returncode == 0
    assert len(cli("consume", name, "--once").stdout.splitlines()) == 4
    assert name in cli("list").stdout and name in cli("get", name).stdout
    stale = cli("ack", name, "1-x")
    assert stale.returncode == 1 and "DELIVERY_STALE" in stale.stderr
    assert cli("delete", name).returncode == 0 and cli("get", name).returncode == 1
