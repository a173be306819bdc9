//! Whether what vouched for a peer still does.
//!
//! A handshake proves who a peer is by a chain to a bundle. When a bundle changes while the connection lives, the proof is
//! made again, once for each certificate and not for each connection; where it fails, every connection that stands on it
//! ends. Owns the certificates of a worker's open mesh connections. What they are allowed to do is the policy's matter.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use rustls::CommonState;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::outcome::PEER_EXPIRED;
use crate::identity::{Bundles, Leaf, Usage};
use crate::tls::{PeerCert, TlsSettings};

/// The certificates that this worker's open mesh connections stand on.
pub(crate) struct Peers {
    tls: watch::Receiver<Arc<TlsSettings>>,
    known: RefCell<HashMap<Key, Weak<Vouched>>>,
    /// When as many are known, those whose connections have ended are forgotten.
    tidy_at: Cell<usize>,
}

/// A certificate, as it is used.
type Key = (Usage, String);

/// A certificate that was verified, shared by all connections that showed it.
pub(crate) struct Vouched {
    chain: Vec<CertificateDer<'static>>,
    usage: Usage,
    lost: Cell<Option<&'static str>>,
    told: Notify,
}

/// What a connection stands on, and until when.
#[derive(Clone)]
pub(crate) struct Tenure {
    /// When the first of both sides' certificates runs out.
    pub(crate) end: Instant,
    pub(crate) vouched: Rc<Vouched>,
}

const TIDY_FIRST: usize = 64;

impl Peers {
    /// Of handshakes by what `tls` says.
    pub(crate) fn new(tls: watch::Receiver<Arc<TlsSettings>>) -> Rc<Self> {
        Rc::new(Self { tls, known: RefCell::default(), tidy_at: Cell::new(TIDY_FIRST) })
    }

    /// Takes note of a peer that `settings` have verified just now.
    ///
    /// # Errors
    /// The settings changed meanwhile, and by the new ones it is not to be believed: the reason's code.
    pub(crate) fn join(
        &self,
        settings: &Arc<TlsSettings>,
        connection: &CommonState,
        peer: &PeerCert,
        usage: Usage,
    ) -> Result<Rc<Vouched>, &'static str> {
        let key = (usage, peer.sha256_hex.clone());
        let known = self.known.borrow().get(&key).and_then(Weak::upgrade);
        let vouched = known.unwrap_or_else(|| {
            let shown = connection.peer_certificates().unwrap_or_default();
            let chain = shown.iter().map(|der| der.clone().into_owned()).collect();
            let vouched = Rc::new(Vouched { chain, usage, lost: Cell::new(None), told: Notify::new() });
            self.known.borrow_mut().insert(key, Rc::downgrade(&vouched));
            self.tidy();
            vouched
        });
        let current = self.tls.borrow().clone();
        if !Arc::ptr_eq(settings, &current) {
            vouched.judge(&current.material().bundles)?;
        }
        Ok(vouched)
    }

    /// Judges all again whenever a bundle changes, until the worker ends.
    pub(crate) async fn watch(self: Rc<Self>) {
        let mut tls = self.tls.clone();
        let mut settings = tls.borrow_and_update().clone();
        while tls.changed().await.is_ok() {
            let newest = tls.borrow_and_update().clone();
            if newest.material().bundles != settings.material().bundles {
                let known: Vec<_> = self.known.borrow().values().filter_map(Weak::upgrade).collect();
                for vouched in known {
                    if let Err(reason) = vouched.judge(&newest.material().bundles) {
                        vouched.lose(reason);
                    }
                }
            }
            settings = newest;
        }
    }

    fn tidy(&self) {
        let mut known = self.known.borrow_mut();
        if known.len() >= self.tidy_at.get() {
            known.retain(|_, vouched| vouched.strong_count() > 0);
            self.tidy_at.set((2 * known.len()).max(TIDY_FIRST));
        }
    }
}

impl Vouched {
    /// Whether `bundles` still vouch for it.
    fn judge(&self, bundles: &Bundles) -> Result<(), &'static str> {
        let Some((end_entity, intermediates)) = self.chain.split_first() else {
            return Err("no_certificate");
        };
        let leaf = Leaf::parse(end_entity).map_err(|reason| reason.code())?;
        let judged = bundles.verify(&leaf, end_entity, intermediates, self.usage, UnixTime::now());
        judged.map_err(|reason| {
            tracing::warn!(peer = %leaf.id, "the peer is believed no more, its connections end: {reason}");
            reason.code()
        })
    }

    fn lose(&self, reason: &'static str) {
        self.lost.set(Some(reason));
        self.told.notify_waiters();
    }

    /// Returns when nothing vouches for it any more, with the reason's code.
    pub(crate) async fn lost(&self) -> &'static str {
        loop {
            // In this order nothing is missed: one thread, and no await between.
            if let Some(reason) = self.lost.get() {
                return reason;
            }
            self.told.notified().await;
        }
    }
}

impl Tenure {
    /// Returns when the connection must end, with the reason's code.
    pub(crate) async fn over(&self) -> &'static str {
        tokio::select! {
            reason = self.vouched.lost() => reason,
            () = tokio::time::sleep_until(self.end) => PEER_EXPIRED,
        }
    }
}
