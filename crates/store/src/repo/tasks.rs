//! Task instances: reading them, making them, what people do to them.

use super::dags::id_values;
use super::list::Listing;
use crate::sql::{Row, Value, placeholders};
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::dag::Task;
use model::task_instance::{Claim, LastCounters, StateName, TaskInstanceState};
use model::{
    ClaimEpoch, DagId, DagRunKey, DagVersionId, ExecutorName, MapIndex, PoolName, QueueName, RunId, TaskId,
    TaskInstanceId, Timestamp, TryNumber, WorkerId,
};
use scheduling::MOST_INSTANCES;

pub(super) const COLUMNS: &str = "id, run_key, dag_id, run_id, task_id, map_index, state, try_number, max_tries, pool, \
    pool_slots, queue, priority_weight, operator, operator_name, version_id, claim_epoch, claim_id, worker_id, dispatch_seq, \
    not_before, scheduled_at, queued_at, start_date, end_date, hostname, unixname, pid, infra_losses, reschedules, \
    first_start, last_report, exit_cause, rendered_map_index, next_method, next_kwargs, note, trace_context, executor";

/// A task instance.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the column of its name; the names are those of Airflow's TaskInstance"
)]
pub struct TaskInstanceRecord {
    pub id: TaskInstanceId,
    pub run_key: DagRunKey,
    pub dag_id: DagId,
    pub run_id: RunId,
    pub task_id: TaskId,
    pub map_index: MapIndex,
    pub state: StateName,
    pub try_number: TryNumber,
    pub max_tries: u32,
    pub pool: PoolName,
    pub pool_slots: i64,
    pub queue: QueueName,
    pub priority_weight: i64,
    pub operator: String,
    pub operator_name: String,
    pub version_id: DagVersionId,
    pub claim_epoch: ClaimEpoch,
    pub claim_id: Option<String>,
    pub worker_id: Option<WorkerId>,
    pub dispatch_seq: i64,
    pub not_before: Option<Timestamp>,
    pub scheduled_at: Option<Timestamp>,
    pub queued_at: Option<Timestamp>,
    pub start_date: Option<Timestamp>,
    pub end_date: Option<Timestamp>,
    pub hostname: Option<String>,
    pub unixname: Option<String>,
    pub pid: Option<i64>,
    pub infra_losses: u32,
    pub reschedules: u32,
    pub first_start: Option<Timestamp>,
    pub last_report: Option<String>,
    pub exit_cause: Option<String>,
    pub rendered_map_index: Option<String>,
    pub next_method: Option<String>,
    pub next_kwargs: Option<String>,
    pub note: Option<String>,
    pub trace_context: Option<String>,
    pub executor: Option<ExecutorName>,
}

impl TaskInstanceRecord {
    pub(super) fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.next()?,
            run_key: row.next()?,
            dag_id: row.next()?,
            run_id: row.next()?,
            task_id: row.next()?,
            map_index: row.next()?,
            state: row.parse()?,
            try_number: row.next()?,
            max_tries: row.next()?,
            pool: row.next()?,
            pool_slots: row.next()?,
            queue: row.next()?,
            priority_weight: row.next()?,
            operator: row.next()?,
            operator_name: row.next()?,
            version_id: row.next()?,
            claim_epoch: row.next()?,
            claim_id: row.next()?,
            worker_id: row.next()?,
            dispatch_seq: row.next()?,
            not_before: row.next()?,
            scheduled_at: row.next()?,
            queued_at: row.next()?,
            start_date: row.next()?,
            end_date: row.next()?,
            hostname: row.next()?,
            unixname: row.next()?,
            pid: row.next()?,
            infra_losses: row.next()?,
            reschedules: row.next()?,
            first_start: row.next()?,
            last_report: row.next()?,
            exit_cause: row.next()?,
            rendered_map_index: row.next()?,
            next_method: row.next()?,
            next_kwargs: row.next()?,
            note: row.next()?,
            trace_context: row.next()?,
            executor: row.next()?,
        })
    }

    /// The state with what belongs to it.
    ///
    /// # Errors
    /// When the row lacks what its state needs.
    pub fn full_state(&self) -> Result<TaskInstanceState, StoreError> {
        let lacks = |what: &str| {
            StoreError::Inconsistent(format!(
                "task instance {} is {} but has no {what}",
                self.id, self.state
            ))
        };
        let claim = || {
            let worker = self.worker_id.ok_or_else(|| lacks("worker"))?;
            Ok::<_, StoreError>(Claim {
                worker,
                epoch: self.claim_epoch,
            })
        };
        let not_before = || self.not_before.ok_or_else(|| lacks("time to wait for"));
        Ok(match self.state {
            StateName::NoStatus => TaskInstanceState::NoStatus,
            StateName::Scheduled => TaskInstanceState::Scheduled,
            StateName::Queued => TaskInstanceState::Queued {
                sequence: self.dispatch_seq,
            },
            StateName::Running => TaskInstanceState::Running(claim()?),
            StateName::Restarting => TaskInstanceState::Restarting(claim()?),
            StateName::UpForRetry => TaskInstanceState::UpForRetry {
                not_before: not_before()?,
            },
            StateName::UpForReschedule => TaskInstanceState::UpForReschedule {
                not_before: not_before()?,
            },
            StateName::Deferred => TaskInstanceState::Deferred {
                fires_at: self.not_before,
            },
            StateName::AwaitingInput => TaskInstanceState::AwaitingInput,
            StateName::Success => TaskInstanceState::Success,
            StateName::Failed => TaskInstanceState::Failed,
            StateName::Skipped => TaskInstanceState::Skipped,
            StateName::UpstreamFailed => TaskInstanceState::UpstreamFailed,
            StateName::Removed => TaskInstanceState::Removed,
        })
    }

    /// The counters that outlive its states.
    pub const fn counters(&self) -> LastCounters {
        LastCounters {
            sequence: self.dispatch_seq,
            epoch: self.claim_epoch,
        }
    }

    /// Whether a failing try is followed by another one (`TIRunContext.should_retry`).
    pub const fn should_retry(&self) -> bool {
        self.max_tries != 0 && self.try_number.0 <= self.max_tries
    }

    /// Seconds from start to end, where it has both.
    pub fn duration(&self) -> Option<f64> {
        Some((self.end_date? - self.start_date?).as_seconds_f64())
    }
}

/// A task instance to create.
pub(super) struct NewTaskInstance<'a> {
    pub(super) id: TaskInstanceId,
    pub(super) task: &'a Task,
    pub(super) map_index: MapIndex,
}

/// Instances of new tasks. One that is mapped over literals only has all of them from the start (`DagRun._create_tasks`).
pub(super) fn instances_from_the_start<'a>(
    tasks: impl Iterator<Item = &'a Task>,
    ids: &mut (dyn FnMut() -> TaskInstanceId + Send),
) -> Vec<NewTaskInstance<'a>> {
    let mut instances = Vec::new();
    for task in tasks {
        let expansion = task.expansion.as_ref();
        let count = expansion.and_then(|expansion| expansion.count(&|_| None));
        let count = count.filter(|count| (1..=MOST_INSTANCES).contains(count));
        let last = count.and_then(|count| i32::try_from(count - 1).ok());
        let indexes = last.map_or(MapIndex::UNMAPPED.0..=MapIndex::UNMAPPED.0, |last| 0..=last);
        instances.extend(indexes.map(|index| NewTaskInstance {
            id: ids(),
            task,
            map_index: MapIndex(index),
        }));
    }
    instances
}

/// Rows of one INSERT; far below both databases' limits on parameters.
const INSERT_CHUNK: usize = 50;

impl Tx {
    pub(super) async fn insert_task_instances(
        &mut self,
        key: DagRunKey,
        dag_id: &DagId,
        run_id: &RunId,
        version_id: DagVersionId,
        rows: &[NewTaskInstance<'_>],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        const HEAD: &str = "INSERT INTO task_instance (id, run_key, dag_id, run_id, task_id, map_index, state, try_number, \
            max_tries, pool, pool_slots, queue, priority_weight, dispatch_order, operator, operator_name, version_id, \
            executor, claim_epoch, dispatch_seq, infra_losses, reschedules, updated_at) VALUES ";
        const ROW: &str = "(?, ?, ?, ?, ?, ?, 'none', 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, ?)";
        for chunk in rows.chunks(INSERT_CHUNK) {
            let sql = format!("{HEAD}{}", vec![ROW; chunk.len()].join(", "));
            let mut values = Vec::with_capacity(chunk.len() * 17);
            for row in chunk {
                let task = row.task;
                values.extend_from_slice(params![
                    row.id,
                    key,
                    dag_id,
                    run_id,
                    &task.task_id,
                    row.map_index,
                    task.retries,
                    &task.pool,
                    task.pool_slots,
                    &task.queue,
                    task.priority_weight,
                    -task.priority_weight,
                    &task.task_type,
                    &task.operator_name,
                    version_id,
                    task.executor.clone(),
                    now,
                ]);
            }
            self.execute(&sql, &values).await?;
        }
        let new: Vec<(TaskInstanceId, &Task)> = rows.iter().map(|row| (row.id, row.task)).collect();
        self.ask_mutations(key, &new).await
    }

    /// The task instance of that name.
    ///
    /// # Errors
    /// As the database says.
    pub async fn task_instance(
        &mut self,
        dag_id: &DagId,
        run_id: &RunId,
        task_id: &TaskId,
        map_index: MapIndex,
    ) -> Result<Option<TaskInstanceRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM task_instance WHERE run_key = (SELECT id FROM dag_run WHERE dag_id = ? AND run_id = ?) \
             AND task_id = ? AND map_index = ?"
        );
        self.query_one(&sql, params![dag_id, run_id, task_id, map_index])
            .await?
            .map(TaskInstanceRecord::read)
            .transpose()
    }

    /// The task instance with that id.
    ///
    /// # Errors
    /// As the database says.
    pub async fn task_instance_by_id(
        &mut self,
        id: TaskInstanceId,
    ) -> Result<Option<TaskInstanceRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM task_instance WHERE id = ?");
        self.query_one(&sql, params![id])
            .await?
            .map(TaskInstanceRecord::read)
            .transpose()
    }

    /// Task instances that fit, and how many there are.
    ///
    /// # Errors
    /// As the database says.
    pub async fn task_instances(
        &mut self,
        listing: &Listing,
    ) -> Result<(Vec<TaskInstanceRecord>, i64), StoreError> {
        let (rows, total) = self.list("task_instance", COLUMNS, listing).await?;
        Ok((
            rows.into_iter()
                .map(TaskInstanceRecord::read)
                .collect::<Result<_, _>>()?,
            total,
        ))
    }

    /// All task instances of a run.
    ///
    /// # Errors
    /// As the database says.
    pub async fn task_instances_of(&mut self, key: DagRunKey) -> Result<Vec<TaskInstanceRecord>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM task_instance WHERE run_key = ? ORDER BY task_id, map_index");
        self.query(&sql, params![key])
            .await?
            .into_iter()
            .map(TaskInstanceRecord::read)
            .collect()
    }

    pub(super) fn moved_meanwhile(&self, name: &'static str, id: TaskInstanceId) -> StoreError {
        StoreError::Contention {
            name,
            detail: format!("task instance {id} moved on meanwhile"),
        }
    }

    /// Skips task instances that are not running or finished (`skip-downstream`).
    ///
    /// # Errors
    /// As the database says.
    pub async fn skip_tasks(
        &mut self,
        key: DagRunKey,
        tasks: &[(TaskId, MapIndex)],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        for (task_id, map_index) in tasks {
            let sql = "UPDATE task_instance SET state = 'skipped', start_date = ?, end_date = ?, updated_at = ? \
                       WHERE run_key = ? AND task_id = ? AND map_index = ? AND state NOT IN ('running', 'success', 'failed')";
            self.execute(sql, params![now, now, now, key, task_id, *map_index])
                .await?;
        }
        self.add_run_event(key, now).await
    }

    /// Keeps a try that ended without a report.
    pub(super) async fn keep_lost_try(
        &mut self,
        ti: &TaskInstanceRecord,
        cause: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let ended = TaskInstanceRecord {
            end_date: Some(now),
            exit_cause: Some(cause.to_owned()),
            ..ti.clone()
        };
        self.keep_try(&ended, StateName::Failed, now).await
    }

    /// Stores what the templates of a task instance came to.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_rendered_fields(
        &mut self,
        id: TaskInstanceId,
        key: DagRunKey,
        fields: &str,
    ) -> Result<(), StoreError> {
        let tail = self.dialect().on_duplicate("ti_id", &["fields"]);
        let sql = format!("INSERT INTO rendered_fields (ti_id, run_key, fields) VALUES (?, ?, ?){tail}");
        self.execute(&sql, params![id, key, fields]).await.map(|_| ())
    }

    /// What the templates of these task instances came to, as JSON objects.
    ///
    /// # Errors
    /// As the database says.
    pub async fn rendered_fields(
        &mut self,
        ids: &[TaskInstanceId],
    ) -> Result<Vec<(TaskInstanceId, String)>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT ti_id, fields FROM rendered_fields WHERE ti_id IN ({})",
            placeholders(ids.len())
        );
        let read = |mut row: Row| Ok((row.next()?, row.next()?));
        self.query(&sql, &id_values(ids))
            .await?
            .into_iter()
            .map(read)
            .collect()
    }

    /// Stores the label of a mapped task instance.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_map_label(&mut self, id: TaskInstanceId, label: &str) -> Result<(), StoreError> {
        let sql = "UPDATE task_instance SET rendered_map_index = ? WHERE id = ?";
        self.execute(sql, params![label, id]).await.map(|_| ())
    }

    /// Task instances of several DAGs by DAG and state, for those whose state is not final.
    ///
    /// # Errors
    /// As the database says.
    pub async fn state_counts(&mut self) -> Result<Vec<(String, i64)>, StoreError> {
        let sql = "SELECT state, COUNT(*) FROM task_instance GROUP BY state";
        let read = |mut row: Row| Ok((row.next()?, row.next()?));
        self.query(sql, &[]).await?.into_iter().map(read).collect()
    }

    /// Runs a condition over a list of values in pieces that both databases take.
    pub(super) fn chunks(values: &[Value]) -> impl Iterator<Item = &[Value]> {
        values.chunks(400)
    }
}
