//! Batches that a sink refused for good: set aside on disk, never dropped.
//!
//! Owns the folder `quarantine/` in the spool. An operator who has mended the sink can post the files by hand, because they
//! are what was refused, byte for byte.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};

use super::chain::Record;
use super::json;
use super::recover::QUARANTINE;

/// A batch that was set aside.
pub(crate) struct Kept {
    pub(crate) path: PathBuf,
    pub(crate) first_id: String,
    pub(crate) last_id: String,
    /// Whether the batch held nothing but events about such batches.
    pub(crate) only_quarantine_events: bool,
}

/// Writes a batch to a file of its own and syncs it.
///
/// # Errors
/// The disk's; then nothing was set aside.
pub(crate) fn keep(dir: &Path, sink: &str, batch: &[u8]) -> io::Result<Kept> {
    let dir = dir.join(QUARANTINE);
    std::fs::create_dir_all(&dir)?;
    let mut ids = Vec::new();
    let mut only_quarantine_events = true;
    for line in batch.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        // A line of the spool that is no record was damaged on disk since it was written; it is kept like the rest.
        let record = Record::parse(line).ok();
        only_quarantine_events &= record.is_some_and(|record| record.kind == "audit.quarantine");
        ids.extend(record.map(|record| format!("{}:{}", record.epoch, record.seq)));
    }
    let first_id = ids.first().cloned().unwrap_or_default();
    let last_id = ids.last().cloned().unwrap_or_default();
    let path = dir.join(format!("{sink}-{}.ndjson", file_stem(&first_id, batch)));
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(batch)?;
    file.sync_all()?;
    std::fs::rename(&temporary, &path)?;
    File::open(&dir)?.sync_all()?;
    Ok(Kept { path, first_id, last_id, only_quarantine_events })
}

/// The first record's id, or the digest of a batch that has no readable record: the same batch gets the same name.
fn file_stem(first_id: &str, batch: &[u8]) -> String {
    if !first_id.is_empty() {
        return first_id.replace(':', "-");
    }
    let mut hex = Vec::with_capacity(64);
    json::hex(&mut hex, digest(&SHA256, batch).as_ref());
    String::from_utf8_lossy(&hex).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a refused batch replaces another one that was set aside before.
    #[test]
    fn two_batches_have_two_files_and_one_batch_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let a = keep(dir.path(), "collector", b"damaged\n").unwrap();
        let b = keep(dir.path(), "collector", b"damaged too\n").unwrap();
        assert_ne!(a.path, b.path);
        assert_eq!(keep(dir.path(), "collector", b"damaged\n").unwrap().path, a.path);
        assert_eq!(std::fs::read(a.path).unwrap(), b"damaged\n");
        assert!(!a.only_quarantine_events);
    }
}
