//! Tries that are over.

use super::tasks::TaskInstanceRecord;
use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::task_instance::StateName;
use model::{DagRunKey, DagVersionId, ExecutorName, PoolName, QueueName, TaskInstanceId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A finished try, as it was when the next one was decided upon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in TaskInstanceRecord")]
pub struct HistoryRecord {
    pub try_number: u32,
    pub state: String,
    pub start_date: Option<Timestamp>,
    pub end_date: Option<Timestamp>,
    pub queued_at: Option<Timestamp>,
    pub scheduled_at: Option<Timestamp>,
    pub hostname: Option<String>,
    pub unixname: Option<String>,
    pub pid: Option<i64>,
    pub max_tries: u32,
    pub exit_cause: Option<String>,
    /// `None` for tries from before it was kept.
    #[serde(default)]
    pub placement: Option<Placement>,
}

/// Where and by which structure a try ran; another version of its DAG, or a cluster policy, may say otherwise for the next.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in TaskInstanceRecord")]
pub struct Placement {
    pub version_id: DagVersionId,
    pub pool: PoolName,
    pub pool_slots: i64,
    pub queue: QueueName,
    pub priority_weight: i64,
    pub executor: Option<ExecutorName>,
    pub operator: String,
    pub operator_name: String,
}

impl Placement {
    /// That of the present try.
    pub fn of(ti: &TaskInstanceRecord) -> Self {
        Self {
            version_id: ti.version_id,
            pool: ti.pool.clone(),
            pool_slots: ti.pool_slots,
            queue: ti.queue.clone(),
            priority_weight: ti.priority_weight,
            executor: ti.executor.clone(),
            operator: ti.operator.clone(),
            operator_name: ti.operator_name.clone(),
        }
    }
}

impl HistoryRecord {
    /// The present try.
    pub fn of(ti: &TaskInstanceRecord) -> Self {
        Self {
            try_number: ti.try_number.0,
            state: ti.state.as_str().to_owned(),
            start_date: ti.start_date,
            end_date: ti.end_date,
            queued_at: ti.queued_at,
            scheduled_at: ti.scheduled_at,
            hostname: ti.hostname.clone(),
            unixname: ti.unixname.clone(),
            pid: ti.pid,
            max_tries: ti.max_tries,
            exit_cause: ti.exit_cause.clone(),
            placement: Some(Placement::of(ti)),
        }
    }
}

fn read(mut row: Row) -> Result<HistoryRecord, StoreError> {
    let text: String = row.next()?;
    serde_json::from_str(&text)
        .map_err(|error| StoreError::Inconsistent(format!("history of a task instance: {error}")))
}

impl Tx {
    /// Finished tries of a task instance, oldest first.
    ///
    /// # Errors
    /// As the database says.
    pub async fn history(&mut self, id: TaskInstanceId) -> Result<Vec<HistoryRecord>, StoreError> {
        let sql = "SELECT record FROM task_instance_history WHERE ti_id = ? ORDER BY try_number";
        self.query(sql, params![id])
            .await?
            .into_iter()
            .map(read)
            .collect()
    }

    /// The versions of its DAG that task instances of a run have, or had in an earlier try (`DagRun.dag_versions`).
    ///
    /// # Errors
    /// As the database says.
    pub async fn versions_in_run(&mut self, key: DagRunKey) -> Result<BTreeSet<DagVersionId>, StoreError> {
        let sql = "SELECT DISTINCT version_id FROM task_instance WHERE run_key = ?";
        let rows = self.query(sql, params![key]).await?;
        let mut versions: BTreeSet<DagVersionId> = rows
            .into_iter()
            .map(|mut row| row.next())
            .collect::<Result<_, _>>()?;
        let sql = "SELECT record FROM task_instance_history WHERE run_key = ?";
        for row in self.query(sql, params![key]).await? {
            versions.extend(read(row)?.placement.map(|placement| placement.version_id));
        }
        Ok(versions)
    }

    /// Keeps the present try in the history.
    pub(super) async fn keep_try(
        &mut self,
        ti: &TaskInstanceRecord,
        state: StateName,
        end: Timestamp,
    ) -> Result<(), StoreError> {
        if ti.try_number.0 == 0 {
            return Ok(());
        }
        let record = HistoryRecord {
            state: state.as_str().to_owned(),
            end_date: Some(ti.end_date.unwrap_or(end)),
            ..HistoryRecord::of(ti)
        };
        let text =
            serde_json::to_string(&record).map_err(|error| StoreError::Inconsistent(error.to_string()))?;
        let head = self.dialect().insert_ignore();
        let sql =
            format!("{head} task_instance_history (ti_id, try_number, run_key, record) VALUES (?, ?, ?, ?)");
        self.execute(&sql, params![ti.id, ti.try_number, ti.run_key, text])
            .await
            .map(|_| ())
    }
}
