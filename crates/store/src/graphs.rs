//! DAG structures in memory.

use crate::repo::TaskInstanceRecord;
use crate::{StoreError, Tx};
use model::dag::Dag;
use model::retry::{RetryOf, next_retry};
use model::{DagVersionId, Timestamp};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Structures kept; beyond that, those read first go.
const CAPACITY: usize = 2000;
/// How long an entry is good. The structure of a version never changes, but what is kept beside it does, when the file
/// changes in a way that is not structure.
const FRESH: Duration = Duration::from_secs(20);

/// A version of a DAG, read.
#[derive(Debug)]
pub struct Graph {
    /// The structure.
    pub dag: Dag,
    /// The serialized DAG.
    pub document: Value,
    /// Side documents of the tasks that run without Python.
    pub native: Map<String, Value>,
    /// Path of the file within its bundle.
    pub relative_fileloc: String,
    /// The bundle.
    pub bundle_name: String,
    /// The version of its files that was parsed last, where the bundle has versions.
    pub bundle_version: Option<String>,
}

/// A cache of versions of DAGs.
#[derive(Default)]
pub struct Graphs {
    entries: Mutex<HashMap<DagVersionId, (Arc<Graph>, Instant)>>,
}

impl Graphs {
    /// When the try after the one that ended at `ended` is due. `asked` is the delay that the task itself asked for,
    /// `longest` bounds how far it grows.
    ///
    /// # Errors
    /// As [`Graphs::get`].
    pub async fn retry_at(
        &self,
        tx: &mut Tx,
        ti: &TaskInstanceRecord,
        ended: Timestamp,
        asked: Option<chrono::Duration>,
        longest: Duration,
    ) -> Result<Timestamp, StoreError> {
        let graph = self.get(tx, ti.version_id).await?;
        let run = tx.run_by_key(ti.run_key).await?;
        let Some(task) = graph.dag.task(&ti.task_id) else {
            return Ok(ended + chrono::Duration::minutes(5));
        };
        let of = RetryOf {
            dag_id: &ti.dag_id,
            task_id: &ti.task_id,
            logical_date: run.and_then(|run| run.logical_date),
            failed_try: ti.try_number,
            longest,
        };
        Ok(next_retry(&task.retry, of, ended, asked))
    }

    /// The structure of that version.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub async fn get(&self, tx: &mut Tx, id: DagVersionId) -> Result<Arc<Graph>, StoreError> {
        let now = Instant::now();
        if let Some((graph, read)) = self
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            && now.duration_since(*read) < FRESH
        {
            return Ok(Arc::clone(graph));
        }
        let version = tx.dag_version(id).await?;
        let version =
            version.ok_or_else(|| StoreError::Inconsistent(format!("DAG version {id} is missing")))?;
        let broken =
            |why: String| StoreError::Inconsistent(format!("DAG {} version {id}: {why}", version.dag_id));
        let document: Value =
            serde_json::from_str(&version.serialized).map_err(|error| broken(error.to_string()))?;
        let dag = Dag::from_serialized(&document).map_err(|error| broken(error.to_string()))?;
        let native: Value = serde_json::from_str(&version.native).unwrap_or_default();
        let graph = Arc::new(Graph {
            dag,
            document,
            native: native
                .get("tasks")
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default(),
            relative_fileloc: version.relative_fileloc,
            bundle_name: version.bundle_name,
            bundle_version: version.bundle_version,
        });
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= CAPACITY {
            entries.retain(|_, (_, read)| now.duration_since(*read) < FRESH);
        }
        entries.insert(id, (Arc::clone(&graph), now));
        Ok(graph)
    }
}
