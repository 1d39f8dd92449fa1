//! What a cron expression means on the wall clock of a time zone.

use super::{CronExpression, DataInterval, Restriction, RunImmediately, TimetableError, Zone};
use crate::time::Timestamp;
use chrono::Duration;

/// A cron expression on the wall clock of a time zone (`CronMixin`).
pub(super) struct Clock<'a> {
    pub(super) cron: &'a CronExpression,
    pub(super) zone: Zone,
}

impl Clock<'_> {
    pub(super) fn after(&self, at: Timestamp) -> Result<Timestamp, TimetableError> {
        let wall = self.zone.wall_clock(at);
        let next = self.cron.after(wall)?;
        Ok(if self.cron.covers_every_hour() {
            at + (next - wall)
        } else {
            self.zone.instant(next)
        })
    }

    pub(super) fn before(&self, at: Timestamp) -> Result<Timestamp, TimetableError> {
        let wall = self.zone.wall_clock(at);
        let last = self.cron.before(wall)?;
        Ok(if self.cron.covers_every_hour() {
            at - (wall - last)
        } else {
            self.zone.instant(last)
        })
    }

    pub(super) fn at_or_after(&self, at: Timestamp) -> Result<Timestamp, TimetableError> {
        let next = self.after(at)?;
        Ok(if self.before(next)? == at { at } else { next })
    }

    pub(super) fn at_or_before(&self, at: Timestamp) -> Result<Timestamp, TimetableError> {
        let last = self.before(at)?;
        Ok(if self.after(last)? == at { at } else { last })
    }

    pub(super) fn trigger(
        &self,
        last: Option<DataInterval>,
        restriction: &Restriction,
        now: Timestamp,
        run_immediately: RunImmediately,
    ) -> Result<Option<Timestamp>, TimetableError> {
        let earliest = restriction
            .earliest
            .map(|earliest| self.at_or_after(earliest))
            .transpose()?;
        let follow_up = match last {
            Some(last) => Some(self.after(last.end)?),
            None if earliest.is_none() => Some(self.first_run(now, run_immediately)?),
            None => None,
        };
        if restriction.catchup {
            return Ok(follow_up.or(earliest));
        }
        Ok([Some(self.at_or_before(now)?), follow_up, earliest]
            .into_iter()
            .flatten()
            .max())
    }

    pub(super) fn first_run(
        &self,
        now: Timestamp,
        run_immediately: RunImmediately,
    ) -> Result<Timestamp, TimetableError> {
        let (past, next) = (self.at_or_before(now)?, self.at_or_after(now)?);
        let patience = match run_immediately {
            RunImmediately::Yes => return Ok(past),
            RunImmediately::IfRecent => ((next - past) / 10).max(Duration::minutes(5)),
            RunImmediately::Within(patience) => patience,
        };
        Ok(if now - past <= patience { past } else { next })
    }

    pub(super) fn next_interval(
        &self,
        last: Option<DataInterval>,
        restriction: &Restriction,
        now: Timestamp,
    ) -> Result<Option<DataInterval>, TimetableError> {
        let aligned = restriction
            .earliest
            .map(|earliest| self.at_or_after(earliest))
            .transpose()?;
        let earliest = if restriction.catchup {
            aligned
        } else {
            let last_start = self.before(now)?;
            let start = if self.after(last_start)? == now {
                last_start
            } else {
                self.before(last_start)?
            };
            Some(aligned.map_or(start, |aligned| aligned.max(start)))
        };
        let start = match (last, earliest) {
            (None, None) => return Ok(None),
            (None, Some(earliest)) => earliest,
            (Some(last), earliest) => {
                let end = self.at_or_before(last.end)?;
                let start = earliest.map_or(end, |earliest| earliest.max(end));
                let again = if start <= last.start {
                    self.after(start)?
                } else {
                    start
                };
                // Where a zone's clock jumps, a step back and one forward may end where they began: Airflow raises there,
                // and its DAG never runs again.
                if again <= last.start { last.end } else { again }
            }
        };
        Ok(Some(DataInterval {
            start,
            end: self.after(start)?,
        }))
    }
}
