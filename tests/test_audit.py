"""The sealed record: `keiko audit`, checkpoints, tiles and proofs; and a malicious operator who changes what is stored.

Leaves, roots and proofs are computed here a second time, from the public descriptions (RFC 9162, C2SP tlog-tiles).
"""

import base64
import hashlib
import json
import re
import shutil
import sqlite3
import struct
import time

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from harness import ADMIN_PASSWORD, absent, command, done, refused, tool_server, unique, until

WITNESS = Ed25519PrivateKey.generate()


def vkey(name, kind, public):
    raw = bytes([kind]) + public
    key_id = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    return f"{name}+{key_id.hex()}+{base64.b64encode(raw).decode()}", key_id


WITNESS_KEY, WITNESS_ID = vkey("witness.example", 0x04, WITNESS.public_key().public_bytes_raw())
KEIKO_ENV = {"KEIKO_AUDIT_WITNESSES": WITNESS_KEY}


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaves):
    """The definition in RFC 9162, 2.1.1."""
    if len(leaves) == 1:
        return leaves[0]
    if not leaves:
        return hashlib.sha256(b"").digest()
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return node(root_of(leaves[:k]), root_of(leaves[k:]))


def root_from_proof(leaf, index, size, proof):
    """RFC 9162, 2.1.3.2."""
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        assert sn != 0
        if fn & 1 or fn == sn:
            r = node(p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node(r, p)
        fn, sn = fn >> 1, sn >> 1
    assert sn == 0
    return r


class Note:
    def __init__(self, text):
        self.whole = text
        body, signatures = text.rsplit("\n\n", 1)
        self.body = body + "\n"
        self.origin, size, root = self.body.splitlines()[:3]
        self.size, self.root = int(size), base64.b64decode(root)
        self.signatures = {line.split(" ")[1]: base64.b64decode(line.split(" ")[2]) for line in signatures.splitlines()}

    def check(self, key):
        name, key_id, encoded = key.split("+", 2)
        raw = base64.b64decode(encoded)
        signature = self.signatures[name]
        assert signature[:4].hex() == key_id and raw[0] == 1
        Ed25519PublicKey.from_public_bytes(raw[1:]).verify(signature[4:], self.body.encode())


def checkpoint(api, tree="log", size=0):
    """The latest checkpoint, at least of this size."""
    def latest():
        answer = api.get(f"/audit/{tree}/checkpoint")
        return answer.status_code == 200 and Note(answer.text).size >= size and Note(answer.text)
    return until(latest, f"{size} entries are sealed")


def tile(api, path, tree="log"):
    answer = api.get(f"/audit/{tree}/tile/{path}")
    assert answer.status_code == 200, answer.text
    return answer.content


def head(api):
    return done(api.get("/events", limit=500))[-1]["position"] if done(api.get("/events")) else 0


def b64(text):
    return base64.b64decode(text)


def test_should_seal_what_is_written_within_a_second(keiko, admin):
    for n in range(5):
        done(admin.post("/agents", {"name": unique("a"), "capabilities": []}), 201)
    at, size = time.monotonic(), admin.events()[-1]["position"]
    note = checkpoint(admin, size=size)
    assert time.monotonic() - at < 1
    key = admin.get("/audit/log/key").text.strip()
    note.check(key)
    assert note.origin == key.split("+")[0] and note.origin.endswith("/log")
    with pytest.raises(InvalidSignature):
        Note(note.whole.replace(f"\n{note.size}\n", f"\n{note.size + 1}\n", 1)).check(key)


def test_should_publish_tiles_from_which_the_root_follows(keiko, admin):
    for n in range(270 - admin.events()[-1]["position"]):
        done(admin.post("/agents", {"name": unique("a"), "capabilities": []}), 201)
    size = admin.events()[-1]["position"]
    note = checkpoint(admin, size=size)
    full, rest = tile(admin, "0/000"), tile(admin, f"0/001.p/{note.size - 256}")
    hashes = [(full + rest)[i : i + 32] for i in range(0, 32 * note.size, 32)]
    assert root_of(hashes) == note.root
    assert tile(admin, "1/000.p/1") == root_of(hashes[:256])
    # The entries lead to the same leaves, and hold no content.
    bundle, entries = tile(admin, "entries/000"), []
    while bundle:
        length = struct.unpack(">H", bundle[:2])[0]
        entries.append(bundle[2 : 2 + length])
        bundle = bundle[2 + length :]
    assert [hashlib.sha256(b"\x00" + entry).digest() for entry in entries] == hashes[:256]
    for path in ["0/002", "0/000.p/0", "0/0", "9/000", "%2e%2e/checkpoint", "0/000.p/256", f"0/001.p/{note.size}", "entries/x"]:
        assert admin.get(f"/audit/log/tile/{path}").status_code == 404, path


def test_should_prove_inclusion_and_consistency(keiko, admin):
    events = admin.events()
    note = checkpoint(admin, size=len(events))
    for event in [events[0], events[7], events[-1]]:
        for query in ({"position": event["position"]}, {"event": event["id"]}):
            proof = done(admin.get("/audit/log/inclusion", size=note.size, **query))["attributes"]
            assert proof["position"] == event["position"]
            assert root_from_proof(b64(proof["leaf"]), proof["position"] - 1, note.size, [b64(h) for h in proof["hashes"]]) == note.root
    proof = done(admin.get("/audit/log/consistency", **{"from": 5, "to": note.size}))["attributes"]
    assert b64(proof["root"]) == note.root and proof["hashes"]
    refused(admin.get("/audit/log/inclusion", position=0), 404, "ENTRY_NOT_SEALED")
    refused(admin.get("/audit/log/inclusion", position=note.size + 10, size=note.size), 404, "ENTRY_NOT_SEALED")
    refused(admin.get("/audit/log/inclusion", position=1, size=10**12), 400)
    refused(admin.get("/audit/log/inclusion"), 400)
    refused(admin.get("/audit/log/inclusion", event="evt_x"), 400)
    refused(admin.get("/audit/log/inclusion", event=absent("evt")), 404, "EVENT_NOT_FOUND")
    refused(admin.get("/audit/log/consistency", **{"from": 9, "to": 3}), 400)
    assert admin.get("/audit/other/checkpoint").status_code == 404


def test_should_keep_the_signatures_of_known_witnesses_only(keiko, admin):
    note = checkpoint(admin)
    refused(admin.get("/audit/log/checkpoint", cosigned="true"), 404, "CHECKPOINT_NOT_FOUND")

    def line(key, name, key_id, text=note.body):
        stamp = struct.pack(">Q", 1_800_000_000)
        message = f"cosignature/v1\ntime 1800000000\n{text}".encode()
        return f"— {name} {base64.b64encode(key_id + stamp + key.sign(message)).decode()}\n"

    stranger = Ed25519PrivateKey.generate()
    _, stranger_id = vkey("stranger", 0x04, stranger.public_key().public_bytes_raw())
    for bad in [note.whole, note.whole + line(stranger, "stranger", stranger_id), note.whole + line(stranger, "witness.example", WITNESS_ID), "x"]:
        refused(admin.post("/audit/log/cosignatures", {"note": bad}), 422, "COSIGNATURE_REFUSED")
    good = note.whole + line(stranger, "stranger", stranger_id) + line(WITNESS, "witness.example", WITNESS_ID)
    kept = done(admin.post("/audit/log/cosignatures", {"note": good}))["attributes"]["note"]
    assert set(Note(kept).signatures) == {note.origin, "witness.example"}, "what was not checked is not kept"
    assert admin.get("/audit/log/checkpoint", cosigned="true").text == kept
    # One of another server, or of another size, is not ours.
    forged = Note(note.whole.replace(f"\n{note.size}\n", f"\n{note.size + 1}\n", 1))
    refused(admin.post("/audit/log/cosignatures", {"note": forged.whole + line(WITNESS, "witness.example", WITNESS_ID, forged.body)}), 422)


def test_should_show_each_tenant_its_own_record_and_only_to_those_who_may(keiko, admin):
    boss = keiko.tenant(admin)
    assert checkpoint(boss).origin != checkpoint(admin).origin
    event = admin.events()[0]
    refused(boss.get("/audit/log/inclusion", event=event["id"]), 404)
    officer, developer = keiko.user(admin, ["security-officer"]), keiko.user(admin, ["developer"])
    assert officer.get("/audit/log/checkpoint").status_code == 200
    agent = keiko.agent(admin, unique("x"))
    for api in (developer, agent.api):
        refused(api.get("/audit/log/checkpoint"), 403)
        refused(api.get("/audit/log/tile/entries/000"), 403)


def test_should_seal_the_journal_too(keiko, admin, tmp_path):
    _, tool = tool_server(admin, tmp_path)
    for n in range(3):
        done(admin.post(f"/tools/{tool}/actions/call", {"arguments": {"text": "hi"}}))
    entries = until(lambda: len(done(admin.get("/journal"))) >= 4 and done(admin.get("/journal")), "the calls are in the journal")
    note = checkpoint(admin, "journal", len(entries))
    note.check(admin.get("/audit/journal/key").text.strip())
    proof = done(admin.get("/audit/journal/inclusion", position=2, size=note.size))["attributes"]
    assert root_from_proof(b64(proof["leaf"]), 1, note.size, [b64(h) for h in proof["hashes"]]) == note.root


def restamp(path):
    """Gives every page of a database the checksum of its content again, as whoever changes one on purpose would."""
    data = bytearray(path.read_bytes())
    size = struct.unpack(">H", data[16:18])[0]
    for start in range(0, len(data), size):
        words = struct.unpack(f"<{(size - 8) // 4}I", data[start : start + size - 8])
        first = second = 0
        for a, b in zip(words[::2], words[1::2], strict=True):
            first = (first + a + second) & 0xFFFFFFFF
            second = (second + b + first) & 0xFFFFFFFF
        data[start + size - 8 : start + size] = struct.pack("<II", first, second)
    path.write_bytes(data)


class Operator:
    """Somebody with the data directory in their hands. A user `home` has verified the record before."""

    def __init__(self, keiko, home, events=20):
        self.keiko, self.home = keiko, home
        home.mkdir(exist_ok=True)
        admin = keiko.login()
        for n in range(events):
            done(admin.post("/agents", {"name": unique("a"), "capabilities": [], "description": "the truth"}), 201)
        self.size = admin.events()[-1]["position"]
        checkpoint(admin, size=self.size)

    def stop(self):
        assert self.keiko.stop() == 0

    def sql(self, *statements, file="keiko.db"):
        with sqlite3.connect(self.keiko.data_dir / file) as db:
            for statement in statements:
                db.execute(*statement) if isinstance(statement, tuple) else db.execute(statement)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        restamp(self.keiko.data_dir / file)

    def row(self, position):
        with sqlite3.connect(self.keiko.data_dir / "keiko.db") as db:
            db.row_factory = sqlite3.Row
            found = dict(db.execute("SELECT * FROM events WHERE id = ?", ((1 << 40) + position,)).fetchone())
        db.close()
        return found

    def verify(self, *args):
        return command(self.home, "audit", "verify", "--from", self.keiko.data_dir, *args)

    def found_bad(self, *args):
        ran = self.verify(*args)
        assert ran.returncode == 1, ran.stdout + ran.stderr
        return ran.stderr


@pytest.fixture
def operator(new_keiko, tmp_path):
    made = Operator(new_keiko().start(), tmp_path / "auditor")
    made.stop()
    return made


def test_should_find_a_whole_record_whole_and_remember_it(operator):
    ran = operator.verify("--output", "json")
    assert ran.returncode == 0, ran.stderr
    log = [tree for tree in json.loads(ran.stdout) if tree["tree"].endswith("/log")][0]
    assert log["is_whole"] and log["entries"] == log["sealed"] == operator.size and len(log["root"]) == 64
    assert list((operator.home / ".config/keiko/checkpoints").iterdir())
    # A key that was given must be the one that signed.
    assert operator.verify("--key", log["key"]).returncode == 0
    stranger, _ = vkey("x", 1, bytes(range(32)))
    assert "not signed by" in operator.found_bad("--key", stranger)
    assert "name+id+key" in operator.found_bad("--key", "nonsense")


def test_should_verify_online_and_prove_an_event(keiko, admin, tmp_path):
    login = command(tmp_path, "login", "--server", keiko.url, "admin", "--password-stdin", stdin=ADMIN_PASSWORD)
    assert login.returncode == 0, login.stderr
    ran = command(tmp_path, "audit", "verify")
    assert ran.returncode == 0 and "yes" in ran.stdout, ran.stderr
    event = admin.events()[3]["id"]
    checkpoint(admin, size=4)
    proved = command(tmp_path, "audit", "prove", event)
    assert proved.returncode == 0 and "The proof is right" in proved.stderr, proved.stderr
    assert command(tmp_path, "audit", "prove", absent("evt")).returncode == 1
    assert command(tmp_path, "audit", "key").stdout.count("keiko/") == 2
    assert command(tmp_path, "audit", "checkpoint", "log").stdout.startswith("keiko/")


def test_should_name_an_event_whose_content_was_changed(operator):
    row = operator.row(7)
    operator.sql(("UPDATE events SET payload = CAST(replace(payload, 'the truth', 'a lie!!!!') AS BLOB) WHERE id = ?", (row["id"],)))
    bad = operator.found_bad()
    event = base32_id("evt", row["event"])
    assert "at position 7" in bad and event in bad and "does not match its hash" in bad


def base32_id(prefix, raw):
    alphabet, number, text = "0123456789abcdefghjkmnpqrstvwxyz", int.from_bytes(raw, "big"), ""
    for _ in range(26):
        text, number = alphabet[number & 31] + text, number >> 5
    return f"{prefix}_{text}"


def rewritten(row, position, tenant):
    """The event with another content and everything that follows from it: as the header's description says."""
    payload = bytes(row["payload"]).replace(b"the truth", b"a lie!!!!")
    payload_hash = hashlib.sha256(bytes(row["salt"]) + payload).digest()

    def part(value):
        return b"\xff\xff\xff\xff" if value is None else struct.pack(">I", len(value)) + value

    header = b"\x01" + bytes(row["event"]) + part(row["kind"].encode()) + struct.pack(">HB", row["shape"], row["category"]) + tenant
    header += part(row["stream"].encode()) + struct.pack(">QQqq", row["version"], position, row["occurred_at"], row["recorded_at"])
    header += part(row["actor_kind"].encode()) + part(row["actor_id"].encode()) + part(row["user"]) + part(row["correlation"].encode())
    header += part(row["causation"]) + part(row["trace_parent"].encode() if row["trace_parent"] else None)
    return payload, payload_hash, hashlib.sha256(b"\x00" + header + payload_hash).digest()


def rewrite(operator, position):
    row = operator.row(position)
    with sqlite3.connect(operator.keiko.data_dir / "keiko.db") as db:
        tenant = db.execute("SELECT tenant FROM logs").fetchone()[0]
    db.close()
    payload, payload_hash, leaf = rewritten(row, position, tenant)
    operator.sql(("UPDATE events SET payload = ?, payload_hash = ?, leaf = ? WHERE id = ?", (payload, payload_hash, leaf, row["id"])))
    return row, leaf


def test_should_name_an_event_that_was_rewritten_with_right_hashes(operator):
    row, _ = rewrite(operator, 9)
    bad = operator.found_bad()
    assert "at position 9" in bad and base32_id("evt", row["event"]) in bad and "not what was sealed" in bad


def test_should_see_that_a_whole_tree_was_rewritten(operator):
    _, leaf = rewrite(operator, 9)
    with sqlite3.connect(operator.keiko.data_dir / "keiko.db") as db:
        tile = db.execute("SELECT hashes FROM tiles WHERE level = 0").fetchone()[0]
    db.close()
    operator.sql(("UPDATE tiles SET hashes = ? WHERE level = 0", (tile[: 8 * 32] + leaf + tile[9 * 32 :],)))
    assert "another root than the signed one" in operator.found_bad()


def test_should_see_that_entries_were_cut_off(operator):
    operator.sql(("DELETE FROM events WHERE id > ?", ((1 << 40) + operator.size - 3,)))
    bad = operator.found_bad()
    assert f"at position {operator.size - 2}" in bad and "sealed and are missing" in bad


def test_should_see_that_an_entry_was_taken_out(operator):
    operator.sql(("DELETE FROM events WHERE id = ?", ((1 << 40) + 5,)))
    assert "position 5 is missing" in operator.found_bad()


def test_should_name_the_page_when_even_that_was_not_thought_of(operator):
    with sqlite3.connect(operator.keiko.data_dir / "keiko.db") as db:
        db.execute("UPDATE events SET kind = 'tasks.task.completed' WHERE id = ?", ((1 << 40) + 7,))
    db.close()
    assert "does not match its checksum" in operator.found_bad()


def test_should_see_that_the_seal_was_taken_off(operator):
    operator.sql("DELETE FROM checkpoints", "DELETE FROM tiles")
    assert "no signed checkpoint" in operator.found_bad()


def resealed(operator):
    """The server runs once more: it goes on from what it finds, and seals that."""
    operator.keiko.start()
    admin = operator.keiko.login()
    done(admin.post("/agents", {"name": unique("late"), "capabilities": []}), 201)
    checkpoint(admin, size=admin.events()[-1]["position"])
    operator.stop()


def test_should_see_a_forked_record_that_the_right_key_has_sealed(operator, tmp_path):
    shutil.copytree(operator.keiko.data_dir, tmp_path / "fork")
    # Both sides grow differently from here; the auditor has seen one of them.
    operator.keiko.start()
    admin = operator.keiko.login()
    for n in range(10):
        done(admin.post("/agents", {"name": unique("seen"), "capabilities": []}), 201)
    checkpoint(admin, size=admin.events()[-1]["position"])
    operator.stop()
    assert operator.verify().returncode == 0
    shutil.rmtree(operator.keiko.data_dir)
    shutil.copytree(tmp_path / "fork", operator.keiko.data_dir)
    resealed(operator)
    assert "when it was seen before" in operator.found_bad(), "it is shorter than what was seen"
    operator.keiko.start()
    admin = operator.keiko.login()
    for n in range(20):
        done(admin.post("/agents", {"name": unique("other"), "capabilities": []}), 201)
    checkpoint(admin, size=admin.events()[-1]["position"])
    operator.stop()
    assert "others than those that were sealed when they were seen before" in operator.found_bad()
    assert operator.verify("--forget").returncode == 0, "by itself it is sound: only what was seen before tells"


def test_should_see_another_key_under_the_same_record(operator):
    assert operator.verify().returncode == 0
    (operator.keiko.data_dir / "keys" / "checkpoint.pkcs8").unlink()
    resealed(operator)
    assert "not signed by" in operator.found_bad()
    assert "one is made" in operator.keiko.logs()


@pytest.mark.embedded
def test_should_find_changes_in_the_journal(new_keiko, tmp_path):
    operator = Operator(new_keiko().start(), tmp_path / "auditor", events=1)
    admin = operator.keiko.login()
    _, tool = tool_server(admin, tmp_path)
    for n in range(5):
        done(admin.post(f"/tools/{tool}/actions/call", {"arguments": {"text": "the truth"}}))
    checkpoint(admin, "journal", 6)
    operator.stop()
    assert operator.verify().returncode == 0
    operator.sql("UPDATE entries SET data = CAST(replace(data, 'the truth', 'a lie!!!!') AS BLOB) WHERE id = (SELECT min(id) FROM entries WHERE CAST(data AS TEXT) LIKE '%the truth%')", file="journal.db")
    bad = operator.found_bad()
    assert re.search(r"/journal is not whole at position \d+ \(jrn_", bad), bad


@pytest.mark.embedded
def test_should_refuse_to_look_into_a_running_servers_directory(keiko, tmp_path):
    ran = command(tmp_path, "audit", "verify", "--from", keiko.data_dir)
    assert ran.returncode == 1 and "in use by another keiko process" in ran.stderr
    ran = command(tmp_path, "audit", "verify", "--from", tmp_path)
    assert ran.returncode == 1 and "no data directory" in ran.stderr


def deep(operator, code):
    ran = command(operator.home, "doctor", "--deep", "--data-dir", operator.keiko.data_dir, "--output", "json")
    assert ran.returncode == code, ran.stdout + ran.stderr
    return {found["name"]: found for found in json.loads(ran.stdout)}


def test_should_find_with_a_deep_look_what_a_quick_one_does_not(operator):
    """Events, hashes and seals are all right, and yet what the server would answer is not what happened."""
    found = deep(operator, 0)
    assert found["seals"]["is_ok"] and found["entities"]["is_ok"], found
    stream = operator.row(operator.size)["stream"]
    operator.sql(("UPDATE entities SET state = CAST(replace(CAST(state AS TEXT), 'the truth', 'a lie') AS BLOB) WHERE stream = ?", (stream,)))
    assert command(operator.home, "doctor", "--data-dir", operator.keiko.data_dir).returncode == 0, "the record itself is whole"
    found = deep(operator, 1)
    assert not found["entities"]["is_ok"] and stream in found["entities"]["finding"] and found["seals"]["is_ok"]


def test_should_name_a_hidden_entity_and_a_broken_seal_in_a_deep_look(operator):
    stream = operator.row(operator.size)["stream"]
    operator.sql(("UPDATE entities SET is_deleted = 1 WHERE stream = ?", (stream,)))
    assert stream in deep(operator, 1)["entities"]["finding"]
    operator.sql(("UPDATE entities SET is_deleted = 0 WHERE stream = ?", (stream,)))
    operator.sql(("UPDATE tiles SET hashes = zeroblob(length(hashes)) WHERE level = 0",))
    found = deep(operator, 1)
    assert not found["seals"]["is_ok"] and "position" in found["seals"]["finding"]
