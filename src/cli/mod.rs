//! The command line: one file a command family. It prints and holds no logic.

pub mod identity;
