//! What a rule asks of a request, in words: for reviews and comparisons.

use super::headers::HeaderRule;
use super::params::QueryRule;

/// One line for each condition besides method, path and host.
pub(super) fn conditions(headers: &[HeaderRule], query: Option<&QueryRule>) -> Vec<String> {
    let header = |rule: &HeaderRule| format!("header {} is {}", rule.name, rule.values.join(" or "));
    let mut lines: Vec<_> = headers.iter().map(header).collect();
    let Some(query) = query else { return lines };
    let params = query.params();
    if query.only() {
        let names: Vec<_> = params.iter().map(|param| param.name.as_str()).collect();
        lines.push(match names.is_empty() {
            true => "no query parameter".to_owned(),
            false => format!("query only {}", names.join(", ")),
        });
    }
    let any: Vec<_> = params.iter().filter(|param| param.any).map(|param| param.name.as_str()).collect();
    if !any.is_empty() {
        lines.push(format!("query has {}", any.join(" or ")));
    }
    for param in params {
        if let Some(values) = &param.values {
            lines.push(format!("query {} is {}", param.name, values.join(" or ")));
        }
        if let Some(max) = param.max {
            lines.push(format!("query {} at most {max}", param.name));
        }
    }
    // A name that is listed alone: `max` and the others are told above.
    let bare = params.iter().filter(|param| !param.any && param.values.is_none() && param.max.is_none());
    if !query.only() && bare.count() > 0 {
        lines.push("each query parameter once".to_owned());
    }
    lines
}
