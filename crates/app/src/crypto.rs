//! Keys and what they do: sealing secrets and the record, blind indexes, fresh secrets.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::Env;
use kernel::id::TenantId;
use kernel::merkle::Hash;
use kernel::note::{self, Checkpoint, Note, VerifierKey};
use kernel::{BlindIndex, text};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Key bytes as they lie in files that only the owner can read.
pub struct KeyMaterial {
    /// The first key pair that signs tokens, PKCS#8: P-256, in older installations Ed25519.
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
            signing_pkcs8: crate::jose::fresh_key(crate::jose::Algorithm::Es256)?,
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

    /// A secret that follows from another one, for one purpose.
    pub fn derived(&self, purpose: &str, from: &str) -> String {
        let tag = hmac::sign(&self.index, format!("derived/{purpose}/{from}").as_bytes());
        URL_SAFE_NO_PAD.encode(tag.as_ref()).replace('_', ".")
    }

    /// By which a personal value is found.
    pub fn blind(&self, tenant: TenantId, field: &str, value: &str) -> BlindIndex {
        let tag = hmac::sign(&self.index, format!("{tenant}/{field}/{value}").as_bytes());
        BlindIndex(text::hex(tag.as_ref()))
    }
}

/// Everything that needs a key of the key files.
pub(crate) struct Crypto {
    pub sealer: Sealer,
    pub checkpoints: Arc<SealingKey>,
    /// Tells the key files from others.
    pub fingerprint: Vec<u8>,
    /// The first key that signs tokens, PKCS#8.
    pub first_signing: Vec<u8>,
}

impl Crypto {
    pub fn new(material: &KeyMaterial) -> Result<Self, String> {
        Ok(Crypto {
            sealer: Sealer::new(&material.sealing, &material.index)?,
            checkpoints: Arc::new(SealingKey::new(&material.checkpoint_pkcs8)?),
            fingerprint: material.fingerprint(),
            first_signing: material.signing_pkcs8.clone(),
        })
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
