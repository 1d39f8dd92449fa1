//! Runs that are to be about no partition any more.

use crate::clearing::{self, EndedRuns};
use broker::{Broker, Hint};
use chrono::Utc;
use model::DagId;
use store::repo::{PartitionedRuns, RunRecord};
use store::{Graphs, Store, StoreError};

/// What to do with the runs meant.
#[derive(Debug, Clone, Copy, Default)]
pub struct PartitionClearing {
    /// Only tells what would be done.
    pub dry_run: bool,
    /// Runs their tasks again, too.
    pub with_tasks: bool,
}

/// What was done, or would be.
#[derive(Debug)]
pub struct ClearedPartitions {
    /// The runs as they were, those included that were about no partition.
    pub runs: Vec<RunRecord>,
    /// How many task instances run again.
    pub task_instances: usize,
}

impl ClearedPartitions {
    /// Whether a run was about a partition.
    pub fn was_partitioned(run: &RunRecord) -> bool {
        run.partition_key.is_some() || run.partition_date.is_some()
    }

    /// How many runs were about one.
    pub fn count(&self) -> usize {
        self.runs.iter().filter(|run| Self::was_partitioned(run)).count()
    }
}

/// Lets the runs meant be about no partition any more (`clear_partition_runs` of `airflow/models/dagrun.py`).
///
/// # Errors
/// As the store says.
pub async fn clear_partitions(
    store: &Store,
    graphs: &Graphs,
    broker: &dyn Broker,
    dag_id: &DagId,
    wanted: &PartitionedRuns,
    how: PartitionClearing,
) -> Result<ClearedPartitions, StoreError> {
    let mut db = store.reader().await?;
    let runs = db.partitioned_runs(dag_id, wanted).await?;
    let mut tis = Vec::new();
    for run in runs.iter().filter(|_| how.with_tasks) {
        tis.extend(db.task_instances_of(run.key).await?);
    }
    drop(db);
    let task_instances = tis.len();
    if !how.dry_run {
        let now = Utc::now();
        let cleared = store::transact!(store, "clear partitions", |tx| {
            for run in &runs {
                tx.clear_partition(run.key, now).await?;
            }
            clearing::clear(tx, graphs, &tis, EndedRuns::StartAgain, now).await
        })?;
        for run in cleared {
            broker.hint(Hint::Run(run));
        }
        broker.hint(Hint::Dag(dag_id.clone()));
    }
    Ok(ClearedPartitions { runs, task_instances })
}
