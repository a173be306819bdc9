//! The sending of a request's body, which may outlive the coming of its response.

use std::pin::Pin;
use std::task::{Context, Waker};

use tokio::task::JoinHandle;

/// A body on its way out. Dropping this ends it.
pub(crate) struct Upload(Option<JoinHandle<()>>);

impl Upload {
    /// Sends what there is at once; what is still to come is sent by a task of its own. Nothing is left of most bodies.
    pub(crate) fn begin(mut sending: Pin<Box<dyn Future<Output = ()>>>) -> Option<Self> {
        let done = sending.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        (!done).then(|| Self(Some(tokio::task::spawn_local(sending))))
    }

    /// Lets the sending go on by itself: the response has been read to its end.
    pub(crate) fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
