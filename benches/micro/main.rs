//! How long the steps of a request take: `cargo bench --bench micro`, or `cargo bench --bench micro -- decide` for some.
//!
//! For a person who changes one of them. Times drift with the machine; what CI compares is `benches/instructions.sh`.

#![allow(missing_docs, unreachable_pub, dead_code, unused_imports, clippy::unwrap_used)]

// The header rules and identifiers of the proxy are private to it, and stay so: the bench compiles the same files again.
#[path = "../../src/proxy/headers.rs"]
mod headers;
#[path = "../../src/proxy/ids.rs"]
mod ids;
mod subjects;
mod trail;

use criterion::{Criterion, Throughput};

const VERIFIED_EVENTS: u64 = 20_000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for subject in subjects::SUBJECTS {
        criterion.bench_function(subject.name, |bencher| {
            let mut run = (subject.make)();
            bencher.iter(&mut run);
        });
    }
    verify(&mut criterion);
    criterion.final_summary();
}

/// The verifier, in events a second.
fn verify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("audit_verify");
    group.sample_size(20).throughput(Throughput::Elements(VERIFIED_EVENTS));
    group.bench_function("20000_events", |bencher| {
        let spool = trail::written(VERIFIED_EVENTS);
        bencher.iter(|| {
            let report = phiward::audit::verify(spool.path()).unwrap();
            assert!(report.intact, "the verifier finds fault with what was just written");
        });
    });
    group.finish();
}
