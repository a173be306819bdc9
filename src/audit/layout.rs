//! Where the segments of a trail are: a spool holds them in one folder, a collector's store in a folder an epoch.
//!
//! Owns the answer to "which files, in which order" for everything that only reads. Knows nothing of their content.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::chain::Epoch;
use super::recover::CORRUPT;
use super::{retention, segment};

/// The folder in a store where a collector keeps what did not fit.
pub(crate) const EVIDENCE: &str = "evidence";

/// The files of a spool or a store.
pub(crate) struct Layout {
    /// Oldest first.
    pub(crate) epochs: Vec<EpochFiles>,
    /// What recovery or a collector kept aside.
    pub(crate) kept: Vec<PathBuf>,
    /// Whether it is a collector's store.
    pub(crate) is_store: bool,
}

/// The segments of one epoch, in order.
pub(crate) struct EpochFiles {
    pub(crate) epoch: Epoch,
    pub(crate) segments: Vec<SegmentPath>,
}

/// One segment.
pub(crate) struct SegmentPath {
    pub(crate) first_seq: u64,
    pub(crate) path: PathBuf,
}

impl Layout {
    /// Lists the files.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        let mut by_epoch = BTreeMap::new();
        let mut kept = Vec::new();
        let mut is_store = false;
        add_folder(dir, &mut by_epoch, &mut kept)?;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !entry.file_type()?.is_dir() {
                // Also of a store of which retention has left nothing else.
                is_store |= name == retention::FILE;
                continue;
            }
            if Epoch::parse(&name).is_some() {
                is_store = true;
                add_folder(&entry.path(), &mut by_epoch, &mut kept)?;
            } else if name == EVIDENCE {
                is_store = true;
                for file in std::fs::read_dir(entry.path())? {
                    kept.push(file?.path());
                }
            }
        }
        let mut epochs: Vec<_> =
            by_epoch.into_iter().map(|(epoch, segments)| EpochFiles { epoch, segments }).collect();
        for epoch in &mut epochs {
            epoch.segments.sort_by_key(|segment| segment.first_seq);
        }
        kept.sort();
        Ok(Self { epochs, kept, is_store })
    }

    /// Every segment, in the order of epochs and records.
    pub(crate) fn segments(&self) -> impl DoubleEndedIterator<Item = &SegmentPath> {
        self.epochs.iter().flat_map(|epoch| &epoch.segments)
    }
}

fn add_folder(
    dir: &Path,
    by_epoch: &mut BTreeMap<Epoch, Vec<SegmentPath>>,
    kept: &mut Vec<PathBuf>,
) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if let Some((epoch, first_seq)) = segment::parse_name(&name) {
            by_epoch.entry(epoch).or_default().push(SegmentPath { first_seq, path: entry.path() });
        } else if name.ends_with(CORRUPT) {
            kept.push(entry.path());
        }
    }
    Ok(())
}
