//! A DagRun: its states, its types, and the names that runs get.

use crate::time::{Timestamp, python_isoformat};
use crate::{DagId, RunId};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Where a DagRun stands. Spelled as in Airflow's `DagRunState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DagRunState {
    /// Created; waits for a place under `max_active_runs`.
    Queued,
    /// Its tasks are being scheduled.
    Running,
    /// Every leaf ended well.
    Success,
    /// A leaf failed, or nothing can go on.
    Failed,
}

impl DagRunState {
    /// All states, in Airflow's order.
    pub const ALL: [Self; 4] = [Self::Queued, Self::Running, Self::Success, Self::Failed];

    /// The word used in the database and in the REST API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Success => "success",
            Self::Failed => "failed",
        }
    }

    /// Whether nothing more will happen to the run by itself.
    pub const fn is_finished(self) -> bool {
        match self {
            Self::Success | Self::Failed => true,
            Self::Queued | Self::Running => false,
        }
    }

    /// Where the run goes on `event`.
    ///
    /// # Errors
    /// When a run in this state cannot take the event.
    pub fn apply(self, event: DagRunEvent) -> Result<Self, IllegalRunTransition> {
        match (self, event) {
            (Self::Queued, DagRunEvent::Start) => Ok(Self::Running),
            (Self::Running, DagRunEvent::Finish { failed: false }) => Ok(Self::Success),
            (Self::Running, DagRunEvent::Finish { failed: true }) => Ok(Self::Failed),
            (_, DagRunEvent::Mark(to)) => Ok(to),
            (Self::Running | Self::Success | Self::Failed, DagRunEvent::Start)
            | (Self::Queued | Self::Success | Self::Failed, DagRunEvent::Finish { .. }) => {
                Err(IllegalRunTransition { from: self, event })
            }
        }
    }
}

/// What can happen to a DagRun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DagRunEvent {
    /// The scheduler found a place for it.
    Start,
    /// Its last task ended.
    Finish {
        /// Whether the run failed.
        failed: bool,
    },
    /// A person set the state.
    Mark(DagRunState),
}

/// A DagRun was asked to make a move that its state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a DagRun in state {from} cannot take {event:?}")]
pub struct IllegalRunTransition {
    /// The state it was in.
    pub from: DagRunState,
    /// What was to happen.
    pub event: DagRunEvent,
}

impl fmt::Display for DagRunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is none of the known ones.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{word:?} is not a {what}")]
pub struct UnknownWord {
    /// What was being read.
    pub what: &'static str,
    /// What was found.
    pub word: String,
}

impl FromStr for DagRunState {
    type Err = UnknownWord;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| UnknownWord {
                what: "DagRun state",
                word: s.to_owned(),
            })
    }
}

/// Why a run exists. Spelled as in Airflow's `DagRunType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DagRunType {
    /// Made by a backfill.
    Backfill,
    /// Made because the timetable said so.
    Scheduled,
    /// Triggered by a person, a client or a task.
    Manual,
    /// Triggered by a task.
    OperatorTriggered,
    /// Made because assets were updated.
    AssetTriggered,
    /// Made to materialize an asset.
    AssetMaterialization,
}

impl DagRunType {
    /// All types.
    pub const ALL: [Self; 6] = [
        Self::Backfill,
        Self::Scheduled,
        Self::Manual,
        Self::OperatorTriggered,
        Self::AssetTriggered,
        Self::AssetMaterialization,
    ];

    /// The word used in the database, in the REST API and at the head of generated run ids.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Scheduled => "scheduled",
            Self::Manual => "manual",
            Self::OperatorTriggered => "operator_triggered",
            Self::AssetTriggered => "asset_triggered",
            Self::AssetMaterialization => "asset_materialization",
        }
    }

    /// The run id that Airflow generates: type, two underscores, ISO time; a suffix where the run has no
    /// logical date of its own (`airflow/timetables/base.py`, `DagRun.generate_run_id`).
    pub fn generate_run_id(self, run_after: Timestamp, suffix: Option<&str>) -> RunId {
        let time = python_isoformat(run_after);
        match suffix {
            Some(suffix) => RunId::new(format!("{}__{time}_{suffix}", self.as_str())),
            None => RunId::new(format!("{}__{time}", self.as_str())),
        }
    }
}

impl fmt::Display for DagRunType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DagRunType {
    type Err = UnknownWord;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == s)
            .ok_or_else(|| UnknownWord {
                what: "DagRun type",
                word: s.to_owned(),
            })
    }
}

/// Whether `run_id` may be used: `[A-Za-z0-9_.~:+-]+`, Airflow's `[scheduler] allowed_run_id_pattern`.
pub fn is_valid_run_id(run_id: &str) -> bool {
    !run_id.is_empty()
        && run_id.len() <= 250
        && run_id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.~:+-".contains(&b))
}

/// Whether `dag_id` is one that Airflow accepts: letters, digits, `_`, `-`, `.`, at most 250 bytes.
pub fn is_valid_dag_id(dag_id: &DagId) -> bool {
    let id = dag_id.as_str();
    !id.is_empty()
        && id.len() <= 250
        && id
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_queued_runs_start_and_only_running_runs_finish() {
        assert_eq!(
            DagRunState::Queued.apply(DagRunEvent::Start),
            Ok(DagRunState::Running)
        );
        assert!(DagRunState::Success.apply(DagRunEvent::Start).is_err());
        assert!(
            DagRunState::Queued
                .apply(DagRunEvent::Finish { failed: false })
                .is_err()
        );
        assert_eq!(
            DagRunState::Running.apply(DagRunEvent::Finish { failed: true }),
            Ok(DagRunState::Failed)
        );
    }

    #[test]
    fn words_round_trip() {
        for state in DagRunState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        for kind in DagRunType::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("done".parse::<DagRunState>().is_err());
    }

    #[test]
    fn run_ids_that_a_shell_or_a_path_could_misread_are_refused() {
        assert!(is_valid_run_id("manual__2025-01-01T00:00:00+00:00"));
        for bad in ["", "a b", "../x", "a/b", "$(id)", "a;b"] {
            assert!(!is_valid_run_id(bad), "{bad}");
        }
    }
}
