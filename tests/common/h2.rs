//! HTTP/2 with prior knowledge, both ends, with bodies that a test feeds frame by frame.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::wire::patiently;

/// A body of frames that somebody sends while it is read.
pub struct Frames {
    frames: mpsc::Receiver<io::Result<Frame<Bytes>>>,
    ended: bool,
}

/// The feeding end; dropping it ends the body.
#[derive(Clone)]
pub struct Feed(mpsc::Sender<io::Result<Frame<Bytes>>>);

/// A body and its feeding end. At most one frame waits in between.
pub fn frames() -> (Feed, Frames) {
    let (sender, receiver) = mpsc::channel(1);
    (Feed(sender), Frames { frames: receiver, ended: false })
}

/// A body of one frame.
pub fn full(bytes: impl Into<Bytes>) -> Frames {
    with_trailers(bytes, None)
}

/// No body.
pub fn empty() -> Frames {
    Frames { frames: mpsc::channel(1).1, ended: true }
}

/// A body of one frame, then trailers.
pub fn with_trailers(bytes: impl Into<Bytes>, trailers: Option<HeaderMap>) -> Frames {
    let (sender, receiver) = mpsc::channel(2);
    drop(sender.try_send(Ok(Frame::data(bytes.into()))));
    if let Some(trailers) = trailers {
        drop(sender.try_send(Ok(Frame::trailers(trailers))));
    }
    Frames { frames: receiver, ended: false }
}

impl Feed {
    /// Hands over one piece; false when nobody reads any more.
    pub async fn data(&self, bytes: impl Into<Bytes>) -> bool {
        patiently(self.0.send(Ok(Frame::data(bytes.into())))).await.is_ok()
    }

    pub async fn trailers(&self, trailers: HeaderMap) {
        drop(patiently(self.0.send(Ok(Frame::trailers(trailers)))).await);
    }

    /// Breaks the body off.
    pub async fn fail(&self) {
        drop(patiently(self.0.send(Err(io::Error::other("broken off")))).await);
    }

    /// Whether another piece can be handed over at once.
    pub fn has_room(&self) -> bool {
        self.0.capacity() > 0
    }

    /// Returns once nobody reads the body any more.
    pub async fn abandoned(&self) {
        patiently(self.0.closed()).await;
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.frames.poll_recv(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// An app that speaks HTTP/2 without TLS.
pub async fn app<F, Fut>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Frames>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    serve(listener, answer);
    addr
}

/// As [`app`], on a socket that is bound already.
pub fn serve<F, Fut>(listener: TcpListener, answer: F) -> JoinHandle<()>
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Frames>> + Send + 'static,
{
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    })
}

/// The sending end of a connection; clones share it.
pub type Sender = hyper::client::conn::http2::SendRequest<Frames>;

/// An HTTP/2 connection with prior knowledge.
pub async fn connect(addr: SocketAddr) -> Sender {
    over(TcpStream::connect(addr).await.unwrap()).await
}

/// An HTTP/2 connection over any stream.
pub async fn over<S>(stream: S) -> Sender
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = made.unwrap();
    tokio::spawn(connection);
    sender
}

/// A request for the usual host.
pub fn request(method: &str, target: &str, body: Frames) -> Request<Frames> {
    Request::builder().method(method).uri(format!("http://records.clinic{target}")).body(body).unwrap()
}

/// Sends a request and waits for the head of its response.
pub async fn send(sender: &Sender, request: Request<Frames>) -> Response<Incoming> {
    patiently(sender.clone().send_request(request)).await.unwrap()
}

/// A whole body with its trailers.
pub async fn collect(body: Incoming) -> Result<(Bytes, Option<HeaderMap>), hyper::Error> {
    let collected = patiently(body.collect()).await?;
    let trailers = collected.trailers().cloned();
    Ok((collected.to_bytes(), trailers))
}

/// The next piece of data of a body; `None` at its end.
pub async fn next_data(body: &mut Incoming) -> Option<Bytes> {
    let frame = patiently(body.frame()).await?.unwrap();
    frame.into_data().ok()
}
