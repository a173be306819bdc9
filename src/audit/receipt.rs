//! Receipts: a collector's signature under a checkpoint that it has seen, with the time.
//!
//! Owns the collector's key and the form, which others can check too: cosignatures of C2SP (c2sp.org/tlog-cosignature) on the
//! checkpoints of [`super::note`]. A sidecar carries them in its own trail, so that whoever holds one of the two copies cannot
//! change what the other has signed for.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::note::{self, Checkpoint, SIGNATURE, body_of};

/// The algorithm byte of timestamped Ed25519 cosignatures.
const COSIGNATURE_TYPE: u8 = 4;
const KEY_FILE: &str = "receipt.key";
const VERIFIER_FILE: &str = "receipt.pub";
const TIME_BYTES: usize = 8;
const ID_BYTES: usize = 4;

/// The key with which a collector signs receipts, for as long as its store lives.
pub(crate) struct ReceiptKey {
    pair: Ed25519KeyPair,
    verifier: ReceiptVerifier,
}

/// What checks the receipts of one collector: `<name>+<id>+<key>`, as in its store's `receipt.pub`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptVerifier {
    name: String,
    public: Vec<u8>,
}

impl ReceiptKey {
    /// The key of the store in `dir`, made if there is none. What checks it stands beside it.
    ///
    /// # Errors
    /// It cannot be read, made or written.
    pub(crate) fn of_store(dir: &Path) -> io::Result<Self> {
        let path = dir.join(KEY_FILE);
        let unusable = || io::Error::other(format!("{}: this is no key", path.display()));
        let der = match std::fs::read(&path) {
            Ok(der) => der,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let der = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(io::Error::other)?;
                let der = der.as_ref().to_vec();
                keep(dir, &der)?;
                der
            }
            Err(error) => return Err(error),
        };
        let pair = Ed25519KeyPair::from_pkcs8(&der).map_err(|_| unusable())?;
        let public = pair.public_key().as_ref().to_vec();
        let name = format!("phiward-collector-{}", hex(&digest(&SHA256, &public).as_ref()[..ID_BYTES]));
        let key = Self { pair, verifier: ReceiptVerifier { name, public } };
        std::fs::write(dir.join(VERIFIER_FILE), format!("{}\n", key.verifier.to_text()))?;
        Ok(key)
    }

    pub(crate) fn verifier(&self) -> &ReceiptVerifier {
        &self.verifier
    }

    /// The receipt for a checkpoint: its body with this key's signature and no other. `None` for what is no checkpoint.
    pub(crate) fn sign(&self, checkpoint: &str, unix_seconds: u64) -> Option<String> {
        body_of(checkpoint)?;
        let (body, _) = checkpoint.split_once("\n\n")?;
        let signature = self.pair.sign(&signed_text(body, unix_seconds));
        let blob = [&self.verifier.id()[..], &unix_seconds.to_be_bytes(), signature.as_ref()].concat();
        Some(format!("{body}\n\n{SIGNATURE}{} {}\n", self.verifier.name, BASE64.encode(blob)))
    }
}

/// Writes the key whole or not at all: half a key would stand in the way of every start.
fn keep(dir: &Path, key: &[u8]) -> io::Result<()> {
    let new = dir.join("receipt.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(key)?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(KEY_FILE))?;
    File::open(dir)?.sync_all()
}

impl ReceiptVerifier {
    /// As others keep it.
    pub fn to_text(&self) -> String {
        note::key_text(COSIGNATURE_TYPE, &self.name, &self.public)
    }

    /// Reads a verifier key.
    pub fn parse(text: &str) -> Option<Self> {
        note::parse_key(COSIGNATURE_TYPE, text).map(|(name, public)| Self { name, public })
    }

    fn id(&self) -> [u8; ID_BYTES] {
        note::key_id(COSIGNATURE_TYPE, &self.name, &self.public)
    }

    /// Whether this key signed the receipt, and when: Unix seconds.
    pub(crate) fn check(&self, receipt: &Receipt<'_>) -> Option<u64> {
        let blob = receipt.blob.strip_prefix(&self.id()).filter(|_| receipt.signer == self.name)?;
        let (time, signature) = blob.split_at_checked(TIME_BYTES)?;
        let time = u64::from_be_bytes(time.try_into().ok()?);
        let key = UnparsedPublicKey::new(&ED25519, &self.public);
        key.verify(&signed_text(receipt.body, time), signature).is_ok().then_some(time)
    }
}

/// A receipt that was read and not checked.
pub(crate) struct Receipt<'r> {
    pub(crate) checkpoint: Checkpoint,
    body: &'r str,
    signer: &'r str,
    blob: Vec<u8>,
}

impl<'r> Receipt<'r> {
    /// Reads a receipt: three lines, an empty one, one signature, and nothing else.
    pub(crate) fn parse(text: &'r str) -> Option<Self> {
        let (body, signature) = text.split_once("\n\n")?;
        let (signer, blob) = signature.strip_suffix('\n')?.strip_prefix(SIGNATURE)?.split_once(' ')?;
        let checkpoint = body_of(text).filter(|_| body.lines().count() == 3)?;
        let named = !signer.is_empty() && signer.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'+');
        let blob =
            BASE64.decode(blob).ok().filter(|blob| named && blob.len() == ID_BYTES + TIME_BYTES + 64)?;
        Some(Self { checkpoint, body, signer, blob })
    }
}

fn signed_text(body: &str, unix_seconds: u64) -> Vec<u8> {
    format!("cosignature/v1\ntime {unix_seconds}\n{body}\n").into_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::note::EpochKey;

    /// If this fails, a receipt can be changed, moved to another time, or made by somebody else.
    #[test]
    fn a_receipt_is_good_only_as_it_was_signed() {
        let dir = tempfile::tempdir().unwrap();
        let key = ReceiptKey::of_store(dir.path()).unwrap();
        let checkpoint = EpochKey::generate("hospital.local/phiward/r/e").unwrap().sign(4711, &[7; 32]);
        let receipt = key.sign(&checkpoint, 1_795_183_200).unwrap();
        let verifier = ReceiptVerifier::parse(&key.verifier().to_text()).unwrap();
        let check = |text: &str| verifier.check(&Receipt::parse(text)?);
        assert_eq!(check(&receipt), Some(1_795_183_200));
        assert_eq!(Receipt::parse(&receipt).unwrap().checkpoint.size, 4711);
        let again = ReceiptKey::of_store(dir.path()).unwrap();
        assert_eq!(again.verifier(), key.verifier(), "a restart goes on with the same key");
        let other = ReceiptKey::of_store(tempfile::tempdir().unwrap().path()).unwrap();
        assert_eq!(other.verifier().check(&Receipt::parse(&receipt).unwrap()), None);
        for at in 0..receipt.len() {
            let mut damaged = receipt.clone().into_bytes();
            damaged[at] ^= 1;
            if let Ok(damaged) = String::from_utf8(damaged) {
                assert_eq!(check(&damaged), None, "{damaged}");
            }
        }
        assert_eq!(key.sign("no checkpoint", 1), None);
    }
}
