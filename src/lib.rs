//! phiward: a per-pod access proxy for services that hand each other protected health information.

pub mod audit;
pub mod cli;
pub mod collector;
pub mod identity;
