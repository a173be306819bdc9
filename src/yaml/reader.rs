//! Nodes to a model: every key must be known, and every problem of a file is reported at once.

use std::cell::RefCell;

use super::{Entry, Mark, Node, Problem, Value, closest};

/// How many problems of one file are kept; a file with more is wrong in a way that the first hundred show.
const MAX_PROBLEMS: usize = 100;

/// Collects problems while a model is read from nodes.
///
/// Readers return `None` when they reported a problem, so a caller goes on with the next field and asks
/// [`Reader::finish`] at the end. Problems are kept behind a `RefCell` so that a [`Fields`] and its owner can both report.
#[derive(Debug, Default)]
pub struct Reader {
    problems: RefCell<Vec<Problem>>,
}

impl Reader {
    /// A reader that has seen no problem yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports a problem.
    pub fn problem(&self, at: Mark, message: impl Into<String>) {
        self.push(Problem::new(at, message));
    }

    /// Reports a problem and says what to do about it.
    pub fn problem_with_hint(&self, at: Mark, message: impl Into<String>, hint: impl Into<String>) {
        self.push(Problem::new(at, message).hint(hint));
    }

    /// True while nothing was reported.
    pub fn is_clean(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// The model, if it is there and nothing was reported.
    ///
    /// # Errors
    /// Every problem in the order of the file, at most 100. Never an empty list.
    pub fn finish<T>(self, model: Option<T>) -> Result<T, Vec<Problem>> {
        let problems = self.into_problems();
        match model {
            Some(model) if problems.is_empty() => Ok(model),
            _ if problems.is_empty() => Err(vec![Problem::new(Mark::START, "the document is incomplete")]),
            _ => Err(problems),
        }
    }

    /// Every problem, in the order of the file.
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.at);
        problems
    }

    /// The mapping `node`, whose fields are asked for one by one; `what` names it in messages.
    pub fn fields<'n, 'r>(&'r self, node: &'n Node, what: &'r str) -> Option<Fields<'n, 'r>> {
        let Value::Map(entries) = &node.value else {
            return self.wrong_type(node, what, "a mapping");
        };
        Some(Fields {
            reader: self,
            at: node.at,
            what,
            entries,
            asked: Vec::with_capacity(16), // more than most mappings know

            refused: Vec::new(),
        })
    }

    /// The items of the list `node`.
    pub fn list<'n>(&self, node: &'n Node, what: &str) -> Option<&'n [Node]> {
        match &node.value {
            Value::Seq(items) => Some(items),
            _ => self.wrong_type(node, what, "a list"),
        }
    }

    /// The items of the list `node`, of which there must be at least one.
    pub fn nonempty_list<'n>(&self, node: &'n Node, what: &str) -> Option<&'n [Node]> {
        let items = self.list(node, what)?;
        if items.is_empty() {
            self.problem(node.at, format!("{what} must not be an empty list"));
            return None;
        }
        Some(items)
    }

    /// The entries of the mapping `node` whose keys are names, not fields.
    pub fn entries<'n>(&self, node: &'n Node, what: &str) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Map(entries) => Some(entries),
            _ => self.wrong_type(node, what, "a mapping"),
        }
    }

    pub(super) fn wrong_type<T>(&self, node: &Node, what: &str, want: &str) -> Option<T> {
        let problem = Problem::new(node.at, format!("{what} must be {want}, found {}", node.kind()));
        self.push(if node.is_null() {
            problem.hint("give it a value or leave the key out")
        } else {
            problem
        });
        None
    }

    fn push(&self, problem: Problem) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MAX_PROBLEMS {
            problems.push(problem);
        }
    }
}

/// A mapping being read. Call [`Fields::finish`] when every known key was asked for: it reports the others.
#[derive(Debug)]
#[must_use = "call finish(), which reports unknown keys"]
pub struct Fields<'n, 'r> {
    reader: &'r Reader,
    at: Mark,
    what: &'r str,
    entries: &'n [Entry],
    asked: Vec<&'static str>,
    refused: Vec<&'static str>,
}

impl<'n> Fields<'n, '_> {
    /// The value of `key`, if the mapping has it.
    pub fn optional(&mut self, key: &'static str) -> Option<&'n Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The value of `key`; its absence is a problem.
    pub fn required(&mut self, key: &'static str) -> Option<&'n Node> {
        let found = self.optional(key);
        if found.is_none() {
            self.reader.problem(self.at, format!("{} needs the key `{key}`", self.what));
        }
        found
    }

    /// The key with its own place, if the mapping has it.
    pub fn entry(&mut self, key: &'static str) -> Option<&'n Entry> {
        self.asked.push(key);
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// A key that is known but not supported by this version: its presence is a problem, and `hint` says what to do.
    /// True when it was there.
    pub fn unsupported(&mut self, key: &'static str, hint: &str) -> bool {
        let Some(entry) = self.entries.iter().find(|entry| entry.key == key) else { return false };
        let message = format!("`{key}` in {} is not supported by this version of phiward", self.what);
        self.reader.problem_with_hint(entry.at, message, hint);
        self.refused.push(key);
        true
    }

    /// Where the mapping begins.
    pub fn at(&self) -> Mark {
        self.at
    }

    /// Reports every key that was not asked for.
    pub fn finish(self) {
        for entry in self.entries {
            let key = entry.key.as_str();
            if self.asked.contains(&key) || self.refused.contains(&key) {
                continue;
            }
            let known = format!("the keys of {} are: {}", self.what, self.asked.join(", "));
            let hint = match closest(&entry.key, self.asked.iter().copied()) {
                Some(near) => format!("did you mean `{near}`? {}{}", known[..1].to_uppercase(), &known[1..]),
                None => known,
            };
            self.reader.problem_with_hint(
                entry.at,
                format!("{} has no key `{}`", self.what, entry.key),
                hint,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    const TEXT: &str = "name: web\nprot: 1\nshadow: true\nempty:\n";

    /// If this fails, a misspelt key is ignored and the default it meant to change stays in force.
    #[test]
    fn every_problem_of_a_mapping_is_reported_in_the_order_of_the_file() {
        let root = parse(TEXT.as_bytes()).unwrap();
        let reader = Reader::new();
        let mut fields = reader.fields(&root, "listener").unwrap();
        assert_eq!(fields.required("name").and_then(|node| reader.string(node, "name")), Some("web"));
        assert_eq!(fields.optional("empty").and_then(|node| reader.string(node, "empty")), None);
        assert!(fields.required("bind").is_none());
        assert!(fields.optional("port").is_none());
        fields.unsupported("shadow", "leave it out");
        fields.finish();
        let problems = reader.finish(Some(())).unwrap_err();
        let lines: Vec<_> = problems.iter().map(|problem| problem.to_string()).collect();
        assert_eq!(
            lines,
            [
                "1:1: listener needs the key `bind`",
                "2:1: listener has no key `prot`",
                "3:1: `shadow` in listener is not supported by this version of phiward",
                "4:6: empty must be a string, found nothing",
            ]
        );
        let hint = problems[1].hint.as_deref().unwrap();
        assert_eq!(hint, "did you mean `port`? The keys of listener are: name, empty, bind, port");
        assert_eq!(problems[3].hint.as_deref(), Some("give it a value or leave the key out"));
    }

    /// If this fails, a list where a mapping belongs is read as an empty mapping.
    #[test]
    fn wrong_kinds_say_what_was_found() {
        let root = parse(b"[1]").unwrap();
        let reader = Reader::new();
        assert!(reader.fields(&root, "inbound").is_none());
        let text = parse(b"a").unwrap();
        assert!(reader.list(&text, "hosts").is_none());
        assert!(reader.nonempty_list(&parse(b"[]").unwrap(), "hosts").is_none());
        let messages: Vec<_> = reader.into_problems().into_iter().map(|problem| problem.message).collect();
        assert_eq!(
            messages,
            [
                "inbound must be a mapping, found a list",
                "hosts must be a list, found a string",
                "hosts must not be an empty list",
            ]
        );
    }

    /// If this fails, a model that could not be built is taken for a good one.
    #[test]
    fn finish_never_accepts_a_missing_model() {
        assert_eq!(Reader::new().finish(Some(1)), Ok(1));
        assert_eq!(Reader::new().finish::<u8>(None).unwrap_err().len(), 1);
    }
}
