//! What to do next, decided from a snapshot.
//!
//! Five questions are answered here, each by a total function of its arguments: what becomes of the tasks of one run
//! ([`plan_run`]), why one of them waits ([`blockers`]), which scheduled tasks get a slot ([`choose_for_slots`]), which queued runs may start
//! ([`choose_runs_to_start`]), and for which partitions runs are due ([`choose_partitions`]). Loading the snapshot and carrying out the plan is other crates' work.

mod partitions;
mod run;
mod slots;
mod start;

pub use partitions::{DuePartition, PartitionUpdate, choose_partitions};
pub use run::{
    Blocker, Decision, MOST_INSTANCES, Move, Plan, PreviouslySkipped, RunEnd, RunSnapshot, TaskSnapshot,
    blockers, plan_run, some,
};
pub use slots::{Candidate, Choice, PoolUse, choose_for_slots};
pub use start::{QueuedRun, choose_runs_to_start};
