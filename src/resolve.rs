//! Names of endpoints to addresses, again and again, away from the threads that carry traffic.
//!
//! Owns the resolver and one task an upstream; publishes the addresses through a `watch` channel. The resolver is in the
//! binary, which is static and so has no name service switch of the system; it reads `/etc/resolv.conf` and `/etc/hosts`.
//! When a look-up fails the last good addresses stay.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Endpoint;

/// How often names are looked up again. Answers are cached for their TTL, so a look-up costs a query at most then.
const REFRESH: Duration = Duration::from_secs(5);
/// How long to wait after a look-up that found nothing at all.
const RETRY: Duration = Duration::from_millis(500);

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
#[error("no DNS resolver: {0}; give endpoints as IP addresses or mend /etc/resolv.conf")]
pub struct ResolveError(String);

/// Resolves endpoints for as long as it lives.
pub(crate) struct Resolution {
    tasks: JoinSet<()>,
    resolver: Option<Arc<TokioResolver>>,
}

impl Resolution {
    pub(crate) fn new() -> Self {
        Self { tasks: JoinSet::new(), resolver: None }
    }

    /// The addresses of `endpoints` taken together, kept up to date. Literal addresses are there at once, without DNS.
    ///
    /// # Errors
    /// A name is among them, and there is no resolver.
    pub(crate) fn watch(
        &mut self,
        endpoints: &[Endpoint],
    ) -> Result<watch::Receiver<Arc<[SocketAddr]>>, ResolveError> {
        let literal: Option<Vec<SocketAddr>> = endpoints.iter().map(literal_address).collect();
        if let Some(addresses) = literal {
            return Ok(watch::channel(addresses.into()).1);
        }
        let resolver = self.resolver()?;
        let (sender, receiver) = watch::channel(Arc::from([]));
        self.tasks.spawn(keep_resolving(resolver, endpoints.to_vec(), sender));
        Ok(receiver)
    }

    fn resolver(&mut self) -> Result<Arc<TokioResolver>, ResolveError> {
        if let Some(resolver) = &self.resolver {
            return Ok(resolver.clone());
        }
        let built = TokioResolver::builder_tokio().and_then(|builder| builder.build());
        let resolver = Arc::new(built.map_err(|error| ResolveError(error.to_string()))?);
        self.resolver = Some(resolver.clone());
        Ok(resolver)
    }
}

fn literal_address(endpoint: &Endpoint) -> Option<SocketAddr> {
    let ip: IpAddr = endpoint.host.parse().ok()?;
    Some(SocketAddr::new(ip, endpoint.port))
}

async fn keep_resolving(
    resolver: Arc<TokioResolver>,
    endpoints: Vec<Endpoint>,
    published: watch::Sender<Arc<[SocketAddr]>>,
) {
    let mut names: Vec<Name> = endpoints.into_iter().map(Name::new).collect();
    while !published.is_closed() {
        for name in &mut names {
            name.look_up(&resolver).await;
        }
        let mut found: Vec<SocketAddr> = names.iter().flat_map(|name| name.addresses.clone()).collect();
        // So that an answer in another order is no change.
        found.sort_unstable();
        found.dedup();
        let wait = if found.is_empty() { RETRY } else { REFRESH };
        published.send_if_modified(|current| {
            let changed = **current != *found;
            if changed {
                *current = found.into();
            }
            changed
        });
        tokio::time::sleep(wait).await;
    }
}

/// An endpoint and its last good addresses.
struct Name {
    endpoint: Endpoint,
    literal: bool,
    addresses: Vec<SocketAddr>,
    fails: bool,
}

impl Name {
    fn new(endpoint: Endpoint) -> Self {
        let literal = literal_address(&endpoint);
        Self { literal: literal.is_some(), addresses: literal.into_iter().collect(), endpoint, fails: false }
    }

    /// Says when look-ups begin to fail and when they are good again, and not each time.
    async fn look_up(&mut self, resolver: &TokioResolver) {
        if self.literal {
            return;
        }
        let host = self.endpoint.host.as_str();
        match resolver.lookup_ip(host).await {
            Ok(ips) => {
                self.addresses = ips.iter().map(|ip| SocketAddr::new(ip, self.endpoint.port)).collect();
                if std::mem::take(&mut self.fails) {
                    tracing::info!(host, addresses = self.addresses.len(), "the name is found again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.fails, true) {
                    let kept = self.addresses.len();
                    tracing::warn!(host, %error, kept, "a name is not found; its last addresses stay");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a sidecar that needs no DNS does not start without it.
    #[tokio::test]
    async fn literal_addresses_need_no_resolver() {
        let endpoint = |host: &str| Endpoint { host: host.into(), port: 15006 };
        let mut resolution = Resolution::new();
        let addresses = resolution.watch(&[endpoint("127.0.0.1"), endpoint("::1")]).unwrap();
        assert_eq!(addresses.borrow().len(), 2);
        assert!(resolution.resolver.is_none());
    }

    /// If this fails, names of the hosts file (`localhost` among them) cannot be endpoints.
    #[tokio::test]
    async fn localhost_is_found_without_a_name_server() {
        let mut resolution = Resolution::new();
        let endpoint = Endpoint { host: "localhost".into(), port: 15006 };
        let mut addresses = resolution.watch(&[endpoint]).unwrap();
        addresses.changed().await.unwrap();
        assert!(addresses.borrow().iter().all(|addr| addr.ip().is_loopback() && addr.port() == 15006));
    }
}
