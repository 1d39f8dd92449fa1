//! DagRuns.

use super::list::Listing;
use super::tasks::instances_from_the_start;
use crate::sql::{Row, Value};
use crate::unit_of_work::Tx;
use crate::{StoreError, limits, params};
use model::dag::Dag;
use model::dag_run::{DagRunState, DagRunType};
use model::timetable::{DataInterval, Partition};
use model::{DagId, DagRunKey, DagVersionId, RunId, TaskInstanceId, Timestamp};

pub(super) const COLUMNS: &str = "id, dag_id, run_id, logical_date, run_type, state, conf, data_interval_start, data_interval_end, \
    run_after, queued_at, start_date, end_date, version_id, triggered_by, triggering_user, note, clear_number, \
    last_decision_at, trace_context, partition_key, partition_date, \
    COALESCE(plan_number, 0)";

/// A DagRun.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the column of its name; the names are those of Airflow's DagRun"
)]
pub struct RunRecord {
    pub key: DagRunKey,
    pub dag_id: DagId,
    pub run_id: RunId,
    pub logical_date: Option<Timestamp>,
    pub run_type: DagRunType,
    pub state: DagRunState,
    /// JSON object.
    pub conf: String,
    pub data_interval_start: Option<Timestamp>,
    pub data_interval_end: Option<Timestamp>,
    pub run_after: Timestamp,
    pub queued_at: Option<Timestamp>,
    pub start_date: Option<Timestamp>,
    pub end_date: Option<Timestamp>,
    pub version_id: DagVersionId,
    pub triggered_by: Option<String>,
    pub triggering_user: Option<String>,
    pub note: Option<String>,
    pub clear_number: i64,
    pub last_decision_at: Option<Timestamp>,
    pub trace_context: Option<String>,
    pub partition_key: Option<String>,
    pub partition_date: Option<Timestamp>,
    /// How often it has been planned.
    pub plan_number: i64,
}

impl RunRecord {
    /// The run as the Task SDK knows it, with the updates of assets that started it; it forbids any other field.
    pub(super) fn for_sdk(&self, consumed: Vec<serde_json::Value>) -> serde_json::Value {
        let when = |at: Option<Timestamp>| at.map(model::time::rest_format);
        serde_json::json!({
            "dag_id": self.dag_id,
            "run_id": self.run_id,
            "logical_date": when(self.logical_date),
            "data_interval_start": when(self.data_interval_start),
            "data_interval_end": when(self.data_interval_end),
            "run_after": model::time::rest_format(self.run_after),
            "start_date": when(self.start_date),
            "end_date": when(self.end_date),
            "clear_number": self.clear_number,
            "run_type": self.run_type.as_str(),
            "state": self.state.as_str(),
            "conf": serde_json::from_str::<serde_json::Value>(&self.conf).unwrap_or_else(|_| serde_json::json!({})),
            "triggering_user_name": self.triggering_user,
            "consumed_asset_events": consumed,
            "partition_key": self.partition_key,
            "partition_date": self.partition_date.map(model::time::rest_format),
        })
    }

    pub(super) fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            key: row.next()?,
            dag_id: row.next()?,
            run_id: row.next()?,
            logical_date: row.next()?,
            run_type: row.parse()?,
            state: row.parse()?,
            conf: row.next()?,
            data_interval_start: row.next()?,
            data_interval_end: row.next()?,
            run_after: row.next()?,
            queued_at: row.next()?,
            start_date: row.next()?,
            end_date: row.next()?,
            version_id: row.next()?,
            triggered_by: row.next()?,
            triggering_user: row.next()?,
            note: row.next()?,
            clear_number: row.next()?,
            last_decision_at: row.next()?,
            trace_context: row.next()?,
            partition_key: row.next()?,
            partition_date: row.next()?,
            plan_number: row.next()?,
        })
    }
}

/// A run to create.
#[derive(Debug, Clone)]
pub struct NewRun<'a> {
    /// Structure of the DAG.
    pub dag: &'a Dag,
    /// Version that this structure has in the store.
    pub version_id: DagVersionId,
    /// Its name.
    pub run_id: RunId,
    /// Why it exists.
    pub run_type: DagRunType,
    /// Its logical date.
    pub logical_date: Option<Timestamp>,
    /// Its data interval.
    pub interval: Option<DataInterval>,
    /// Earliest start.
    pub run_after: Timestamp,
    /// Parameters: a JSON object.
    pub conf: String,
    /// `timetable`, `rest_api`, `ui`, `cli`, `operator`.
    pub triggered_by: &'static str,
    /// Who triggered it.
    pub triggering_user: Option<String>,
    /// Note.
    pub note: Option<String>,
    /// W3C trace context that the run belongs to.
    pub trace_context: Option<String>,
    /// The partition that it is about.
    pub partition: Option<Partition>,
}

impl Tx {
    /// Creates a run in state queued, with its task instances.
    ///
    /// # Errors
    /// [`StoreError::Duplicate`] when the DAG has a run of that name or logical date.
    pub async fn create_run(
        &mut self,
        run: &NewRun<'_>,
        ids: &mut (dyn FnMut() -> TaskInstanceId + Send),
        now: Timestamp,
    ) -> Result<DagRunKey, StoreError> {
        limits::RUN_ID.check(run.run_id.as_str())?;
        limits::TRIGGERING_USER.check(run.triggering_user.as_deref().unwrap_or_default())?;
        let partition = run.partition.as_ref().map(|partition| partition.key.as_str());
        limits::PARTITION_KEY.check(partition.unwrap_or_default())?;
        limits::check_value("dag_run.conf", &run.conf)?;
        let sql = "INSERT INTO dag_run (dag_id, run_id, logical_date, run_type, state, conf, data_interval_start, \
                   data_interval_end, run_after, queued_at, version_id, triggered_by, triggering_user, note, clear_number, \
                   trace_context, partition_key, partition_date, updated_at) \
                   VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?)";
        let values = params![
            &run.dag.dag_id,
            &run.run_id,
            run.logical_date,
            run.run_type.as_str(),
            &run.conf,
            run.interval.map(|interval| interval.start),
            run.interval.map(|interval| interval.end),
            run.run_after,
            now,
            run.version_id,
            run.triggered_by,
            run.triggering_user.clone(),
            run.note.clone(),
            run.trace_context.clone(),
            run.partition.as_ref().map(|partition| partition.key.as_str()),
            run.partition.as_ref().and_then(|partition| partition.date),
            now,
        ];
        let key = DagRunKey(self.execute(sql, values).await?.last_key);
        let tasks = run.dag.tasks.iter();
        let tasks = tasks.filter(|task| Dag::takes_part(task, run.run_type, run.logical_date));
        let rows = instances_from_the_start(tasks, ids);
        self.insert_task_instances(key, &run.dag.dag_id, &run.run_id, run.version_id, &rows, now)
            .await?;
        self.add_deadlines(run, key, now).await?;
        Ok(key)
    }

    /// The run of that name.
    ///
    /// # Errors
    /// As the database says.
    pub async fn run(&mut self, dag_id: &DagId, run_id: &RunId) -> Result<Option<RunRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM dag_run WHERE dag_id = ? AND run_id = ?");
        self.query_one(&sql, params![dag_id, run_id])
            .await?
            .map(RunRecord::read)
            .transpose()
    }

    /// The run with that key.
    ///
    /// # Errors
    /// As the database says.
    pub async fn run_by_key(&mut self, key: DagRunKey) -> Result<Option<RunRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM dag_run WHERE id = ?");
        self.query_one(&sql, params![key])
            .await?
            .map(RunRecord::read)
            .transpose()
    }

    /// Runs that fit, and how many there are.
    ///
    /// # Errors
    /// As the database says.
    pub async fn runs(&mut self, listing: &Listing) -> Result<(Vec<RunRecord>, i64), StoreError> {
        let (rows, total) = self.list("dag_run", COLUMNS, listing).await?;
        Ok((
            rows.into_iter().map(RunRecord::read).collect::<Result<_, _>>()?,
            total,
        ))
    }

    /// Whether a DAG has a run with that logical date.
    ///
    /// # Errors
    /// As the database says.
    pub async fn run_with_date(
        &mut self,
        dag_id: &DagId,
        logical_date: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = "SELECT COUNT(*) FROM dag_run WHERE dag_id = ? AND logical_date = ?";
        self.query_one(sql, params![dag_id, logical_date])
            .await?
            .map_or(Ok(false), |mut row| row.next())
    }

    /// The scheduled run (or backfill) with the latest logical date, from which the timetable goes on.
    ///
    /// # Errors
    /// As the database says.
    pub async fn last_automated_run(&mut self, dag_id: &DagId) -> Result<Option<RunRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM dag_run WHERE dag_id = ? AND run_type IN ('scheduled', 'backfill') \
             AND logical_date IS NOT NULL ORDER BY logical_date DESC LIMIT 1"
        );
        self.query_one(&sql, params![dag_id])
            .await?
            .map(RunRecord::read)
            .transpose()
    }

    /// The latest run of the same DAG before `logical_date`, in `state` if given.
    ///
    /// # Errors
    /// As the database says.
    pub async fn previous_run(
        &mut self,
        dag_id: &DagId,
        logical_date: Timestamp,
        state: Option<DagRunState>,
    ) -> Result<Option<RunRecord>, StoreError> {
        let filter = if state.is_some() { " AND state = ?" } else { "" };
        let sql = format!(
            "SELECT {COLUMNS} FROM dag_run WHERE dag_id = ? AND logical_date < ?{filter} ORDER BY logical_date DESC LIMIT 1"
        );
        let mut values = vec![Value::from(dag_id), Value::from(logical_date)];
        values.extend(state.map(|state| Value::from(state.as_str())));
        self.query_one(&sql, &values)
            .await?
            .map(RunRecord::read)
            .transpose()
    }

    /// Runs of a DAG with a logical date within these bounds (both included, where given), in that order. Without bounds,
    /// all runs, those without a date included.
    ///
    /// # Errors
    /// As the database says.
    pub async fn runs_dated(
        &mut self,
        dag_id: &DagId,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> Result<Vec<RunRecord>, StoreError> {
        let mut sql = format!("SELECT {COLUMNS} FROM dag_run WHERE dag_id = ?");
        let mut values = vec![Value::from(dag_id)];
        for (condition, bound) in [(" AND logical_date >= ?", from), (" AND logical_date <= ?", to)] {
            if let Some(bound) = bound {
                sql.push_str(condition);
                values.push(bound.into());
            }
        }
        sql.push_str(" ORDER BY logical_date, id");
        let rows = self.query(&sql, &values).await?;
        rows.into_iter().map(RunRecord::read).collect()
    }

    /// How many runs of a DAG are in one of these states, backfills left out.
    ///
    /// # Errors
    /// As the database says.
    pub async fn count_active_runs(
        &mut self,
        dag_id: &DagId,
        states: &[DagRunState],
    ) -> Result<u32, StoreError> {
        let marks = crate::sql::placeholders(states.len());
        let sql = format!(
            "SELECT COUNT(*) FROM dag_run WHERE dag_id = ? AND state IN ({marks}) AND run_type <> 'backfill'"
        );
        let mut values = vec![Value::from(dag_id)];
        values.extend(states.iter().map(|state| Value::from(state.as_str())));
        self.query_one(&sql, &values)
            .await?
            .map_or(Ok(0), |mut row| row.next())
    }

    /// DAGs that have queued runs whose time has come, paused ones left out.
    ///
    /// # Errors
    /// As the database says.
    pub async fn dags_with_queued_runs(&mut self, now: Timestamp) -> Result<Vec<DagId>, StoreError> {
        let sql = "SELECT DISTINCT r.dag_id FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id \
                   WHERE r.state = 'queued' AND r.run_after <= ? AND d.is_paused = 0 AND d.is_stale = 0";
        self.query(sql, params![now])
            .await?
            .into_iter()
            .map(|mut row| row.next())
            .collect()
    }

    /// Queued runs of a DAG in the order in which they start, those of backfills left out.
    ///
    /// # Errors
    /// As the database says.
    pub async fn queued_runs(
        &mut self,
        dag_id: &DagId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<DagRunKey>, StoreError> {
        let sql = "SELECT id FROM dag_run WHERE state = 'queued' AND dag_id = ? AND run_after <= ? \
                   AND backfill_id IS NULL ORDER BY run_after, id LIMIT ?";
        self.query(sql, params![dag_id, now, limit])
            .await?
            .into_iter()
            .map(|mut row| row.next())
            .collect()
    }

    /// Starts queued runs. Returns those that were still queued.
    ///
    /// # Errors
    /// As the database says.
    pub async fn start_runs(
        &mut self,
        keys: &[DagRunKey],
        now: Timestamp,
    ) -> Result<Vec<DagRunKey>, StoreError> {
        let mut started = Vec::new();
        for key in keys {
            let sql = "UPDATE dag_run SET state = 'running', start_date = ?, last_decision_at = ?, updated_at = ? \
                       WHERE id = ? AND state = 'queued'";
            if self.execute(sql, params![now, now, now, *key]).await?.rows == 1 {
                self.add_run_event(*key, now).await?;
                started.push(*key);
            }
        }
        Ok(started)
    }

    /// Ends a running run. Whether it was running.
    ///
    /// # Errors
    /// As the database says.
    pub async fn finish_run(
        &mut self,
        key: DagRunKey,
        to: DagRunState,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE dag_run SET state = ?, end_date = ?, last_decision_at = ?, updated_at = ? WHERE id = ? AND state = 'running'";
        Ok(self
            .execute(sql, params![to.as_str(), now, now, now, key])
            .await?
            .rows
            == 1)
    }

    /// Sets the state as a person asks: success, failed, or queued again.
    ///
    /// # Errors
    /// As the database says.
    pub async fn mark_run(
        &mut self,
        key: DagRunKey,
        to: DagRunState,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = if to.is_finished() {
            "UPDATE dag_run SET state = ?, end_date = COALESCE(end_date, ?), updated_at = ? WHERE id = ?"
        } else {
            "UPDATE dag_run SET state = ?, queued_at = ?, updated_at = ?, start_date = NULL, end_date = NULL WHERE id = ?"
        };
        self.execute(sql, params![to.as_str(), now, now, key])
            .await
            .map(|_| ())
    }

    /// Sets the note; `None` removes it.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_run_note(
        &mut self,
        key: DagRunKey,
        note: Option<&str>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE dag_run SET note = ?, updated_at = ? WHERE id = ?";
        self.execute(sql, params![note, now, key]).await.map(|_| ())
    }

    /// Deletes a run with everything that belongs to it. Whether there was one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn delete_run(&mut self, key: DagRunKey) -> Result<bool, StoreError> {
        for table in ["outbox", "pending_trigger"] {
            let sql = format!(
                "DELETE FROM {table} WHERE ti_id IN (SELECT id FROM task_instance WHERE run_key = ?)"
            );
            self.execute(&sql, params![key]).await?;
        }
        self.execute("DELETE FROM backfill_run WHERE run_key = ?", params![key])
            .await?;
        for table in [
            "run_event",
            "run_asset_event",
            "deadline",
            "hitl_detail",
            "xcom",
            "rendered_fields",
            "ti_mutation",
            "task_state",
            "task_instance_history",
            "task_instance",
        ] {
            self.execute(&format!("DELETE FROM {table} WHERE run_key = ?"), params![key])
                .await?;
        }
        Ok(self
            .execute("DELETE FROM dag_run WHERE id = ?", params![key])
            .await?
            .rows
            == 1)
    }

    /// Runs of a DAG by state.
    ///
    /// # Errors
    /// As the database says.
    pub async fn run_counts(&mut self) -> Result<Vec<(DagId, DagRunState, i64)>, StoreError> {
        let sql = "SELECT dag_id, state, COUNT(*) FROM dag_run GROUP BY dag_id, state ORDER BY dag_id";
        let read = |mut row: Row| Ok((row.next()?, row.parse()?, row.next()?));
        self.query(sql, &[]).await?.into_iter().map(read).collect()
    }

    /// How many runs of a DAG fit: these logical dates, run ids and states, where given.
    ///
    /// # Errors
    /// As the database says.
    pub async fn count_runs(&mut self, listing: &Listing) -> Result<i64, StoreError> {
        let counted = Listing {
            limit: 0,
            ..listing.clone()
        };
        self.list("dag_run", COLUMNS, &counted)
            .await
            .map(|(_, total)| total)
    }
}
