//! What the scheduler reads for a plan, and how a plan is carried out.

use super::dags::id_values;
use super::runs::RunRecord;
use super::tasks::NewTaskInstance;
use super::triggers::NewTrigger;
use crate::sql::{Row, Value, placeholders};
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::dag::Dag;
use model::task_instance::StateName;
use model::{ClaimEpoch, DagId, DagRunKey, MapIndex, TaskId, TaskInstanceId, Timestamp};
use scheduling::{Decision, Move, TaskSnapshot};
use std::collections::{BTreeMap, HashMap};

const SNAPSHOT: &str =
    "id, task_id, map_index, state, not_before, next_method IS NOT NULL, priority_weight, pool";

fn read_snapshot(mut row: Row) -> Result<TaskSnapshot, StoreError> {
    Ok(TaskSnapshot {
        id: row.next()?,
        task_id: row.next()?,
        map_index: row.next()?,
        state: row.parse()?,
        not_before: row.next()?,
        goes_on: row.next()?,
        weight: row.next()?,
        pool: row.next()?,
    })
}

/// What locking a run for planning found.
#[derive(Debug)]
pub enum LockedRun {
    /// The run, locked until the transaction ends.
    Mine(Box<RunRecord>),
    /// Another scheduler plans it right now.
    Busy,
    /// There is no such run (any more).
    Gone,
}

impl Tx {
    /// Locks a run for planning.
    ///
    /// # Errors
    /// As the database says.
    pub async fn lock_run(&mut self, key: DagRunKey) -> Result<LockedRun, StoreError> {
        let lock = self.dialect().skip_locked();
        let got = self
            .query_one(
                &format!("SELECT id FROM dag_run WHERE id = ?{lock}"),
                params![key],
            )
            .await?;
        match (got, self.run_by_key(key).await?) {
            (Some(_), Some(run)) => Ok(LockedRun::Mine(Box::new(run))),
            (None, Some(_)) => Ok(LockedRun::Busy),
            (_, None) => Ok(LockedRun::Gone),
        }
    }

    /// Counts a plan of a run, in its transaction: whoever planned it before sees that somebody else has.
    ///
    /// # Errors
    /// As the database says.
    pub async fn count_plan(&mut self, key: DagRunKey) -> Result<(), StoreError> {
        let sql = "UPDATE dag_run SET plan_number = COALESCE(plan_number, 0) + 1 WHERE id = ?";
        self.execute(sql, params![key]).await.map(|_| ())
    }

    /// All running runs.
    ///
    /// # Errors
    /// As the database says.
    pub async fn running_runs(&mut self) -> Result<Vec<DagRunKey>, StoreError> {
        let sql = "SELECT id FROM dag_run WHERE state = 'running'";
        self.query(sql, &[])
            .await?
            .into_iter()
            .map(|mut row| row.next())
            .collect()
    }

    /// Runs with task instances whose waiting time is over at `now`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn runs_with_due_tasks(
        &mut self,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<DagRunKey>, StoreError> {
        let sql = "SELECT DISTINCT run_key FROM task_instance WHERE state IN ('up_for_retry', 'up_for_reschedule', 'deferred') \
                   AND not_before <= ? LIMIT ?";
        self.query(sql, params![now, limit])
            .await?
            .into_iter()
            .map(|mut row| row.next())
            .collect()
    }

    /// All task instances of a run as the planner sees them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn snapshot(&mut self, key: DagRunKey) -> Result<Vec<TaskSnapshot>, StoreError> {
        let sql = format!("SELECT {SNAPSHOT} FROM task_instance WHERE run_key = ?");
        let rows = self.query(&sql, params![key]).await?;
        rows.into_iter().map(read_snapshot).collect()
    }

    /// Some task instances as the planner sees them; those that are gone are left out.
    ///
    /// # Errors
    /// As the database says.
    pub async fn snapshot_of_tasks(
        &mut self,
        ids: &[TaskInstanceId],
    ) -> Result<Vec<TaskSnapshot>, StoreError> {
        let mut found = Vec::with_capacity(ids.len());
        for chunk in Self::chunks(&id_values(ids)) {
            let marks = placeholders(chunk.len());
            let sql = format!("SELECT {SNAPSHOT} FROM task_instance WHERE id IN ({marks})");
            for row in self.query(&sql, chunk).await? {
                found.push(read_snapshot(row)?);
            }
        }
        Ok(found)
    }

    /// Active instances, over all runs, of the tasks that limit them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn active_over_runs(&mut self, dag: &Dag) -> Result<HashMap<TaskId, u32>, StoreError> {
        let mut counts = HashMap::new();
        for task in dag
            .tasks
            .iter()
            .filter(|task| task.max_active_tis_per_dag.is_some())
        {
            let sql = "SELECT COUNT(*) FROM task_instance WHERE dag_id = ? AND task_id = ? \
                       AND state IN ('scheduled', 'queued', 'running', 'deferred', 'awaiting_input')";
            let row = self.query_one(sql, params![&dag.dag_id, &task.task_id]).await?;
            counts.insert(task.task_id.clone(), row.map_or(Ok(0), |mut row| row.next())?);
        }
        Ok(counts)
    }

    /// Lengths of the values that these tasks returned in a run.
    ///
    /// # Errors
    /// As the database says.
    pub async fn mapped_lengths(
        &mut self,
        key: DagRunKey,
        tasks: &[TaskId],
    ) -> Result<HashMap<TaskId, usize>, StoreError> {
        let mut lengths = HashMap::new();
        for task_id in tasks {
            // What an instance left behind that is removed since counts no more.
            let sql = "SELECT COUNT(*), MAX(x.mapped_length), MAX(x.map_index) FROM xcom x \
                       WHERE x.run_key = ? AND x.task_id = ? AND x.xcom_key = 'return_value' AND NOT EXISTS \
                       (SELECT 1 FROM task_instance t WHERE t.run_key = x.run_key AND t.task_id = x.task_id \
                       AND t.map_index = x.map_index AND t.state = 'removed')";
            let Some(mut row) = self.query_one(sql, params![key, task_id]).await? else {
                continue;
            };
            let (count, length, last_index): (i64, Option<i64>, Option<i64>) =
                (row.next()?, row.next()?, row.next()?);
            // What a mapped task returned is as long as it has instances.
            let length = if last_index.is_some_and(|index| index >= 0) {
                Some(count)
            } else {
                length
            };
            if let Some(length) = length {
                lengths.insert(task_id.clone(), usize::try_from(length).unwrap_or(0));
            }
        }
        Ok(lengths)
    }

    /// Carries out the moves of a plan. Each is guarded by the state that the plan saw.
    ///
    /// # Errors
    /// [`StoreError::Contention`] when a task instance moved on meanwhile; the plan must then be made anew.
    pub async fn apply_moves(
        &mut self,
        run: &RunRecord,
        dag: &Dag,
        moves: &[Move],
        ids: &mut (dyn FnMut() -> TaskInstanceId + Send),
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut groups: BTreeMap<(&'static str, StateName), Vec<TaskInstanceId>> = BTreeMap::new();
        for planned in moves {
            let change = match &planned.decision {
                Decision::Schedule => {
                    "state = 'scheduled', scheduled_at = ?, not_before = NULL, \
                    try_number = try_number + CASE WHEN reschedules > 0 THEN 0 ELSE 1 END"
                }
                Decision::Resume => "state = 'scheduled', scheduled_at = ?, not_before = NULL",
                Decision::EndDeferral => "state = 'success', end_date = ?, not_before = NULL",
                Decision::Complete => {
                    "state = 'success', try_number = try_number + 1, end_date = ?, start_date = ?"
                }
                Decision::FailUpstream => {
                    "state = 'upstream_failed', not_before = NULL, end_date = ?, start_date = COALESCE(start_date, ?)"
                }
                Decision::Skip => {
                    "state = 'skipped', not_before = NULL, end_date = ?, start_date = COALESCE(start_date, ?)"
                }
                // A try that never began has its number free again.
                Decision::Remove if matches!(planned.from, StateName::Scheduled | StateName::Queued) => {
                    "state = 'removed', end_date = ?, \
                    try_number = try_number - CASE WHEN reschedules > 0 THEN 0 ELSE 1 END"
                }
                Decision::Remove => "state = 'removed', end_date = ?",
                Decision::Expand(count) => {
                    self.expand(run, dag, planned.id, *count, ids, now).await?;
                    continue;
                }
                Decision::Grow(indexes) => {
                    self.grow(run, dag, planned.id, indexes, ids, now).await?;
                    continue;
                }
                Decision::Defer => {
                    self.begin_with_trigger(dag, planned, now).await?;
                    continue;
                }
                Decision::Refuse(why) => {
                    self.fail(planned, why, now).await?;
                    continue;
                }
                Decision::Stop(why) => {
                    self.fail(planned, why, now).await?;
                    continue;
                }
            };
            groups.entry((change, planned.from)).or_default().push(planned.id);
        }
        for ((change, from), group) in groups {
            self.move_group(change, from, &group, now).await?;
        }
        Ok(())
    }

    async fn move_group(
        &mut self,
        change: &'static str,
        from: StateName,
        group: &[TaskInstanceId],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        for chunk in Self::chunks(&id_values(group)) {
            let sql = format!(
                "UPDATE task_instance SET updated_at = ?, {change} WHERE state = ? AND id IN ({})",
                placeholders(chunk.len())
            );
            // Every instant in a change is now.
            let mut values = vec![Value::from(now); 1 + change.matches('?').count()];
            values.push(from.as_str().into());
            values.extend_from_slice(chunk);
            if self.execute(&sql, &values).await?.rows != chunk.len() as u64 {
                let detail = "a task instance moved on meanwhile".to_owned();
                return Err(StoreError::Contention {
                    name: "plan run",
                    detail,
                });
            }
        }
        Ok(())
    }

    /// Hands an instance over to the trigger that its task begins with, as a new try (`TaskInstance.defer_task`).
    async fn begin_with_trigger(
        &mut self,
        dag: &Dag,
        planned: &Move,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let found = self.task_instance_by_id(planned.id).await?;
        let Some((ti, task)) = found.and_then(|ti| dag.task(&ti.task_id).map(|task| (ti, task))) else {
            return Err(self.moved_meanwhile("plan run", planned.id));
        };
        let Some(start) = &task.start_trigger else {
            return Err(self.moved_meanwhile("plan run", planned.id));
        };
        let limit = [start.timeout, task.execution_timeout]
            .into_iter()
            .flatten()
            .min();
        let until = limit.and_then(|limit| now.checked_add_signed(limit));
        let (method, arguments) = model::trigger::timed_out();
        let epoch = ClaimEpoch(ti.claim_epoch.0 + 1);
        let sql = "UPDATE task_instance SET state = 'deferred', claim_epoch = ?, not_before = ?, next_method = ?, \
                   next_kwargs = ?, start_date = ?, end_date = NULL, updated_at = ?, \
                   try_number = try_number + CASE WHEN reschedules > 0 THEN 0 ELSE 1 END \
                   WHERE id = ? AND state = ? AND claim_epoch = ?";
        let values = params![
            epoch,
            until,
            method,
            serde_json::Value::Object(arguments).to_string(),
            now,
            now,
            ti.id,
            planned.from.as_str(),
            ti.claim_epoch
        ];
        if self.execute(sql, values).await?.rows != 1 {
            return Err(self.moved_meanwhile("plan run", planned.id));
        }
        let trigger = NewTrigger {
            classpath: start.classpath.clone(),
            kwargs: start.kwargs.to_string(),
            is_encrypted: false,
            queue: None,
            next: (
                start.next_method.clone(),
                serde_json::Value::Object(start.next_kwargs.clone()).to_string(),
            ),
        };
        self.add_trigger(&ti, epoch, &trigger, until, now).await
    }

    async fn fail(&mut self, planned: &Move, why: &str, now: Timestamp) -> Result<(), StoreError> {
        let sql = "UPDATE task_instance SET state = 'failed', exit_cause = ?, start_date = COALESCE(start_date, ?), \
                   end_date = ?, updated_at = ? WHERE id = ? AND state = ?";
        let values = params![why, now, now, now, planned.id, planned.from.as_str()];
        match self.execute(sql, values).await?.rows {
            1 => Ok(()),
            _ => Err(self.moved_meanwhile("plan run", planned.id)),
        }
    }

    /// Makes the first of `count` mapped instances of an unexpanded one, and the others beside it.
    async fn expand(
        &mut self,
        run: &RunRecord,
        dag: &Dag,
        id: TaskInstanceId,
        count: usize,
        ids: &mut (dyn FnMut() -> TaskInstanceId + Send),
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE task_instance SET map_index = 0, updated_at = ? WHERE id = ? AND map_index = -1";
        if self.execute(sql, params![now, id]).await?.rows != 1 {
            return Err(self.moved_meanwhile("plan run", id));
        }
        let row = self
            .query_one("SELECT task_id FROM task_instance WHERE id = ?", params![id])
            .await?;
        let task_id: TaskId = row.ok_or_else(|| self.moved_meanwhile("plan run", id))?.next()?;
        let Some(task) = dag.task(&task_id) else {
            return Ok(());
        };
        // It is another one now, to Python: that of index 0.
        self.ask_mutations(run.key, &[(id, task)]).await?;
        let rows: Vec<NewTaskInstance<'_>> = (1..count)
            .map(|index| NewTaskInstance {
                id: ids(),
                task,
                map_index: MapIndex(i32::try_from(index).unwrap_or(i32::MAX)),
            })
            .collect();
        self.insert_task_instances(run.key, &run.dag_id, &run.run_id, run.version_id, &rows, now)
            .await
    }

    /// Makes instances of these indexes of the task that this one is of.
    async fn grow(
        &mut self,
        run: &RunRecord,
        dag: &Dag,
        id: TaskInstanceId,
        indexes: &[MapIndex],
        ids: &mut (dyn FnMut() -> TaskInstanceId + Send),
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let found = self.task_instance_by_id(id).await?;
        let Some(task) = found.and_then(|ti| dag.task(&ti.task_id)) else {
            return Err(self.moved_meanwhile("plan run", id));
        };
        let rows: Vec<NewTaskInstance<'_>> = indexes
            .iter()
            .map(|map_index| NewTaskInstance {
                id: ids(),
                task,
                map_index: *map_index,
            })
            .collect();
        self.insert_task_instances(run.key, &run.dag_id, &run.run_id, run.version_id, &rows, now)
            .await
    }

    /// Keys of running runs of a DAG.
    ///
    /// # Errors
    /// As the database says.
    pub async fn running_runs_of(&mut self, dag_id: &DagId) -> Result<Vec<DagRunKey>, StoreError> {
        let sql = "SELECT id FROM dag_run WHERE state = 'running' AND dag_id = ?";
        self.query(sql, params![dag_id])
            .await?
            .into_iter()
            .map(|mut row| row.next())
            .collect()
    }
}
