//! The kinds of faults: what each does, to whom, for how long, and how soon everything must go on.

use std::time::Duration;

/// The components, two of each.
pub(super) const MEMBERS: [&str; 10] = [
    "scheduler-1",
    "scheduler-2",
    "api-server-1",
    "api-server-2",
    "dag-processor-1",
    "dag-processor-2",
    "worker-1",
    "worker-2",
    "triggerer-1",
    "triggerer-2",
];

/// What a component talks to through a proxy of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Backend {
    /// MariaDB.
    Database,
    /// RabbitMQ.
    Broker,
    /// The control plane of any API server.
    Control,
}

impl Backend {
    /// Its name in targets.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Broker => "broker",
            Self::Control => "control",
        }
    }
}

/// What happens to the bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// They pass.
    Open,
    /// They pass after a pause.
    Delay(Duration),
    /// They wait until the wire is open again: what a server looks like that is stopped.
    Hang,
    /// They are lost, and with them the connection, which learns of it only when the wire is open again.
    Hole,
    /// As a hole, but only from the component to the server.
    HoleUp,
    /// As a hole, but only from the server to the component.
    HoleDown,
    /// Connections are reset as soon as they are made.
    Reset,
}

/// A process beside a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    /// The process that kills a worker's tasks when the worker dies.
    Watchdog,
    /// The Python process that forks tasks.
    ForkServer,
    /// Its copy.
    Standby,
}

/// What a fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL of one component, which is started again at once.
    Kill,
    /// SIGKILL of both components of a role at once.
    KillBoth,
    /// A machine that vanishes: a worker with everything that it started, which stays away.
    Lose,
    /// SIGSTOP, and later SIGCONT, of one component.
    Stop,
    /// SIGKILL of a process beside a component.
    KillHelper(Helper),
    /// SIGSTOP, and later SIGCONT, of a process beside a component.
    StopHelper(Helper),
    /// SIGKILL of MariaDB or RabbitMQ, which is started again at once.
    KillService,
    /// SIGSTOP, and later SIGCONT, of MariaDB or RabbitMQ.
    StopService,
    /// Everybody's wire to a server hangs.
    Hang,
    /// One wire of one component.
    Wire(Wire),
    /// The disk of the tasks' logs is full.
    DiskFull,
    /// MariaDB takes no more connections, and ends those that there are.
    ConnectionLimit,
    /// MariaDB ends all sessions.
    CutSessions,
    /// Nobody can write to the database.
    LockTables,
    /// Messages are taken from the queue and acknowledged.
    Steal,
    /// Messages are published twice.
    Double,
    /// Messages about task instances that nobody knows.
    Junk,
    /// A worker is stopped at a point between a claim and the start of its task, and killed there.
    HalfKilled,
    /// A worker is stopped at such a point for longer than its lease, and goes on.
    HalfStopped,
    /// A part of a component panics.
    Panic,
    /// A part of a component never does anything.
    HangPart,
}

/// How long a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Span {
    /// It is over as soon as it has happened.
    Moment,
    /// Seconds, at least and at most.
    Seconds(u64, u64),
    /// Percents of a worker's lease, at least and at most.
    Lease(u32, u32),
}

/// When everything must be as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// So many seconds after the fault began, whether it lasts or not.
    Begin(u64),
    /// So many seconds after it was over.
    End(u64),
    /// A lease and so many seconds after it began.
    Lease(u64),
}

impl Bound {
    /// The longest recovery.
    pub fn limit(self, lease: Duration) -> Duration {
        match self {
            Self::Begin(seconds) | Self::End(seconds) => Duration::from_secs(seconds),
            Self::Lease(seconds) => lease + Duration::from_secs(seconds),
        }
    }
}

/// A kind of faults.
#[derive(Debug, PartialEq)]
pub struct Kind {
    /// Its name, for `--only`.
    pub name: &'static str,
    /// What it does.
    pub action: Action,
    /// To whom: a member, a member's wire (`MEMBER>BACKEND`), a backend, a role, or a member's point or part (`MEMBER:NAME`).
    pub targets: &'static [&'static str],
    /// How long.
    pub span: Span,
    /// How soon everything must go on.
    pub bound: Bound,
}

const fn kind(
    name: &'static str,
    action: Action,
    targets: &'static [&'static str],
    span: Span,
    bound: Bound,
) -> Kind {
    Kind {
        name,
        action,
        targets,
        span,
        bound,
    }
}

const SCHEDULERS: &[&str] = &["scheduler-1", "scheduler-2"];
const WORKERS: &[&str] = &["worker-1", "worker-2"];
const API_SERVERS: &[&str] = &["api-server-1", "api-server-2"];
const PROCESSORS: &[&str] = &["dag-processor-1", "dag-processor-2"];
const TRIGGERERS: &[&str] = &["triggerer-1", "triggerer-2"];
const PYTHONS: &[&str] = &["worker-1", "worker-2", "triggerer-1", "dag-processor-1"];
const WIRES: &[&str] = &[
    "scheduler-1>database",
    "scheduler-2>broker",
    "api-server-1>database",
    "api-server-2>broker",
    "dag-processor-1>database",
    "worker-1>broker",
    "worker-2>control",
    "triggerer-1>control",
    "scheduler-2>database",
    "worker-1>control",
    "api-server-2>database",
    "worker-2>broker",
];
const POINTS: &[&str] = &[
    "worker-1:claimed",
    "worker-2:bash",
    "worker-1:python-fork",
    "worker-2:python-forked",
    "triggerer-1:triggers-fork",
];
const PARTS: &[&str] = &[
    "scheduler-1:planner",
    "scheduler-2:creator",
    "scheduler-1:relay",
    "scheduler-2:leases",
    "scheduler-1:publisher",
    "scheduler-2:sweeper",
    "scheduler-1:hint listener",
    "worker-1:queue consumer",
    "worker-2:worker heartbeat",
    "worker-1:triggers",
    "api-server-1:hint listener",
    "dag-processor-1:questions",
    "dag-processor-2:callbacks",
];

/// All kinds.
pub static KINDS: [Kind; 43] = {
    use Action::*;
    use Bound::*;
    use Span::{Moment, Seconds};
    [
        kind("kill-scheduler", Kill, SCHEDULERS, Moment, Begin(5)),
        kind("kill-worker", Kill, WORKERS, Moment, Begin(5)),
        kind("kill-api-server", Kill, API_SERVERS, Moment, Begin(5)),
        kind("kill-dag-processor", Kill, PROCESSORS, Moment, Begin(5)),
        kind("kill-triggerer", Kill, TRIGGERERS, Moment, Begin(5)),
        kind("kill-schedulers", KillBoth, &["scheduler"], Moment, Begin(5)),
        kind("kill-workers", KillBoth, &["worker"], Moment, Begin(5)),
        kind("kill-api-servers", KillBoth, &["api-server"], Moment, Begin(5)),
        kind(
            "lose-worker",
            Lose,
            WORKERS,
            Span::Lease(140, 180),
            Bound::Lease(15),
        ),
        kind("stop-worker-short", Stop, WORKERS, Span::Lease(10, 60), End(10)),
        kind(
            "stop-worker-long",
            Stop,
            WORKERS,
            Span::Lease(130, 200),
            Bound::Lease(15),
        ),
        kind("stop-scheduler", Stop, SCHEDULERS, Seconds(8, 25), Begin(20)),
        kind("stop-api-server", Stop, API_SERVERS, Seconds(5, 25), Begin(30)),
        kind("stop-dag-processor", Stop, PROCESSORS, Seconds(5, 15), Begin(20)),
        kind(
            "stop-triggerer",
            Stop,
            TRIGGERERS,
            Span::Lease(60, 180),
            Begin(20),
        ),
        kind(
            "kill-watchdog",
            KillHelper(Helper::Watchdog),
            WORKERS,
            Moment,
            Begin(5),
        ),
        kind(
            "stop-watchdog",
            StopHelper(Helper::Watchdog),
            WORKERS,
            Seconds(3, 15),
            Begin(5),
        ),
        kind(
            "kill-fork-server",
            KillHelper(Helper::ForkServer),
            PYTHONS,
            Moment,
            Begin(5),
        ),
        kind(
            "kill-standby",
            KillHelper(Helper::Standby),
            PYTHONS,
            Moment,
            Begin(5),
        ),
        kind(
            "stop-fork-server",
            StopHelper(Helper::ForkServer),
            PYTHONS,
            Seconds(3, 15),
            Begin(15),
        ),
        kind("kill-database", KillService, &["database"], Moment, End(10)),
        kind("kill-broker", KillService, &["broker"], Moment, End(10)),
        kind(
            "stop-database",
            StopService,
            &["database"],
            Seconds(3, 12),
            End(10),
        ),
        kind("stop-broker", StopService, &["broker"], Seconds(5, 25), End(10)),
        kind("hang-database", Hang, &["database"], Seconds(4, 20), End(10)),
        kind("hang-broker", Hang, &["broker"], Seconds(4, 25), End(10)),
        kind("hang-control", Hang, &["control"], Seconds(3, 8), End(15)),
        kind(
            "delay",
            Wire(self::Wire::Delay(Duration::from_millis(150))),
            WIRES,
            Seconds(5, 15),
            End(5),
        ),
        kind("reset", Wire(self::Wire::Reset), WIRES, Seconds(1, 6), End(10)),
        kind("hole", Wire(self::Wire::Hole), WIRES, Seconds(4, 25), End(15)),
        kind(
            "one-way-up",
            Wire(self::Wire::HoleUp),
            WIRES,
            Seconds(4, 20),
            End(15),
        ),
        kind(
            "one-way-down",
            Wire(self::Wire::HoleDown),
            WIRES,
            Seconds(4, 20),
            End(15),
        ),
        kind("disk-full", DiskFull, &["logs"], Seconds(4, 12), End(10)),
        kind(
            "connection-limit",
            ConnectionLimit,
            &["database"],
            Seconds(3, 10),
            End(10),
        ),
        kind("cut-sessions", CutSessions, &["database"], Moment, Begin(10)),
        kind(
            "locked-tables",
            LockTables,
            &["database"],
            Seconds(3, 10),
            End(10),
        ),
        kind("stolen-messages", Steal, &["broker"], Seconds(2, 4), End(10)),
        kind("doubled-messages", Double, &["broker"], Seconds(1, 3), End(5)),
        kind("forged-messages", Junk, &["broker"], Seconds(1, 3), End(5)),
        kind("half-killed", HalfKilled, POINTS, Moment, End(5)),
        kind(
            "half-stopped",
            HalfStopped,
            POINTS,
            Span::Lease(130, 180),
            Bound::Lease(15),
        ),
        kind("panic", Panic, PARTS, Moment, Begin(5)),
        kind("hang-part", HangPart, PARTS, Seconds(8, 15), Bound::Lease(15)),
    ]
};

/// The kind of that name.
pub fn find(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_has_a_name_of_its_own_and_targets_that_exist() {
        let names: BTreeSet<&str> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), KINDS.len());
        let others = [
            "scheduler",
            "worker",
            "api-server",
            "database",
            "broker",
            "control",
            "logs",
        ];
        for kind in &KINDS {
            assert!(!kind.targets.is_empty(), "{}", kind.name);
            for target in kind.targets {
                let member = target.split(['>', ':']).next().unwrap_or(target);
                assert!(MEMBERS.contains(&member) || others.contains(&member), "{target}");
            }
            assert!(find(kind.name).is_some_and(|found| found == kind));
        }
    }
}
