//! The admission webhook: the API server asks about each new pod, and gets a patch or a refusal (admission.k8s.io/v1).
//!
//! Owns the TLS endpoint and its certificate's renewal. What is done to a pod is [`super::inject`]'s.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::inject::{Outcome, inject, patch};
use crate::config::{Injection, WebhookServer};
use crate::tls::{self, ServerFilesError};

/// Why the webhook does not start.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// Its certificate or key.
    #[error(transparent)]
    Certificate(#[from] ServerFilesError),
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {error}; is another process using it?")]
    Bind {
        /// The address.
        addr: std::net::SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
}

/// The largest request: an object is at most 1.5 MiB in etcd, and a review holds one or two.
const MAX_BODY: usize = 4 << 20;
/// The API server waits for 10 s unless told otherwise.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the API server keeps a connection that it has no use for, which is 90 s (`IdleConnTimeout` of its HTTP client): one
/// that is closed at this end can take a request with it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// For how long a webhook that is asked to stop still takes connections, from those who have not heard yet, and then waits for answers
/// that are under way.
const LAST_CALLERS: Duration = Duration::from_secs(5);
/// How often the certificate's files are read.
const LOOK: Duration = Duration::from_secs(5);

/// How far a webhook is on its way out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// It serves, and sends who asks to another.
    Leaving,
    /// It ends what is under way.
    Over,
}

/// A webhook that listens.
pub struct Webhook {
    listener: TcpListener,
    certificate: Certificate,
    injection: Arc<Injection>,
}

/// The files, and the settings that were made of them.
struct Certificate {
    files: (PathBuf, PathBuf),
    settings: watch::Sender<Arc<rustls::ServerConfig>>,
}

impl Webhook {
    /// Reads the certificate and listens.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub async fn bind(server: WebhookServer, injection: Injection) -> Result<Self, WebhookError> {
        let first = tls::server_of_files(&server.certificate, &server.private_key)?;
        let listener = TcpListener::bind(server.bind).await;
        let listener = listener.map_err(|error| WebhookError::Bind { addr: server.bind, error })?;
        let certificate = Certificate {
            files: (server.certificate, server.private_key),
            settings: watch::Sender::new(first),
        };
        Ok(Self { listener, certificate, injection: Arc::new(injection) })
    }

    /// Where it listens, once port 0 was replaced.
    ///
    /// # Errors
    /// What the system says.
    pub fn addr(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `asked` to stop, and then for some seconds more: an API server's request that fails is a pod that is not made,
    /// or that starts without its sidecar. Whoever is answered meanwhile is told not to use the connection again.
    pub async fn serve(self, asked: impl Future<Output = ()>) {
        let (stage, mut connections) = (watch::Sender::new(Stage::Serving), JoinSet::new());
        let mut settings = self.certificate.settings.subscribe();
        let mut stop = pin!(async {
            asked.await;
            stage.send_replace(Stage::Leaving);
            tokio::time::sleep(LAST_CALLERS).await;
        });
        let mut renew = pin!(self.certificate.renew());
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let settings = settings.borrow_and_update().clone();
                        connections.spawn(connection(stream, settings, self.injection.clone(), stage.subscribe()));
                    }
                    // Out of file descriptors, or the client has gone.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
                Some(_) = connections.join_next() => {}
                () = &mut renew => {}
                () = &mut stop => break,
            }
        }
        drop(self.listener);
        stage.send_replace(Stage::Over);
        let ended = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_CALLERS, ended).await; // what is left is cut
    }
}

impl Certificate {
    /// Takes each new certificate that fits its key; cert-manager and Helm replace both.
    async fn renew(&self) {
        let mut tick = tokio::time::interval(LOOK);
        loop {
            tick.tick().await;
            match tls::server_of_files(&self.files.0, &self.files.1) {
                Ok(settings) => drop(self.settings.send_replace(settings)),
                Err(error) => tracing::warn!(%error, "the last certificate stays"),
            }
        }
    }
}

/// Serves one connection, until the client ends it or all is over.
async fn connection(
    stream: TcpStream,
    settings: Arc<rustls::ServerConfig>,
    injection: Arc<Injection>,
    mut stage: watch::Receiver<Stage>,
) {
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(settings).accept(stream)).await;
    let Ok(Ok(stream)) = shaken else { return };
    let now = stage.clone();
    let service = service_fn(move |request| {
        let (injection, now) = (injection.clone(), now.clone());
        async move {
            let mut answer = answer(request, &injection).await;
            if *now.borrow() != Stage::Serving {
                answer.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let over = async { drop(stage.wait_for(|stage| *stage == Stage::Over).await) };
    let outcome = tokio::select! {
        outcome = &mut served => outcome,
        () = over => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn answer(request: Request<Incoming>, injection: &Injection) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/live" | "/ready") => reply(StatusCode::OK, "text/plain", "ok\n".into()),
        (&Method::POST, "/inject") => match Limited::new(request.into_body(), MAX_BODY).collect().await {
            Err(_) => {
                reply(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "larger than 4 MiB, or cut\n".into())
            }
            Ok(body) => match review(&body.to_bytes(), injection) {
                Some(review) => reply(StatusCode::OK, "application/json", review.to_string()),
                None => reply(
                    StatusCode::BAD_REQUEST,
                    "text/plain",
                    "this is no AdmissionReview of admission.k8s.io/v1\n".into(),
                ),
            },
        },
        _ => reply(StatusCode::NOT_FOUND, "text/plain", "POST /inject, GET /live, GET /ready\n".into()),
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// The answer to an AdmissionReview; none to anything else.
pub fn review(body: &[u8], injection: &Injection) -> Option<Value> {
    let review: Value = serde_json::from_slice(body).ok()?;
    let request = review.get("request")?;
    let uid = request["uid"].as_str()?;
    if review["apiVersion"] != "admission.k8s.io/v1" || review["kind"] != "AdmissionReview" {
        return None;
    }
    let mut response = json!({"uid": uid, "allowed": true});
    let before = &request["object"];
    if request["kind"]["kind"] == "Pod" && before.is_object() {
        let namespace = request["namespace"].as_str().unwrap_or("default");
        let mut after = before.clone();
        // A pod that a controller makes has no name yet.
        let name = |key: &str| before["metadata"][key].as_str();
        let pod = name("name").or(name("generateName")).unwrap_or_default();
        match inject(&mut after, namespace, injection) {
            Ok(Outcome::Injected) => {
                tracing::info!(namespace, pod, "a pod gets a sidecar");
                response["patchType"] = json!("JSONPatch");
                response["patch"] = json!(BASE64_STANDARD.encode(patch(before, &after).to_string()));
            }
            Ok(outcome @ (Outcome::Already | Outcome::Declined)) => {
                tracing::info!(namespace, pod, ?outcome, "a pod stays as it is");
            }
            Err(refusal) => {
                tracing::info!(namespace, pod, %refusal, "a pod was refused");
                response["allowed"] = json!(false);
                response["status"] =
                    json!({"code": 422, "reason": "Invalid", "message": refusal.to_string()});
            }
        }
    }
    Some(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}
