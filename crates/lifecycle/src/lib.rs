//! The parts of a program: each is started by name, watched, and stopped in order.
//!
//! Everything that works for longer than a call is started with [`Lifecycle::spawn`], which is told what its end means
//! ([`Kind`]). A part that panics, fails, or ends before it was asked to stops the whole program, and the program ends
//! with an error that names the part: half a component is worse than none, since whoever restarts it sees nothing.

#[cfg(debug_assertions)]
mod fault;
mod lifecycle;
mod parts;
mod signals;
mod stop;

pub use lifecycle::{Kind, Lifecycle};
pub use parts::{Part, Parts};
pub use stop::Stop;
