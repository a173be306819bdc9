//! The `elasticsearch` sink: `_bulk` with `create`, for Elasticsearch and OpenSearch.
//!
//! The document's id is the event's, so an event that is sent twice is stored once and answered 409, which is success.
//! Each event has a status of its own.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::StatusCode;
use serde::Deserialize;

use super::batch;
use super::sink::{Answer, Refusal, judge, passes, unanswered, without};
use super::sink_http::{Client, Reply};

const NDJSON: &str = "application/x-ndjson";

/// A cluster.
pub(crate) struct Elasticsearch {
    pub(super) client: Client,
    path: String,
}

impl Elasticsearch {
    pub(crate) fn new(client: Client, index: &str) -> Self {
        // Of the answer only what is looked at: 2048 items with their shards and versions would be half a MiB.
        Self { client, path: format!("/{index}/_bulk?filter_path=errors,items.*.status") }
    }

    pub(crate) async fn send(&mut self, batch: &Bytes) -> Answer {
        let bulk = match bulk(batch) {
            Ok(bulk) => bulk,
            Err(refused) => return without(batch, &refused, Refusal::UNREADABLE),
        };
        let reply = self.client.post(&self.path, NDJSON, None, bulk).await;
        reply.map_or_else(unanswered, |reply| verdict(&reply, batch::lines(batch).count()))
    }
}

/// The body of a bulk request; or the numbers of the lines that are no events.
fn bulk(batch: &[u8]) -> Result<Bytes, Vec<usize>> {
    let mut damaged = Vec::new();
    let mut body = BytesMut::with_capacity(batch.len() + batch.len() / 8);
    for (number, line) in batch::lines(batch).enumerate() {
        let line = &batch[line];
        match batch::event_id(line) {
            // An id is hexadecimal digits, '-' and ':': nothing in it is to be escaped.
            Some(id) => {
                body.put_slice(format!("{{\"create\":{{\"_id\":\"{id}\"}}}}\n").as_bytes());
                body.put_slice(line);
            }
            None => damaged.push(number),
        }
    }
    if damaged.is_empty() { Ok(body.freeze()) } else { Err(damaged) }
}

#[derive(Deserialize)]
struct BulkReply {
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    create: Created,
}

#[derive(Deserialize)]
struct Created {
    status: u16,
}

fn verdict(reply: &Reply, sent: usize) -> Answer {
    if !reply.status.is_success() {
        return judge(reply);
    }
    let items = serde_json::from_slice(&reply.body).map(|reply: BulkReply| reply.items).unwrap_or_default();
    if items.len() != sent {
        let why = "the receiver answered 200 without a status for each event: is it Elasticsearch?";
        return unanswered(why.into());
    }
    let (mut refused, mut again) = (Vec::new(), Vec::new());
    let mut first_bad = None;
    for (number, item) in items.iter().enumerate() {
        let Ok(status) = StatusCode::from_u16(item.create.status) else {
            return unanswered("the receiver gave an event a status that is none".into());
        };
        match status.as_u16() {
            200..300 | 409 => continue,
            400..500 if !passes(status) => refused.push((number, Refusal::refused(status))),
            _ => {
                again.push(number);
                first_bad.get_or_insert(status);
            }
        }
    }
    if refused.is_empty() && again.is_empty() {
        return Answer::Acknowledged;
    }
    let why = first_bad.map(|status| format!("the receiver answered {status} to some events"));
    Answer::Partly { refused, again, why }
}
