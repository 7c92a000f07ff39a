"""Keys that sign tokens follow one another by themselves. The clock is moved by libfaketime, at each restart."""

from pathlib import Path

import jwt
import pytest

from harness import done, until

KEY_LIFETIME = {"KEIKO_TOKEN_KEY_LIFETIME": "1h"}
LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


def at(server, minutes):
    """The same server, so many minutes after now."""
    assert LIBRARY, "no libfaketime; 'make helpers' installs it"
    server.env |= {"LD_PRELOAD": str(LIBRARY), "FAKETIME": f"+{minutes}m", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return server.restart(same_port=True)


def published(server):
    return [key["kid"] for key in server.client()._http.get("/.well-known/jwks.json").json()["keys"]]


def kid(client):
    return jwt.get_unverified_header(client.session["access_token"])["kid"]


@pytest.mark.embedded
def test_should_change_its_keys_while_every_token_stays_good(new_keiko):
    server = new_keiko(env=KEY_LIFETIME).start()
    old = server.login()
    [first] = published(server)
    assert kid(old) == first

    at(server, 59)
    assert published(server) == [first], "it has its time"
    at(server, 61)
    _, second = until(lambda: len(keys := published(server)) == 2 and keys, "another key is published")
    early = server.login()
    assert kid(early) == first, "long before it signs"

    at(server, 72)
    late = server.login()
    assert kid(late) == second and published(server) == [first, second]
    done(early.get("/auth/me"))
    done(late.get("/auth/me"))

    at(server, 85)
    done(late.get("/auth/me"))
    assert published(server) == [first, second], "as long as there may be a token of it"
    at(server, 88)
    until(lambda: published(server) == [second], "the old key goes")
    events = [e["type"] for e in done(server.login().get("/events", type="identity.signing_key.*"))]
    assert events == ["identity.signing_key.added"] * 2 + ["identity.signing_key.retired"]
