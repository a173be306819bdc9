//! The `phiward` binary.

/// Measured against the system's allocator in one interleaved run: see docs/performance.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    phiward::cli::main()
}
