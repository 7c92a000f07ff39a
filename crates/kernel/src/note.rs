//! Checkpoints and signed notes, as in C2SP tlog-checkpoint, signed-note and tlog-cosignature. Only their form: whoever
//! signs or checks a signature gives a function.

use crate::merkle::Hash;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// Bytes of a note at most.
const NOTE_BYTES_MAX: usize = 1024 * 1024;
/// Signatures of a note at most.
const SIGNATURES_MAX: usize = 100;
/// An Ed25519 signature over the text.
pub const ED25519: u8 = 0x01;
/// A witness's Ed25519 signature over time and text.
pub const COSIGNATURE: u8 = 0x04;

/// What a tree is at some size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which tree.
    pub origin: String,
    /// Leaves.
    pub size: u64,
    /// Root.
    pub root: Hash,
    /// Further lines, of whatever meaning.
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root));
        for line in &self.extensions {
            text += line;
            text.push('\n');
        }
        text
    }

    /// The checkpoint of a text in its one right form.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
        let extensions: Vec<String> = lines.map(str::to_owned).collect();
        let checkpoint = Checkpoint {
            origin: origin.to_owned(),
            size: size.parse().ok()?,
            root: STANDARD.decode(root).ok()?.try_into().ok()?,
            extensions,
        };
        let is_sound = !origin.is_empty() && checkpoint.extensions.iter().all(|line| !line.is_empty());
        (is_sound && checkpoint.text() == text).then_some(checkpoint)
    }
}

/// One signature of a note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The name of the key.
    pub name: String,
    /// Which key of that name.
    pub key_id: [u8; 4],
    /// The signature, in the form of the key's type.
    pub bytes: Vec<u8>,
}

impl Signature {
    /// The line in a note.
    pub fn line(&self) -> String {
        format!("\u{2014} {} {}\n", self.name, STANDARD.encode([&self.key_id[..], &self.bytes].concat()))
    }

    /// The signature of a line.
    pub fn parse(line: &str) -> Option<Self> {
        let (name, encoded) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
        let bytes = STANDARD.decode(encoded).ok()?;
        let (key_id, bytes) = bytes.split_first_chunk::<4>()?;
        (is_key_name(name) && !bytes.is_empty()).then(|| Signature { name: name.into(), key_id: *key_id, bytes: bytes.to_vec() })
    }
}

/// A text with signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The text, with its last line end.
    pub text: String,
    /// Who signed it.
    pub signatures: Vec<Signature>,
}

impl Note {
    /// The note as it is sent and stored.
    pub fn render(&self) -> String {
        let lines: String = self.signatures.iter().map(Signature::line).collect();
        format!("{}\n{lines}", self.text)
    }

    /// The note of a rendered one.
    pub fn parse(rendered: &str) -> Option<Self> {
        if rendered.len() > NOTE_BYTES_MAX || rendered.chars().any(|c| c < ' ' && c != '\n') {
            return None;
        }
        let split = rendered.rfind("\n\n")?;
        let (text, lines) = (&rendered[..=split], rendered[split + 2..].strip_suffix('\n')?);
        let signatures: Vec<Signature> = lines.split('\n').map(Signature::parse).collect::<Option<_>>()?;
        (signatures.len() <= SIGNATURES_MAX).then(|| Note { text: text.to_owned(), signatures })
    }

    /// What the key's owner said, if it signed: the time of a cosignature, 0 for a plain signature. `check` gets public
    /// key, message and signature.
    pub fn signed_by(&self, key: &VerifierKey, check: impl Fn(&[u8], &[u8], &[u8]) -> bool) -> Option<u64> {
        let id = key.id();
        let mut own = self.signatures.iter().filter(|s| s.name == key.name && s.key_id == id);
        own.find_map(|signature| match key.kind {
            ED25519 => check(&key.public, self.text.as_bytes(), &signature.bytes).then_some(0),
            COSIGNATURE => {
                let (time, bytes) = signature.bytes.split_first_chunk::<8>()?;
                let time = u64::from_be_bytes(*time);
                check(&key.public, cosigned(time, &self.text).as_bytes(), bytes).then_some(time)
            }
            _ => None,
        })
    }
}

/// The message of a witness's signature.
pub fn cosigned(time_s: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {time_s}\n{text}")
}

/// A public key with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    /// Whose.
    pub name: String,
    /// [`ED25519`], [`COSIGNATURE`], or another one that is not understood here.
    pub kind: u8,
    /// The key.
    pub public: Vec<u8>,
}

impl VerifierKey {
    /// Tells keys of one name apart.
    pub fn id(&self) -> [u8; 4] {
        let hash = Sha256::new().chain_update(&self.name).chain_update([b'\n', self.kind]).chain_update(&self.public).finalize();
        [hash[0], hash[1], hash[2], hash[3]]
    }

    /// The key of its one-line form `name+id+key`.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, rest) = text.split_once('+')?;
        let (id, encoded) = rest.split_once('+')?;
        let bytes = STANDARD.decode(encoded).ok()?;
        let (kind, public) = bytes.split_first()?;
        let key = VerifierKey { name: name.to_owned(), kind: *kind, public: public.to_vec() };
        (is_key_name(name) && key.to_string() == text && id.len() == 8).then_some(key)
    }
}

impl std::fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}+{}", self.name, crate::text::hex(&self.id()), STANDARD.encode([&[self.kind][..], &self.public].concat()))
    }
}

fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '+')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example of Go's golang.org/x/mod/sumdb/note.
    const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const NOTE: &str = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n\
         \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn the_known_example_is_read_and_written_as_it_is() {
        let key = VerifierKey::parse(PETER).unwrap();
        assert_eq!((key.name.as_str(), key.kind, key.public.len()), ("PeterNeumann", ED25519, 32));
        let note = Note::parse(NOTE).unwrap();
        assert_eq!(note.render(), NOTE);
        let seen = std::cell::Cell::new(0);
        let signed = note.signed_by(&key, |public, message, signature| {
            seen.set(signature.len());
            public == key.public && message == note.text.as_bytes()
        });
        assert_eq!((signed, seen.get()), (Some(0), 64));
        assert_eq!(note.signed_by(&VerifierKey { name: "Other".into(), ..key }, |_, _, _| true), None);
    }

    #[test]
    fn a_checkpoint_has_one_form() {
        let checkpoint = Checkpoint { origin: "keiko/x".into(), size: 7, root: [9; 32], extensions: vec!["more".into()] };
        assert_eq!(Checkpoint::parse(&checkpoint.text()), Some(checkpoint.clone()));
        let text = checkpoint.text();
        for bad in [
            text.replace("\n7\n", "\n07\n"),
            text.replace("\n7\n", "\n+7\n"),
            text.trim_end().to_owned(),
            format!("{text}\n"),
            String::new(),
        ] {
            assert_eq!(Checkpoint::parse(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_witness_signs_time_and_text() {
        let key = VerifierKey { name: "w".into(), kind: COSIGNATURE, public: vec![1; 32] };
        let bytes = [&1_700_000_000_u64.to_be_bytes()[..], &[5; 64]].concat();
        let signature = Signature { name: "w".into(), key_id: key.id(), bytes };
        let note = Note { text: "o\n1\nx\n".into(), signatures: vec![signature] };
        let check = |_: &[u8], message: &[u8], bytes: &[u8]| {
            message == b"cosignature/v1\ntime 1700000000\no\n1\nx\n" && bytes.len() == 64
        };
        assert_eq!(note.signed_by(&key, check), Some(1_700_000_000));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(\\PC|\n){0,200}") {
            let _ = (Note::parse(&text), Checkpoint::parse(&text), VerifierKey::parse(&text), Signature::parse(&text));
        }
    }
}
