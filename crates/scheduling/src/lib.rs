//! What to do next, decided from a snapshot.
//!
//! Four questions are answered here, each by a total function of its arguments: what becomes of the tasks of one run
//! ([`plan_run`]), why one of them waits ([`blockers`]), which scheduled tasks get a slot ([`choose_for_slots`]), and which queued runs may start
//! ([`choose_runs_to_start`]). Loading the snapshot and carrying out the plan is other crates' work.

mod run;
mod slots;
mod start;

pub use run::{Blocker, Decision, Move, Plan, RunEnd, RunSnapshot, TaskSnapshot, blockers, plan_run, some};
pub use slots::{Candidate, PoolUse, choose_for_slots};
pub use start::{QueuedRun, choose_runs_to_start};
