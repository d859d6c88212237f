//! What the host itself knows of a flow: its socket, whose it is, and whether the address is ours.
//!
//! ```text
//! (local, remote) ─► sock_diag ─► Socket ─► inode ─► fds ─► pid ─► process ─► comm, exe
//!                                 │                                 cgroup  ─► unit, container, pod
//!                                 └► cgroup id ─► cgroup_ids ─────────────┘
//! address         ─► addresses ─► local?
//! ```
//!
//! All of it is a second opinion: the wire's view never waits for it, each question is bounded in time and
//! each cache in size and age, and what cannot be known is `None`, with the reason in [`Host::degraded`].
//! Everything is asked in the network and PID namespace of the calling process.

mod addresses;
mod cgroup;
mod cgroup_ids;
mod fds;
mod owner;
mod process;
mod sock_diag;
mod view;

pub use addresses::{Addresses, address_interfaces};
pub use cgroup::Placement;
pub(crate) use fds::sees_every_pid;
pub use fds::{Degraded, FdIndex, Holder};
pub use owner::{Answer, Confidence, Owner, Whose, WhyUnowned};
pub use process::{Process, Processes};
pub use sock_diag::{SockDiag, Socket, States, Timer};
pub use view::Host;
