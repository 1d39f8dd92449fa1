//! DAG structures in memory. A version never changes, so an entry is never stale.

use model::dag::Dag;
use model::{DagVersionId, Timestamp};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use store::{StoreError, Tx};

/// Structures kept; beyond that, those not used for the longest time go.
const CAPACITY: usize = 2000;

#[derive(Default)]
pub(crate) struct Graphs {
    entries: Mutex<HashMap<DagVersionId, (Arc<Dag>, Timestamp)>>,
}

impl Graphs {
    /// The structure of that version.
    pub(crate) async fn get(&self, tx: &mut Tx, id: DagVersionId) -> Result<Arc<Dag>, StoreError> {
        if let Some((dag, used)) = self.entries.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&id) {
            *used = chrono::Utc::now();
            return Ok(Arc::clone(dag));
        }
        let version = tx.dag_version(id).await?;
        let version = version.ok_or_else(|| StoreError::Inconsistent(format!("DAG version {id} is missing")))?;
        let parsed = serde_json::from_str(&version.serialized)
            .map_err(|error| error.to_string())
            .and_then(|document: serde_json::Value| Dag::from_serialized(&document).map_err(|error| error.to_string()));
        let dag = parsed.map_err(|why| StoreError::Inconsistent(format!("DAG {} version {id}: {why}", version.dag_id)))?;
        let dag = Arc::new(dag);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= CAPACITY {
            let mut ages: Vec<Timestamp> = entries.values().map(|(_, used)| *used).collect();
            ages.sort_unstable();
            let median = ages[ages.len() / 2];
            entries.retain(|_, (_, used)| *used > median);
        }
        entries.insert(id, (Arc::clone(&dag), chrono::Utc::now()));
        Ok(dag)
    }
}
