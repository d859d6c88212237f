//! The one bridge between zerocopy's proof that a type is plain data and aya's marker for it.

use aya::Pod;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A value of the ABI as aya wants it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Raw<T>(pub T);

// SAFETY: `Raw<T>` has the layout of `T`; `FromBytes` proves that every byte sequence is a valid `T`, and
// `IntoBytes` that it has no padding.
unsafe impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> Pod for Raw<T> {}
