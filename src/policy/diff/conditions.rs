//! A query and headers that some rules want and others do not match, if there are such.
//!
//! Every parameter and every header that a rule names is a facet of a request, with one value for each class that no rule
//! tells apart: absent, each value that is named, numbers on both sides of each limit, something else, there twice, spelt
//! in another way. Which classes a rule accepts is asked of the rule itself. A rule holds when each facet is in a class
//! that it accepts (and one of `require_any` is there), so it is avoided by one facet that is not: the search is over
//! which.

use std::collections::BTreeSet;

use super::super::headers::{HeaderRule, Headers, has_form_body};
use super::super::params::{Param, QueryMiss, QueryRule};
use super::view::Area;
use super::walk::TooMany;

/// How many choices are tried.
const MAX_CHOICES: usize = 100_000;

/// What a request has besides method, host and path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) query: Option<String>,
    pub(super) headers: Vec<(String, String)>,
}

impl Headers for Wants {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        self.headers.iter().for_each(|(name, value)| visit(name, value.as_bytes()));
    }
}

/// A query and headers that all of `wanted` match and none of `unwanted`.
pub(super) fn solve(wanted: &[&Area<'_>], unwanted: &[&Area<'_>]) -> Result<Option<Wants>, TooMany> {
    if wanted.iter().all(|area| area.is_plain()) && unwanted.is_empty() {
        return Ok(Some(Wants::default()));
    }
    let areas: Vec<_> = wanted.iter().chain(unwanted).copied().collect();
    let facets = facets(&areas);
    let clauses = |area: &&Area<'_>| clauses(area, &facets);
    let mut open: Vec<Clause> = wanted.iter().flat_map(clauses).collect();
    let mut domains: Vec<Vec<bool>> = facets.iter().map(|facet| vec![true; facet.classes.len()]).collect();
    open.retain(|clause| match clause.as_slice() {
        [(facet, accepted)] => {
            keep(&mut domains[*facet], accepted, true);
            false
        }
        _ => true,
    });
    let against: Vec<Vec<Clause>> = unwanted.iter().map(clauses).collect();
    let mut budget = MAX_CHOICES;
    let Some(domains) = choose(domains, &against, &open, &mut budget)? else { return Ok(None) };
    let mut wants = Wants::default();
    let mut pairs = Vec::new();
    for (facet, domain) in facets.iter().zip(domains) {
        let class = domain.iter().position(|possible| *possible).map(|at| &facet.classes[at]);
        if let Some(class) = class {
            pairs.extend(class.pairs.iter().cloned());
            wants.headers.extend(class.lines.iter().cloned());
        }
    }
    wants.query = (!pairs.is_empty()).then(|| pairs.join("&"));
    Ok(Some(wants))
}

/// One thing that a request can have, in each way that makes a difference.
struct Facet {
    kind: Kind,
    classes: Vec<Class>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Param(String),
    Header(String),
    /// A parameter that no rule names, or a `;`.
    OtherQuery,
}

#[derive(Clone, Default)]
struct Class {
    /// Parts of the query.
    pairs: Vec<String>,
    /// Header lines.
    lines: Vec<(String, String)>,
}

/// Accepted classes of some facets: one of these must be so.
type Clause = Vec<(usize, Vec<bool>)>;

fn facets(areas: &[&Area<'_>]) -> Vec<Facet> {
    let queries: Vec<_> = areas.iter().filter_map(|area| area.query).collect();
    let params: Vec<_> = queries.iter().flat_map(|query| query.params()).collect();
    let headers: Vec<_> = areas.iter().flat_map(|area| area.headers).collect();
    let mut kinds: BTreeSet<_> = params.iter().map(|param| Kind::Param(param.name.clone())).collect();
    kinds.extend(headers.iter().map(|header| Kind::Header(header.name.clone())));
    if !queries.is_empty() {
        kinds.extend([Kind::OtherQuery, Kind::Header("content-type".to_owned())]);
    }
    let facet = |kind: Kind| {
        let classes = match &kind {
            Kind::Param(name) => param_classes(name, &params),
            Kind::Header(name) => header_classes(name, &headers, !queries.is_empty()),
            Kind::OtherQuery => other_classes(&params),
        };
        Facet { kind, classes }
    };
    kinds.into_iter().map(facet).collect()
}

fn param_classes(name: &str, params: &[&Param]) -> Vec<Class> {
    let own = || params.iter().filter(|param| param.name == name);
    let values: BTreeSet<_> = own().flat_map(|param| param.values.iter().flatten().cloned()).collect();
    let unnamed = |number: &u64| !values.contains(&number.to_string());
    // A number of each range that the limits cut out, and that is not among the values.
    let mut numbers = BTreeSet::new();
    let limits: BTreeSet<_> = own().filter_map(|param| param.max).collect();
    for limit in &limits {
        numbers.extend((0..=*limit).rev().take(values.len() + 1).find(unnamed));
        numbers.extend((limit + 1..).take(values.len() + 1).find(unnamed));
    }
    let text = spare("x", |text| values.contains(text));
    let pair = |value: &str| format!("{name}={}", escaped(value));
    let one = |value: &str| Class { pairs: vec![pair(value)], ..Class::default() };
    let mut classes = vec![Class::default()];
    classes.extend(values.iter().map(|value| one(value)));
    classes.extend(numbers.iter().map(|number| one(&number.to_string())));
    classes.extend([one(&text), one("")]);
    classes.push(Class { pairs: vec![pair(&text), pair(&text)], ..Class::default() });
    // What PHP makes an entry of an array called `name`.
    classes.push(Class { pairs: vec![format!("{name}%5B%5D={text}")], ..Class::default() });
    classes
}

fn header_classes(name: &str, headers: &[&HeaderRule], has_query: bool) -> Vec<Class> {
    let own = headers.iter().filter(|header| header.name == name);
    let values: BTreeSet<_> = own.flat_map(|header| header.values.iter().cloned()).collect();
    let other = spare("x", |text| values.iter().any(|value| value.eq_ignore_ascii_case(text)));
    let lines = |values: &[&str]| Class {
        lines: values.iter().map(|value| (name.to_owned(), (*value).to_owned())).collect(),
        ..Class::default()
    };
    let mut classes = vec![Class::default(), lines(&[&other])];
    for value in &values {
        // As a deny rule reads it and a permission does not.
        let upper = spare_spelling(value, &values);
        classes.extend([lines(&[value]), lines(&[&upper]), lines(&[value, &other])]);
    }
    if has_query && name == "content-type" {
        classes.push(lines(&["application/x-www-form-urlencoded"]));
    }
    classes
}

/// `value` in a spelling that is none of `values`.
fn spare_spelling(value: &str, values: &BTreeSet<String>) -> String {
    let spellings = [value.to_ascii_uppercase(), value.to_ascii_lowercase(), format!("{value};x")];
    let quoted = format!("\"{value}\"");
    spellings.into_iter().find(|spelling| !values.contains(spelling)).unwrap_or(quoted)
}

fn other_classes(params: &[&Param]) -> Vec<Class> {
    let looks_taken = |text: &str| {
        params.iter().any(|param| param.name.to_ascii_lowercase().starts_with(&text.to_ascii_lowercase()))
    };
    let name = spare("z", looks_taken);
    let pair = |text: String| Class { pairs: vec![text], ..Class::default() };
    vec![Class::default(), pair(format!("{name}=x")), pair(format!("{name}=x;"))]
}

/// `text`, or `text` with a number, for which `is_taken` does not hold.
fn spare(text: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let numbered = (1_u64..).map(|number| format!("{text}{number}"));
    let mut all = std::iter::once(text.to_owned()).chain(numbered);
    all.find(|text| !is_taken(text)).unwrap_or_default() // there is always one more number
}

fn escaped(value: &str) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}"); // writing to a String cannot fail
        }
    }
    out
}

/// What must be so for the headers and the query of `area` to match.
fn clauses(area: &Area<'_>, facets: &[Facet]) -> Vec<Clause> {
    let mut clauses = Vec::new();
    for (at, facet) in facets.iter().enumerate() {
        let accepted: Vec<_> = facet.classes.iter().map(|class| accepts(area, &facet.kind, class)).collect();
        if accepted.contains(&false) {
            clauses.push(vec![(at, accepted)]);
        }
    }
    let any =
        |name: &str| area.query.is_some_and(|query| query.params().iter().any(|p| p.any && p.name == name));
    let mut one_of = Clause::new();
    for (at, facet) in facets.iter().enumerate() {
        if matches!(&facet.kind, Kind::Param(name) if any(name)) {
            let has_value = |class: &Class| matches!(class.pairs.as_slice(), [pair] if !pair.ends_with('='));
            one_of.push((at, facet.classes.iter().map(has_value).collect()));
        }
    }
    if !one_of.is_empty() {
        clauses.push(one_of);
    }
    clauses
}

/// True when `area` can match a request whose facet `kind` is of `class`.
fn accepts(area: &Area<'_>, kind: &Kind, class: &Class) -> bool {
    let request = Wants { query: None, headers: class.lines.clone() };
    if let Kind::Header(name) = kind {
        let own = area.headers.iter().filter(|header| header.name == *name);
        let holds = |rule: &HeaderRule| match area.track.is_wide() {
            true => rule.denies(&request),
            false => rule.allows(&request).is_ok(),
        };
        return own.into_iter().all(holds) && (area.query.is_none() || !has_form_body(&request));
    }
    area.query.is_none_or(|query| accepts_query(query, kind, class))
}

fn accepts_query(query: &QueryRule, kind: &Kind, class: &Class) -> bool {
    if class.pairs.is_empty() {
        let is_required = |param: &Param| matches!(kind, Kind::Param(name) if *name == param.name && param.values.is_some());
        return !query.params().iter().any(is_required);
    }
    match query.check(Some(&class.pairs.join("&"))) {
        // Other facets may be what is missing.
        Ok(()) | Err(QueryMiss::Missing(_) | QueryMiss::NoneOf(_)) => true,
        Err(_) => false,
    }
}

/// Keeps the classes of `domain` for which `accepted` is `wanted`.
fn keep(domain: &mut [bool], accepted: &[bool], wanted: bool) {
    domain.iter_mut().zip(accepted).for_each(|(possible, accepted)| *possible &= *accepted == wanted);
}

/// Domains in which every choice of classes violates a clause of each of `against` and satisfies each of `open`.
fn choose(
    domains: Vec<Vec<bool>>,
    against: &[Vec<Clause>],
    open: &[Clause],
    budget: &mut usize,
) -> Result<Option<Vec<Vec<bool>>>, TooMany> {
    *budget = budget.checked_sub(1).ok_or(TooMany)?;
    if domains.iter().any(|domain| !domain.contains(&true)) {
        return Ok(None);
    }
    if let Some((rule, against)) = against.split_first() {
        let is_violated = |clause: &Clause| {
            clause
                .iter()
                .all(|(facet, accepted)| !domains[*facet].iter().zip(accepted).any(|(a, b)| *a && *b))
        };
        if rule.iter().any(is_violated) {
            return choose(domains, against, open, budget);
        }
        for clause in rule {
            let mut domains = domains.clone();
            clause.iter().for_each(|(facet, accepted)| keep(&mut domains[*facet], accepted, false));
            if let Some(found) = choose(domains, against, open, budget)? {
                return Ok(Some(found));
            }
        }
        return Ok(None);
    }
    let Some((clause, open)) = open.split_first() else { return Ok(Some(domains)) };
    for (facet, accepted) in clause {
        let mut domains = domains.clone();
        keep(&mut domains[*facet], accepted, true);
        if let Some(found) = choose(domains, against, open, budget)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
