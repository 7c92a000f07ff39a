"""Agents: registering, finding, liveness, the actions on them."""

import json
import socket
import threading

import pytest

from harness import absent, done, path_of, refused, submit, unique, until

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def register(admin, **fields):
    return done(admin.post("/agents", {"name": unique("agent"), **fields}), 201)


def attributes(admin, agent_id):
    return done(admin.get(f"/agents/{agent_id}"))["attributes"]


def event_types(client, stream):
    return [event["type"] for event in client.events(stream=stream)]


def found(client, **query):
    """Names in the order of the discovery."""
    return [item["attributes"]["name"] for item in done(client.get("/discovery", **query))]


# Create, read, update, delete


def test_should_need_only_a_name(admin):
    made = register(admin)
    assert made["type"] == "agent" and made["id"].startswith("agent_")
    got = made["attributes"]
    assert got["status"] == "registered" and got["version"] == 1
    assert got["capabilities"] == [] and got["labels"] == {} and got["max_concurrency"] == 10
    assert {"agent_type", "description", "cost_per_task", "created_at", "updated_at"} <= set(got)
    assert done(admin.get(f"/agents/{made['id']}"))["attributes"] == got
    bare = register(admin, capabilities=[{"name": unique("cap")}])["attributes"]["capabilities"][0]
    assert {"version", "description", "input_schema", "output_schema", "domains", "tags"} <= set(bare)
    assert bare["domains"] == [] and bare["tags"] == []


def test_should_keep_what_was_registered(admin):
    fields = {
        "agent_type": "backend_agent", "description": "Reviews code", "max_concurrency": 3, "cost_per_task": 0.25, "labels": {"team": "red"},
        "capabilities": [{
            "name": unique("review"), "version": "2.1.0", "description": "Finds faults", "input_schema": NUMBER, "output_schema": {"type": "object"},
            "domains": ["rust"], "tags": ["code", "quality"],
        }],
    }
    got = attributes(admin, register(admin, **fields)["id"])
    assert {name: got[name] for name in fields} == fields


def test_should_name_who_answers_for_an_agent_and_what_it_is_for(keiko, admin):
    me, person = done(admin.get("/auth/me"))["id"], keiko.user(admin, ["developer"])
    agent = keiko.agent(admin, purpose="Reviews every change")
    got = attributes(admin, agent.id)
    assert (got["owner"], got["purpose"]) == (me, "Reviews every change"), "whoever registers it answers for it"
    body = {"name": agent.name, "description": "x"}
    changed = done(admin.put(f"/agents/{agent.id}", {**body, "owner": person.name}))["attributes"]
    assert (changed["owner"], changed["purpose"], changed["description"]) == (person.id, "Reviews every change", "x")
    assert [a["id"] for a in admin.everything("/agents", **{"filter[owner]": person.id})] == [agent.id]
    for more in ({"purpose": "Whatever I like"}, {"owner": "admin"}):
        refused(agent.api.put(f"/agents/{agent.id}", {**body, **more}), 403, "PERMISSION_DENIED")
    assert attributes(admin, agent.id)["purpose"] == "Reviews every change"
    refused(admin.put(f"/agents/{agent.id}", {**body, "owner": "nobody"}), 404, "USER_NOT_FOUND")


def test_should_change_and_count_versions(admin):
    made = register(admin, description="old")
    changed = done(admin.put(f"/agents/{made['id']}", {"name": made["attributes"]["name"], "description": "new", "max_concurrency": 2}))
    assert changed["attributes"]["description"] == "new" and changed["attributes"]["max_concurrency"] == 2
    assert changed["attributes"]["version"] == 2
    assert changed["attributes"]["created_at"] == made["attributes"]["created_at"]
    assert len(event_types(admin, made["id"])) == 2


def test_should_delete_softly(keiko, admin):
    agent = keiko.agent(admin)
    assert admin.delete(f"/agents/{agent.id}").status_code == 204
    refused(admin.get(f"/agents/{agent.id}"), 404, "AGENT_NOT_FOUND")
    assert agent.id not in [a["id"] for a in admin.everything("/agents")]
    assert agent.name not in found(admin)
    refused(agent.api.post("/tasks/actions/claim", {"max": 1, "wait_ms": 0}), 401)
    assert len(event_types(admin, agent.id)) >= 2, "its record stays"
    refused(admin.delete(f"/agents/{agent.id}"), 404)
    assert register(admin, name=agent.name)["id"] != agent.id, "the name is free again"


def test_should_list_the_deleted_when_asked(admin, document):
    made = register(admin)
    admin.delete(f"/agents/{made['id']}")
    parameters = [p["name"] for p in document["paths"]["/api/v1/agents"]["get"]["parameters"] if "deleted" in p["name"]]
    assert parameters, "GET /agents documents how to ask for the deleted"
    gone = [a for a in admin.everything("/agents", **{parameters[0]: "true"}) if a["id"] == made["id"]]
    assert len(gone) == 1 and gone[0]["attributes"]["deleted_at"]


def test_should_hold_names_unique_and_accept_them_for_ids(admin):
    name = unique("Käthe's agent / 7%")
    made = register(admin, name=name)
    refused(admin.post("/agents", {"name": name}), 409)
    handle = path_of("agents", name)
    assert done(admin.get(handle))["id"] == made["id"]
    assert done(admin.post(handle + "/actions/pause"))["attributes"]["status"] == "paused"
    assert done(admin.put(handle, {"name": name, "description": "by name"}))["id"] == made["id"]
    other = register(admin)
    refused(admin.put(f"/agents/{other['id']}", {"name": name}), 409)
    assert admin.delete(handle).status_code == 204
    refused(admin.get(handle), 404)


def test_should_filter_the_list(admin):
    capability = unique("cap")
    made = register(admin, capabilities=[{"name": capability}])
    other = register(admin)
    assert [a["id"] for a in admin.everything("/agents", **{"filter[capability]": capability})] == [made["id"]]
    admin.post(f"/agents/{made['id']}/actions/pause")
    paused = [a["id"] for a in admin.everything("/agents", **{"filter[status]": "paused"})]
    assert made["id"] in paused and other["id"] not in paused
    refused(admin.get("/agents", **{"filter[status]": "sleeping"}), 400)


# Bad input


def test_should_name_every_wrong_field_with_its_place(admin):
    body = {"name": 5, "max_concurrency": "many", "capabilities": [{"name": unique("cap")}, {"tags": "no list"}], "labels": []}
    error = refused(admin.post("/agents", body), 400, "VALIDATION_FAILED")
    pointers = {problem["pointer"] for problem in error["details"]["errors"]}
    assert {"/name", "/max_concurrency", "/capabilities/1/tags", "/labels"} <= pointers
    assert any(p.startswith("/capabilities/1") and p != "/capabilities/1/tags" for p in pointers), "the capability without a name, too"


@pytest.mark.parametrize("body", [
    {}, {"name": ""}, {"name": " padded "}, {"name": "x" * 5000}, {"name": "a\u0000b"}, {"name": None}, [], "text", None,
    {"name": "ok", "max_concurrency": -1}, {"name": "ok", "max_concurrency": 1.5}, {"name": "ok", "cost_per_task": -1},
    {"name": "ok", "capabilities": [{"name": "a"}, {"name": "a"}]}, {"name": "ok", "labels": {"a": 1}},
], ids=lambda body: json.dumps(body)[:40])
def test_should_refuse_agents_that_make_no_sense(admin, body):
    refused(admin.post("/agents", body), (400, 422))


def test_should_refuse_unknown_fields(admin):
    error = refused(admin.post("/agents", {"name": unique("agent"), "colour": "red"}), 400)
    assert "colour" in json.dumps(error)
    error = refused(admin.post("/agents", {"name": unique("agent"), "capabilities": [{"name": "a", "colour": "red"}]}), 400)
    assert "colour" in json.dumps(error)


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"properties": 5}, {"type": "string", "pattern": "("}], ids=json.dumps)
def test_should_refuse_capabilities_whose_schema_is_none(admin, schema):
    name = unique("agent")
    error = refused(admin.post("/agents", {"name": name, "capabilities": [{"name": "a", "input_schema": schema}]}), 422)
    assert "schema" in json.dumps(error).lower()
    refused(admin.get(path_of("agents", name)), 404)


def test_should_never_fetch_a_remote_schema(keiko, admin):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/schema.json"
        for schema in ({"$ref": url}, {"properties": {"a": {"$ref": url + "#/a"}}}, {"$schema": url}, {"$id": url, "$ref": "other.json"}):
            capability = unique("cap")
            body = {"name": unique("agent"), "capabilities": [{"name": capability, "input_schema": schema, "output_schema": schema}]}
            answer = admin.post("/agents", body)
            assert answer.status_code in (201, 422), answer.text
            if answer.status_code == 201:
                task = admin.post("/tasks", {"description": "x", "capability": capability, "input": {"a": 1}})
                assert task.status_code in (201, 422), task.text
        local = {"name": "a", "input_schema": {"$ref": "file:///etc/passwd"}}
        refused(admin.post("/agents", {"name": unique("agent"), "capabilities": [local]}), 422)
        with pytest.raises(TimeoutError):
            trap.accept()


def test_should_follow_references_inside_a_schema(keiko, admin):
    capability = unique("cap")
    register(admin, capabilities=[{"name": capability, "input_schema": {"$ref": "#/$defs/x", "$defs": {"x": NUMBER}}}])
    submit(admin, capability, input={"n": 1})
    refused(admin.post("/tasks", {"description": "x", "capability": capability, "input": {"n": "one"}}), 422)


def test_should_answer_404_with_help_for_absent_agents(admin):
    for handle in (absent("agent"), unique("nobody"), "agent_tooshort", absent("task")):
        error = refused(admin.get(f"/agents/{handle}"), 404, "AGENT_NOT_FOUND")
        assert handle in error["message"]
    for verb in ("heartbeat", "pause", "resume", "drain", "restart", "issue-key"):
        refused(admin.post(f"/agents/{absent('agent')}/actions/{verb}", *([{}] if verb == "heartbeat" else [])), 404)
    refused(admin.post(f"/agents/{absent('agent')}/actions/dance"), 404)


# Liveness


def test_should_be_up_after_a_heartbeat_and_write_no_event_for_the_next_ones(keiko, admin):
    made = register(admin)
    key = done(admin.post(f"/agents/{made['id']}/actions/issue-key"), 200, 201)["attributes"]["key"]
    api = keiko.client(api_key=key)
    beat = done(api.post(f"/agents/{made['id']}/actions/heartbeat", {"load": {"running": 1, "queued_tokens": 200, "context_fill": 0.5}}))
    assert beat["id"] == made["id"] and beat["type"] == "agent"
    until(lambda: attributes(admin, made["id"])["status"] == "up", "status up after a heartbeat", timeout=5)
    before = event_types(admin, made["id"])
    for _ in range(5):
        done(api.post(f"/agents/{made['id']}/actions/heartbeat", {}))
    assert event_types(admin, made["id"]) == before, "lease renewals are no events"
    assert attributes(admin, made["id"])["status"] == "up"
    for load in ({"running": -1}, {"context_fill": "full"}, {"colour": 1}):
        refused(api.post(f"/agents/{made['id']}/actions/heartbeat", {"load": load}), (400, 422))


def test_should_go_down_when_the_lease_ends_and_up_again(new_keiko):
    server = new_keiko(env={"KEIKO_AGENT_LEASE": "1s"}).start()
    admin = server.login()
    agent = server.agent(admin)
    until(lambda: attributes(admin, agent.id)["status"] == "down", "status down after the lease", timeout=6)
    downs = [e for e in admin.events(stream=agent.id) if "down" in e["type"] or "down" in json.dumps(e["data"])]
    assert len(downs) == 1 and downs[0]["metadata"]["actor"]["kind"] == "system"
    until(lambda: agent.heartbeat() and attributes(admin, agent.id)["status"] == "up", "up again", timeout=6, every=0.2)
    assert len(admin.events(stream=agent.id)) > downs[0]["version"], "coming up again is an event too"
    # A server that was away does not blame the agents: they get a full lease after a restart.
    server.restart(same_port=True)
    assert attributes(admin, agent.id)["status"] == "up"
    until(lambda: attributes(admin, agent.id)["status"] == "down", "down again", timeout=6)


# Actions


def test_should_pause_resume_and_drain(keiko, admin):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    assert done(admin.post(f"/agents/{agent.id}/actions/pause"))["attributes"]["status"] == "paused"
    submit(admin, capability)
    assert agent.claim(wait_ms=300) == [], "a paused agent gets nothing"
    assert agent.heartbeat()["attributes"]["status"] == "paused", "a heartbeat does not end a pause"
    assert done(admin.post(f"/agents/{agent.id}/actions/resume"))["attributes"]["status"] in ("up", "registered")
    task = agent.take()
    assert done(admin.post(f"/agents/{agent.id}/actions/drain"))["attributes"]["status"] == "draining"
    submit(admin, capability)
    assert agent.claim(wait_ms=300) == [], "a draining agent gets nothing new"
    assert agent.complete(task)["attributes"]["status"] == "completed", "but finishes what it has"
    assert done(admin.post(f"/agents/{agent.id}/actions/resume"))["attributes"]["status"] in ("up", "registered")
    agent.take()
    assert len(event_types(admin, agent.id)) >= 6, "status changes are events"


def test_should_wake_a_waiting_agent_when_it_is_resumed(keiko, admin):
    capability = unique("cap")
    agent = keiko.agent(admin, capability)
    admin.post(f"/agents/{agent.id}/actions/pause")
    submit(admin, capability)
    got = []
    waiting = threading.Thread(target=lambda: got.extend(agent.claim(wait_ms=15_000)))
    waiting.start()
    done(admin.post(f"/agents/{agent.id}/actions/resume"))
    waiting.join(10)
    assert not waiting.is_alive() and len(got) == 1


def test_should_tell_the_agent_to_restart(keiko, admin):
    agent = keiko.agent(admin)

    def asked(beat):
        return any("restart" in name and value for name, value in {**beat["attributes"], **beat}.items())

    assert not asked(agent.heartbeat())
    done(admin.post(f"/agents/{agent.id}/actions/restart"))
    assert asked(agent.heartbeat()), "the next heartbeat says that a restart is wanted"
    assert any("restart" in kind for kind in event_types(admin, agent.id))


def test_should_issue_keys_that_are_the_agent(keiko, admin):
    agent = keiko.agent(admin)
    assert agent.key.startswith("kk_default_")
    second = done(admin.post(f"/agents/{agent.id}/actions/issue-key"), 200, 201)["attributes"]["key"]
    assert second != agent.key
    assert agent.key not in admin.get(f"/agents/{agent.id}").text
    assert done(keiko.client(api_key=second).get("/auth/me"))["id"] == agent.id


# Discovery


def test_should_discover_by_capability_tag_text_and_health(keiko, admin):
    capability, tag, word = unique("translate"), unique("tag"), "w" + unique("x").replace("-", "")
    plain = keiko.agent(admin, capability)
    tagged = keiko.agent(admin, {"name": capability, "tags": [tag]})
    worded = keiko.agent(admin, {"name": unique("cap"), "description": f"Knows {word} by heart"})
    asleep = register(admin, capabilities=[{"name": capability}])
    assert set(found(admin, capability=capability)) == {plain.name, tagged.name, asleep["attributes"]["name"]}
    assert found(admin, tag=tag) == [tagged.name]
    assert found(admin, q=word)[0] == worded.name
    assert set(found(admin, capability=capability, healthy="true")) == {plain.name, tagged.name}
    assert found(admin, capability=capability, tag=tag, healthy="true") == [tagged.name]
    assert found(admin, capability=unique("nothing")) == []
    refused(admin.get("/discovery", healthy="maybe"), 400)


def test_should_rank_with_reasons(keiko, admin):
    capability, word = unique("cap"), "w" + unique("x").replace("-", "")
    plain = keiko.agent(admin, capability)
    expert = keiko.agent(admin, {"name": capability, "description": f"An expert of {word}", "tags": [word]})
    items = done(admin.get("/discovery", capability=capability, q=word))
    assert items[0]["attributes"]["name"] == expert.name
    scores = [item["attributes"]["score"] for item in items]
    assert scores == sorted(scores, reverse=True)
    assert all(item["attributes"]["reasons"] for item in items), "each rank has its reasons"
    everyone = {item["attributes"]["name"]: item for item in done(admin.get("/discovery", capability=capability))}
    assert {plain.name, expert.name} == set(everyone)
    assert all(item["id"].startswith("agent_") and item["attributes"]["status"] == "up" for item in everyone.values())
