//! The audit trail: typed events, chained, spooled on disk, delivered to collectors, verifiable offline.
//!
//! Owns everything between "this was decided" and "a collector has it". Refuses to know the proxy, the policy and HTTP types
//! (only the sinks speak HTTP, to collectors): callers hand in text that holds no PHI by construction.
//!
//! ```text
//!  worker 1  Recorder --pwrite--> journal-0
//!               '-----batch---+
//!  worker 2  Recorder --...   +-> writer thread --write--> <epoch>-<seq>.ndjson.zst --> shipper --> collector
//!  control   ControlRecorder -+      |  marks               ^                      cursor, retry, quarantine
//!            workers <---------------+       syncer thread --+ fdatasync
//! ```
//!
//! A request is forwarded only after its decision reached the durability that was configured; see [`Recorder`]. The spool is
//! a folder of segments of NDJSON, packed by zstd, so `zstdcat`, `zstdgrep` and `jq` work on it at 3 a.m.

mod account;
mod ahead;
mod batch;
#[cfg(phiward_bench_switch)]
mod bench_switch;
mod binding;
mod brief;
mod chain;
mod check;
mod cipher;
mod clock;
mod coalesce;
mod cursor;
mod encode;
mod event;
mod export;
mod feed;
mod frame;
mod fresh;
mod index;
mod journal;
mod json;
mod layout;
mod lines;
mod merkle;
mod note;
mod packed;
mod progress;
mod prove;
mod pseudonym;
mod quarantine;
mod query;
mod read;
mod receipt;
mod recorder;
mod recover;
mod repeats;
mod replay;
mod retention;
mod route;
mod seal;
mod secret;
mod segment;
mod sequences;
mod ship;
mod show;
mod sink;
mod sink_coding;
mod sink_elasticsearch;
mod sink_http;
mod sink_ndjson;
mod sink_otlp;
mod sink_splunk;
mod spool;
mod sync;
mod verify;
mod wait;
mod writer;

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

pub use account::{Access, AccessKind, Account, Caller, PolicyChange, TrailFacts, account};
pub use cipher::SpoolKey;
pub use event::{
    AccessComplete, AccessDecision, ConnFacts, ConnFragment, ConnRejected, ControlEvent, Decision, Direction,
    EVENT_TYPES, HttpFacts, InstanceFacts, PolicyFragment, PostureFacts, ResponseFacts, ShadowFacts,
    SubjectFacts, TlsFacts,
};
pub use export::{OCSF_VERSION, ocsf, table_head, table_row};
pub use index::{IndexError, Indexed, index};
pub use progress::SinkStatus;
pub use prove::{Proof, ProveError, Proven, check_proof, prove};
pub use pseudonym::{KeyFileError, MIN_KEY_BYTES, Pseudonym, PseudonymKey};
pub use query::{Answer, Field, Query, Row, query};
pub use read::{Follower, bytes, for_each, lines_of};
pub use receipt::ReceiptVerifier;
pub use recorder::{Recorded, Recorder, RecorderSeed, Reservation, Unavailable};
pub use secret::{Credentials, SecretError, SecretFile};
pub use ship::{ShipTiming, Shipper};
pub use show::{Paint, request_summary, summary};
pub use sink::{Endpoint, HecOptions, SinkConfig, SinkKind};
pub use sink_http::ExtraHeader;
pub use spool::{Durability, MIN_SPOOL_BYTES, OnFailure, SEGMENT_BYTES, SpoolConfig};
pub use verify::{
    EpochReport, Finding, FindingKind, Report, VerifyError, VerifyOptions, verify, verify_with,
};

use chain::{Chain, Epoch};
use cipher::Cipher;
use clock::unix_ns;
use encode::{Speller, TrailEvent};
use progress::SinkState;
use seal::Sealer;
use segment::{Disk, Form, SegmentFile};
use spool::{Health, Segment, Shared};
use writer::{Message, Writer};

/// What a collector shares with the spool: one format, one way to check it.
pub(crate) mod trail {
    pub(crate) use super::batch::lines as lines_of;
    pub(crate) use super::chain::{Epoch, MAX_LINE, NO_PREVIOUS, Record};
    pub(crate) use super::cipher::{Cipher, line_bytes};
    pub(crate) use super::layout::EVIDENCE;
    pub(crate) use super::lines::{Lines, first_of};
    pub(crate) use super::merkle::{Hash, Range, subtrees};
    pub(crate) use super::note::{VerifierKey, body_of};
    pub(crate) use super::receipt::ReceiptKey;
    pub(crate) use super::recover::{Damage, lock_dir, repair, scan};
    pub(crate) use super::retention::{FILE as RETENTION, Tombstone, read as read_removed};
    pub(crate) use super::segment::{Disk, Form, SegmentFile, list, name, open_dir, parse_name};
}

/// Whether the text has the form of a checkpoint: a signed note with a size and a root.
pub fn is_checkpoint(note: &str) -> bool {
    note::body_of(note).is_some()
}

/// Why the trail cannot be begun, written or ended.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The folder cannot be made, read or written.
    #[error("{}: the audit spool cannot be used: {error}", path.display())]
    Spool {
        /// The spool's folder.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Another process has the folder.
    #[error("{}: another process writes audit events to this folder: give each process a folder of its own", path.display())]
    InUse {
        /// The spool's folder.
        path: PathBuf,
    },
    /// `max_bytes` is too small.
    #[error("{}: an audit spool needs a max_bytes of at least 1 MiB", path.display())]
    TooSmall {
        /// The spool's folder.
        path: PathBuf,
    },
    /// Two sinks have one name, or a name is not fit for a file name.
    #[error("sink {name:?}: a sink needs a name of its own, of 1 to 64 letters, digits, '-', '_' and '.'")]
    SinkName {
        /// The name.
        name: String,
    },
    /// The last events could not be written.
    #[error("the last audit events could not be written: {0}")]
    Unwritten(String),
}

/// A running audit trail. Workers record through [`Audit::recorder`].
///
/// Dropping it writes what is queued and leaves the epoch without `audit.close`, as a crash would.
pub struct Audit {
    shared: Arc<Shared>,
    writer: Sender<Message>,
    threads: Option<Threads>,
    lock: Option<File>,
}

/// The writer and the syncer.
type Threads = (JoinHandle<Result<(), String>>, JoinHandle<()>);

/// Records the control thread's events; a clone a task.
#[derive(Clone)]
pub struct ControlRecorder {
    writer: Sender<Message>,
}

/// Shows the state of a trail; clones are cheap.
#[derive(Clone)]
pub struct StatusReader(Arc<Shared>);

/// The state of a trail, for `/ready` and `/metrics`.
#[derive(Debug, Clone)]
pub struct AuditStatus {
    /// The epoch of this process.
    pub epoch: String,
    /// Records this process has written.
    pub written_events: u64,
    /// How many of them are checkpoints, or will be.
    pub checkpoints: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Bytes of segments in the spool.
    pub spool_bytes: u64,
    /// Bytes that may still be reserved; 0 when the spool is full.
    pub free_bytes: u64,
    /// Whether the spool takes events: its disk works and it has room.
    pub healthy: bool,
    /// The last error of the disk, also after it passed.
    pub last_error: Option<String>,
    /// Denials that were counted in an `audit.summary`, or will be, instead of being events.
    pub coalesced_events: u64,
    /// Events that were lost because the disk failed for good.
    pub lost_events: u64,
    /// Each sink's state, in the order of the configuration.
    pub sinks: Vec<SinkStatus>,
}

impl Audit {
    /// Locks and repairs the spool, begins an epoch with `audit.open` on disk, and starts the writer.
    ///
    /// # Errors
    /// The folder is in use or cannot be written, or the configuration cannot work.
    pub fn start(
        config: SpoolConfig,
        instance: &InstanceFacts,
        sinks: &[SinkConfig],
    ) -> Result<Self, AuditError> {
        #[cfg(phiward_bench_switch)]
        bench_switch::follow();
        let path = config.dir.clone();
        let io_error = |error| AuditError::Spool { path: path.clone(), error };
        if config.max_bytes < MIN_SPOOL_BYTES {
            return Err(AuditError::TooSmall { path });
        }
        check_names(sinks)?;
        let cipher = config.key.as_deref().map(Cipher::new).transpose();
        let mut cipher = cipher.map_err(io_error)?;
        let found = recover::recover(&config.dir, cipher.as_mut())?;
        let last_epoch =
            found.segments.last().and_then(|(name, _)| segment::parse_name(name)).map(|(epoch, _)| epoch);
        let chain = Chain::new(Epoch::generate(unix_ns() / 1_000_000, last_epoch.as_ref()));
        let mut segments: VecDeque<Segment> = (0..)
            .zip(found.segments)
            .map(|(ordinal, (name, bytes))| Segment { ordinal, name, bytes })
            .collect();
        let mut sealer = Sealer::new(chain.epoch().as_str(), instance, Instant::now());
        let opened = TrailEvent::Open {
            recovery: found.recovery,
            lost_bytes: found.lost_bytes,
            recovered: found.recovered,
            previous: found.previous,
            key: sealer.open_key(instance),
            tls: instance.tls,
        };
        let instance = encode::instance(instance);
        let (chain, file) =
            begin(&config, chain, &mut sealer, cipher.as_mut(), &opened, &instance).map_err(io_error)?;
        let name = segment::name(chain.epoch(), 0, config.form());
        segments.push_back(Segment { ordinal: segments.len() as u64, name, bytes: file.len() });
        let other_bytes = recover::other_bytes(&config.dir).map_err(io_error)?;
        let sinks = sinks.iter().map(|sink| Arc::new(SinkState::new(sink))).collect();
        let epoch = chain.epoch().as_str().to_owned();
        let shared = Arc::new(Shared::new(config, epoch, instance, sinks, segments, other_bytes));
        shared.written_events.store(1, Ordering::Release);
        shared.written_bytes.store(file.len(), Ordering::Release);
        let (sender, inbox) = mpsc::channel();
        let writer = Writer::new(shared.clone(), inbox, chain, sealer, file, cipher);
        let threads = start_threads(writer, shared.clone()).map_err(io_error)?;
        Ok(Self { shared, writer: sender, threads: Some(threads), lock: Some(found.lock) })
    }

    /// What a worker makes its [`Recorder`] of.
    pub fn recorder(&self) -> RecorderSeed {
        RecorderSeed { shared: self.shared.clone(), writer: self.writer.clone() }
    }

    /// What the control thread's tasks record through.
    pub fn control(&self) -> ControlRecorder {
        ControlRecorder { writer: self.writer.clone() }
    }

    /// The state now.
    pub fn status(&self) -> AuditStatus {
        self.status_reader().status()
    }

    /// What shows the state while it runs, and after it was closed.
    pub fn status_reader(&self) -> StatusReader {
        StatusReader(self.shared.clone())
    }

    /// Ends the epoch: writes what the workers sent and `audit.close`, and syncs. Workers must have ended before; shippers
    /// go on, and can be finished afterwards.
    ///
    /// # Errors
    /// The last events could not be written or synced.
    pub fn close(mut self) -> Result<(), AuditError> {
        self.end(true).map_err(AuditError::Unwritten)
    }

    fn end(&mut self, close: bool) -> Result<(), String> {
        let Some((writer, syncer)) = self.threads.take() else { return Ok(()) };
        let _ = self.writer.send(Message::End { close }); // the writer is gone only if it panicked, which join tells
        let written = writer.join().unwrap_or_else(|_| Err("the audit writer panicked".into()));
        self.shared.tail().stop = true;
        self.shared.sync_wanted.notify_one();
        let synced = syncer.join().map_err(|_| "the audit syncer panicked".to_owned());
        let poisoned = self.shared.health() == Health::Poisoned;
        if written.is_ok() && self.shared.tail().workers.is_empty() {
            // What they held is in segments. That they stay only costs the next start a look.
            let _ = journal::remove_all(&self.shared.config.dir);
        }
        self.shared.set_health(Health::Closed, None);
        if let Some(lock) = self.lock.take() {
            // Closing alone would leave it to a process that is being forked off just now (flock(2)).
            let _ = lock.unlock();
        }
        match written.and(synced) {
            Ok(()) if poisoned => Err(self.shared.last_error().unwrap_or_default()),
            outcome => outcome,
        }
    }
}

impl StatusReader {
    /// The state now.
    pub fn status(&self) -> AuditStatus {
        let shared = &self.0;
        let free = shared.free.load(Ordering::Acquire).max(0) as u64;
        // Let go of before the sinks' backlogs are asked for, which look at the segments too.
        let spool_bytes = shared.tail().segments.iter().map(|segment| segment.bytes).sum();
        let sinks = shared.sinks.iter().map(|sink| sink.status(shared));
        AuditStatus {
            epoch: shared.epoch.clone(),
            // Asked first, so that a record is never counted as no checkpoint.
            written_events: shared.written_events.load(Ordering::Acquire),
            checkpoints: shared.checkpoints.load(Ordering::Acquire),
            written_bytes: shared.written_bytes.load(Ordering::Acquire),
            spool_bytes,
            free_bytes: free,
            // Less than a request needs is as good as nothing.
            healthy: shared.health() == Health::Good && free >= 2 * spool::PLACE_BYTES as u64,
            last_error: shared.last_error(),
            coalesced_events: shared.coalesced_events.load(Ordering::Acquire),
            lost_events: shared.lost_events.load(Ordering::Acquire),
            sinks: sinks.collect(),
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        if let Err(error) = self.end(false) {
            tracing::error!(error, "the last audit events could not be written");
        }
    }
}

impl ControlRecorder {
    /// Records an event of the control thread. It takes no place: a part of the spool is kept for these.
    pub fn record(&self, event: ControlEvent) {
        if self.writer.send(Message::Control(Box::new(event))).is_err() {
            tracing::warn!("the audit trail is closed, a control event was not recorded");
        }
    }
}

/// Writes `audit.open` as the first record of a new segment, onto the disk.
fn begin(
    config: &SpoolConfig,
    mut chain: Chain,
    sealer: &mut Sealer,
    cipher: Option<&mut Cipher>,
    opened: &TrailEvent,
    instance: &[u8],
) -> std::io::Result<(Chain, SegmentFile)> {
    let mut speller = Speller::default();
    let opened = speller.trail(opened, unix_ns());
    let form = config.form();
    let mut file = SegmentFile::create(config.dir.join(segment::name(chain.epoch(), 0, form)))?;
    let mut line = Vec::new();
    sealer.append(chain.append(&mut line, opened, instance).hash);
    let disk = Disk::default();
    file.append(&disk, &stored(form, cipher, line)?)?;
    disk.sync(file.file())?;
    disk.sync(&segment::open_dir(&config.dir)?)?;
    Ok((chain, file))
}

/// Whole lines as they are written to a segment of this form: one that is packed stays so when the key comes later.
fn stored(form: Form, cipher: Option<&mut Cipher>, lines: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let lines = match cipher {
        None => lines,
        Some(cipher) => {
            let mut encrypted = Vec::new();
            cipher.lines(&mut encrypted, &lines)?;
            encrypted
        }
    };
    match form {
        Form::Lines => Ok(lines),
        Form::Packed => {
            let mut frames = Vec::new();
            packed::pack(&mut frames, &lines)?;
            Ok(frames)
        }
    }
}

fn start_threads(writer: Writer, shared: Arc<Shared>) -> std::io::Result<Threads> {
    let writer = std::thread::Builder::new().name("audit-writer".into()).spawn(move || writer.run())?;
    let syncer = std::thread::Builder::new().name("audit-sync".into()).spawn(move || sync::run(&shared))?;
    Ok((writer, syncer))
}

fn check_names(sinks: &[SinkConfig]) -> Result<(), AuditError> {
    for (at, sink) in sinks.iter().enumerate() {
        let fit = (1..=64).contains(&sink.name.len())
            && sink.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !fit || sinks[..at].iter().any(|other| other.name == sink.name) {
            return Err(AuditError::SinkName { name: sink.name.clone() });
        }
    }
    Ok(())
}
