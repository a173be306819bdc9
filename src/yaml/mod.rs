//! YAML documents with positions, read strictly: what the policy file and the configuration file are made of.
//!
//! Owns the way from bytes to a tree of [`Node`]s that know their line and column, the [`Reader`] that turns nodes into
//! a model and collects every problem of a file instead of stopping at the first, and the text shown to a person. It
//! knows nothing of what any document means, and opens no file.
//!
//! The subset is the one a reviewer can read without surprises. Anchors, aliases, tags, merge keys, duplicate keys,
//! several documents, characters that do not show (control characters, text direction overrides: CVE-2021-42574) and
//! YAML 1.1's booleans (`yes`, `on`) are refused, because each lets a file say something other than what is seen.

mod parse;
mod reader;
mod render;
mod scalar;
mod suggest;

pub use parse::{MAX_BYTES, MAX_DEPTH, parse};
pub use reader::{Fields, Reader};
pub use render::{render, render_as, render_json, word_at};
pub use scalar::{Day, day, time, unix_seconds};
pub(crate) use suggest::closest;

/// A place in a file: line and column, both counted from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

impl Mark {
    /// The beginning of a file.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it begins.
    pub at: Mark,
    /// What it is.
    pub value: Value,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// One value: text, a number, a boolean or nothing; which of them is decided by who reads it.
    Scalar {
        /// The text after unquoting.
        text: String,
        /// True when it was written without quotes, so that `1`, `true` and `null` are not strings.
        plain: bool,
    },
    /// A list.
    Seq(Vec<Node>),
    /// A mapping, in the file's order; keys are unique.
    Map(Vec<Entry>),
}

/// One key of a mapping with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key begins.
    pub at: Mark,
    /// Its value.
    pub value: Node,
}

/// Something wrong at a place in a file, in words for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{}: {message}", at.line, at.column)]
pub struct Problem {
    /// Where it is.
    pub at: Mark,
    /// What is wrong.
    pub message: String,
    /// What to do about it, when there is something to say.
    pub hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(at: Mark, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl Node {
    /// "a mapping", "a list", "a string" and so on: for messages that say what was found.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Map(_) => "a mapping",
            Value::Seq(_) => "a list",
            Value::Scalar { plain: false, .. } => "a string",
            Value::Scalar { text, .. } => scalar::plain_kind(text),
        }
    }

    /// True when the file gives no value (`key:`, `key: null` or `key: ~`).
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if scalar::is_null(text))
    }
}
