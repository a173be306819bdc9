//! Ending without cutting: one signal, in two stages. First "call somebody else": who calls here is told to go, and is served for as
//! long as it comes. Then "finish what you have and take nothing new".
//!
//! Owns the signal alone; the order of a drain is `runtime`'s.

use tokio::sync::watch;

/// The sending end. Clones send the same.
#[derive(Debug, Clone)]
pub struct Drain(watch::Sender<Stage>);

/// The receiving end, one for whoever has to react.
#[derive(Debug, Clone)]
pub struct DrainWatch(watch::Receiver<Stage>);

/// How far an end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It has not begun.
    Serving,
    /// Callers are to go elsewhere.
    Leaving,
    /// Nothing new is taken.
    Over,
}

impl Drain {
    /// A drain that has not begun.
    pub fn new() -> (Self, DrainWatch) {
        let (sender, receiver) = watch::channel(Stage::Serving);
        (Self(sender), DrainWatch(receiver))
    }

    /// Sends callers elsewhere. Nothing that comes all the same is refused.
    pub fn leave(&self) {
        self.go_on_to(Stage::Leaving);
    }

    /// Begins the drain. Doing so again changes nothing.
    pub fn begin(&self) {
        self.go_on_to(Stage::Over);
    }

    fn go_on_to(&self, next: Stage) {
        self.0.send_if_modified(|stage| {
            let later = *stage < next;
            *stage = next.max(*stage);
            later
        });
    }
}

impl DrainWatch {
    /// Returns once the drain has begun, or its owner is gone.
    pub async fn begun(&mut self) {
        self.reached(Stage::Over).await;
    }

    /// Whether callers are to go elsewhere.
    pub fn has_left(&self) -> bool {
        *self.0.borrow() >= Stage::Leaving
    }

    /// Returns once it has come so far, or its owner is gone.
    pub async fn reached(&mut self, wanted: Stage) {
        // An error means that the sender is gone, which ends the process too.
        drop(self.0.wait_for(|stage| *stage >= wanted).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a sidecar that is told to leave once more takes back that it has begun to drain.
    #[tokio::test]
    async fn a_drain_never_goes_back() {
        let (drain, mut watch) = Drain::new();
        assert!(!watch.has_left());
        drain.begin();
        drain.leave();
        watch.begun().await;
        assert!(watch.has_left());
    }
}
