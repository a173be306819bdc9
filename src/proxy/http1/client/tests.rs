//! Connections against an upstream that is played by the test.
