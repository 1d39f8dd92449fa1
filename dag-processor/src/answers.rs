//! What DAG files may ask for at their top level.

use crate::Shared;
use crate::dependencies::Asked;
use crate::lock;
use python::messages::{Answer, Question};
use serde_json::json;
use std::sync::Mutex;
use store::StoreError;

impl Shared {
    pub(crate) async fn answer(&self, question: Question) -> Answer {
        match self.try_answer(&question).await {
            Ok(answer) => answer,
            Err(error) => Answer::failure(500, error.to_string()),
        }
    }

    /// As [`Shared::answer`]; what was asked for is noted with the setting that the answer had, or an older one.
    pub(crate) async fn answer_noting(&self, question: Question, asked: &Mutex<Asked>) -> Answer {
        let (variables, connections) = match &question {
            Question::GetVariable { key } => (vec![key.clone()], Vec::new()),
            Question::GetConnection { conn_id } => (Vec::new(), vec![conn_id.clone()]),
            _ => (Vec::new(), Vec::new()),
        };
        if !variables.is_empty() || !connections.is_empty() {
            let versions = async {
                let mut db = self.store.reader().await?;
                db.secret_versions(&variables, &connections).await
            };
            match versions.await {
                Ok(versions) => lock(asked).note(variables, connections, versions),
                Err(error) => return Answer::failure(500, error.to_string()),
            }
        }
        self.answer(question).await
    }

    async fn try_answer(&self, question: &Question) -> Result<Answer, StoreError> {
        let mut db = self.store.reader().await?;
        Ok(match question {
            Question::GetVariable { key } => match db.variable(key, &self.cipher).await? {
                Some(variable) => Answer::of("VariableResult", json!({"key": key, "value": variable.value})),
                None => Answer::missing("VARIABLE_NOT_FOUND", json!({"key": key})),
            },
            Question::GetConnection { conn_id } => match db.connection(conn_id, &self.cipher).await? {
                Some(c) => Answer::of(
                    "ConnectionResult",
                    json!({"conn_id": c.conn_id, "conn_type": c.conn_type, "host": c.host, "schema": c.schema,
                           "login": c.login, "password": c.password, "port": c.port, "extra": c.extra}),
                ),
                None => Answer::missing("CONNECTION_NOT_FOUND", json!({"conn_id": conn_id})),
            },
            _ => Answer::failure(400, "this cannot be used at the top level of a DAG file"),
        })
    }
}
