//! Who may do what: the policy file, and the decision on each request.
//!
//! Owns the document and its errors, the rules about what a request target may look like, the compiled form, the
//! decision and the explanation of it. It is pure: no file is opened, no clock is read, nothing waits, and it knows no HTTP
//! library; who calls it passes in the bytes of the file, the time, and the parts of a request as text.
//!
//! [`admit`] refuses what is malformed or can be read in two ways and returns the rest in one form. [`Policy::grants`]
//! says once for each connection which rules concern its peer. [`Policy::decide`] answers for each request.

mod codes;
mod compile;
mod conditions;
mod contradict;
mod decide;
pub mod diff;
mod document;
mod explain;
mod finding;
pub mod fmt;
mod grants;
mod headers;
mod host;
mod lint;
pub mod matrix;
mod method;
mod params;
mod path;
mod pattern;
mod query;
mod reach;
mod reason;
mod request;
mod scan;
pub mod schema;
mod selftest;
mod target;
mod testing;
mod trie;
pub mod usage;
mod validate;
mod wording;

pub use codes::{CODES, Code};
pub use compile::{Policy, Template};
pub use decide::{Decision, Shadow};
pub use explain::{Candidate, Explanation, explain};
pub use finding::{Finding, Severity};
pub use grants::Grants;
pub use headers::{Headers, NoHeaders};
pub use method::Method;
pub use path::PathRules;
pub use reason::{Outcome, Reason};
pub use request::Request;
pub use target::{Admitted, RawRequest, admit, admit_host, is_method_override_header};
pub use testing::{TestResult, TestSet};
pub use validate::{Checks, Report, load, validate, validate_with};

/// A point in time: seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixSeconds(pub i64);
