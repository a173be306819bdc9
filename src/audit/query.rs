//! `audit query`: which requests and events of a trail meet some conditions.
//!
//! Owns the meaning of a condition and the joining of a decision with its completion. Works on the lines of the trail
//! themselves: a line that does not hold the bytes that are asked for is passed over without being read as JSON, which makes
//! the search for one patient or one request as quick as the disk. Checks no hash: that is `verify`'s.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use serde_json::Value;

use super::index::Index;
use super::json;
use super::layout::Layout;
use super::read;
use crate::identity::{IdPattern, SpiffeId};

const COMPLETE: &[u8] = b"\"type\":\"access.complete\"}";
const REQUEST_ID: &[u8] = b"\"request\":{\"id\":\"";

/// A member of an event whose text can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `type`
    Type,
    /// `id`
    Id,
    /// `decision.outcome`
    Outcome,
    /// `decision.reason`
    Reason,
    /// `decision.rule`
    Rule,
    /// `decision.role`
    Role,
    /// `http.method`
    Method,
    /// `http.template`
    Template,
    /// `http.host`
    Host,
    /// `instance.service`
    Service,
    /// `instance.namespace`
    Namespace,
    /// `request.id`
    RequestId,
    /// `request.trace_id`
    TraceId,
}

impl Field {
    pub(crate) const ALL: [Self; 13] = [
        Self::Type,
        Self::Id,
        Self::Outcome,
        Self::Reason,
        Self::Rule,
        Self::Role,
        Self::Method,
        Self::Template,
        Self::Host,
        Self::Service,
        Self::Namespace,
        Self::RequestId,
        Self::TraceId,
    ];

    pub(crate) fn pointer(self) -> &'static str {
        match self {
            Self::Type => "/type",
            Self::Id => "/id",
            Self::Outcome => "/decision/outcome",
            Self::Reason => "/decision/reason",
            Self::Rule => "/decision/rule",
            Self::Role => "/decision/role",
            Self::Method => "/http/method",
            Self::Template => "/http/template",
            Self::Host => "/http/host",
            Self::Service => "/instance/service",
            Self::Namespace => "/instance/namespace",
            Self::RequestId => "/request/id",
            Self::TraceId => "/request/trace_id",
        }
    }
}

/// What is looked for. Every condition must hold.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Members that must have exactly this text.
    pub texts: Vec<(Field, String)>,
    /// `subject.spiffe_id` must match.
    pub identity: Option<IdPattern>,
    /// Path parameters, by name, that must have this pseudonym.
    pub params: Vec<(String, String)>,
    /// The first and the last status that the answer may have: a request without an answer does not match.
    pub status: Option<(u16, u16)>,
    /// Events from this time on: RFC 3339 in UTC with nine digits, as events have it.
    pub from: Option<String>,
    /// Events before this time.
    pub until: Option<String>,
    /// Only so many, the newest.
    pub limit: Option<usize>,
}

/// What was found, by time.
#[derive(Debug, Default)]
pub struct Answer {
    /// Oldest first.
    pub rows: Vec<Row>,
    /// How many older ones were found and left out, because of the limit.
    pub left_out: u64,
    /// How many segments the trail has, and how many of them were read: an index tells which cannot hold an answer.
    pub segments: u64,
    /// See `segments`.
    pub segments_read: u64,
    /// Why the index that is there was not used.
    pub index_problem: Option<String>,
}

/// An event, and for the decision about a request how the request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The event's line.
    pub event: Vec<u8>,
    /// The line of the completion.
    pub completion: Option<Vec<u8>>,
}

/// Looks through a spool or a store.
///
/// # Errors
/// A file cannot be read, or there is no trail.
pub fn query(dir: &Path, query: &Query) -> io::Result<Answer> {
    let layout = Layout::read(dir)?;
    if layout.epochs.is_empty() {
        return Err(read::nothing_here());
    }
    let mut answer = Answer::default();
    let index = Index::consult(dir, query).unwrap_or_else(|error| {
        answer.index_problem = Some(error.to_string());
        None
    });
    let mut search = Search::new(query);
    for epoch in &layout.epochs {
        for segment in &epoch.segments {
            answer.segments += 1;
            let may_hold = index.as_ref().is_none_or(|index| index.may_hold(&segment.path));
            if may_hold || search.awaits_completions() {
                answer.segments_read += 1;
                read::lines_of(&segment.path, |line| {
                    search.look_at(line);
                    Ok(())
                })?;
            }
        }
        search.epoch_ends();
    }
    answer.rows = search.found.into_values().map(|found| found.row).collect();
    answer.left_out = search.left_out;
    Ok(answer)
}

/// By time, then by id, so that epochs that were written side by side come in one order.
type Place = (String, String);

struct Found {
    row: Row,
    request: Option<String>,
}

struct Search<'q> {
    query: &'q Query,
    /// What the line of an event must contain.
    needles: Vec<Vec<u8>>,
    /// Whether completions are looked for by themselves.
    wants_completions: bool,
    found: BTreeMap<Place, Found>,
    /// Requests whose completion is awaited.
    open: HashMap<String, Place>,
    /// Those that match only if their completion does.
    undecided: HashMap<String, (Place, Vec<u8>)>,
    left_out: u64,
}

impl<'q> Search<'q> {
    fn new(query: &'q Query) -> Self {
        let texts = query.texts.iter().map(|(_, text)| text);
        let literal = query.identity.as_ref().filter(|pattern| pattern.is_literal());
        let literal = literal.map(|pattern| pattern.as_str().to_owned());
        let needles = texts.chain(&literal).chain(query.params.iter().map(|(_, pseudonym)| pseudonym));
        let wants_completions =
            query.texts.iter().any(|(field, text)| *field == Field::Type && text == "access.complete");
        Self {
            query,
            needles: needles.map(|text| quoted(text)).collect(),
            wants_completions,
            found: BTreeMap::new(),
            open: HashMap::new(),
            undecided: HashMap::new(),
            left_out: 0,
        }
    }

    /// Whether what was found may end in a segment in which nothing else is.
    fn awaits_completions(&self) -> bool {
        !(self.open.is_empty() && self.undecided.is_empty())
    }

    /// A request ends in the epoch in which it was decided, or not at all.
    fn epoch_ends(&mut self) {
        self.open.clear();
        self.undecided.clear();
    }

    fn look_at(&mut self, line: &[u8]) {
        let completes = line.ends_with(COMPLETE);
        if completes && !self.wants_completions {
            return self.complete(line);
        }
        if !self.needles.iter().all(|needle| memchr::memmem::find(line, needle).is_some()) {
            return;
        }
        let Ok(event) = serde_json::from_slice::<Value>(line) else { return }; // `verify` tells of it
        if !self.matches(&event) {
            return;
        }
        let text = |pointer| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let place = (text("/time"), text("/id"));
        // What was not allowed has no completion.
        let goes_on = text("/type") == "access.decision" && text("/decision/outcome") == "allow";
        let request = goes_on.then(|| text("/request/id"));
        match (self.query.status, &request) {
            (Some(range), _) if completes && !status_is_in(&event, range) => {}
            (Some(_), Some(request)) => {
                self.undecided.insert(request.clone(), (place, line.to_vec()));
            }
            (Some(_), None) if !completes => {} // it has no status
            _ => {
                if let Some(request) = &request {
                    self.open.insert(request.clone(), place.clone());
                }
                self.add(place, Found { row: Row { event: line.to_vec(), completion: None }, request });
            }
        }
    }

    /// Joins a completion with its decision. It names the same request, and comes later in the same epoch.
    fn complete(&mut self, line: &[u8]) {
        let Some(at) = memchr::memmem::find(line, REQUEST_ID).map(|at| at + REQUEST_ID.len()) else { return };
        let Some(len) = memchr::memchr(b'"', &line[at..]) else { return };
        let Ok(request) = std::str::from_utf8(&line[at..at + len]) else { return };
        if let Some(found) = self.open.remove(request).and_then(|place| self.found.get_mut(&place)) {
            found.row.completion = Some(line.to_vec());
        } else if let Some((place, event)) = self.undecided.remove(request)
            && let Some(range) = self.query.status
            && serde_json::from_slice(line).is_ok_and(|completion| status_is_in(&completion, range))
        {
            let row = Row { event, completion: Some(line.to_vec()) };
            self.add(place, Found { row, request: None });
        }
    }

    fn add(&mut self, place: Place, found: Found) {
        self.found.insert(place, found);
        if self.query.limit.is_some_and(|limit| self.found.len() > limit)
            && let Some((_, oldest)) = self.found.pop_first()
        {
            self.left_out += 1;
            if let Some(request) = oldest.request {
                self.open.remove(&request);
            }
        }
    }

    fn matches(&self, event: &Value) -> bool {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
        let query = self.query;
        let identity = || text("/subject/spiffe_id").and_then(|id| SpiffeId::parse(id).ok());
        let param = |name: &str| event.pointer("/http/params")?.get(name)?.as_str();
        let time = text("/time").unwrap_or_default();
        query.texts.iter().all(|(field, wanted)| text(field.pointer()) == Some(wanted))
            && query.identity.as_ref().is_none_or(|pattern| identity().is_some_and(|id| pattern.matches(&id)))
            && query.params.iter().all(|(name, pseudonym)| param(name) == Some(pseudonym))
            && query.from.as_ref().is_none_or(|from| time >= from.as_str())
            && query.until.as_ref().is_none_or(|until| time < until.as_str())
    }
}

fn status_is_in(completion: &Value, (first, last): (u16, u16)) -> bool {
    let status = completion.pointer("/response/status").and_then(Value::as_u64);
    status.is_some_and(|status| (u64::from(first)..=u64::from(last)).contains(&status))
}

/// A text as it stands in a canonical line.
fn quoted(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    json::string(&mut out, text.as_bytes());
    out
}
