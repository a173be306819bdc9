//! The `phiward` and `ndjson` sinks: newline-delimited JSON by HTTP POST; a 2xx is the acknowledgement.
//!
//! Events go out as they stand in the spool, byte for byte. Each batch names itself, so that a receiver which has stored it
//! and whose answer was lost can know it again.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::batch;
use super::sink::{Answer, judge, unanswered};
use super::sink_http::Client;

const BATCH: HeaderName = HeaderName::from_static("x-phiward-batch");

/// A receiver of newline-delimited JSON.
pub(crate) struct Ndjson {
    client: Client,
    path: &'static str,
}

impl Ndjson {
    pub(crate) fn new(client: Client, path: &'static str) -> Self {
        Self { client, path }
    }

    pub(crate) async fn send(&mut self, batch: &Bytes) -> Answer {
        // Hexadecimal digits, ':' and '-': always the value of a header.
        let id = HeaderValue::try_from(batch::id(batch)).ok().map(|id| (BATCH, id));
        let reply = self.client.post(self.path, "application/x-ndjson", id, batch.clone()).await;
        reply.map_or_else(unanswered, |reply| judge(&reply))
    }
}
