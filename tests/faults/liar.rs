//! What stands before the real collector and lies: to a sidecar it is the collector, and what it does with a batch is up to
//! the plan of the run.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use phiward::identity::SpiffeId;
use phiward::tls::{Alpn, dummy_server_name};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::common::h2::{Frames, frames, full};
use crate::common::peer::settings;
use crate::process::Target;

pub const COLLECTOR: &str = "spiffe://hospital.local/ns/audit/sa/collector";

/// What is done with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Handed on, and the collector's answer handed back.
    None,
    /// 200, and forgotten.
    Forget,
    /// Answered so, and not handed on; with `Retry-After: 1` if told.
    Status(u16, bool),
    /// Handed on, and then answered so: the sidecar must send it again.
    StoredBut(u16),
    /// No answer until the lie is over.
    Hang,
    /// The connection is reset before there is an answer.
    Reset,
    /// Handed on, and the connection reset in the middle of the answer.
    ResetInAnswer,
    /// Handed on, and answered after this many milliseconds.
    Slow(u64),
}

/// The front of the collector for one sidecar.
pub struct Liar {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    lie: watch::Sender<Lie>,
    /// Batches that were acknowledged and forgotten, or refused for good.
    withheld: Mutex<Vec<Bytes>>,
    collector: Target,
    /// The sidecar's own settings: the collector knows who sends.
    to_collector: TlsConnector,
}

impl Liar {
    /// For the sidecar whose files are in `sender`, with the collector's files in `own`.
    pub async fn start(own: &Path, sender: &Path, collector: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(settings(own).server_with_alpn(Alpn::Http1));
        let expected = Arc::from([SpiffeId::parse(COLLECTOR).unwrap()]);
        let to_collector = TlsConnector::from(settings(sender).client(expected, Alpn::Http1));
        let lie = watch::Sender::new(Lie::None);
        let shared = Arc::new(Shared { lie, withheld: Mutex::default(), collector, to_collector });
        let serving = shared.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(serve(stream, acceptor.clone(), serving.clone()));
            }
        });
        Self { addr, shared }
    }

    pub fn tell(&self, lie: Lie) {
        self.shared.lie.send_replace(lie);
    }

    /// The lines of what the collector never got although it was acknowledged, or which was refused for good.
    pub fn withheld(&self) -> Vec<Bytes> {
        self.shared.withheld.lock().unwrap().clone()
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(|request: Request<Incoming>| {
        let shared = shared.clone();
        async move {
            let coding = request.headers().get(header::CONTENT_ENCODING).cloned();
            let body = request.into_body().collect().await.map_err(|_| "the batch broke off")?.to_bytes();
            shared.answer(Batch { body, coding }).await
        }
    });
    // An error of the service is how a connection is reset.
    drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

/// A batch as it came.
struct Batch {
    body: Bytes,
    coding: Option<HeaderValue>,
}

impl Batch {
    fn lines(self) -> Bytes {
        match self.coding {
            None => self.body,
            Some(coding) => {
                assert_eq!(coding, "zstd");
                zstd::stream::decode_all(&*self.body).expect("zstd").into()
            }
        }
    }
}

impl Shared {
    async fn answer(&self, batch: Batch) -> Result<Response<Frames>, &'static str> {
        let lie = *self.lie.borrow();
        match lie {
            Lie::None => self.hand_on(batch).await,
            Lie::Forget => {
                self.withheld.lock().unwrap().push(batch.lines());
                Ok(answer(StatusCode::OK))
            }
            Lie::Status(status, wait) => {
                if status == 413 {
                    self.withheld.lock().unwrap().push(batch.lines());
                }
                let mut refusal = answer(StatusCode::from_u16(status).unwrap());
                if wait {
                    refusal.headers_mut().insert(header::RETRY_AFTER, "1".parse().unwrap());
                }
                Ok(refusal)
            }
            Lie::StoredBut(status) => {
                self.hand_on(batch).await?;
                Ok(answer(StatusCode::from_u16(status).unwrap()))
            }
            Lie::Hang => {
                let mut lie = self.lie.subscribe();
                drop(lie.wait_for(|lie| *lie != Lie::Hang).await);
                Err("the answer never came")
            }
            Lie::Reset => Err("reset"),
            Lie::ResetInAnswer => {
                self.hand_on(batch).await?;
                let (feed, body) = frames();
                tokio::spawn(async move {
                    feed.data("{\"stored\":").await;
                    feed.fail().await;
                });
                Ok(Response::new(body))
            }
            Lie::Slow(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                self.hand_on(batch).await
            }
        }
    }

    async fn hand_on(&self, batch: Batch) -> Result<Response<Frames>, &'static str> {
        let posted = self.post(batch).await;
        posted.ok_or("the collector is down")
    }

    async fn post(&self, batch: Batch) -> Option<Response<Frames>> {
        let stream = TcpStream::connect(self.collector.now()?).await.ok()?;
        let stream = self.to_collector.connect(dummy_server_name(), stream).await.ok()?;
        let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(driver);
        let mut request = Request::post("/v1/events")
            .header(header::HOST, "collector")
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .body(Full::new(batch.body))
            .ok()?;
        request.headers_mut().extend(batch.coding.map(|coding| (header::CONTENT_ENCODING, coding)));
        let (head, body) = sender.send_request(request).await.ok()?.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        Some(Response::from_parts(head, full(body)))
    }
}

fn answer(status: StatusCode) -> Response<Frames> {
    let mut answer = Response::new(full("{}"));
    *answer.status_mut() = status;
    answer
}
