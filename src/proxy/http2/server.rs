//! The server's end: each stream is a task of its own, from the request's head to the last byte of the response.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::header::{self, HeaderValue};
use http::{Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{CONNECTION_WINDOW, LEAVING, STREAM_WINDOW, ping, pump};
use crate::proxy::body::Inflow;
use crate::proxy::context::ConnContext;
use crate::proxy::forward::forward;

/// A connection that is served; it ends when the peer or [`Serving::finish`] ends it.
pub(crate) struct Serving<T> {
    conn: Rc<ConnContext>,
    connection: Connection<T, Bytes>,
    unanswered: Pin<Box<dyn Future<Output = ()>>>,
}

/// Waits for the client's preface.
///
/// # Errors
/// It did not come, or was none.
pub(crate) async fn accept<T>(conn: Rc<ConnContext>, io: T) -> Result<Pin<Box<Serving<T>>>, h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let limits = &conn.worker.limits;
    let mut connection = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.head_bytes)
        // Of those that come with their own reset in one read, which a sidecar sends when its app gives up many requests at once: by
        // default the 21st ends the connection, and with it what others have under way (CVE-2023-44487 is why there is a limit).
        .max_pending_accept_reset_streams(limits.streams as usize)
        .handshake(io)
        .await?;
    let unanswered = Box::pin(ping::unanswered(connection.ping_pong()));
    Ok(Box::pin(Serving { conn, connection, unanswered }))
}

impl<T: AsyncRead + AsyncWrite + Unpin> Serving<T> {
    /// Takes no new streams and ends with those it has.
    pub(crate) fn finish(&mut self) {
        self.connection.graceful_shutdown();
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Serving<T> {
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let accepted = match self.connection.poll_accept(cx) {
                Poll::Ready(Some(accepted)) => accepted,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return self.unanswered.as_mut().poll(cx).map(Ok),
            };
            let (request, respond) = accepted?;
            // Boxed first: tokio moves what it is given half a dozen times before and after it runs.
            let stream = Box::pin(serve(self.conn.clone(), request, respond));
            drop(tokio::task::spawn_local(stream));
        }
    }
}

async fn serve(conn: Rc<ConnContext>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let response = {
        let mut answer = pin!(Some(forward(conn.clone(), request.map(Inflow::streamed))));
        let response = poll_fn(|cx| match answer.as_mut().as_pin_mut().map(|answer| answer.poll(cx)) {
            Some(Poll::Ready(response)) => Poll::Ready(Ok(response)),
            // A client that no longer wants its answer ends the exchange: what is dropped here ends at the upstream.
            _ => respond.poll_reset(cx).map(Err),
        })
        .await;
        match response {
            Ok(response) => response,
            Err(Ok(_reset)) => return conn.give_up(|| answer.set(None)),
            // The whole connection is over, which may be our doing.
            Err(Err(_)) => return,
        }
    };
    let (mut parts, body) = response.into_parts();
    if conn.leaving.get() {
        parts.headers.insert(LEAVING, HeaderValue::from_static("1"));
    } else if conn.peer.is_some() {
        parts.headers.remove(&LEAVING); // it is not the app's to say
    }
    let whole = body.is_end_stream();
    if !whole && let Some(length) = body.size_hint().exact() {
        parts.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    // Fails when the client has reset the stream or is gone.
    let Ok(mut stream) = respond.send_response(Response::from_parts(parts, ()), whole) else {
        return body.given_up();
    };
    if whole {
        return;
    }
    let mut body = pin!(body);
    if let Err(error) = pump::send(body.as_mut(), &mut stream, Reason::INTERNAL_ERROR).await
        && !error.is_io()
    {
        // Or the upstream broke off, which is in the exchange's account already; the peer was told by the stream's end.
        body.given_up();
    }
}
