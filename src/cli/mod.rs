//! The commands: one file a family. They parse arguments, call the library and print.

pub mod audit;
