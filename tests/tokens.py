"""Access tokens as an attacker and as an auditor see them: finding the signing key, forging, altering."""

import base64
import hashlib
import hmac
import json
import stat
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


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
    return jwk, jwt.PyJWK(jwk).key


def signing_key(data_dir, public):
    """The private key that belongs to `public` and the file that holds it, or None."""
    for path in sorted(p for p in Path(data_dir).rglob("*") if p.is_file() and p.stat().st_size < 20_000):
        try:
            key = serialization.load_der_private_key(path.read_bytes(), None)
        except (ValueError, TypeError):
            continue
        if raw_public(key.public_key()) == raw_public(public):
            return key, path
    return None


def is_owner_only(path):
    return stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def raw_public(key):
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def signed(claims, header, key):
    return jwt.encode(claims, key, algorithm="ES256", headers={k: v for k, v in header.items() if k != "alg"})


def expired(token, key):
    """The same token, correctly signed, but an hour too old. And once more still valid, as a control."""
    claims, header, now = claims_of(token), jwt.get_unverified_header(token), int(time.time())
    old = {**claims, "iat": now - 7200, "exp": now - 3600}
    return signed(old, header, key), signed({**claims, "exp": now + 60}, header, key)


def forgeries(token, jwk, public):
    """Tokens that a server must refuse, by name."""
    head, body, signature = token.split(".")
    header, claims = jwt.get_unverified_header(token), claims_of(token)
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = raw_public(public)
    own = ec.generate_private_key(ec.SECP256R1())
    own_jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(own.public_key()))
    found = {
        "another key under the same kid": signed(claims, header, own),
        "own key in the header": signed(claims, {**header, "jwk": own_jwk}, own),
        "unknown kid": signed(claims, {**header, "kid": "nobody"}, own),
        "altered claims": ".".join([head, b64(json.dumps({**claims, "sub": "user_01h455vb4pex5vsknk084sn02q"}).encode()), signature]),
        "longer life": ".".join([head, b64(json.dumps({**claims, "exp": claims["exp"] + 86400}).encode()), signature]),
        "more scope": ".".join([head, b64(json.dumps({**claims, "scope": "users.create"}).encode()), signature]),
        "no signature": f"{head}.{body}.",
        "cut": f"{head}.{body}",
        "flipped signature": f"{head}.{body}.{b64(bytes(b ^ 1 for b in unb64(signature)))}",
        "a signature of nothing": f"{head}.{body}.{b64(bytes(64))}",
        "a JWT inside a JWT": f"{b64(json.dumps({**header, 'cty': 'JWT'}).encode())}.{b64(token.encode())}.{signature}",
        "too long": f"{head}.{body}{'A' * 20_000}.{signature}",
        "garbage": "garbage",
        "dots": "..",
    }
    for word in ("none", "None", "NONE", "EdDSA", "ES384", "RS256"):
        found[f"alg {word}"] = b64(json.dumps({**header, "alg": word}).encode()) + f".{body}.{'' if 'one' in word.lower() else signature}"
    for name, secret in (("PEM", pem), ("DER", der), ("x", jwk["x"].encode()), ("raw", unb64(jwk["x"]) + unb64(jwk["y"]))):
        found[f"HS256 with the public key as {name}"] = _hs256({**header, "alg": "HS256"}, body, secret)
    return found


def _hs256(header, body, secret):
    signing_input = f"{b64(json.dumps(header).encode())}.{body}"
    return f"{signing_input}.{b64(hmac.new(secret, signing_input.encode(), hashlib.sha256).digest())}"
