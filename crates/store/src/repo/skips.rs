//! What branches and short circuits have decided to skip.

use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::dag::{Dag, Task};
use model::{DagRunKey, MapIndex, TaskId};
use scheduling::{PreviouslySkipped, TaskSnapshot};
use serde_json::Value as Json;
use std::collections::{BTreeSet, HashSet};

/// What a branch or a short circuit leaves behind (`XCOM_SKIPMIXIN_KEY`).
const KEY: &str = "skipmixin_key";

impl Tx {
    /// Open task instances of a run that a task directly before them said to skip when it ran
    /// (`NotPreviouslySkippedDep`): it was cleared without that task, say, or is mapped.
    ///
    /// # Errors
    /// As the database says.
    pub async fn previously_skipped(
        &mut self,
        dag: &Dag,
        key: DagRunKey,
        tasks: &[TaskSnapshot],
    ) -> Result<PreviouslySkipped, StoreError> {
        let mut found = PreviouslySkipped::default();
        if !dag.tasks.iter().any(|task| task.can_skip_downstream) {
            return Ok(found);
        }
        let (mut open, mut ended) = (HashSet::new(), HashSet::new());
        for ti in tasks {
            if ti.state.is_schedulable() {
                open.insert(&ti.task_id);
            }
            if ti.state.is_finished() {
                ended.insert(&ti.task_id);
            }
        }
        for parent in dag.tasks.iter().filter(|task| task.can_skip_downstream) {
            let children: BTreeSet<&TaskId> = parent
                .downstream
                .iter()
                .map(|at| &dag.tasks[*at].task_id)
                .filter(|child| open.contains(child))
                .collect();
            if children.is_empty() || !ended.contains(&parent.task_id) {
                continue;
            }
            for (index, decision) in self.skip_decisions(key, parent).await? {
                for child in children.iter().filter(|child| is_skipped(&decision, child)) {
                    match index {
                        MapIndex::UNMAPPED => found.whole.insert((*child).clone()),
                        index => found.single.insert(((*child).clone(), index)),
                    };
                }
            }
        }
        Ok(found)
    }

    async fn skip_decisions(
        &mut self,
        key: DagRunKey,
        parent: &Task,
    ) -> Result<Vec<(MapIndex, Json)>, StoreError> {
        let sql = "SELECT map_index, value FROM xcom WHERE run_key = ? AND task_id = ? AND xcom_key = ?";
        let is_mapped = parent.is_mapped && !parent.is_in_mapped_group();
        let mut decisions = Vec::new();
        for mut row in self.query(sql, params![key, &parent.task_id, KEY]).await? {
            let (index, value): (MapIndex, String) = (row.next()?, row.next()?);
            // What one in a mapped task group decided is not asked for, as in Airflow.
            if is_mapped == (index != MapIndex::UNMAPPED) {
                decisions.push((index, serde_json::from_str(&value).unwrap_or_default()));
            }
        }
        Ok(decisions)
    }
}

fn is_skipped(decision: &Json, task: &TaskId) -> bool {
    let names = |word: &str| {
        let list = decision.get(word)?.as_array()?;
        Some(list.iter().any(|name| name.as_str() == Some(task.as_str())))
    };
    match names("followed") {
        Some(is_followed) => !is_followed,
        None => names("skipped").unwrap_or(false),
    }
}
