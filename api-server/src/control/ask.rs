//! What running tasks ask for.

mod assets;
mod people;
mod runs;
mod secrets;
mod states;
mod tasks;
mod xcoms;

use crate::App;
use model::MapIndex;
use python::messages::{Answer, Question};
use serde_json::Value;
use store::repo::TaskInstanceRecord;
use store::{StoreError, Tx};

/// Answers a question of a running task.
///
/// Without a task instance the question is a trigger's, which has none of its own.
pub(super) async fn answer(app: &App, ti: Option<&TaskInstanceRecord>, question: Question) -> Answer {
    let asked = Asked { app, ti };
    match asked.answer(question).await {
        Ok(answer) => answer,
        Err(error) => {
            let task = ti.map_or("a trigger", |ti| ti.task_id.as_str());
            tracing::warn!("a question of {task} could not be answered: {error}");
            Answer::failure(if error.is_transient() { 503 } else { 500 }, error.to_string())
        }
    }
}

struct Asked<'a> {
    app: &'a App,
    ti: Option<&'a TaskInstanceRecord>,
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

fn index(map_index: Option<i32>) -> MapIndex {
    map_index
        .filter(|index| *index >= 0)
        .map_or(MapIndex::UNMAPPED, MapIndex)
}

fn texts(values: &[String]) -> Vec<store::sql::Value> {
    values.iter().map(Into::into).collect()
}

fn instants(texts: &[String]) -> Vec<store::sql::Value> {
    texts
        .iter()
        .filter_map(|text| crate::rest_instant(text))
        .map(Into::into)
        .collect()
}

impl Asked<'_> {
    /// The task instance that asks.
    fn own(&self) -> Result<&TaskInstanceRecord, StoreError> {
        let missing = || StoreError::Inconsistent("only a task can ask for this, not a trigger".to_owned());
        self.ti.ok_or_else(missing)
    }

    async fn db(&self) -> Result<Tx, StoreError> {
        self.app.store.reader().await
    }

    async fn answer(&self, question: Question) -> Result<Answer, StoreError> {
        use Question as Q;
        Ok(match question {
            Q::SetRenderedFields { rendered_fields } => {
                let own = self.own()?;
                let (id, run, fields) = (own.id, own.run_key, rendered_fields.to_string());
                store::transact!(self.app.store, "rendered fields", |tx| tx
                    .set_rendered_fields(id, run, &fields)
                    .await)?;
                Answer::ok()
            }
            Q::GetVariable { .. }
            | Q::GetVariableKeys { .. }
            | Q::PutVariable { .. }
            | Q::DeleteVariable { .. }
            | Q::GetConnection { .. } => self.secrets(question).await?,
            Q::GetXCom { .. }
            | Q::SetXCom { .. }
            | Q::DeleteXCom { .. }
            | Q::GetXComCount { .. }
            | Q::GetXComSequenceItem { .. }
            | Q::GetXComSequenceSlice { .. } => self.xcoms(question).await?,
            Q::GetTaskStateStore { .. }
            | Q::SetTaskStateStore { .. }
            | Q::DeleteTaskStateStore { .. }
            | Q::ClearTaskStateStore {} => self.states(question).await?,
            Q::SkipDownstreamTasks { tasks } => self.skip(&tasks).await?,
            Q::TriggerDagRun { .. } => self.trigger(question).await?,
            Q::GetDagRun { .. }
            | Q::GetDagRunState { .. }
            | Q::GetDag { .. }
            | Q::GetDRCount { .. }
            | Q::GetPreviousDagRun { .. }
            | Q::GetPrevSuccessfulDagRun {} => self.runs(question).await?,
            Q::GetTICount { .. }
            | Q::GetTaskStates { .. }
            | Q::GetTaskBreadcrumbs { .. }
            | Q::GetPreviousTI { .. }
            | Q::GetTaskRescheduleStartDate {} => self.tasks(question).await?,
            Q::ValidateInletsAndOutlets {} => self.inactive_assets().await?,
            Q::CreateHITLDetailPayload { .. } | Q::UpdateHITLDetail { .. } => self.people(question).await?,
            Q::GetAssetByName { .. }
            | Q::GetAssetByUri { .. }
            | Q::GetAssetsByAlias { .. }
            | Q::GetAssetEventByAsset { .. }
            | Q::GetAssetEventByAssetAlias { .. } => self.assets(question).await?,
            Q::GetAssetStateStoreByName { .. }
            | Q::GetAssetStateStoreByUri { .. }
            | Q::SetAssetStateStoreByName { .. }
            | Q::SetAssetStateStoreByUri { .. }
            | Q::DeleteAssetStateStoreByName { .. }
            | Q::DeleteAssetStateStoreByUri { .. }
            | Q::ClearAssetStateStoreByName { .. }
            | Q::ClearAssetStateStoreByUri { .. } => self.asset_states(question).await?,
        })
    }
}
