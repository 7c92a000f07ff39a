"""HTTPS by the server itself: a certificate of its own or one that is given, and what clients are told over it."""

import re
import socket
import ssl

import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness import ADMIN_PASSWORD, command, until
from mailbox import certificate


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from harness import Keiko

    keiko = Keiko(tmp_path_factory.mktemp("tls") / "data", env={"KEIKO_TLS_SELF_SIGNED": "true", "KEIKO_GRPC_LISTEN": "127.0.0.1:0"})
    keiko.spawn()
    until(lambda: "listening on https://" in keiko.stdout() or not keiko.alive(), "it listens")
    url = next(line.split()[-1] for line in keiko.stdout().splitlines() if line.startswith("listening on"))
    yield keiko, url, keiko.data_dir / "tls" / "cert.pem"
    keiko.close()


def client(cert, **kw):
    return httpx2.Client(verify=ssl.create_default_context(cafile=str(cert)), trust_env=False, timeout=10, **kw)


def test_should_serve_with_a_certificate_of_its_own(served):
    _, url, cert = served
    with client(cert) as http:
        answer = http.get(f"{url}/ready")
        assert answer.status_code == 200 and answer.json()["status"] == "ready"
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert http.get(f"{url}/.well-known/openid-configuration").json()["issuer"] == url
        page = http.get(f"{url}/oauth/device")
        cookie = page.headers["set-cookie"]
        assert cookie.startswith("__Host-keiko-form=") and "Secure" in cookie and "HttpOnly" in cookie and "SameSite=Lax" in cookie
        body = {"username": "admin", "password": ADMIN_PASSWORD}
        assert http.post(f"{url}/api/v1/auth/login", json=body).status_code == 200
    with pytest.raises(httpx2.HTTPError), httpx2.Client(trust_env=False) as strict:
        strict.get(f"{url}/ready")
    assert (cert.parent / "key.pem").stat().st_mode & 0o077 == 0


def test_should_serve_grpc_with_the_same_certificate(served):
    keiko, _, cert = served
    address = until(lambda: re.search(r"(?m)^gRPC over TLS on (\S+)$", keiko.stdout()), "the gRPC address is printed")[1]
    trusted = grpc.ssl_channel_credentials(cert.read_bytes())
    with grpc.secure_channel(address, trusted) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="keiko.worker.v1.Worker")
        assert health.Check(asked, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    for channel in (grpc.insecure_channel(address), grpc.secure_channel(address, grpc.ssl_channel_credentials())):
        with channel, pytest.raises(grpc.RpcError) as refused:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_should_speak_nothing_older_than_tls_1_3(served):
    _, url, cert = served
    host, port = url.removeprefix("https://").split(":")
    old = ssl.create_default_context(cafile=str(cert))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection((host, int(port))) as raw, pytest.raises(ssl.SSLError):
        old.wrap_socket(raw, server_hostname=host)
    new = ssl.create_default_context(cafile=str(cert))
    new.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection((host, int(port))) as raw, new.wrap_socket(raw, server_hostname=host) as tls:
        assert tls.version() == "TLSv1.3" and tls.selected_alpn_protocol() == "h2"
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in raw.recv(100), "nothing in the clear"


def test_should_take_a_replaced_certificate_over_without_a_restart(tmp_path, new_keiko, served):
    (cert, key), authority = certificate(tmp_path)
    keiko = new_keiko(env={"KEIKO_TLS_CERT": cert, "KEIKO_TLS_KEY": key}).spawn()
    until(lambda: "listening on https://" in keiko.stdout() or not keiko.alive(), "it listens")
    url = next(line.split()[-1] for line in keiko.stdout().splitlines() if line.startswith("listening on"))
    port = int(url.rsplit(":", 1)[1])
    before = ssl.get_server_certificate(("127.0.0.1", port))
    certificate(tmp_path)
    until(lambda: ssl.get_server_certificate(("127.0.0.1", port)) != before, "the new certificate is served", timeout=15, every=0.2)
    with client(authority) as http:
        assert http.get(f"{url}/ready").status_code == 200


def test_should_say_what_is_wrong_with_certificates(tmp_path):
    (tmp_path / "cert.pem").write_text("nonsense")
    tried = [
        (["--tls-cert", tmp_path / "cert.pem"], "go together"),
        (["--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "cert.pem"], "no certificate"),
        (["--tls-cert", tmp_path / "none.pem", "--tls-key", tmp_path / "none.pem"], "cannot read"),
    ]
    for flags, wanted in tried:
        ended = command(tmp_path, "serve", "--data-dir", tmp_path / "data", "--listen", "127.0.0.1:0", *flags)
        assert ended.returncode != 0 and wanted in ended.stderr, ended.stderr
