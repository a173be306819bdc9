//! Who waits on one worker for an event to be recorded.
//!
//! Owns the list of wakers, in the order they came. Knows nothing of marks: whoever wakes says who is done.

use std::cell::RefCell;
use std::task::{Context, Waker};

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The event is in the kernel.
    Written,
    /// The event is on disk.
    Synced,
}

/// The waiting tasks of a worker.
#[derive(Default)]
pub(crate) struct Waiters {
    parked: Vec<Parked>,
    next_key: u64,
}

struct Parked {
    key: u64,
    level: Level,
    position: u64,
    waker: Waker,
}

impl Waiters {
    /// Wakes and forgets those that are done, in the order they came.
    pub(crate) fn wake(&mut self, mut done: impl FnMut(Level, u64) -> bool) {
        self.parked.retain(|parked| {
            let done = done(parked.level, parked.position);
            if done {
                parked.waker.wake_by_ref();
            }
            !done
        });
    }
}

/// One wait; it leaves the list when it is dropped.
pub(crate) struct Entry<'w> {
    waiters: &'w RefCell<Waiters>,
    level: Level,
    position: u64,
    key: Option<u64>,
}

impl<'w> Entry<'w> {
    pub(crate) fn new(waiters: &'w RefCell<Waiters>, level: Level, position: u64) -> Self {
        Self { waiters, level, position, key: None }
    }

    /// Has the task of `cx` woken when the wait is over.
    pub(crate) fn park(&mut self, cx: &Context<'_>) {
        let mut waiters = self.waiters.borrow_mut();
        if let Some(key) = self.key
            && let Some(parked) = waiters.parked.iter_mut().find(|parked| parked.key == key)
        {
            parked.waker.clone_from(cx.waker());
            return;
        }
        let key = waiters.next_key;
        waiters.next_key += 1;
        self.key = Some(key);
        waiters.parked.push(Parked {
            key,
            level: self.level,
            position: self.position,
            waker: cx.waker().clone(),
        });
    }

    /// The wait is over. If the list still has it, the next [`Waiters::wake`] finds it done too; not looking for it here
    /// keeps the ordinary path free of a search.
    pub(crate) fn over(&mut self) {
        self.key = None;
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            // The request was given up while it waited.
            self.waiters.borrow_mut().parked.retain(|parked| parked.key != key);
        }
    }
}
