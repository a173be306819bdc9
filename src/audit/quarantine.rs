//! Events that a sink refused for good: set aside on disk, never dropped.
//!
//! Owns the folder `quarantine/` in the spool. An operator who has mended the sink can send the files by hand, because they
//! hold the events byte for byte as they stand in the spool.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::batch;
use super::chain::Record;
use super::cipher::{Cipher, SpoolKey};
use super::recover::QUARANTINE;
use super::segment::Form;
use super::stored;

/// A batch that was set aside.
pub(crate) struct Kept {
    pub(crate) path: PathBuf,
    pub(crate) first_id: String,
    pub(crate) last_id: String,
    /// Whether the batch held nothing but events about such batches.
    pub(crate) only_quarantine_events: bool,
    /// Whether it was set aside before, by a process that died before it could say so.
    pub(crate) known: bool,
}

/// Writes a batch to a file of its own and syncs it.
///
/// # Errors
/// The disk's; then nothing was set aside.
pub(crate) fn keep(dir: &Path, sink: &str, batch: &[u8], key: Option<&SpoolKey>) -> io::Result<Kept> {
    let spool = File::open(dir)?;
    let dir = dir.join(QUARANTINE);
    std::fs::create_dir_all(&dir)?;
    spool.sync_all()?; // the folder's own entry, which syncing what is in it does not bring to the disk
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
    // The digest keeps a batch that begins with the same event and ends with another from replacing this one.
    let digest = batch::digest_hex(batch);
    let stem = if first_id.is_empty() { String::new() } else { format!("{}-", first_id.replace(':', "-")) };
    let path = dir.join(format!("{sink}-{stem}{}.ndjson", &digest[..16]));
    let known = path.exists();
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    let mut cipher = key.map(Cipher::new).transpose()?;
    file.write_all(&stored(Form::Lines, cipher.as_mut(), batch.to_vec())?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, &path)?;
    File::open(&dir)?.sync_all()?;
    Ok(Kept { path, first_id, last_id, only_quarantine_events, known })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a refused batch replaces another one that was set aside before.
    #[test]
    fn two_batches_have_two_files_and_one_batch_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let a = keep(dir.path(), "collector", b"damaged\n", None).unwrap();
        let b = keep(dir.path(), "collector", b"damaged too\n", None).unwrap();
        assert_ne!(a.path, b.path);
        assert_eq!(keep(dir.path(), "collector", b"damaged\n", None).unwrap().path, a.path);
        assert_eq!(std::fs::read(a.path).unwrap(), b"damaged\n");
        assert!(!a.only_quarantine_events);
    }
}
