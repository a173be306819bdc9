//! Nothing is lost, shown by faults: two sidecars and a collector, each a process of its own, under load, are killed, get
//! disks that fail and a collector that lies, in an order that a seed gives; then everything that is left is compared.
//!
//! `PHIWARD_FAULT_RUNS` says how many runs, `PHIWARD_FAULT_SEED` the first seed, `PHIWARD_FAULT_JOBS` how many at a time and
//! `PHIWARD_BIN` the program under test (tests/e2e/faults.sh takes the release build and seeds that nobody has chosen). A seed
//! makes the same plan each time; what the load does in between is up to the scheduler. A run that fails names its seed and
//! leaves its folder.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the lint setting for tests knows #[test] functions alone; seeds are printed
#![allow(missing_docs, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod app;
mod disk;
mod invariants;
mod liar;
mod load;
mod plan;
mod process;
mod relay;
mod run;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use invariants::Tally;
use plan::Plan;
use run::Mesh;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// If this fails, an audit trail can lose an event, or tell of one that was not, when something breaks at the wrong moment.
#[test]
fn whatever_breaks_every_request_that_the_app_saw_has_its_event_once_and_in_order() {
    let runs = setting("PHIWARD_FAULT_RUNS").unwrap_or(6);
    let first = setting("PHIWARD_FAULT_SEED").unwrap_or(1);
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let work = || {
        while failures.lock().unwrap().is_empty() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= runs {
                break;
            }
            let seed = first + number;
            if let Err(failure) = one(seed) {
                failures.lock().unwrap().push(failure);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..setting("PHIWARD_FAULT_JOBS").unwrap_or(2) {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// One run on a thread of its own, with which its processes end in any case.
fn one(seed: u64) -> Result<Tally, String> {
    let plan = Plan::of(seed);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let outcome = runtime.enable_all().build().unwrap().block_on(async {
        let mut mesh = Mesh::start(&plan).await.map_err(|wrong| (wrong, None))?;
        let checked = match mesh.suffer().await {
            Ok(()) => invariants::check(&mesh, &plan),
            Err(wrong) => Err(wrong),
        };
        checked.map_err(|wrong| (wrong, Some(mesh)))
    });
    match outcome {
        Ok(tally) => {
            let faults: Vec<_> = plan.steps.iter().map(|step| step.fault).collect();
            println!("seed {seed}: {tally}; {faults:?}");
            Ok(tally)
        }
        Err((wrong, mesh)) => {
            let folder = mesh.map(|mesh| mesh.pki.dir.keep());
            Err(format!(
                "seed {seed}: {wrong}\n  {plan:?}\n  folder: {folder:?}\n  again: PHIWARD_FAULT_SEED={seed} \
                 PHIWARD_FAULT_RUNS=1 cargo test --test faults"
            ))
        }
    }
}
