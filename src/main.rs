//! The `phiward` binary.
fn main() {}
