//! Who a workload is: SPIFFE IDs, the SVIDs that prove them and the bundles that vouch for SVIDs.
//!
//! Parsing and checking are pure; only [`files`] reads files. This module knows nothing of sockets, HTTP, policy or the
//! clock: the time is passed in.
//!
//! From the outside in: [`load`] turns three files into a checked [`Material`]; [`Leaf`] holds the rules for one
//! certificate; [`Bundles`] follows its chain to the bundle of its own trust domain; [`Ca`] makes SVIDs for development.

mod bundle;
mod ca;
mod error;
pub mod files;
#[cfg(test)]
mod handmade;
pub mod inspect;
mod leaf;
mod material;
mod pattern;
mod pem;
mod spiffe_id;
#[cfg(test)]
pub(crate) mod testing;

pub use bundle::{Bundle, Bundles, MAX_INTERMEDIATES};
pub use ca::{Ca, CaError, IssuedSvid};
pub(crate) use error::utc;
pub use error::{AnchorError, IdentityError, SvidError};
pub use files::{BundlePaths, FileContents, FilePaths, digest, load};
pub use leaf::{Leaf, Usage, certificate_sha256_hex};
pub(crate) use material::read_bundle;
pub use material::{
    BundlePem, DerSet, Material, PemFile, PemSet, Svid, material_from_der, material_from_pem,
};
pub use pattern::{IdPattern, IdPatternError};
pub use pem::PemError;
pub use spiffe_id::{MAX_SPIFFE_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SpiffeId, SpiffeIdError, TrustDomain};
