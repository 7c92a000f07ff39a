"""TLS to a PostgreSQL that speaks it: the certificate is checked, and without TLS nothing is said."""

import datetime
import ipaddress
import os
import shutil

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from harness import Keiko, command, done, submit, unique
from postgres import Postgres


def certificate(name, issuer=None, address=None):
    """A certificate with its key; of an authority when nobody issues it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer[0].subject if issuer else subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    if address:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def pem(folder, name, part):
    path = folder / name
    if isinstance(part, x509.Certificate):
        path.write_bytes(part.public_bytes(serialization.Encoding.PEM))
    else:
        path.write_bytes(part.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server that takes connections with TLS only, and the authorities' files."""
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = certificate("Test Authority"), certificate("Another Authority")
    server_certificate, key = certificate("database", authority, "127.0.0.1")
    server = Postgres("ssl=on", "ssl_cert_file=server.pem", "ssl_key_file=server.key")
    for name, part in (("server.pem", server_certificate), ("server.key", key)):
        path = pem(server.home / "data", name, part)
        if os.geteuid() == 0:
            shutil.chown(path, "postgres")
    (server.home / "data" / "pg_hba.conf").write_text("local all all trust\nhostssl all all 127.0.0.1/32 trust\nhostnossl all postgres 127.0.0.1/32 trust\n")
    server.start()
    server.sql("postgres", "CREATE ROLE keiko LOGIN SUPERUSER")
    yield {"server": server, "authority": pem(folder, "authority.pem", authority[0]), "stranger": pem(folder, "stranger.pem", stranger[0])}
    server.close()


def url(site, *, host="127.0.0.1", mode="require"):
    name = unique("keiko").replace("-", "_")
    site["server"].sql("postgres", f"CREATE DATABASE {name} OWNER keiko")
    return f"postgres://keiko@{host}:{site['server'].port}/{name}?sslmode={mode}"


def refusal(site, home, address, authority):
    ran = command(home, "serve", "--data-dir", home / unique("data"), "--listen", "127.0.0.1:0",
                  env={"KEIKO_DATABASE_URL": address, **({"KEIKO_DATABASE_TLS_CA": str(authority)} if authority else {})})
    assert ran.returncode == 1, ran.stdout
    return ran.stderr


@pytest.mark.embedded
def test_should_work_over_tls_with_a_certificate_that_the_authority_signed(site, tmp_path):
    address = url(site, mode="verify-full")
    server = Keiko(tmp_path / "data", env={"KEIKO_DATABASE_URL": address, "KEIKO_DATABASE_TLS_CA": str(site["authority"])})
    try:
        admin = server.start().login()
        capability = unique("cap")
        agent = server.agent(admin, capability)
        agent.work(admin, capability)
        encrypted = site["server"].sql("postgres", "SELECT bool_and(ssl), count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'keiko'")
        is_encrypted, count = encrypted.split("|")
        assert is_encrypted == "t" and int(count) >= 3, "every connection is encrypted"
        submit(admin, capability)
        done(admin.get("/tasks"))
    finally:
        server.close()


@pytest.mark.embedded
def test_should_refuse_a_certificate_of_somebody_else(site, tmp_path):
    assert "certificate" in refusal(site, tmp_path, url(site), site["stranger"]).lower()
    assert "certificate" in refusal(site, tmp_path, url(site), None).lower(), "the system's authorities did not sign it"
    assert "certificate" in refusal(site, tmp_path, url(site, host="localhost"), site["authority"]).lower(), "it is for another name"


@pytest.mark.embedded
def test_should_not_go_on_without_tls_where_it_is_asked_for(site, tmp_path):
    plain = Postgres().start()
    try:
        plain.sql("postgres", "CREATE ROLE keiko LOGIN SUPERUSER")
        error = refusal(site, tmp_path, f"postgres://keiko@127.0.0.1:{plain.port}/postgres?sslmode=require", site["authority"])
        assert "TLS" in error or "tls" in error, error
    finally:
        plain.close()
    assert "sslmode=disable" in refusal(site, tmp_path, url(site, mode="disable"), site["authority"])
    assert "cannot be read" in refusal(site, tmp_path, url(site), tmp_path / "none.pem")


@pytest.mark.embedded
def test_should_be_refused_without_tls_by_a_database_that_demands_it(site, tmp_path):
    assert "pg_hba.conf" in refusal(site, tmp_path, url(site, mode="disable"), None)
