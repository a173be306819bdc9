//! The client's end: many requests at a time on one connection.

use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{CONNECTION_WINDOW, LEAVING, STREAM_WINDOW, ping, pump};
use crate::proxy::body::{Inflow, RequestBody};
use crate::proxy::headers::TRACEPARENT;
use crate::proxy::upload::Upload;
use crate::proxy::upstream::UpstreamSettings;

/// The sending end of a connection. Clones share it; when the last is gone and no stream is left, the connection closes.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: Rc<RefCell<SendRequest<Bytes>>>,
    closed: Rc<Cell<bool>>,
    /// Whether the name of our own field is in HPACK's table.
    named: Rc<Cell<bool>>,
}

/// A request that was not sent: itself, unless it was lost on the way. Boxed, because it is as rare as it is large.
pub(crate) struct Unsent(pub(crate) Option<Box<Request<RequestBody>>>);

/// A request on its way. Dropping it before the response resets the stream.
pub(crate) struct Reply {
    response: ResponseFuture,
    upload: Option<Upload>,
    closed: Rc<Cell<bool>>,
}

/// Speaks HTTP/2 over `io`. The returned future drives the connection and must be run.
///
/// # Errors
/// The preface could not be written.
pub(crate) async fn connect<T>(
    io: T,
    settings: &UpstreamSettings,
) -> Result<(Connection, impl Future<Output = ()> + use<T>), h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, mut driver) = Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(settings.head_bytes)
        .initial_max_send_streams(settings.streams as usize)
        .handshake(io)
        .await?;
    let closed = Rc::new(Cell::new(false));
    let connection =
        Connection { sender: Rc::new(RefCell::new(sender)), closed: closed.clone(), named: Rc::default() };
    let pings = driver.ping_pong();
    let driven = async move {
        tokio::select! {
            biased;
            _ = driver => {} // an error ends every stream too, which is where it is told
            () = ping::unanswered(pings) => {}
        }
        closed.set(true);
    };
    Ok((connection, driven))
}

impl Connection {
    /// Whether it takes nothing new.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Sends `request`.
    ///
    /// # Errors
    /// The connection takes nothing more, or `h2` did not take the request.
    pub(crate) fn send(&self, request: Request<RequestBody>) -> Result<Reply, Unsent> {
        let mut sender = self.sender.borrow_mut();
        match sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => {
                self.closed.set(true); // it said goodbye, or its stream numbers are used up
                return Err(Unsent(Some(Box::new(request))));
            }
            // The peer allows fewer streams than we do and this handle has one queued; a new handle may queue its own. The
            // caller bounds how many there are.
            Poll::Pending => {
                let another = sender.clone();
                *sender = another;
            }
        }
        let (mut parts, body) = request.into_parts();
        if !self.named.replace(true) {
            teach(&mut parts.headers);
        }
        let whole = http_body::Body::is_end_stream(&body);
        let (response, stream) =
            sender.send_request(Request::from_parts(parts, ()), whole).map_err(|_| Unsent(None))?;
        let upload = (!whole).then(|| Upload::begin(Box::pin(send_body(body, stream)))).flatten();
        Ok(Reply { response, upload, closed: self.closed.clone() })
    }
}

/// Lets the first request of a connection put the name of the field whose values stay out of HPACK's table into it, so that
/// the others need not spell it.
fn teach(headers: &mut HeaderMap) {
    if let Some(value) = headers.get_mut(TRACEPARENT) {
        value.set_sensitive(false);
    }
}

impl Reply {
    /// What still uploads, once the response is there.
    pub(crate) fn into_upload(self) -> Option<Upload> {
        self.upload
    }
}

impl Future for Reply {
    type Output = Result<Response<Inflow>, h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answered = ready!(Pin::new(&mut self.response).poll(cx))?;
        if answered.headers_mut().remove(&LEAVING).is_some() {
            self.closed.set(true);
        }
        Poll::Ready(Ok(answered.map(Inflow::streamed)))
    }
}

/// Sends a body to its end, or resets its stream.
async fn send_body(body: RequestBody, mut stream: SendStream<Bytes>) {
    // The client that breaks off its body has cancelled; the response's side learns of the reset.
    drop(pump::send(pin!(body), &mut stream, Reason::CANCEL).await);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proxy::Protocol;

    /// If this fails, requests are sent for a quarter of an hour to a node that has lost its power.
    #[tokio::test(start_paused = true)]
    async fn a_peer_that_falls_silent_is_given_up() {
        let settings = UpstreamSettings {
            protocol: Protocol::H2,
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(1),
            idle: Duration::from_secs(1),
            head_bytes: 64 * 1024,
            streams: 100,
        };
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (near, far) = tokio::join!(connect(near, &settings), h2::server::handshake(far));
        let (connection, driven) = near.unwrap();
        let _silent: h2::server::Connection<_, Bytes> = far.unwrap();
        assert!(!connection.is_closed());
        driven.await;
        assert!(connection.is_closed());
    }
}
