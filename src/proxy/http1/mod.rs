//! HTTP/1.1, at both ends.
//!
//! hyper's client hands each request through a channel to a task of the connection, and its answer back through another; its
//! server keeps two buffers of 8 KiB for each connection that waits. Here the task that has a request writes it and reads the
//! answer itself, and a connection that waits has no buffer (docs/performance.md). What only a slow upload needs, a task of its
//! own, is made when there is one.
//!
//! Owns one connection at a time: framing both ways, what may be reused, what came ahead of a switch of protocols, how a
//! connection is closed. What is doubtful is refused, because two readers might read it in two ways (RFC 9112, section 11).
//! Which connection a request takes is the endpoint's; what a request means is `forward`'s.

mod body;
mod chunks;
mod client;
mod head;
mod io;
mod linger;
mod request;
mod response;
mod send;
mod server;
mod wire;

pub(crate) use body::Incoming;
pub(crate) use client::{Connection, Reply, Unsent};
pub(crate) use io::{Io, Rewound};
pub(crate) use server::serve;
pub(crate) use wire::Scratch;

/// Why a message broke off, or was none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// It ended before the message did.
    #[error("the other end closed the connection within a message")]
    Cut,
    /// What came is no head.
    #[error("the other end does not speak HTTP/1: {0}")]
    Head(#[from] httparse::Error),
    /// A line of the head, or all of it, is not what HTTP allows.
    #[error("the head has a malformed field")]
    Field,
    /// The head, or the trailers, are larger than allowed.
    #[error("the head is too large")]
    TooLarge,
    /// The length is told in a way that can be read in two ways.
    #[error("the length of the body is doubtful")]
    Framing,
    /// A chunk is malformed.
    #[error("the body has a malformed chunk")]
    Chunk,
    /// The peer's certificate has run out.
    #[error("the upstream's certificate has expired")]
    Expired,
}
