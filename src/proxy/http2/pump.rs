//! A body on its way into a stream, no faster than the other side reads.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body, Frame};

/// Sends `body` to its end, trailers too. A body that breaks off resets the stream with `broken`; a stream that the other
/// side resets ends the sending.
///
/// # Errors
/// The stream or the body ended before its time. Who waits for the other direction of the stream is told there.
pub(super) async fn send<B>(
    mut body: Pin<&mut B>,
    stream: &mut SendStream<Bytes>,
    broken: Reason,
) -> Result<(), h2::Error>
where
    B: Body<Data = Bytes>,
{
    loop {
        let Some(frame) = next_frame(body.as_mut(), stream).await? else {
            return stream.send_data(Bytes::new(), true);
        };
        let Ok(frame) = frame else {
            stream.send_reset(broken);
            return Err(broken.into());
        };
        match frame.into_data() {
            Ok(data) => {
                let last = body.is_end_stream();
                if !data.is_empty() {
                    room(stream).await?;
                }
                stream.send_data(data, last)?;
                if last {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    stream.reserve_capacity(0);
                    return stream.send_trailers(trailers);
                }
            }
        }
    }
}

/// The next frame of `body`, unless the other side resets the stream first.
async fn next_frame<B: Body<Data = Bytes>>(
    mut body: Pin<&mut B>,
    stream: &mut SendStream<Bytes>,
) -> Result<Option<Result<Frame<Bytes>, B::Error>>, h2::Error> {
    poll_fn(|cx| {
        if let Poll::Ready(frame) = body.as_mut().poll_frame(cx) {
            return Poll::Ready(Ok(frame));
        }
        stream.poll_reset(cx).map(|reset| Err(reset.map_or_else(|error| error, h2::Error::from)))
    })
    .await
}

/// Waits until the stream may carry something. One byte is asked for, whatever is to be sent: `send_data` asks for the rest,
/// and a larger claim would be held against other streams while it waits.
async fn room(stream: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
            None => return Err(Reason::CANCEL.into()), // reset, or closed for good
        }
    }
    Ok(())
}
