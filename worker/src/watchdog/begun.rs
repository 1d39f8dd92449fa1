//! Which tasks have begun, as the watchdog knows it: when the worker dies, those that had not begun go back to the queue as the
//! same try.
//!
//! The worker tells of each task before it begins. What was written to the pipe is read even if its writer is dead.

use super::{Renewal, Watchdog, lock};
use crate::running::Held;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A claim as it is told: the task instance and the number of the claim.
pub(super) type Claimed = (String, i64);

/// What a worker tells of its tasks, so that those which had not begun when it died need not count as begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum TaskChange {
    /// User code is about to begin.
    Begins(Claimed),
    /// It did not begin after all, or what it did is reported.
    Over(Claimed),
    /// To a watchdog that is new: all that have begun.
    All(BTreeSet<Claimed>),
}

impl TaskChange {
    /// Keeps the set of what has begun.
    pub(super) fn apply(self, begun: &mut BTreeSet<Claimed>) {
        match self {
            Self::Begins(claim) => {
                begun.insert(claim);
            }
            Self::Over(claim) => {
                begun.remove(&claim);
            }
            Self::All(claims) => *begun = claims,
        }
    }
}

fn told((id, epoch): Held) -> Claimed {
    (id.to_string(), epoch.0)
}

impl Watchdog {
    /// Tells that user code is about to begin under a claim. When this returns, it is known even if the worker dies.
    pub(crate) fn begins(&self, claim: Held) {
        self.change(TaskChange::Begins(told(claim)));
    }

    /// Tells that a claim is over, or that nothing was started under it.
    pub(crate) fn is_over(&self, claim: Held) {
        if self.has_begun(claim) {
            self.change(TaskChange::Over(told(claim)));
        }
    }

    /// Returns `true` if user code may have begun under that claim.
    pub(crate) fn has_begun(&self, claim: Held) -> bool {
        lock(&self.begun).contains(&told(claim))
    }

    fn change(&self, change: TaskChange) {
        change.clone().apply(&mut lock(&self.begun));
        self.say(Renewal {
            keeps_engines: true,
            tasks: Some(change),
            ..Renewal::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(n: i64) -> Claimed {
        (format!("task instance {n}"), n)
    }

    #[test]
    fn a_new_watchdog_knows_what_the_one_before_it_knew() {
        let mut begun = BTreeSet::new();
        for change in [
            TaskChange::Begins(claim(1)),
            TaskChange::Begins(claim(2)),
            TaskChange::Over(claim(1)),
        ] {
            change.apply(&mut begun);
        }
        assert_eq!(begun, [claim(2)].into());
        let mut successor = [claim(3)].into();
        let told = serde_json::to_string(&TaskChange::All(begun.clone())).unwrap();
        serde_json::from_str::<TaskChange>(&told)
            .unwrap()
            .apply(&mut successor);
        assert_eq!(successor, begun);
    }
}
