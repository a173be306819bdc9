//! The SPIFFE Workload API on the wire: one call, `FetchX509SVID`, whose answers come for as long as the stream is open.
//!
//! gRPC over a Unix socket, on the `h2` crate that the mesh leg uses: a whole gRPC stack for one call would be larger than the
//! rest of identity. Owns framing, limits and status codes. Prints no key: the messages have no `Debug` that could.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// The largest message that is read: many SVIDs and bundles of many trust domains.
const MAX_MESSAGE: usize = 4 << 20;
const FRAME_HEAD: usize = 5;
const PERMISSION_DENIED: i32 = 7;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The socket cannot be reached.
    #[error("{}: cannot reach the SPIRE agent: {error}; does it run, and is its socket mounted here?", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The agent knows no entry for this workload.
    #[error(
        "the SPIRE agent has no identity for this workload (PermissionDenied): is there a registration entry that matches it?"
    )]
    Denied,
    /// The agent answered with another error.
    #[error("the SPIRE agent answered with gRPC status {0}")]
    Status(i32),
    /// The connection ended.
    #[error("the connection to the SPIRE agent ended")]
    Ended,
    /// What came is not the Workload API.
    #[error("what answers at the SPIRE agent's socket does not speak the Workload API")]
    Malformed,
}

impl From<h2::Error> for ApiError {
    fn from(_: h2::Error) -> Self {
        Self::Ended
    }
}

/// One answer: all that the workload has now. What is not in it was withdrawn.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) svids: Vec<X509Svid>,
    /// By trust domain: certificates in DER, one after another.
    #[prost(map = "string, bytes", tag = "3")]
    pub(super) federated_bundles: HashMap<String, Vec<u8>>,
}

/// One identity of the workload.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct X509Svid {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    /// DER, leaf first.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) x509_svid: Vec<u8>,
    /// PKCS#8.
    #[prost(bytes = "vec", tag = "3")]
    pub(super) x509_svid_key: Vec<u8>,
    /// The CA certificates of its trust domain, DER.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) bundle: Vec<u8>,
}

/// An open call.
pub(super) struct Answers {
    body: RecvStream,
    came: BytesMut,
    /// Drives the connection, and ends with this.
    _driver: JoinSet<()>,
}

/// Asks the agent behind `socket` for this workload's identities.
///
/// # Errors
/// Why it does not answer.
pub(super) async fn fetch(socket: &Path) -> Result<Answers, ApiError> {
    let connected = UnixStream::connect(socket).await;
    let stream = connected.map_err(|error| ApiError::Connect { socket: socket.to_owned(), error })?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let mut sender = sender.ready().await?;
    // The header keeps those out who can make a workload send requests of their choice (SPIFFE Workload API, section 3).
    let request = Request::post("http://localhost/SpiffeWorkloadAPI/FetchX509SVID")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("workload.spiffe.io", "true")
        .body(())
        .map_err(|_| ApiError::Malformed)?; // made of constants
    let (response, mut asked) = sender.send_request(request, false)?;
    asked.send_data(Bytes::from_static(&[0; FRAME_HEAD]), true)?; // one message, empty
    let response = response.await?;
    status_of(response.headers())?;
    if !response.status().is_success() {
        return Err(ApiError::Malformed);
    }
    Ok(Answers { body: response.into_body(), came: BytesMut::new(), _driver: driver })
}

impl Answers {
    /// The next answer. What was begun to be read is kept when the wait for the rest is given up.
    ///
    /// # Errors
    /// Why none comes any more.
    pub(super) async fn next(&mut self) -> Result<X509SvidResponse, ApiError> {
        loop {
            if let Some(message) = take_message(&mut self.came)? {
                return X509SvidResponse::decode(message).map_err(|_| ApiError::Malformed);
            }
            match self.body.data().await {
                Some(data) => {
                    let data = data?;
                    self.body.flow_control().release_capacity(data.len())?;
                    self.came.put(data);
                }
                None => {
                    let trailers = self.body.trailers().await?.unwrap_or_default();
                    status_of(&trailers)?;
                    return Err(ApiError::Ended);
                }
            }
        }
    }
}

/// A whole message from the front of `came`: a flag for compression, four bytes of length, the message.
fn take_message(came: &mut BytesMut) -> Result<Option<Bytes>, ApiError> {
    let Some(head) = came.get(..FRAME_HEAD) else { return Ok(None) };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || length > MAX_MESSAGE {
        return Err(ApiError::Malformed); // we have not offered to read compressed ones
    }
    if came.len() < FRAME_HEAD + length {
        return Ok(None);
    }
    came.advance(FRAME_HEAD);
    Ok(Some(came.split_to(length).freeze()))
}

/// `grpc-status`, where there is one: in the trailers, or in the head of an answer that is nothing else.
fn status_of(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(status) = headers.get("grpc-status") else { return Ok(()) };
    let status = status.to_str().ok().and_then(|text| text.parse().ok()).ok_or(ApiError::Malformed)?;
    match status {
        0 => Ok(()),
        PERMISSION_DENIED => Err(ApiError::Denied),
        other => Err(ApiError::Status(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, an answer that comes in pieces, or two that come at once, are misread.
    #[test]
    fn messages_are_cut_where_they_end() {
        let two = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 1], b"d"].concat();
        for step in 1..=two.len() {
            let (mut came, mut found) = (BytesMut::new(), Vec::new());
            for piece in two.chunks(step) {
                came.extend_from_slice(piece);
                while let Some(message) = take_message(&mut came).unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, [&b"abc"[..], b"", b"d"], "{step}");
        }
        for refused in [&[1, 0, 0, 0, 0], &[0, 255, 255, 255, 255]] {
            assert!(take_message(&mut BytesMut::from(&refused[..])).is_err());
        }
    }
}
