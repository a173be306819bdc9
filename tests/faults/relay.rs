//! The network between the sidecars: an address that stays while the peer behind it is killed and started again, and
//! connections that can be cut.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::process::Target;

pub struct Relay {
    pub addr: SocketAddr,
    cuts: watch::Sender<u32>,
}

impl Relay {
    pub async fn to(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let cuts = watch::Sender::new(0);
        let cut = cuts.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(carry(stream, target.clone(), cut.subscribe()));
            }
        });
        Self { addr, cuts }
    }

    /// Breaks every connection of now.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn carry(mut near: TcpStream, target: Target, mut cut: watch::Receiver<u32>) {
    let Some(addr) = target.now() else { return };
    let Ok(mut far) = TcpStream::connect(addr).await else { return };
    let _ = near.set_nodelay(true); // only speed is lost
    let _ = far.set_nodelay(true);
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => (),
        _ = cut.changed() => (),
    }
}
