//! The HTTP that sinks speak: one connection to one receiver, one POST at a time.
//!
//! Owns the connection, the credentials, how the body is coded and the time limit of an exchange. It never tries again by
//! itself: that is the shipper's. Names are resolved and TLS is configured by others, who hand in the newest of both. Nothing
//! that a receiver says in words goes into an error: such text can repeat what it was sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::error::Elapsed;
use tokio_rustls::TlsConnector;

use super::secret::Credentials;
use super::sink::{SinkConfig, is_refusal};
use super::sink_coding::{self, Coder};
use crate::pieces::Pieces;

/// The most that is read of an answer: that of a bulk request has a line for each of 2048 events.
const MAX_ANSWER: usize = 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What phiward itself says in a request.
const OWN_HEADERS: [HeaderName; 10] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::USER_AGENT,
];

/// A header that is sent with every request to a receiver, such as a tenant's name. It is no place for secrets.
#[derive(Debug, Clone)]
pub struct ExtraHeader {
    name: HeaderName,
    value: HeaderValue,
}

impl ExtraHeader {
    /// Takes a header from a configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(name: &str, value: &str) -> Result<Self, &'static str> {
        let name: HeaderName = name.parse().map_err(|_| "this is no name of a header")?;
        if OWN_HEADERS.contains(&name) || name.as_str().starts_with("x-phiward-") {
            return Err("phiward sets this header itself");
        }
        let value = value.parse().map_err(|_| "this cannot be the value of a header")?;
        Ok(Self { name, value })
    }
}

/// Where a client finds its receiver, and how it knows it.
pub(crate) struct Route {
    pub(crate) resolved: watch::Receiver<Arc<[SocketAddr]>>,
    /// Needed for `https`.
    pub(crate) tls: Option<watch::Receiver<Arc<rustls::ClientConfig>>>,
}

/// A connection to a receiver, made when it is needed.
pub(crate) struct Client {
    https: bool,
    host: String,
    prefix: String,
    headers: HeaderMap,
    credentials: Option<Credentials>,
    route: Route,
    attempt: Duration,
    open: Option<Connection>,
    next_address: usize,
    /// `None` once a coded body was refused.
    coder: Option<Coder>,
}

struct Connection {
    sender: SendRequest<Full<Pieces>>,
    /// Whether who is at its other end takes a coded body. The next connection can be with another, so it is asked anew.
    takes_zstd: bool,
}

/// What a receiver answered.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
}

impl Client {
    /// A client whose exchanges take at most `attempt` each.
    pub(crate) fn new(config: &SinkConfig, route: Route, attempt: Duration) -> Self {
        let endpoint = &config.endpoint;
        let host = &endpoint.host;
        let literal_v6 = host.contains(':');
        let authority = if literal_v6 {
            format!("[{host}]:{}", endpoint.port)
        } else {
            format!("{host}:{}", endpoint.port)
        };
        let agent = HeaderValue::from_static(concat!("phiward/", env!("CARGO_PKG_VERSION")));
        let mut headers = HeaderMap::from_iter([(header::USER_AGENT, agent)]);
        if let Ok(authority) = HeaderValue::try_from(authority) {
            headers.insert(header::HOST, authority); // a host name or address with a port is always a header's value
        }
        headers.extend(config.headers.iter().map(|extra| (extra.name.clone(), extra.value.clone())));
        Self {
            https: endpoint.https,
            host: host.clone(),
            prefix: config.prefix.clone(),
            headers,
            credentials: config.credentials.clone(),
            route,
            attempt,
            open: None,
            next_address: 0,
            coder: Some(Coder::default()),
        }
    }

    /// Posts `body` to `path` below the configured prefix, and reads the whole answer.
    ///
    /// # Errors
    /// Why there is no answer, for the operator.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        content_type: &'static str,
        more: Option<(HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Result<Reply, String> {
        let request = self.request(path, content_type, more, body).await?;
        let attempt = self.attempt;
        let exchange = async {
            let connection = self.connection().await?;
            let (request, coded) = if connection.takes_zstd { self.coded(request) } else { (request, false) };
            self.exchange(connection, request.map(Pieces::from), coded).await
        };
        let outcome = tokio::time::timeout(attempt, exchange).await;
        self.in_time(outcome)
    }

    /// Posts a body that is coded by zstd. `None` where nothing was sent, because who is at the other end has not said, or not
    /// yet, that it takes that.
    ///
    /// # Errors
    /// Why there is no answer, for the operator.
    pub(crate) async fn post_coded(
        &mut self,
        path: &str,
        content_type: &'static str,
        more: Option<(HeaderName, HeaderValue)>,
        body: Pieces,
    ) -> Result<Option<Reply>, String> {
        let request = says_zstd(self.request(path, content_type, more, body).await?);
        let attempt = self.attempt;
        let exchange = async {
            let connection = self.connection().await?;
            if !connection.takes_zstd {
                self.open = Some(connection);
                return Ok(None);
            }
            self.exchange(connection, request, true).await.map(Some)
        };
        let outcome = tokio::time::timeout(attempt, exchange).await;
        self.in_time(outcome)
    }

    /// Whether [`Client::post_coded`] is worth a try.
    pub(crate) fn takes_zstd(&self) -> bool {
        self.coder.is_some() && self.open.as_ref().is_some_and(|connection| connection.takes_zstd)
    }

    /// Gives back memory that is kept for the next body: none comes for a while.
    pub(crate) fn rest(&mut self) {
        if let Some(coder) = &mut self.coder {
            coder.rest();
        }
    }

    async fn request<B>(
        &self,
        path: &str,
        content_type: &'static str,
        more: Option<(HeaderName, HeaderValue)>,
        body: B,
    ) -> Result<Request<B>, String> {
        let mut request = Request::new(body);
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = format!("{}{path}", self.prefix).parse().map_err(|_| "the path is none")?;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        request.headers_mut().extend(more);
        if let Some(credentials) = self.credentials.clone() {
            let read = tokio::task::spawn_blocking(move || credentials.header()).await;
            let value = read.map_err(|_| "reading the secret was interrupted")?;
            request.headers_mut().insert(header::AUTHORIZATION, value.map_err(|error| error.to_string())?);
        }
        Ok(request)
    }

    fn in_time<T>(&mut self, outcome: Result<Result<T, String>, Elapsed>) -> Result<T, String> {
        outcome.unwrap_or_else(|_| {
            self.next_address = self.next_address.wrapping_add(1);
            Err(format!("{} did not answer in time", self.host))
        })
    }

    /// The open connection, or a new one. It is taken out while it is used, so that a post that is given up half-way leaves none
    /// in a strange state.
    async fn connection(&mut self) -> Result<Connection, String> {
        match self.reusable().await {
            Some(connection) => Ok(connection),
            None => self.connect().await,
        }
    }

    async fn exchange(
        &mut self,
        mut connection: Connection,
        request: Request<Pieces>,
        coded: bool,
    ) -> Result<Reply, String> {
        let read = async {
            let answer = connection.sender.send_request(request.map(Full::new)).await;
            let (head, body) = answer.map_err(|error| error.to_string())?.into_parts();
            connection.takes_zstd = sink_coding::is_taken(&head.headers);
            let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let retry_after = retry_after.and_then(|text| wanted_wait(text, jiff::Timestamp::now()));
            // Read to the end, so that the connection can be used again.
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
            Ok(Reply { status: head.status, retry_after, body: body.to_bytes() })
        };
        match read.await {
            // It may be the coding that something on the way does not understand. Nothing is set aside for that: the events are
            // sent as they are, and what is refused then is refused for what it is.
            Ok(reply) if coded && is_refusal(reply.status) => {
                self.coder = None;
                Err(format!("{} refused a batch that was coded by zstd; it is sent plain", self.host))
            }
            Ok(reply) => {
                self.open = Some(connection);
                Ok(reply)
            }
            Err(error) => {
                let error: String = error;
                self.next_address = self.next_address.wrapping_add(1);
                Err(format!("{}: {error}", self.host))
            }
        }
    }

    /// The request as it is sent to who takes zstd, and whether it is coded.
    fn coded(&mut self, mut request: Request<Bytes>) -> (Request<Bytes>, bool) {
        match self.coder.as_mut().and_then(|coder| coder.encode(request.body())) {
            Some(coded) => {
                *request.body_mut() = coded;
                (says_zstd(request), true)
            }
            None => (request, false),
        }
    }

    async fn reusable(&mut self) -> Option<Connection> {
        let rotated = self.route.tls.as_mut().is_some_and(|tls| tls.has_changed().unwrap_or(false));
        let mut connection = self.open.take().filter(|_| !rotated)?;
        connection.sender.ready().await.ok()?;
        Some(connection)
    }

    /// Connects, to another address after each failure and to the same one after none: an acknowledgement that is asked
    /// for later is known where the events went.
    async fn connect(&mut self) -> Result<Connection, String> {
        let connected = match tokio::time::timeout(CONNECT_TIMEOUT, self.try_to_connect()).await {
            Ok(connected) => connected,
            Err(_) => Err(format!("connecting to {} took too long", self.host)),
        };
        if connected.is_err() {
            self.next_address = self.next_address.wrapping_add(1);
        }
        connected
    }

    async fn try_to_connect(&mut self) -> Result<Connection, String> {
        let addresses = self.route.resolved.borrow().clone();
        let host = &self.host;
        if addresses.is_empty() {
            return Err(format!("{host} has no address yet"));
        }
        let address = addresses[self.next_address % addresses.len()];
        let failed = |error: &dyn std::fmt::Display| format!("{host} ({address}): {error}");
        let tcp = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
        tcp.set_nodelay(true).map_err(|error| failed(&error))?;
        match (&mut self.route.tls, self.https) {
            (_, false) => http1(tcp).await.map_err(|error| failed(&error)),
            (None, true) => Err(failed(&"an https endpoint needs TLS settings, and there are none")),
            (Some(tls), true) => {
                let config = tls.borrow_and_update().clone();
                // A verifier of SPIFFE IDs does not look at the name, and then it is not sent either.
                let name = ServerName::try_from(host.clone()).map_err(|error| failed(&error))?;
                let stream = TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
                    // rustls shows a verifier's own error as debug text.
                    crate::tls::peer_error(&error).map_or_else(|| failed(&error), |peer| failed(peer))
                })?;
                http1(stream).await.map_err(|error| failed(&error))
            }
        }
    }
}

fn says_zstd<B>(mut request: Request<B>) -> Request<B> {
    let name = HeaderValue::from_static(sink_coding::NAME);
    request.headers_mut().insert(header::CONTENT_ENCODING, name);
    request
}

async fn http1<S>(stream: S) -> Result<Connection, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // An error ends the request that is on the connection too, which is where it is told.
        let _ = connection.await;
    });
    Ok(Connection { sender, takes_zstd: false })
}

/// `Retry-After` in either form (RFC 9110 section 10.2.3).
fn wanted_wait(text: &str, now: jiff::Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    u64::try_from(until.as_second() - now.as_second()).ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a receiver that asks for patience is asked again at once.
    #[test]
    fn retry_after_is_a_number_or_a_date() {
        let now = "2027-12-31T23:59:50Z".parse().unwrap();
        let wait = |text| wanted_wait(text, now).map(|wait| wait.as_secs());
        assert_eq!(wait(" 3 "), Some(3));
        assert_eq!(wait("Fri, 31 Dec 2027 23:59:59 GMT"), Some(9));
        assert_eq!(wait("Fri, 31 Dec 2027 23:59:40 GMT"), None, "it is over");
        assert_eq!((wait("-1"), wait("soon"), wait("")), (None, None, None));
    }

    /// If this fails, a configuration can break the framing of a request or replace its credentials.
    #[test]
    fn extra_headers_leave_phiwards_own_alone() {
        assert!(ExtraHeader::parse("X-Scope-OrgID", "clinic").is_ok());
        for (name, value) in [
            ("Authorization", "x"),
            ("transfer-encoding", "chunked"),
            ("content-encoding", "zstd"),
            ("a b", "x"),
            ("a", "x\r\ny: z"),
            ("X-Phiward-Batch", "1"),
        ] {
            assert!(ExtraHeader::parse(name, value).is_err(), "{name}");
        }
    }
}
