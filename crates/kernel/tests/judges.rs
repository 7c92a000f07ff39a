//! Other implementations judge ours: what we prove and write, they accept; what they sign, we accept.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use kernel::merkle::{self, Frontier, Hash};
use kernel::note::{self, Checkpoint, Note as OurNote, Signature as OurSignature, VerifierKey};
use kernel::tile::{Edge, Tile};
use signed_note::{Note, Signer as _, StandardSigner, StandardVerifier, VerifierList};
use std::collections::BTreeMap;
use tlog_tiles::Hash as TheirHash;

const SIZE: u64 = 80;

/// Every node of the tree of [`SIZE`] leaves, and its root at each size.
fn tree() -> (BTreeMap<(u8, u64), Hash>, Vec<Hash>) {
    let (mut nodes, mut frontier) = (BTreeMap::new(), Frontier::default());
    let mut roots = vec![frontier.root()];
    for number in 0..SIZE {
        frontier.push(merkle::leaf(&number.to_be_bytes()), |level, index, hash| {
            nodes.insert((level, index), hash);
        });
        roots.push(frontier.root());
    }
    (nodes, roots)
}

fn theirs(proof: &[Hash]) -> Vec<TheirHash> {
    proof.iter().copied().map(TheirHash).collect()
}

#[test]
fn given_our_proofs_when_another_verifier_checks_them_then_it_agrees() {
    let (nodes, roots) = tree();
    let read = |level, index| Ok::<_, ()>(nodes[&(level, index)]);
    for size in 1..=SIZE {
        let root = TheirHash(roots[size as usize]);
        for index in 0..size {
            let leaf = nodes[&(0, index)];
            assert_eq!(TheirHash(leaf), tlog_tiles::record_hash(&index.to_be_bytes()));
            let proof = theirs(&merkle::inclusion_proof(index, size, read).unwrap().unwrap());
            tlog_tiles::check_record(&proof, size, root, index, TheirHash(leaf)).unwrap();
            let old = index + 1;
            let proof = theirs(&merkle::consistency_proof(old, size, read).unwrap().unwrap());
            tlog_tiles::check_tree(&proof, size, root, old, TheirHash(roots[old as usize])).unwrap();
        }
    }
}

#[test]
fn given_a_growing_tree_when_another_library_names_its_tiles_then_they_are_those_that_changed() {
    for (old, new) in [(0_u64, 1_u64), (0, 1_000), (255, 256), (256, 257), (1, 300), (65_535, 65_537), (5, 5)] {
        let mut edge = Edge::default();
        (0..old).for_each(|n| edge.push(merkle::leaf(&n.to_be_bytes())));
        edge.take_changed();
        (old..new).for_each(|n| edge.push(merkle::leaf(&n.to_be_bytes())));
        let named = |((level, index), tile): ((u8, u64), Vec<u8>)| {
            Tile { level: Some(level), index, width: (tile.len() / 32) as u16 }.path()
        };
        let ours: Vec<String> = edge.take_changed().into_iter().map(named).collect();
        // Theirs name the height too.
        let theirs = tlog_tiles::Tile::new_tiles(8, old, new);
        let theirs: Vec<String> = theirs.iter().map(|tile| tile.path().replacen("tile/8/", "", 1)).collect();
        assert_eq!(ours, theirs, "{old} to {new}");
        assert!(theirs.iter().all(|path| Tile::parse(path).is_some_and(|tile| tile.is_in(new))));
    }
}

fn check(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let key = VerifyingKey::try_from(public_key).unwrap();
    key.verify_strict(message, &Signature::from_slice(signature).unwrap()).is_ok()
}

#[test]
fn given_our_checkpoint_when_another_library_opens_it_then_it_is_whole_and_signed() {
    let signing_key = SigningKey::from_bytes(&[9; 32]);
    let public_key = signing_key.verifying_key().to_bytes().to_vec();
    let key = VerifierKey { name: "log.example/9".into(), kind: note::ED25519, public: public_key };
    let extensions = vec!["one more line".into()];
    let ours = Checkpoint { origin: key.name.clone(), size: SIZE, root: tree().1[SIZE as usize], extensions };
    let bytes = signing_key.sign(ours.text().as_bytes()).to_vec();
    let signature = OurSignature { name: key.name.clone(), key_id: key.id(), bytes };
    let written = OurNote { text: ours.text(), signatures: vec![signature] }.render();

    let opened = Note::from_bytes(written.as_bytes()).unwrap();
    let verifier = StandardVerifier::new(&key.to_string()).unwrap();
    let (verified, unknown) = opened.verify(&VerifierList::new(vec![Box::new(verifier)])).unwrap();
    assert_eq!((verified.len(), unknown.len()), (1, 0));
    let read = tlog_tiles::Checkpoint::from_bytes(opened.text()).unwrap();
    assert_eq!((read.origin(), read.size(), read.hash().0), (ours.origin.as_str(), ours.size, ours.root));
    assert_eq!(read.extension(), "one more line\n");
}

#[test]
fn given_a_note_that_another_library_signed_when_we_open_it_then_it_is_verified() {
    // The key of the example of Go's golang.org/x/mod/sumdb/note.
    let private = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    let public = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    let signer = StandardSigner::new(private).unwrap();
    assert_eq!(signer.name(), "PeterNeumann");
    let mut theirs = Note::new(b"one\n\ntwo\n", &[]).unwrap();
    theirs.add_sigs(&[&signer]).unwrap();

    let text = String::from_utf8(theirs.to_bytes()).unwrap();
    let opened = OurNote::parse(&text).unwrap();
    assert_eq!(opened.text, "one\n\ntwo\n");
    assert_eq!(opened.signed_by(&VerifierKey::parse(public).unwrap(), check), Some(0));
}

/// Go's golang.org/x/mod/sumdb/note, its example: two keys and the note that both have signed.
const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const ENOCH: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
const NEUMANN: &str = "If you think cryptography is the answer to your problem,
then you don't know what your problem is.

— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=
— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=
";

/// The example of c2sp.org/signed-note.
const FOO: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const FOO_NOTE: &str = "This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
";

/// A checkpoint that the public log Arche 2025h1 (staging) has published, with some of its cosignatures.
const ARCHE: &str = "arche2025h1.staging.ct.transparency.dev
1432088532
U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=

— arche2025h1.staging.ct.transparency.dev zTM8sQAAAZ5W0WdjBAMARjBEAiBjW5IQf9pvsYLfQFX6hoGREPMHbdQ3urbllzalApkptQIgIpwtEroeW2BXaHAI4kJXFbon5Ch9MNL5zRNZ55lvGt0=
— arche2025h1.staging.ct.transparency.dev ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=
— remora.n621.de 2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWfBw==
";
const ARCHE_LOG: &str = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f";
const REMORA: &str = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2";

#[test]
fn given_notes_of_others_when_we_read_them_then_their_signatures_are_good() {
    for (text, key, signed) in
        [(NEUMANN, PETER, 0), (NEUMANN, ENOCH, 0), (FOO_NOTE, FOO, 0), (ARCHE, ARCHE_LOG, 0), (ARCHE, REMORA, 1_779_573_024)]
    {
        let note = OurNote::parse(text).unwrap();
        assert_eq!(note.render(), text);
        let key = VerifierKey::parse(key).unwrap();
        assert_eq!(note.signed_by(&key, check), Some(signed), "{key}");
        let other = OurNote { text: note.text.replacen('\n', " \n", 1), ..note };
        assert_eq!(other.signed_by(&key, check), None);
    }
    assert_eq!(Checkpoint::parse(&OurNote::parse(ARCHE).unwrap().text).unwrap().size, 1_432_088_532);
}

#[test]
fn given_proofs_of_transparency_dev_when_we_judge_them_then_as_they_say() {
    let hash = |text: &str| -> Hash { STANDARD.decode(text).unwrap().try_into().unwrap() };
    let mut judged = 0;
    for line in include_str!("vectors/proofs.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let (a, b) = (words[2].parse().unwrap(), words[3].parse().unwrap());
        let proof: Vec<Hash> = words.get(6).copied().unwrap_or_default().split(',').filter(|h| *h != "-").map(hash).collect();
        let verdict = match words[0] {
            "inclusion" => merkle::verify_inclusion(&hash(words[4]), a, b, &proof, &hash(words[5])),
            _ => merkle::verify_consistency(a, &hash(words[4]), b, &hash(words[5]), &proof),
        };
        assert_eq!(verdict.is_ok(), words[1] == "accepted", "{line}");
        judged += 1;
    }
    println!("proofs of transparency-dev judged: {judged}");
    assert!(judged > 90);
}
