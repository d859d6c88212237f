//! The tcpfsm daemon and command line.
