//! How many instances mapped tasks have.

use super::{Decision, Planner};
use model::dag::{Expansion, Task};
use model::task_instance::StateName;
use model::{MapIndex, TaskId};
use std::collections::BTreeSet;

/// Mapped instances of one task. Each argument is bounded by `[core] max_map_length`; their product is not, elsewhere.
const MOST_INSTANCES: usize = 100_000;

impl Planner<'_> {
    /// How many instances a mapped task has now, where that is known.
    fn length(&self, task: &Task) -> Option<usize> {
        let Some(Expansion::Product(lengths)) = &task.expansion else {
            return None;
        };
        let known = |source: &TaskId| self.snapshot.lengths.get(source).copied();
        lengths.iter().try_fold(1_usize, |count, length| {
            Some(count.saturating_mul(length.length(&known)?))
        })
    }

    /// Fits the instances of a mapped task to what it maps over, which may have changed since it was expanded: a run was
    /// cleared, or goes on with another version. Instances beyond its length are removed, missing ones come beside `at`
    /// (`DagRun._revise_map_indexes_if_mapped`). Returns the length, where it is known.
    pub(super) fn revise(&mut self, task_at: usize, at: usize) -> Option<usize> {
        let length = self.length(&self.snapshot.dag.tasks[task_at])?;
        let fits = |other: &usize| {
            usize::try_from(self.snapshot.tasks[*other].map_index.0).is_ok_and(|index| index < length)
        };
        let instances = &self.instances[task_at];
        if instances.len() == length && instances.iter().all(fits) {
            return Some(length);
        }
        if length > MOST_INSTANCES || self.snapshot.paused {
            return None;
        }
        let mut missing: BTreeSet<MapIndex> = (0..length)
            .filter_map(|index| i32::try_from(index).ok().map(MapIndex))
            .collect();
        let mut beyond = Vec::new();
        for &other in &self.instances[task_at] {
            let index = self.snapshot.tasks[other].map_index;
            if !missing.remove(&index) {
                beyond.push(other);
            }
        }
        for other in beyond {
            let state = self.states[other];
            // Something else may have been decided about it.
            let is_open = state == self.snapshot.tasks[other].state;
            if is_open
                && !matches!(
                    state,
                    StateName::Running | StateName::Restarting | StateName::Removed
                )
            {
                self.decide(other, Decision::Remove);
            }
        }
        if !missing.is_empty() {
            self.decide(at, Decision::Grow(missing.into_iter().collect()));
        }
        Some(length)
    }

    pub(super) fn expand(&self, task: &Task) -> Decision {
        match &task.expansion {
            Some(Expansion::Product(_)) => {}
            Some(Expansion::Unsupported(what)) => {
                return Decision::Refuse(format!(
                    "task {} expands over {what}, which is not supported yet",
                    task.task_id
                ));
            }
            None => {
                return Decision::Refuse(format!("task {} does not say what it expands over", task.task_id));
            }
        };
        let Some(count) = self.length(task) else {
            return Decision::FailUpstream;
        };
        if count == 0 {
            Decision::Skip
        } else if count > MOST_INSTANCES {
            Decision::Refuse(format!(
                "task {} would have {count} mapped instances; {MOST_INSTANCES} are the most",
                task.task_id
            ))
        } else {
            Decision::Expand(count)
        }
    }
}
