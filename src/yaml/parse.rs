//! Bytes to nodes: the only user of the event parser, and the place where the refused parts of YAML are refused.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};

use super::{Entry, Mark, Node, Problem, Value};

/// The largest document, in bytes.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;
/// How deep lists and mappings may nest.
pub const MAX_DEPTH: usize = 32;
/// Up to how many keys a mapping is searched key by key.
const SMALL: usize = 16;

/// Reads one document.
///
/// # Errors
/// The first thing that is not YAML, or not the part of YAML that is accepted, with its place.
pub fn parse(bytes: &[u8]) -> Result<Node, Problem> {
    let text = check_text(bytes)?;
    let mut events = Events { parser: Parser::new_from_str(text) };
    events.expect_start()?;
    let (first, span) = events.next()?;
    if !matches!(first, Event::DocumentStart(_)) {
        return Err(Problem::new(Mark::START, "the file is empty"));
    }
    let (event, at) = events.next()?;
    let node = events.node(event, at, 0)?;
    events.expect_end(span)?;
    Ok(node)
}

/// Refuses what must not be in the file at all, before any YAML is looked at.
fn check_text(bytes: &[u8]) -> Result<&str, Problem> {
    if bytes.len() > MAX_BYTES {
        let message = format!("the file has {} bytes; the most that is read is {MAX_BYTES}", bytes.len());
        return Err(Problem::new(Mark::START, message));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        Problem::new(mark_after(&valid), "this byte is not UTF-8").hint("save the file as UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if is_ordinary(text) {
        return Ok(text);
    }
    let mut rest = text.char_indices().peekable();
    while let Some((index, c)) = rest.next() {
        let newline_follows = rest.peek().is_some_and(|(_, next)| *next == '\n');
        if let Some(what) = refused_char(c, newline_follows) {
            let message = format!("{what} (U+{:04X}) is not allowed here", u32::from(c));
            return Err(Problem::new(mark_after(&text[..index]), message).hint(
                "remove it; it does not show, so the file would say something other than what is read",
            ));
        }
    }
    Ok(text)
}

/// True when there is nothing but printable ASCII and line feeds, as nearly always.
fn is_ordinary(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n'))
}

/// What `c` is when it may not stand in a file that people review.
///
/// A carriage return is a line break to YAML but not to every editor: alone, it could hide a rule behind a comment.
fn refused_char(c: char, newline_follows: bool) -> Option<&'static str> {
    match c {
        '\n' | '\t' => None,
        '\r' if newline_follows => None,
        '\r' => Some("a carriage return without a line feed"),
        '\u{feff}' => Some("a byte order mark"),
        '\u{2028}' | '\u{2029}' => Some("a Unicode line separator"),
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}' => {
            Some("a text direction override")
        }
        '\u{200b}'..='\u{200d}' | '\u{2060}' => Some("an invisible character"),
        c if c.is_control() => Some("a control character"),
        _ => None,
    }
}

fn mark_after(text: &str) -> Mark {
    let line = text.bytes().filter(|b| *b == b'\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Mark { line: clamp(line), column: clamp(column) }
}

fn clamp(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn mark(marker: &Marker) -> Mark {
    Mark { line: clamp(marker.line()), column: clamp(marker.col() + 1) }
}

struct Events<'s> {
    parser: Parser<'s, StrInput<'s>>,
}

impl<'s> Events<'s> {
    fn next(&mut self) -> Result<(Event<'s>, Mark), Problem> {
        match self.parser.next_event() {
            Some(Ok((event, Span { start, .. }))) => Ok((event, mark(&start))),
            Some(Err(error)) => Err(syntax_problem(mark(error.marker()), error.info())),
            None => Ok((Event::StreamEnd, Mark::START)),
        }
    }

    fn expect_start(&mut self) -> Result<(), Problem> {
        match self.next()? {
            (Event::StreamStart, _) => Ok(()),
            (_, at) => Err(Problem::new(at, "this is not a YAML document")),
        }
    }

    fn expect_end(&mut self, began: Mark) -> Result<(), Problem> {
        match self.next()? {
            (Event::DocumentEnd, _) => {}
            (_, at) => return Err(Problem::new(at, "something follows the end of the document")),
        }
        match self.next()? {
            (Event::StreamEnd, _) => Ok(()),
            (_, at) => {
                Err(Problem::new(at.max(began), "a second document begins here; a file holds exactly one")
                    .hint("remove the '---' or move what follows it to a file of its own"))
            }
        }
    }

    /// The node that `event` begins. Recursion is bounded by [`MAX_DEPTH`].
    fn node(&mut self, event: Event<'s>, at: Mark, depth: usize) -> Result<Node, Problem> {
        let value = match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_decorations(at, anchor, tag.as_ref())?;
                Value::Scalar { text: scalar(text, style, at)?, plain: style == ScalarStyle::Plain }
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_decorations(at, anchor, tag.as_ref())?;
                Value::Seq(self.list(deeper(depth, at)?)?)
            }
            Event::MappingStart(anchor, tag) => {
                refuse_decorations(at, anchor, tag.as_ref())?;
                Value::Map(self.mapping(deeper(depth, at)?)?)
            }
            Event::Alias(_) => {
                return Err(Problem::new(at, "an alias ('*name') is not allowed")
                    .hint("write the value out; quote it if it is meant as text that begins with '*'"));
            }
            _ => return Err(Problem::new(at, "a value is missing here")),
        };
        Ok(Node { at, value })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Problem> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, at) => items.push(self.node(event, at, depth)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Vec<Entry>, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: HashMap<String, Mark> = HashMap::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Ok(entries);
            }
            let key = key(event, at)?;
            let first = match entries.len() {
                // A look at each is quicker than a table, up to here.
                0..SMALL => entries.iter().find(|entry| entry.key == key).map(|entry| entry.at),
                SMALL => {
                    places = entries.iter().map(|entry| (entry.key.clone(), entry.at)).collect();
                    places.insert(key.clone(), at)
                }
                _ => places.insert(key.clone(), at),
            };
            if let Some(first) = first {
                let message = format!("the key `{key}` is already in this mapping, at line {}", first.line);
                return Err(Problem::new(at, message).hint("keep one of the two"));
            }
            let (event, value_at) = self.next()?;
            let value = self.node(event, value_at, depth)?;
            entries.push(Entry { key, at, value });
        }
    }
}

fn deeper(depth: usize, at: Mark) -> Result<usize, Problem> {
    if depth == MAX_DEPTH {
        return Err(Problem::new(at, format!("lists and mappings nest deeper than {MAX_DEPTH} here")));
    }
    Ok(depth + 1)
}

fn refuse_decorations(at: Mark, anchor: usize, tag: Option<&Cow<'_, Tag>>) -> Result<(), Problem> {
    if anchor != 0 {
        return Err(Problem::new(at, "an anchor ('&name') is not allowed")
            .hint("write the value out where it is used"));
    }
    if tag.is_some() {
        return Err(Problem::new(at, "a tag ('!name') is not allowed")
            .hint("remove it; quote the value if it is meant as text that begins with '!'"));
    }
    Ok(())
}

fn key(event: Event<'_>, at: Mark) -> Result<String, Problem> {
    let Event::Scalar(text, style, anchor, tag) = event else {
        return Err(Problem::new(at, "a key must be a string"));
    };
    refuse_decorations(at, anchor, tag.as_ref())?;
    if text == "<<" {
        return Err(Problem::new(at, "a merge key ('<<') is not allowed").hint("write the keys out"));
    }
    let plain = style == ScalarStyle::Plain;
    let text = scalar(text, style, at)?;
    if if plain { super::scalar::is_string(&text) } else { !text.is_empty() } {
        return Ok(text);
    }
    let found = Node { at, value: Value::Scalar { text, plain } };
    let message = format!("a key must be a string, found {}", found.kind());
    Err(Problem::new(at, message).hint("put the key in quotes if it is meant as text"))
}

/// The text of a scalar. An escape such as "\0" puts into a value what may not stand in the file; plain text has none, and
/// was looked at with the file.
fn scalar(text: Cow<'_, str>, style: ScalarStyle, at: Mark) -> Result<String, Problem> {
    let hidden = || text.chars().find_map(|c| Some((c, refused_char(c, false)?)));
    if style != ScalarStyle::Plain
        && !is_ordinary(&text)
        && let Some((c, what)) = hidden()
    {
        let message = format!("the value holds {what} (U+{:04X})", u32::from(c));
        return Err(Problem::new(at, message).hint("remove the escape"));
    }
    Ok(text.into_owned())
}

fn syntax_problem(at: Mark, info: &str) -> Problem {
    let problem = Problem::new(at, format!("this is not valid YAML: {info}"));
    if info.contains("tab") { problem.hint("indent with spaces, not with tabs") } else { problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (u32, u32, String) {
        let problem = parse(text.as_bytes()).unwrap_err();
        (problem.at.line, problem.at.column, problem.message)
    }

    /// If this fails, messages point at the wrong place of a file.
    #[test]
    fn every_node_knows_where_it_stands() {
        let root = parse(b"a: 1\nlist:\n  - x\n  - {k: 'v'}\n").unwrap();
        let Value::Map(entries) = &root.value else { panic!("{root:?}") };
        assert_eq!(entries[0].at, Mark { line: 1, column: 1 });
        assert_eq!(entries[0].value.at, Mark { line: 1, column: 4 });
        let Value::Seq(items) = &entries[1].value.value else { panic!("{entries:?}") };
        assert_eq!(items[0].at, Mark { line: 3, column: 5 });
        let Value::Map(inner) = &items[1].value else { panic!("{items:?}") };
        assert_eq!(inner[0].at, Mark { line: 4, column: 6 });
        assert_eq!(inner[0].value.value, Value::Scalar { text: "v".into(), plain: false });
    }

    /// If this fails, a file can say something other than what its reviewer sees.
    #[test]
    fn each_refused_part_of_yaml_is_refused_where_it_stands() {
        let table = [
            ("a: &x 1\n", (1, 4), "anchor"),
            ("a: 1\nb: *x\n", (2, 4), "anchor"),
            ("a: &x [1]\nb: *x\n", (1, 4), "anchor"),
            ("a: !!str 1\n", (1, 4), "tag"),
            ("a: !x {b: c}\n", (1, 4), "tag"),
            ("a:\n  <<: {b: c}\n", (2, 3), "merge key"),
            ("a: 1\nb: 2\na: 3\n", (3, 1), "already in this mapping, at line 1"),
            ("{a: 1, \"a\": 2}\n", (1, 8), "already in this mapping"),
            ("a: 1\n---\nb: 2\n", (2, 1), "second document"),
            ("1: a\n", (1, 1), "found a number"),
            ("true: a\n", (1, 1), "found a boolean"),
            ("~: a\n", (1, 1), "found nothing"),
            ("[a]: b\n", (1, 1), "key must be a string"),
            ("a: \u{202e}b\n", (1, 4), "text direction"),
            ("a: 1 # x\ry\n", (1, 9), "carriage return"),
            ("a: \"\\0\"\n", (1, 4), "control character"),
            ("a: \u{7}\n", (1, 4), "control character"),
            ("a: \u{85}\n", (1, 4), "control character"),
            ("", (1, 1), "empty"),
            ("# only a comment\n", (1, 1), "empty"),
            ("a: [1\n", (2, 1), "not valid YAML"),
            ("a:\n\t- b\n", (2, 2), "not valid YAML"),
        ];
        for (text, (line, column), want) in table {
            let (at_line, at_column, message) = refused(text);
            assert!(message.contains(want), "{text:?}: {message}");
            assert_eq!((at_line, at_column), (line, column), "{text:?}: {message}");
        }
    }

    /// If this fails, a duplicate key is missed in a mapping of one size or another.
    #[test]
    fn duplicates_are_found_in_mappings_of_every_size() {
        for size in 1..40 {
            let text: String = (0..size).map(|at| format!("k{at}: v\n")).collect();
            assert!(parse(text.as_bytes()).is_ok());
            for again in 0..size {
                assert!(
                    refused(&format!("{text}k{again}: v\n")).2.contains(&format!("at line {}", again + 1)),
                    "{size} {again}"
                );
            }
        }
    }

    /// If this fails, a file in another encoding is reported at the wrong place.
    #[test]
    fn bytes_that_are_not_utf8_are_refused_where_they_stand() {
        let problem = parse(b"a: b\nc: \xff\n").unwrap_err();
        assert_eq!((problem.at.line, problem.at.column), (2, 4));
    }

    /// If this fails, a small file can exhaust the stack or hold the process.
    #[test]
    fn depth_and_size_are_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(refused(&nested(MAX_DEPTH + 1)).2.contains("deeper"));
        assert!(parse(nested(MAX_BYTES / 2).as_bytes()).is_err());
        assert!(refused(&"-\n ".repeat(MAX_BYTES)).2.contains("bytes"));
    }

    /// If this fails, files written on Windows or with a byte order mark are refused for no reason.
    #[test]
    fn crlf_and_a_leading_byte_order_mark_are_read() {
        let root = parse("\u{feff}a: 1\r\nb: 2\r\n".as_bytes()).unwrap();
        let Value::Map(entries) = root.value else { panic!("{root:?}") };
        assert_eq!(entries[1].at, Mark { line: 2, column: 1 });
        assert_eq!(entries[1].value.value, Value::Scalar { text: "2".into(), plain: true });
    }

    proptest::proptest! {
        /// If this fails, bytes that someone puts into a policy or configuration file can bring the process down.
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&bytes);
        }

        /// As above, with the pieces that YAML is made of, which random bytes seldom are.
        #[test]
        fn no_arrangement_of_yaml_makes_it_panic(
            text in "([ab]|: |- |\\? |\\[|\\]|\\{|\\}|, |\"|'|\\||>|#|&a|\\*a|!|<<|%YAML|---|\\.\\.\\.|\t|\\\\x|\n|  ){0,40}"
        ) {
            let _ = parse(text.as_bytes());
        }
    }
}
