//! An index of a trail, so that a search reads the segments that can hold an answer and not all of them.
//!
//! Owns one SQLite file beside the segments, which says of each ended segment which terms and times are in it. It is made of the
//! trail alone and can be thrown away: what it does not know is read as before, so it makes a search faster and never wrong.
//! Which terms a query has is told here too, so that both sides agree; the trail's truth is `verify`'s.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rusqlite::{Connection, OpenFlags, params};
use serde::Deserialize;
use serde_json::Value;

use super::layout::Layout;
use super::lines::Lines;
use super::query::{Field, Query};

/// The file, in the folder of the trail.
pub(crate) const FILE: &str = "index.sqlite";
/// What the file is and of which form; one of another form is made anew.
const FORM: i32 = 0x7068_0001;
/// A last segment that was not written for so long has ended.
const SETTLED: Duration = Duration::from_secs(300);
/// How long another process may hold the file.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests of one process begin with the same letters, and are as many as its requests: what they begin with is enough.
const REQUEST_PREFIX: usize = 16;

const TABLES: &str = "
    CREATE TABLE segment(id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL, first TEXT NOT NULL, last TEXT NOT NULL);
    CREATE TABLE term(segment INTEGER NOT NULL, hash INTEGER NOT NULL, PRIMARY KEY(segment, hash)) WITHOUT ROWID;
";

/// Why there is no index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The trail cannot be read.
    #[error("{}: {error}", path.display())]
    Trail {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The index cannot be read or written.
    #[error("{}: {error}; `phiward audit index DIR --rebuild` makes it anew", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        error: rusqlite::Error,
    },
}

/// What an update has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Indexed {
    /// Segments that were read.
    pub added: u64,
    /// Segments that are gone, and so from the index.
    pub removed: u64,
    /// Segments that the index knows now.
    pub known: u64,
}

/// Brings the index of the trail in `dir` up to date, from nothing if `anew`. Segments that are still written are left for later.
/// `done` counts the bytes that were read.
///
/// # Errors
/// The trail cannot be read, or the index not be written.
pub fn index(dir: &Path, anew: bool, done: &AtomicU64) -> Result<Indexed, IndexError> {
    let path = dir.join(FILE);
    let trail = |error| IndexError::Trail { path: dir.into(), error };
    let sqlite = |error| IndexError::Sqlite { path: path.clone(), error };
    let layout = Layout::read(dir).map_err(trail)?;
    if layout.epochs.is_empty() && !path.exists() {
        return Ok(Indexed::default());
    }
    if anew {
        remove(&path).map_err(|error| IndexError::Trail { path: path.clone(), error })?;
    }
    let mut index = open_to_write(&path).map_err(sqlite)?;
    let mut known = known(&index).map_err(sqlite)?;
    let mut indexed = Indexed::default();
    for epoch in &layout.epochs {
        for (at, segment) in epoch.segments.iter().enumerate() {
            let path_error = |error| IndexError::Trail { path: segment.path.clone(), error };
            let relative = relative(dir, &segment.path);
            let meta = match std::fs::metadata(&segment.path) {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(path_error(error)),
            };
            if known.remove(&relative).is_some_and(|bytes| bytes == meta.len()) {
                continue;
            }
            let settled = || {
                meta.modified()
                    .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > SETTLED))
            };
            if at + 1 == epoch.segments.len() && !settled() {
                continue;
            }
            let content = read(&segment.path, done).map_err(path_error)?;
            put(&mut index, &relative, meta.len(), &content).map_err(sqlite)?;
            indexed.added += 1;
        }
    }
    for gone in known.keys() {
        take_out(&mut index, gone).map_err(sqlite)?;
        indexed.removed += 1;
    }
    indexed.known = index.query_row("SELECT count(*) FROM segment", [], |row| row.get(0)).map_err(sqlite)?;
    Ok(indexed)
}

/// What is in a segment.
#[derive(Default)]
struct Content {
    terms: Terms,
    first: Option<String>,
    last: String,
}

impl Content {
    fn saw(&mut self, time: &str) {
        if self.first.as_deref().is_none_or(|first| time < first) {
            self.first = Some(time.to_owned());
        }
        if time > self.last.as_str() {
            time.clone_into(&mut self.last);
        }
    }
}

fn read(path: &Path, done: &AtomicU64) -> io::Result<Content> {
    let mut content = Content::default();
    let mut lines = Lines::open(path)?;
    let mut said = 0;
    while let Some(line) = lines.next()? {
        done.fetch_add(line.end - std::mem::replace(&mut said, line.end), Ordering::Relaxed);
        match serde_json::from_slice::<Event<'_>>(line.bytes) {
            Ok(event) => {
                content.saw(event.time.unwrap_or_default());
                content.terms.of(&event);
            }
            Err(_) => {
                let Ok(event) = serde_json::from_slice::<Value>(line.bytes) else { continue }; // `verify` tells of it
                content.saw(event["time"].as_str().unwrap_or_default());
                content.terms.of_any(&event);
            }
        }
    }
    Ok(content)
}

/// An event as phiward writes it, as far as it can be asked for, read without a tree. What does not read as one, such as an
/// escaped text, is read as any JSON.
#[derive(Deserialize)]
struct Event<'l> {
    id: Option<&'l str>,
    time: Option<&'l str>,
    #[serde(rename = "type")]
    kind: Option<&'l str>,
    #[serde(borrow, default)]
    decision: Decision<'l>,
    #[serde(borrow, default)]
    http: Http<'l>,
    #[serde(borrow, default)]
    instance: Instance<'l>,
    #[serde(borrow, default)]
    request: Request<'l>,
    #[serde(borrow, default)]
    subject: Subject<'l>,
}

#[derive(Default, Deserialize)]
struct Decision<'l> {
    outcome: Option<&'l str>,
    reason: Option<&'l str>,
    role: Option<&'l str>,
    rule: Option<&'l str>,
}

#[derive(Default, Deserialize)]
struct Http<'l> {
    host: Option<&'l str>,
    method: Option<&'l str>,
    template: Option<&'l str>,
    #[serde(borrow, default)]
    params: BTreeMap<&'l str, &'l str>,
}

#[derive(Default, Deserialize)]
struct Instance<'l> {
    namespace: Option<&'l str>,
    service: Option<&'l str>,
}

#[derive(Default, Deserialize)]
struct Request<'l> {
    id: Option<&'l str>,
    trace_id: Option<&'l str>,
}

#[derive(Default, Deserialize)]
struct Subject<'l> {
    spiffe_id: Option<&'l str>,
}

impl<'l> Event<'l> {
    fn text(&self, field: Field) -> Option<&'l str> {
        match field {
            Field::Type => self.kind,
            Field::Id => self.id,
            Field::Outcome => self.decision.outcome,
            Field::Reason => self.decision.reason,
            Field::Rule => self.decision.rule,
            Field::Role => self.decision.role,
            Field::Method => self.http.method,
            Field::Template => self.http.template,
            Field::Host => self.http.host,
            Field::Service => self.instance.service,
            Field::Namespace => self.instance.namespace,
            Field::RequestId => self.request.id,
            Field::TraceId => self.request.trace_id,
        }
    }
}

/// The terms of many events.
#[derive(Debug, Default, PartialEq)]
struct Terms {
    found: HashSet<i64>,
    /// The last text of each field and of the identity: most are those of the event before, and cost no hash again.
    last: [String; Field::ALL.len() + 1],
}

impl Terms {
    /// Adds every term of an event by which it can be asked for.
    fn of(&mut self, event: &Event<'_>) {
        self.texts(|field| event.text(field), event.subject.spiffe_id);
        self.found.extend(event.http.params.iter().map(|(name, value)| param(name, value)));
    }

    fn of_any(&mut self, event: &Value) {
        let text = |pointer| event.pointer(pointer).and_then(Value::as_str);
        self.texts(|field| text(field.pointer()), text(IDENTITY));
        let params = event.pointer("/http/params").and_then(Value::as_object).into_iter().flatten();
        self.found.extend(params.map(|(name, value)| param(name, value.as_str().unwrap_or_default())));
    }

    fn texts<'e>(&mut self, text: impl Fn(Field) -> Option<&'e str>, identity: Option<&str>) {
        for (at, field) in Field::ALL.into_iter().enumerate() {
            self.add(at, field.pointer(), text(field));
        }
        self.add(Field::ALL.len(), IDENTITY, identity);
    }

    fn add(&mut self, at: usize, member: &str, text: Option<&str>) {
        let Some(text) = text.map(|text| indexed(member, text)) else { return };
        // An empty one may be the first: it is hashed each time.
        if text.is_empty() || self.last[at] != text {
            text.clone_into(&mut self.last[at]);
            self.found.insert(term(member, text));
        }
    }
}

const IDENTITY: &str = "/subject/spiffe_id";

/// The terms that an event must have to meet `query`.
fn terms_for(query: &Query) -> Vec<i64> {
    let texts = query.texts.iter().map(|(field, text)| term(field.pointer(), text));
    let identity = query.identity.as_ref().filter(|pattern| pattern.is_literal());
    let identity = identity.map(|pattern| term(IDENTITY, pattern.as_str()));
    texts.chain(identity).chain(query.params.iter().map(|(name, value)| param(name, value))).collect()
}

fn param(name: &str, value: &str) -> i64 {
    term(&format!("/http/params/{name}"), value)
}

/// What of a text is in the index.
fn indexed<'t>(member: &str, text: &'t str) -> &'t str {
    match member {
        // An event's own number is found by the segment's name; its epoch is in each.
        "/id" => text.split_once(':').map_or(text, |(epoch, _)| epoch),
        "/request/id" => text.get(..REQUEST_PREFIX).unwrap_or(text),
        _ => text,
    }
}

/// A number for a member and its text. Two that share one cost a segment that is read for nothing.
fn term(member: &str, text: &str) -> i64 {
    let text = [member.as_bytes(), b"\0", indexed(member, text).as_bytes()].concat();
    let mut first = [0; 8];
    first.copy_from_slice(&digest(&SHA256, &text).as_ref()[..8]); // SHA-256 has 32
    i64::from_be_bytes(first)
}

/// An index as a search uses it.
pub(crate) struct Index {
    passed_over: HashSet<PathBuf>,
}

impl Index {
    /// The segments of the trail in `dir` that cannot hold an answer to `query`. None where there is no index.
    ///
    /// # Errors
    /// There is one and it cannot be used.
    pub(crate) fn consult(dir: &Path, query: &Query) -> Result<Option<Self>, IndexError> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let passed_over = passed_over(dir, &path, query);
        passed_over
            .map(|passed_over| Some(Self { passed_over }))
            .map_err(|error| IndexError::Sqlite { path, error })
    }

    /// Whether the segment must be read.
    pub(crate) fn may_hold(&self, segment: &Path) -> bool {
        !self.passed_over.contains(segment)
    }
}

fn passed_over(dir: &Path, path: &Path, query: &Query) -> rusqlite::Result<HashSet<PathBuf>> {
    let index = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    index.busy_timeout(PATIENCE)?;
    if form(&index)? != FORM {
        return Ok(HashSet::new());
    }
    let terms = terms_for(query);
    let mut holds = index.prepare("SELECT 1 FROM term WHERE segment = ?1 AND hash = ?2")?;
    let mut segments = index.prepare("SELECT id, path, bytes, first, last FROM segment")?;
    let mut rows = segments.query([])?;
    let mut passed_over = HashSet::new();
    while let Some(row) = rows.next()? {
        let (id, relative, bytes): (i64, String, u64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (first, last): (String, String) = (row.get(3)?, row.get(4)?);
        let in_time = query.from.as_ref().is_none_or(|from| &last >= from)
            && query.until.as_ref().is_none_or(|until| &first < until);
        let mut lacks = !in_time;
        for term in &terms {
            lacks = lacks || !holds.exists(params![id, term])?;
        }
        let segment = dir.join(relative);
        // One that is not as it was when it was indexed is read.
        if lacks && std::fs::metadata(&segment).is_ok_and(|meta| meta.len() == bytes) {
            passed_over.insert(segment);
        }
    }
    Ok(passed_over)
}

fn open_to_write(path: &Path) -> rusqlite::Result<Connection> {
    let index = Connection::open(path)?;
    index.busy_timeout(PATIENCE)?;
    if form(&index)? != FORM {
        index.execute_batch("BEGIN IMMEDIATE; DROP TABLE IF EXISTS segment; DROP TABLE IF EXISTS term;")?;
        index.execute_batch(TABLES)?;
        index.pragma_update(None, "user_version", FORM)?;
        index.execute_batch("COMMIT")?;
    }
    Ok(index)
}

fn form(index: &Connection) -> rusqlite::Result<i32> {
    index.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn known(index: &Connection) -> rusqlite::Result<std::collections::HashMap<String, u64>> {
    let mut segments = index.prepare("SELECT path, bytes FROM segment")?;
    segments.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn put(index: &mut Connection, relative: &str, bytes: u64, content: &Content) -> rusqlite::Result<()> {
    let change = index.transaction()?;
    forget(&change, relative)?;
    let first = content.first.as_deref().unwrap_or_default();
    change.execute(
        "INSERT INTO segment(path, bytes, first, last) VALUES (?1, ?2, ?3, ?4)",
        params![relative, bytes, first, content.last],
    )?;
    let id = change.last_insert_rowid();
    let mut terms: Vec<&i64> = content.terms.found.iter().collect();
    terms.sort_unstable();
    let mut insert = change.prepare("INSERT INTO term(segment, hash) VALUES (?1, ?2)")?;
    for term in terms {
        insert.execute(params![id, term])?;
    }
    drop(insert);
    change.commit()
}

fn take_out(index: &mut Connection, relative: &str) -> rusqlite::Result<()> {
    let change = index.transaction()?;
    forget(&change, relative)?;
    change.commit()
}

fn forget(change: &rusqlite::Transaction<'_>, relative: &str) -> rusqlite::Result<()> {
    change
        .execute("DELETE FROM term WHERE segment IN (SELECT id FROM segment WHERE path = ?1)", [relative])?;
    change.execute("DELETE FROM segment WHERE path = ?1", [relative])?;
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn relative(dir: &Path, path: &Path) -> String {
    path.strip_prefix(dir).unwrap_or(path).to_string_lossy().into_owned() // names of segments are ASCII
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(line: &str) -> (Option<Terms>, Terms) {
        let (mut quick, mut any) = (Terms::default(), Terms::default());
        let read = serde_json::from_str::<Event<'_>>(line).map(|event| quick.of(&event));
        any.of_any(&serde_json::from_str(line).unwrap());
        (read.ok().map(|()| quick), any)
    }

    /// If this fails, a search passes over a segment that has what is asked for.
    #[test]
    fn an_event_has_the_same_terms_however_it_is_read() {
        let line = r#"{"decision":{"outcome":"allow","reason":"rule","role":"chart-read","rule":"read"},"http":{"host":"h","method":"GET",
            "params":{"id":"k1:9c","name":"k1:9d"},"template":"/a/{id}"},"id":"e:7","instance":{"namespace":"clinic","service":"records"},
            "request":{"id":"0123456789abcdef0007","trace_id":"t"},"subject":{"spiffe_id":"spiffe://a/b"},"time":"t","type":"access.decision"}"#;
        let (quick, any) = terms(line);
        assert_eq!(any.found.len(), Field::ALL.len() + 1 + 2, "each field, the identity and both parameters");
        assert_eq!(quick.as_ref(), Some(&any));
        for odd in [
            line.replace(r#""allow""#, r#""al\u0001low""#),
            line.replace(r#""role":"chart-read""#, r#""role":7"#),
            line.replace(r#""id":"k1:9c""#, r#""id":{}"#),
            line.replace(r#"{"spiffe_id":"spiffe://a/b"}"#, r#""spiffe://a/b""#),
            line.replace(r#""type":"#, r#""type":"x","type":"#),
        ] {
            let (quick, any) = terms(&odd);
            assert!(quick.is_none_or(|quick| quick.found.is_superset(&any.found)), "{odd}");
            assert!(any.found.len() > Field::ALL.len() - 3, "{odd}");
        }
        let absent = r#"{"id":"","time":"t","type":"x"}"#;
        assert_eq!(terms(absent), (Some(terms(absent).1), terms(absent).1));
    }
}
