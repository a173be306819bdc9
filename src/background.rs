//! Threads that nobody waits for: they take the processor when those that serve requests leave it, or their small share of
//! it.
//!
//! Owns how far they stand back. Without it each batch that is delivered takes a core away from a worker in the middle of a
//! turn, and what the worker had in its caches with it: 3 % of the CPU time of a request on two busy cores
//! (`docs/performance.md`).

/// By how much the calling thread is nicer than the process: a busy core still gives it a quarter beside one worker, five
/// times what delivery for the busiest worker needs.
const NICER: i32 = 5;

/// Makes the calling thread stand back. A system that forbids it costs speed alone.
pub(crate) fn stand_back() {
    // On Linux it is of the calling thread alone (nice(2), "C library/kernel differences").
    if let Err(error) = rustix::process::nice(NICER) {
        tracing::debug!(%error, "a thread in the background stays as urgent as those that serve requests");
    }
}
