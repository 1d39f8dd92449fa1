//! How many instances mapped tasks have.

use super::judging::Before;
use super::{Decision, Planner};
use model::MapIndex;
use model::dag::{Expansion, Task};
use model::task_instance::StateName;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// Mapped instances of one task. Each value that is mapped over is bounded by `[core] max_map_length`; their product is
/// not, elsewhere.
pub const MOST_INSTANCES: usize = 100_000;

impl Planner<'_> {
    /// How many instances a mapped task has now, where that is known.
    fn length(&self, task: &Task) -> Option<usize> {
        self.count(task, task.expansion.as_ref()?)
    }

    fn count(&self, task: &Task, expansion: &Expansion) -> Option<usize> {
        expansion.count(&|source| {
            // What a task of the same group returned has no length of its own: each instance returned something else.
            let before = self.snapshot.dag.task(source)?;
            let together = task.common_groups(before) > 0;
            self.snapshot.lengths.get(source).copied().filter(|_| !together)
        })
    }

    /// The indexes of a task's instances that belong to that instance of another one; `None` for all of them
    /// (`TaskInstance.get_relevant_upstream_map_indexes`).
    pub(super) fn relevant(
        &self,
        task: &Task,
        map_index: MapIndex,
        other: &Task,
    ) -> Option<RangeInclusive<i32>> {
        if task.is_sibling_of(other) {
            return Some(map_index.0..=map_index.0);
        }
        let common = task.common_groups(other);
        if common == 0 {
            return None;
        }
        let own = self.length(task).filter(|own| *own > 0)?;
        let outer = task.mapped_groups[..common]
            .iter()
            .try_fold(1, |count: usize, group| {
                Some(count.saturating_mul(self.count(task, &group.expansion)?))
            })?;
        let at = usize::try_from(map_index.0).ok()?.saturating_mul(outer) / own;
        // As many as the task itself has for each of the outer instances, as in Airflow: the values it reads are chosen so.
        let width = if other.mapped_groups.len() > common {
            own / outer
        } else {
            1
        };
        let first = i32::try_from(at.saturating_mul(width)).ok()?;
        let width = i32::try_from(width).ok()?;
        Some(first..=first.saturating_add(width - 1))
    }

    /// The instances of the task at `before` that belong to that instance of another one. An unexpanded one belongs to all.
    pub(super) fn relevant_instances(&self, task: &Task, map_index: MapIndex, before: usize) -> &[usize] {
        let all = &self.instances[before][..];
        let Some(range) = self.relevant(task, map_index, &self.snapshot.dag.tasks[before]) else {
            return all;
        };
        let index = |at: &usize| self.snapshot.tasks[*at].map_index.0;
        if all.first().is_some_and(|first| index(first) < 0) {
            return &all[..1];
        }
        let begin = all.partition_point(|at| index(at) < *range.start());
        let end = all.partition_point(|at| index(at) <= *range.end());
        &all[begin..end.max(begin)]
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

    pub(super) fn expand(&self, task: &Task, before: &Before) -> Decision {
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
            // `MappedTaskUpstreamDep`: where something that it maps over was skipped and nothing failed, it is skipped.
            return match before.sources.skipped > 0 && !before.sources.have_failed() {
                true => Decision::Skip,
                false => Decision::FailUpstream,
            };
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
