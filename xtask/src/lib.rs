//! Every repeated command of the project, and the network laboratory that tests share with the demo.
//!
//! - [`setup`]: finds or installs what the build needs
//! - [`build`], [`run`], [`test`], [`lint`], [`tidy`]: one subcommand each
//! - [`bench`]: what the tracker costs, and `verifier-stats`
//! - [`captures`]: the score of `tcpfsm replay` on public captures
//! - [`conformance`]: the score of the machine on traces of real TCP stacks
//! - [`truth`]: the tracker against the sockets of real traffic
//! - [`docs`]: the parts of the documentation that are drawn from the code
//! - [`kernels`]: the tests on older kernels, emulated
//! - [`lab`]: two network namespaces joined by a veth pair, and a scripted TCP peer
//! - [`demo`]: real connections through every TCP state, on a [`lab`]
//! - [`progress`], [`command`], [`workspace`], [`stop`]: what the subcommands share
//!
//! xtask talks on stderr only: stdout belongs to the program that it runs.

pub mod bench;
pub mod build;
pub mod captures;
pub mod command;
pub mod conformance;
pub mod demo;
pub mod docs;
pub mod kernels;
pub mod lab;
pub mod lint;
pub mod progress;
pub mod run;
pub mod setup;
pub mod stop;
pub mod test;
pub mod tidy;
pub mod truth;
pub mod workspace;
