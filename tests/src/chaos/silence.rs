//! Times in which nobody could be told how a task ended: what ended then may be run again.

use super::kinds::{Action, MEMBERS, Wire};
use super::members::role;
use super::schedule::Planned;
use super::witness::Record;
use std::ops::Range;
use std::time::Duration;

/// What is answered on its way when a silence begins.
const ON_ITS_WAY: u64 = 1_500;
/// From the last word of a task to the end of its process, on a loaded machine: a worker that is killed in between was not
/// told that the task is done.
const ENDING: u64 = 750;
/// Part of a lease, in percent, from which on a silence may cost it.
const COSTS: u32 = 50;

/// A lease that outlasts what a worker takes to leave a server that does not answer for another one.
const LONG_LEASE: Duration = Duration::from_secs(28);

/// A time in which a worker could tell nobody how its tasks ended, so long that others may have tried them again: its machine
/// was lost, it was stopped, or cut off from every API server.
pub(super) struct Silence {
    /// `None` for all.
    worker: Option<&'static str>,
    from: u64,
    to: u64,
}

impl Silence {
    /// The silence that a fault means which was made to happen in this time.
    pub(super) fn of(fault: &Planned, lease: Duration, begun: Range<u64>) -> Option<Self> {
        let name = fault.target.split(['>', ':']).next().unwrap_or(fault.target);
        let own = MEMBERS
            .into_iter()
            .find(|member| *member == name && role(member) == "worker");
        let is_long = fault.span >= lease * COSTS / 100;
        let workers = role(name) == "worker";
        if let Action::Kill
        | Action::KillBoth
        | Action::HalfKilled
        | Action::HalfStopped
        | Action::Panic
        | Action::HangPart = fault.kind.action
            && workers
            && !(fault.kind.action == Action::HalfStopped && is_long)
        {
            return Some(Self {
                worker: own,
                from: begun.start.saturating_sub(ENDING),
                to: begun.end + ENDING,
            });
        }
        let worker = match fault.kind.action {
            Action::Lose => own,
            Action::Stop | Action::HalfStopped if own.is_some() && is_long => own,
            Action::Wire(wire) if fault.target.ends_with(">control") && wire != Wire::Reset && is_long => own,
            // A connection to a server that does not answer is given up after 20 seconds.
            Action::Stop if role(name) == "api-server" && lease < LONG_LEASE => None,
            Action::Wire(_) if role(name) == "api-server" && lease < LONG_LEASE && is_long => None,
            Action::Hang if is_long && fault.target != "broker" => None,
            Action::StopService | Action::LockTables if is_long && fault.target == "database" => None,
            _ => return None,
        };
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(Self {
            worker,
            from: begun.start.saturating_sub(ON_ITS_WAY),
            to: begun.end + milliseconds(fault.span + lease),
        })
    }

    pub(super) fn covers(&self, end: &Record) -> bool {
        self.worker.is_none_or(|worker| worker == end.worker) && (self.from..=self.to).contains(&end.at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::{KINDS, find};
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn fault(name: &str, target: &'static str, seconds: u64) -> Planned {
        Planned {
            number: 1,
            at: Duration::ZERO,
            kind: find(name).unwrap(),
            target,
            span: Duration::from_secs(seconds),
            beside: false,
        }
    }

    fn covers(fault: &Planned, worker: &str, at: u64) -> bool {
        let end = Record::read(&format!("end {}.00 1 1 {worker}", at)).unwrap();
        Silence::of(fault, LEASE, 100_000..100_000).is_some_and(|silence| silence.covers(&end))
    }

    #[test]
    fn only_what_cuts_a_worker_off_for_long_excuses_it_and_only_in_that_time() {
        let stopped = fault("stop-worker-long", "worker-1", 50);
        assert!(covers(&stopped, "worker-1", 120));
        assert!(!covers(&stopped, "worker-2", 120), "another worker");
        assert!(!covers(&stopped, "worker-1", 90), "before");
        assert!(!covers(
            &fault("stop-worker-short", "worker-1", 10),
            "worker-1",
            105
        ));
        assert!(covers(&fault("hole", "worker-2>control", 25), "worker-2", 110));
        assert!(!covers(&fault("hole", "worker-2>control", 5), "worker-2", 101));
        assert!(!covers(&fault("hole", "worker-2>broker", 25), "worker-2", 110));
        assert!(
            !covers(&fault("kill-worker", "worker-1", 0), "worker-1", 99),
            "it had a second to tell"
        );
    }

    #[test]
    fn what_does_not_touch_workers_or_their_servers_excuses_nothing() {
        for kind in KINDS.iter().filter(|kind| !kind.name.contains("worker")) {
            for target in kind.targets.iter().filter(|target| {
                let touched = ["worker", "api-server", "control", "database"];
                !touched.iter().any(|word| target.contains(word))
            }) {
                assert!(
                    !covers(&fault(kind.name, target, 40), "worker-1", 110),
                    "{} {target}",
                    kind.name
                );
            }
        }
    }
}
