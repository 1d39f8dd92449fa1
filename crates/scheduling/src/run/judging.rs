//! Whether the trigger rules of task instances are met.

use super::Planner;
use model::MapIndex;
use model::dag::{Expansion, Task};
use model::task_instance::StateName;
use model::trigger_rule::{Ending, TriggerRule, Upstreams, Verdict};

/// What is before all instances of a task, counted once.
pub(super) struct Before {
    /// What is before each of them alike.
    shared: Upstreams,
    /// Places of the tasks of whose instances each has its own before it.
    own: Vec<usize>,
    /// How what it expands over stands.
    pub(super) sources: Upstreams,
}

impl Planner<'_> {
    pub(super) fn before(&self, task: &Task) -> Before {
        let mut before = Before {
            shared: Upstreams::default(),
            own: Vec::new(),
            sources: Upstreams::default(),
        };
        for source in task.expansion.iter().flat_map(Expansion::sources) {
            if let Some(at) = self.snapshot.dag.position(source) {
                self.add_all(&mut before.sources, at, false);
            }
        }
        for &at in &task.upstream {
            let other = &self.snapshot.dag.tasks[at];
            if task.common_groups(other) > 0 {
                before.own.push(at);
            } else {
                self.add_all(&mut before.shared, at, other.is_setup);
            }
        }
        before
    }

    fn add_all(&self, up: &mut Upstreams, task_at: usize, is_setup: bool) {
        for &at in &self.instances[task_at] {
            up.add(self.states[at], is_setup);
        }
    }

    pub(super) fn judge(&self, task: &Task, map_index: MapIndex, before: &Before) -> Verdict {
        if task.is_in_mapped_group() && map_index == MapIndex::UNMAPPED {
            // It expands as soon as what its group expands over is there, whatever is before it in the group.
            return TriggerRule::AllSuccess.judge(&before.sources);
        }
        let indirect = self.indirect(task, map_index);
        if let verdict @ Verdict::End(_) = indirect {
            return verdict;
        }
        let verdict = task.trigger_rule.judge(&self.upstreams(task, map_index, before));
        // How many instances there are is known once all of what it maps over has ended, whatever its rule says.
        let is_early = task.is_mapped && before.sources.are_open();
        match verdict {
            Verdict::Met if is_early => Verdict::Wait,
            Verdict::Met => indirect,
            Verdict::Wait | Verdict::End(_) => verdict,
        }
    }

    /// Whether what a task waits for beside its direct upstreams lets it run (`_evaluate_setup_constraint` and
    /// `_evaluate_teardown_scope`).
    fn indirect(&self, task: &Task, map_index: MapIndex) -> Verdict {
        if task.waits_for.is_empty() {
            return Verdict::Met;
        }
        let mut up = Upstreams::default();
        for &other in &task.waits_for {
            for &at in self.relevant_instances(task, map_index, other) {
                up.add(self.states[at], false);
            }
        }
        if task.is_teardown {
            return if up.are_open() {
                Verdict::Wait
            } else {
                Verdict::Met
            };
        }
        let removed = if map_index == MapIndex::UNMAPPED {
            0
        } else {
            up.removed
        };
        if up.have_failed() {
            Verdict::End(Ending::UpstreamFailed)
        } else if up.skipped > 0 {
            Verdict::End(Ending::Skipped)
        } else if up.total > up.success + removed {
            Verdict::Wait
        } else {
            Verdict::Met
        }
    }

    fn upstreams(&self, task: &Task, map_index: MapIndex, before: &Before) -> Upstreams {
        let mut up = before.shared;
        for &at in &before.own {
            let is_setup = self.snapshot.dag.tasks[at].is_setup;
            let relevant = self.relevant_instances(task, map_index, at);
            for &at in relevant {
                up.add(self.states[at], is_setup);
            }
            if relevant.is_empty() {
                // It is not expanded as far yet.
                up.add(StateName::NoStatus, is_setup);
            }
        }
        up
    }
}
