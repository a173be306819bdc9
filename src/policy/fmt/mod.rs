//! A policy file in its one layout: the same content, the same comments, the same order.
//!
//! Owns spaces, line breaks and the kind of quotes, and nothing else: keys and rules stay where they are, because their
//! order is their author's and decides which rule is named in the trail. What is written as `{...}` or `[...]` stays so
//! while it fits in one line. A file that cannot be laid out without a doubt is refused with the reason, never changed: the
//! result is read again and compared before it is given back.

mod print;
mod scan;

use crate::yaml::{self, Node, Problem, Value};

use scan::Layout;

/// How long a line may be, in characters; longer collections are written over several lines.
const WIDTH: usize = 140;

/// The file's text in its one layout.
///
/// # Errors
/// The file is not YAML that is accepted, or it has something that would not survive; and where.
pub fn format(source: &[u8]) -> Result<String, Problem> {
    let root = yaml::parse(source)?;
    let text = String::from_utf8_lossy(source); // it was read, so it is UTF-8
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let layout = Layout::scan(text, &root)?;
    let formatted = print::print(&root, &layout);
    let same = yaml::parse(formatted.as_bytes()).is_ok_and(|again| {
        let other = Layout::scan(&formatted, &again);
        is_same(&root, &again) && other.is_ok_and(|other| other.texts() == layout.texts())
    });
    if same {
        return Ok(formatted);
    }
    let message = "the file cannot be laid out anew without a change of what it says";
    Err(Problem::new(root.at, message)
        .hint("write collections over several lines where comments stand in them"))
}

/// True when both hold the same, wherever it stands.
fn is_same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::Scalar { .. }, Value::Scalar { .. }) => a.value == b.value,
        (Value::Seq(a), Value::Seq(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.key == b.key && is_same(&a.value, &b.value))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn formatted(text: &str) -> String {
        format(text.as_bytes()).unwrap_or_else(|problem| panic!("{problem}\n{text}"))
    }

    /// If this fails, the layout of every policy in the world changes with an update.
    #[test]
    fn a_file_gets_its_one_layout() {
        let messy = "\
# head
apiVersion:   'phiward/v1'


kind: Policy   # what it is
metadata: { name: p ,revision: \"1\" }     # which
roles:

    r :   # the role
    # first
    - {name: a, methods: [ GET,HEAD ],
       paths: ['/a', '/b']}   # after
    -   name: b
        methods:
        - GET  # one
        # two
        - HEAD
    # last of r
deny: [ # inner
  {name: d, paths: [/x]}, {name: e, # why
   paths: [/y]} ]
# end
";
        let tidy = "\
# head
apiVersion: \"phiward/v1\"

kind: Policy                       # what it is
metadata: {name: p, revision: \"1\"} # which
roles:
  r: # the role
    # first
    - {name: a, methods: [GET, HEAD], paths: [\"/a\", \"/b\"]} # after
    - name: b
      methods:
        - GET # one
        # two
        - HEAD
# last of r
deny: # inner
  - {name: d, paths: [/x]}
  - name: e # why
    paths: [/y]
# end
";
        assert_eq!(formatted(messy), tidy);
        assert_eq!(formatted(tidy), tidy);
        assert_eq!(formatted(&messy.replace('\n', "\r\n")), tidy);
    }

    /// If this fails, a long rule is cut at the wrong place, or stays longer than anybody reads.
    #[test]
    fn what_does_not_fit_in_a_line_is_written_over_several() {
        let long = format!("a: {{b: [{}], c: d}}\n", ["\"0123456789\""; 12].join(", "));
        let tidy = formatted(&long);
        assert!(tidy.starts_with("a:\n  b:\n    - \"0123456789\"\n") && tidy.ends_with("  c: d\n"), "{tidy}");
        assert_eq!(formatted(&tidy), tidy);
    }

    /// If this fails, text is lost or changed without a word.
    #[test]
    fn what_would_not_survive_is_refused_with_its_place() {
        for (text, line) in
            [("a: |\n  b\n", 2), ("a: b\nc: >-\n  d\n", 3), ("a: b\n  c\nd: e\n", 1), ("a: [", 2), ("", 1)]
        {
            let problem = format(text.as_bytes()).unwrap_err();
            assert_eq!(problem.at.line.max(1), line, "{text:?} {problem}");
        }
    }

    /// If this fails, a quoted text means something else afterwards.
    #[test]
    fn quotes_keep_what_they_hold() {
        let text = "a: 'it''s \"so\"'\nb: \"x\\ty\\\\z\"\nc: ' # no comment'\n\"d e\": \"# neither\" # this one\n'f': g#h\n";
        let tidy = "a: 'it''s \"so\"'\nb: \"x\\ty\\\\z\"\nc: \" # no comment\"\n\"d e\": \"# neither\" # this one\n\"f\": g#h\n";
        assert_eq!(formatted(text), tidy);
        assert_eq!(formatted(tidy), tidy);
    }

    fn scalar() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z]{1,8}",
            "\"[ -!#-\\[\\]-~]{0,12}\"",
            "'[ -&(-~]{0,12}'",
            Just("\"a \\\"b\\\" \\\\ c\"".to_owned())
        ]
    }

    /// YAML in flow style with line breaks and comments at random places between tokens.
    fn flow() -> impl Strategy<Value = String> {
        let space = prop_oneof![4 => Just(" "), 1 => Just("\n  "), 1 => Just("   # note, [x]\n  ")];
        let leaf = scalar().prop_map(|text| text.to_owned());
        leaf.prop_recursive(3, 16, 4, move |inner| {
            let list = proptest::collection::vec((inner.clone(), space.clone()), 0..4);
            let map = proptest::collection::vec((inner, space.clone()), 0..4);
            prop_oneof![
                list.prop_map(|items| {
                    let items: Vec<_> =
                        items.into_iter().map(|(item, space)| format!("{space}{item}")).collect();
                    format!("[{}]", items.join(","))
                }),
                map.prop_map(|items| {
                    let entries = items.into_iter().enumerate();
                    let entries: Vec<_> =
                        entries.map(|(at, (item, space))| format!("{space}k{at}: {item}")).collect();
                    format!("{{{}}}", entries.join(","))
                }),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// If this fails, formatting twice gives two results, or loses a value or a comment.
        #[test]
        fn the_layout_is_stable_and_keeps_everything(values in proptest::collection::vec(flow(), 1..4), gap in "(\n|# c\n|  \n){0,3}") {
            let entries = values.iter().enumerate().map(|(at, value)| format!("{gap}key{at}: {value} # after {at}\n"));
            let text: String = entries.collect();
            prop_assume!(yaml::parse(text.as_bytes()).is_ok());
            match format(text.as_bytes()) {
                Ok(once) => prop_assert_eq!(format(once.as_bytes()).unwrap(), once, "{}", text),
                Err(problem) => prop_assert!(false, "{} {}", problem, text),
            }
        }
    }
}
