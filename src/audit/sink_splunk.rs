//! The `splunk_hec` sink: Splunk's HTTP Event Collector, acknowledged by its indexers.
//!
//! A 200 says that the collector has taken the events into its memory, and not that they are stored. So each batch goes out
//! on a channel, and counts once an indexer has acknowledged it; what is not acknowledged in time is sent again.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::time::Instant;

use super::batch;
use super::json;
use super::sink::{Answer, BatchLimit, HecOptions, Refusal, judge, later, unanswered, without};
use super::sink_http::{Client, Reply};

const EVENTS: &str = "/services/collector/event";
const ACKS: &str = "/services/collector/ack";
const CHANNEL: HeaderName = HeaderName::from_static("x-splunk-request-channel");
const JSON: &str = "application/json";
/// The first question comes soon, and each next one after twice the time, up to this: an indexer may take minutes.
const ASK_FIRST: Duration = Duration::from_millis(100);
const ASK_EVERY: Duration = Duration::from_secs(5);

/// A HTTP Event Collector.
pub(crate) struct Splunk {
    pub(super) client: Client,
    options: HecOptions,
    channel: HeaderValue,
    metadata: String,
}

impl Splunk {
    pub(crate) fn new(client: Client, options: HecOptions) -> Self {
        let mut metadata = Vec::new();
        if let Some(index) = &options.index {
            metadata.extend_from_slice(b",\"index\":");
            json::string(&mut metadata, index.as_bytes());
        }
        metadata.extend_from_slice(b",\"sourcetype\":");
        json::string(&mut metadata, options.sourcetype.as_bytes());
        Self {
            client,
            options,
            channel: channel(),
            metadata: String::from_utf8_lossy(&metadata).into_owned(),
        }
    }

    /// More than others take at once, because the next batch waits until an indexer has acknowledged this one.
    pub(crate) fn limit(&self) -> BatchLimit {
        BatchLimit { events: 8192, bytes: 4 * 1024 * 1024 }
    }

    pub(crate) async fn send(&mut self, batch: &Bytes) -> Answer {
        let body = match self.body(batch) {
            Ok(body) => body,
            Err(refused) => return without(batch, &refused, Refusal::UNREADABLE),
        };
        let reply = match self.post(EVENTS, body).await {
            Ok(reply) => reply,
            Err(why) => return unanswered(why),
        };
        let said: Said = serde_json::from_slice(&reply.body).unwrap_or_default();
        match (reply.status.as_u16(), said.ack_id) {
            (200..300, _) if !self.options.indexer_ack => Answer::Acknowledged,
            (200..300, Some(ack)) => self.wait_for_indexer(ack).await,
            (200..300, None) => unanswered(
                "the collector took the events and promises no acknowledgement: enable indexer acknowledgement \
                 for the token, or set `indexer_ack: false`"
                    .into(),
            ),
            (400, _) => refusal(batch, &reply, &said),
            _ => judge(&reply),
        }
    }

    async fn post(&mut self, path: &str, body: Bytes) -> Result<Reply, String> {
        self.client.post(path, JSON, Some((CHANNEL, self.channel.clone())), body).await
    }

    /// Each event in the collector's envelope, one after the other; or the numbers of the lines that are no events.
    fn body(&self, batch: &[u8]) -> Result<Bytes, Vec<usize>> {
        let mut damaged = Vec::new();
        let mut body = BytesMut::with_capacity(batch.len() + batch.len() / 8);
        for (number, line) in batch::lines(batch).enumerate() {
            let line = &batch[line.start..line.end - 1];
            match batch::event_id(line).and_then(|_| batch::time_ns(line)) {
                Some(ns) => {
                    let (seconds, millis) = (ns / 1_000_000_000, ns / 1_000_000 % 1000);
                    body.put_slice(format!("{{\"time\":{seconds}.{millis:03}").as_bytes());
                    body.put_slice(self.metadata.as_bytes());
                    body.put_slice(b",\"event\":");
                    body.put_slice(line);
                    body.put_slice(b"}\n");
                }
                None => damaged.push(number),
            }
        }
        if damaged.is_empty() { Ok(body.freeze()) } else { Err(damaged) }
    }

    async fn wait_for_indexer(&mut self, ack: u64) -> Answer {
        let until = Instant::now() + self.options.ack_timeout;
        let question = Bytes::from(format!("{{\"acks\":[{ack}]}}"));
        let mut pause = ASK_FIRST;
        let mut why = format!("no indexer acknowledged within {} s", self.options.ack_timeout.as_secs());
        loop {
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(ASK_EVERY);
            match self.post(ACKS, question.clone()).await {
                Ok(reply) if reply.status.is_success() => {
                    let said: Acks = serde_json::from_slice(&reply.body).unwrap_or_default();
                    if said.acks.get(&ack.to_string()) == Some(&true) {
                        return Answer::Acknowledged;
                    }
                }
                Ok(reply) => {
                    why = format!(
                        "the receiver answered {} to the question for an acknowledgement",
                        reply.status
                    )
                }
                Err(error) => why = error,
            }
            if Instant::now() >= until {
                return unanswered(why);
            }
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Said {
    code: Option<u32>,
    #[serde(rename = "ackId")]
    ack_id: Option<u64>,
    #[serde(rename = "invalid-event-number")]
    invalid_event: Option<usize>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Acks {
    acks: HashMap<String, bool>,
}

/// A 400. Its code tells what is wrong: the events (6 invalid data format, 12 and 13 no event, 15 indexed fields), or the
/// token, the channel or the index, which somebody must mend.
fn refusal(batch: &Bytes, reply: &Reply, said: &Said) -> Answer {
    match (said.code, said.invalid_event) {
        // What stands before the bad event was taken and what follows was not, so all the others are sent once more.
        (Some(6 | 12 | 13 | 15), Some(number)) if number < batch::lines(batch).count() => {
            without(batch, &[number], Refusal::refused(reply.status))
        }
        (None | Some(6 | 12 | 13 | 15), _) => Answer::Refused(Refusal::refused(reply.status)),
        (Some(code), _) => match later(reply) {
            Answer::Later { why, retry_after } => {
                let why =
                    format!("{why}, code {code}: look at the token, its index and its channel settings");
                Answer::Later { why, retry_after }
            }
            other => other,
        },
    }
}

/// A channel of this process alone: a random UUID (RFC 9562, version 4).
fn channel() -> HeaderValue {
    let random = fastrand::u128(..);
    let bits = random & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    let text = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("0")) // hexadecimal digits and '-'
}
