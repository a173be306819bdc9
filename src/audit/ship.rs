//! The shipper: takes events from the spool to one sink, in order, at least once.
//!
//! Runs on the control thread and reads the files that the writer wrote, so a slow or dead collector costs the workers
//! nothing. Owns the cursor, the pace and the quarantine. A batch leaves the front of the queue in two ways only:
//! acknowledged, or set aside in `quarantine/` with an event that says so.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::cursor::{CursorFile, Place};
use super::encode::TrailEvent;
use super::quarantine;
use super::sink_phiward::{Answer, Client};
use super::spool::{Shared, SinkState, lock};
use super::writer::Message;
use super::{Audit, AuditError, SinkConfig};

/// The most events in one batch.
pub(crate) const MAX_BATCH_EVENTS: usize = 2048;
/// The most bytes in one batch.
const MAX_BATCH_BYTES: u64 = 1024 * 1024;
/// How often the cursor is saved while there is more to send. Being behind costs duplicates after a crash, nothing else.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// The longest that a collector may ask to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// How a shipper paces itself.
#[derive(Debug, Clone, Copy)]
pub struct ShipTiming {
    /// How long the first new event waits for company. Without it every event would cost a request of its own.
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
            linger: Duration::from_millis(20),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            attempt: Duration::from_secs(30),
        }
    }
}

/// Delivers to one sink. Run it on the control thread; dropping [`Shipper::run`] at any point loses nothing.
pub struct Shipper {
    shared: Arc<Shared>,
    sink: Arc<SinkState>,
    writer: Sender<Message>,
    client: Client,
    cursor: CursorFile,
    timing: ShipTiming,
    /// The segment that is read, by its ordinal, and how far it was acknowledged.
    ordinal: u64,
    offset: u64,
    unsaved: bool,
    saved: Instant,
    failures: u32,
    /// The memory of the last batch, while one follows another.
    spare: Vec<u8>,
}

/// A part of one segment, made of whole lines.
struct SpoolBatch {
    bytes: Bytes,
    events: u64,
    /// Whether more is there already.
    more: bool,
}

impl Audit {
    /// The shipper of a sink that the trail was started with.
    ///
    /// `resolved` gives the addresses of the endpoint's host and `tls` the newest client configuration, whose verifier
    /// checks the collector's SPIFFE ID (needed for an `https` endpoint).
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
        let sink = self.shared.sinks.iter().find(|sink| sink.name == config.name);
        let sink = sink.ok_or_else(|| AuditError::SinkName { name: config.name.clone() })?.clone();
        let dir = &self.shared.config.dir;
        let (cursor, place) = CursorFile::open(dir, &sink.name)
            .map_err(|error| AuditError::Spool { path: dir.clone(), error })?;
        let (ordinal, offset) = find(&self.shared, place);
        sink.acknowledged(ordinal, offset);
        Ok(Shipper {
            shared: self.shared.clone(),
            sink,
            writer: self.writer.clone(),
            client: Client::new(config.endpoint.clone(), resolved, tls),
            cursor,
            timing,
            ordinal,
            offset,
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
        loop {
            let more = match self.next_batch().await {
                Some(batch) => {
                    self.deliver(&batch).await;
                    if batch.more {
                        self.spare = batch.bytes.try_into_mut().map_or_else(|_| Vec::new(), Vec::from);
                    }
                    batch.more
                }
                None => false,
            };
            if self.saved.elapsed() >= SAVE_EVERY {
                self.save().await;
            }
            if !more {
                self.wait_for_data().await;
            }
        }
    }

    async fn wait_for_data(&mut self) {
        let sink = self.sink.clone();
        if self.unsaved && tokio::time::timeout(SAVE_EVERY, sink.new_data.notified()).await.is_err() {
            self.save().await;
        }
        if !self.unsaved {
            sink.new_data.notified().await;
        }
        tokio::time::sleep(self.timing.linger).await;
    }

    /// Delivers what is in the spool, for at most `deadline`, and returns how many bytes are left. The last thing before a
    /// process ends; what is left is delivered by the next process.
    pub async fn finish(&mut self, deadline: Duration) -> u64 {
        let all = async {
            while let Some(batch) = self.next_batch().await {
                self.deliver(&batch).await;
            }
        };
        let _ = tokio::time::timeout(deadline, all).await; // the rest is returned
        self.save().await;
        self.shared.backlog(&self.sink)
    }

    async fn next_batch(&mut self) -> Option<SpoolBatch> {
        loop {
            let (path, available, is_last) = self.here()?;
            if available == 0 && is_last {
                return None;
            }
            if available == 0 {
                self.ordinal += 1;
                self.acknowledge(0);
                let _ = self.writer.send(Message::Delivered); // a closed trail removes nothing
                continue;
            }
            let (offset, wanted) = (self.offset, available.min(MAX_BATCH_BYTES));
            let buffer = std::mem::take(&mut self.spare);
            let read = tokio::task::spawn_blocking(move || read_lines(&path, offset, wanted, buffer)).await;
            match read.unwrap_or_else(|_| Err(io::Error::other("reading was interrupted"))) {
                Ok((bytes, events)) => {
                    let more = !is_last || available > bytes.len() as u64;
                    return Some(SpoolBatch { bytes, events, more });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && !is_last => {
                    tracing::error!(
                        sink = self.sink.name,
                        "a segment of the audit spool was removed before it was delivered"
                    );
                    self.acknowledge(offset + available);
                }
                Err(error) => self.wait_after(format!("the spool cannot be read: {error}"), None).await,
            }
        }
    }

    /// The segment at the cursor, how many bytes of it are not acknowledged, and whether it is the newest.
    fn here(&mut self) -> Option<(PathBuf, u64, bool)> {
        let tail = self.shared.tail();
        let first = tail.segments.front()?.ordinal;
        if self.ordinal < first {
            // Only a sink that is not required can be behind a segment that was removed.
            (self.ordinal, self.offset) = (first, 0);
        }
        let at = self.ordinal - first;
        let segment = tail.segments.get(usize::try_from(at).ok()?)?;
        let is_last = at as usize + 1 == tail.segments.len();
        let path = self.shared.config.dir.join(&segment.name);
        Some((path, segment.bytes.saturating_sub(self.offset), is_last))
    }

    /// Brings one batch to an end, however long it takes.
    async fn deliver(&mut self, batch: &SpoolBatch) {
        loop {
            let attempt =
                tokio::time::timeout(self.timing.attempt, self.client.post(batch.bytes.clone())).await;
            match attempt {
                Ok(Answer::Acknowledged) => break,
                Ok(Answer::Refused(status)) => match self.quarantine(batch, status).await {
                    Ok(()) => break,
                    Err(error) => {
                        self.wait_after(format!("a batch cannot be set aside: {error}"), None).await
                    }
                },
                Ok(Answer::Later { why, retry_after }) => self.wait_after(why, retry_after).await,
                Err(_) => self.wait_after("the collector did not answer in time".into(), None).await,
            }
        }
        if self.failures > 0 {
            tracing::info!(sink = self.sink.name, "the audit sink takes events again");
            self.failures = 0;
            *lock(&self.sink.last_error) = None;
        }
        self.sink.events.fetch_add(batch.events, Ordering::Release);
        self.acknowledge(self.offset + batch.bytes.len() as u64);
    }

    fn acknowledge(&mut self, offset: u64) {
        self.offset = offset;
        self.unsaved = true;
        self.sink.acknowledged(self.ordinal, offset);
    }

    /// Full jitter: a random part of an exponentially growing span, so that many sidecars do not come back at once.
    async fn wait_after(&mut self, why: String, retry_after: Option<Duration>) {
        if self.failures == 0 {
            tracing::warn!(
                sink = self.sink.name,
                why,
                "the audit sink takes no events; they stay in the spool"
            );
        }
        *lock(&self.sink.last_error) = Some(why);
        let span =
            self.timing.retry_min.saturating_mul(1 << self.failures.min(16)).min(self.timing.retry_max);
        self.failures = self.failures.saturating_add(1);
        let asked = retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
        tokio::time::sleep(span.mul_f64(fastrand::f64()).max(asked)).await;
    }

    async fn quarantine(&self, batch: &SpoolBatch, status: u16) -> io::Result<()> {
        let (dir, sink, bytes) =
            (self.shared.config.dir.clone(), self.sink.name.clone(), batch.bytes.clone());
        let kept = tokio::task::spawn_blocking(move || quarantine::keep(&dir, &sink, &bytes)).await;
        let kept = kept.map_err(io::Error::other)??;
        tracing::error!(sink = self.sink.name, status, events = batch.events, path = %kept.path.display(),
            "the audit sink refuses a batch for good; it was set aside");
        self.shared.free.fetch_sub(batch.bytes.len() as i64, Ordering::AcqRel);
        self.sink.quarantined.fetch_add(batch.events, Ordering::Release);
        // A sink that refuses everything refuses these events too: without this they would breed for ever.
        if !kept.only_quarantine_events {
            let event = TrailEvent::Quarantine {
                sink: self.sink.name.clone(),
                status,
                first_id: kept.first_id,
                last_id: kept.last_id,
                events: batch.events,
            };
            let _ = self.writer.send(Message::Trail(Box::new(event))); // a closed trail has its file in quarantine/
        }
        Ok(())
    }

    async fn save(&mut self) {
        if !std::mem::take(&mut self.unsaved) {
            return;
        }
        let name = {
            let tail = self.shared.tail();
            tail.segments
                .iter()
                .find(|segment| segment.ordinal == self.ordinal)
                .map(|segment| segment.name.clone())
        };
        let Some(segment) = name else { return };
        let (cursor, place) = (self.cursor.clone(), Place { segment, offset: self.offset });
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || cursor.save(&place)).await {
            tracing::warn!(sink = self.sink.name, %error, "the cursor of an audit sink cannot be saved");
        }
        self.saved = Instant::now();
    }
}

/// Where a cursor points among the segments that are there: when its own is gone, at the next one.
fn find(shared: &Shared, place: Option<Place>) -> (u64, u64) {
    let tail = shared.tail();
    let first = tail.segments.front().map_or(0, |segment| segment.ordinal);
    let Some(place) = place else { return (first, 0) };
    match tail.segments.iter().find(|segment| segment.name >= place.segment) {
        Some(segment) if segment.name == place.segment => (segment.ordinal, place.offset.min(segment.bytes)),
        Some(segment) => (segment.ordinal, 0),
        None => (first, 0),
    }
}

/// Reads whole lines into `buffer`: at most `wanted` bytes and [`MAX_BATCH_EVENTS`] lines.
fn read_lines(path: &PathBuf, offset: u64, wanted: u64, mut buffer: Vec<u8>) -> io::Result<(Bytes, u64)> {
    buffer.clear();
    buffer.reserve(wanted as usize); // at most 1 MiB
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    if file.take(wanted).read_to_end(&mut buffer)? as u64 != wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut events = 0;
    let mut end = 0;
    for at in memchr::memchr_iter(b'\n', &buffer).take(MAX_BATCH_EVENTS) {
        end = at + 1;
        events += 1;
    }
    if end == 0 {
        return Err(io::Error::other(format!(
            "{}: no record ends within 1 MiB after byte {offset}",
            path.display()
        )));
    }
    buffer.truncate(end);
    Ok((Bytes::from(buffer), events))
}
