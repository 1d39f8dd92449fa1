//! What a cluster policy's `task_instance_mutation_hook` and the weight rules of plugins make of task instances: asked here,
//! where Python is.

use crate::Shared;
use crate::deadlines::shown;
use crate::timetables::Unanswered;
use chrono::Utc;
use model::{DagRunKey, TaskInstanceId};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use store::repo::Mutation;
use store::{Graphs, StoreError};

/// When Python is asked again after it was away.
const AGAIN: Duration = Duration::from_secs(2);

/// A task instance as Python made it.
#[derive(Debug, Deserialize)]
struct Mutated {
    id: uuid::Uuid,
    queue: String,
    pool: String,
    pool_slots: u32,
    priority_weight: i64,
    executor: Option<String>,
    max_tries: u32,
}

impl From<Mutated> for Mutation {
    fn from(told: Mutated) -> Self {
        Self {
            id: TaskInstanceId::new(told.id),
            queue: told.queue.as_str().into(),
            pool: told.pool.as_str().into(),
            pool_slots: told.pool_slots,
            // As wide as the column that Airflow keeps it in.
            priority_weight: told
                .priority_weight
                .clamp(i64::from(i32::MIN), i64::from(i32::MAX)),
            executor: told.executor.map(|name| name.as_str().into()),
            max_tries: told.max_tries,
        }
    }
}

impl Shared {
    /// Asks about all task instances that wait for it.
    pub(crate) async fn mutate_all(&self, graphs: &Graphs) -> Result<(), StoreError> {
        while self.mutate_one(graphs).await? {}
        Ok(())
    }

    /// Asks about the task instances of one run. Whether there were any.
    async fn mutate_one(&self, graphs: &Graphs) -> Result<bool, StoreError> {
        let now = Utc::now();
        if !self.store.reader().await?.has_open_mutations(now).await? {
            return Ok(false);
        }
        let claimed = store::transact!(self.store, "claim mutations", |tx| tx
            .claim_mutations(now, self.hold())
            .await)?;
        let Some(claim) = claimed else {
            return Ok(false);
        };
        let key = claim.run_key;
        let mutations = match self.mutation_question(graphs, key, &claim.ids).await? {
            None => Vec::new(),
            Some(question) => match self.ask(question).await {
                Ok(answer) => told(&answer),
                Err(Unanswered::Later(why)) => {
                    tracing::warn!(run = %key, "Python cannot say how task instances are to run, asking again: {why}");
                    store::transact!(self.store, "give mutations back", |tx| tx
                        .release_mutations(&claim, Utc::now() + AGAIN)
                        .await)?;
                    return Ok(false);
                }
                // They run as their tasks say.
                Err(Unanswered::Never(why)) => {
                    tracing::error!(run = %key, "a weight rule or task_instance_mutation_hook went wrong: {why}");
                    Vec::new()
                }
            },
        };
        store::transact!(self.store, "mutate task instances", |tx| tx
            .mutate(&claim, &mutations, Utc::now())
            .await)?;
        self.broker.hint(broker::Hint::Run(key));
        Ok(true)
    }

    /// The question as Python reads it; `None` when the run is gone.
    async fn mutation_question(
        &self,
        graphs: &Graphs,
        key: DagRunKey,
        asked: &[TaskInstanceId],
    ) -> Result<Option<Value>, StoreError> {
        let mut db = self.store.reader().await?;
        let Some(run) = db.run_by_key(key).await? else {
            return Ok(None);
        };
        let graph = graphs.get(&mut db, run.version_id).await?;
        let tis = db.task_instances_by_id(asked).await?;
        let tis: Vec<Value> = tis
            .iter()
            .map(|ti| {
                json!({
                    "id": ti.id, "task_id": ti.task_id, "map_index": ti.map_index.0, "try_number": ti.try_number,
                    "max_tries": ti.max_tries,
                })
            })
            .collect();
        let dag_run = shown(&run, run.dag_id.as_str());
        Ok(Some(json!({
            "kind": "mutation", "dag": graph.document, "dag_run": dag_run, "run_key": key.0, "task_instances": tis,
        })))
    }
}

fn told(answer: &Value) -> Vec<Mutation> {
    for why in answer["errors"].as_array().into_iter().flatten() {
        tracing::error!("a weight rule or task_instance_mutation_hook went wrong: {why}");
    }
    let read = |told: &Value| match Mutated::deserialize(told) {
        Ok(told) => Some(told.into()),
        Err(error) => {
            tracing::error!(
                "what task_instance_mutation_hook left of a task instance cannot be used: {error}: {told}"
            );
            None
        }
    };
    let listed = answer["task_instances"].as_array();
    listed.into_iter().flatten().filter_map(read).collect()
}
