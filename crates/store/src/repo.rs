//! Repositories: methods of [`crate::Tx`], one file per noun.

mod admin;
mod by_hand;
mod callbacks;
mod claims;
mod dags;
mod dispatch;
mod files;
mod jobs;
mod list;
mod planning;
mod runs;
mod task_states;
mod tasks;
mod unstarted;
mod waits;
mod workers;
mod xcoms;

pub use admin::{ConnectionRecord, PoolRecord, PoolSlots, VariableRecord};
pub use callbacks::RunCallback;
pub use claims::{ClaimRequest, Claimed, Report, Reported};
pub use dags::{DagRecord, DagVersionRecord, ParsedDag, SavedDag};
pub use dispatch::{Dispatch, DispatchLimits};
pub use files::{FileRecord, ImportErrorRecord};
pub use jobs::JobRecord;
pub use list::{Condition, Listing, Order, Paged};
pub use planning::LockedRun;
pub use runs::{NewRun, RunRecord};
pub use tasks::{HistoryRecord, TaskInstanceRecord};
pub use waits::Wait;
pub use workers::{LostTask, WorkerRecord};
pub use xcoms::{NewXCom, XComRecord};
