//! What tasks ask people.

use super::Asked;
use chrono::Utc;
use model::human_input::Response;
use python::messages::{Answer, Question};
use serde_json::{Map, Value, json};
use store::StoreError;
use store::repo::NewHitl;

impl Asked<'_> {
    pub(super) async fn people(&self, question: Question) -> Result<Answer, StoreError> {
        let ti = self.own()?;
        let now = Utc::now();
        Ok(match question {
            Question::CreateHITLDetailPayload {
                options,
                subject,
                body,
                defaults,
                multiple,
                params,
                assigned_users,
            } => {
                let object = |value: Option<Value>| -> Map<String, Value> {
                    value
                        .as_ref()
                        .and_then(Value::as_object)
                        .cloned()
                        .unwrap_or_default()
                };
                let new = NewHitl {
                    subject,
                    body,
                    options,
                    defaults,
                    multiple: multiple.unwrap_or(false),
                    params: object(params),
                    assignees: assigned_users.unwrap_or_default(),
                };
                store::transact!(self.app.store, "ask a person", |tx| tx
                    .ask_person(ti, &new, now)
                    .await)?;
                let shown = json!({
                    "ti_id": ti.id, "options": new.options, "subject": new.subject, "body": new.body,
                    "defaults": new.defaults, "multiple": new.multiple, "params": new.params,
                    "assigned_users": new.assignees,
                });
                Answer::of("HITLDetailRequestResult", shown)
            }
            Question::UpdateHITLDetail {
                chosen_options,
                params_input,
            } => {
                let params = params_input.as_ref().and_then(Value::as_object).cloned();
                let response = Response {
                    by: None,
                    at: now,
                    chosen: chosen_options,
                    params: params.unwrap_or_default(),
                    timed_out: false,
                };
                let (id, number) = (ti.id, ti.try_number);
                let noted = store::transact!(self.app.store, "answer a task's question", |tx| {
                    tx.answer_person(id, number, &response, now).await
                })?;
                if noted {
                    Answer::ok()
                } else {
                    Answer::failure(409, "the question has been answered already")
                }
            }
            _ => Answer::failure(400, "Unhandled request"),
        })
    }
}
