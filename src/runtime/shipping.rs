//! Delivery of the audit trail, from the start of a sidecar to the flush at its end: one task a sink, on a thread of their
//! own. Coding and encrypting a batch takes a millisecond, which must hold up no connection that is accepted meanwhile, and no
//! worker.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::runtime::Builder;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::StartError;
use crate::audit::{Audit, ShipTiming, Shipper};
use crate::background;
use crate::config::{Endpoint, SinkConfig, SinkTrust};
use crate::identity::SpiffeId;
use crate::resolve::Resolution;
use crate::tls::{self, Alpn, TlsSettings};

/// How often a `ca_file` is read again.
const CA_LOOK: Duration = Duration::from_secs(1);

/// The sinks of a sidecar.
pub(super) struct Shipping {
    /// Answers when all sinks have ended; `None` where there are none.
    ended: Option<oneshot::Receiver<()>>,
    /// Told at the end, with how long the flush may take.
    finish: watch::Sender<Option<Duration>>,
    tls: JoinSet<()>,
}

impl Shipping {
    /// Starts delivery to each of `sinks`, which the trail was started with.
    pub(super) fn start(
        sinks: &[SinkConfig],
        audit: &Audit,
        tls: &watch::Receiver<Arc<TlsSettings>>,
        names: &mut Resolution,
    ) -> Result<Self, StartError> {
        let (finish, finishing) = watch::channel(None);
        let mut shipping = Self { ended: None, finish, tls: JoinSet::new() };
        let mut shippers = Vec::new();
        for SinkConfig { sink, trust } in sinks {
            let endpoint = Endpoint { host: sink.endpoint.host.clone(), port: sink.endpoint.port };
            let addresses = names.watch(&[endpoint])?;
            let client = match trust {
                SinkTrust::Plain => None,
                SinkTrust::Identities(identities) => Some(shipping.by_identity(identities, tls.clone())),
                SinkTrust::Roots(ca_file) => Some(shipping.by_name(ca_file.as_ref())?),
            };
            shippers.push(audit.shipper(sink, addresses, client, ShipTiming::default())?);
        }
        if !shippers.is_empty() {
            shipping.ended =
                Some(spawn(shippers, finishing).map_err(|error| StartError::Internal(error.to_string()))?);
        }
        Ok(shipping)
    }

    /// Delivers what is left for at most `deadline`; the spool keeps the rest for the next process.
    pub(super) async fn finish(self, deadline: Duration) {
        self.finish.send_replace(Some(deadline));
        if let Some(ended) = self.ended {
            let _ = ended.await; // a thread that failed has ended too
        }
    }

    /// The newest settings toward a workload, made again at each rotation.
    fn by_identity(
        &mut self,
        identities: &Arc<[SpiffeId]>,
        mut tls: watch::Receiver<Arc<TlsSettings>>,
    ) -> watch::Receiver<Arc<ClientConfig>> {
        let identities = identities.clone();
        let current = tls.borrow_and_update().client(identities.clone(), Alpn::Http1);
        let (sender, receiver) = watch::channel(current);
        self.tls.spawn(async move {
            while tls.changed().await.is_ok() {
                let settings = tls.borrow_and_update().clone();
                sender.send_replace(settings.client(identities.clone(), Alpn::Http1));
            }
        });
        receiver
    }

    /// The newest settings toward a receiver that is known by its name, made again when its `ca_file` changes.
    fn by_name(
        &mut self,
        ca_file: Option<&PathBuf>,
    ) -> Result<watch::Receiver<Arc<ClientConfig>>, StartError> {
        let Some(path) = ca_file else {
            return Ok(watch::channel(tls::client_with_roots(tls::system_roots()?)?).1);
        };
        let (sender, receiver) = watch::channel(tls::client_with_roots(tls::file_roots(path)?)?);
        self.tls.spawn(keep_reading(path.clone(), sender));
        Ok(receiver)
    }
}

/// Reads a `ca_file` again and again. One that is not good is passed over: the last good one stays.
async fn keep_reading(path: PathBuf, settings: watch::Sender<Arc<ClientConfig>>) {
    let mut known = std::fs::read(&path).unwrap_or_default();
    while !settings.is_closed() {
        tokio::time::sleep(CA_LOOK).await;
        let file = path.clone();
        let read = tokio::task::spawn_blocking(move || (std::fs::read(&file), settings_of(&file))).await;
        let Ok((Ok(content), made)) = read else { continue };
        if std::mem::replace(&mut known, content.clone()) == content {
            continue;
        }
        match made {
            Ok(made) => drop(settings.send_replace(made)),
            Err(error) => tracing::error!("the CA certificates of an audit sink are refused: {error}"),
        }
    }
}

fn settings_of(ca_file: &Path) -> Result<Arc<ClientConfig>, StartError> {
    Ok(tls::client_with_roots(tls::file_roots(ca_file)?)?)
}

/// Checks what the sinks name, for `phiward check` and at the start: secrets and CA certificates.
pub(super) fn check(sinks: &[SinkConfig]) -> Result<(), StartError> {
    for SinkConfig { sink, trust } in sinks {
        if let Some(credentials) = &sink.credentials {
            drop(credentials.header()?);
        }
        match trust {
            SinkTrust::Roots(Some(ca_file)) => drop(tls::file_roots(ca_file)?),
            SinkTrust::Roots(None) => drop(tls::system_roots()?),
            SinkTrust::Plain | SinkTrust::Identities(_) => {}
        }
    }
    Ok(())
}

/// Delivers on a thread of its own until `finishing` tells the end.
fn spawn(
    shippers: Vec<Shipper>,
    finishing: watch::Receiver<Option<Duration>>,
) -> std::io::Result<oneshot::Receiver<()>> {
    // Two more are for the spool's files, of which one can be at work for long (what is behind is counted, or set aside).
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .on_thread_start(background::stand_back)
        .build()?;
    let (end, ended) = oneshot::channel();
    std::thread::Builder::new().name("audit-delivery".into()).spawn(move || {
        background::stand_back();
        runtime.block_on(async {
            let mut sinks: JoinSet<()> =
                shippers.into_iter().map(|shipper| deliver(shipper, finishing.clone())).collect();
            while sinks.join_next().await.is_some() {}
        });
        let _ = end.send(()); // a sidecar that did not start does not wait
    })?;
    Ok(ended)
}

async fn deliver(mut shipper: Shipper, mut finishing: watch::Receiver<Option<Duration>>) {
    tokio::select! {
        () = shipper.run() => (),
        asked = finishing.wait_for(Option::is_some) => drop(asked),
    }
    let deadline = finishing.borrow().unwrap_or_default();
    let left = shipper.finish(deadline).await;
    if left > 0 {
        tracing::warn!(bytes = left, "audit events are left in the spool; the next start delivers them");
    }
}
