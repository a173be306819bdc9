//! Disk space that is taken before it is needed, so that what was let in has a place on the disk and a full disk can still be told.
//!
//! Owns how much, when, and what a full disk may still be given. The bytes themselves are [`super::segment`]'s.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::segment::{Disk, SegmentFile};

/// How often more space is asked for while there is none.
pub(crate) const ASK_EVERY: Duration = Duration::from_millis(200);
/// A full disk is told after so long, then after twice as long, and so on.
const FIRST_TOLD: Duration = Duration::from_secs(10);
const SELDOM_TOLD: Duration = Duration::from_mins(10);
/// What must be left for `audit.gap` and `audit.close`.
const LAST_WORDS: u64 = 4096;

/// What a look has shown.
#[derive(Debug)]
pub(crate) enum Look {
    AsBefore,
    /// The disk has no more: let nobody in.
    Short(io::Error),
    /// There is space again.
    Enough,
}

/// The space ahead of the newest segment's end.
pub(crate) struct Ahead {
    chunk: u64,
    /// The file system cannot take space ahead (NFS before 4.2, say): a full disk is then found out by a refused write.
    unable: bool,
    short: Option<Short>,
}

struct Short {
    ask_at: Instant,
    tell_at: Instant,
    tell_after: Duration,
}

impl Ahead {
    pub(crate) fn new(segment_bytes: u64) -> Self {
        Self { chunk: (segment_bytes / 4).max(LAST_WORDS), unable: false, short: None }
    }

    pub(crate) fn is_short(&self) -> bool {
        self.short.is_some()
    }

    /// Takes space for `segment` before it runs out. Half a chunk is left for what was let in meanwhile.
    pub(crate) fn look(&mut self, segment: &mut SegmentFile, disk: &Disk, now: Instant) -> Look {
        let enough = segment.ahead() >= self.chunk / 2;
        if self.unable
            || self.short.is_none() && enough
            || self.short.as_ref().is_some_and(|s| now < s.ask_at)
        {
            return Look::AsBefore;
        }
        match (segment.allocate(disk, self.chunk), &mut self.short) {
            (Ok(()), None) => Look::AsBefore,
            (Ok(()), Some(_)) => {
                self.short = None;
                Look::Enough
            }
            (Err(error), short) if is_full(&error) => match short {
                Some(short) => {
                    short.ask_at = now + ASK_EVERY;
                    Look::AsBefore
                }
                None => {
                    *short = Some(Short {
                        ask_at: now + ASK_EVERY,
                        tell_at: now + FIRST_TOLD,
                        tell_after: FIRST_TOLD,
                    });
                    Look::Short(error)
                }
            },
            (Err(error), _) => {
                tracing::info!(%error, "space on the audit spool's disk cannot be taken ahead");
                self.unable = true;
                if self.short.take().is_some() { Look::Enough } else { Look::AsBefore }
            }
        }
    }

    /// Whether a full disk may be told in `segment` now: seldom, so that what is left lasts for days.
    pub(crate) fn may_tell(&mut self, segment: &SegmentFile, now: Instant) -> bool {
        let Some(short) = self.short.as_mut().filter(|short| now >= short.tell_at) else { return false };
        short.tell_after = (short.tell_after * 2).min(SELDOM_TOLD);
        short.tell_at = now + short.tell_after;
        segment.ahead() >= 2 * LAST_WORDS
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a full disk is never told in the trail, or so often that the space for it runs out.
    #[test]
    fn a_full_disk_is_told_seldom_and_the_space_for_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, start) = (Disk::default(), Instant::now());
        let mut segment = SegmentFile::create(dir.path().join("s")).unwrap();
        let mut ahead = Ahead::new(1 << 20);
        let mut look =
            |ahead: &mut Ahead, at: u64| ahead.look(&mut segment, &disk, start + Duration::from_secs(at));
        assert!(matches!(look(&mut ahead, 0), Look::AsBefore));
        assert_eq!(segment.ahead(), 1 << 18);
        assert_eq!(segment.file().metadata().unwrap().len(), 0, "the file is as long as its records");
        segment.append(&disk, &[b'x'; 200_000]).unwrap();
        *disk.allocate_error.lock().unwrap() = Some(ErrorKind::StorageFull);
        let mut look =
            |ahead: &mut Ahead, at: u64| ahead.look(&mut segment, &disk, start + Duration::from_secs(at));
        assert!(matches!(look(&mut ahead, 1), Look::Short(_)));
        assert!(matches!(look(&mut ahead, 2), Look::AsBefore));
        let told = (0..86400).filter(|at| ahead.may_tell(&segment, start + Duration::from_secs(*at))).count();
        assert!((100..200).contains(&told), "{told} in a day");
        *disk.allocate_error.lock().unwrap() = None;
        assert!(matches!(ahead.look(&mut segment, &disk, start + Duration::from_secs(90_000)), Look::Enough));
        segment.release();
        assert_eq!((segment.ahead(), segment.file().metadata().unwrap().len()), (0, 200_000));
    }
}
