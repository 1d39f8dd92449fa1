//! A task instance: where it stands and how it may move.
//!
//! [`TaskInstanceState`] carries what belongs to each state; [`StateName`] is the bare word of the database
//! and the REST API. All moves go through [`TaskInstanceState::apply`], which is the one table of what is legal.
//! [`HeldClaim::compare`] finds claims that no worker knows of, and [`LossCause`] says why one was lost.

mod held;
mod loss;
mod name;
mod transition;

pub use held::{BeatNumber, Finding, HeldClaim, NamedClaims};
pub use loss::{LossCause, the_poison};
pub use name::StateName;
pub use transition::{Claim, IllegalTransition, LastCounters, Outcome, TaskEvent, TaskInstanceState};
