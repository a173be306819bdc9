//! A tree of nodes as text, with the file's comments where they stood.

use crate::yaml::{Entry, Mark, Node, Value};

use super::WIDTH;
use super::scan::Layout;

/// The whole file.
pub(super) fn print(root: &Node, layout: &Layout) -> String {
    let mut printer = Printer { layout, lines: Vec::new(), next: 0, last: 0 };
    match &root.value {
        Value::Map(entries) if !entries.is_empty() => printer.map(entries, 0, None),
        Value::Seq(items) if !items.is_empty() => printer.seq(items, 0, None),
        _ => {
            printer.lead(root.at.line, 0, false);
            let text = printer.flow(root);
            printer.line(0, None, &text);
            printer.trail(root.at.line, layout.end(root), None);
        }
    }
    printer.lead(u32::MAX, 0, false);
    printer.text()
}

struct Line {
    body: String,
    comment: Option<String>,
}

struct Printer<'a> {
    layout: &'a Layout,
    lines: Vec<Line>,
    /// The next comment to be printed.
    next: usize,
    /// The last line of the file that is printed.
    last: u32,
}

impl Printer<'_> {
    /// Prints the comments before what stands in `line`, each in a line of its own, and keeps one of the blank lines.
    fn lead(&mut self, line: u32, indent: usize, first: bool) {
        let mut first = first;
        while let Some(comment) = self.layout.comments.get(self.next).filter(|comment| comment.line < line) {
            let (at, text) = (comment.line, comment.text.clone());
            self.gap(at, first);
            self.lines.push(Line { body: " ".repeat(indent), comment: Some(text) });
            self.next += 1;
            self.last = at;
            first = false;
        }
        if line < u32::MAX {
            self.gap(line, first);
        }
    }

    fn gap(&mut self, line: u32, first: bool) {
        if !first && !self.lines.is_empty() && self.layout.has_gap(self.last, line) {
            self.lines.push(Line { body: String::new(), comment: None });
        }
    }

    /// Adds the comment that stands in one of the lines to what was printed last, unless `next`, which is printed after it,
    /// begins in the same line: then it is about that.
    fn trail(&mut self, from: u32, to: u32, next: Option<u32>) {
        let to = if next == Some(to) { to.saturating_sub(1) } else { to };
        let comment =
            self.layout.comments.get(self.next).filter(|comment| (from..=to).contains(&comment.line));
        if let (Some(comment), Some(line)) = (comment, self.lines.last_mut()) {
            line.comment = Some(comment.text.clone());
            self.next += 1;
        }
        self.last = self.last.max(to);
    }

    fn line(&mut self, indent: usize, prefix: Option<&str>, text: &str) {
        let before = match prefix {
            Some(prefix) => format!("{}{prefix}", " ".repeat(indent - prefix.len())), // a prefix takes its level's indent
            None => " ".repeat(indent),
        };
        self.lines.push(Line { body: format!("{before}{text}").trim_end().to_owned(), comment: None });
    }

    fn map(&mut self, entries: &[Entry], indent: usize, prefix: Option<&str>) {
        for (at, entry) in entries.iter().enumerate() {
            let prefix = prefix.filter(|_| at == 0);
            if prefix.is_none() {
                self.lead(entry.at.line, indent, at == 0 && indent > 0);
            }
            let key = self.scalar(entry.at, &entry.key);
            if let Some(text) = self.one_line(&entry.value, entry.at.line, indent + key.len() + 2) {
                self.line(indent, prefix, &format!("{key}: {text}"));
                let next = entries.get(at + 1).map(|next| next.at.line);
                self.trail(entry.at.line, self.layout.end(&entry.value), next);
            } else {
                self.line(indent, prefix, &format!("{key}:"));
                self.trail(entry.at.line, entry.at.line, None);
                self.nested(&entry.value, indent + 2, None);
            }
        }
    }

    fn seq(&mut self, items: &[Node], indent: usize, prefix: Option<&str>) {
        for (at, item) in items.iter().enumerate() {
            let prefix = prefix.filter(|_| at == 0);
            if prefix.is_none() {
                self.lead(item.at.line, indent, at == 0 && indent > 0);
            }
            let dashes = format!("{}- ", prefix.unwrap_or_default());
            if let Some(text) = self.one_line(item, item.at.line, indent + 2) {
                self.line(indent + 2, Some(&dashes), &text);
                let next = items.get(at + 1).map(|next| next.at.line);
                self.trail(item.at.line, self.layout.end(item), next);
            } else {
                self.nested(item, indent + 2, Some(&dashes));
            }
        }
    }

    /// A collection over several lines; its first line begins with `prefix`.
    fn nested(&mut self, node: &Node, indent: usize, prefix: Option<&str>) {
        match &node.value {
            Value::Map(entries) => self.map(entries, indent, prefix),
            Value::Seq(items) => self.seq(items, indent, prefix),
            Value::Scalar { .. } => {} // always on one line
        }
    }

    /// `node` as it is written on one line, if it is to be: a scalar, or a collection that is empty, or one that is in
    /// brackets, fits behind `taken` characters and has no comment inside.
    fn one_line(&self, node: &Node, from: u32, taken: usize) -> Option<String> {
        let is_empty = match &node.value {
            Value::Scalar { .. } => true,
            Value::Seq(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
        };
        let end = self.layout.end(node);
        let inside = |comment: &&super::scan::Comment| (from..end).contains(&comment.line);
        let has_comment = self.layout.comments[self.next..].iter().find(inside).is_some();
        let text = self.flow(node);
        let fits = self.layout.is_flow(node) && !has_comment && taken + text.chars().count() <= WIDTH;
        (is_empty || fits).then_some(text)
    }

    fn flow(&self, node: &Node) -> String {
        match &node.value {
            Value::Scalar { text, .. } => self.scalar(node.at, text),
            Value::Seq(items) => {
                let items: Vec<_> = items.iter().map(|item| self.flow(item)).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Map(entries) => {
                let entry = |entry: &Entry| {
                    format!("{}: {}", self.scalar(entry.at, &entry.key), self.flow(&entry.value))
                };
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// A text or key as it was, but in double quotes if it was quoted and they need no more escapes.
    fn scalar(&self, at: Mark, text: &str) -> String {
        match self.layout.quote(at) {
            None => text.to_owned(),
            Some('\'') if text.contains(['"', '\\']) => format!("'{}'", text.replace('\'', "''")),
            Some(_) => {
                let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
                format!("\"{}\"", escaped.replace('\t', "\\t").replace('\r', "\\r").replace('\n', "\\n"))
            }
        }
    }

    /// The lines, with the comments of neighbours that are indented alike in one column.
    fn text(self) -> String {
        let depth = |line: &Line| line.body.len() - line.body.trim_start().len();
        let has_both = |line: &Line| line.comment.is_some() && !line.body.trim().is_empty();
        let mut text = String::new();
        let mut at = 0;
        while at < self.lines.len() {
            let is_run = |line: &&Line| has_both(line) && depth(line) == depth(&self.lines[at]);
            let run = self.lines[at..].iter().take_while(is_run).count();
            let width = self.lines[at..at + run].iter().map(|line| line.body.chars().count()).max();
            for line in &self.lines[at..at + run.max(1)] {
                match &line.comment {
                    Some(comment) if run > 0 => {
                        let width = width.unwrap_or_default();
                        text += &format!("{:<width$} {comment}\n", line.body);
                    }
                    Some(comment) => text += &format!("{}{comment}\n", line.body),
                    None => text += &format!("{}\n", line.body),
                }
            }
            at += run.max(1);
        }
        text
    }
}
