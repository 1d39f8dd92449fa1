//! Trigger rules: what the direct upstream tasks must have done before a task runs.
//!
//! Follows `airflow/ti_deps/deps/trigger_rule_dep.py` of Airflow 3.3, rule by rule.

use crate::dag_run::UnknownWord;
use crate::task_instance::StateName;
use std::str::FromStr;

/// A trigger rule. Spelled as in Airflow's `TriggerRule`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TriggerRule {
    /// Every upstream succeeded.
    AllSuccess,
    /// Every upstream failed.
    AllFailed,
    /// Every upstream ended.
    AllDone,
    /// Every upstream ended, none skipped, at least one succeeded.
    AllDoneMinOneSuccess,
    /// Every upstream ended and a setup among them succeeded (the rule of teardowns).
    AllDoneSetupSuccess,
    /// At least one upstream succeeded; does not wait for the others.
    OneSuccess,
    /// At least one upstream failed; does not wait for the others.
    OneFailed,
    /// At least one upstream succeeded or failed; does not wait for the others.
    OneDone,
    /// No upstream failed.
    NoneFailed,
    /// No upstream was skipped, and all ended.
    NoneSkipped,
    /// No upstream failed and at least one succeeded.
    NoneFailedMinOneSuccess,
    /// Every upstream was skipped.
    AllSkipped,
    /// No dependencies at all.
    Always,
}

impl TriggerRule {
    /// All rules.
    pub const ALL: [Self; 13] = [
        Self::AllSuccess,
        Self::AllFailed,
        Self::AllDone,
        Self::AllDoneMinOneSuccess,
        Self::AllDoneSetupSuccess,
        Self::OneSuccess,
        Self::OneFailed,
        Self::OneDone,
        Self::NoneFailed,
        Self::NoneSkipped,
        Self::NoneFailedMinOneSuccess,
        Self::AllSkipped,
        Self::Always,
    ];

    /// The word in the serialized DAG.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllSuccess => "all_success",
            Self::AllFailed => "all_failed",
            Self::AllDone => "all_done",
            Self::AllDoneMinOneSuccess => "all_done_min_one_success",
            Self::AllDoneSetupSuccess => "all_done_setup_success",
            Self::OneSuccess => "one_success",
            Self::OneFailed => "one_failed",
            Self::OneDone => "one_done",
            Self::NoneFailed => "none_failed",
            Self::NoneSkipped => "none_skipped",
            Self::NoneFailedMinOneSuccess => "none_failed_min_one_success",
            Self::AllSkipped => "all_skipped",
            Self::Always => "always",
        }
    }

    /// What the rule says about these upstream states.
    pub fn judge(self, up: &Upstreams) -> Verdict {
        if up.total == 0 {
            return Verdict::Met;
        }
        match self.ending(up) {
            Some(ending) => Verdict::End(ending),
            None if self.is_met(up) => Verdict::Met,
            None => Verdict::Wait,
        }
    }

    /// The state that the task gets without running, if the rule can no longer be met.
    fn ending(self, up: &Upstreams) -> Option<Ending> {
        let all_done = up.all_done();
        let failed = up.failed + up.upstream_failed > 0;
        let first = |cases: &[(bool, Ending)]| {
            cases
                .iter()
                .find(|(applies, _)| *applies)
                .map(|(_, ending)| *ending)
        };
        match self {
            Self::AllSuccess => first(&[
                (failed, Ending::UpstreamFailed),
                (up.skipped > 0, Ending::Skipped),
            ]),
            Self::AllFailed => first(&[(up.success > 0 || up.skipped > 0, Ending::Skipped)]),
            Self::AllDoneMinOneSuccess => first(&[
                (up.skipped > 0, Ending::Skipped),
                (up.done() >= up.total && up.success == 0, Ending::UpstreamFailed),
            ]),
            Self::AllDoneSetupSuccess => first(&[
                (
                    all_done && up.setups > 0 && up.skipped_setups >= up.setups,
                    Ending::Skipped,
                ),
                (
                    all_done && up.setups > 0 && up.succeeded_setups == 0,
                    Ending::UpstreamFailed,
                ),
            ]),
            Self::OneSuccess => first(&[
                (all_done && up.done() == up.skipped, Ending::Skipped),
                (all_done && up.success == 0, Ending::UpstreamFailed),
            ]),
            Self::OneFailed => first(&[(all_done && !failed, Ending::Skipped)]),
            Self::OneDone => first(&[(all_done && up.failed + up.success == 0, Ending::Skipped)]),
            Self::NoneFailed => first(&[(failed, Ending::UpstreamFailed)]),
            Self::NoneFailedMinOneSuccess => first(&[
                (failed, Ending::UpstreamFailed),
                (up.skipped == up.total, Ending::Skipped),
                (all_done && up.success == 0, Ending::UpstreamFailed),
            ]),
            Self::NoneSkipped => first(&[(up.skipped > 0, Ending::Skipped)]),
            Self::AllSkipped => first(&[(up.success > 0 || failed, Ending::Skipped)]),
            Self::AllDone | Self::Always => None,
        }
    }

    fn is_met(self, up: &Upstreams) -> bool {
        match self {
            Self::AllSuccess => up.success + up.removed >= up.total,
            Self::AllFailed => up.failed + up.upstream_failed + up.removed >= up.total,
            Self::AllDone => up.all_done(),
            Self::AllDoneMinOneSuccess => up.all_done() && up.skipped == 0 && up.success > 0,
            Self::AllDoneSetupSuccess => up.all_done() && (up.setups == 0 || up.succeeded_setups > 0),
            Self::OneSuccess => up.success > 0,
            Self::OneFailed => up.failed + up.upstream_failed > 0,
            Self::OneDone => up.success + up.failed > 0,
            Self::NoneFailed => up.success + up.skipped + up.removed >= up.total,
            Self::NoneFailedMinOneSuccess => {
                up.success + up.skipped + up.removed >= up.total && up.success > 0
            }
            Self::NoneSkipped => up.all_done() && up.skipped == 0,
            Self::AllSkipped => up.skipped >= up.total,
            Self::Always => true,
        }
    }
}

impl FromStr for TriggerRule {
    type Err = UnknownWord;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|rule| rule.as_str() == s)
            .ok_or_else(|| UnknownWord {
                what: "trigger rule",
                word: s.to_owned(),
            })
    }
}

/// How the direct upstream task instances stand, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Upstreams {
    /// All of them.
    pub total: u32,
    /// Those that succeeded.
    pub success: u32,
    /// Those that were skipped.
    pub skipped: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that did not run because something before them failed.
    pub upstream_failed: u32,
    /// Those whose task is gone.
    pub removed: u32,
    /// Setup tasks among them.
    pub setups: u32,
    /// Setup tasks that succeeded.
    pub succeeded_setups: u32,
    /// Setup tasks that were skipped.
    pub skipped_setups: u32,
}

impl Upstreams {
    /// Whether some failed, or did not run because something before them failed.
    pub const fn have_failed(&self) -> bool {
        self.failed + self.upstream_failed > 0
    }

    /// Counts one more upstream task instance.
    pub fn add(&mut self, state: StateName, is_setup: bool) {
        self.total += 1;
        self.setups += u32::from(is_setup);
        match state {
            StateName::Success => {
                self.success += 1;
                self.succeeded_setups += u32::from(is_setup);
            }
            StateName::Skipped => {
                self.skipped += 1;
                self.skipped_setups += u32::from(is_setup);
            }
            StateName::Failed => self.failed += 1,
            StateName::UpstreamFailed => self.upstream_failed += 1,
            StateName::Removed => self.removed += 1,
            StateName::NoStatus
            | StateName::Scheduled
            | StateName::Queued
            | StateName::Running
            | StateName::Restarting
            | StateName::UpForRetry
            | StateName::UpForReschedule
            | StateName::Deferred
            | StateName::AwaitingInput => {}
        }
    }

    const fn done(&self) -> u32 {
        self.success + self.skipped + self.failed + self.upstream_failed + self.removed
    }

    /// Whether some have not ended.
    pub const fn are_open(&self) -> bool {
        !self.all_done()
    }

    const fn all_done(&self) -> bool {
        self.done() >= self.total
    }
}

/// What a trigger rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The task may run.
    Met,
    /// Not decided yet.
    Wait,
    /// The task will not run and ends like this.
    End(Ending),
}

/// How a task ends that does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Because something before it failed.
    UpstreamFailed,
    /// Because something before it was skipped, or did not fail as it should have.
    Skipped,
}

#[cfg(test)]
mod tests {
    use super::*;
    use StateName::{Failed, NoStatus, Running, Skipped, Success, UpstreamFailed};

    fn judge(rule: TriggerRule, states: &[StateName]) -> Verdict {
        let mut up = Upstreams::default();
        for state in states {
            up.add(*state, false);
        }
        rule.judge(&up)
    }

    #[test]
    fn a_task_without_upstream_runs_under_every_rule() {
        for rule in TriggerRule::ALL {
            assert_eq!(judge(rule, &[]), Verdict::Met, "{rule:?}");
        }
    }

    #[test]
    fn verdicts_follow_the_table_of_airflow() {
        use TriggerRule as R;
        use Verdict::{End, Met, Wait};
        let cases: &[(TriggerRule, &[StateName], Verdict)] = &[
            (R::AllSuccess, &[Success, Success], Met),
            (R::AllSuccess, &[Success, Running], Wait),
            (R::AllSuccess, &[Failed, Running], End(Ending::UpstreamFailed)),
            (R::AllSuccess, &[Skipped, Running], End(Ending::Skipped)),
            (
                R::AllSuccess,
                &[Skipped, UpstreamFailed],
                End(Ending::UpstreamFailed),
            ),
            (R::AllFailed, &[Failed, UpstreamFailed], Met),
            (R::AllFailed, &[Failed, Success], End(Ending::Skipped)),
            (R::AllDone, &[Failed, Skipped, Success], Met),
            (R::AllDone, &[Failed, NoStatus], Wait),
            (R::OneSuccess, &[Success, Running], Met),
            (R::OneSuccess, &[Failed, Running], Wait),
            (R::OneSuccess, &[Failed, Skipped], End(Ending::UpstreamFailed)),
            (R::OneSuccess, &[Skipped, Skipped], End(Ending::Skipped)),
            (R::OneFailed, &[Failed, Running], Met),
            (R::OneFailed, &[Success, Success], End(Ending::Skipped)),
            (R::OneDone, &[Skipped, Skipped], End(Ending::Skipped)),
            (R::OneDone, &[Failed, Running], Met),
            (R::NoneFailed, &[Success, Skipped], Met),
            (R::NoneFailed, &[Skipped, Failed], End(Ending::UpstreamFailed)),
            (
                R::NoneFailedMinOneSuccess,
                &[Skipped, Skipped],
                End(Ending::Skipped),
            ),
            (R::NoneFailedMinOneSuccess, &[Skipped, Success], Met),
            (R::NoneSkipped, &[Failed, Success], Met),
            (R::NoneSkipped, &[Skipped, Running], End(Ending::Skipped)),
            (R::AllSkipped, &[Skipped, Skipped], Met),
            (R::AllSkipped, &[Skipped, Success], End(Ending::Skipped)),
            (R::Always, &[Running], Met),
        ];
        for (rule, states, expected) in cases {
            assert_eq!(judge(*rule, states), *expected, "{rule:?} over {states:?}");
        }
    }

    #[test]
    fn a_teardown_runs_only_after_a_setup_that_succeeded() {
        let mut up = Upstreams::default();
        up.add(Success, true);
        up.add(Failed, false);
        assert_eq!(TriggerRule::AllDoneSetupSuccess.judge(&up), Verdict::Met);
        let mut up = Upstreams::default();
        up.add(Failed, true);
        up.add(UpstreamFailed, false);
        assert_eq!(
            TriggerRule::AllDoneSetupSuccess.judge(&up),
            Verdict::End(Ending::UpstreamFailed)
        );
    }
}
