//! phiward: a per-pod access proxy for services that hand each other protected health information.
//!
//! ```text
//! caller app --plain--> outbound ==mTLS, SPIFFE==> inbound --plain--> app
//!                                                    |-- policy: who may do what
//!                                                    '-- audit: recorded before it is forwarded --> collector
//! ```
//!
//! The rooms, from the inside out. Each module's first lines say what it owns and what it refuses to know.
//!
//! - [`identity`]: SPIFFE IDs, SVIDs, bundles. Pure, but for the files it reads. [`spire`]: the same from a SPIRE
//!   agent. `federation`: bundles from their endpoints. [`tls`]: rustls settings from them.
//! - [`policy`]: the RBAC file, compiled and decided. Pure: no I/O, no clock, no HTTP types. [`yaml`]: files with places.
//! - [`audit`]: typed events, the hash chain, the spool on disk, delivery. [`collector`]: the other end of delivery.
//! - `proxy`: the data path. `proxy/forward.rs` shows a request from top to bottom.
//! - [`runtime`]: a sidecar put together, started and ended. `reload`, `resolve`, [`drain`], [`admin`], [`metrics`],
//!   `background`: its parts. `pieces`: bytes that are sent from where they are.
//! - [`kubernetes`]: a sidecar put into a pod, and the pod's traffic led through it.
//! - [`config`]: the configuration file. [`cli`]: the commands. [`dev`]: a whole mesh on one machine.
//!
//! Threads: worker threads carry traffic, each a single-threaded runtime that shares nothing with the others; one thread
//! writes the audit spool, one syncs it, one delivers; one control thread does everything else. What changes while running (policy, TLS settings,
//! addresses) reaches a worker through `watch` channels, whose version is one atomic load to look at.
//!
//! A request: [`policy::admit`] refuses what is ambiguous; the policy decides by the grants bound to the connection; the
//! decision takes a place in the audit trail and is in the kernel before a byte is forwarded; bodies stream through; the
//! end of the response records the completion, by whichever way it came.

pub mod admin;
pub mod audit;
mod background;
pub mod cli;
pub mod collector;
pub mod config;
pub mod dev;
pub mod drain;
mod federation;
pub mod identity;
pub mod kubernetes;
pub mod logging;
pub mod metrics;
mod pieces;
pub mod policy;
mod proxy;
pub mod reload;
mod resolve;
pub mod runtime;
pub mod spire;
pub mod tls;
pub mod yaml;
