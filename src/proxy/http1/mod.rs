//! HTTP/1.1 toward an upstream.
//!
//! hyper's client hands each request through a channel to a task of the connection, and its answer back through another. Here
//! the task that has a request writes it and reads the answer itself: that costs half the instructions and wakes nobody
//! (docs/performance.md). What only a slow upload needs, a task of its own, is made when there is one.
//!
//! Owns one connection at a time: framing both ways, what may be reused, what came ahead of a switch of protocols. What is
//! doubtful in a response is refused, because two readers might read it in two ways (RFC 9112, section 11.1). Which connection
//! a request takes is the endpoint's; what a request means is `forward`'s.

mod body;
mod chunks;
mod client;
mod head;
mod io;
mod send;

pub(crate) use body::Incoming;
pub(crate) use client::{Connection, Reply, Unsent};
pub(crate) use io::{Io, Rewound};

/// Why an answer broke off, or was none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The connection failed.
    #[error("the connection to the upstream failed: {0}")]
    Io(#[from] std::io::Error),
    /// It ended before the answer did.
    #[error("the upstream closed the connection within its answer")]
    Cut,
    /// What came is no head of a response.
    #[error("the upstream does not answer in HTTP/1: {0}")]
    Head(#[from] httparse::Error),
    /// A line of the head, or all of it, is not what HTTP allows.
    #[error("the upstream's answer has a malformed field")]
    Field,
    /// The head, or the trailers, are larger than allowed.
    #[error("the head of the upstream's answer is too large")]
    TooLarge,
    /// The length is told in a way that can be read in two ways.
    #[error("the length of the upstream's answer is doubtful")]
    Framing,
    /// A chunk is malformed.
    #[error("the upstream's answer has a malformed chunk")]
    Chunk,
    /// The peer's certificate has run out.
    #[error("the upstream's certificate has expired")]
    Expired,
}
