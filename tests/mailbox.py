"""Where mails arrive: a folder, or an SMTP server by other hands with whatever answers a test wants."""

import email
import email.policy
import re
import ssl

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address

from harness import until


def parsed(raw):
    return email.message_from_bytes(raw, policy=email.policy.default)


def link(message):
    """The one address that a mail leads to."""
    found = re.findall(r"https?://\S+", message.get_content())
    links = [url for url in found if "/account/" in url]
    assert len(links) == 1, message.get_content()
    return links[0]


def token(message):
    return link(message).split("token=")[1]


class Folder:
    """The folder that mails are put into where none are sent."""

    def __init__(self, path):
        self.path = path

    def all(self):
        files = sorted(self.path.glob("*.eml"), key=lambda file: file.name) if self.path.exists() else []
        return [parsed(file.read_bytes()) for file in files]

    def to(self, address, count=1):
        """The mails to an address, as soon as there are so many."""
        return until(lambda: (found := [m for m in self.all() if m["to"] == address]) and len(found) >= count and found, f"{count} mails to {address}")


class MailServer:
    """An SMTP server. `answers` are what it says to the next mails instead of taking them."""

    def __init__(self, port, certificate=None, credentials=None):
        self.mails, self.answers, self.logins, self.was_protected = [], [], [], []
        context = None
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
        server = self

        class Handler:
            async def handle_DATA(self, smtp, session, envelope):
                if server.answers:
                    return server.answers.pop(0)
                server.was_protected.append(session.ssl is not None)
                server.mails.append((envelope.mail_from, envelope.rcpt_tos, parsed(envelope.content)))
                return "250 OK"

        def authenticator(smtp, session, envelope, mechanism, data):
            server.logins.append(data.login.decode())
            return AuthResult(success=(data.login.decode(), data.password.decode()) == credentials)

        class Listener(Controller):
            def factory(self):
                more = {"authenticator": authenticator, "auth_required": True} if credentials else {}
                return SMTP(self.handler, hostname="mail.test", tls_context=context, require_starttls=bool(context), **more)

        self.listener = Listener(Handler(), hostname="127.0.0.1", port=port)
        self.listener.start()

    def to(self, address, count=1):
        """The mails to an address, as soon as there are so many."""
        return until(lambda: (found := [m for _, to, m in self.mails if address in to]) and len(found) >= count and found, f"{count} mails to {address}")

    def stop(self):
        self.listener.stop()


def certificate(folder):
    """A certificate for 127.0.0.1 by an authority that only who is told to trusts: `((certificate, key), authority)` as files."""
    now = datetime.now(timezone.utc)

    def made(name, issuer, key, signer, *extensions):
        named = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])  # noqa: E731
        builder = x509.CertificateBuilder(named(issuer), named(name), key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=1))
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, is_critical)
        return builder.sign(signer, hashes.SHA256())

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = made("authority.test", "authority.test", authority_key, authority_key, (x509.BasicConstraints(ca=True, path_length=0), True))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    leaf = made("mail.test", "authority.test", key, authority_key, (names, False))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files = [folder / name for name in ("cert.pem", "key.pem", "authority.pem")]
    for file, content in zip(files, [leaf.public_bytes(serialization.Encoding.PEM), private, authority.public_bytes(serialization.Encoding.PEM)]):
        file.write_bytes(content)
    return (str(files[0]), str(files[1])), str(files[2])
