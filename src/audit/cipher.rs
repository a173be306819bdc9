//! Encryption at rest: lines and journal frames that only who has the key can read.
//!
//! Owns the form, the nonces, and the keys that this process may open with. AES-256-GCM; each writer (a process that writes to one
//! folder) has a key of its own, made of the key file's and 16 random bytes that stand before each text, and counts its nonces, so
//! that none is used twice whatever was cut off and written again. The chain is over what is inside: encryption hides
//! records, it does not vouch for them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::pseudonym::{KeyFileError, key_of_file};

/// How an encrypted line begins.
const PREFIX: &[u8] = b"e1:";
const ID_BYTES: usize = 4;
const SALT_BYTES: usize = 16;
const COUNTER_BYTES: usize = 8;
const HEAD_BYTES: usize = ID_BYTES + SALT_BYTES + COUNTER_BYTES;
const TAG_BYTES: usize = 16;
/// What a text grows by.
pub(crate) const OVERHEAD: usize = HEAD_BYTES + TAG_BYTES;

/// Keys that were handed to this process. Which one opens a text stands before it, as with a TLS provider there is one answer for
/// the whole process, and a reader deep inside needs not be told.
static KNOWN: RwLock<Vec<Arc<SpoolKey>>> = RwLock::new(Vec::new());

/// The key of a spool or a store.
pub struct SpoolKey {
    id: [u8; ID_BYTES],
    secret: hmac::Key,
}

impl SpoolKey {
    /// Reads a key file, as [`super::PseudonymKey::from_file`] does, and lets this process open with it what was encrypted with it.
    ///
    /// # Errors
    /// The file cannot be read, or holds too short a key.
    pub fn from_file(path: &Path) -> Result<Arc<Self>, KeyFileError> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &key_of_file(path)?);
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&hmac::sign(&secret, b"phiward spool key id").as_ref()[..ID_BYTES]); // a tag has 32
        let key = Arc::new(Self { id, secret });
        let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|other| other.id != id);
        known.push(key.clone());
        Ok(key)
    }

    /// Reads several: the first is the one to encrypt with.
    ///
    /// # Errors
    /// As [`SpoolKey::from_file`].
    pub fn from_files(paths: &[PathBuf]) -> Result<Option<Arc<Self>>, KeyFileError> {
        let keys: Vec<_> = paths.iter().map(|path| Self::from_file(path)).collect::<Result<_, _>>()?;
        Ok(keys.into_iter().next())
    }

    fn of_writer(&self, salt: &[u8]) -> io::Result<LessSafeKey> {
        let key = hmac::sign(&self.secret, &[b"phiward spool writer key", salt].concat());
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref());
        key.map(LessSafeKey::new).map_err(|_| io::Error::other("AES-256-GCM is not to be had"))
    }
}

impl std::fmt::Debug for SpoolKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SpoolKey")
    }
}

/// Encrypts what one writer writes.
pub(crate) struct Cipher {
    key: LessSafeKey,
    /// The key's id and this writer's salt.
    head: [u8; ID_BYTES + SALT_BYTES],
    counter: u64,
    text: Vec<u8>,
}

impl Cipher {
    /// For a writer that begins now.
    ///
    /// # Errors
    /// The system has no randomness.
    pub(crate) fn new(key: &SpoolKey) -> io::Result<Self> {
        let mut salt = [0; SALT_BYTES];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| io::Error::other("the system gave no randomness"))?;
        let mut head = [0; ID_BYTES + SALT_BYTES];
        head[..ID_BYTES].copy_from_slice(&key.id);
        head[ID_BYTES..].copy_from_slice(&salt);
        Ok(Self { key: key.of_writer(&salt)?, head, counter: 0, text: Vec::new() })
    }

    /// Appends `line`, which has no line end, to `out` as a line of its own.
    pub(crate) fn line(&mut self, out: &mut Vec<u8>, line: &[u8]) -> io::Result<()> {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        text.extend_from_slice(line);
        self.seal(&mut text)?;
        out.extend_from_slice(PREFIX);
        let at = out.len();
        out.resize(at + text.len().div_ceil(3) * 4, 0);
        let written = BASE64.encode_slice(&text, &mut out[at..]).map_err(io::Error::other)?;
        out.truncate(at + written);
        out.push(b'\n');
        self.text = text;
        Ok(())
    }

    /// Appends each line of `lines`, whole lines all.
    pub(crate) fn lines(&mut self, out: &mut Vec<u8>, lines: &[u8]) -> io::Result<()> {
        lines
            .split_inclusive(|byte| *byte == b'\n')
            .try_for_each(|line| self.line(out, line.strip_suffix(b"\n").unwrap_or(line)))
    }

    /// Encrypts `text` in its place.
    ///
    /// # Errors
    /// After 2^64 texts, or when the library refuses.
    pub(crate) fn seal(&mut self, text: &mut Vec<u8>) -> io::Result<()> {
        self.counter = self.counter.checked_add(1).ok_or_else(|| io::Error::other("all nonces were used"))?;
        let counter = self.counter.to_be_bytes();
        let sealed = self.key.seal_in_place_append_tag(nonce(&counter), Aad::from(self.head), text);
        sealed.map_err(|_| io::Error::other("AES-256-GCM failed"))?;
        text.splice(0..0, self.head.into_iter().chain(counter));
        Ok(())
    }
}

/// Opens what writers have written; it remembers the last one's key.
#[derive(Default)]
pub(crate) struct Opener {
    last: Option<([u8; ID_BYTES + SALT_BYTES], LessSafeKey)>,
}

impl Opener {
    /// Opens a line into `out`. False for a line that is not encrypted, and for one that cannot be opened because it is not as it was
    /// written: both are then judged as they stand.
    ///
    /// # Errors
    /// It is encrypted with a key that this process does not have.
    pub(crate) fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
        let Some(text) = line.strip_prefix(PREFIX) else { return Ok(false) };
        out.clear();
        if BASE64.decode_vec(text, out).is_err() {
            return Ok(false);
        }
        self.open(out)
    }

    /// Opens `text` in its place. False when it is not as it was written.
    ///
    /// # Errors
    /// It is encrypted with a key that this process does not have.
    pub(crate) fn open(&mut self, text: &mut Vec<u8>) -> io::Result<bool> {
        let Some((head, _)) = text.split_first_chunk::<{ ID_BYTES + SALT_BYTES }>() else { return Ok(false) };
        let head = *head;
        if self.last.as_ref().is_none_or(|(last, _)| *last != head) {
            let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
            let key = known.iter().find(|key| key.id == head[..ID_BYTES]).ok_or_else(|| {
                io::Error::other("the trail is encrypted with a key that was not given: --spool-key FILE for tools, spool.encryption_key_file for sidecars")
            })?;
            self.last = Some((head, key.of_writer(&head[ID_BYTES..])?));
        }
        let Some((_, key)) = &self.last else { return Ok(false) };
        let Some(counter) = text.get(head.len()..HEAD_BYTES).and_then(|counter| counter.try_into().ok())
        else {
            return Ok(false);
        };
        let nonce = nonce(&counter);
        let Ok(plain) = key.open_within(nonce, Aad::from(head), text, HEAD_BYTES..).map(|plain| plain.len())
        else {
            return Ok(false);
        };
        text.truncate(plain);
        Ok(true)
    }
}

/// How long a line of `bytes` is when it is encrypted, with its line end.
pub(crate) const fn line_bytes(bytes: usize) -> usize {
    PREFIX.len() + (bytes + OVERHEAD).div_ceil(3) * 4 + 1
}

fn nonce(counter: &[u8; COUNTER_BYTES]) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - COUNTER_BYTES..].copy_from_slice(counter);
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fill: u8) -> Arc<SpoolKey> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), [fill; 32]).unwrap();
        SpoolKey::from_file(&dir.path().join("key")).unwrap()
    }

    /// If this fails, an encrypted record is lost, or read or changed by who has no key.
    #[test]
    fn what_was_written_is_read_by_who_has_the_key_and_as_it_was() {
        let mut cipher = Cipher::new(&key(201)).unwrap();
        let mut out = Vec::new();
        cipher.line(&mut out, b"{\"a\":1}").unwrap();
        cipher.line(&mut out, b"{\"a\":1}").unwrap();
        let lines: Vec<&[u8]> = out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        assert_eq!(lines[0].len() + 1, line_bytes(7));
        assert_ne!(lines[0], lines[1], "no nonce is used twice");
        let mut opened = Vec::new();
        for line in &lines {
            assert!(Opener::default().line(line, &mut opened).unwrap());
            assert_eq!(opened, b"{\"a\":1}");
        }
        assert!(
            !Opener::default().line(b"{\"a\":1}", &mut opened).unwrap(),
            "what is not encrypted is left alone"
        );
        for at in ID_BYTES * 2..lines[0].len() {
            let mut damaged = lines[0].to_vec();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            assert!(!Opener::default().line(&damaged, &mut opened).is_ok_and(|opened| opened), "byte {at}");
        }
    }

    /// If this fails, a trail whose key is missing looks like one that was damaged.
    #[test]
    fn a_key_that_was_not_given_is_asked_for() {
        let key = key(202);
        let mut line = Vec::new();
        Cipher::new(&key).unwrap().line(&mut line, b"x").unwrap();
        KNOWN.write().unwrap().retain(|other| other.id != key.id);
        let error = Opener::default().line(line.trim_ascii_end(), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("--spool-key"), "{error}");
    }
}
