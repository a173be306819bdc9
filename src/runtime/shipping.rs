//! Delivery of the audit trail: one task a sink, from the start of a sidecar to the flush at its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::StartError;
use crate::audit::{self, Audit, ShipTiming, Shipper};
use crate::config::SinkConfig;
use crate::resolve::Resolution;
use crate::tls::{Alpn, TlsSettings};

/// The sinks of a sidecar.
pub(super) struct Shipping {
    sinks: JoinSet<()>,
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
        let mut shipping = Self { sinks: JoinSet::new(), finish, tls: JoinSet::new() };
        for sink in sinks {
            let addresses = names.watch(std::slice::from_ref(&sink.endpoint))?;
            let client = sink.https.then(|| shipping.client_settings(sink, tls.clone()));
            let shipper = audit.shipper(&audit_sink(sink), addresses, client, ShipTiming::default())?;
            shipping.sinks.spawn(deliver(shipper, finishing.clone()));
        }
        Ok(shipping)
    }

    /// Delivers what is left for at most `deadline`; the spool keeps the rest for the next process.
    pub(super) async fn finish(mut self, deadline: Duration) {
        self.finish.send_replace(Some(deadline));
        while self.sinks.join_next().await.is_some() {}
    }

    /// The newest client settings for `sink`, made again at each rotation.
    fn client_settings(
        &mut self,
        sink: &SinkConfig,
        mut tls: watch::Receiver<Arc<TlsSettings>>,
    ) -> watch::Receiver<Arc<rustls::ClientConfig>> {
        let identities = sink.identities.clone();
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

/// A sink as the trail knows it.
pub(super) fn audit_sink(sink: &SinkConfig) -> audit::SinkConfig {
    audit::SinkConfig {
        name: sink.name.clone(),
        endpoint: audit::Endpoint {
            https: sink.https,
            host: sink.endpoint.host.clone(),
            port: sink.endpoint.port,
        },
        required: sink.required,
    }
}
