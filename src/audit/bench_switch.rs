//! A trail that can be switched off while it runs, so that `benches/mesh` compares with and without within one process: where a process's
//! memory lies moves a figure by more than what is looked for.
//!
//! Only in builds with `--cfg phiward_bench_switch`: no feature or option of phiward leads here. While it is off, an event counts as recorded and
//! is not made.

use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(50);

static IS_OFF: AtomicBool = AtomicBool::new(false);

pub(super) fn is_off() -> bool {
    IS_OFF.load(Ordering::Relaxed)
}

/// From now on the trail is off while the file is there that `PHIWARD_BENCH_TRAIL_OFF` names.
pub(super) fn follow() {
    static FOLLOWED: Once = Once::new();
    let Some(file) = std::env::var_os("PHIWARD_BENCH_TRAIL_OFF").map(PathBuf::from) else { return };
    FOLLOWED.call_once(|| {
        let _ = std::thread::spawn(move || {
            loop {
                IS_OFF.store(file.exists(), Ordering::Relaxed);
                std::thread::sleep(LOOK_EVERY);
            }
        });
    });
}
