"""Work over gRPC, by the official Python client with stubs made from the committed `.proto` file."""

import importlib
import json
import queue
import re
import sys
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

from harness import REPO, done, opened, submit, unique, until

KEIKO_ENV = {"KEIKO_GRPC_LISTEN": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def all_stubs(tmp_path_factory):
    """(messages, services) of work and of events, generated."""
    out = tmp_path_factory.mktemp("stubs")
    proto = REPO / "proto"
    files = [str(proto / file) for file in ("keiko/worker/v1/worker.proto", "keiko/events/v1/events.proto")]
    assert protoc.main(["protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_python_out={out}", *files]) == 0
    for folder in ("keiko", "keiko/worker", "keiko/worker/v1", "keiko/events", "keiko/events/v1"):
        # A package with a head goes before the SDK's one.
        (out / folder / "__init__.py").touch()
    # The SDK has the package `keiko` too; the stubs' one is another, and nobody else sees it.
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "keiko"}
    sys.path.insert(0, str(out))
    try:
        names = [("keiko.worker.v1.worker_pb2", "keiko.worker.v1.worker_pb2_grpc"), ("keiko.events.v1.events_pb2", "keiko.events.v1.events_pb2_grpc")]
        found = [tuple(importlib.import_module(name) for name in pair) for pair in names]
    finally:
        sys.path.remove(str(out))
        for name in [name for name in sys.modules if name.split(".")[0] == "keiko"]:
            del sys.modules[name]
        sys.modules.update(hidden)
    return found


@pytest.fixture(scope="module")
def stubs(all_stubs):
    """(messages, services) of work."""
    return all_stubs[0]


@pytest.fixture(scope="module")
def event_stubs(all_stubs):
    """(messages, services) of events."""
    return all_stubs[1]


@pytest.fixture(scope="module")
def address(keiko):
    return until(lambda: re.search(r"(?m)^gRPC on (\S+)$", keiko.stdout()), "the gRPC address is printed")[1]


@pytest.fixture
def channel(address):
    with grpc.insecure_channel(address) as channel:
        yield channel


class Stream:
    """An agent's stream: what it says goes in, what it is told comes out."""

    def __init__(self, stubs, channel, key):
        self.messages, services = stubs
        self._said, self._told, self._aside = queue.Queue(), queue.Queue(), []
        self._call = services.WorkerStub(channel).Work(iter(self._said.get, None), metadata=[("x-api-key", key)])
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for told in self._call:
                self._told.put(told)
            self._told.put(None)
        except grpc.RpcError as error:
            self._told.put(error)

    def say(self, number=0, **what):
        self._said.put(self.messages.WorkRequest(number=number, **what))

    def told(self, kind, timeout=10):
        """The next answer of a kind; others wait for whoever asks for them. A stream that ended raises."""
        for i, answer in enumerate(self._aside):
            if answer.WhichOneof("what") == kind:
                return getattr(self._aside.pop(i), kind)
        while True:
            answer = self._told.get(timeout=timeout)
            if isinstance(answer, Exception):
                raise answer
            assert answer is not None, f"the stream ended before '{kind}' came"
            if answer.WhichOneof("what") == kind:
                return getattr(answer, kind)
            self._aside.append(answer)

    def ended(self, timeout=10):
        """Waits for the end; answers the error, if it was one."""
        while (answer := self._told.get(timeout=timeout)) is not None:
            if isinstance(answer, Exception):
                return answer
        return None

    def want(self, tasks):
        self.say(want=self.messages.Want(tasks=tasks))

    def complete(self, number, task, output):
        self.say(number, complete=self.messages.Complete(task_id=task.task_id, claim_token=task.claim_token, output_json=json.dumps(output)))

    def close(self):
        self._said.put(None)


@pytest.fixture
def stream(stubs, channel):
    opened = []

    def open_stream(key):
        opened.append(Stream(stubs, channel, key))
        return opened[-1]

    yield open_stream
    for one in opened:
        one.close()


def test_should_give_work_and_take_results(keiko, admin, stream):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    work = stream(agent.key)
    work.want(2)
    ids = {submit(admin, capability, input={"n": n})["id"] for n in range(5)}
    completed = set()
    for number in range(5):
        task = work.told("assigned")
        assert task.capability == capability and task.attempt == 1 and task.expires_at_ms > 0
        work.say(1, progress=work.messages.Progress(task_id=task.task_id, claim_token=task.claim_token, percent=50, message="half"))
        kept = work.told("done")
        assert kept.status == "claimed" and kept.expires_at_ms > 0
        work.complete(2, task, {"got": json.loads(task.input_json)["n"]})
        ended = work.told("done")
        assert ended.number == 2 and ended.status == "completed" and not ended.HasField("expires_at_ms")
        completed.add(task.task_id)
    assert completed == ids
    got = {done(admin.get(f"/tasks/{i}"))["attributes"]["output"]["got"] for i in ids}
    assert got == {0, 1, 2, 3, 4}


def test_should_hold_no_more_than_wanted(keiko, admin, stream):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    for n in range(3):
        submit(admin, capability, input={"n": n})
    work = stream(agent.key)
    work.want(2)
    first, second = work.told("assigned"), work.told("assigned")
    with pytest.raises(queue.Empty):
        work.told("assigned", timeout=0.5)
    work.say(1, release=work.messages.Release(task_id=first.task_id, claim_token=first.claim_token, reason="enough"))
    work.want(0)
    assert work.told("done").status == "pending"
    work.say(2, fail=work.messages.Fail(task_id=second.task_id, claim_token=second.claim_token, code="NO", message="cannot", is_final=True))
    assert work.told("done").status == "failed"
    assert done(admin.get(f"/tasks/{second.task_id}"))["attributes"]["error"] == {"code": "NO", "message": "cannot"}


def test_should_slow_a_stream_down_to_its_rate_and_refuse_nothing(new_keiko, stubs):
    server = new_keiko(env={**KEIKO_ENV, "KEIKO_LIMIT_WRITE": "20/s"}).start()
    admin = server.login()
    agent = server.agent(admin, "slow")
    submit(admin, "slow")
    with grpc.insecure_channel(re.search(r"(?m)^gRPC on (\S+)$", server.stdout())[1]) as channel:
        work = Stream(stubs, channel, agent.key)
        work.want(1)
        task, begun = work.told("assigned"), time.monotonic()
        for number in range(1, 71):
            work.say(number, progress=work.messages.Progress(task_id=task.task_id, claim_token=task.claim_token, percent=number))
        assert {work.told("done").number for _ in range(70)} == set(range(1, 71))
        assert time.monotonic() - begun > 2, "20 at once, then 20 in each second"
        assert not [told for told in work._aside if told.WhichOneof("what") == "refused"]
        work.close()


def test_should_refuse_as_over_http(keiko, admin, stream):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    submit(admin, capability)
    work = stream(agent.key)
    work.want(1)
    task = work.told("assigned")
    for number, (wrong, code) in enumerate([
        ({"complete": work.messages.Complete(task_id=task.task_id, claim_token="1", output_json="{}")}, "CLAIM_STALE"),
        ({"complete": work.messages.Complete(task_id="task_x", claim_token="1")}, "TASK_NOT_FOUND"),
        ({"complete": work.messages.Complete(task_id=task.task_id, claim_token=task.claim_token, output_json="[1]")}, "VALIDATION_FAILED"),
        ({"complete": work.messages.Complete(task_id=task.task_id, claim_token=task.claim_token, output_json="{")}, "VALIDATION_FAILED"),
        ({"complete": work.messages.Complete(task_id=task.task_id, claim_token=task.claim_token, output_json='{"a":' * 100 + "1" + "}" * 100)}, "VALIDATION_FAILED"),
        ({"progress": work.messages.Progress(task_id=task.task_id, claim_token=task.claim_token, percent=101)}, "VALIDATION_FAILED"),
        ({}, "VALIDATION_FAILED"),
    ]):
        work.say(number, **wrong)
        refused = work.told("refused")
        assert (refused.number, refused.code) == (number, code), refused
        assert refused.message and refused.hint and json.loads(refused.details_json) is not None
    work.complete(99, task, {})
    assert work.told("done").status == "completed"


def test_should_need_an_agents_credentials(keiko, admin, stubs, channel, stream):
    def code(key):
        return stream(key).ended().code()

    assert code("kk_default_nonsense") == grpc.StatusCode.UNAUTHENTICATED
    key = done(admin.post("/api-keys", {"name": unique("key"), "permissions": ["tasks.read"]}), 201)["attributes"]["key"]
    assert code(key) == grpc.StatusCode.PERMISSION_DENIED
    messages, services = stubs
    with pytest.raises(grpc.RpcError) as refused:
        services.WorkerStub(channel).Submit(messages.SubmitRequest(description="x", capability="y"))
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_should_end_the_work_of_a_revoked_key(keiko, admin, stream):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    work = stream(agent.key)
    work.want(1)
    submit(admin, capability)
    task = work.told("assigned")
    admin.delete(f"/agents/{agent.id}")

    def refusal():
        work.say(1, heartbeat=work.messages.Heartbeat(task_id=task.task_id, claim_token=task.claim_token))
        try:
            return work.told("refused", timeout=0.3).code == "KEY_INVALID"
        except queue.Empty:
            return False

    until(refusal, "the key is refused")


def test_should_submit_once_for_one_key(keiko, admin, stubs, channel):
    messages, services = stubs
    capability = unique("cap")
    keiko.agent(admin, capability)
    metadata = [("authorization", f"Bearer {admin.session['access_token']}")]

    def send(**more):
        request = messages.SubmitRequest(description="do it", capability=capability, input_json='{"n": 1}', priority=7, **more)
        return services.WorkerStub(channel).Submit(request, metadata=metadata)

    first = send(idempotency_key="k1")
    assert send(idempotency_key="k1").task_id == first.task_id and send().task_id != first.task_id
    got = done(admin.get(f"/tasks/{first.task_id}"))["attributes"]
    assert got["input"] == {"n": 1} and got["priority"] == 7
    for wrong in ({"capability": "nobody can"}, {"input_json": "{"}, {"description": ""}, {"idempotency_key": "ä"}):
        with pytest.raises(grpc.RpcError) as refused:
            services.WorkerStub(channel).Submit(messages.SubmitRequest(**{"description": "x", "capability": capability, **wrong}), metadata=metadata)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "keiko-code" in dict(refused.value.trailing_metadata())


def test_should_hand_over_again_what_a_broken_stream_had(keiko, admin, address, stubs):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    first = grpc.insecure_channel(address)
    work = Stream(stubs, first, agent.key)
    work.want(1)
    task = submit(admin, capability)["id"]
    assert work.told("assigned").task_id == task
    first.close()
    with grpc.insecure_channel(address) as second:
        again = Stream(stubs, second, agent.key)
        # The claim still holds: its token is good on another stream, and over HTTP.
        taken = done(admin.get(f"/tasks/{task}"))["attributes"]["claim"]
        assert taken["agent_id"] == agent.id
        again.close()


def test_should_serve_health_and_reflection_to_anybody(channel):
    found = ProtoReflectionDescriptorDatabase(channel)
    assert {"keiko.worker.v1.Worker", "keiko.events.v1.EventService", "grpc.health.v1.Health"} <= set(found.get_services())
    assert "WorkRequest" in {message.name for message in found.FindFileContainingSymbol("keiko.worker.v1.Worker").message_type}
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("keiko.worker.v1.Worker", "keiko.events.v1.EventService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING


def test_should_tell_agents_that_it_stops_and_take_their_results(new_keiko, stubs):
    keiko = new_keiko(env=KEIKO_ENV).start()
    admin = keiko.login()
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    where = until(lambda: re.search(r"(?m)^gRPC on (\S+)$", keiko.stdout()), "the gRPC address is printed")[1]
    with grpc.insecure_channel(where) as channel:
        work = Stream(stubs, channel, agent.key)
        work.want(1)
        task_id = submit(admin, capability)["id"]
        task = work.told("assigned")
        keiko.proc.terminate()
        assert work.told("stopping").reason == "shutdown"
        work.complete(1, task, {"late": True})
        assert work.told("done").status == "completed"
        work.close()
        assert keiko.proc.wait(15) == 0
    assert done(keiko.start().login().get(f"/tasks/{task_id}"))["attributes"]["output"] == {"late": True}


# Events


def subscribe(event_stubs, channel, client, **request):
    """A subscription of whoever the client is."""
    messages, services = event_stubs
    token = client.headers["Authorization"]
    return services.EventServiceStub(channel).Subscribe(messages.SubscribeRequest(**request), metadata=[("authorization", token)], timeout=30)


def end_of_log(admin):
    return opened(admin.get("/agents", limit=1))["meta"]["position"]


def make(admin):
    return done(admin.post("/agents", {"name": unique("agent")}), 201)["id"]


def test_should_follow_events_as_over_http(admin, channel, event_stubs):
    before = end_of_log(admin)
    old = make(admin)
    stream = subscribe(event_stubs, channel, admin, after=before, status=True)
    first = next(stream).event
    assert first.stream == old and first.position == before + 1
    told = next(stream)
    assert told.WhichOneof("what") == "caught_up" and (told.caught_up.position, told.caught_up.behind) == (before + 1, 0)
    new = make(admin)
    assert next(stream).event.stream == new
    stream.cancel()
    (native,) = admin.events(after=before, stream=old)
    shown = {"id": first.id, "type": first.type, "source": first.source, "category": first.category, "version": first.version, "data": json.loads(first.data_json)}
    assert shown == {name: native[name] for name in shown}
    actor = {"kind": first.metadata.actor.kind, "id": first.metadata.actor.id, "address": first.metadata.actor.address, "client": first.metadata.actor.client}
    assert actor == native["metadata"]["actor"] and first.metadata.correlation_id == native["metadata"]["correlation_id"]


def test_should_filter_events_and_begin_at_the_end(admin, keiko, channel, event_stubs):
    capability = unique("cap")
    keiko.agent(admin, capability)
    before = end_of_log(admin)
    for priority in (1, 9):
        submit(admin, capability, f"priority {priority}", priority=priority)
    stream = subscribe(event_stubs, channel, admin, after=before, type="tasks.*", category="domain", filter="data.priority > 5")
    assert json.loads(next(stream).event.data_json)["priority"] == 9
    stream.cancel()
    live = subscribe(event_stubs, channel, admin, status=True)
    assert next(live).WhichOneof("what") == "caught_up", "from now on, when nothing is said"
    agent = make(admin)
    assert next(live).event.stream == agent
    live.cancel()


def test_should_refuse_subscriptions_with_the_codes_of_http(admin, keiko, channel, event_stubs):
    ahead = end_of_log(admin) + 1_000
    for request, code in (({"after": ahead}, "POSITION_AHEAD"), ({"filter": "data.x >"}, "FILTER_INVALID"), ({"category": "other"}, "VALIDATION_FAILED")):
        with pytest.raises(grpc.RpcError) as refused:
            next(subscribe(event_stubs, channel, admin, **request))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, request
        assert dict(refused.value.trailing_metadata())["keiko-code"] == code
        assert code != "FILTER_INVALID" or "line 1, column 9" in refused.value.details()
    with pytest.raises(grpc.RpcError) as refused:
        next(subscribe(event_stubs, channel, keiko.user(admin, ["user"])))
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_should_end_a_subscription_when_its_session_ends(admin, keiko, channel, event_stubs):
    reader = keiko.login()
    stream = subscribe(event_stubs, channel, reader, after=end_of_log(admin), status=True)
    assert next(stream).WhichOneof("what") == "caught_up"
    reader.post("/auth/logout")
    make(admin)
    assert len(list(stream)) <= 2, "the server ends it; otherwise this times out"
