//! Timetables: when a DAG runs by itself, and over which data interval.
//!
//! Each follows the Airflow class of the same name (`airflow/timetables/*.py`). The time now is an argument.

mod clock;
mod cron;
mod delta;
mod partitioned;
mod serialized;
mod zone;

use clock::Clock;
pub use cron::CronExpression;
pub use delta::Delta;
pub use partitioned::{CronPartition, Partition, PartitionedAssets};
pub use zone::Zone;

use crate::time::Timestamp;
use chrono::Duration;
use thiserror::Error;

/// A timetable that cannot be understood or followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TimetableError {
    /// A cron expression is wrong, or names no date.
    #[error("[{expression}] is not acceptable: {problem}")]
    Cron {
        /// The expression.
        expression: String,
        /// What is wrong.
        problem: String,
    },
    /// The serialized form is wrong.
    #[error("timetable: {0}")]
    Malformed(String),
}

/// The span of data that a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataInterval {
    /// First instant.
    pub start: Timestamp,
    /// First instant after it.
    pub end: Timestamp,
}

impl DataInterval {
    /// The interval of no length at `at`.
    pub const fn exact(at: Timestamp) -> Self {
        Self { start: at, end: at }
    }
}

/// The next run that a timetable wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextRun {
    /// Its logical date.
    pub logical_date: Timestamp,
    /// Its data interval.
    pub interval: DataInterval,
    /// Earliest time at which it may be created.
    pub run_after: Timestamp,
}

impl NextRun {
    const fn over(interval: DataInterval) -> Self {
        Self {
            logical_date: interval.start,
            interval,
            run_after: interval.end,
        }
    }
}

/// What the DAG says about the dates of its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restriction {
    /// Earliest logical date.
    pub earliest: Option<Timestamp>,
    /// Latest logical date.
    pub latest: Option<Timestamp>,
    /// Whether runs missed in the past are made up for.
    pub catchup: bool,
}

/// When a DAG runs by itself.
#[derive(Debug, Clone)]
pub enum Timetable {
    /// Never.
    Null,
    /// Once.
    Once,
    /// Again as soon as the run before ended.
    Continuous,
    /// When its assets are updated; makes no runs by the clock.
    AssetTriggered,
    /// When its assets are updated, and at the times of another timetable.
    AssetOrTime(Box<Self>),
    /// At the times of cron expressions.
    CronTrigger {
        /// When; the earliest counts.
        crons: Vec<CronExpression>,
        /// In which time zone.
        zone: Zone,
        /// Length of the data interval before each time.
        interval: Delta,
        /// What to do at first sight without a start date.
        run_immediately: RunImmediately,
    },
    /// After each interval between two times of a cron expression.
    CronDataInterval {
        /// The expression.
        cron: Box<CronExpression>,
        /// In which time zone.
        zone: Zone,
    },
    /// At the times of a cron expression, each about a partition.
    CronPartition(Box<CronPartition>),
    /// When partitions of its assets are updated; makes no runs by the clock.
    PartitionedAssets(Box<PartitionedAssets>),
    /// Never; whoever asks for a run names its partition.
    PartitionedAtRuntime,
    /// Every so often.
    DeltaTrigger {
        /// How often.
        delta: Delta,
        /// Length of the data interval before each time.
        interval: Delta,
    },
    /// After each interval of that length.
    DeltaDataInterval {
        /// The length.
        delta: Delta,
    },
    /// At listed times.
    Events {
        /// The times, in order.
        dates: Vec<Timestamp>,
        /// Whether manual runs get the date of a listed time.
        restrict: bool,
    },
    /// A class of the user's, or one that this version does not know; makes no runs by itself.
    Foreign {
        /// Its import path.
        class: String,
    },
}

/// What a cron trigger does at first sight where nothing says where to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunImmediately {
    /// Runs for the time just past.
    Yes,
    /// Runs for the time just past if that is not long ago: a tenth of the period, at least five minutes.
    IfRecent,
    /// Runs for the time just past if that is at most so long ago.
    Within(Duration),
}

impl Timetable {
    /// Whether the scheduler may make runs of it.
    pub fn can_be_scheduled(&self) -> bool {
        match self {
            Self::AssetOrTime(inner) => inner.can_be_scheduled(),
            Self::Null
            | Self::AssetTriggered
            | Self::PartitionedAssets(_)
            | Self::PartitionedAtRuntime
            | Self::Foreign { .. } => false,
            Self::Once
            | Self::Continuous
            | Self::CronPartition(_)
            | Self::CronTrigger { .. }
            | Self::CronDataInterval { .. }
            | Self::DeltaTrigger { .. }
            | Self::DeltaDataInterval { .. }
            | Self::Events { .. } => true,
        }
    }

    /// Whether only Python knows its dates.
    pub fn is_foreign(&self) -> bool {
        match self {
            Self::Foreign { .. } => true,
            Self::AssetOrTime(inner) => inner.is_foreign(),
            Self::Null
            | Self::Once
            | Self::Continuous
            | Self::AssetTriggered
            | Self::CronPartition(_)
            | Self::PartitionedAssets(_)
            | Self::PartitionedAtRuntime
            | Self::CronTrigger { .. }
            | Self::CronDataInterval { .. }
            | Self::DeltaTrigger { .. }
            | Self::DeltaDataInterval { .. }
            | Self::Events { .. } => false,
        }
    }

    /// Most runs that may be active at the same time, where the timetable itself limits them.
    pub fn active_runs_limit(&self) -> Option<u32> {
        match self {
            Self::AssetOrTime(inner) => inner.active_runs_limit(),
            Self::Continuous => Some(1),
            Self::Null
            | Self::Once
            | Self::AssetTriggered
            | Self::CronPartition(_)
            | Self::PartitionedAssets(_)
            | Self::PartitionedAtRuntime
            | Self::CronTrigger { .. }
            | Self::CronDataInterval { .. }
            | Self::DeltaTrigger { .. }
            | Self::DeltaDataInterval { .. }
            | Self::Events { .. }
            | Self::Foreign { .. } => None,
        }
    }

    /// The data interval of a run triggered by hand for `at`.
    ///
    /// # Errors
    /// When a cron expression names no date before it.
    pub fn manual_interval(&self, at: Timestamp) -> Result<DataInterval, TimetableError> {
        Ok(match self {
            Self::AssetOrTime(inner) => return inner.manual_interval(at),
            Self::CronTrigger { interval, .. } | Self::DeltaTrigger { interval, .. } => DataInterval {
                start: interval.before(at),
                end: at,
            },
            Self::CronDataInterval { cron, zone } => {
                let clock = Clock { cron, zone: *zone };
                let end = clock.at_or_before(at)?;
                DataInterval {
                    start: clock.before(end)?,
                    end,
                }
            }
            Self::DeltaDataInterval { delta } => DataInterval {
                start: delta.before(at),
                end: at,
            },
            Self::Events {
                dates,
                restrict: true,
            } => {
                let last = dates
                    .iter()
                    .rev()
                    .find(|date| **date <= at)
                    .or_else(|| dates.first());
                DataInterval::exact(last.copied().unwrap_or(at))
            }
            Self::Null
            | Self::Once
            | Self::Continuous
            | Self::AssetTriggered
            | Self::CronPartition(_)
            | Self::PartitionedAssets(_)
            | Self::PartitionedAtRuntime
            | Self::Events { .. }
            | Self::Foreign { .. } => DataInterval::exact(at),
        })
    }

    /// The run after the one over `last`, as wanted at `now`.
    ///
    /// # Errors
    /// When a cron expression names no further date.
    pub fn next_run(
        &self,
        last: Option<DataInterval>,
        restriction: &Restriction,
        now: Timestamp,
    ) -> Result<Option<NextRun>, TimetableError> {
        let run = match self {
            Self::Null
            | Self::AssetTriggered
            | Self::PartitionedAssets(_)
            | Self::PartitionedAtRuntime
            | Self::Foreign { .. } => return Ok(None),
            Self::AssetOrTime(inner) => return inner.next_run(last, restriction, now),
            Self::CronPartition(cron) => return cron.next_run(last, restriction, now),
            Self::Once => match last {
                Some(_) => return Ok(None),
                None => NextRun::over(DataInterval::exact(restriction.earliest.unwrap_or(now))),
            },
            Self::Continuous => NextRun::over(continuous(last, restriction, now)),
            Self::CronTrigger {
                crons,
                zone,
                interval,
                run_immediately,
            } => {
                let mut times = Vec::new();
                for cron in crons {
                    let clock = Clock { cron, zone: *zone };
                    let at = clock.trigger(last, restriction, now, *run_immediately)?;
                    // `latest` bounds the times themselves here, not the logical date: of each expression, before one of
                    // them is chosen.
                    times.push(at.filter(|at| restriction.latest.is_none_or(|latest| *at <= latest)));
                }
                return Ok(choose(&times, restriction.catchup, now).map(|at| {
                    NextRun::over(DataInterval {
                        start: interval.before(at),
                        end: at,
                    })
                }));
            }
            Self::DeltaTrigger { delta, interval } => {
                let at = delta_trigger(*delta, last, restriction, now);
                let interval = DataInterval {
                    start: interval.before(at),
                    end: at,
                };
                return Ok(restriction
                    .latest
                    .is_none_or(|latest| at <= latest)
                    .then(|| NextRun::over(interval)));
            }
            Self::CronDataInterval { cron, zone } => {
                let clock = Clock { cron, zone: *zone };
                match clock.next_interval(last, restriction, now)? {
                    Some(interval) => NextRun::over(interval),
                    None => return Ok(None),
                }
            }
            Self::DeltaDataInterval { delta } => match next_delta_interval(*delta, last, restriction, now) {
                Some(interval) => NextRun::over(interval),
                None => return Ok(None),
            },
            Self::Events { dates, .. } => {
                let earliest = if restriction.catchup {
                    restriction.earliest
                } else {
                    restriction.earliest.max(Some(now))
                };
                let fits = |date: &&Timestamp| {
                    earliest.is_none_or(|earliest| **date >= earliest)
                        && last.is_none_or(|last| **date > last.end)
                };
                match dates.iter().find(fits) {
                    Some(date) => NextRun::over(DataInterval::exact(*date)),
                    None => return Ok(None),
                }
            }
        };
        let bound = if matches!(self, Self::Continuous) {
            run.interval.end
        } else {
            run.logical_date
        };
        Ok(restriction
            .latest
            .is_none_or(|latest| bound <= latest)
            .then_some(run))
    }

    /// The runs with logical dates from `from` to `to` (both included), the earliest first, at most `most` of them
    /// (`SerializedDAG.iter_dagrun_infos_between`).
    ///
    /// # Errors
    /// When a cron expression names no further date.
    pub fn runs_between(
        &self,
        from: Timestamp,
        to: Timestamp,
        now: Timestamp,
        most: usize,
    ) -> Result<Vec<NextRun>, TimetableError> {
        let restriction = Restriction {
            earliest: Some(from),
            latest: Some(to),
            catchup: true,
        };
        let mut runs: Vec<NextRun> = Vec::new();
        while runs.len() < most {
            let last = runs.last().map(|run| run.interval);
            match self.next_run(last, &restriction, now)? {
                Some(next) => runs.push(next),
                None => break,
            }
        }
        Ok(runs)
    }
}

/// Of the next times of several cron expressions: the earliest to make up for, or the latest that is already past.
fn choose(times: &[Option<Timestamp>], catchup: bool, now: Timestamp) -> Option<Timestamp> {
    let times = times.iter().flatten().copied();
    if catchup {
        return times.min();
    }
    let (past, future): (Vec<_>, Vec<_>) = times.partition(|at| *at <= now);
    past.into_iter().max().or_else(|| future.into_iter().min())
}

fn continuous(last: Option<DataInterval>, restriction: &Restriction, now: Timestamp) -> DataInterval {
    let start = restriction.earliest.unwrap_or(now);
    match last {
        Some(last) if last.end > now => DataInterval {
            start,
            end: start + (last.end - last.start),
        },
        Some(last) => DataInterval {
            start: last.end,
            end: now,
        },
        None => DataInterval {
            start,
            end: start.max(now),
        },
    }
}

fn delta_trigger(
    delta: Delta,
    last: Option<DataInterval>,
    restriction: &Restriction,
    now: Timestamp,
) -> Timestamp {
    let next = last.map(|last| delta.after(last.end));
    if restriction.catchup {
        return next.or(restriction.earliest).unwrap_or(now);
    }
    [Some(now), next, restriction.earliest]
        .into_iter()
        .flatten()
        .max()
        .unwrap_or(now)
}

fn next_delta_interval(
    delta: Delta,
    last: Option<DataInterval>,
    restriction: &Restriction,
    now: Timestamp,
) -> Option<DataInterval> {
    let earliest = if restriction.catchup {
        restriction.earliest
    } else {
        let latest_start = delta.before(delta.floor(now, restriction.earliest.unwrap_or(now)));
        Some(
            restriction
                .earliest
                .map_or(latest_start, |earliest| earliest.max(latest_start)),
        )
    };
    let start = match last {
        None => earliest?,
        Some(last) => {
            let start = earliest.map_or(last.end, |earliest| earliest.max(last.end));
            if start <= last.start {
                delta.after(start)
            } else {
                start
            }
        }
    };
    Some(DataInterval {
        start,
        end: delta.after(start),
    })
}

#[cfg(test)]
mod tests;
