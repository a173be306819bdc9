//! The shipper: takes events from the spool to one sink, in order, at least once.
//!
//! Runs on the thread of delivery and reads the files that the writer wrote, so a slow or dead collector costs the workers
//! nothing; one that keeps up is sent what the writer has packed (see `fresh`). Owns the cursor, the pace and the quarantine. A
//! batch leaves the front of the queue in two ways only: acknowledged, or set aside in `quarantine/` with an event that says so.

mod place;
mod refused;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::batch;
use super::clock::unix_ns;
use super::cursor::CursorFile;
use super::feed::{Read, find, read_lines};
use super::progress::SinkState;
use super::sink::{Answer, BatchLimit, Refusal, Sink, SinkConfig};
use super::sink_http::Route;
use super::spool::{Shared, lock};
use super::writer::Message;
use super::{Audit, AuditError};
use place::Here;

/// No batch is made smaller than this, which holds the longest line.
const LEAST_BATCH_BYTES: u64 = 128 * 1024;
/// So many usual batches may go out as one where the writer has packed them: that is two thirds of one in memory, who takes it takes
/// eight, and at 30,000 requests/s it is what comes while one lingers and is sent.
const BATCHES_IN_A_RUN: usize = 4;
/// How often the cursor is saved while there is more to send. Being behind costs duplicates after a crash, nothing else.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// The longest that a receiver may ask to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// How a shipper paces itself.
#[derive(Debug, Clone, Copy)]
pub struct ShipTiming {
    /// How long the first new event waits for company. Without it every event would cost a request of its own, and each batch
    /// costs the workers what they had in their cores' caches.
    pub linger: Duration,
    /// The first wait after a failure is drawn from zero to this, and each further one from twice as much.
    pub retry_min: Duration,
    /// No wait is drawn from more than this.
    pub retry_max: Duration,
    /// How long one attempt may take.
    pub attempt: Duration,
}

impl Default for ShipTiming {
    fn default() -> Self {
        Self {
            linger: Duration::from_millis(50),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            attempt: Duration::from_secs(30),
        }
    }
}

/// Delivers to one sink. Run it on no thread that requests wait for; dropping [`Shipper::run`] at any point loses nothing.
pub struct Shipper {
    shared: Arc<Shared>,
    state: Arc<SinkState>,
    writer: Sender<Message>,
    sink: Sink,
    cursor: CursorFile,
    timing: ShipTiming,
    limit: BatchLimit,
    /// The segment that is read, by its ordinal, and how far it was acknowledged.
    ordinal: u64,
    offset: u64,
    /// What is being delivered; kept here, so that a flush goes on where the run was given up.
    current: Option<Current>,
    unsaved: bool,
    saved: Instant,
    failures: u32,
    /// The memory of the last batch, while more come: new memory costs a page fault each 4 KiB.
    spare: Vec<u8>,
}

/// A batch on its way: whole lines of one segment, which a refusal can have taken apart.
struct Current {
    /// What is still to be delivered, the next part last.
    parts: Vec<Part>,
    /// Of the segment.
    bytes: u64,
    events: u64,
    own_epoch: bool,
    /// How much more is there already; see [`Here::left_after`].
    left: u64,
}

/// Whole lines, and how many they are.
#[derive(Clone)]
struct Part {
    lines: Bytes,
    events: u64,
}

impl Part {
    fn new(lines: Bytes) -> Self {
        let events = batch::count(&lines);
        Self { lines, events }
    }
}

impl Audit {
    /// The shipper of a sink that the trail was started with.
    ///
    /// `resolved` gives the addresses of the endpoint's host and `tls` the newest client configuration, whose verifier
    /// checks who the receiver is (needed for an `https` endpoint).
    ///
    /// # Errors
    /// The trail was started without this sink, or the cursor file cannot be used.
    pub fn shipper(
        &self,
        config: &SinkConfig,
        resolved: watch::Receiver<Arc<[SocketAddr]>>,
        tls: Option<watch::Receiver<Arc<rustls::ClientConfig>>>,
        timing: ShipTiming,
    ) -> Result<Shipper, AuditError> {
        let state = self.shared.sinks.iter().find(|state| state.name == config.name);
        let state = state.ok_or_else(|| AuditError::SinkName { name: config.name.clone() })?.clone();
        let dir = &self.shared.config.dir;
        let (cursor, place) = CursorFile::open(dir, &state.name)
            .map_err(|error| AuditError::Spool { path: dir.clone(), error })?;
        let (ordinal, offset) = find(&self.shared, place);
        state.acknowledged(ordinal, offset);
        let sink = Sink::new(config, Route { resolved, tls }, timing.attempt);
        Ok(Shipper {
            shared: self.shared.clone(),
            state,
            writer: self.writer.clone(),
            limit: sink.limit(),
            sink,
            cursor,
            timing,
            ordinal,
            offset,
            current: None,
            unsaved: false,
            saved: Instant::now(),
            failures: 0,
            spare: Vec::new(),
        })
    }
}

impl Shipper {
    /// Delivers for ever.
    pub async fn run(&mut self) {
        self.count_older_epochs();
        loop {
            let left = self.deliver_next().await.unwrap_or(0);
            if self.saved.elapsed() >= SAVE_EVERY {
                self.save().await;
            }
            if left == 0 {
                self.wait_for_data().await;
            }
            // What came during the last exchange waits for company too, as long as that is not much.
            if left < self.limit.bytes / 2 {
                tokio::time::sleep(self.timing.linger).await;
            }
        }
    }

    async fn wait_for_data(&mut self) {
        let state = self.state.clone();
        let holds = self.unsaved || self.spare.capacity() > 0;
        if !holds || tokio::time::timeout(SAVE_EVERY, state.new_data.notified()).await.is_err() {
            self.save().await;
            self.spare = Vec::new();
            self.sink.rest();
            state.new_data.notified().await;
        }
    }

    /// Delivers what is in the spool, for at most `deadline`, and returns how many bytes are left. The last thing before a
    /// process ends; what is left is delivered by the next process.
    pub async fn finish(&mut self, deadline: Duration) -> u64 {
        let all = async { while self.deliver_next().await.is_some() {} };
        let _ = tokio::time::timeout(deadline, all).await; // the rest is returned
        self.save().await;
        self.state.backlog_bytes(&self.shared)
    }

    /// Brings one batch to an end, however long it takes, and tells how much is left; `None` when it found nothing.
    async fn deliver_next(&mut self) -> Option<u64> {
        if self.current.is_none() {
            if let Some(left) = self.deliver_fresh().await {
                return Some(left);
            }
            self.current = Some(self.next_batch().await?);
        }
        self.deliver().await;
        let done = self.current.take()?;
        self.pass(done.bytes, done.events, done.own_epoch);
        Some(done.left)
    }

    /// Delivers what the writer has packed, where that begins at the cursor, and tells how much is left. It is tried once: what
    /// is not taken so is read from the spool, and sent for as long as it takes.
    async fn deliver_fresh(&mut self) -> Option<u64> {
        if !self.sink.takes_frames() {
            return None;
        }
        let here = self.data()?;
        let limit = BatchLimit {
            events: self.limit.events * BATCHES_IN_A_RUN,
            bytes: self.limit.bytes * BATCHES_IN_A_RUN as u64,
        };
        let run = self.shared.fresh.run(self.ordinal, self.offset, limit)?;
        self.state.oldest_ns.store(run.oldest_ns, Ordering::Release);
        match self.sink.send_run(&self.shared.epoch, &run).await? {
            Answer::Acknowledged => {
                self.taken(run.seqs.end - run.seqs.start);
                self.pass(run.stored, run.seqs.end - run.seqs.start, true);
                Some(here.left_after(run.stored))
            }
            Answer::Later { why, retry_after } => {
                self.wait_after(why, retry_after).await;
                None
            }
            Answer::TooLarge | Answer::Refused(_) | Answer::Partly { .. } => None,
        }
    }

    async fn next_batch(&mut self) -> Option<Current> {
        loop {
            let here = self.data()?;
            let Here { available, own_epoch, is_last, ref path, .. } = here;
            let (offset, all) = (self.offset, self.offset + available);
            let edge = self.shared.fresh.next_edge(self.ordinal, offset).filter(|_| self.sink.takes_frames());
            let end = edge.map_or(all, |edge| edge.min(all));
            let (buffer, limit) = (std::mem::take(&mut self.spare), self.limit);
            let path = path.clone();
            let read =
                tokio::task::spawn_blocking(move || read_lines(&path, offset, end, limit, buffer)).await;
            match read.unwrap_or_else(|_| Err(io::Error::other("reading was interrupted"))) {
                Ok(Read { lines, events, stored }) => {
                    let left = here.left_after(stored);
                    // What is packed as one can be more than the receiver takes.
                    let parts = batch::within(&lines, limit).into_iter().rev().map(Part::new).collect();
                    return Some(Current { parts, bytes: stored, events, own_epoch, left });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && !is_last => {
                    tracing::error!(
                        sink = self.state.name,
                        "a segment of the audit spool was removed before it was delivered"
                    );
                    self.state.missed_segments.fetch_add(1, Ordering::Release);
                    self.acknowledge(all);
                }
                Err(error) => self.wait_after(format!("the spool cannot be read: {error}"), None).await,
            }
        }
    }

    /// Delivers every part of the current batch, one after the other.
    async fn deliver(&mut self) {
        loop {
            let Some(part) = self.current.as_ref().and_then(|current| current.parts.last().cloned()) else {
                return;
            };
            let oldest_ns = batch::time_ns(batch::first_line(&part.lines)).unwrap_or(0);
            self.state.oldest_ns.store(oldest_ns, Ordering::Release);
            match self.sink.send(&part.lines).await {
                Answer::Acknowledged => {
                    self.taken(part.events);
                    self.replace_part([]);
                    self.recycle(part.lines);
                }
                Answer::Later { why, retry_after } => self.wait_after(why, retry_after).await,
                Answer::TooLarge => match batch::halves(&part.lines) {
                    Some((first, second)) => {
                        // The next batches are made smaller at once: each would cost a transfer in vain.
                        let half = part.lines.len() as u64 / 2;
                        self.limit.bytes = half.clamp(LEAST_BATCH_BYTES, self.limit.bytes);
                        self.replace_part([second, first]);
                    }
                    None => self.set_aside(&part.lines, Refusal::TOO_LARGE).await,
                },
                Answer::Refused(refusal) => self.set_aside(&part.lines, refusal).await,
                Answer::Partly { refused, again, why } => self.divide(&part, refused, &again, why).await,
            }
        }
    }

    /// Puts `parts`, the next one last, in the place of the part that was sent.
    fn replace_part(&mut self, parts: impl IntoIterator<Item = Bytes>) {
        if let Some(current) = &mut self.current {
            current.parts.pop();
            current.parts.extend(parts.into_iter().map(Part::new));
        }
    }

    /// The receiver has taken `events`.
    fn taken(&mut self, events: u64) {
        if self.failures > 0 {
            tracing::info!(sink = self.state.name, "the audit sink takes events again");
        }
        self.failures = 0;
        *lock(&self.state.last_error) = None;
        if let Some(receipt) = self.sink.receipt_of(&self.shared.epoch) {
            *lock(&self.state.receipt) = Some(receipt);
        }
        self.state.acked.fetch_add(events, Ordering::Release);
        self.state.last_success.store(unix_ns() / 1_000_000_000, Ordering::Release);
    }

    fn recycle(&mut self, lines: Bytes) {
        if self.current.as_ref().is_some_and(|current| current.parts.is_empty()) {
            self.spare = lines.try_into_mut().map_or_else(|_| Vec::new(), Vec::from);
        }
    }

    /// `events` in the next `bytes` of the segment are behind the cursor.
    fn pass(&mut self, bytes: u64, events: u64, own_epoch: bool) {
        self.state.oldest_ns.store(0, Ordering::Release);
        self.state.passed(events, own_epoch);
        self.acknowledge(self.offset + bytes);
        self.state.takes_frames.store(self.sink.takes_frames(), Ordering::Release);
        self.shared.drop_taken();
    }

    fn acknowledge(&mut self, offset: u64) {
        self.offset = offset;
        self.unsaved = true;
        self.state.acknowledged(self.ordinal, offset);
    }

    /// Full jitter: a random part of an exponentially growing span, so that many sidecars do not come back at once.
    async fn wait_after(&mut self, why: String, retry_after: Option<Duration>) {
        if self.failures == 0 {
            tracing::warn!(
                sink = self.state.name,
                why,
                "the audit sink takes no events; they stay in the spool"
            );
        }
        *lock(&self.state.last_error) = Some(why);
        self.state.takes_frames.store(false, Ordering::Release); // nothing is kept in vain while it is down
        self.state.retries.fetch_add(1, Ordering::Release);
        let span =
            self.timing.retry_min.saturating_mul(1 << self.failures.min(16)).min(self.timing.retry_max);
        self.failures = self.failures.saturating_add(1);
        let asked = retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
        tokio::time::sleep(span.mul_f64(fastrand::f64()).max(asked)).await;
    }
}
