//! The `phiward` sink: newline-delimited JSON by HTTP POST; a 2xx is the acknowledgement.
//!
//! Owns one connection to one collector. It says what became of a batch and never tries again by itself: that is the
//! shipper's. Names are resolved and TLS is configured by others, who hand in the newest of both.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{IpAddr, Ipv4Addr, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::Endpoint;

/// The most that is read of an answer.
const MAX_ANSWER: usize = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The collector has it.
    Acknowledged,
    /// The collector will never take it.
    Refused(u16),
    /// It did not arrive, or may be taken later.
    Later {
        /// What happened, for the operator.
        why: String,
        /// How long the collector asked to wait.
        retry_after: Option<Duration>,
    },
}

/// A connection to a collector, made when it is needed.
pub(crate) struct Client {
    endpoint: Endpoint,
    resolved: watch::Receiver<Arc<[SocketAddr]>>,
    tls: Option<watch::Receiver<Arc<rustls::ClientConfig>>>,
    open: Option<SendRequest<Full<Bytes>>>,
    next_address: usize,
}

impl Client {
    pub(crate) fn new(
        endpoint: Endpoint,
        resolved: watch::Receiver<Arc<[SocketAddr]>>,
        tls: Option<watch::Receiver<Arc<rustls::ClientConfig>>>,
    ) -> Self {
        Self { endpoint, resolved, tls, open: None, next_address: 0 }
    }

    /// Posts one batch and waits for the answer.
    pub(crate) async fn post(&mut self, batch: Bytes) -> Answer {
        // Taken out while it is used, so that a post that is given up half-way leaves no connection in a strange state.
        let mut sender = match self.reusable().await {
            Some(sender) => sender,
            None => match tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await {
                Ok(Ok(sender)) => sender,
                Ok(Err(why)) => return Answer::Later { why, retry_after: None },
                Err(_) => return Answer::Later { why: "connecting took too long".into(), retry_after: None },
            },
        };
        match self.exchange(&mut sender, batch).await {
            Ok(answer) => {
                self.open = Some(sender);
                answer
            }
            Err(why) => Answer::Later { why, retry_after: None },
        }
    }

    async fn reusable(&mut self) -> Option<SendRequest<Full<Bytes>>> {
        let rotated = self.tls.as_mut().is_some_and(|tls| tls.has_changed().unwrap_or(false));
        let mut sender = self.open.take().filter(|_| !rotated)?;
        sender.ready().await.ok()?;
        Some(sender)
    }

    async fn connect(&mut self) -> Result<SendRequest<Full<Bytes>>, String> {
        let addresses = self.resolved.borrow().clone();
        let host = &self.endpoint.host;
        if addresses.is_empty() {
            return Err(format!("{host} has no address yet"));
        }
        let address = addresses[self.next_address % addresses.len()];
        self.next_address = self.next_address.wrapping_add(1);
        let failed = |error: &dyn std::fmt::Display| format!("{host} ({address}): {error}");
        let tcp = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
        tcp.set_nodelay(true).map_err(|error| failed(&error))?;
        match (&mut self.tls, self.endpoint.https) {
            (_, false) => http1(tcp).await.map_err(|error| failed(&error)),
            (None, true) => Err(failed(&"an https endpoint needs an identity, and none is configured")),
            (Some(tls), true) => {
                let config = tls.borrow_and_update().clone();
                // The verifier checks the peer's SPIFFE ID and not its name, and no SNI is sent: any name does.
                let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])));
                let stream = TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
                    // rustls shows a verifier's own error as debug text.
                    crate::tls::peer_error(&error).map_or_else(|| failed(&error), |peer| failed(peer))
                })?;
                http1(stream).await.map_err(|error| failed(&error))
            }
        }
    }

    async fn exchange(&self, sender: &mut SendRequest<Full<Bytes>>, batch: Bytes) -> Result<Answer, String> {
        let request = Request::post("/v1/events")
            .header(header::HOST, format!("{}:{}", self.endpoint.host, self.endpoint.port))
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .header(header::USER_AGENT, concat!("phiward/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(batch))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        // Read to the end, so that the connection can be used again.
        Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
        Ok(judge(head.status, head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok())))
    }
}

/// What a status means for a batch.
fn judge(status: StatusCode, retry_after: Option<&str>) -> Answer {
    let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    if status.is_success() {
        return Answer::Acknowledged;
    }
    if status.is_client_error() && !passing.contains(&status) {
        return Answer::Refused(status.as_u16());
    }
    let retry_after = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    Answer::Later { why: format!("the collector answered {status}"), retry_after }
}

async fn http1<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // An error ends the request that is on the connection too, which is where it is told.
        let _ = connection.await;
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a batch is dropped on a passing error or sent for ever against a refusal.
    #[test]
    fn statuses_mean_what_they_say() {
        let later = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        for status in [200, 202, 204] {
            assert_eq!(judge(StatusCode::from_u16(status).unwrap(), None), Answer::Acknowledged);
        }
        for status in [400, 401, 403, 404, 413, 415, 422] {
            assert_eq!(judge(StatusCode::from_u16(status).unwrap(), Some("1")), Answer::Refused(status));
        }
        for status in [301, 408, 425, 429, 500, 502, 503, 507] {
            let answer = judge(StatusCode::from_u16(status).unwrap(), Some("3"));
            assert!(
                matches!(answer, Answer::Later { retry_after, .. } if retry_after == later(Some(3))),
                "{status}"
            );
        }
        let answer = judge(StatusCode::SERVICE_UNAVAILABLE, Some("Fri, 31 Dec 2027 23:59:59 GMT"));
        assert!(matches!(answer, Answer::Later { retry_after: None, .. }));
    }
}
