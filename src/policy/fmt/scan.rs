//! Where comments stand in a file, and where each value ends.

use std::collections::{HashMap, HashSet};

use crate::yaml::{Mark, Node, Problem, Value};

/// A comment, with its `#` and without spaces after it.
#[derive(Debug)]
pub(super) struct Comment {
    pub(super) line: u32,
    pub(super) text: String,
}

/// What a tree of nodes does not tell of its file.
#[derive(Debug)]
pub(super) struct Layout {
    /// In the order of the file.
    pub(super) comments: Vec<Comment>,
    /// The last line of each quoted text, by its first character.
    texts: HashMap<Mark, u32>,
    /// The last line of each `{...}` and `[...]`, by its first character.
    collections: HashMap<Mark, u32>,
    /// The quote of each quoted text and key.
    quotes: HashMap<Mark, char>,
    /// Lines, from 1, that hold nothing.
    blank: HashSet<u32>,
}

impl Layout {
    /// Looks through `text`, from which `root` was read.
    ///
    /// # Errors
    /// There is something in a form that would not survive.
    pub(super) fn scan(text: &str, root: &Node) -> Result<Self, Problem> {
        let lines: Vec<Vec<char>> = text.lines().map(|line| line.chars().collect()).collect();
        let mut starts = Starts { lines: &lines, quotes: HashMap::new(), brackets: HashSet::new() };
        starts.node(root)?;
        let Starts { quotes, brackets, .. } = starts;
        let blank = (1..).zip(&lines).filter(|(_, line)| line.iter().all(|c| c.is_whitespace()));
        let blank = blank.map(|(number, _)| number).collect();
        let mut layout =
            Self { comments: Vec::new(), texts: HashMap::new(), collections: HashMap::new(), quotes, blank };
        layout.read(&lines, &brackets);
        Ok(layout)
    }

    /// The comments' texts.
    pub(super) fn texts(&self) -> Vec<&str> {
        self.comments.iter().map(|comment| comment.text.as_str()).collect()
    }

    /// The quote with which the text or key at `at` is written.
    pub(super) fn quote(&self, at: Mark) -> Option<char> {
        self.quotes.get(&at).copied()
    }

    /// True for `{...}` and `[...]`.
    pub(super) fn is_flow(&self, node: &Node) -> bool {
        !matches!(node.value, Value::Scalar { .. }) && self.collections.contains_key(&node.at)
    }

    /// The last line of `node`.
    pub(super) fn end(&self, node: &Node) -> u32 {
        let (known, last) = match &node.value {
            Value::Map(entries) => (&self.collections, entries.last().map(|entry| &entry.value)),
            Value::Seq(items) => (&self.collections, items.last()),
            Value::Scalar { .. } => (&self.texts, None),
        };
        let end = || last.map_or(node.at.line, |last| self.end(last));
        known.get(&node.at).copied().unwrap_or_else(end)
    }

    /// True when a line between the two holds nothing.
    pub(super) fn has_gap(&self, after: u32, before: u32) -> bool {
        (after + 1..before).any(|line| self.blank.contains(&line))
    }

    fn read(&mut self, lines: &[Vec<char>], brackets: &HashSet<Mark>) {
        let mut open: Vec<Mark> = Vec::new();
        let mut quoted: Option<(Mark, char)> = None;
        for (number, line) in (1..).zip(lines) {
            let mut column = 0;
            while column < line.len() {
                let at = Mark { line: number, column: column as u32 + 1 }; // fits: a file has at most 4 MiB
                let c = line[column];
                column += 1;
                match quoted {
                    Some((_, '"')) if c == '\\' => column += 1,
                    Some((start, quote)) if c == quote => {
                        if quote == '\'' && line.get(column) == Some(&'\'') {
                            column += 1;
                        } else {
                            self.texts.insert(start, number);
                            quoted = None;
                        }
                    }
                    Some(_) => {}
                    None if self.quotes.contains_key(&at) => quoted = Some((at, c)),
                    None if brackets.contains(&at) => open.push(at),
                    None if matches!(c, ']' | '}') => {
                        if let Some(start) = open.pop() {
                            self.collections.insert(start, number);
                        }
                    }
                    None if c == '#' && (column == 1 || line[column - 2].is_whitespace()) => {
                        let text: String = line[column - 1..].iter().collect();
                        self.comments.push(Comment { line: number, text: text.trim_end().to_owned() });
                        break;
                    }
                    None => {}
                }
            }
        }
    }
}

/// Where quotes and brackets begin that are not part of a text.
struct Starts<'l> {
    lines: &'l [Vec<char>],
    quotes: HashMap<Mark, char>,
    brackets: HashSet<Mark>,
}

impl Starts<'_> {
    fn char_at(&self, at: Mark) -> Option<char> {
        let (line, column) = (at.line.checked_sub(1)? as usize, at.column.checked_sub(1)? as usize);
        self.lines.get(line)?.get(column).copied()
    }

    fn node(&mut self, node: &Node) -> Result<(), Problem> {
        match &node.value {
            Value::Scalar { text, plain } => self.scalar(node.at, text, *plain),
            Value::Seq(items) => {
                self.brackets.extend((self.char_at(node.at) == Some('[')).then_some(node.at));
                items.iter().try_for_each(|item| self.node(item))
            }
            Value::Map(entries) => {
                // A mapping in block style begins where its first key does, which may be in quotes.
                self.brackets.extend((self.char_at(node.at) == Some('{')).then_some(node.at));
                entries.iter().try_for_each(|entry| {
                    self.quotes.extend(self.quote_at(entry.at).map(|quote| (entry.at, quote)));
                    self.node(&entry.value)
                })
            }
        }
    }

    fn quote_at(&self, at: Mark) -> Option<char> {
        self.char_at(at).filter(|c| matches!(c, '"' | '\''))
    }

    fn scalar(&mut self, at: Mark, text: &str, plain: bool) -> Result<(), Problem> {
        if !plain {
            let Some(quote) = self.quote_at(at) else {
                return Err(Problem::new(at, "a text in '|' or '>' form cannot be laid out anew")
                    .hint("write it in quotes, on one line"));
            };
            self.quotes.insert(at, quote);
            return Ok(());
        }
        let (line, column) = (at.line.saturating_sub(1) as usize, at.column.saturating_sub(1) as usize);
        let rest = self.lines.get(line).map(|line| line.iter().skip(column)).into_iter().flatten();
        if !rest.take(text.chars().count()).copied().eq(text.chars()) {
            return Err(Problem::new(at, "a text without quotes over several lines cannot be laid out anew")
                .hint("write it on one line"));
        }
        Ok(())
    }
}
