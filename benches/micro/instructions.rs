//! Runs one step of a request a number of times and nothing else, for `benches/instructions.py` to count under callgrind.
//!
//! `phiward-instructions NAME TIMES`; without arguments it prints the names. The difference of two counts leaves preparation out, so
//! the program needs no symbols and no marks: it is the release profile, stripped as it ships.

#![allow(missing_docs, unreachable_pub, dead_code, unused_imports, clippy::unwrap_used, clippy::print_stdout)]

// The header rules and identifiers of the proxy are private to it, and stay so: the bench compiles the same files again.
#[path = "../../src/proxy/headers.rs"]
mod headers;
#[path = "../../src/proxy/ids.rs"]
mod ids;
mod subjects;
mod trail;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, times] = args.as_slice() else {
        subjects::SUBJECTS.iter().for_each(|subject| println!("{}", subject.name));
        return ExitCode::SUCCESS;
    };
    let subject = subjects::SUBJECTS.iter().find(|subject| subject.name == name.as_str());
    let (Some(subject), Ok(times)) = (subject, times.parse::<u32>()) else {
        eprintln!("usage: phiward-instructions NAME TIMES; without arguments it prints the names");
        return ExitCode::from(2);
    };
    let mut run = (subject.make)();
    for _ in 0..times {
        run();
    }
    ExitCode::SUCCESS
}
