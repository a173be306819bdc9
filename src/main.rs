//! The `phiward` binary.

fn main() -> std::process::ExitCode {
    phiward::cli::main()
}
