//! Partition mappers of the user's own: asked here, where Python is.

use crate::Shared;
use crate::timetables::Unanswered;
use broker::Hint;
use model::partition::ForeignAnswer;
use model::timetable::Timetable;
use serde_json::{Value, json};
use store::repo::AskedPartition;
use store::{Graphs, StoreError};

/// Updates that are asked about in one turn.
const MOST: i64 = 20;

impl Shared {
    /// Asks for which partitions updates are that wait for it.
    pub(crate) async fn map_partitions(&self, graphs: &Graphs) -> Result<(), StoreError> {
        let asked = self.store.reader().await?.asked_partitions(MOST).await?;
        for one in asked {
            let answer = match self.mapper_of(graphs, &one).await? {
                Some(mapper) => {
                    let date = one.source_date.map(model::time::to_micros);
                    self.ask(
                        json!({"kind": "partition", "mapper": mapper, "key": one.source_key, "date": date}),
                    )
                    .await
                }
                None => Err(Unanswered::Never("its mapper is gone".to_owned())),
            };
            let said = match answer {
                Ok(answer) => answer.to_string(),
                Err(Unanswered::Never(wrong)) => {
                    let answer = ForeignAnswer {
                        wrong: Some(wrong),
                        ..ForeignAnswer::default()
                    };
                    json!(answer).to_string()
                }
                Err(Unanswered::Later(why)) => {
                    tracing::warn!(dag_id = %one.dag_id, "a partition mapper cannot be asked, trying again: {why}");
                    return Ok(());
                }
            };
            store::transact!(self.store, "answer partition", |tx| tx
                .answer_partition(&one, &said)
                .await)?;
            self.broker.hint(Hint::Timetables);
        }
        Ok(())
    }

    /// The mapper of an update, serialized; `None` when the DAG has changed so that it has none to ask.
    async fn mapper_of(&self, graphs: &Graphs, asked: &AskedPartition) -> Result<Option<Value>, StoreError> {
        let mut db = self.store.reader().await?;
        let Some(record) = db.dag(&asked.dag_id).await? else {
            return Ok(None);
        };
        let Some(asset) = db.asset_by_id(asked.asset_id).await? else {
            return Ok(None);
        };
        let graph = graphs.get(&mut db, record.version_id).await?;
        Ok(match &graph.dag.timetable {
            Timetable::PartitionedAssets(mapping) => mapping.mapper(&asset.key).foreign.clone(),
            _ => None,
        })
    }
}
