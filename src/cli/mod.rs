//! The commands: one file a family. Each prints and holds no logic.

pub mod policy;
