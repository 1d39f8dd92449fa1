//! Setups and teardowns that are not next to the tasks that they concern.
//!
//! Follows `airflow/_shared/dagnode/node.py` and `ti_deps/deps/trigger_rule_dep.py`.

use super::Dag;
use std::collections::BTreeSet;

impl Dag {
    /// The teardowns that follow a task directly.
    pub fn teardowns_of(&self, at: usize) -> Vec<usize> {
        let after = self.tasks[at].downstream.iter().copied();
        after.filter(|after| self.tasks[*after].is_teardown).collect()
    }

    /// The setups that a task needs: those before it whose teardowns come after it, or that have none
    /// (`get_upstreams_only_setups`).
    pub fn setups_of(&self, at: usize) -> Vec<usize> {
        let mut before = self.relatives(at, true);
        before.sort_unstable();
        if !before.iter().any(|before| self.tasks[*before].is_setup) {
            return Vec::new();
        }
        let after: BTreeSet<usize> = self.relatives(at, false).into_iter().collect();
        let is_needed = |setup: &usize| {
            let teardowns = self.teardowns_of(*setup);
            self.tasks[*setup].is_setup
                && (teardowns.is_empty() || teardowns.iter().any(|teardown| after.contains(teardown)))
        };
        before.into_iter().filter(is_needed).collect()
    }

    /// Notes which tasks beside its direct upstreams each task waits for.
    pub(super) fn link_setups(&mut self) {
        if !self.tasks.iter().any(|task| task.is_setup || task.is_teardown) {
            return;
        }
        for at in 0..self.tasks.len() {
            let waits_for = if self.tasks[at].is_teardown {
                self.scope_of(at)
            } else {
                let direct = &self.tasks[at].upstream;
                let mut setups = self.setups_of(at);
                setups.retain(|setup| !direct.contains(setup));
                setups
            };
            self.tasks[at].waits_for = waits_for;
        }
    }

    /// What stands between a teardown and its setups.
    fn scope_of(&self, at: usize) -> Vec<usize> {
        let direct = &self.tasks[at].upstream;
        let mut indirect = self.relatives(at, true);
        indirect.sort_unstable();
        let setups = direct.iter().filter(|before| self.tasks[**before].is_setup);
        let inside: BTreeSet<usize> = setups.flat_map(|setup| self.relatives(*setup, false)).collect();
        indirect.retain(|before| inside.contains(before) && !direct.contains(before));
        indirect
    }
}
