//! The `tcpfsm` binary.
fn main() {}
