"""Access tokens as an attacker and as an auditor see them: finding the signing key, forging, altering."""

import base64
import hashlib
import hmac
import json
import re
import stat
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims_of(token):
    return json.loads(unb64(token.split(".")[1]))


def public_key(jwks, token):
    """The published key that a token names: its JWK and the key itself."""
    kid = jwt.get_unverified_header(token).get("kid")
    jwk = next(k for k in jwks["keys"] if kid is None or k["kid"] == kid)
    return jwk, Ed25519PublicKey.from_public_bytes(unb64(jwk["x"]))


def signing_key(data_dir, public):
    """The private key that belongs to `public` and the file that holds it, or None: PEM, DER, raw, hexadecimal, base64, JWK."""
    wanted = raw_public(public)
    for path in sorted(p for p in Path(data_dir).rglob("*") if p.is_file() and p.stat().st_size < 20_000):
        for key in _keys_in(path.read_bytes()):
            if raw_public(key.public_key()) == wanted:
                return key, path
    return None


def is_owner_only(path):
    return stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def raw_public(key):
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _keys_in(content):
    for load in (serialization.load_pem_private_key, serialization.load_der_private_key):
        try:
            key = load(content, None)
            if isinstance(key, Ed25519PrivateKey):
                yield key
        except (ValueError, TypeError):
            pass
    raw = [content, content.strip()]
    for word in re.findall(rb"[A-Za-z0-9_+/=-]{40,}", content):
        for decode in (bytes.fromhex, unb64, lambda t: base64.b64decode(t + "=" * (-len(t) % 4))):
            try:
                raw.append(decode(word.decode()))
            except ValueError:
                pass
    for seed in raw:
        if len(seed) in (32, 64):
            yield Ed25519PrivateKey.from_private_bytes(seed[:32])
        elif 40 < len(seed) < 200:
            try:
                yield serialization.load_der_private_key(seed, None)
            except (ValueError, TypeError):
                pass


def signed(claims, header, key, algorithm="EdDSA"):
    return jwt.encode(claims, key, algorithm=algorithm, headers={k: v for k, v in header.items() if k != "alg"})


def expired(token, key):
    """The same token, correctly signed, but an hour too old. And once more still valid, as a control."""
    claims, header, now = claims_of(token), jwt.get_unverified_header(token), int(time.time())
    old = {**claims, "iat": now - 7200, "exp": now - 3600, **({"nbf": now - 7200} if "nbf" in claims else {})}
    return signed(old, header, key), signed({**claims, "exp": now + 60}, header, key)


def forgeries(token, jwk, public):
    """Tokens that a server must refuse, by name."""
    head, body, signature = token.split(".")
    header, claims = jwt.get_unverified_header(token), claims_of(token)
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    own = Ed25519PrivateKey.generate()
    found = {
        "another key under the same kid": signed(claims, header, own),
        "own key in the header": signed(claims, {**header, "jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(raw_public(own.public_key()))}}, own),
        "unknown kid": signed(claims, {**header, "kid": "nobody"}, own),
        "altered claims": ".".join([head, b64(json.dumps({**claims, "sub": "user_01h455vb4pex5vsknk084sn02q"}).encode()), signature]),
        "longer life": ".".join([head, b64(json.dumps({**claims, "exp": claims["exp"] + 86400}).encode()), signature]),
        "no signature": f"{head}.{body}.",
        "cut": f"{head}.{body}",
        "flipped signature": f"{head}.{body}.{b64(bytes(b ^ 1 for b in unb64(signature)))}",
        "garbage": "garbage",
        "dots": "..",
    }
    for word in ("none", "None", "NONE"):
        found[f"alg {word}"] = b64(json.dumps({**header, "alg": word}).encode()) + f".{body}."
    for name, secret in (("PEM", pem), ("DER", der), ("raw", raw_public(public)), ("x", jwk["x"].encode())):
        found[f"HS256 with the public key as {name}"] = _hs256({**header, "alg": "HS256"}, body, secret)
    return found


def _hs256(header, body, secret):
    signing_input = f"{b64(json.dumps(header).encode())}.{body}"
    return f"{signing_input}.{b64(hmac.new(secret, signing_input.encode(), hashlib.sha256).digest())}"
