//! How much of the volume a collector leaves free.
//!
//! Owns that number alone: evidence, tombstones and the rest of the machine still need some when batches are refused.

use std::io;
use std::path::Path;

/// What is left free, or a twentieth of the volume if that is less.
const RESERVE: u64 = 64 * 1024 * 1024;

/// Whether the volume of `dir` has room for a batch.
///
/// # Errors
/// The system does not say.
pub(super) fn has_room(dir: &Path, batch: usize) -> io::Result<bool> {
    let volume = rustix::fs::statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(volume.f_frsize);
    Ok(fits(bytes(volume.f_bavail), bytes(volume.f_blocks), batch as u64))
}

fn fits(free: u64, total: u64, batch: u64) -> bool {
    free >= RESERVE.min(total / 20).saturating_add(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, the collector fills its disk to the last byte, or refuses on a small volume that is nearly empty.
    #[test]
    fn some_of_every_volume_stays_free() {
        const MIB: u64 = 1 << 20;
        assert!(fits(73 * MIB, 1 << 40, 8 * MIB) && !fits(71 * MIB, 1 << 40, 8 * MIB));
        assert!(fits(19 * MIB, 200 * MIB, 8 * MIB) && !fits(17 * MIB, 200 * MIB, 8 * MIB));
        assert!(has_room(Path::new("/"), 0).is_ok());
    }
}
