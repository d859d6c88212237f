//! What tcpfsm knows of TCP, and nothing of where packets come from.
//!
//! ```text
//! packet ─► parse ─► flow key ─► FSM ─► verdict + facts ─► event
//!           packet/  flow.rs     fsm/   abi/verdict.rs     abi/event.rs
//! ```
//!
//! This crate is compiled into the kernel programs and into userspace, so both see a segment alike.
//! Architecture invariants: no allocation, no clock, no I/O, no `unsafe`, no aya, and nothing here can panic;
//! every state change goes through [`fsm::next`].

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod fact;
pub mod flow;
pub mod fsm;
pub mod packet;
pub mod segment;
pub mod seq;
