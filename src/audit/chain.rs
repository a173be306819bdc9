//! The hash chain: how a record names the one before, and how a line is read back and checked.
//!
//! Owns epochs, sequence numbers and `hash = SHA-256(0x00 || JCS(event without chain.hash))`, which is also the leaf hash of
//! RFC 6962 section 2.1. Canonical order puts `chain` first, so the hash is cut out of a line and the rest is hashed as it
//! stands, without a JSON tree. Knows nothing of files.

use std::borrow::Borrow;
use std::ops::Range;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};

use super::encode::{Pieces, SCHEMA};
use super::merkle::Hash;
use super::{check, json};

/// The longest line that the spool holds and a collector takes, in bytes.
pub(crate) const MAX_LINE: usize = 64 * 1024;

/// `prev` of the first record of an epoch.
pub(crate) const NO_PREVIOUS: [u8; 64] = [b'0'; 64];

const EPOCH_BYTES: usize = 36;
const BEFORE_EPOCH: &[u8] = b"{\"chain\":{\"epoch\":\"";
const BEFORE_HASH: &[u8] = b"\"hash\":\"";
/// The member `hash` with its comma: 64 digits, a quote and a comma after its key.
const HASH_MEMBER: usize = BEFORE_HASH.len() + 64 + 2;
const BEFORE_PREV: &[u8] = b"\"prev\":\"";
const BEFORE_SEQ: &[u8] = b"\"seq\":";

/// Where the hash member of a record begins.
const AFTER_EPOCH: usize = BEFORE_EPOCH.len() + EPOCH_BYTES + 2;
const HASH_AT: usize = AFTER_EPOCH + BEFORE_HASH.len();
const PREV_AT: usize = AFTER_EPOCH + HASH_MEMBER + BEFORE_PREV.len();
/// The same of what is hashed: a zero byte is before it, and no hash in it.
const PREV_IN_FRONT: Range<usize> = 1 + PREV_AT - HASH_MEMBER..1 + PREV_AT - HASH_MEMBER + 64;

/// Where the parts of a record end, counted from its beginning: what stands before the hash, the hash, what stands before `prev`, `prev`, the
/// rest of `chain`, the event's five pieces with `id` and `instance` between them; the line end is in the last.
pub(crate) type Ends = [u32; 12];
/// The first part of the event.
pub(crate) const EVENT: usize = 5;

/// A record that was appended.
pub(crate) struct Appended {
    pub(crate) hash: Hash,
    pub(crate) ends: Ends,
}

/// One process lifetime of a spool: a UUIDv7 (RFC 9562 section 5.7), so that names sort by time and never meet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Epoch(Box<str>);

impl Epoch {
    /// A new epoch that sorts after `last` even when the clock was set back.
    pub(crate) fn generate(now_unix_ms: u64, last: Option<&Epoch>) -> Self {
        let after_last = last.map_or(0, |last| last.unix_ms() + 1);
        let ms = now_unix_ms.max(after_last).min((1 << 48) - 1);
        let mut bytes = [0u8; 16];
        // Fails only if the system has no entropy source, in which case no TLS key can be made either; the time and the
        // process id then still tell epochs of one machine apart.
        if SystemRandom::new().fill(&mut bytes).is_err() {
            bytes[12..].copy_from_slice(&std::process::id().to_be_bytes());
        }
        bytes[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
        bytes[6] = 0x70 | (bytes[6] & 0x0f);
        bytes[8] = 0x80 | (bytes[8] & 0x3f);
        let mut hex = Vec::with_capacity(32);
        json::hex(&mut hex, &bytes);
        let hex = String::from_utf8_lossy(&hex);
        Self(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]).into())
    }

    /// Reads an epoch; it becomes a file name, so nothing but the shape of a UUID passes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let shape = text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        });
        (text.len() == EPOCH_BYTES && shape).then(|| Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn unix_ms(&self) -> u64 {
        u64::from_str_radix(&format!("{}{}", &self.0[..8], &self.0[9..13]), 16).unwrap_or(0)
    }
}

/// So that a map of epochs can be asked by text. The text is all there is to one, so order and hash are the same.
impl Borrow<str> for Epoch {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The writing end of a chain.
pub(crate) struct Chain {
    epoch: Epoch,
    next_seq: u64,
    /// How the next record begins, as it is hashed: from the zero byte to its number, with the hash of the last record in its place.
    front: Vec<u8>,
    /// How the member `id` begins.
    id: Vec<u8>,
}

impl Chain {
    pub(crate) fn new(epoch: Epoch) -> Self {
        Self::resume(epoch, 0, &NO_PREVIOUS)
    }

    /// A chain that goes on after record `next_seq - 1`, whose hash is `prev`: 64 hexadecimal digits.
    pub(crate) fn resume(epoch: Epoch, next_seq: u64, prev: &[u8]) -> Self {
        let prev = prev.try_into().unwrap_or(NO_PREVIOUS);
        let epoch_text = epoch.0.as_bytes();
        let front =
            [b"\0", BEFORE_EPOCH, epoch_text, b"\",", BEFORE_PREV, &prev, b"\",", BEFORE_SEQ].concat();
        let id = [b"\"id\":\"", epoch_text, b":"].concat();
        Self { epoch, next_seq, front, id }
    }

    /// The hash of the last record.
    pub(crate) fn prev(&self) -> &[u8] {
        &self.front[PREV_IN_FRONT]
    }

    pub(crate) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Appends the event as the next record of the chain, with its line end. `instance` is the encoded member.
    pub(crate) fn append(&mut self, out: &mut Vec<u8>, event: Pieces<'_>, instance: &[u8]) -> Appended {
        let record = out.len();
        // What is hashed is written behind a gap, in one piece: the hash stands near the front of a line and is known last. The
        // gap is as long as the hash member without the zero byte that is hashed and not written, so that only what stands
        // before the hash moves afterwards.
        out.resize(record + HASH_MEMBER - 1, 0);
        out.extend_from_slice(&self.front);
        let seq = out.len();
        json::integer(out, self.next_seq);
        let seq = seq..out.len();
        let end_of = |part: &[u8], out: &mut Vec<u8>| {
            out.extend_from_slice(part);
            (out.len() - record) as u32
        };
        let chain = end_of(b"},", out);
        let [conn, head] = event.head.map(|part| end_of(part, out));
        out.extend_from_slice(&self.id);
        out.extend_from_within(seq);
        let id = end_of(b"\",", out);
        let instance = end_of(instance, out);
        let [tail, subject, after_subject] = event.tail.map(|part| end_of(part, out));
        let hash = digest_of(&out[record + HASH_MEMBER - 1..]);
        let prev = &mut self.front[PREV_IN_FRONT];
        prev.copy_from_slice(json::hex_pairs(&hash).as_flattened());
        self.next_seq += 1;
        out.copy_within(record + HASH_MEMBER..record + HASH_MEMBER + AFTER_EPOCH, record);
        let hash_member = &mut out[record + AFTER_EPOCH..record + AFTER_EPOCH + HASH_MEMBER];
        let (key, rest) = hash_member.split_at_mut(BEFORE_HASH.len());
        let (value, end) = rest.split_at_mut(prev.len());
        key.copy_from_slice(BEFORE_HASH);
        value.copy_from_slice(prev);
        end.copy_from_slice(b"\",");
        out.push(b'\n');
        let [hash_at, prev_at] = [HASH_AT as u32, PREV_AT as u32];
        let ends = [
            hash_at,
            hash_at + 64,
            prev_at,
            prev_at + 64,
            chain,
            conn,
            head,
            id,
            instance,
            tail,
            subject,
            after_subject + 1,
        ];
        Appended { hash, ends }
    }
}

/// A line that is a canonical record of the schema; its hash is not checked yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'l> {
    pub(crate) epoch: &'l str,
    pub(crate) seq: u64,
    pub(crate) prev: &'l [u8],
    pub(crate) hash: &'l [u8],
    pub(crate) kind: &'l str,
    /// The member `instance` as it stands; empty when there is none.
    pub(crate) instance: &'l str,
    line: &'l [u8],
}

impl<'l> Record<'l> {
    /// Reads a line (without its line end).
    ///
    /// # Errors
    /// What keeps it from being a canonical record of the schema.
    pub(crate) fn parse(line: &'l [u8]) -> Result<Self, &'static str> {
        if line.len() > MAX_LINE {
            return Err("the line is longer than 64 KiB");
        }
        let top = check::canonical(line)?;
        let at = line.strip_prefix(BEFORE_EPOCH).ok_or("it does not begin with the chain")?;
        let (epoch, at) = at.split_at_checked(EPOCH_BYTES).ok_or("the epoch is cut")?;
        let epoch = std::str::from_utf8(epoch).ok().filter(|text| Epoch::parse(text).is_some());
        let epoch = epoch.ok_or("the epoch is not a UUID in lower case")?;
        let at =
            at.strip_prefix(b"\",").and_then(|at| at.strip_prefix(BEFORE_HASH)).ok_or("there is no hash")?;
        let (hash, at) = hex_field(at).ok_or("the hash is not 64 hexadecimal digits")?;
        let at = at.strip_prefix(BEFORE_PREV).ok_or("there is no prev")?;
        let (prev, at) = hex_field(at).ok_or("prev is not 64 hexadecimal digits")?;
        let at = at.strip_prefix(BEFORE_SEQ).ok_or("there is no seq")?;
        let digits = at.iter().take_while(|b| b.is_ascii_digit()).count();
        let seq = std::str::from_utf8(&at[..digits]).ok().and_then(|digits| digits.parse().ok());
        let seq = seq.ok_or("the sequence number is not a number")?;
        if !at[digits..].starts_with(b"},") {
            return Err("the chain has a member that is not known");
        }
        if top.schema != SCHEMA {
            return Err("the schema is not phiward.audit/1");
        }
        let id_is_right = top.id.strip_prefix(epoch).and_then(|rest| rest.strip_prefix(':'));
        if id_is_right.map(str::as_bytes) != Some(&at[..digits]) {
            return Err("the id is not the epoch and the sequence number");
        }
        Ok(Self { epoch, seq, prev, hash, kind: top.kind, instance: top.instance, line })
    }

    /// The event as it was before it had a place in the chain: what stands before `id` and what stands after it.
    pub(crate) fn pieces(&self) -> Option<(&'l [u8], &'l [u8])> {
        let event = PREV_AT + 64 + 2;
        let digits = BEFORE_SEQ.len() + self.seq.checked_ilog10().unwrap_or(0) as usize + 1;
        let event = self.line.get(event + digits + 2..)?;
        let id = format!("\"id\":\"{}:{}\",", self.epoch, self.seq);
        let at = memchr::memmem::find(event, id.as_bytes())?;
        Some((&event[..at], &event[at + id.len()..]))
    }

    /// Whether the hash is that of the record.
    pub(crate) fn hash_is_right(&self, scratch: &mut Vec<u8>) -> bool {
        self.checked_leaf(scratch).is_some()
    }

    /// The hash as a leaf of the epoch's tree, if it is that of the record.
    pub(crate) fn checked_leaf(&self, scratch: &mut Vec<u8>) -> Option<Hash> {
        // parse() found the hash exactly here, so both cuts are inside the line.
        scratch.clear();
        scratch.push(0);
        scratch.extend_from_slice(&self.line[..AFTER_EPOCH]);
        scratch.extend_from_slice(&self.line[AFTER_EPOCH + HASH_MEMBER..]);
        Some(digest_of(scratch)).filter(|hash| json::hex_pairs(hash).as_flattened() == self.hash)
    }

    /// The hash as a leaf of the epoch's tree.
    pub(crate) fn leaf(&self) -> Hash {
        let nibble = |digit: u8| if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 };
        let mut leaf = [0; 32];
        // parse() found 64 digits in lower case.
        for (byte, digits) in leaf.iter_mut().zip(self.hash.chunks_exact(2)) {
            *byte = nibble(digits[0]) << 4 | nibble(digits[1]);
        }
        leaf
    }

    /// The line as it stands.
    pub(crate) fn line(&self) -> &'l [u8] {
        self.line
    }
}

fn digest_of(bytes: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref()); // SHA-256 has 32 bytes
    hash
}

/// 64 hexadecimal digits, a quote and a comma.
fn hex_field(at: &[u8]) -> Option<(&[u8], &[u8])> {
    let (hex, rest) = at.split_at_checked(64)?;
    // Without a branch a digit, so that it becomes vector code.
    let all_hex = hex.iter().fold(true, |all, b| all & matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    Some((hex, rest.strip_prefix(b"\",")?)).filter(|_| all_hex)
}
