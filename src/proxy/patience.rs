//! How long an HTTP/1 connection may take to ask: the time from one request's end to the next one's whole head.
//!
//! Owns the moment since which a connection owes a head. As with responses ([`super::waiting`]) there is no timer for each
//! request: the worker looks at its connections now and then.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

/// What one connection owes.
pub(crate) struct Patience {
    head_owed_since: Cell<Option<Instant>>,
    over: Cell<bool>,
    waker: RefCell<Waker>,
}

/// The connections of a worker that owe heads.
#[derive(Default)]
pub(crate) struct Owing(RefCell<Vec<Weak<Patience>>>);

impl Owing {
    /// A new connection, which owes its first head from `now`.
    pub(crate) fn join(&self, now: Instant) -> Rc<Patience> {
        let patience = Rc::new(Patience {
            head_owed_since: Cell::new(Some(now)),
            over: Cell::new(false),
            waker: RefCell::new(Waker::noop().clone()),
        });
        self.0.borrow_mut().push(Rc::downgrade(&patience));
        patience
    }

    /// Ends the patience with those who have owed a head for longer than `limit`, and forgets those that are gone.
    pub(crate) fn look(&self, now: Instant, limit: Duration) {
        self.0.borrow_mut().retain(|connection| {
            let Some(patience) = connection.upgrade() else { return false };
            if patience.head_owed_since.get().is_some_and(|since| now.duration_since(since) >= limit) {
                patience.over.set(true);
                patience.waker.borrow().wake_by_ref();
            }
            true
        });
    }
}

impl Patience {
    /// A whole head came.
    pub(crate) fn head_came(&self) {
        self.head_owed_since.set(None);
    }

    /// The request is over, and the next may come.
    pub(crate) fn head_owed(&self, now: Instant) {
        self.head_owed_since.set(Some(now));
    }

    /// Ready once the connection has taken too long.
    pub(crate) fn poll_over(&self, cx: &Context<'_>) -> Poll<()> {
        if self.over.get() {
            return Poll::Ready(());
        }
        self.waker.borrow_mut().clone_from(cx.waker());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a client that sends its head byte by byte holds a connection for ever, or one that waits for a slow
    /// answer loses it.
    #[test]
    fn patience_runs_while_a_head_is_owed_and_only_then() {
        let (owing, limit, start) = (Owing::default(), Duration::from_secs(60), Instant::now());
        let is_over =
            |patience: &Patience| patience.poll_over(&Context::from_waker(Waker::noop())).is_ready();
        let (silent, asking) = (owing.join(start), owing.join(start));
        asking.head_came();
        owing.look(start + limit, limit);
        assert!(is_over(&silent) && !is_over(&asking));
        owing.look(start + 3 * limit, limit);
        assert!(!is_over(&asking), "the answer is slow");
        asking.head_owed(start + 3 * limit);
        owing.look(start + 7 * limit / 2, limit);
        assert!(!is_over(&asking));
        owing.look(start + 4 * limit, limit);
        assert!(is_over(&asking));
        drop((silent, asking));
        owing.look(start, limit);
        assert!(owing.0.borrow().is_empty());
    }
}
