//! Keys and what they do: signing access tokens, sealing secrets, blind indexes, fresh secrets.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::Env;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use kernel::id::{RequestId, SessionId, TenantId, UserId};
use kernel::merkle::Hash;
use kernel::note::{self, Checkpoint, Note, VerifierKey};
use kernel::{BlindIndex, Timestamp, text};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;

const ISSUER: &str = "keiko";

/// Key bytes as they lie in files that only the owner can read.
pub struct KeyMaterial {
    /// Ed25519 key pair, PKCS#8.
    pub signing_pkcs8: Vec<u8>,
    /// Seals secrets beside the log.
    pub sealing: [u8; 32],
    /// Makes blind indexes of personal values.
    pub index: [u8; 32],
    /// Ed25519 key pair that seals the record, PKCS#8.
    pub checkpoint_pkcs8: Vec<u8>,
}

impl KeyMaterial {
    /// Tells these keys from others, and nothing about them.
    pub(crate) fn fingerprint(&self) -> Vec<u8> {
        let mut hash = Sha256::new_with_prefix(b"keiko keys 1");
        for part in [&self.signing_pkcs8[..], &self.sealing, &self.index] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().to_vec()
    }

    /// Fresh keys.
    pub fn generate(env: &Env) -> Result<Self, String> {
        Ok(KeyMaterial {
            signing_pkcs8: fresh_pair()?,
            sealing: env.bytes(),
            index: env.bytes(),
            checkpoint_pkcs8: fresh_pair()?,
        })
    }
}

/// A fresh Ed25519 key pair, PKCS#8.
pub fn fresh_pair() -> Result<Vec<u8>, String> {
    let pair = Ed25519KeyPair::generate().map_err(|_| "no Ed25519 key could be made")?;
    let document = pair.to_pkcs8v1().map_err(|_| "the Ed25519 key could not be written")?;
    Ok(document.as_ref().to_vec())
}

/// Seals trees: signs their checkpoints.
pub struct SealingKey(Ed25519KeyPair);

impl SealingKey {
    /// The key of a PKCS#8 document.
    pub fn new(pkcs8: &[u8]) -> Result<Self, String> {
        Ok(SealingKey(Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| "the checkpoint key is not a PKCS#8 Ed25519 key")?))
    }

    /// The public key under the name of a tree.
    pub fn verifier(&self, origin: &str) -> VerifierKey {
        VerifierKey { name: origin.to_owned(), kind: note::ED25519, public: self.0.public_key().as_ref().to_vec() }
    }

    /// The signed checkpoint of a tree.
    pub fn seal(&self, origin: &str, size: u64, root: Hash) -> String {
        let text = Checkpoint { origin: origin.to_owned(), size, root, extensions: vec![] }.text();
        let bytes = self.0.sign(text.as_bytes()).as_ref().to_vec();
        let signature = note::Signature { name: origin.to_owned(), key_id: self.verifier(origin).id(), bytes };
        Note { text, signatures: vec![signature] }.render()
    }
}

/// Whether an Ed25519 signature is good: public key, message, signature.
pub fn check_ed25519(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, public).verify(message, signature).is_ok()
}

/// What an access token says. Times are seconds since 1970.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub iss: String,
    pub aud: String,
    pub sub: UserId,
    pub tid: TenantId,
    pub sid: SessionId,
    /// Makes two tokens of one second differ.
    pub jti: RequestId,
    pub iat: i64,
    pub exp: i64,
}

/// Seals secrets and makes blind indexes.
pub(crate) struct Sealer {
    sealing: LessSafeKey,
    index: hmac::Key,
}

impl Sealer {
    /// From key bytes.
    pub fn new(sealing: &[u8; 32], index: &[u8; 32]) -> Result<Self, String> {
        let key = UnboundKey::new(&AES_256_GCM, sealing).map_err(|_| "the sealing key is not usable")?;
        Ok(Sealer { sealing: LessSafeKey::new(key), index: hmac::Key::new(hmac::HMAC_SHA256, index) })
    }

    /// Seals a secret for its place: it can be opened only as the same secret of the same tenant.
    pub fn seal(&self, tenant: TenantId, name: &str, secret: &[u8], nonce: [u8; NONCE_LEN]) -> Result<Vec<u8>, String> {
        let mut sealed = secret.to_vec();
        let aad = Aad::from(format!("{tenant}/{name}"));
        self.sealing
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .map_err(|_| "the secret could not be sealed")?;
        Ok([&nonce[..], &sealed[..]].concat())
    }

    /// Opens a sealed secret; `None` when it was sealed for another place or changed.
    pub fn open(&self, tenant: TenantId, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN)?;
        let mut body = body.to_vec();
        let aad = Aad::from(format!("{tenant}/{name}"));
        let opened = self.sealing.open_in_place(Nonce::try_assume_unique_for_key(nonce).ok()?, aad, &mut body).ok()?;
        Some(opened.to_vec())
    }

    /// By which a personal value is found.
    pub fn blind(&self, tenant: TenantId, field: &str, value: &str) -> BlindIndex {
        let tag = hmac::sign(&self.index, format!("{tenant}/{field}/{value}").as_bytes());
        BlindIndex(text::hex(tag.as_ref()))
    }
}

/// Everything that needs a key.
pub(crate) struct Crypto {
    pub sealer: Sealer,
    pub checkpoints: Arc<SealingKey>,
    /// Tells the key files from others.
    pub fingerprint: Vec<u8>,
    encoding: EncodingKey,
    decoding: DecodingKey,
    kid: String,
    /// The public key, base64url.
    x: String,
}

impl Crypto {
    pub fn new(material: &KeyMaterial) -> Result<Self, String> {
        let pair =
            Ed25519KeyPair::from_pkcs8(&material.signing_pkcs8).map_err(|_| "the signing key is not a PKCS#8 Ed25519 key")?;
        let public = pair.public_key().as_ref().to_vec();
        Ok(Crypto {
            sealer: Sealer::new(&material.sealing, &material.index)?,
            checkpoints: Arc::new(SealingKey::new(&material.checkpoint_pkcs8)?),
            fingerprint: material.fingerprint(),
            encoding: EncodingKey::from_ed_der(&material.signing_pkcs8),
            decoding: DecodingKey::from_ed_der(&public),
            kid: text::hex(&Sha256::digest(&public)[..8]),
            x: URL_SAFE_NO_PAD.encode(&public),
        })
    }

    /// A signed access token.
    pub fn sign(
        &self,
        (sub, tid, sid): (UserId, TenantId, SessionId),
        jti: RequestId,
        now: Timestamp,
        ttl_ms: u64,
    ) -> Result<String, String> {
        let claims = Claims {
            iss: ISSUER.into(),
            aud: ISSUER.into(),
            sub,
            tid,
            sid,
            jti,
            iat: now.0.div_euclid(1000),
            exp: now.plus_ms(ttl_ms).0.div_euclid(1000),
        };
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, &claims, &self.encoding).map_err(|e| e.to_string())
    }

    /// The claims of a token that this server signed and that is not over. The algorithm is fixed by the key.
    pub fn verify(&self, token: &str, now: Timestamp) -> Option<Claims> {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[ISSUER]);
        validation.set_issuer(&[ISSUER]);
        // Time is the engine's, so it is compared below.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation).ok()?.claims;
        (now.0 < claims.exp.checked_mul(1000)?).then_some(claims)
    }

    /// The public key as a JSON Web Key Set.
    pub fn jwks(&self) -> serde_json::Value {
        serde_json::json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": self.x }] })
    }
}

/// A fresh secret of 256 bits: 43 characters of base64url, without `_` so that it parts cleanly.
pub fn fresh_secret(env: &Env) -> String {
    let bytes: [u8; 32] = env.bytes();
    URL_SAFE_NO_PAD.encode(bytes).replace('_', ".")
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256_hex(text: &str) -> String {
    text::hex(&Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crypto() -> Crypto {
        Crypto::new(&KeyMaterial::generate(&Env::system()).unwrap()).unwrap()
    }

    fn token(crypto: &Crypto, now: i64) -> String {
        let whose = (UserId::from_bytes([1; 16]), TenantId::from_bytes([2; 16]), SessionId::from_bytes([3; 16]));
        crypto.sign(whose, RequestId::from_bytes([4; 16]), Timestamp(now), 1_000).unwrap()
    }

    #[test]
    fn a_token_is_good_until_it_ends_and_only_with_the_key_that_signed_it() {
        let ours = crypto();
        let token = token(&ours, 10_000);
        assert!(ours.verify(&token, Timestamp(10_999)).is_some());
        assert!(ours.verify(&token, Timestamp(11_000)).is_none());
        assert!(crypto().verify(&token, Timestamp(10_000)).is_none());
    }

    #[test]
    fn algorithm_confusion_is_refused() {
        let ours = crypto();
        let body = token(&ours, 10_000).split('.').nth(1).unwrap().to_owned();
        let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
        assert!(ours.verify(&format!("{}.{body}.", part(r#"{"alg":"none","typ":"JWT"}"#)), Timestamp(10_000)).is_none());
        // HS256 with the public key as the secret.
        let public = URL_SAFE_NO_PAD.decode(&ours.x).unwrap();
        let input = format!("{}.{body}", part(r#"{"alg":"HS256","typ":"JWT"}"#));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &public), input.as_bytes());
        assert!(ours.verify(&format!("{input}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref())), Timestamp(10_000)).is_none());
    }

    #[test]
    fn a_sealed_secret_opens_only_at_its_place() {
        let sealer = Sealer::new(&[1; 32], &[2; 32]).unwrap();
        let (a, b) = (TenantId::from_bytes([1; 16]), TenantId::from_bytes([2; 16]));
        let sealed = sealer.seal(a, "pw", b"secret", [9; 12]).unwrap();
        assert_eq!(sealer.open(a, "pw", &sealed).as_deref(), Some(&b"secret"[..]));
        assert_eq!(sealer.open(b, "pw", &sealed), None);
        assert_eq!(sealer.open(a, "other", &sealed), None);
        assert_eq!(sealer.open(a, "pw", &sealed[..5]), None);
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
    }

    #[test]
    fn blind_indexes_differ_between_tenants() {
        let sealer = Sealer::new(&[1; 32], &[2; 32]).unwrap();
        let (a, b) = (TenantId::from_bytes([1; 16]), TenantId::from_bytes([2; 16]));
        assert_eq!(sealer.blind(a, "name", "ada"), sealer.blind(a, "name", "ada"));
        assert_ne!(sealer.blind(a, "name", "ada"), sealer.blind(b, "name", "ada"));
    }
}
