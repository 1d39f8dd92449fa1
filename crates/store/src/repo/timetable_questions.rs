//! Questions about timetables that only Python knows: schedulers and API servers ask, DAG processors answer.

use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::timetable::DataInterval;
use model::{DagId, Timestamp};
use std::time::Duration;

/// What is asked of a timetable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimetableQuestion {
    /// When its DAG runs next, after the run over this interval.
    Next {
        /// The last run's.
        last: Option<DataInterval>,
    },
    /// Which interval a run by hand for that date has.
    Manual {
        /// The date.
        at: Timestamp,
        /// When it may start.
        run_after: Timestamp,
    },
    /// Which name a run by hand has whose interval is given, be it none.
    Name {
        /// Its interval.
        interval: Option<DataInterval>,
        /// When it may start.
        run_after: Timestamp,
    },
    /// Which runs there are with logical dates in a range.
    Between {
        /// The first date.
        from: Timestamp,
        /// The last.
        to: Timestamp,
    },
}

/// A question that a DAG processor has taken.
#[derive(Debug, Clone)]
pub struct AskedTimetable {
    /// Its number.
    pub id: i64,
    /// The DAG.
    pub dag_id: DagId,
    /// What is asked.
    pub question: TimetableQuestion,
}

impl Tx {
    /// Asks. Of the questions for a DAG's next run only the latest counts.
    ///
    /// # Errors
    /// As the database says.
    pub async fn ask_timetable(
        &mut self,
        dag_id: &DagId,
        question: TimetableQuestion,
        now: Timestamp,
    ) -> Result<i64, StoreError> {
        let of = |span: Option<DataInterval>| (span.map(|span| span.start), span.map(|span| span.end));
        let (kind, (first, second), third) = match question {
            TimetableQuestion::Next { last } => {
                let sql = "DELETE FROM timetable_question WHERE dag_id = ? AND kind = 'next'";
                self.execute(sql, params![dag_id]).await?;
                ("next", of(last), None)
            }
            TimetableQuestion::Manual { at, run_after } => ("manual", (Some(at), Some(run_after)), None),
            TimetableQuestion::Name { interval, run_after } => ("name", of(interval), Some(run_after)),
            TimetableQuestion::Between { from, to } => ("between", (Some(from), Some(to)), None),
        };
        let sql = "INSERT INTO timetable_question \
                   (dag_id, kind, first_instant, second_instant, third_instant, created_at, claimed_until) \
                   VALUES (?, ?, ?, ?, ?, ?, 0)";
        Ok(self
            .execute(sql, params![dag_id, kind, first, second, third, now])
            .await?
            .last_key)
    }

    /// Whether a question waits that nobody has in hand.
    ///
    /// # Errors
    /// As the database says.
    pub async fn has_timetable_question(&mut self, now: Timestamp) -> Result<bool, StoreError> {
        let sql = "SELECT id FROM timetable_question WHERE answer IS NULL AND claimed_until < ? LIMIT 1";
        Ok(self.query_one(sql, params![now]).await?.is_some())
    }

    /// Takes the oldest question that nobody else has in hand, for so long.
    ///
    /// # Errors
    /// As the database says.
    pub async fn claim_timetable_question(
        &mut self,
        now: Timestamp,
        hold: Duration,
    ) -> Result<Option<AskedTimetable>, StoreError> {
        let sql = "SELECT id, dag_id, kind, first_instant, second_instant, third_instant, claimed_until \
                   FROM timetable_question WHERE answer IS NULL AND claimed_until < ? ORDER BY id LIMIT 1";
        let Some(mut row) = self.query_one(sql, params![now]).await? else {
            return Ok(None);
        };
        let (id, dag_id, kind): (i64, DagId, String) = (row.next()?, row.next()?, row.next()?);
        let (first, second): (Option<Timestamp>, Option<Timestamp>) = (row.next()?, row.next()?);
        let third: Option<Timestamp> = row.next()?;
        let held: i64 = row.next()?;
        let span = first.zip(second).map(|(start, end)| DataInterval { start, end });
        let until = now + chrono::Duration::from_std(hold).unwrap_or_else(|_| chrono::Duration::hours(1));
        let sql = "UPDATE timetable_question SET claimed_until = ? WHERE id = ? AND claimed_until = ?";
        if self.execute(sql, params![until, id, held]).await?.rows != 1 {
            return Ok(None);
        }
        let question = match (kind.as_str(), first, second) {
            ("name", _, _) => TimetableQuestion::Name {
                interval: span,
                run_after: third.unwrap_or(now),
            },
            ("manual", Some(at), run_after) => TimetableQuestion::Manual {
                at,
                run_after: run_after.unwrap_or(at),
            },
            ("between", Some(from), Some(to)) => TimetableQuestion::Between { from, to },
            _ => TimetableQuestion::Next { last: span },
        };
        Ok(Some(AskedTimetable { id, dag_id, question }))
    }

    /// Notes an answer for whoever asked.
    ///
    /// # Errors
    /// As the database says.
    pub async fn answer_timetable(&mut self, id: i64, answer: &str) -> Result<(), StoreError> {
        let sql = "UPDATE timetable_question SET answer = ? WHERE id = ?";
        self.execute(sql, params![answer, id]).await.map(|_| ())
    }

    /// The answer, once there is one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn timetable_answer(&mut self, id: i64) -> Result<Option<String>, StoreError> {
        let sql = "SELECT answer FROM timetable_question WHERE id = ?";
        let read = |mut row: Row| row.next::<Option<String>>();
        let row = self.query_one(sql, params![id]).await?;
        Ok(row.map(read).transpose()?.flatten())
    }

    /// Forgets a question. Whether it was still there.
    ///
    /// # Errors
    /// As the database says.
    pub async fn forget_timetable_question(&mut self, id: i64) -> Result<bool, StoreError> {
        let sql = "DELETE FROM timetable_question WHERE id = ?";
        Ok(self.execute(sql, params![id]).await?.rows == 1)
    }
}
