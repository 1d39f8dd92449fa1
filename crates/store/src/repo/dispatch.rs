//! From waiting for a slot to the broker: slots, the outbox, and what was overlooked.

use super::dags::id_values;
use crate::sql::{Row, Value, placeholders};
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::{DagRunKey, ExecutorName, PoolName, QueueName, TaskInstanceId, Timestamp, TryNumber, WorkerId};
use scheduling::{Candidate, PoolUse, choose_for_slots};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A reference to publish: which task instance, which try, which hand-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    /// The task instance.
    pub id: TaskInstanceId,
    /// The try.
    pub try_number: TryNumber,
    /// Number of the hand-over.
    pub sequence: i64,
    /// Queue of the workers that may run it.
    pub queue: QueueName,
    /// Executor that its task asks for.
    pub executor: Option<ExecutorName>,
}

/// What bounds one turn of dispatching.
#[derive(Debug, Clone, Copy)]
pub struct DispatchLimits {
    /// The scheduler that queues (its job id); `[core] parallelism` counts per scheduler.
    pub scheduler: WorkerId,
    /// Task instances that this scheduler may have queued or running.
    pub parallelism: u32,
}

struct Waiting {
    dispatch: Dispatch,
    candidate: Candidate,
    order: i64,
}

/// Rows that one claim query locks at most.
const CLAIM_LIMIT: i64 = 100;

/// The claim query: one table, the order of its index, only rows that nobody else holds, of other runs than `full` ones.
fn candidates_sql(dialect: crate::sql::Dialect, full: usize) -> String {
    let index = dialect.force_index("ix_ti_dispatch");
    let lock = dialect.skip_locked();
    let others = match full {
        0 => String::new(),
        full => format!(" AND run_key NOT IN ({})", placeholders(full)),
    };
    format!(
        "SELECT id, try_number, dispatch_seq, queue, executor, pool, pool_slots, run_key, dispatch_order FROM task_instance{index} \
         WHERE state = 'scheduled' AND pool = ? AND pool_slots <= ?{others} ORDER BY dispatch_order, id LIMIT ?{lock}"
    )
}

impl Tx {
    /// Gives free slots to waiting task instances, heaviest first: queues them and writes the outbox. The dispatches
    /// returned are to be published after the commit.
    ///
    /// # Errors
    /// As the database says.
    pub async fn dispatch(
        &mut self,
        limits: DispatchLimits,
        now: Timestamp,
    ) -> Result<Vec<Dispatch>, StoreError> {
        let sql = "SELECT DISTINCT pool FROM task_instance WHERE state = 'scheduled'";
        let waiting_pools: Vec<PoolName> = self
            .query(sql, &[])
            .await?
            .into_iter()
            .map(|mut row| row.next())
            .collect::<Result<_, _>>()?;
        if waiting_pools.is_empty() {
            return Ok(Vec::new());
        }
        let mut pools = self.lock_pools(&waiting_pools).await?;
        let sql = "SELECT COUNT(*) FROM task_instance WHERE state IN ('queued', 'running') AND queued_by = ?";
        let row = self.query_one(sql, params![limits.scheduler]).await?;
        let busy: i64 = row.map_or(Ok(0), |mut row| row.next())?;
        let mut capacity = i64::from(limits.parallelism) - busy;
        let (mut full, mut dispatches) = (BTreeSet::new(), Vec::new());
        while capacity > 0 {
            let (chosen, more) = self.choose(&pools, &full, capacity).await?;
            for one in &chosen {
                if let Some(pool) = pools.get_mut(&one.candidate.pool) {
                    pool.used += one.candidate.slots;
                }
            }
            capacity -= i64::try_from(chosen.len()).unwrap_or(i64::MAX);
            // Queued before the next turn looks for who waits.
            let mut turn: Vec<Dispatch> = chosen.into_iter().map(|one| one.dispatch).collect();
            self.queue(&mut turn, limits.scheduler, now).await?;
            dispatches.extend(turn);
            if more.is_empty() {
                break;
            }
            // Each turn without those runs: what they leave is for others.
            full.extend(more);
        }
        Ok(dispatches)
    }

    /// Who gets slots now, and the runs that are full.
    async fn choose(
        &mut self,
        pools: &HashMap<PoolName, PoolUse>,
        full: &BTreeSet<DagRunKey>,
        capacity: i64,
    ) -> Result<(Vec<Waiting>, BTreeSet<DagRunKey>), StoreError> {
        let mut waiting = Vec::new();
        for (pool, usage) in pools {
            let most = usage.open().min(capacity).min(CLAIM_LIMIT);
            if most > 0 {
                waiting.extend(self.lock_candidates((pool, usage.open()), full, most).await?);
            }
        }
        waiting.sort_by_key(|one| (one.order, one.candidate.id));
        let candidates: Vec<Candidate> = waiting.iter().map(|one| one.candidate.clone()).collect();
        let rooms = self.rooms_of_runs(&candidates).await?;
        let capacity = usize::try_from(capacity).unwrap_or(0);
        let choice = choose_for_slots(&candidates, pools, &rooms, capacity);
        let chosen: HashSet<TaskInstanceId> = choice.chosen.into_iter().collect();
        waiting.retain(|one| chosen.contains(&one.candidate.id));
        Ok((waiting, choice.full))
    }

    /// How many more task instances of these runs may have slots, where planning each pool's share of `max_active_tasks`
    /// does not hold them to it already: where a DAG uses several pools. A run that somebody else is planning has no room;
    /// its turn comes with that plan.
    async fn rooms_of_runs(
        &mut self,
        candidates: &[Candidate],
    ) -> Result<HashMap<DagRunKey, u32>, StoreError> {
        let runs: BTreeSet<DagRunKey> = candidates.iter().map(|one| one.run).collect();
        let keys: Vec<Value> = runs.iter().map(|key| Value::from(*key)).collect();
        let mut rooms = HashMap::new();
        if keys.is_empty() {
            return Ok(rooms);
        }
        let sql = format!(
            "SELECT r.id, d.max_active_tasks FROM dag_run r JOIN dag d ON d.dag_id = r.dag_id \
             WHERE r.id IN ({}) AND COALESCE(d.has_several_pools, 1) = 1",
            placeholders(keys.len())
        );
        let mut limits: BTreeMap<DagRunKey, u32> = BTreeMap::new();
        for mut row in self.query(&sql, &keys).await? {
            let (run, limit): (DagRunKey, i64) = (row.next()?, row.next()?);
            limits.insert(run, u32::try_from(limit).unwrap_or(0));
            rooms.insert(run, 0);
        }
        if limits.is_empty() {
            return Ok(rooms);
        }
        let keys: Vec<Value> = limits.keys().map(|key| Value::from(*key)).collect();
        let (marks, lock) = (placeholders(keys.len()), self.dialect().skip_locked());
        let sql = format!("SELECT id FROM dag_run WHERE id IN ({marks}) ORDER BY id{lock}");
        for mut row in self.query(&sql, &keys).await? {
            let run: DagRunKey = row.next()?;
            rooms.insert(run, limits.get(&run).copied().unwrap_or(0));
        }
        let index = self.dialect().force_index("ix_ti_dispatch");
        let sql = format!(
            "SELECT run_key, COUNT(*) FROM task_instance{index} WHERE state IN ('queued', 'running') AND run_key IN ({marks}) \
             GROUP BY run_key"
        );
        for mut row in self.query(&sql, &keys).await? {
            let (run, active): (DagRunKey, i64) = (row.next()?, row.next()?);
            if let Some(room) = rooms.get_mut(&run) {
                *room = room.saturating_sub(u32::try_from(active).unwrap_or(u32::MAX));
            }
        }
        Ok(rooms)
    }

    /// Locks the pools, in the order of their keys, and counts what they hold: read under the lock, the counts are exact.
    async fn lock_pools(&mut self, names: &[PoolName]) -> Result<HashMap<PoolName, PoolUse>, StoreError> {
        let lock = self.dialect().for_update();
        let names: Vec<Value> = names.iter().map(Value::from).collect();
        let marks = placeholders(names.len());
        let sql = format!(
            "SELECT pool, slots, include_deferred FROM slot_pool WHERE pool IN ({marks}) ORDER BY id{lock}"
        );
        let mut pools = HashMap::new();
        let mut counts_deferred = HashSet::new();
        for mut row in self.query(&sql, &names).await? {
            let (name, total): (PoolName, i64) = (row.next()?, row.next()?);
            if row.next::<bool>()? {
                counts_deferred.insert(name.clone());
            }
            pools.insert(name, PoolUse { total, used: 0 });
        }
        let sql = format!(
            "SELECT pool, state, CAST(SUM(pool_slots) AS {}) FROM task_instance \
             WHERE state IN ('queued', 'running', 'deferred') AND pool IN ({marks}) GROUP BY pool, state",
            if self.dialect() == crate::sql::Dialect::MariaDb {
                "SIGNED"
            } else {
                "INTEGER"
            }
        );
        for mut row in self.query(&sql, &names).await? {
            let (name, state, used): (PoolName, String, i64) = (row.next()?, row.next()?, row.next()?);
            let counts = state != "deferred" || counts_deferred.contains(&name);
            if let Some(pool) = pools.get_mut(&name).filter(|_| counts) {
                pool.used += used;
            }
        }
        Ok(pools)
    }

    /// One that needs more slots than are open does not stand in the way of smaller ones.
    async fn lock_candidates(
        &mut self,
        (pool, open): (&PoolName, i64),
        full: &BTreeSet<DagRunKey>,
        limit: i64,
    ) -> Result<Vec<Waiting>, StoreError> {
        let read = |mut row: Row| {
            let dispatch = Dispatch {
                id: row.next()?,
                try_number: row.next()?,
                sequence: row.next()?,
                queue: row.next()?,
                executor: row.next()?,
            };
            let candidate = Candidate {
                id: dispatch.id,
                pool: row.next()?,
                slots: row.next()?,
                run: row.next()?,
            };
            Ok(Waiting {
                dispatch,
                candidate,
                order: row.next()?,
            })
        };
        let sql = candidates_sql(self.dialect(), full.len());
        let mut values = params![pool, open].to_vec();
        values.extend(full.iter().map(|key| Value::from(*key)));
        values.push(Value::from(limit));
        self.query(&sql, &values).await?.into_iter().map(read).collect()
    }

    async fn queue(
        &mut self,
        dispatches: &mut [Dispatch],
        by: WorkerId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if dispatches.is_empty() {
            return Ok(());
        }
        let ids: Vec<TaskInstanceId> = dispatches.iter().map(|d| d.id).collect();
        for chunk in Self::chunks(&id_values(&ids)) {
            let sql = format!(
                "UPDATE task_instance SET state = 'queued', queued_at = ?, queued_by = ?, updated_at = ?, \
                 dispatch_seq = dispatch_seq + 1 WHERE state = 'scheduled' AND id IN ({})",
                placeholders(chunk.len())
            );
            let mut values = params![now, by, now].to_vec();
            values.extend_from_slice(chunk);
            if self.execute(&sql, &values).await?.rows != chunk.len() as u64 {
                let detail = "a task instance moved on meanwhile".to_owned();
                return Err(StoreError::Contention {
                    name: "dispatch",
                    detail,
                });
            }
        }
        for chunk in dispatches.chunks_mut(100) {
            let tail = self.dialect().on_duplicate(
                "ti_id",
                &["try_number", "dispatch_seq", "queue", "executor", "created_at"],
            );
            let rows = vec!["(?, ?, ?, ?, ?, ?)"; chunk.len()].join(", ");
            let sql = format!(
                "INSERT INTO outbox (ti_id, try_number, dispatch_seq, queue, executor, created_at) VALUES {rows}{tail}"
            );
            let mut values = Vec::with_capacity(chunk.len() * 6);
            for dispatch in chunk {
                dispatch.sequence += 1;
                let row = params![
                    dispatch.id,
                    dispatch.try_number,
                    dispatch.sequence,
                    &dispatch.queue,
                    dispatch.executor.clone(),
                    now
                ];
                values.extend_from_slice(row);
            }
            self.execute(&sql, &values).await?;
        }
        Ok(())
    }

    /// Takes published dispatches out of the outbox; newer hand-overs of the same task instances stay.
    ///
    /// # Errors
    /// As the database says.
    pub async fn confirm_dispatches(&mut self, published: &[Dispatch]) -> Result<(), StoreError> {
        for chunk in published.chunks(200) {
            let marks = vec!["(ti_id = ? AND dispatch_seq <= ?)"; chunk.len()].join(" OR ");
            let values: Vec<Value> = chunk
                .iter()
                .flat_map(|d| [Value::from(d.id), Value::from(d.sequence)])
                .collect();
            self.execute(&format!("DELETE FROM outbox WHERE {marks}"), &values)
                .await?;
        }
        Ok(())
    }

    /// Dispatches that were written before `before` and not confirmed since. They may have been published; publishing
    /// again is harmless.
    ///
    /// # Errors
    /// As the database says.
    pub async fn unconfirmed_dispatches(
        &mut self,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<Dispatch>, StoreError> {
        let sql = "SELECT ti_id, try_number, dispatch_seq, queue, executor FROM outbox WHERE created_at < ? \
                   ORDER BY created_at, ti_id LIMIT ?";
        self.query(sql, params![before, limit])
            .await?
            .into_iter()
            .map(read_dispatch)
            .collect()
    }

    /// Task instances queued before `before` that no worker has claimed.
    ///
    /// # Errors
    /// As the database says.
    pub async fn unclaimed(&mut self, before: Timestamp, limit: i64) -> Result<Vec<Dispatch>, StoreError> {
        let sql = "SELECT id, try_number, dispatch_seq, queue, executor FROM task_instance WHERE state = 'queued' AND queued_at < ? \
                   ORDER BY queued_at LIMIT ?";
        self.query(sql, params![before, limit])
            .await?
            .into_iter()
            .map(read_dispatch)
            .collect()
    }
}

impl crate::Store {
    /// How the database would run the claim query; the contract suite checks that it walks its index.
    ///
    /// # Errors
    /// As the database says.
    pub async fn explain_dispatch(&self) -> Result<String, StoreError> {
        let mut db = self.reader().await?;
        let head = match db.dialect() {
            crate::sql::Dialect::MariaDb => "EXPLAIN FORMAT=JSON ",
            crate::sql::Dialect::Sqlite => "EXPLAIN QUERY PLAN ",
        };
        let sql = format!("{head}{}", candidates_sql(db.dialect(), 0));
        let rows = db.query(&sql, params!["default_pool", 10, 10]).await?;
        Ok(format!("{rows:?}"))
    }
}

fn read_dispatch(mut row: Row) -> Result<Dispatch, StoreError> {
    Ok(Dispatch {
        id: row.next()?,
        try_number: row.next()?,
        sequence: row.next()?,
        queue: row.next()?,
        executor: row.next()?,
    })
}
