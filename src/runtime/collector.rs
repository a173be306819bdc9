//! A collector put together from its configuration: identity, its renewal, the store.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::StartError;
use super::loaded::load_identity;
use crate::audit::SpoolKey;
use crate::collector::{self, Collector, CollectorError};
use crate::config::CollectorConfig;

/// A collector that is bound and not yet serving.
pub struct BoundCollector {
    collector: Collector,
    address: SocketAddr,
    admin: SocketAddr,
    tasks: JoinSet<()>,
}

impl BoundCollector {
    /// Loads the identity, opens the store and listens.
    ///
    /// # Errors
    /// The identity, the store or the address cannot be used.
    pub async fn bind(config: &CollectorConfig) -> Result<Self, StartError> {
        let (settings, origin) = load_identity(&config.identity, config.tls)?;
        let (server, newest_server) = watch::channel(settings.server());
        let (sender, mut newest) = watch::channel(Arc::new(settings));
        let mut tasks = JoinSet::new();
        let (collector, address) = Collector::bind(collector::CollectorConfig {
            bind: config.bind,
            store: config.store.clone(),
            key: SpoolKey::from_files(&config.key_files)?,
            tls: Some(newest_server),
            relays: config.relays.clone(),
            retention: config.retention,
        })?;
        let metrics = collector.metrics().clone();
        let admin_error = |error| CollectorError::Bind { bind: config.admin.bind, error };
        let admin = TcpListener::bind(config.admin.bind).await.map_err(admin_error)?;
        let admin_address = admin.local_addr().map_err(admin_error)?;
        tasks.spawn(collector::serve_admin(admin, metrics.clone()));
        tasks.spawn(origin.renew(sender, None));
        metrics.svid_expiry.set(newest.borrow().material().svid.not_after());
        tasks.spawn(async move {
            while newest.changed().await.is_ok() {
                let settings = newest.borrow_and_update().clone();
                metrics.svid_expiry.set(settings.material().svid.not_after());
                server.send_replace(settings.server());
            }
        });
        Ok(Self { collector, address, admin: admin_address, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its admin endpoint listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Serves until `stop` is done, then lets requests under way end.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), StartError> {
        let Self { collector, tasks, .. } = self;
        let served = collector.serve(stop).await;
        drop(tasks);
        Ok(served?)
    }
}
