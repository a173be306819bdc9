//! Test results as JUnit's XML, the form that CI systems show.

use std::fmt::Write as _;

use super::test::{Suite, failure_text};

/// One `testsuite` for each file of tests on each policy.
pub(super) fn report(suites: &[Suite<'_>]) -> String {
    let tests = suites.iter().map(|suite| suite.results.len()).sum::<usize>();
    let failures = suites.iter().map(Suite::failed).sum::<usize>();
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
    // Writing to a String cannot fail.
    let _ =
        writeln!(text, "<testsuites name=\"phiward policy test\" tests=\"{tests}\" failures=\"{failures}\">");
    for suite in suites {
        let (policy, file) = (escaped(&suite.policy), escaped(&suite.file));
        let (tests, failures) = (suite.results.len(), suite.failed());
        let _ = writeln!(text, "  <testsuite name=\"{policy}\" tests=\"{tests}\" failures=\"{failures}\">");
        for result in &suite.results {
            let name = escaped(&format!(
                "line {}: {} as {}: {}",
                result.at.line,
                result.request,
                result.subject,
                result.expect.as_str()
            ));
            let line = result.at.line;
            let head =
                format!("<testcase classname=\"{policy}\" name=\"{name}\" file=\"{file}\" line=\"{line}\"");
            let _ = match &result.failure {
                None => writeln!(text, "    {head}/>"),
                Some(failure) => writeln!(
                    text,
                    "    {head}>\n      <failure message=\"{}\">{}</failure>\n    </testcase>",
                    escaped(failure),
                    escaped(&failure_text(result))
                ),
            };
        }
        text += "  </testsuite>\n";
    }
    text + "</testsuites>\n"
}

/// Text that may stand in an attribute and in an element. Characters that XML 1.0 (section 2.2) cannot hold are replaced:
/// a test's request may have them.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\n' | '\t' => out.push(c),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
