//! The `phiward` and `ndjson` sinks: newline-delimited JSON by HTTP POST; a 2xx is the acknowledgement.
//!
//! Events go out as they stand in the spool, byte for byte. Each batch names itself, so that a receiver which has stored it
//! and whose answer was lost can know it again.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::batch;
use super::receipt::Receipt;
use super::sink::{Answer, judge, unanswered};
use super::sink_http::Client;

const BATCH: HeaderName = HeaderName::from_static("x-phiward-batch");

/// A receiver of newline-delimited JSON.
pub(crate) struct Ndjson {
    pub(super) client: Client,
    path: &'static str,
    /// Of the last answer; only a phiward collector gives some.
    receipts: Vec<String>,
}

impl Ndjson {
    pub(crate) fn new(client: Client, path: &'static str) -> Self {
        Self { client, path, receipts: Vec::new() }
    }

    pub(crate) async fn send(&mut self, batch: &Bytes) -> Answer {
        // Hexadecimal digits, ':' and '-': always the value of a header.
        let id = HeaderValue::try_from(batch::id(batch)).ok().map(|id| (BATCH, id));
        let reply = self.client.post(self.path, "application/x-ndjson", id, batch.clone()).await;
        self.receipts.clear();
        match reply {
            Ok(reply) => {
                self.receipts.extend(receipts_in(&reply.body));
                judge(&reply)
            }
            Err(why) => unanswered(why),
        }
    }

    /// The receipt for the newest checkpoint of `epoch` in the last answer.
    pub(crate) fn receipt_of(&self, epoch: &str) -> Option<String> {
        let of_epoch = |text: &String| {
            let checkpoint = Receipt::parse(text)?.checkpoint;
            checkpoint.origin.rsplit('/').next().filter(|last| *last == epoch)?;
            Some((checkpoint.size, text.clone()))
        };
        self.receipts.iter().filter_map(of_epoch).max().map(|(_, receipt)| receipt)
    }
}

/// What a phiward collector has signed for. Other receivers may answer anything.
fn receipts_in(answer: &[u8]) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Taken {
        #[serde(default)]
        receipts: Vec<String>,
    }
    serde_json::from_slice(answer).map_or_else(|_| Vec::new(), |taken: Taken| taken.receipts)
}
