//! Who a workload is: SPIFFE IDs, the SVIDs that prove them and the bundles that vouch for SVIDs.
//!
//! Parsing is pure; only the sources read files. This module knows nothing of sockets, HTTP, policy or the clock: the
//! time is passed in.

mod pattern;
mod spiffe_id;

pub use pattern::{IdPattern, IdPatternError};
pub use spiffe_id::{MAX_SPIFFE_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SpiffeId, SpiffeIdError, TrustDomain};
