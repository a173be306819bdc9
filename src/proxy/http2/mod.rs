//! HTTP/2 connections, on the `h2` crate itself.
//!
//! hyper's HTTP/2 client hands each request through a channel to a task of the connection and makes one more task for its
//! response; its server looks each head through again for what ours has already taken out. Here a request is given to `h2`
//! by the task that has it, and that task waits for the response. It is the outbound side that gains
//! (docs/performance.md); inbound costs the same, and has the same pump and the same bodies. Owns streams, their flow control and their resets; what a request means is `forward`'s.

mod client;
mod ping;
mod pump;
mod server;

pub(crate) use client::{Connection, Reply, Unsent, connect};
pub(crate) use server::{Serving, accept};

use http::HeaderName;

/// Says in an answer between sidecars, and nowhere else, that the next request is better sent elsewhere. GOAWAY says the same, but can
/// cross with a request on its way, which is lost then.
const LEAVING: HeaderName = HeaderName::from_static("phiward-leaving");

/// Windows: a stream's, and the connection's at four times that, so that an app that reads one stream before another
/// cannot stall both.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;
