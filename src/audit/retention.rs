//! What a collector's retention has removed: `retention.jsonl` in the store, one line a segment.
//!
//! Owns the form of the lines and their chain: each names the hash of the line before, so that none can be taken out or
//! changed without breaking the rest. Decides nothing about what is removed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::chain::{Epoch, NO_PREVIOUS};
use super::json;
use super::lines::Lines;

/// The file's name.
pub(crate) const FILE: &str = "retention.jsonl";

/// A segment that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tombstone {
    pub(crate) epoch: String,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    /// The hash of its last record, which the next record of the epoch names.
    pub(crate) last_hash: String,
    /// To whom the epoch belongs.
    pub(crate) spiffe_id: String,
    pub(crate) removed: String,
    /// `max_age` or `max_bytes`.
    pub(crate) why: String,
    /// SHA-256 of the line before; 64 zeros in the first.
    pub(crate) prev: String,
}

/// Every tombstone of a store, as far as they can be believed.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    pub(crate) epochs: BTreeMap<Epoch, Vec<Tombstone>>,
    /// What the next line names as the one before.
    pub(crate) next_prev: String,
    /// The length of the good lines.
    pub(crate) good_bytes: u64,
    /// The newest, whose segment a crash may have left.
    pub(crate) newest: Option<Tombstone>,
    /// The first line that is whole and wrong. It and what follows it are not believed.
    pub(crate) broken: Option<(u64, &'static str)>,
}

impl Tombstone {
    /// The line, with its line end, and its hash.
    pub(crate) fn line(&self) -> io::Result<(Vec<u8>, String)> {
        let mut line = serde_json::to_vec(self)?;
        let hash = line_hash(&line);
        line.push(b'\n');
        Ok((line, hash))
    }
}

/// Reads the tombstones of the store in `dir`. A last line that is not whole was never acted upon, and is passed over.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn read(dir: &Path) -> io::Result<Removed> {
    let mut removed =
        Removed { next_prev: String::from_utf8_lossy(&NO_PREVIOUS).into_owned(), ..Removed::default() };
    let file = match File::open(dir.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(error),
    };
    let mut lines = Lines::new(file);
    while let Some(line) = lines.next()?.filter(|line| line.whole) {
        match serde_json::from_slice::<Tombstone>(line.bytes) {
            Ok(stone) if stone.prev != removed.next_prev => {
                removed.broken = Some((line.number, "it does not follow the line before"));
                break;
            }
            Ok(stone) => {
                let Some(epoch) = Epoch::parse(&stone.epoch).filter(|_| stone.first_seq <= stone.last_seq)
                else {
                    removed.broken = Some((line.number, "it names no segment"));
                    break;
                };
                removed.next_prev = line_hash(line.bytes);
                removed.good_bytes = line.end;
                removed.newest = Some(stone.clone());
                removed.epochs.entry(epoch).or_default().push(stone);
            }
            Err(_) => {
                removed.broken = Some((line.number, "it is not what retention writes"));
                break;
            }
        }
    }
    Ok(removed)
}

fn line_hash(line: &[u8]) -> String {
    let mut hex = Vec::with_capacity(64);
    json::hex(&mut hex, digest(&SHA256, line).as_ref());
    String::from_utf8_lossy(&hex).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stone(prev: &str, first_seq: u64) -> Tombstone {
        Tombstone {
            epoch: "01a20149-c75f-78f4-a7a5-66c4206c49b1".into(),
            first_seq,
            last_seq: first_seq + 9,
            last_hash: "ab".repeat(32),
            spiffe_id: "spiffe://hospital.local/ns/clinic/sa/records".into(),
            removed: "2026-11-25T00:00:00Z".into(),
            why: "max_age".into(),
            prev: prev.into(),
        }
    }

    /// If this fails, who takes a tombstone out, or changes one, is not seen; or a crash makes a store look tampered with.
    #[test]
    fn tombstones_are_chained_and_a_torn_one_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().newest.is_none());
        let (first, hash) = stone(&"0".repeat(64), 0).line().unwrap();
        let (second, last) = stone(&hash, 10).line().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, [&first[..], &second, b"{\"epo"].concat()).unwrap();
        let removed = read(dir.path()).unwrap();
        assert_eq!((removed.broken, removed.next_prev), (None, last));
        assert_eq!(removed.good_bytes, (first.len() + second.len()) as u64);
        let changed = String::from_utf8(first).unwrap().replace("max_age", "max_bytes").into_bytes();
        for (bad, line) in [(second.clone(), 1), ([changed, second].concat(), 2), (b"{}\n".to_vec(), 1)] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(read(dir.path()).unwrap().broken.unwrap().0, line);
        }
    }
}
