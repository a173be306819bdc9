//! Rows of cells as CSV, as Markdown, and aligned for a terminal.

use std::fmt::Write as _;

/// RFC 4180. A cell that a spreadsheet would take for a formula gets an apostrophe before it: reasons are free text.
pub(in crate::cli) fn csv(rows: &[Vec<String>]) -> String {
    let cell = |text: &String| {
        let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
        let quoted = text.contains([',', '"', '\n', '\r']);
        if quoted { format!("\"{guard}{}\"", text.replace('"', "\"\"")) } else { format!("{guard}{text}") }
    };
    rows.iter().map(|row| row.iter().map(cell).collect::<Vec<_>>().join(",") + "\r\n").collect()
}

/// A table whose first row is the head.
pub(in crate::cli) fn markdown(rows: &[Vec<String>]) -> String {
    let cell = |text: &String| {
        text.replace('\\', "\\\\").replace('|', "\\|").replace('*', "\\*").replace('<', "&lt;")
    };
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {} |", row.iter().map(cell).collect::<Vec<_>>().join(" | "));
        if at == 0 {
            let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
        }
    }
    text
}

/// Columns as wide as their widest cell, the last one ragged, indented by two.
pub(in crate::cli) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "  {cell:<width$}"); // writing to a String cannot fail
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}
