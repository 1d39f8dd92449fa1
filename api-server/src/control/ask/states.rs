//! What a task keeps for its own next try. A task can only ask for its own.

use super::{Asked, json_of};
use chrono::Utc;
use python::messages::{Answer, Question};
use serde_json::json;
use store::StoreError;

impl Asked<'_> {
    pub(super) async fn states(&self, question: Question) -> Result<Answer, StoreError> {
        let ti = self.own()?;
        Ok(match question {
            Question::GetTaskStateStore { key } => {
                match self.db().await?.task_state(ti, &key, Utc::now()).await? {
                    Some(value) => Answer::of("TaskStateStoreResult", json!({"value": json_of(&value)})),
                    None => Answer::missing("TASK_STORE_NOT_FOUND", json!({"key": key})),
                }
            }
            Question::SetTaskStateStore {
                key,
                value,
                expires_at,
            } => {
                let expires_at = expires_at.as_deref().and_then(crate::rest_instant);
                let value = value.to_string();
                store::transact!(self.app.store, "keep a task's state", |tx| {
                    tx.set_task_state(ti, &key, &value, expires_at).await
                })?;
                Answer::ok()
            }
            Question::DeleteTaskStateStore { key } => {
                store::transact!(self.app.store, "forget a task's state", |tx| {
                    tx.delete_task_state(ti, Some(&key)).await
                })?;
                Answer::ok()
            }
            Question::ClearTaskStateStore {} => {
                store::transact!(self.app.store, "forget a task's states", |tx| {
                    tx.delete_task_state(ti, None).await
                })?;
                Answer::ok()
            }
            _ => Answer::failure(400, "Unhandled request"),
        })
    }
}
