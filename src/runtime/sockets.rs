//! The sockets of a sidecar, bound before anything is served: an address that is taken is found out first.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Type};
use tokio::net::TcpListener;

use super::StartError;
use crate::config::{Bind, SidecarConfig};

/// Where a running sidecar listens, which port 0 leaves to the system.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// The inbound listeners, in the order of the configuration.
    pub inbound: Vec<SocketAddr>,
    /// The probe listener.
    pub probes: Option<SocketAddr>,
    /// The outbound listener.
    pub outbound: Option<SocketAddr>,
    /// Services that have listeners of their own, in the order of the configuration.
    pub services: Vec<SocketAddr>,
    /// The admin endpoint.
    pub admin: SocketAddr,
    /// Where `/metrics` is served alone.
    pub metrics: Option<SocketAddr>,
}

/// Sockets that are listened on, before anything is served: an address that is taken is found out first.
pub(super) struct Bound {
    pub(super) admin: TcpListener,
    pub(super) metrics: Vec<TcpListener>,
    pub(super) traffic: Vec<Socket>,
}

/// A socket, and which of the workers' listeners it belongs to: inbound, then probes, then outbound, then services with sockets of
/// their own.
pub(super) struct Socket {
    pub(super) socket: TcpListener,
    pub(super) listener: usize,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Inbound,
    Probes,
    Outbound,
    Service,
}

impl Bound {
    pub(super) async fn bind(config: &SidecarConfig) -> Result<Self, StartError> {
        let mut wanted: Vec<(&str, &Bind, Kind)> = Vec::new();
        if let Some(inbound) = &config.inbound {
            wanted.extend(inbound.listeners.iter().map(|l| (l.name.as_str(), &l.bind, Kind::Inbound)));
            wanted.extend(inbound.probes.iter().map(|probes| ("probes", &probes.bind, Kind::Probes)));
        }
        if let Some(outbound) = &config.outbound {
            wanted.push(("outbound", &outbound.bind, Kind::Outbound));
            let own = outbound
                .services
                .iter()
                .filter_map(|s| Some((s.name.as_str(), s.tcp_bind()?, Kind::Service)));
            wanted.extend(own);
        }
        let mut traffic = Vec::new();
        for (listener, (what, addresses, kind)) in wanted.into_iter().enumerate() {
            for socket in bind_all(what, addresses).await? {
                traffic.push(Socket { socket, listener, kind });
            }
        }
        let metrics = match &config.admin.metrics {
            Some(addresses) => bind_all("metrics", addresses).await?,
            None => Vec::new(),
        };
        Ok(Self { admin: bind("admin", config.admin.bind).await?, metrics, traffic })
    }

    pub(super) fn addresses(&self) -> Addresses {
        // A bound socket has an address; the fallback is never seen.
        let addr = |socket: &TcpListener| {
            socket.local_addr().unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
        };
        let mut addresses = Addresses {
            inbound: Vec::new(),
            probes: None,
            outbound: None,
            services: Vec::new(),
            admin: addr(&self.admin),
            metrics: self.metrics.first().map(addr),
        };
        for Socket { socket, kind, .. } in &self.traffic {
            match kind {
                Kind::Inbound => addresses.inbound.push(addr(socket)),
                Kind::Probes => addresses.probes = Some(addr(socket)),
                Kind::Outbound => addresses.outbound = Some(addr(socket)),
                Kind::Service => addresses.services.push(addr(socket)),
            }
        }
        addresses
    }
}

/// All of `addresses`, but for those of a family that this host does not have, while there is another.
async fn bind_all(what: &str, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, StartError> {
    let (mut sockets, mut lacking) = (Vec::new(), None);
    for address in addresses {
        let bound = if addresses.len() > 1 { bind_alone(what, *address) } else { bind(what, *address).await };
        match bound {
            Ok(socket) => sockets.push(socket),
            Err(StartError::Bind { source, addr, what }) if addresses.len() > 1 && is_lacking(&source) => {
                tracing::info!(%addr, what, "not listened on: this host has no such address ({source})");
                lacking = Some(StartError::Bind { source, addr, what });
            }
            Err(error) => return Err(error),
        }
    }
    match lacking {
        Some(error) if sockets.is_empty() => Err(error),
        _ => Ok(sockets),
    }
}

/// `EAFNOSUPPORT` or `EADDRNOTAVAIL`: IPv6 is not there, or switched off.
fn is_lacking(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(97 | 99))
}

/// One of several: `[::]` takes IPv6 alone then, so that `0.0.0.0` can stand beside it.
fn bind_alone(what: &str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    const WAITING: i32 = 1024;
    let bound = || {
        let socket = socket2::Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(WAITING)?;
        TcpListener::from_std(socket.into())
    };
    bound().map_err(|source| StartError::Bind { what: what.to_owned(), addr, source })
}

async fn bind(what: &str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(addr).await;
    bound.map_err(|source| StartError::Bind { what: what.to_owned(), addr, source })
}
