//! The ground that every other crate stands on: identifiers, states and the
//! moves between them, the structure of a DAG, timetables, trigger rules.
//!
//! Nothing here awaits, reads a clock, touches a file or draws a random number.
//! The time and all randomness arrive as arguments, so the same input always
//! gives the same answer.

pub mod asset;
pub mod dag;
pub mod dag_run;
pub mod deadline;
pub mod human_input;
pub mod ids;
pub mod json;
pub mod partition;
pub mod python_text;
pub mod retry;
pub mod serialized;
pub mod task_instance;
pub mod time;
pub mod timetable;
pub mod trigger;
pub mod trigger_rule;

pub use ids::{
    AssetAliasId, AssetEventId, AssetId, BackfillId, ClaimEpoch, DagId, DagRunKey, DagVersionId,
    ExecutorName, GroupId, MapIndex, PoolName, QueueName, RunId, TaskId, TaskInstanceId, TriggerId,
    TryNumber, WorkerId,
};
pub use time::Timestamp;
