//! Ending without cutting: one signal that says "finish what you have and take nothing new".
//!
//! Owns the signal alone; the order of a drain is `runtime`'s.

use tokio::sync::watch;

/// The sending end.
#[derive(Debug)]
pub struct Drain(watch::Sender<bool>);

/// The receiving end, one for whoever has to react.
#[derive(Debug, Clone)]
pub struct DrainWatch(watch::Receiver<bool>);

impl Drain {
    /// A drain that has not begun.
    pub fn new() -> (Self, DrainWatch) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), DrainWatch(receiver))
    }

    /// Begins the drain. Doing so again changes nothing.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }
}

impl DrainWatch {
    /// Returns once the drain has begun, or its owner is gone.
    pub async fn begun(&mut self) {
        // An error means that the sender is gone, which ends the process too.
        drop(self.0.wait_for(|begun| *begun).await);
    }

    /// Whether the drain has begun.
    pub fn has_begun(&self) -> bool {
        *self.0.borrow()
    }
}
