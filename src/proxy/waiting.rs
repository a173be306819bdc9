//! How long a request waits for the head of its response.
//!
//! Nearly every request is answered at once, so none has a timer of its own: the worker looks at all that wait, a few times in
//! the shortest time that any of them may wait (docs/performance.md). Owns the list and who is late; what comes of it is
//! decided by who waits.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use super::exchange::Exchange;

/// The requests of one upstream that wait.
#[derive(Default)]
pub(crate) struct Waiting(RefCell<Slab<(Rc<Exchange>, Waker)>>);

impl Waiting {
    /// The answer, or nothing when it takes too long.
    pub(crate) async fn in_time<T>(
        &self,
        exchange: &Rc<Exchange>,
        answer: &mut (impl Future<Output = T> + Unpin),
    ) -> Option<T> {
        let mut place = Place { waiting: self, key: None };
        poll_fn(|cx| {
            if let Poll::Ready(answer) = Pin::new(&mut *answer).poll(cx) {
                return Poll::Ready(Some(answer));
            }
            if exchange.is_late() {
                return Poll::Ready(None);
            }
            place.hold(exchange, cx.waker());
            Poll::Pending
        })
        .await
    }

    /// Wakes those whose upstream owes them a head for longer than `patience`.
    pub(crate) fn look(&self, now: Instant, patience: Duration) {
        for (_, (exchange, waker)) in self.0.borrow().iter() {
            // A long upload is no slow answer: the time runs while it is the upstream's turn, and from the last byte.
            if exchange.upstream_owes_since().is_some_and(|since| now.duration_since(since) >= patience) {
                exchange.give_up();
                waker.wake_by_ref();
            }
        }
    }
}

/// One place in the list; it leaves with who waits.
struct Place<'w> {
    waiting: &'w Waiting,
    key: Option<usize>,
}

impl Place<'_> {
    fn hold(&mut self, exchange: &Rc<Exchange>, waker: &Waker) {
        let mut list = self.waiting.0.borrow_mut();
        match self.key.and_then(|key| list.get_mut(key)) {
            Some((_, known)) => known.clone_from(waker),
            None => self.key = Some(list.insert((exchange.clone(), waker.clone()))),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // Taken out first: what is dropped may come back here.
        let left = self.key.and_then(|key| self.waiting.0.borrow_mut().try_remove(key));
        drop(left);
    }
}
