//! What must hold after every run, read from nothing but what is left: the spools, the store, what the app and the clients
//! saw. Each function names one promise and says what breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

use crate::app::Seen;
use crate::load::{Made, Outcome};
use crate::plan::Plan;
use crate::process::binary;
use crate::run::Mesh;

/// How often each thing was met, to show that a run was no idle one.
pub struct Tally {
    made: usize,
    passed: usize,
    seen: usize,
    refused: usize,
    unrecorded: usize,
    events: usize,
    withheld: usize,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { made, passed, seen, refused, unrecorded, events, withheld } = self;
        write!(
            f,
            "{made} requests, {passed} passed, {refused} refused; the app saw {seen}, {unrecorded} only counted; "
        )?;
        write!(f, "{events} events, {withheld} batches withheld")
    }
}

/// Checks everything after `mesh` has ended.
pub fn check(mesh: &Mesh, plan: &Plan) -> Result<Tally, String> {
    let (made, seen) = (mesh.load.made(), mesh.app.seen());
    let dir = mesh.pki.dir.path();
    let store = Store::read(&dir.join("collector/store"))?;
    let mut all = BTreeMap::new();
    let mut unrecorded = 0;
    for (at, side) in ["records", "web"].into_iter().enumerate() {
        let spool = dir.join(side).join("audit");
        let wrong = |wrong| format!("{side}: {wrong}");
        let events = lines_of(&spool)?;
        verified(&spool, dir).map_err(wrong)?;
        delivered(&events, &store, mesh.liars[at].withheld()).map_err(wrong)?;
        let kept = events.iter().chain(lines_of(&spool.join("quarantine"))?.iter()).cloned().collect();
        let trail = Trail::merge(side, kept, &store).map_err(wrong)?;
        trail.epochs_follow().map_err(wrong)?;
        trail.completions_fit().map_err(wrong)?;
        unrecorded +=
            trail.each_seen_is_recorded(&must_be_recorded(&made, &seen, plan), plan).map_err(wrong)?;
        all.extend(trail.events);
    }
    the_store_tells(&dir.join("collector/store"), &store, &all, plan)?;
    clients_were_told_the_truth(&made, &seen, plan)?;
    let count = |is: fn(&Outcome) -> bool| made.iter().filter(|made| is(&made.outcome)).count();
    Ok(Tally {
        made: made.len(),
        passed: count(Outcome::is_ok),
        seen: seen.len(),
        refused: count(Outcome::is_audit_refusal),
        unrecorded,
        events: all.len(),
        withheld: mesh.liars.iter().map(|liar| liar.withheld().len()).sum(),
    })
}

/// What has its event whatever has happened: everything that the app saw, unless the machine lost power. Then `durability`
/// says what: with `fsync` what was answered, with `write` nothing of the last moment.
fn must_be_recorded(made: &[Made], seen: &[Seen], plan: &Plan) -> Vec<Seen> {
    let answered: BTreeSet<&str> =
        made.iter().filter(|made| made.outcome.is_ok()).map(|made| &*made.trace_id).collect();
    let survives = |seen: &&Seen| match plan.durability {
        _ if !plan.power_fails() => true,
        "write" => false,
        "fsync" => answered.contains(&*seen.trace_id),
        _ => true,
    };
    seen.iter().filter(survives).cloned().collect()
}

/// A record, as far as it is looked at.
#[derive(Debug, Clone, Deserialize)]
struct Event {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    instance: Value,
    chain: Chain,
    request: Option<Request>,
    #[serde(default)]
    decision: Value,
    #[serde(default)]
    gap: Value,
    #[serde(default)]
    open: Value,
}

#[derive(Debug, Clone, Deserialize)]
struct Chain {
    epoch: String,
    seq: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct Request {
    id: String,
    trace_id: Option<String>,
}

/// Whole lines of every segment in a folder, in chain order.
fn lines_of(dir: &Path) -> Result<Vec<String>, String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "ndjson" || end == "zst"));
    files.sort();
    let mut lines = Vec::new();
    for file in files {
        let mut raw = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        if file.extension().is_some_and(|end| end == "zst") {
            // As anybody's zstd reads it: damaged or cut off is an error.
            let unpacked = zstd::stream::decode_all(&*raw);
            raw = unpacked.map_err(|error| format!("{}: {error}", file.display()))?;
        }
        if !raw.is_empty() && !raw.ends_with(b"\n") {
            return Err(format!("{}: the last line is not whole", file.display()));
        }
        lines.extend(opened(&file)?);
    }
    Ok(lines)
}

/// The lines of a file, as its owner reads them.
fn opened(file: &Path) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    let read = phiward::audit::lines_of(file, |line| {
        lines.push(text(line));
        Ok(())
    });
    read.map(|()| lines).map_err(|error| format!("{}: {error}", file.display()))
}

/// What the collector has.
struct Store {
    chained: BTreeSet<String>,
    evidence: Vec<Value>,
}

impl Store {
    fn read(dir: &Path) -> Result<Self, String> {
        let mut chained = BTreeSet::new();
        for entry in std::fs::read_dir(dir).map_err(|error| format!("the store: {error}"))? {
            for line in lines_of(&entry.unwrap().path())? {
                if !chained.insert(line.clone()) {
                    return Err(format!("the store has a record twice: {line}"));
                }
            }
        }
        let evidence = opened(&dir.join("evidence/evidence.jsonl")).unwrap_or_default();
        let evidence = evidence.iter().map(|line| {
            serde_json::from_str(line)
                .map_err(|error| format!("a line of the evidence is none: {error}: {line}"))
        });
        Ok(Self { chained, evidence: evidence.collect::<Result<_, _>>()? })
    }

    /// Every record, also those that came too late for their place.
    fn lines(&self) -> impl Iterator<Item = &str> {
        let kept = self.evidence.iter().filter_map(|kept| kept["line"].as_str());
        self.chained.iter().map(String::as_str).chain(kept)
    }
}

/// The spool is whole: `audit verify` says so, the program's own exit code.
fn verified(dir: &Path, run: &Path) -> Result<(), String> {
    let output = verify(dir, run).output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(format!("audit verify: {}{}", text(&output.stdout), text(&output.stderr)))
}

/// `audit verify` with the run's key and its collector's, so that receipts are checked too.
fn verify(dir: &Path, run: &Path) -> Command {
    let mut command = Command::new(binary());
    command.args(["audit", "verify", "--collector-key"]).arg(run.join("collector/store/receipt.pub"));
    let key = run.join("spool.key");
    if key.exists() {
        command.arg("--spool-key").arg(key);
    }
    command.arg(dir);
    command
}

/// What a collector has signed for is good news.
fn speaks_of_loss(note: &Value) -> bool {
    !note.as_str().unwrap_or_default().contains("has signed for the first")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// After an orderly end the collector has all of the spool but what was withheld from it.
fn delivered(spool: &[String], store: &Store, withheld: Vec<bytes::Bytes>) -> Result<(), String> {
    let has: BTreeSet<&str> = store.lines().collect();
    let withheld: Vec<String> = withheld.iter().map(|batch| text(batch)).collect();
    let withheld: BTreeSet<&str> = withheld.iter().flat_map(|batch| batch.lines()).collect();
    let missing = |line: &&String| !has.contains(line.as_str()) && !withheld.contains(line.as_str());
    match spool.iter().find(missing) {
        Some(line) => Err(format!("never delivered: {line}")),
        None => Ok(()),
    }
}

/// The events of one sidecar, wherever they are kept.
struct Trail {
    /// By the record's identifier.
    events: BTreeMap<String, Event>,
}

impl Trail {
    /// Puts the records of the spool and the store together: one that is in both must be the same in both.
    fn merge(side: &str, spool: Vec<String>, store: &Store) -> Result<Self, String> {
        let mut lines = BTreeMap::new();
        let mut events = BTreeMap::new();
        for line in spool.iter().map(String::as_str).chain(store.lines()) {
            let event: Event = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
            if event.instance["service"] != side {
                continue;
            }
            if lines.insert(event.id.clone(), line).is_some_and(|other| other != line) {
                return Err(format!("two records have one identifier: {line}"));
            }
            events.insert(event.id.clone(), event);
        }
        Ok(Self { events })
    }

    /// No record is missing in an epoch, no restart took its own spool for new, lost or damaged, and the last epoch ended.
    fn epochs_follow(&self) -> Result<(), String> {
        let mut epochs: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        for event in self.events.values() {
            epochs.entry(&event.chain.epoch).or_default().insert(event.chain.seq);
        }
        for (epoch, numbers) in &epochs {
            let expected = 0..numbers.len() as u64;
            if !numbers.iter().copied().eq(expected) {
                return Err(format!("records of epoch {epoch} are nowhere: {} are there", numbers.len()));
            }
        }
        let opened = self.events.values().filter(|event| event.kind == "audit.open");
        let mut found: Vec<_> = opened.map(|event| (&event.chain.epoch, &event.open["recovery"])).collect();
        found.sort_by_key(|(epoch, _)| *epoch);
        let as_expected = found.iter().enumerate().all(|(at, (_, recovery))| match recovery.as_str() {
            Some("new") => at == 0,
            Some("unclean" | "torn_tail") => at > 0,
            _ => false,
        });
        if found.len() != epochs.len() || !as_expected {
            return Err(format!("of {} epochs, opened as {found:?}", epochs.len()));
        }
        let last = epochs.keys().last().copied().unwrap_or_default();
        let closed = |event: &Event| event.kind == "audit.close" && event.chain.epoch == last;
        self.events.values().any(closed).then_some(()).ok_or_else(|| "the last epoch does not end".into())
    }

    /// An allow has at most one completion, which comes after it; in an epoch that ended in order, exactly one.
    fn completions_fit(&self) -> Result<(), String> {
        let of_type = |kind: &'static str| self.events.values().filter(move |event| event.kind == kind);
        let mut allows = BTreeMap::new();
        for event in of_type("access.decision") {
            let Some(request) = &event.request else { return Err(format!("no request in {event:?}")) };
            if allows.insert(&*request.id, event).is_some() {
                return Err(format!("a request has two decisions: {event:?}"));
            }
        }
        let mut completed = BTreeSet::new();
        for event in of_type("access.complete") {
            let id = event.request.as_ref().map_or("", |request| &*request.id);
            let before = allows.get(id).is_some_and(|decision| {
                decision.decision["outcome"] == "allow"
                    && decision.chain.epoch == event.chain.epoch
                    && decision.chain.seq < event.chain.seq
            });
            if !before || !completed.insert(id) {
                return Err(format!("a completion without its allow before it, or a second one: {event:?}"));
            }
        }
        let ended: BTreeSet<_> = of_type("audit.close").map(|event| &event.chain.epoch).collect();
        let open = allows.iter().find(|(id, event)| {
            event.decision["outcome"] == "allow"
                && ended.contains(&event.chain.epoch)
                && !completed.contains(*id)
        });
        open.map_or(Ok(()), |(_, event)| Err(format!("no completion in an epoch that has ended: {event:?}")))
    }

    /// Everything that the app saw has its decision, an allow, once; or it is in the count of a gap, where gaps are allowed.
    /// Returns how many are only counted.
    fn each_seen_is_recorded(&self, seen: &[Seen], plan: &Plan) -> Result<usize, String> {
        let mut by_trace: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
        for event in self.events.values().filter(|event| event.kind == "access.decision") {
            let trace = event.request.as_ref().and_then(|request| request.trace_id.as_deref());
            by_trace.entry(trace.unwrap_or_default()).or_default().push(event);
        }
        let mut unrecorded = 0;
        for seen in seen {
            match by_trace.get(&*seen.trace_id).map(Vec::as_slice) {
                Some([event]) if event.decision["outcome"] == "allow" && self.is_of(event, seen) => {}
                None if plan.allow_with_gap => unrecorded += 1,
                events => return Err(format!("the app saw {seen:?}, and its decisions are {events:?}")),
            }
        }
        let gaps =
            |what: &str| self.events.values().filter_map(|event| event.gap[what].as_u64()).sum::<u64>();
        let allowed = gaps("allowed");
        if unrecorded as u64 > allowed || allowed > 0 && !plan.allow_with_gap {
            return Err(format!(
                "{unrecorded} requests that the app saw are not recorded, gaps count {allowed}"
            ));
        }
        Ok(unrecorded)
    }

    /// On the inbound side the request's identifier is told to the app.
    fn is_of(&self, event: &Event, seen: &Seen) -> bool {
        event.instance["service"] != "records"
            || event.request.as_ref().is_some_and(|request| request.id == seen.request_id)
    }
}

/// The collector's store verifies; where it misses what a lie withheld, it says so.
fn the_store_tells(
    dir: &Path,
    store: &Store,
    all: &BTreeMap<String, Event>,
    plan: &Plan,
) -> Result<(), String> {
    let run = dir.ancestors().nth(2).unwrap(); // RUN/collector/store
    let output = verify(dir, run).args(["--format", "json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("audit verify of the store: {error}: {}", text(&output.stderr)))?;
    let missing = all.len() - store.chained.len();
    let told = report["intact"] == false
        || report["notes"].as_array().is_some_and(|notes| notes.iter().any(speaks_of_loss));
    if missing > 0 && !told {
        return Err(format!("the store misses {missing} records and does not tell"));
    }
    if missing > 0 && !plan.withholds() || missing == 0 && report["intact"] == false {
        return Err(format!("the store misses {missing} records: {report}"));
    }
    let explained = |kept: &&Value| matches!(kept["kind"].as_str(), Some("gap" | "late"));
    match store.evidence.iter().find(|kept| !explained(kept)) {
        Some(kept) => Err(format!("the collector keeps evidence against an honest sidecar: {kept}")),
        None => Ok(()),
    }
}

/// A 200 was an answer of the app; what was refused for want of a record did not reach it; nothing hung.
fn clients_were_told_the_truth(made: &[Made], seen: &[Seen], plan: &Plan) -> Result<(), String> {
    let reached: BTreeSet<&str> = seen.iter().map(|seen| &*seen.trace_id).collect();
    if reached.len() < seen.len() {
        return Err("a request reached the app twice".into());
    }
    for made in made {
        let reached = reached.contains(&*made.trace_id);
        let outcome = &made.outcome;
        // With `fsync` a response is held back when the disk fails after the request went on.
        let held_back = plan.durability == "fsync";
        let wrong = outcome.is_ok() && !reached
            || outcome.is_audit_refusal() && (reached && !held_back || plan.allow_with_gap)
            || *outcome == Outcome::Hung;
        if wrong {
            return Err(format!(
                "{made:?}, which {} the app",
                if reached { "reached" } else { "did not reach" }
            ));
        }
    }
    Ok(())
}
