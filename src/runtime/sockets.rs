//! The sockets of a sidecar, bound before anything is served: an address that is taken is found out first.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;

use super::StartError;
use crate::config::SidecarConfig;

/// Where a running sidecar listens, which port 0 leaves to the system.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// The inbound listeners, in the order of the configuration.
    pub inbound: Vec<SocketAddr>,
    /// The probe listener.
    pub probes: Option<SocketAddr>,
    /// The outbound listener.
    pub outbound: Option<SocketAddr>,
    /// The admin endpoint.
    pub admin: SocketAddr,
}

/// Sockets that are listened on, before anything is served: an address that is taken is found out first.
pub(super) struct Bound {
    pub(super) admin: TcpListener,
    /// Inbound, then probes, then outbound, as the workers' listeners are ordered.
    pub(super) traffic: Vec<(TcpListener, Kind)>,
}

pub(super) enum Kind {
    Inbound,
    Probes,
    Outbound,
}

impl Bound {
    pub(super) async fn bind(config: &SidecarConfig) -> Result<Self, StartError> {
        let mut traffic = Vec::new();
        if let Some(inbound) = &config.inbound {
            for listener in &inbound.listeners {
                traffic.push((bind(&listener.name, listener.bind).await?, Kind::Inbound));
            }
            if let Some(probes) = &inbound.probes {
                traffic.push((bind("probes", probes.bind).await?, Kind::Probes));
            }
        }
        if let Some(outbound) = &config.outbound {
            traffic.push((bind("outbound", outbound.bind).await?, Kind::Outbound));
        }
        Ok(Self { admin: bind("admin", config.admin.bind).await?, traffic })
    }

    pub(super) fn addresses(&self) -> Addresses {
        // A bound socket has an address; the fallback is never seen.
        let addr = |socket: &TcpListener| {
            socket.local_addr().unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
        };
        let mut addresses =
            Addresses { inbound: Vec::new(), probes: None, outbound: None, admin: addr(&self.admin) };
        for (socket, kind) in &self.traffic {
            match kind {
                Kind::Inbound => addresses.inbound.push(addr(socket)),
                Kind::Probes => addresses.probes = Some(addr(socket)),
                Kind::Outbound => addresses.outbound = Some(addr(socket)),
            }
        }
        addresses
    }
}

async fn bind(what: &str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(addr).await;
    bound.map_err(|source| StartError::Bind { what: what.to_owned(), addr, source })
}
