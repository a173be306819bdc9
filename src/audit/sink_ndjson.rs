//! The `phiward` and `ndjson` sinks: newline-delimited JSON by HTTP POST; a 2xx is the acknowledgement.
//!
//! Events go out as they stand in the spool, byte for byte. Each batch names itself, so that a receiver which has stored it
//! and whose answer was lost can know it again.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::batch;
use super::fresh::Run;
use super::receipt::Receipt;
use super::sink::{Answer, judge, unanswered};
use super::sink_http::{Client, Reply};

const BATCH: HeaderName = HeaderName::from_static("x-phiward-batch");
const TYPE: &str = "application/x-ndjson";

/// A receiver of newline-delimited JSON.
pub(crate) struct Ndjson {
    pub(super) client: Client,
    path: &'static str,
    /// phiward's own collector, which reads a body of several frames to its end. Other receivers may stop after the first.
    is_collector: bool,
    /// Of the last answer; only a phiward collector gives some.
    receipts: Vec<String>,
}

impl Ndjson {
    /// phiward's own collector.
    pub(crate) fn collector(client: Client) -> Self {
        Self { is_collector: true, ..Self::receiver(client, "/v1/events") }
    }

    /// Any receiver.
    pub(crate) fn receiver(client: Client, path: &'static str) -> Self {
        Self { client, path, is_collector: false, receipts: Vec::new() }
    }

    pub(crate) async fn send(&mut self, batch: &Bytes) -> Answer {
        let id = batch_header(batch::id(batch));
        let reply = self.client.post(self.path, TYPE, id, batch.clone()).await;
        self.judged(reply)
    }

    /// Whether [`Ndjson::send_run`] is worth a try.
    pub(crate) fn takes_frames(&self) -> bool {
        self.is_collector && self.client.takes_zstd()
    }

    /// Sends what the writer has coded; `None` where nothing was sent.
    pub(crate) async fn send_run(&mut self, epoch: &str, run: &Run) -> Option<Answer> {
        let id = batch_header(batch::id_of(epoch, &run.seqs));
        let reply = self.client.post_coded(self.path, TYPE, id, run.body.clone()).await;
        Some(self.judged(reply.transpose()?))
    }

    fn judged(&mut self, reply: Result<Reply, String>) -> Answer {
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

/// Hexadecimal digits, ':' and '-': always the value of a header.
fn batch_header(id: String) -> Option<(HeaderName, HeaderValue)> {
    HeaderValue::try_from(id).ok().map(|id| (BATCH, id))
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
