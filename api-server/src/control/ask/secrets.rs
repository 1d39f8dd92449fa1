//! Variables and connections.

use super::Asked;
use python::messages::{Answer, Question};
use serde_json::json;
use store::StoreError;

impl Asked<'_> {
    pub(super) async fn secrets(&self, question: Question) -> Result<Answer, StoreError> {
        let cipher = &self.app.cipher;
        Ok(match question {
            Question::GetVariable { key } => match self.db().await?.variable(&key, cipher).await? {
                Some(variable) => Answer::of("VariableResult", json!({"key": key, "value": variable.value})),
                None => Answer::missing("VARIABLE_NOT_FOUND", json!({"key": key})),
            },
            Question::GetVariableKeys {
                prefix,
                limit,
                offset,
            } => {
                let prefix = prefix.unwrap_or_default();
                let all = self.db().await?.variables(cipher).await?;
                let keys: Vec<String> = all
                    .into_iter()
                    .map(|variable| variable.key)
                    .filter(|key| key.starts_with(&prefix))
                    .collect();
                let page: Vec<&String> = keys
                    .iter()
                    .skip(offset.unwrap_or(0))
                    .take(limit.unwrap_or(1000))
                    .collect();
                Answer::of(
                    "VariableKeysResult",
                    json!({"keys": page, "total_entries": keys.len()}),
                )
            }
            Question::PutVariable {
                key,
                value,
                description,
            } => {
                let value = value.unwrap_or_default();
                store::transact!(self.app.store, "put variable", |tx| {
                    tx.set_variable(&key, &value, description.as_deref(), cipher)
                        .await
                })?;
                Answer::done()
            }
            Question::DeleteVariable { key } => {
                store::transact!(self.app.store, "delete variable", |tx| tx
                    .delete_variable(&key)
                    .await)?;
                Answer::ok()
            }
            Question::GetConnection { conn_id } => match self.db().await?.connection(&conn_id, cipher).await?
            {
                Some(c) => Answer::of(
                    "ConnectionResult",
                    json!({"conn_id": c.conn_id, "conn_type": c.conn_type, "host": c.host, "schema": c.schema,
                           "login": c.login, "password": c.password, "port": c.port, "extra": c.extra}),
                ),
                None => Answer::missing("CONNECTION_NOT_FOUND", json!({"conn_id": conn_id})),
            },
            _ => Answer::failure(400, "Unhandled request"),
        })
    }
}
