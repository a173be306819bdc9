//! The syncer: the thread that brings written events onto the disk.
//!
//! It is apart from the writer because one `fdatasync` takes as long as thousands of writes: events go on being written
//! while it runs, and the next run covers all of them, which is the group commit. In `write` mode it runs at most every
//! [`SYNC_DELAY`]. After an error it runs no more (see `segment::Disk::sync`).

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::spool::{Durability, Health, Shared};

/// How long written events wait for company in `write` mode. The promise is at least one sync each 100 ms; the rest is for
/// what they waited before they were written (see `recorder`), and for the sync itself.
const SYNC_DELAY: Duration = Duration::from_millis(65);

/// Works until the writer has ended and all it wrote is on disk.
pub(crate) fn run(shared: &Shared) {
    loop {
        let mut tail = shared.tail();
        while !tail.sync_asked && !tail.stop {
            tail = shared.sync_wanted.wait(tail).unwrap_or_else(PoisonError::into_inner);
        }
        if shared.config.durability == Durability::Write && !tail.stop {
            let waited = shared.sync_wanted.wait_timeout_while(tail, SYNC_DELAY, |tail| !tail.stop);
            tail = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let files = std::mem::take(&mut tail.unsynced);
        tail.sync_asked = false;
        let marks: Vec<_> = tail
            .workers
            .iter()
            .map(|worker| (worker.clone(), worker.written.load(Ordering::Acquire)))
            .collect();
        let stop = tail.stop;
        drop(tail);
        for file in &files {
            if let Err(error) = shared.disk.sync(file) {
                tracing::error!(%error, "fdatasync of the audit spool failed; check the disk and restart");
                shared.set_health(
                    Health::Poisoned,
                    Some(format!("{}: fdatasync: {error}", shared.config.dir.display())),
                );
                return;
            }
        }
        for (worker, mark) in marks {
            worker.synced.store(mark, Ordering::Release);
            worker.wake.notify_one();
        }
        if stop && shared.tail().unsynced.is_empty() {
            return;
        }
    }
}
