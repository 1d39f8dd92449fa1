//! Versions of DAGs, and which one a run goes on with.
//!
//! A folder of DAG files keeps no old versions that a run could be held to: runs go on with the latest one, as Airflow's
//! do where a bundle has no versions (`DBDagBag._version_from_dag_run`,
//! `SchedulerJobRunner._verify_integrity_if_dag_changed`).

use super::dags::id_values;
use super::runs::RunRecord;
use super::tasks::instances_from_the_start;
use crate::sql::{Row, placeholders};
use crate::unit_of_work::Tx;
use crate::{Graph, Graphs, StoreError, params};
use model::dag::Dag;
use model::{DagId, DagRunKey, DagVersionId, TaskId, TaskInstanceId, Timestamp};
use std::collections::HashSet;
use std::sync::Arc;

/// One stored structure of a DAG.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is the column of its name")]
pub struct DagVersionRecord {
    pub id: DagVersionId,
    pub dag_id: DagId,
    pub version_number: i64,
    /// Airflow's serialized DAG.
    pub serialized: String,
    /// The side document for tasks that run without Python.
    pub native: String,
    pub source: String,
    pub fileloc: String,
    pub relative_fileloc: String,
    pub bundle_name: String,
    /// Which version of its files the bundle had when it was parsed last, where it has versions.
    pub bundle_version: Option<String>,
    pub created_at: Timestamp,
}

fn read_version(mut row: Row) -> Result<DagVersionRecord, StoreError> {
    Ok(DagVersionRecord {
        id: row.next()?,
        dag_id: row.next()?,
        version_number: row.next()?,
        serialized: row.next()?,
        native: row.next()?,
        source: row.next()?,
        fileloc: row.next()?,
        relative_fileloc: row.next()?,
        bundle_name: row.next()?,
        bundle_version: row.next()?,
        created_at: row.next()?,
    })
}

impl Tx {
    /// A stored structure.
    ///
    /// # Errors
    /// As the database says.
    pub async fn dag_version(&mut self, id: DagVersionId) -> Result<Option<DagVersionRecord>, StoreError> {
        let sql = "SELECT id, dag_id, version_number, serialized, native, source, fileloc, relative_fileloc, bundle_name, \
                   bundle_version, created_at FROM dag_version WHERE id = ?";
        self.query_one(sql, params![id])
            .await?
            .map(read_version)
            .transpose()
    }

    /// Which version of its files a bundle had when this structure was parsed last.
    ///
    /// # Errors
    /// As the database says.
    pub async fn bundle_version(&mut self, id: DagVersionId) -> Result<Option<String>, StoreError> {
        let sql = "SELECT bundle_version FROM dag_version WHERE id = ?";
        let row = self.query_one(sql, params![id]).await?;
        row.map_or(Ok(None), |mut row| row.next())
    }

    /// All stored structures of a DAG, oldest first, without their texts.
    ///
    /// # Errors
    /// As the database says.
    pub async fn dag_versions(&mut self, dag_id: &DagId) -> Result<Vec<DagVersionRecord>, StoreError> {
        let sql = "SELECT id, dag_id, version_number, '' AS serialized, '' AS native, '' AS source, fileloc, \
                   relative_fileloc, bundle_name, bundle_version, created_at FROM dag_version WHERE dag_id = ? ORDER BY version_number";
        self.query(sql, params![dag_id])
            .await?
            .into_iter()
            .map(read_version)
            .collect()
    }

    /// These versions without their documents, as far as they are there.
    ///
    /// # Errors
    /// As the database says.
    pub async fn versions_named(
        &mut self,
        ids: &[DagVersionId],
    ) -> Result<Vec<DagVersionRecord>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT id, dag_id, version_number, '' AS serialized, '' AS native, '' AS source, fileloc, relative_fileloc, \
             bundle_name, bundle_version, created_at FROM dag_version WHERE id IN ({})",
            placeholders(ids.len())
        );
        let rows = self.query(&sql, &id_values(ids)).await?;
        rows.into_iter().map(read_version).collect()
    }

    /// The version that a run goes on with: the latest of its DAG, or its own when the DAG is gone.
    ///
    /// # Errors
    /// As the database says.
    pub async fn version_for(&mut self, run: &RunRecord) -> Result<DagVersionId, StoreError> {
        let sql = "SELECT version_id FROM dag WHERE dag_id = ?";
        let row = self.query_one(sql, params![&run.dag_id]).await?;
        row.map_or(Ok(run.version_id), |mut row| row.next())
    }

    /// The structure that a run goes on with.
    ///
    /// # Errors
    /// As [`Graphs::get`].
    pub async fn graph_for(&mut self, graphs: &Graphs, run: &RunRecord) -> Result<Arc<Graph>, StoreError> {
        let version = self.version_for(run).await?;
        graphs.get(self, version).await
    }

    /// Lets a run go on with this version of its DAG, if it does not: what is not over moves to it, tasks that are new get
    /// their instances, and tasks that are back have theirs again. Returns its structure.
    ///
    /// # Errors
    /// As [`Graphs::get`]; [`StoreError::Contention`] when somebody else has moved the run meanwhile.
    pub async fn adopt_version(
        &mut self,
        graphs: &Graphs,
        run: &mut RunRecord,
        version: DagVersionId,
        ids: &mut (dyn FnMut() -> TaskInstanceId + Send),
        now: Timestamp,
    ) -> Result<Arc<Graph>, StoreError> {
        let graph = graphs.get(self, version).await?;
        if run.version_id == version {
            return Ok(graph);
        }
        let dag = &graph.dag;
        let sql = "UPDATE dag_run SET version_id = ?, updated_at = ? WHERE id = ? AND version_id = ?";
        let values = params![version, now, run.key, run.version_id];
        if self.execute(sql, values).await?.rows != 1 {
            let detail = format!("run {} went on with another version meanwhile", run.run_id);
            return Err(StoreError::Contention {
                name: "adopt version",
                detail,
            });
        }
        run.version_id = version;
        let sql = "UPDATE task_instance SET version_id = ?, updated_at = ? WHERE run_key = ? \
                   AND state NOT IN ('success', 'failed', 'upstream_failed', 'skipped', 'removed')";
        self.execute(sql, params![version, now, run.key]).await?;
        let sql = "SELECT DISTINCT task_id FROM task_instance WHERE run_key = ?";
        let rows = self.query(sql, params![run.key]).await?;
        let present: HashSet<TaskId> = rows
            .into_iter()
            .map(|mut row| row.next())
            .collect::<Result<_, _>>()?;
        self.restore_tasks(run, dag, now).await?;
        let new = dag
            .tasks
            .iter()
            .filter(|task| Dag::takes_part(task, run.run_type, run.logical_date))
            .filter(|task| !present.contains(&task.task_id));
        let rows = instances_from_the_start(new, ids);
        self.insert_task_instances(run.key, &run.dag_id, &run.run_id, version, &rows, now)
            .await?;
        self.add_run_event(run.key, now).await?;
        Ok(graph)
    }

    /// Instances that were removed with their task are wanted again when it is back. Those that the task maps over no
    /// more the next plan removes again.
    async fn restore_tasks(&mut self, run: &RunRecord, dag: &Dag, now: Timestamp) -> Result<(), StoreError> {
        let sql = "SELECT DISTINCT task_id FROM task_instance WHERE run_key = ? AND state = 'removed'";
        for mut row in self.query(sql, params![run.key]).await? {
            let task_id: TaskId = row.next()?;
            if dag.task(&task_id).is_some() {
                let sql = "UPDATE task_instance SET state = 'none', version_id = ?, updated_at = ?, not_before = NULL, \
                           next_method = NULL, next_kwargs = NULL, reschedules = 0 WHERE run_key = ? AND task_id = ? AND state = 'removed'";
                self.execute(sql, params![run.version_id, now, run.key, &task_id])
                    .await?;
            }
        }
        Ok(())
    }

    /// Tells the schedulers that the running runs of a DAG have a new version to go on with. Returns those runs.
    ///
    /// # Errors
    /// As the database says.
    pub async fn tell_runs_of_version(
        &mut self,
        dag_id: &DagId,
        now: Timestamp,
    ) -> Result<Vec<DagRunKey>, StoreError> {
        let runs = self.running_runs_of(dag_id).await?;
        for key in &runs {
            self.add_run_event(*key, now).await?;
        }
        Ok(runs)
    }
}
