//! The file of evidence: what did not fit a chain, a JSON object a line.
//!
//! Owns how a line gets there whole or not at all, and how much may be there. What evidence is, is [`super::super::evidence`]'s.

use std::fs::File;
use std::io;
use std::path::Path;

use super::super::evidence::Evidence;
use super::{Store, StoreError, at, ends_with_line_end, stored};
use crate::audit::trail::{self, EVIDENCE, SegmentFile};

/// The most bytes of evidence that are kept; beyond it the collector takes nothing more until somebody has looked.
const MAX_EVIDENCE_BYTES: u64 = 64 * 1024 * 1024;
const FILE: &str = "evidence.jsonl";

impl Store {
    /// Brings the evidence of a batch onto the disk, and tells the operator.
    pub(super) fn keep_evidence(&mut self, evidence: &Evidence<'_>) -> Result<(), StoreError> {
        let more = evidence.lines().len() as u64;
        if self.evidence_bytes + more > MAX_EVIDENCE_BYTES {
            // Somebody may have moved it away meanwhile.
            self.measure_evidence().map_err(at(&self.dir))?;
        }
        if self.evidence_bytes + more > MAX_EVIDENCE_BYTES {
            return Err(StoreError::EvidenceFull { path: self.dir.join(EVIDENCE) });
        }
        self.write_evidence(evidence.lines()).map_err(at(&self.dir))?;
        self.evidence_bytes += more;
        self.metrics.evidence_bytes.set(i64::try_from(self.evidence_bytes).unwrap_or(i64::MAX));
        evidence.alert(&self.metrics);
        Ok(())
    }

    fn write_evidence(&mut self, lines: &[u8]) -> io::Result<()> {
        let dir = self.dir.join(EVIDENCE);
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(FILE);
        let mut file = match whole_lines(&path)? {
            Some(len) => SegmentFile::open(path, len)?,
            None => SegmentFile::create(path)?,
        };
        file.append(&self.disk, &stored(&mut self.cipher, lines)?)?;
        let synced = self.disk.sync(file.file()).and_then(|()| {
            self.disk.sync(&trail::open_dir(&dir)?)?;
            self.disk.sync(&trail::open_dir(&self.dir)?) // it may just have been made
        });
        self.failed |= synced.is_err();
        synced
    }

    /// Looks how much evidence there is. Somebody may move it away at any time.
    pub(super) fn measure_evidence(&mut self) -> io::Result<()> {
        self.evidence_bytes = match std::fs::metadata(self.dir.join(EVIDENCE).join(FILE)) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        self.metrics.evidence_bytes.set(i64::try_from(self.evidence_bytes).unwrap_or(i64::MAX));
        Ok(())
    }
}

/// How long the whole lines of a file are, `None` where there is no file. A kill, or a write that failed half-way, leaves the beginning
/// of a line; its batch was not acknowledged, so it comes again, and what is appended must not become the end of that line.
fn whole_lines(path: &Path) -> io::Result<Option<u64>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = file.metadata()?.len();
    if len == 0 || ends_with_line_end(&file, len)? {
        return Ok(Some(len));
    }
    let content = std::fs::read(path)?; // seldom, and there is a most
    Ok(Some(memchr::memrchr(b'\n', &content).map_or(0, |at| at as u64 + 1)))
}
