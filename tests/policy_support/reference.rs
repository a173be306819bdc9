//! What a policy means, written down as plainly as it goes: every rule is tried on every request, nothing is compiled, and
//! nothing is taken from the engine.

use super::{Answer, Asked, Deny, Header, Model, Permission, Query};

/// A request with one meaning.
struct Seen<'a> {
    asked: &'a Asked,
    host: String,
    path: String,
    query: Option<String>,
}

pub fn decide(model: &Model, asked: &Asked) -> Answer {
    let answer = if asked.method == "TCP" && !asked.target.starts_with('/') {
        decide_tcp(model, asked)
    } else {
        match seen(model, asked) {
            // A tunnel, and a path that is none, are refused in any mode.
            None if asked.method == "CONNECT" || !is_path(asked) => return answer("rejected"),
            None => answer("rejected"),
            Some(seen) => decide_http(model, &seen),
        }
    };
    if !model.shadow || answer.is_allowed() {
        return answer;
    }
    let shadow = Some((answer.reason.clone(), answer.rule.clone()));
    Answer { reason: "shadow_mode".into(), rule: None, role: None, shadow, ..answer }
}

/// Whether the target begins as a path does, or is the one that does not.
fn is_path(asked: &Asked) -> bool {
    asked.target.starts_with('/') || asked.method == "OPTIONS" && asked.target == "*"
}

fn answer(reason: &str) -> Answer {
    Answer { reason: reason.into(), rule: None, role: None, template: None, shadow: None }
}

fn decide_http(model: &Model, seen: &Seen<'_>) -> Answer {
    if seen.asked.method == "GET" && model.health.contains(&seen.path) {
        return Answer { template: Some(seen.path.clone()), ..answer("health") };
    }
    if model.hosts.as_ref().is_some_and(|hosts| !hosts.contains(&seen.host)) {
        return answer("unknown_host");
    }
    let with = |shadow: bool| {
        let denies = model.denies.iter().filter(|deny| shadow || !deny.shadow);
        for deny in denies {
            if let Some(template) = denies_http(model, deny, seen) {
                return Answer { rule: Some(deny.name.clone()), template, ..answer("deny_rule") };
            }
        }
        for (role, permission) in permissions(model, seen.asked).filter(|(_, p)| shadow || !p.shadow) {
            if let Some(path) = grants_http(permission, seen) {
                let (rule, template) = (Some(permission.name.clone()), Some(path));
                return Answer { rule, role: Some(format!("r{role}")), template, ..answer("rule") };
            }
        }
        let mut all = model.roles.iter().flatten().flat_map(|permission| &permission.paths);
        let template = all.find(|pattern| matches_exactly(pattern, &seen.path)).cloned();
        Answer { template, ..answer("no_allow_rule") }
    };
    beside(with(false), with(true))
}

fn decide_tcp(model: &Model, asked: &Asked) -> Answer {
    let with = |shadow: bool| {
        for deny in model.denies.iter().filter(|deny| shadow || !deny.shadow) {
            let about_http = deny.paths.is_some()
                || deny.methods.is_some()
                || deny.hosts.is_some()
                || !deny.headers.is_empty();
            if !about_http && concerns(deny, asked) {
                return Answer { rule: Some(deny.name.clone()), ..answer("deny_rule") };
            }
        }
        for (role, permission) in permissions(model, asked).filter(|(_, p)| shadow || !p.shadow) {
            if permission.tcp.as_ref().is_some_and(|tcp| tcp.contains(&asked.target)) {
                return Answer {
                    rule: Some(permission.name.clone()),
                    role: Some(format!("r{role}")),
                    ..answer("rule")
                };
            }
        }
        answer("no_allow_rule")
    };
    beside(with(false), with(true))
}

/// `enforced`, with what would have been decided beside it where that is something else.
fn beside(enforced: Answer, would: Answer) -> Answer {
    let would = (would.reason, would.rule);
    let differs = would != (enforced.reason.clone(), enforced.rule.clone());
    Answer { shadow: differs.then_some(would), ..enforced }
}

/// The permissions of every role that the identity has, in the order of the file.
fn permissions<'m>(model: &'m Model, asked: &Asked) -> impl Iterator<Item = (usize, &'m Permission)> {
    let has = |role: usize| {
        model.bindings.iter().any(|binding| {
            binding.role == role
                && binding.ids.iter().any(|pattern| id_matches(pattern, &asked.id))
                && binding.from.is_none_or(|from| from.1 <= asked.now)
                && binding.until.is_none_or(|until| asked.now < until.1)
        })
    };
    let roles: Vec<_> = model.roles.iter().enumerate().filter(|(role, _)| has(*role)).collect();
    roles
        .into_iter()
        .flat_map(|(role, permissions)| permissions.iter().map(move |permission| (role, permission)))
}

fn id_matches(pattern: &str, id: &str) -> bool {
    let (pattern, id): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), id.split('/').collect());
    match pattern.split_last() {
        Some((&"**", before)) => id.len() > before.len() && same_segments(before, &id[..before.len()]),
        _ => same_segments(&pattern, &id),
    }
}

fn same_segments(pattern: &[&str], found: &[&str]) -> bool {
    pattern.len() == found.len()
        && pattern.iter().zip(found).all(|(want, found)| *want == "*" || want == found)
}

fn concerns(deny: &Deny, asked: &Asked) -> bool {
    deny.ids.as_ref().is_none_or(|ids| ids.iter().any(|pattern| id_matches(pattern, &asked.id)))
        && deny.until.is_none_or(|until| asked.now < until.1)
}

/// The path that matched, if it has any, when `deny` denies the request.
fn denies_http(model: &Model, deny: &Deny, seen: &Seen<'_>) -> Option<Option<String>> {
    let holds = concerns(deny, seen.asked)
        && deny.methods.as_ref().is_none_or(|methods| methods.contains(&seen.asked.method))
        && deny.hosts.as_ref().is_none_or(|hosts| hosts.contains(&seen.host))
        && deny.headers.iter().all(|rule| header_denied(rule, &seen.asked.headers));
    match &deny.paths {
        _ if !holds => None,
        None => Some(None),
        Some(paths) => paths
            .iter()
            .find(|pattern| matches_widely(model, pattern, &seen.path))
            .map(|path| Some(path.clone())),
    }
}

/// The path that matched, when `permission` grants the request.
fn grants_http(permission: &Permission, seen: &Seen<'_>) -> Option<String> {
    let holds = permission.methods.contains(&seen.asked.method)
        && permission.hosts.as_ref().is_none_or(|hosts| hosts.contains(&seen.host))
        && permission.headers.iter().all(|rule| header_allowed(rule, &seen.asked.headers))
        && permission.query.as_ref().is_none_or(|rule| {
            query_allowed(rule, seen.query.as_deref().unwrap_or("")) && !has_form(&seen.asked.headers)
        });
    permission.paths.iter().find(|pattern| holds && matches_exactly(pattern, &seen.path)).cloned()
}

fn matches_exactly(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), path.split('/').collect());
    let one = |want: &str, found: &str| if variable(want) { !found.is_empty() } else { want == found };
    matches(&pattern, &path, one)
}

fn variable(segment: &str) -> bool {
    segment == "*" || segment.starts_with('{')
}

fn matches<T: AsRef<str>>(pattern: &[&str], path: &[T], one: impl Fn(&str, &str) -> bool) -> bool {
    let (want, rest) = match pattern.split_last() {
        Some((&"**", before)) => (before, true),
        _ => (pattern, false),
    };
    let enough = if rest { path.len() >= want.len() } else { path.len() == want.len() };
    enough && want.iter().zip(path).all(|(want, found)| one(want, found.as_ref()))
}

/// Whether any server could take `path` for one that `pattern` means.
fn matches_widely(model: &Model, pattern: &str, path: &str) -> bool {
    let mut readings = vec![path.to_owned()];
    if model.slashes {
        readings.extend(readings.clone().iter().map(|path| path.replace("%2F", "/")));
    }
    if model.matrix {
        let cut = |segment: &str| segment.split(';').next().unwrap().split("%3B").next().unwrap().to_owned();
        let cut = |path: &String| path.split('/').map(cut).collect::<Vec<_>>().join("/");
        readings.extend(readings.clone().iter().map(cut));
    }
    let trimmed = |path: &str| path.strip_suffix('/').unwrap_or(path).to_owned();
    let pattern = trimmed(pattern);
    let pattern: Vec<_> = pattern.split('/').collect();
    let one = |want: &str, found: &str| {
        if variable(want) { !found.is_empty() } else { folded(want) == folded(found) }
    };
    readings.iter().any(|path| matches(&pattern, &trimmed(path).split('/').collect::<Vec<_>>(), one))
}

fn folded(segment: &str) -> String {
    let text: String = unescaped(segment).iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
    text.trim_end_matches(['.', ' ']).to_owned()
}

/// Every `%xy` decoded once.
fn unescaped(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let pair = bytes.get(at + 1..at + 3).filter(|pair| pair.iter().all(u8::is_ascii_hexdigit));
        match pair {
            Some(pair) if bytes[at] == b'%' => {
                out.push(u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

fn alias(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

fn header_allowed((name, values): &Header, headers: &[(String, String)]) -> bool {
    let lines: Vec<_> = headers.iter().filter(|(found, _)| alias(found) == *name).collect();
    let dropped = headers
        .iter()
        .filter(|(found, _)| found.eq_ignore_ascii_case("connection"))
        .any(|(_, value)| value.split(',').any(|token| token.trim().to_ascii_lowercase() == *name));
    lines.len() == 1
        && lines[0].0.to_ascii_lowercase() == *name
        && values.contains(&lines[0].1.trim().to_owned())
        && !dropped
}

fn header_denied((name, values): &Header, headers: &[(String, String)]) -> bool {
    let found = header_values(headers, name);
    values.iter().any(|value| found.contains(&value.to_ascii_lowercase()))
}

/// In lower case, every way to read every value of a header.
fn header_values(headers: &[(String, String)], name: &str) -> Vec<String> {
    let bare = |text: &str| {
        let text = text.trim();
        let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        inner.trim().to_owned()
    };
    let mut all = Vec::new();
    for (_, value) in headers.iter().filter(|(found, _)| alias(found) == name) {
        let value = value.to_ascii_lowercase();
        all.push(value.trim().to_owned());
        for element in value.split(',') {
            all.push(bare(element));
            all.push(bare(element.trim().split(';').next().unwrap()));
        }
    }
    all
}

fn has_form(headers: &[(String, String)]) -> bool {
    let found = header_values(headers, "content-type");
    found.iter().any(|value| value == "application/x-www-form-urlencoded" || value == "multipart/form-data")
}

fn query_allowed(rule: &Query, query: &str) -> bool {
    if query.contains(';') {
        return false;
    }
    let pairs: Vec<(&str, &str)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    let mut known: Vec<&String> = rule.allow.iter().flatten().chain(&rule.any).collect();
    known.extend(rule.require.iter().map(|(name, _)| name));
    known.extend(rule.max.iter().map(|(name, _)| name));
    let values_of = |name: &str| -> Vec<&str> {
        pairs
            .iter()
            .filter(|(found, _)| unescaped(found) == name.as_bytes())
            .map(|(_, value)| *value)
            .collect()
    };
    let strangers =
        pairs.iter().filter(|(found, _)| !known.iter().any(|name| unescaped(found) == name.as_bytes()));
    let stranger_refused = |found: &str| rule.allow.is_some() || known.iter().any(|name| alike(found, name));
    known.iter().all(|name| values_of(name).len() <= 1)
        && !strangers.into_iter().any(|(found, _)| stranger_refused(found))
        && rule.require.iter().all(|(name, wanted)| {
            let values = values_of(name);
            values.len() == 1
                && !values[0].contains('+')
                && wanted.iter().any(|want| unescaped(values[0]) == want.as_bytes())
        })
        && rule
            .max
            .iter()
            .all(|(name, max)| values_of(name).iter().all(|value| within(&unescaped(value), *max)))
        && (rule.any.is_empty()
            || rule.any.iter().flat_map(|name| values_of(name)).any(|value| !blank(value)))
}

fn within(digits: &[u8], max: u64) -> bool {
    let text = std::str::from_utf8(digits).unwrap_or("");
    let number: Result<u64, _> = text.parse();
    text.len() <= 18 && number.is_ok_and(|number| number.to_string() == text && number <= max)
}

fn blank(value: &str) -> bool {
    unescaped(value).iter().all(|byte| *byte == b'+' || char::from(*byte).is_whitespace() || *byte == 0x0b)
}

/// Whether some server could take the parameter `found` for `name`.
fn alike(found: &str, name: &str) -> bool {
    let twice = |text: &str| {
        let once: String = unescaped(text).iter().map(|byte| char::from(*byte)).collect();
        let twice: String = unescaped(&once).iter().map(|byte| char::from(*byte)).collect();
        let text =
            twice.trim_start_matches([' ', '+', '\t', '\n', '\r', '\u{b}', '\u{c}']).to_ascii_lowercase();
        let mut out = String::new();
        for c in text.chars() {
            match c {
                '\0' => break,
                '[' | ':' if !out.is_empty() => break,
                ' ' | '+' | '.' | '[' => out.push('_'),
                c => out.push(c),
            }
        }
        out
    };
    twice(found).strip_prefix(&twice(name)).is_some_and(|rest| rest.chars().all(|c| c == '_'))
}

/// The one meaning of a request, or none when it has none or several.
fn seen<'a>(model: &Model, asked: &'a Asked) -> Option<Seen<'a>> {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];
    let (path, query) = match asked.target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (asked.target.as_str(), None),
    };
    if !known.contains(&asked.method.as_str()) || asked.target.contains('#') {
        return None;
    }
    if let Some(query) = query {
        let legal = query.bytes().all(|b| (0x21..=0x7e).contains(&b));
        let escapes = query.matches('%').count()
            == query.match_indices('%').filter(|(at, _)| escape_at(query, *at)).count();
        let names = query.split(['&', ';']).map(|pair| pair.split('=').next().unwrap());
        let overrides = names.into_iter().any(|name| unescaped(name).eq_ignore_ascii_case(b"_method"));
        if !legal || !escapes || query.contains("%00") || overrides {
            return None;
        }
    }
    let host = asked.host.to_ascii_lowercase();
    let host = host.split(':').next()?.trim_end_matches('.').to_owned();
    Some(Seen { asked, host, path: canonical(model, path)?, query: query.map(str::to_owned) })
}

fn escape_at(text: &str, at: usize) -> bool {
    text.as_bytes().get(at + 1..at + 3).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit))
}

/// The path with unreserved characters decoded and other escapes in upper case, or none when it is refused.
pub fn canonical(model: &Model, path: &str) -> Option<String> {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    if !path.starts_with('/') || !path.is_ascii() {
        return None;
    }
    let mut out = String::new();
    let mut at = 0;
    while let Some(&byte) = path.as_bytes().get(at) {
        if byte == b'%' {
            if !escape_at(path, at) {
                return None;
            }
            let value = u8::from_str_radix(&path[at + 1..at + 3], 16).ok()?;
            match value {
                b'/' if !model.slashes => return None,
                b';' if !model.matrix => return None,
                b'\\' | 0..=0x1f | 0x7f => return None,
                value if unreserved(value) => out.push(char::from(value)),
                value => out += &format!("%{value:02X}"),
            }
            at += 3;
            continue;
        }
        let legal = unreserved(byte) || b"/!$&'()*+,=:@".contains(&byte) || byte == b';' && model.matrix;
        if !legal {
            return None;
        }
        out.push(char::from(byte));
        at += 1;
    }
    let decoded = String::from_utf8(unescaped(path)).ok()?;
    if decoded.chars().any(char::is_control)
        || out.match_indices("%25").any(|(at, _)| escape_at(&out[at + 2..], 0))
    {
        return None;
    }
    let mut pieces: Vec<String> = out[1..].split('/').map(str::to_owned).collect();
    if pieces.last().is_some_and(String::is_empty) {
        pieces.pop(); // a trailing slash
    }
    if model.slashes || model.matrix {
        pieces = pieces.iter().flat_map(|piece| piece.split("%2F")).map(str::to_owned).collect();
        let cut = |piece: &String| piece.split(';').next().unwrap().split("%3B").next().unwrap().to_owned();
        pieces.extend(pieces.clone().iter().map(cut));
    }
    let dots = |piece: &String| [".", ".."].contains(&piece.trim_end_matches("%20"));
    (!pieces.iter().any(|piece| piece.is_empty() || dots(piece))).then_some(out)
}
