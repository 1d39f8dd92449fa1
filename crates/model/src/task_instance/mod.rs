//! A task instance: where it stands and how it may move.
//!
//! [`TaskInstanceState`] carries what belongs to each state; [`StateName`] is the bare word of the database
//! and the REST API. All moves go through [`TaskInstanceState::apply`], which is the one table of what is legal.

mod name;
mod transition;

pub use name::StateName;
pub use transition::{Claim, IllegalTransition, LastCounters, Outcome, TaskEvent, TaskInstanceState};
