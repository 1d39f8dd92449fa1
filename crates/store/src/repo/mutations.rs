//! Task instances that Python has a word in before they may run: by a cluster policy's `task_instance_mutation_hook`, or by
//! the weight rule of a plugin. A DAG processor asks.

use super::dags::id_values;
use crate::sql::{Value, placeholders};
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::dag::{Task, WeightRule};
use model::{DagRunKey, ExecutorName, PoolName, QueueName, TaskInstanceId, Timestamp};
use std::collections::HashSet;
use std::time::Duration;

/// Task instances that one question is about at most.
const MOST: i64 = 1000;

/// What Python made of a task instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation {
    /// The task instance.
    pub id: TaskInstanceId,
    /// Queue of the workers that may run it.
    pub queue: QueueName,
    /// Pool that it takes slots from.
    pub pool: PoolName,
    /// How many slots it takes.
    pub pool_slots: u32,
    /// The heavier, the earlier.
    pub priority_weight: i64,
    /// Executor that it asks for.
    pub executor: Option<ExecutorName>,
    /// Number of its last try.
    pub max_tries: u32,
}

/// Task instances of one run that a DAG processor asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MutationClaim {
    /// The run.
    pub run_key: DagRunKey,
    /// The task instances.
    pub ids: Vec<TaskInstanceId>,
    /// How long they are its; who is wanted again meanwhile is not any more.
    until: Timestamp,
}

impl Tx {
    /// Notes task instances that are new, or wanted again, where Python has a word in how they run.
    ///
    /// # Errors
    /// As the database says.
    pub async fn ask_mutations(
        &mut self,
        key: DagRunKey,
        tis: &[(TaskInstanceId, &Task)],
    ) -> Result<(), StoreError> {
        if tis.is_empty() {
            return Ok(());
        }
        let hooked = self.listeners().await?.have_mutations();
        let asked: Vec<TaskInstanceId> = tis
            .iter()
            .filter(|(_, task)| hooked || task.weight_rule == WeightRule::Own)
            .map(|(id, _)| *id)
            .collect();
        let tail = self.dialect().on_duplicate("ti_id", &["claimed_until"]);
        for chunk in asked.chunks(100) {
            let rows = vec!["(?, ?, 0)"; chunk.len()].join(", ");
            let sql = format!("INSERT INTO ti_mutation (ti_id, run_key, claimed_until) VALUES {rows}{tail}");
            let values: Vec<Value> = chunk
                .iter()
                .flat_map(|id| [Value::from(*id), Value::from(key)])
                .collect();
            self.execute(&sql, &values).await?;
        }
        Ok(())
    }

    /// Task instances of a run that Python has not said its word about.
    ///
    /// # Errors
    /// As the database says.
    pub async fn awaiting_mutation(&mut self, key: DagRunKey) -> Result<HashSet<TaskInstanceId>, StoreError> {
        let sql = "SELECT ti_id FROM ti_mutation WHERE run_key = ?";
        self.query(sql, params![key])
            .await?
            .into_iter()
            .map(|mut row| row.next())
            .collect()
    }

    /// Whether Python is to be asked about any task instance.
    ///
    /// # Errors
    /// As the database says.
    pub async fn has_open_mutations(&mut self, now: Timestamp) -> Result<bool, StoreError> {
        let sql = "SELECT ti_id FROM ti_mutation WHERE claimed_until < ? LIMIT 1";
        self.query_one(sql, params![now]).await.map(|row| row.is_some())
    }

    /// Takes in hand, for `hold`, the task instances of one run that Python is to be asked about.
    ///
    /// # Errors
    /// [`StoreError::Contention`] when another DAG processor was quicker.
    pub async fn claim_mutations(
        &mut self,
        now: Timestamp,
        hold: Duration,
    ) -> Result<Option<MutationClaim>, StoreError> {
        let sql =
            "SELECT run_key FROM ti_mutation WHERE claimed_until < ? ORDER BY claimed_until, ti_id LIMIT 1";
        let Some(mut row) = self.query_one(sql, params![now]).await? else {
            return Ok(None);
        };
        let (key, until): (DagRunKey, Timestamp) = (row.next()?, now + hold);
        let sql =
            "SELECT ti_id FROM ti_mutation WHERE run_key = ? AND claimed_until < ? ORDER BY ti_id LIMIT ?";
        let rows = self.query(sql, params![key, now, MOST]).await?;
        let ids: Vec<TaskInstanceId> = rows
            .into_iter()
            .map(|mut row| row.next())
            .collect::<Result<_, _>>()?;
        for chunk in Self::chunks(&id_values(&ids)) {
            let sql = format!(
                "UPDATE ti_mutation SET claimed_until = ? WHERE claimed_until < ? AND ti_id IN ({})",
                placeholders(chunk.len())
            );
            let mut values = params![until, now].to_vec();
            values.extend_from_slice(chunk);
            if self.execute(&sql, &values).await?.rows != chunk.len() as u64 {
                let detail = "another DAG processor asks about these task instances".to_owned();
                return Err(StoreError::Contention {
                    name: "claim mutations",
                    detail,
                });
            }
        }
        Ok(Some(MutationClaim {
            run_key: key,
            ids,
            until,
        }))
    }

    /// Lets others, or the same one later, ask about them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn release_mutations(
        &mut self,
        claim: &MutationClaim,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE ti_mutation SET claimed_until = ? WHERE run_key = ? AND claimed_until = ?";
        let values = params![at, claim.run_key, claim.until];
        self.execute(sql, values).await.map(|_| ())
    }

    /// Takes over what Python made of the task instances that it was asked about; what it does not mention stays as it is.
    /// All of them may run from now on, but for those about which Python is to be asked again meanwhile.
    ///
    /// # Errors
    /// As the database says.
    pub async fn mutate(
        &mut self,
        claim: &MutationClaim,
        mutations: &[Mutation],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let lock = self.dialect().for_update();
        let sql = format!("SELECT ti_id FROM ti_mutation WHERE run_key = ? AND claimed_until = ?{lock}");
        let rows = self.query(&sql, params![claim.run_key, claim.until]).await?;
        let ours: HashSet<TaskInstanceId> = rows
            .into_iter()
            .map(|mut row| row.next())
            .collect::<Result<_, _>>()?;
        for one in mutations.iter().filter(|one| ours.contains(&one.id)) {
            // What is on its way already holds slots of its pool, and a message of its queue.
            let sql = "UPDATE task_instance SET queue = ?, pool = ?, pool_slots = ?, priority_weight = ?, \
                       dispatch_order = ?, executor = ?, max_tries = ?, updated_at = ? \
                       WHERE id = ? AND state NOT IN ('queued', 'running', 'restarting')";
            let values = params![
                &one.queue,
                &one.pool,
                one.pool_slots,
                one.priority_weight,
                -one.priority_weight,
                one.executor.clone(),
                one.max_tries,
                now,
                one.id,
            ];
            self.execute(sql, values).await?;
        }
        let sql = "DELETE FROM ti_mutation WHERE run_key = ? AND claimed_until = ?";
        self.execute(sql, params![claim.run_key, claim.until]).await?;
        self.add_run_event(claim.run_key, now).await
    }
}
