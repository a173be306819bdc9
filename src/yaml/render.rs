//! Problems as text for a person and as JSON for a program.

use std::fmt::Write;

use super::{Mark, Problem};

/// Longest source excerpt, in characters; longer lines are cut around the place.
const EXCERPT: usize = 120;

/// Every problem as `file:line:column: error: message`, the source line with the place underlined, and the hint.
pub fn render(file: &str, source: &str, problems: &[Problem]) -> String {
    problems.iter().map(|problem| render_as("error", file, source, problem)).collect()
}

/// As [`render`], for one problem and another word than "error".
pub fn render_as(severity: &str, file: &str, source: &str, problem: &Problem) -> String {
    let Mark { line, column } = problem.at;
    let mut text = format!("{file}:{line}:{column}: {severity}: {}\n", problem.message);
    if let Some(excerpt) = excerpt(source, problem.at) {
        text.push_str(&excerpt);
    }
    if let Some(hint) = &problem.hint {
        let _ = writeln!(text, "  hint: {hint}"); // writing to a String cannot fail
    }
    text
}

/// Every problem as one JSON array of `{file, line, column, message, hint}`, on one line.
pub fn render_json(file: &str, problems: &[Problem]) -> String {
    let rows = problems.iter().map(|problem| {
        serde_json::json!({
            "file": file,
            "line": problem.at.line,
            "column": problem.at.column,
            "message": problem.message,
            "hint": problem.hint,
        })
    });
    serde_json::Value::Array(rows.collect()).to_string()
}

/// The line that `at` names and a second line that underlines the word that begins there.
fn excerpt(source: &str, at: Mark) -> Option<String> {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    let line = source.lines().nth(usize::try_from(at.line).ok()?.checked_sub(1)?)?;
    let column = usize::try_from(at.column).ok()?.checked_sub(1)?;
    let skip = column.saturating_sub(EXCERPT / 2);
    // What does not show (tabs, control characters) becomes a space, so that the underline stands where it should.
    let shown: Vec<char> =
        line.chars().skip(skip).take(EXCERPT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let from = column - skip;
    let width = word_width(shown.get(from..).unwrap_or_default());
    let number = at.line.to_string();
    let gutter = " ".repeat(number.len());
    let under = format!("{}{}", " ".repeat(from), "^".repeat(width));
    let shown: String = shown.into_iter().collect();
    Some(format!("  {number} | {}\n  {gutter} | {under}\n", shown.trim_end()))
}

/// How many characters the word that begins at `at` has, at least one; none when the file has no such line.
pub fn word_at(source: &str, at: Mark) -> Option<u32> {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    let line = source.lines().nth(usize::try_from(at.line).ok()?.checked_sub(1)?)?;
    let rest: Vec<char> = line.chars().skip(usize::try_from(at.column).ok()?.checked_sub(1)?).collect();
    u32::try_from(word_width(&rest)).ok()
}

/// How many characters the word at the start of `rest` has, at least one.
fn word_width(rest: &[char]) -> usize {
    let end = match rest.first() {
        Some(quote @ ('"' | '\'')) => rest.iter().skip(1).position(|c| c == quote).map(|at| at + 2),
        _ => rest.iter().enumerate().position(|(i, c)| match c {
            ':' => rest.get(i + 1).is_none_or(|next| next.is_whitespace()),
            c => c.is_whitespace() || matches!(c, ',' | ']' | '}'),
        }),
    };
    end.unwrap_or(rest.len()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a person has to count columns to find what is wrong.
    #[test]
    fn the_place_is_shown_and_underlined() {
        let source = "a: 1\nb: [x, \"y z\", w]\n";
        let problem = Problem::new(Mark { line: 2, column: 8 }, "wrong").hint("right it");
        let want =
            "f.yaml:2:8: error: wrong\n  2 | b: [x, \"y z\", w]\n    |        ^^^^^\n  hint: right it\n";
        assert_eq!(render("f.yaml", source, &[problem]), want);
        let problem = Problem::new(Mark { line: 1, column: 1 }, "key");
        assert_eq!(render("f", source, &[problem]), "f:1:1: error: key\n  1 | a: 1\n    | ^\n");
    }

    /// If this fails, a place past the end of the file or a very long line breaks the report.
    #[test]
    fn places_at_the_edges_are_harmless() {
        let long = format!("a: {}", "x".repeat(10_000));
        for (source, line, column) in [("", 1, 1), ("a\n", 7, 1), ("a", 1, 9), (&long, 1, 9_000), ("a", 0, 0)]
        {
            let text = render("f", source, &[Problem::new(Mark { line, column }, "m")]);
            assert!(text.len() < 400, "{text}");
        }
    }
}
