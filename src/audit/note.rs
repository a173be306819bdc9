//! Checkpoints: how many records an epoch has and their root, signed by a key that lives as long as the epoch.
//!
//! Owns the format, which others can check too: C2SP signed notes (c2sp.org/signed-note) with the body of c2sp.org/tlog-checkpoint.
//! Knows nothing of events, files and certificates.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::merkle::Hash;

/// The algorithm byte of Ed25519 in key ids and verifier keys.
const ED25519_TYPE: u8 = 1;
/// How a signature line begins.
pub(crate) const SIGNATURE: &str = "\u{2014} ";

/// Signs the checkpoints of one epoch. It is made when the epoch begins and never leaves the process.
pub(crate) struct EpochKey {
    pair: Ed25519KeyPair,
    verifier: VerifierKey,
}

/// What checks the checkpoints of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerifierKey {
    name: String,
    public: Vec<u8>,
}

/// A checkpoint whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) origin: String,
    pub(crate) size: u64,
    pub(crate) root: Hash,
}

impl EpochKey {
    /// A new key for the log `origin`.
    ///
    /// # Errors
    /// The system has no randomness.
    pub(crate) fn generate(origin: &str) -> Result<Self, Unspecified> {
        let pair = Ed25519KeyPair::generate()?;
        let verifier = VerifierKey { name: origin.to_owned(), public: pair.public_key().as_ref().to_vec() };
        Ok(Self { pair, verifier })
    }

    pub(crate) fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// The signed note.
    pub(crate) fn sign(&self, size: u64, root: &Hash) -> String {
        let name = &self.verifier.name;
        let body = format!("{name}\n{size}\n{}\n", BASE64.encode(root));
        let signature = [&self.verifier.id()[..], self.pair.sign(body.as_bytes()).as_ref()].concat();
        format!("{body}\n{SIGNATURE}{name} {}\n", BASE64.encode(signature))
    }
}

impl VerifierKey {
    /// As others keep it: `<name>+<id>+<key>`.
    pub(crate) fn to_text(&self) -> String {
        key_text(ED25519_TYPE, &self.name, &self.public)
    }

    /// Reads a verifier key.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        parse_key(ED25519_TYPE, text).map(|(name, public)| Self { name, public })
    }

    fn id(&self) -> [u8; 4] {
        key_id(ED25519_TYPE, &self.name, &self.public)
    }

    /// Reads a note and checks that this key signed it. Signatures of others beside it are passed over.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn open(&self, note: &str) -> Result<Checkpoint, &'static str> {
        let (body, signatures) = note.split_once("\n\n").ok_or("the checkpoint is no signed note")?;
        let body = format!("{body}\n");
        let mine = signatures.lines().filter_map(|line| line.strip_prefix(SIGNATURE)?.split_once(' '));
        let mine = mine.filter(|(name, _)| *name == self.name).filter_map(|(_, signature)| {
            let signature = BASE64.decode(signature).ok()?;
            signature.strip_prefix(&self.id()).map(<[u8]>::to_vec)
        });
        let key = UnparsedPublicKey::new(&ED25519, &self.public);
        if !mine.into_iter().any(|signature| key.verify(body.as_bytes(), &signature).is_ok()) {
            return Err("the checkpoint is not signed by the key of its epoch");
        }
        let checkpoint = body_of(note).ok_or("the checkpoint has no size and root")?;
        if checkpoint.origin != self.name {
            return Err("the checkpoint is of another log");
        }
        Ok(checkpoint)
    }
}

/// What stands before a signature to say whose it is, for a key of the algorithm `kind`.
pub(crate) fn key_id(kind: u8, name: &str, public: &[u8]) -> [u8; 4] {
    let hash = digest(&SHA256, &[name.as_bytes(), b"\n", &[kind], public].concat());
    let mut id = [0; 4];
    id.copy_from_slice(&hash.as_ref()[..4]); // SHA-256 has 32
    id
}

/// `<name>+<id>+<key>`.
pub(crate) fn key_text(kind: u8, name: &str, public: &[u8]) -> String {
    let id: String = key_id(kind, name, public).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name}+{id}+{}", BASE64.encode([&[kind], public].concat()))
}

/// The name and the key in such a text, if its algorithm is `kind`.
pub(crate) fn parse_key(kind: u8, text: &str) -> Option<(String, Vec<u8>)> {
    let (name, rest) = text.split_once('+')?;
    let (_, key) = rest.split_once('+')?;
    let key = BASE64.decode(key).ok()?;
    let public = key.strip_prefix(&[kind]).filter(|public| public.len() == 32)?;
    // The id is a function of the rest, so the text is compared whole.
    (key_text(kind, name, public) == text).then(|| (name.to_owned(), public.to_vec()))
}

/// What a note says, whoever signed it.
pub(crate) fn body_of(note: &str) -> Option<Checkpoint> {
    let mut lines = note.lines();
    let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
    let canonical = size.parse::<u64>().ok().filter(|number| number.to_string() == size);
    let root = BASE64.decode(root).ok().and_then(|root| Hash::try_from(root).ok());
    Some(Checkpoint { origin: origin.to_owned(), size: canonical?, root: root? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str = "hospital.local/phiward/records-0/0192f3c1-7a2e-7000-8000-000000000001";

    /// If this fails, tools for signed notes do not read ours (the example key of c2sp.org/signed-note, from the Go module
    /// golang.org/x/mod/sumdb/note).
    #[test]
    fn verifier_keys_are_those_of_other_tools() {
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let key = VerifierKey::parse(text).unwrap();
        assert_eq!((key.to_text().as_str(), key.name.as_str()), (text, "PeterNeumann"));
        let note = "If you think cryptography is the answer to your problem,\n\
                    then you don't know what your problem is.\n\n\
                    \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
        assert_eq!(key.open(note), Err("the checkpoint has no size and root"), "the signature is good");
        assert_eq!(
            key.open(&note.replace("answer", "solution")),
            Err("the checkpoint is not signed by the key of its epoch")
        );
        for wrong in [
            "",
            "a+b",
            "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "x+00000000+AQ==",
        ] {
            assert_eq!(VerifierKey::parse(wrong), None, "{wrong}");
        }
    }

    /// If this fails, a checkpoint can be changed, or signed by somebody else.
    #[test]
    fn a_checkpoint_is_good_only_as_it_was_signed() {
        let key = EpochKey::generate(ORIGIN).unwrap();
        let note = key.sign(4711, &[7; 32]);
        let verifier = VerifierKey::parse(&key.verifier().to_text()).unwrap();
        let signed = Checkpoint { origin: ORIGIN.to_owned(), size: 4711, root: [7; 32] };
        assert_eq!(verifier.open(&note), Ok(signed.clone()));
        assert_eq!(
            verifier.open(&format!("{note}\u{2014} witness AAAA\n")),
            Ok(signed),
            "a witness may sign too"
        );
        assert!(verifier.open(&note.replace("4711", "4712")).is_err());
        assert!(verifier.open(note.split_once("\n\n").unwrap().0).is_err());
        let other = EpochKey::generate(ORIGIN).unwrap();
        assert!(other.verifier().open(&note).is_err());
        for at in 0..note.len() {
            let mut damaged = note.clone().into_bytes();
            damaged[at] ^= 1;
            if let Ok(damaged) = String::from_utf8(damaged) {
                assert!(verifier.open(&damaged).is_err(), "{damaged}");
            }
        }
    }
}
