//! TLS for the mesh leg: what a handshake offers, whom it accepts, and why it failed. (And, in `roots`, for audit sinks that
//! are no workloads.)
//!
//! Configurations are built once a rotation and shared; nothing here is done once a connection but to read the peer's
//! certificate. Both sides verify, TLS 1.3 unless told, nothing is resumed: a resumed session would skip the chain check
//! (CVE-2022-21654 is what that cost elsewhere). It knows identities, and nothing of policy, sockets or HTTP.

mod failure;
mod peer;
mod posture;
mod roots;
mod server_files;
mod settings;
#[cfg(test)]
mod tests;
mod verify;

pub use failure::{handshake_code, peer_error};
pub use peer::{PeerCert, PeerError, peer_cert, time_left};
pub use posture::{MinVersion, PostQuantum, Posture};
pub use roots::{RootsError, client_with_roots, file_roots, system_roots};
pub use server_files::{ServerFilesError, server_of_files};
pub use settings::{Alpn, TlsError, TlsSettings, cipher_name, dummy_server_name, version_name};
