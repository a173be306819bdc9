//! phiward: a per-pod access proxy for services that hand each other protected health information.

pub mod cli;
pub mod identity;
pub mod policy;
pub mod yaml;
