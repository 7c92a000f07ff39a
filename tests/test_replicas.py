"""Several servers on one database: any takes any request, one leads, and whatever happens to them nothing is lost or doubled.

The leader of the default tenant's log is found by its log line. Seed of the random story: KEIKO_TEST_SEED.
"""

import collections
import concurrent.futures
import os
import random
import signal
import threading
import time

import httpx2
import pytest

import postgres
import test_mcp_tasks as mcp_tasks
from guarded import Guarded
from harness import Agent, Keiko, StartFailed, done, free_port, refused, submit, task_of, tool_server, unique, until
from mcp_clients import Modern
from oauth import Browser
from test_credentials import away, call, said
from upstream import Upstream

LEASE_S = 2
LONG = bool(os.environ.get("KEIKO_FAULTS_LONG"))


class Fleet:
    """Replicas on one database, with one folder of keys."""

    def __init__(self, home, count, server=None, **env):
        self.server = server or postgres.shared()
        self.url = self.server.database()
        (home / "keys").mkdir(parents=True)
        env = {"KEIKO_DATABASE_URL": self.url, "KEIKO_KEYS_DIR": str(home / "keys"), "KEIKO_CLUSTER_LEASE": f"{LEASE_S}s", **env}
        self.replicas = [Keiko(home / f"replica{n}", env=env, port=free_port()) for n in range(count)]

    def start(self):
        for replica in self.replicas:
            replica.spawn()
        for replica in self.replicas:
            replica.wait_until_ready()
        return self

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_):
        self.close()

    def leader(self):
        """The replica that leads the default tenant's log, and the others."""
        name = until(self._holder, "somebody leads")
        led = [r for r in self.replicas if r.alive() and name in r.logs()]
        assert led, f"nobody has the name {name}"
        return led[0], [r for r in self.replicas if r is not led[0]]

    def _holder(self):
        database = self.url.rsplit("/", 1)[1]
        tenant = self.server.sql(database, "SELECT encode(tenant, 'hex') FROM logs ORDER BY number LIMIT 1")
        bucket = int(tenant[-4:], 16) % 64
        return self.server.sql(database, f"SELECT holder FROM leases WHERE bucket = {bucket} AND expires_at > clock_timestamp()")

    def close(self):
        for replica in self.replicas:
            if replica.alive():
                replica.proc.send_signal(signal.SIGCONT)
            replica.close()


@pytest.fixture
def fleet(tmp_path):
    made = []

    def make(count=2, **env):
        made.append(Fleet(tmp_path / f"fleet{len(made)}", count, **env))
        return made[-1].start()

    yield make
    for one in made:
        one.close()
        assert all("panicked at" not in replica.logs() for replica in one.replicas)


def test_should_serve_any_request_on_any_replica(fleet):
    fleet = fleet(3)
    a, b, c = fleet.replicas
    first = a.login()
    # A token, a user and a tenant made on one hold on the others at once.
    assert done(b.client(token=first.session["access_token"]).get("/agents")) == []
    user = b.user(b.login(), ["developer"])
    assert done(c.login(user.name, user.password).get("/agents")) == []
    boss = c.tenant(c.login())
    assert done(a.login("boss", "another long password", boss.slug).get("/agents")) == []
    # What is changed on one is read on the others.
    made = done(a.login().post("/agents", {"name": unique("x"), "capabilities": []}), 201)
    for replica in fleet.replicas:
        assert done(replica.login().get(f"/agents/{made['id']}"))["id"] == made["id"]
    # A key that is revoked on one is refused on the others.
    agent = b.agent(b.login(), "work")
    assert c.client(api_key=agent.key).get(f"/agents/{agent.id}").status_code == 200
    assert a.login().delete(f"/agents/{agent.id}").status_code in (200, 204)
    refused(c.client(api_key=agent.key).get("/agents"), 401)


def test_should_answer_a_request_with_the_same_idempotency_key_once(fleet):
    a, b = fleet(2).replicas
    a.agent(a.login(), "none")
    key = {"Idempotency-Key": unique("key")}
    body = {"capability": "none", "description": "once"}
    until(lambda: b.login().get("/discovery", capability="none").json()["data"], "the other replica knows the agent")
    first = done(a.login().post("/tasks", body, headers=key), 201)
    assert done(b.login().post("/tasks", body, headers=key), 200, 201)["id"] == first["id"]


def test_should_wake_a_long_poll_on_another_replica(fleet):
    fleet = fleet(2)
    leader, others = fleet.leader()
    waits = []
    for serves, submits in [(leader, others[0]), (others[0], leader), (others[0], others[0])]:
        agent = serves.agent(serves.login(), unique("work"))
        capability = done(agent.api.get(f"/agents/{agent.id}"))["attributes"]["capabilities"][0]["name"]
        admin = submits.login()
        for _ in range(5):
            got = []
            thread = threading.Thread(target=lambda: got.append((agent.take(), time.monotonic())))
            thread.start()
            time.sleep(0.3)
            at = time.monotonic()
            submitted = submit(admin, capability)
            thread.join(15)
            assert got and got[0][0]["id"] == submitted["id"]
            waits.append(got[0][1] - at)
            agent.complete(got[0][0])
    waits.sort()
    print(f"submit to claim across replicas: median {waits[len(waits) // 2] * 1000:.0f} ms, most {waits[-1] * 1000:.0f} ms")
    assert waits[len(waits) // 2] < 0.25


def test_should_keep_a_claim_alive_by_heartbeats_to_another_replica(fleet):
    fleet = fleet(2, KEIKO_CLAIM_TTL="3s")
    leader, others = fleet.leader()
    agent = others[0].agent(others[0].login(), "long")
    submit(leader.login(), "long")
    task = agent.take()
    for _ in range(10):
        time.sleep(0.5)
        done(agent.act(task, "heartbeat"))
    assert agent.complete(task)["attributes"]["status"] == "completed"


def test_should_use_tool_servers_on_every_replica(fleet, tmp_path):
    a, b = fleet(2).replicas
    admin = a.login()
    _, tool = tool_server(admin, tmp_path)
    for replica in (a, b):
        api = replica.login()
        call = lambda: api.post(f"/tools/{tool}/actions/call", {"arguments": {"text": "hi"}})
        until(lambda: call().status_code == 200, "the tool can be called")


def test_should_renew_the_token_for_a_tool_server_once_for_all_replicas(tmp_path):
    fleet = Fleet(tmp_path / "fleet", 2, KEIKO_GATEWAY_ALLOW_PRIVATE="true")
    for replica in fleet.replicas:
        replica.env["KEIKO_SERVER_PUBLIC_URL"] = f"http://127.0.0.1:{fleet.replicas[0].port_wanted}"
    with fleet, Guarded(lifetime=8) as guarded:
        one, other = fleet.replicas
        admin, there = one.login(), other.login()
        done(admin.post("/mcp-servers", {"name": "guarded", "transport": {"type": "http", "url": guarded.url}}), 201)
        # Begun on one replica, finished on the other.
        browser = Browser(one)
        page, _ = browser.sign_in("/oauth/connect/guarded")
        _, left = browser.send(page, decision="connect")
        page = browser.http.get(away(left).replace(one.url, other.url))
        assert "Connected" in page.text, page.text
        for client in (admin, there):
            until(lambda client=client: call(client, "guarded").status_code == 200, "it is let in everywhere")
        begun, answers = time.monotonic(), []
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            while time.monotonic() - begun < 20:
                answers += list(pool.map(lambda n: said(call((admin, there)[n % 2], "guarded")), range(16)))
        assert set(answers) == {"ada"}
        assert guarded.reused == 0 and 2 <= guarded.renewals <= 6, guarded.renewals


def test_should_find_a_task_of_a_tool_server_at_any_replica(tmp_path):
    with Fleet(tmp_path, 2, KEIKO_GATEWAY_ALLOW_PRIVATE="true") as fleet:
        first, second = fleet.replicas
        admin = first.login()
        tasks = Upstream(admin, mcp_tasks.SERVER, "modern-http")
        try:
            until(lambda: second.login().get(f"/tools/{tasks.name}__slow_compute").status_code == 200, "the other replica knows the tool")
            at = lambda replica: Modern(f"{replica.url}/mcp/{tasks.door}", admin.headers, capabilities=mcp_tasks.KNOWS)  # noqa: E731
            with at(first) as here, at(second) as there:
                id_ = mcp_tasks.begun(here, "slow_compute", seconds=0.5, label="two")["taskId"]
                until(lambda: "result" in there.ask("tasks/get", {"taskId": id_})[0], "the other replica reaches the server")
                assert mcp_tasks.said(mcp_tasks.ended(there, id_)["result"]) == "computed two for 0.5 s"
        finally:
            tasks.close()


@pytest.mark.parametrize("harm", ["kill", "stop", "pause"])
def test_should_go_on_when_the_leader_is_gone(fleet, harm):
    fleet = fleet(2)
    leader, (other,) = fleet.leader()
    agent = other.agent(other.login(), "work")
    submit(leader.login(), "work")
    held = agent.take()
    at = time.monotonic()
    if harm == "kill":
        leader.kill()
    elif harm == "stop":
        assert leader.stop() == 0
    else:
        leader.proc.send_signal(signal.SIGSTOP)
    submitted = submit(other.login(), "work")
    agent.complete(held)
    task = agent.take(20_000)
    print(f"after {harm}: the next claim came {time.monotonic() - at:.1f} s later")
    assert task["id"] == submitted["id"]
    if harm == "pause":
        leader.proc.send_signal(signal.SIGCONT)
        until(lambda: leader.client().get("/ready").status_code == 200, "the paused one serves again")
        # It leads nothing that another one leads, and says the same as the others.
        assert task_of(leader.login(), task["id"]) == task_of(other.login(), task["id"])
    agent.complete(task)
    kinds = [e["type"] for e in other.login().events(stream=submitted["id"])]
    assert kinds.count("tasks.task.claimed") == 1 and kinds.count("tasks.task.completed") == 1


def test_should_refuse_while_the_database_is_away_and_go_on_after(fleet):
    server = postgres.Postgres().start()
    try:
        fleet = fleet(2, server=server)
        a, b = fleet.replicas
        admin = a.login()
        agent = a.agent(admin, "none")
        before = submit(admin, "none")
        server.kill()
        until(lambda: a.client().get("/ready").status_code == 503, "a is not ready")
        answer = admin.post("/tasks", {"capability": "none", "description": "lost"})
        error = refused(answer, 503, "DATABASE_UNAVAILABLE")
        assert int(answer.headers["Retry-After"]) >= 1 and "/ready" in error["hint"]
        refused(b.client(token=admin.session["access_token"]).get(f"/tasks/{before['id']}"), 503, "DATABASE_UNAVAILABLE")
        assert a.client().get("/health").status_code == 200
        server.start()
        for replica in (a, b):
            until(lambda: replica.client().get("/ready").status_code == 200, "ready again")
        after = submit(admin, "none")
        assert {t["id"] for t in b.login().everything("/tasks")} == {before["id"], after["id"]}
        assert agent.take()["id"] in (before["id"], after["id"])
    finally:
        server.close()


def test_should_refuse_to_start_with_other_keys(fleet, tmp_path):
    fleet = fleet(1)
    (tmp_path / "other").mkdir()
    env = {**fleet.replicas[0].env, "KEIKO_KEYS_DIR": str(tmp_path / "other")}
    with pytest.raises(StartFailed, match="key files .* are missing .* copy them from another replica"):
        Keiko(tmp_path / "wrong" / "data", env=env).start_in_new_home()
    # Keys of another database.
    other = Keiko(tmp_path / "elsewhere" / "data", env={"KEIKO_DATABASE_URL": fleet.server.database()}).start_in_new_home()
    other.stop()
    env["KEIKO_KEYS_DIR"] = str(other.data_dir / "keys")
    with pytest.raises(StartFailed, match="other keys"):
        Keiko(tmp_path / "wrong2" / "data", env=env).start_in_new_home()


class Story:
    """Clients on all replicas, while those are killed, paused and cut off from the database."""

    def __init__(self, fleet, seed):
        self.fleet, self.random = fleet, random.Random(seed)
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.submitted, self.completed = {}, collections.Counter()

    def any_url(self):
        return self.random.choice(self.fleet.replicas).url

    def call(self, key, method, path, body, timeout=8):
        """One try on any replica; None when it did not answer or asked to come again."""
        try:
            with httpx2.Client(base_url=self.any_url(), trust_env=False, timeout=timeout) as http:
                answer = http.request(method, "/api/v1" + path, json=body, headers={"X-API-Key": key, **({"Idempotency-Key": body["_key"]} if body and "_key" in body else {})})
        except httpx2.TransportError:
            time.sleep(0.02)
            return None
        return None if answer.status_code in (429, 503) else answer

    def work(self, agent):
        while not self.over.is_set():
            answer = self.call(agent.key, "POST", "/tasks/actions/claim", {"max": 1, "wait_ms": 2000})
            for task in answer.json()["data"] if answer is not None and answer.status_code == 200 else []:
                self.complete(agent, task)

    def complete(self, agent, task):
        token = task["attributes"]["claim"]["token"]
        for _ in range(200):
            answer = self.call(agent.key, "POST", f"/tasks/{task['id']}/actions/complete", {"claim_token": token, "output": {"by": agent.id}})
            if answer is not None:
                if answer.status_code == 200:
                    with self.lock:
                        self.completed[task["id"]] += 1
                return


def harm(story, replica, kinds):
    kind = story.random.choice(kinds)
    if kind == "kill":
        replica.kill()
        time.sleep(story.random.uniform(0, 0.5))
        replica.start()
    elif kind == "pause":
        replica.proc.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_S + 1.5)
        replica.proc.send_signal(signal.SIGCONT)
    else:
        database = story.fleet.url.rsplit("/", 1)[1]
        story.fleet.server.sql("postgres", f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{database}'")
    return kind


@pytest.mark.timeout(900)
def test_should_lose_and_double_nothing_whatever_happens_to_replicas(fleet):
    seed = int(os.environ.get("KEIKO_TEST_SEED") or random.randrange(10**6))
    rounds, count = (40, 1500) if LONG else (6, 200)
    print(f"seed {seed}")
    fleet = fleet(3, KEIKO_CLAIM_TTL="5s")
    story = Story(fleet, seed)
    home = fleet.replicas[0]
    admin = home.login()
    capability = unique("story")
    agents = [Agent(home, admin, [capability]) for _ in range(6)]
    client = done(admin.post("/api-keys", {"name": unique("submitter"), "permissions": ["tasks.create", "tasks.read", "events.read"]}), 201)["attributes"]["key"]
    workers = [threading.Thread(target=story.work, args=(agent,), daemon=True) for agent in agents]
    [worker.start() for worker in workers]

    def submit_all():
        for n in range(count):
            key = unique("idem")
            while not story.over.is_set():
                try:
                    with httpx2.Client(base_url=story.any_url(), trust_env=False, timeout=8) as http:
                        answer = http.post("/api/v1/tasks", json={"capability": capability, "description": f"{key} {n}"}, headers={"X-API-Key": client, "Idempotency-Key": key})
                except httpx2.TransportError:
                    continue
                if answer.status_code in (200, 201):
                    assert story.submitted.setdefault(answer.json()["data"]["id"], n) == n
                    break
                assert answer.status_code == 503, answer.text
            time.sleep(0.01)

    submitter = threading.Thread(target=submit_all, daemon=True)
    submitter.start()
    kinds = [harm(story, story.random.choice(fleet.replicas), ["kill", "pause", "cut"]) for _ in range(rounds)]
    submitter.join(300)
    assert len(story.submitted) == count, "a submission got two tasks, or none"
    admin = home.login()
    open_tasks = lambda: [t for s in ("pending", "claimed") for t in admin.everything("/tasks", **{"filter[status]": s})]
    until(lambda: not open_tasks(), "all tasks are done", 120, every=0.5)
    story.over.set()
    [worker.join(20) for worker in workers]
    events = admin.events()
    positions = [e["position"] for e in events]
    assert positions == list(range(1, len(events) + 1)), "positions have a gap"
    done_by_log = collections.Counter(e["stream"] for e in events if e["type"] == "tasks.task.completed")
    assert set(done_by_log) == set(story.submitted) and set(done_by_log.values()) == {1}, "a task was completed twice, or never"
    assert all(task in done_by_log for task in story.completed), "an acknowledged completion is not in the log"
    tokens = collections.defaultdict(list)
    for e in events:
        if e["type"] == "tasks.task.claimed":
            tokens[e["stream"]].append(e["version"])
    assert all(t == sorted(set(t)) for t in tokens.values()), "fencing tokens must grow"
    assert admin.everything("/tasks", **{"filter[status]": "failed"}) == []
    print(f"replicas harmed: {dict(collections.Counter(kinds))}; tasks: {count}, acknowledged completions: {len(story.completed)}, claims: {sum(map(len, tokens.values()))}")
    for replica in fleet.replicas:
        assert replica.login().events()[: len(events)] == events, "a replica shows another order"


def test_should_deliver_each_event_of_a_group_once_whichever_replica_is_asked(fleet):
    """Consumers at two replicas; one of them is killed on the way."""
    fleet = fleet(2)
    a, b = fleet.replicas
    admin = a.login()
    roles = [done(admin.post("/roles", {"name": unique("role"), "permissions": []}), 201)["id"] for _ in range(5)]
    filter = {"type": "identity.role.permissions_changed"}
    groups = {
        mode: done(admin.post("/consumer-groups", {"name": mode, "mode": mode, "filter": filter, "ack_timeout_ms": 2_000, "max_attempts": 100}), 201)["id"]
        for mode in ("ordered", "shared")
    }
    total = 150
    words = {mode: [] for mode in groups}
    asked = {mode: set() for mode in groups}
    lock, finished = threading.Lock(), threading.Event()

    def consume(replica, mode):
        api = replica.login()
        while not finished.is_set():
            try:
                path = f"/consumer-groups/{groups[mode]}/actions"
                answer = api.post(f"{path}/fetch", {"consumer": replica.url, "limit": 4, "wait_ms": 500})
                if answer.status_code == 503:
                    continue
                for d in done(answer):
                    with lock:
                        asked[mode].add(d["event"]["position"])
                        # Noted before it is said: the next one of the stream cannot come earlier.
                        words[mode].append([d["event"]["stream"], d["event"]["position"], False])
                        word = words[mode][-1]
                    said = api.post(f"{path}/ack", {"tokens": [d["token"]]})
                    word[2] = said.status_code == 200
            except httpx2.HTTPError:
                return  # This replica is gone.

    threads = [threading.Thread(target=consume, args=(replica, mode)) for replica in (a, b) for mode in groups for _ in range(2)]
    for thread in threads:
        thread.start()
    writer = a.login()
    for n in range(total):
        done(writer.put(f"/roles/{roles[n % 5]}", {"permissions": [f"x.y{n}"]}))
        if n == 2 * total // 3:
            b.kill()
    shown = lambda mode: done(writer.get(f"/consumer-groups/{groups[mode]}"))["attributes"]["state"]
    for mode in groups:
        until(lambda: shown(mode)["lag_events"] == 0, f"the {mode} group is done", 60, every=0.2)
    finished.set()
    for thread in threads:
        thread.join(30)
    events = {e["position"] for e in writer.events(type="identity.role.permissions_changed")}
    assert len(events) == total
    for mode in groups:
        taken = [p for _, p, is_acked in words[mode] if is_acked]
        assert len(taken) == len(set(taken)), f"{mode}: acknowledged twice"
        # What was acknowledged by the replica that died, without an answer, is in `asked` only.
        assert asked[mode] == events and len(taken) >= total - 8, f"{mode}: {len(taken)} of {total}"
        assert shown(mode)["parked"] == 0
    for role in roles:
        order = [p for stream, p, is_acked in words["ordered"] if stream == role and is_acked]
        assert order == sorted(order), "the order of a stream holds across replicas"


def test_should_take_the_word_of_a_consumer_on_any_replica(fleet):
    """What one replica has in memory of a group is old as soon as another one has moved it."""
    a, b = (replica.login() for replica in fleet(2).replicas)
    role = done(a.post("/roles", {"name": unique("role"), "permissions": []}), 201)["id"]
    group = done(a.post("/consumer-groups", {"name": "words", "filter": {"stream": role}, "start": "beginning"}), 201)["id"]
    act = lambda api, verb, body: done(api.post(f"/consumer-groups/{group}/actions/{verb}", body))
    fetch = lambda api, wait_ms=0: act(api, "fetch", {"consumer": "c", "wait_ms": wait_ms})
    [first] = fetch(a)
    assert fetch(b) == [] and fetch(a) == []
    assert act(b, "ack", {"tokens": [first["token"]]}) == [{"token": first["token"], "result": "done"}]
    refused(a.post(f"/consumer-groups/{group}/actions/ack", {"tokens": [first["token"]]}), 409, "DELIVERY_STALE")
    for n, (takes, says) in enumerate([(a, b), (b, a), (a, b), (b, a)]):
        done(says.put(f"/roles/{role}", {"permissions": [f"x.y{n}"]}))
        [one] = fetch(takes, 5_000)
        assert act(says, "extend", {"tokens": [one["token"]]})[0]["result"] == "done"
        assert act(says, "ack", {"tokens": [one["token"]]})[0]["result"] == "done"
    # What is said at one replica wakes whoever waits at the other.
    done(a.put(f"/roles/{role}", {"permissions": ["x.y"]}))
    [one] = fetch(a, 5_000)
    got = []
    thread = threading.Thread(target=lambda: got.append((fetch(b, 15_000), time.monotonic())))
    thread.start()
    time.sleep(0.5)
    at = time.monotonic()
    assert act(a, "nak", {"tokens": [one["token"]]})[0]["result"] == "done"
    thread.join(20)
    assert len(got[0][0]) == 1 and got[0][1] - at < 2
    done(a.post(f"/consumer-groups/{group}/actions/seek", {"position": 0}))
    refused(b.post(f"/consumer-groups/{group}/actions/ack", {"tokens": [got[0][0][0]["token"]]}), 409, "DELIVERY_STALE")
    assert a.delete(f"/consumer-groups/{group}").status_code == 204
    refused(b.post(f"/consumer-groups/{group}/actions/fetch", {"consumer": "c"}), 404, "GROUP_NOT_FOUND")


def test_should_show_a_stalled_group_on_every_replica_and_go_on_when_the_leader_dies(fleet):
    fleet = fleet(2)
    leader, [other] = fleet.leader()
    admin = other.login()
    role = done(admin.post("/roles", {"name": unique("role"), "permissions": []}), 201)["id"]
    body = {"name": "slow", "filter": {"stream": role}, "start": "beginning", "stalled_after_ms": 1_000}
    group = done(admin.post("/consumer-groups", body), 201)["id"]
    warned = lambda replica: [w for w in replica.client().get("/ready").json()["warnings"] if group in w["ids"]]
    for replica in fleet.replicas:
        until(lambda: warned(replica), f"{replica.url} shows the stalled group")
    alerts = lambda: [e["type"].rsplit(".", 1)[1] for e in done(admin.get("/events", stream=group, category="system"))]
    assert alerts() == ["stalled"], "once, whatever the number of replicas"
    leader.kill()
    act = lambda verb, body: done(admin.post(f"/consumer-groups/{group}/actions/{verb}", body))
    taken = act("fetch", {"consumer": "c"})
    assert act("ack", {"tokens": [taken[0]["token"]]})[0]["result"] == "done", "nothing rests on a leader"
    until(lambda: alerts() == ["stalled", "recovered"], "the next leader looks after the group", 20)
    until(lambda: not warned(other), "it is well again")
