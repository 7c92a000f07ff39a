"""What survives: SIGKILL at random moments, SIGTERM, a second process, a full disk, a newer format. Seed: KEIKO_TEST_SEED."""

import collections
import os
import random
import re
import resource
import shutil
import signal
import socket
import threading
import time

import httpx2
import pytest

from harness import Keiko, StartFailed, done, free_port, refused, submit, task_of, unique

TASKS, AGENTS, KILLS = 300, 8, 6


class Story:
    """What the clients were told. The server must never tell anything else later."""

    def __init__(self):
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.acknowledged = threading.Condition()  # notified as soon as a client has an answer to a write
        self.submitted = {}  # task id -> position of the acknowledgement
        self.completed = {}  # task id -> (agent id, output)
        self.claims = collections.defaultdict(set)  # (agent id, task hash) -> claim ids
        self.events = {}  # position -> event

    def patient(self, call):
        """Repeats a call while the server is away. None when the story is over."""
        while not self.over.is_set():
            try:
                answer = call()
            except httpx2.TransportError:
                time.sleep(0.01)
                continue
            if answer.status_code != 503:
                if answer.request.method == "POST":
                    with self.acknowledged:
                        self.acknowledged.notify_all()
                return answer
            time.sleep(0.01)
        return None

    def read_log(self, client):
        """Reads the whole log and compares it with all that was ever seen of it."""
        with self.lock:
            seen = dict(self.events)
        log = client.events()
        by_position = {e["position"]: e for e in log}
        for position, event in seen.items():
            assert by_position.get(position) == event, f"position {position} was seen as {event}, is {by_position.get(position)}"
        with self.lock:
            self.events.update(by_position)
        return log


def watch(story, client):
    """Remembers every event as soon as it can be seen."""
    last = 0
    while not story.over.is_set():
        answer = story.patient(lambda: client.get("/events", after=last, limit=500, timeout=10))
        page = done(answer) if answer else []
        with story.lock:
            for event in page:
                assert story.events.setdefault(event["position"], event) == event
        last = page[-1]["position"] if page else last
        time.sleep(0 if page else 0.01)


def produce(story, client, numbers, capability, rng):
    """Submits its share; half of all tasks share their hash with another one."""
    for n in numbers:
        body = {"capability": capability, "description": f"work {n % (TASKS * 3 // 4)}", "collision": "strict", "max_attempts": 50}
        answer = story.patient(lambda: client.post("/tasks", body, headers={"Idempotency-Key": f"{capability}-{n}"}, timeout=10))
        if answer is None:
            return
        assert answer.status_code in (200, 201), answer.text
        story.submitted[answer.json()["data"]["id"]] = answer.json()["meta"]["position"]
        time.sleep(rng.uniform(0, 0.015))


def work(story, agent, rng):
    """Claims, works a moment, completes or (one in ten first attempts) fails; repeats what was not answered."""
    while not story.over.is_set():
        answer = story.patient(lambda: agent.api.post("/tasks/actions/claim", {"max": 2, "wait_ms": 500}, timeout=10))
        for task in done(answer) if answer else []:
            got = task["attributes"]
            with story.lock:
                story.claims[agent.id, got["task_hash"]].add(got["claim"]["id"])
            time.sleep(rng.uniform(0, 0.01))
            if got["attempt"] == 1 and int(got["description"].split()[1]) % 10 == 0:
                body, verb = {"error": {"code": "X", "message": "x"}, "retryable": True}, "fail"
            else:
                body, verb = {"output": {"by": agent.id, "claim": got["claim"]["id"]}}, "complete"
            answer = story.patient(lambda: agent.act(task, verb, **body))
            if answer is None:
                return
            assert answer.status_code in (200, 409), answer.text
            if verb == "complete" and answer.status_code == 200:
                with story.lock:
                    assert story.completed.setdefault(task["id"], (agent.id, body["output"])) == (agent.id, body["output"])


def check(story, admin):
    """Everything that was acknowledged is there, once, in one gapless order."""
    log = story.read_log(admin)
    positions = [e["position"] for e in log]
    assert positions == list(range(positions[0], positions[0] + len(positions))), "positions are gapless"
    assert len({e["id"] for e in log}) == len(log)
    versions, first, completions, claimed = collections.defaultdict(list), {}, collections.Counter(), collections.Counter()
    tasks = {t["id"]: t["attributes"] for t in admin.everything("/tasks")}
    for event in log:
        stream = event["stream"]
        versions[stream].append(event["version"])
        first.setdefault(stream, event["position"])
        completions[stream] += event["type"] == "tasks.task.completed"
        if event["type"] == "tasks.task.claimed":
            claimed[event["data"]["agent_id"], tasks[stream]["task_hash"]] += 1
    assert all(found == list(range(1, len(found) + 1)) for found in versions.values()), "versions are gapless"
    assert len(story.submitted) == TASKS == len(tasks) and set(story.submitted) == set(tasks)
    assert all(first[task] <= position for task, position in story.submitted.items()), "an acknowledgement comes after its event"
    for task_id, task in tasks.items():
        assert task["status"] == "completed" and completions[task_id] == 1, (task_id, task)
        assert (task["agent_id"], task["output"]) == story.completed[task_id]
    twice = {pair: claims for pair, claims in story.claims.items() if len(claims) > 1}
    assert not twice, f"an agent got a task hash twice: {twice}"
    assert max(claimed.values()) == 1, "neither does the log say so"


@pytest.mark.timeout(240)
def test_should_lose_and_double_nothing_when_killed_at_random_moments(new_keiko, capsys):
    seed = int(os.environ.get("KEIKO_TEST_SEED") or time.time_ns() % 1_000_000)
    with capsys.disabled():
        print(f" KEIKO_TEST_SEED={seed} ", end="", flush=True)
    rng = random.Random(seed)
    env = {"KEIKO_CLAIM_TTL": "5s", "KEIKO_AGENT_LEASE": "120s", "KEIKO_RETRY_DELAY_BASE": "50ms"}
    server: Keiko = new_keiko(port=free_port(), env=env).start()
    admin, capability, story = server.login(), unique("cap"), Story()
    agents = [server.agent(admin, capability) for _ in range(AGENTS)]
    threads = [threading.Thread(target=work, args=(story, agent, random.Random(rng.random()))) for agent in agents]
    threads += [threading.Thread(target=produce, args=(story, admin, range(i, TASKS, 2), capability, random.Random(rng.random()))) for i in range(2)]
    threads.append(threading.Thread(target=watch, args=(story, server.client(token=admin.session["access_token"]))))
    try:
        for thread in threads:
            thread.start()
        for threshold in sorted(rng.sample(range(5, TASKS - 20), KILLS)):
            wait_for(story, threads, threshold)
            with story.acknowledged:  # Right after an acknowledgement, or at any moment.
                story.acknowledged.wait(1)
            time.sleep(rng.choice([0, rng.uniform(0, 0.03)]))
            server.kill()
            if rng.random() < 0.5:  # Also while it starts.
                server.spawn()
                time.sleep(rng.uniform(0, 0.08))
                server.kill()
            server.restart(same_port=True)
            story.read_log(admin)
        wait_for(story, threads, TASKS)
    finally:
        story.over.set()
        for thread in threads:
            thread.join(20)
    check(story, admin)
    server.kill()
    server.restart(same_port=True)
    check(story, admin)


def wait_for(story, threads, count, timeout=90):
    """Waits until so many completions were acknowledged; fails early when a client died of a wrong answer."""
    deadline = time.monotonic() + timeout
    while len(story.completed) < count:
        workers_alive = sum(t.is_alive() for t in threads)
        assert workers_alive >= AGENTS + 1, "a client met an answer that must not be; see the traceback of its thread"
        assert time.monotonic() < deadline, f"{len(story.completed)} of {count} completed in {timeout} s"
        time.sleep(0.002)


def test_should_give_open_claims_a_full_ttl_after_a_crash(new_keiko):
    server = new_keiko(port=free_port(), env={"KEIKO_CLAIM_TTL": "3s"}).start()
    admin, capability = server.login(), unique("cap")
    agent = server.agent(admin, capability)
    submit(admin, capability)
    task, claimed = agent.take(), time.monotonic()
    time.sleep(1.5)
    server.kill()
    server.restart(same_port=True)
    while time.monotonic() < claimed + 3.7:  # Longer than the old claim would have lived, shorter than a new one.
        assert task_of(admin, task["id"])["status"] == "claimed"
        time.sleep(0.1)
    assert agent.complete(task)["attributes"]["attempt"] == 1


def test_should_repeat_an_idempotent_post_across_a_crash(new_keiko):
    server = new_keiko(port=free_port()).start()
    admin = server.login()
    body, key = {"name": unique("agent")}, {"Idempotency-Key": unique("once")}
    first = done(admin.post("/agents", body, headers=key), 201)
    server.kill()
    server.restart(same_port=True)
    assert done(admin.post("/agents", body, headers=key), 200, 201)["id"] == first["id"]
    refused(admin.post("/agents", {"name": unique("agent")}, headers=key), 409, "IDEMPOTENCY_CONFLICT")


# Ending in peace


def test_should_drain_on_sigterm(new_keiko):
    server = new_keiko(env={"KEIKO_SERVER_SHUTDOWN_TIMEOUT": "3s"}).start()
    admin, capability = server.login(), unique("cap")
    agent = server.agent(admin, capability)
    answers = []
    poll = threading.Thread(target=lambda: answers.append(agent.api.post("/tasks/actions/claim", {"max": 1, "wait_ms": 50_000}, timeout=60)))
    poll.start()
    with admin.stream("/events/stream", headers={"Last-Event-ID": "0"}) as stream, socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(b"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        next(stream.iter_lines())
        poll.join(0.5)
        assert poll.is_alive(), "the long poll waits"
        started = time.monotonic()
        assert server.stop(timeout=15) == 0
        assert time.monotonic() - started < 8, "streams and half requests must not hold it up for long"
    poll.join(5)
    assert done(answers[0]) == [], "a long poll is answered, not cut"
    with pytest.raises(httpx2.ConnectError):
        server.client().get("/health")


# Refusing to start


def start_fails(server):
    """What a user reads when the start fails."""
    with pytest.raises(StartFailed) as failure:
        server.start()
    assert failure.value.code not in (None, 0), failure.value
    assert "panicked" not in failure.value.output
    return failure.value.output


def test_should_refuse_a_second_process_on_the_same_directory(new_keiko):
    first = new_keiko().start()
    output = start_fails(new_keiko())
    assert re.search(r"(?i)another|already|in use|locked", output) and str(first.data_dir) in output
    assert first.login().get("/agents").status_code == 200, "the first one does not mind"
    first.kill()
    first.restart()  # A lock does not outlive its process.


def test_should_say_when_the_port_is_taken(new_keiko):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        output = start_fails(new_keiko(port=port))
    assert str(port) in output and re.search(r"(?i)in use|taken", output) and "--listen" in output


@pytest.mark.parametrize("place", ["under a file", "in /proc"])
def test_should_say_when_the_directory_is_not_writable(new_keiko, tmp_path, place):
    (tmp_path / "file").write_text("not a directory")
    server = new_keiko("file/data" if place == "under a file" else "/proc/keiko-data")
    server.home = tmp_path
    output = start_fails(server)
    assert str(server.data_dir) in output and "--data-dir" in output


def test_should_refuse_a_directory_of_a_newer_version(new_keiko):
    server = new_keiko().start()
    server.stop()
    mark = server.data_dir / "FORMAT"
    assert mark.read_text().strip() == "1"
    mark.write_text("999\n")
    output = start_fails(server)
    assert "999" in output and re.search(r"(?i)newer|upgrade", output)
    assert mark.read_text().strip() == "999", "it changes nothing there"
    mark.write_text("1\n")
    server.start()
    server.login()


# Full disks


def test_should_turn_read_only_when_the_disk_is_full_and_lose_nothing(new_keiko):
    server = new_keiko(port=free_port()).start()
    admin, capability = server.login(), unique("cap")
    server.agent(admin, capability)
    server.stop()
    largest = max(p.stat().st_size for p in server.data_dir.rglob("*") if p.is_file()) + 200 * 1024

    def limits():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    server.limits = limits
    server.restart(same_port=True)
    acknowledged, answer = [], None
    for n in range(3000):
        answer = admin.post("/tasks", {"description": f"fill {n}", "capability": capability, "input": {"a": os.urandom(4000).hex()}})
        if answer.status_code != 201:
            break
        acknowledged.append(answer.json()["data"])
    error = refused(answer, 503)
    assert "disk" in str(error).lower() or "read" in str(error).lower()
    for _ in range(5):
        refused(admin.post("/tasks", {"description": "one more", "capability": capability}), 503)
    assert admin.get("/agents").status_code == 200 and admin.get("/health").status_code == 200, "reading goes on"
    assert acknowledged and task_of(admin, acknowledged[-1]["id"])["status"] == "pending"
    server.kill()
    server.limits = None
    server.restart(same_port=True)
    there = {t["id"]: t["attributes"]["input"] for t in admin.everything("/tasks")}
    assert all(there.get(t["id"]) == t["attributes"]["input"] for t in acknowledged)
    submit(admin, capability)


def test_should_refuse_writes_before_the_disk_is_full(new_keiko):
    server = new_keiko(port=free_port()).start()
    admin, capability = server.login(), unique("cap")
    server.agent(admin, capability)
    assert shutil.disk_usage(server.data_dir).free < 100 * 2**40
    server.stop()
    server.env["KEIKO_STORE_DISK_FREE_MIN"] = "100TiB"
    server.restart(same_port=True)
    answer = admin.post("/tasks", {"description": "x", "capability": capability})
    refused(answer, 503, "DISK_LOW")
    assert answer.headers.get("retry-after")
    assert [a["attributes"]["capabilities"][0]["name"] for a in done(admin.get("/agents"))] == [capability]
    assert admin.everything("/tasks") == []
