//! What is wrong with a policy file, or worth a second look.

use crate::yaml::{Mark, Problem};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The policy is invalid, or one of its own tests fails.
    Error,
    /// The policy works, but probably not as somebody thinks.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Something about a policy file at a place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of finding it is, in stable snake_case.
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// Where it is.
    pub at: Mark,
    /// What is wrong.
    pub message: String,
    /// What to do about it, when there is something to say.
    pub hint: Option<String>,
}

impl Finding {
    pub(super) fn error(code: &'static str, at: Mark, message: impl Into<String>) -> Self {
        Self { code, severity: Severity::Error, at, message: message.into(), hint: None }
    }

    pub(super) fn warning(code: &'static str, at: Mark, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, at, message) }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Finding and hint as a problem, for [`crate::yaml::render`].
    pub fn to_problem(&self) -> Problem {
        Problem { at: self.at, message: self.message.clone(), hint: self.hint.clone() }
    }
}

impl From<Problem> for Finding {
    fn from(problem: Problem) -> Self {
        let Problem { at, message, hint } = problem;
        Self { code: "document", severity: Severity::Error, at, message, hint }
    }
}
