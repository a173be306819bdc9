//! A sink's cursor: how far the spool was acknowledged, across restarts.
//!
//! Owns one small file in the spool. It is saved after the acknowledgement, so after a crash it is behind and never ahead:
//! events are sent again, and the collector knows them by their id.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// The record in the file has this length, so that saving is one write in place.
const FILE_BYTES: usize = 128;

/// A place in the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The segment's file name.
    pub(crate) segment: String,
    /// Bytes of it that were acknowledged.
    pub(crate) offset: u64,
}

/// The cursor file of one sink.
#[derive(Clone)]
pub(crate) struct CursorFile(Arc<File>);

impl CursorFile {
    /// Opens the file, which is made if it is missing, and reads the place. One that is not readable counts as missing: the
    /// price is that events are sent twice.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn open(dir: &Path, sink: &str) -> io::Result<(Self, Option<Place>)> {
        let path = dir.join(format!("cursor-{sink}.json"));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)?;
        let mut bytes = [0; FILE_BYTES];
        let place = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => parse(&bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(error),
        };
        Ok((Self(Arc::new(file)), place))
    }

    /// Saves the place and syncs it.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn save(&self, place: &Place) -> io::Result<()> {
        let json = serde_json::json!({"offset": place.offset, "segment": place.segment}).to_string();
        let line = format!("{json:<width$}\n", width = FILE_BYTES - 1);
        self.0.write_all_at(line.as_bytes(), 0)?;
        self.0.sync_data()
    }
}

fn parse(bytes: &[u8]) -> Option<Place> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let segment = value.get("segment")?.as_str()?.to_owned();
    Some(Place { segment, offset: value.get("offset")?.as_u64()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::chain::Epoch;
    use crate::audit::segment;

    /// If this fails, a restart sends the whole spool again, or a damaged cursor keeps phiward from starting.
    #[test]
    fn a_place_is_read_back_and_a_damaged_file_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let (cursor, place) = CursorFile::open(dir.path(), "collector").unwrap();
        assert_eq!(place, None);
        let segment = segment::name(&Epoch::generate(1, None), u64::from(u32::MAX), segment::Form::Packed);
        for offset in [u64::MAX, 7] {
            let place = Place { segment: segment.clone(), offset };
            cursor.save(&place).unwrap();
            assert_eq!(CursorFile::open(dir.path(), "collector").unwrap().1, Some(place));
        }
        std::fs::write(dir.path().join("cursor-collector.json"), [0; 200]).unwrap();
        assert_eq!(CursorFile::open(dir.path(), "collector").unwrap().1, None);
    }
}
