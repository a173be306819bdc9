//! The app behind the mesh: it logs each request as soon as it has its head, and can be cut off like a killed process.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A request that reached the app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The client's own identifier of the request, which travels in `traceparent`.
    pub trace_id: String,
    /// phiward's.
    pub request_id: String,
    /// The last segment of the path.
    pub patient: String,
}

#[derive(Clone)]
pub struct App {
    pub addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// True while it is down.
    down: watch::Sender<bool>,
}

impl App {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = Self { addr, seen: Arc::default(), down: watch::Sender::new(false) };
        tokio::spawn(accept(listener, app.clone()));
        app
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Cuts every connection and takes no more.
    pub fn kill(&self) {
        self.down.send_replace(true);
    }

    pub fn revive(&self) {
        self.down.send_replace(false);
    }
}

async fn accept(listener: TcpListener, app: App) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let mut down = app.down.subscribe();
        if *down.borrow_and_update() {
            continue;
        }
        let app = app.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = serve(stream, app) => (),
                _ = down.changed() => (),
            }
        });
    }
}

async fn serve(stream: TcpStream, app: App) -> Result<(), hyper::Error> {
    let service = service_fn(|request: Request<Incoming>| {
        let number = app.note(&request);
        async move {
            // Some take a while, so that a kill finds requests half-way.
            if number.is_multiple_of(4) {
                tokio::time::sleep(Duration::from_millis(number as u64 % 16)).await;
            }
            let _ = request.into_body().collect().await; // a client that is cut off has its event all the same
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(
                b"{\"resourceType\":\"Patient\"}",
            ))))
        }
    });
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
}

impl App {
    fn note(&self, request: &Request<Incoming>) -> usize {
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let seen = Seen {
            trace_id: header("traceparent").and_then(|all| all.get(3..35)).unwrap_or_default().to_owned(),
            request_id: header("x-request-id").unwrap_or_default().to_owned(),
            patient: request.uri().path().rsplit('/').next().unwrap_or_default().to_owned(),
        };
        let mut all = self.seen.lock().unwrap();
        all.push(seen);
        all.len()
    }
}
