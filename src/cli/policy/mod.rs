//! `phiward policy`: the policy file's tools, one file a command. They parse arguments, ask [`crate::policy`], and print.

mod diff;
mod explain;
mod fmt;
mod junit;
mod matrix;
mod sarif;
mod schema;
mod shared;
mod test;
mod validate;

use std::process::ExitCode;

pub use shared::Format;

/// The policy file's tools.
#[derive(Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Check policy files: errors, doubtful rules, and the tests they carry
    ///
    /// Every finding of every file is reported in one run, with its place and a code that never changes; docs/policy.md
    /// lists the codes. Exits with 0 when every file is valid, 1 when one is not, 2 when one cannot be read.
    Validate(validate::ValidateArgs),
    /// Run the tests that policy files carry, and further ones
    ///
    /// Prints what ran and what failed, with the trace of the decision. Exits with 0 when every test passed, 1 when one
    /// failed, 2 when a file cannot be read or is not valid.
    Test(test::TestArgs),
    /// Say what a new version of a policy gives and takes
    ///
    /// Compares what the files mean, not how they are written: for each identity the requests that it gains and loses, from
    /// now on, each with an example that `explain` confirms. Exits with 0; with 1 when --fail-on-widening is given and
    /// something is gained; with 2 when a file cannot be read, is not valid, or cannot be compared within bounds.
    Diff(diff::DiffArgs),
    /// List who may do what: identities, roles, permissions and deny rules, for an access review
    ///
    /// With --used-by, how often each permission was used, by an audit trail. Exits with 0, or with 2 when a file or the
    /// trail cannot be read.
    Matrix(matrix::MatrixArgs),
    /// Write policy files in their one layout
    ///
    /// Comments, order and content stay. Exits with 0; with 1 when --check is given and a file would be changed; with 2 when
    /// a file cannot be read, or cannot be laid out without a doubt, in which case it is not touched.
    Fmt(fmt::FmtArgs),
    /// Print the JSON Schema of the policy file, for editors
    Schema,
    /// Say what a policy decides about one request, and why. The engine is the sidecar's own
    ///
    /// Exits with 0 when the request is allowed, 1 when it is denied or rejected, 2 when the question cannot be answered.
    Explain(explain::ExplainArgs),
}

/// Runs `command` and returns the exit code.
pub fn run(command: PolicyCommand) -> ExitCode {
    let code = match command {
        PolicyCommand::Validate(args) => validate::validate(args),
        PolicyCommand::Test(args) => test::test(args),
        PolicyCommand::Diff(args) => diff::diff(args),
        PolicyCommand::Matrix(args) => matrix::matrix(args),
        PolicyCommand::Fmt(args) => fmt::fmt(args),
        PolicyCommand::Schema => schema::schema(),
        PolicyCommand::Explain(args) => explain::explain(args),
    };
    ExitCode::from(code)
}
