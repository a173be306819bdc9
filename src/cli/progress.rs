//! How far a long look at an audit trail has come: one line on a terminal, and nothing anywhere else.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// What is over sooner needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);
const WIDTH: u64 = 30;
/// How often the bar follows work that others do.
const LOOK: Duration = Duration::from_millis(100);

/// A bar on stderr, which is taken away in the end.
pub(in crate::cli) struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    began: Instant,
    /// The percentage that stands there; none while there is no line.
    shown: Option<u64>,
    is_terminal: bool,
}

impl Progress {
    /// Of `total` bytes, none are done yet.
    pub(in crate::cli) fn of(what: &'static str, total: u64) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { what, total, done: 0, began: Instant::now(), shown: None, is_terminal }
    }

    /// `bytes` more are done.
    pub(in crate::cli) fn advance(&mut self, bytes: usize) {
        self.done += bytes as u64;
        let percent = percent(self.done, self.total);
        if !self.is_terminal || self.shown == Some(percent) || self.began.elapsed() < PATIENCE {
            return;
        }
        self.shown = Some(percent);
        let _ = write!(std::io::stderr(), "\r{}", line(self.what, percent)); // a terminal that is gone needs no bar
    }
}

/// Does `work` while the bar follows how many of `total` bytes it says to have done, from whatever threads.
pub(in crate::cli) fn while_working<T>(
    what: &'static str,
    total: u64,
    done: &AtomicU64,
    work: impl FnOnce() -> T,
) -> T {
    if !std::io::stderr().is_terminal() {
        return work();
    }
    let (ended, end) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut bar = Progress::of(what, total);
            while end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let more = done.load(Ordering::Relaxed).saturating_sub(bar.done);
                bar.advance(usize::try_from(more).unwrap_or(usize::MAX));
            }
        });
        let out = work();
        drop(ended);
        out
    })
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}

fn percent(done: u64, total: u64) -> u64 {
    (done.saturating_mul(100) / total.max(1)).min(100)
}

fn line(what: &str, percent: u64) -> String {
    let full = percent * WIDTH / 100;
    let bar: String = (0..WIDTH).map(|at| if at < full { '#' } else { '.' }).collect();
    format!("{what} [{bar}] {percent:3} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a person who waits sees a bar that is never full, or one that runs past its end.
    #[test]
    fn the_bar_is_full_at_the_end_and_not_before() {
        assert_eq!(line("a", percent(0, 10)), "a [..............................]   0 %");
        assert_eq!(line("a", percent(5, 10)), "a [###############...............]  50 %");
        assert_eq!(percent(9_999, 10_000), 99);
        // A trail that is written while it is read grows.
        assert_eq!(line("a", percent(20, 10)), "a [##############################] 100 %");
        assert_eq!(percent(1, 0), 100);
    }
}
