//! A sink: where events are sent, in which form, and what the receiver says became of them.
//!
//! Owns the words between the shipper and the receivers: a batch goes in, an [`Answer`] comes out. Each form has a file of
//! its own. None of them keeps events, tries again or decides what is given up: that is the shipper's alone.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::batch;
use super::fresh::Run;
use super::secret::Credentials;
use super::sink_elasticsearch::Elasticsearch;
use super::sink_http::{Client, ExtraHeader, Reply, Route};
use super::sink_ndjson::Ndjson;
use super::sink_otlp::Otlp;
use super::sink_splunk::Splunk;

/// The most events, and bytes of events, in one batch.
const USUAL_BATCH: BatchLimit = BatchLimit { events: 2048, bytes: 1024 * 1024 };

/// Where delivered events go.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// Names the cursor file; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// What is spoken.
    pub kind: SinkKind,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// What stands before every path, such as `/ingest`; empty, or beginning and not ending with `/`.
    pub prefix: String,
    /// How we show who we are, where the certificate does not.
    pub credentials: Option<Credentials>,
    /// Sent with every request.
    pub headers: Vec<ExtraHeader>,
    /// Whether segments are kept until this sink has acknowledged them. When no sink is required, all of them count.
    pub required: bool,
}

/// A receiver's address as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://` rather than `http://`.
    pub https: bool,
    /// The host name or address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// What a sink speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkKind {
    /// The embedded collector: newline-delimited JSON to `/v1/events`.
    Phiward,
    /// Newline-delimited JSON to the configured path.
    Ndjson,
    /// OpenTelemetry's protocol: logs as protobuf over HTTP.
    Otlp,
    /// Splunk's HTTP Event Collector.
    SplunkHec(HecOptions),
    /// Elasticsearch's and OpenSearch's bulk interface.
    Elasticsearch {
        /// The index that events are created in.
        index: String,
    },
}

/// What the HTTP Event Collector is told beside the events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HecOptions {
    /// The index; the token's own when absent.
    pub index: Option<String>,
    /// The source type.
    pub sourcetype: String,
    /// Whether an event counts as delivered once an indexer has it, and not when the collector has taken it.
    pub indexer_ack: bool,
    /// How long an indexer may take to say so before the events are sent again.
    pub ack_timeout: Duration,
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The receiver has it.
    Acknowledged,
    /// It did not arrive, or may be taken later.
    Later {
        /// What happened, for the operator.
        why: String,
        /// How long the receiver asked to wait.
        retry_after: Option<Duration>,
    },
    /// It may be taken in smaller pieces.
    TooLarge,
    /// The receiver will never take it.
    Refused(Refusal),
    /// Some lines of it, by their number from 0, were not taken; all others were.
    Partly {
        /// Never to be taken.
        refused: Vec<(usize, Refusal)>,
        /// To be sent again.
        again: Vec<usize>,
        /// Why they are sent again, for the operator; absent when nothing speaks against doing so at once.
        why: Option<String>,
    },
}

/// Why events were refused for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refusal {
    /// A code from a closed list.
    pub(crate) reason: &'static str,
    /// The HTTP status; absent when nothing was sent.
    pub(crate) status: Option<u16>,
}

impl Refusal {
    /// The receiver said so.
    pub(crate) fn refused(status: StatusCode) -> Self {
        Self { reason: "refused", status: Some(status.as_u16()) }
    }

    /// Not even one event alone is small enough.
    pub(crate) const TOO_LARGE: Self = Self { reason: "too_large", status: Some(413) };
    /// The receiver dropped some events of a batch, and did not say which (OTLP).
    pub(crate) const PARTIAL_SUCCESS: Self = Self { reason: "partial_success", status: Some(200) };
    /// The line in the spool is no event any more, so that it cannot be put in the receiver's form.
    pub(crate) const UNREADABLE: Self = Self { reason: "unreadable", status: None };
}

/// How much is sent at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimit {
    pub(crate) events: usize,
    pub(crate) bytes: u64,
}

/// A receiver in one of the forms.
pub(crate) enum Sink {
    Ndjson(Ndjson),
    Otlp(Otlp),
    Splunk(Box<Splunk>),
    Elasticsearch(Elasticsearch),
}

impl Sink {
    /// A sink whose exchanges take at most `attempt` each.
    pub(crate) fn new(config: &SinkConfig, route: Route, attempt: Duration) -> Self {
        let client = Client::new(config, route, attempt);
        match &config.kind {
            SinkKind::Phiward => Self::Ndjson(Ndjson::collector(client)),
            SinkKind::Ndjson => {
                Self::Ndjson(Ndjson::receiver(client, if config.prefix.is_empty() { "/" } else { "" }))
            }
            SinkKind::Otlp => Self::Otlp(Otlp::new(client)),
            SinkKind::SplunkHec(options) => Self::Splunk(Box::new(Splunk::new(client, options.clone()))),
            SinkKind::Elasticsearch { index } => Self::Elasticsearch(Elasticsearch::new(client, index)),
        }
    }

    /// Sends whole lines and waits for what became of them.
    pub(crate) async fn send(&mut self, batch: &Bytes) -> Answer {
        match self {
            Self::Ndjson(sink) => sink.send(batch).await,
            Self::Otlp(sink) => sink.send(batch).await,
            Self::Splunk(sink) => sink.send(batch).await,
            Self::Elasticsearch(sink) => sink.send(batch).await,
        }
    }

    /// Whether [`Sink::send_run`] is worth a try.
    pub(crate) fn takes_frames(&self) -> bool {
        matches!(self, Self::Ndjson(sink) if sink.takes_frames())
    }

    /// Sends what the writer has coded; `None` where nothing was sent.
    pub(crate) async fn send_run(&mut self, epoch: &str, run: &Run) -> Option<Answer> {
        match self {
            Self::Ndjson(sink) => sink.send_run(epoch, run).await,
            Self::Otlp(_) | Self::Splunk(_) | Self::Elasticsearch(_) => None,
        }
    }

    /// Gives back memory that is kept for the next batch: none comes for a while.
    pub(crate) fn rest(&mut self) {
        match self {
            Self::Ndjson(sink) => sink.client.rest(),
            Self::Otlp(sink) => sink.client.rest(),
            Self::Splunk(sink) => sink.client.rest(),
            Self::Elasticsearch(sink) => sink.client.rest(),
        }
    }

    /// What the receiver of the last batch has signed for, of the checkpoints of `epoch`.
    pub(crate) fn receipt_of(&self, epoch: &str) -> Option<String> {
        match self {
            Self::Ndjson(sink) => sink.receipt_of(epoch),
            Self::Otlp(_) | Self::Splunk(_) | Self::Elasticsearch(_) => None,
        }
    }

    pub(crate) fn limit(&self) -> BatchLimit {
        match self {
            Self::Splunk(sink) => sink.limit(),
            _ => USUAL_BATCH,
        }
    }
}

impl SinkKind {
    /// The word of the configuration.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Phiward => "phiward",
            Self::Ndjson => "ndjson",
            Self::Otlp => "otlp",
            Self::SplunkHec(_) => "splunk_hec",
            Self::Elasticsearch { .. } => "elasticsearch",
        }
    }
}

/// What a status means for a batch, where nothing else says more.
pub(crate) fn judge(reply: &Reply) -> Answer {
    match reply.status.as_u16() {
        200..300 => Answer::Acknowledged,
        413 => Answer::TooLarge,
        _ if is_refusal(reply.status) => Answer::Refused(Refusal::refused(reply.status)),
        _ => later(reply),
    }
}

/// Whether a status is of the events, and will be the same for them the next time.
pub(crate) fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() && status != StatusCode::PAYLOAD_TOO_LARGE && !passes(status)
}

/// Whether a 4xx says something of the moment, the sender or the address, and nothing of the events. A token that has run
/// out must not send a whole trail into quarantine: it waits in the spool until somebody mends the configuration.
pub(crate) fn passes(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401 | 403 | 404 | 405 | 407 | 408 | 421 | 425 | 429)
}

/// The receiver's wish to be asked again.
pub(crate) fn later(reply: &Reply) -> Answer {
    let advice = match reply.status.as_u16() {
        300..=399 => ": redirects are not followed, give the endpoint itself",
        401 | 403 | 407 => ": it does not accept our credentials; the files are read again for each attempt",
        404 | 405 => ": nothing takes events at this path",
        _ => "",
    };
    let why = format!("the receiver answered {}{advice}", reply.status);
    Answer::Later { why, retry_after: reply.retry_after }
}

/// What did not get an answer at all.
pub(crate) fn unanswered(why: String) -> Answer {
    Answer::Later { why, retry_after: None }
}

/// These lines are never to be taken; all others are sent again at once.
pub(crate) fn without(batch: &[u8], lines: &[usize], refusal: Refusal) -> Answer {
    Answer::Partly {
        again: batch::others(batch, lines),
        refused: lines.iter().map(|line| (*line, refusal)).collect(),
        why: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16) -> Reply {
        let retry_after = Some(Duration::from_secs(3));
        Reply { status: StatusCode::from_u16(status).unwrap(), retry_after, body: Bytes::new() }
    }

    /// If this fails, a batch is dropped on a passing error, sent for ever against a refusal, or a trail ends in quarantine
    /// because a token has run out.
    #[test]
    fn statuses_mean_what_they_say() {
        for status in [200, 202, 204] {
            assert_eq!(judge(&reply(status)), Answer::Acknowledged);
        }
        for status in [400, 409, 410, 415, 422] {
            let refusal = Refusal { reason: "refused", status: Some(status) };
            assert_eq!(judge(&reply(status)), Answer::Refused(refusal));
        }
        assert_eq!(judge(&reply(413)), Answer::TooLarge);
        for status in [301, 401, 403, 404, 405, 407, 408, 421, 425, 429, 500, 502, 503, 507] {
            let answer = judge(&reply(status));
            assert!(
                matches!(answer, Answer::Later { retry_after: Some(wait), .. } if wait.as_secs() == 3),
                "{status}"
            );
        }
    }
}
