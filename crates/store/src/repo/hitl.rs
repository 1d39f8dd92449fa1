//! Questions that tasks ask people (human in the loop), and their answers.

use super::list::Listing;
use super::tasks::{COLUMNS as TASK, TaskInstanceRecord};
use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::human_input::{Responder, Response, default_params, unanswered};
use model::task_instance::{StateName, TaskEvent};
use model::trigger::TriggerEvent;
use model::{DagRunKey, TaskInstanceId, Timestamp, TryNumber};
use serde_json::{Map, Value as Json};

const COLUMNS: &str = "ti_id, try_number, subject, body, options, defaults, multiple, params, assignees, created_at, \
    responded_at, responded_by, chosen_options, params_input";

/// A question of a try.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the column of its name; the names are those of Airflow's HITLDetail"
)]
pub struct HitlRecord {
    pub task_instance: TaskInstanceId,
    pub try_number: TryNumber,
    pub subject: String,
    pub body: Option<String>,
    pub options: Vec<String>,
    pub defaults: Option<Vec<String>>,
    pub multiple: bool,
    pub params: Map<String, Json>,
    /// Those who may answer, as `{"id": ..., "name": ...}`; empty for all.
    pub assignees: Vec<Json>,
    pub created_at: Timestamp,
    pub responded_at: Option<Timestamp>,
    pub responded_by: Option<Json>,
    pub chosen_options: Option<Vec<String>>,
    pub params_input: Map<String, Json>,
}

fn read_json<T: serde::de::DeserializeOwned + Default>(text: Option<String>) -> T {
    text.and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

impl HitlRecord {
    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            task_instance: row.next()?,
            try_number: row.next()?,
            subject: row.next()?,
            body: row.next()?,
            options: read_json(row.next()?),
            defaults: read_json(row.next()?),
            multiple: row.next()?,
            params: read_json(row.next()?),
            assignees: read_json(row.next()?),
            created_at: row.next()?,
            responded_at: row.next()?,
            responded_by: read_json(row.next()?),
            chosen_options: read_json(row.next()?),
            params_input: read_json(row.next()?),
        })
    }

    /// The answer, if there is one.
    pub fn response(&self) -> Option<Response> {
        let text = |by: &Json, key: &str| by.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
        Some(Response {
            by: self.responded_by.as_ref().map(|by| Responder {
                id: text(by, "id"),
                name: text(by, "name"),
            }),
            at: self.responded_at?,
            chosen: self.chosen_options.clone().unwrap_or_default(),
            params: self.params_input.clone(),
            timed_out: false,
        })
    }
}

/// A question to ask.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "as in HitlRecord")]
pub struct NewHitl {
    pub subject: String,
    pub body: Option<String>,
    pub options: Vec<String>,
    pub defaults: Option<Vec<String>>,
    pub multiple: bool,
    pub params: Map<String, Json>,
    pub assignees: Vec<Json>,
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

impl Tx {
    /// Asks the question of a try; asked again, it is open again.
    ///
    /// # Errors
    /// As the database says.
    pub async fn ask_person(
        &mut self,
        ti: &TaskInstanceRecord,
        question: &NewHitl,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "DELETE FROM hitl_detail WHERE ti_id = ? AND try_number = ?";
        self.execute(sql, params![ti.id, ti.try_number]).await?;
        let sql = "INSERT INTO hitl_detail (ti_id, try_number, run_key, subject, body, options, defaults, multiple, params, \
                   assignees, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let values = params![
            ti.id,
            ti.try_number,
            ti.run_key,
            &question.subject,
            question.body.clone(),
            json(&question.options),
            question.defaults.as_ref().map(json),
            question.multiple,
            json(&question.params),
            json(&question.assignees),
            now,
        ];
        self.execute(sql, values).await.map(|_| ())
    }

    /// The question of a try.
    ///
    /// # Errors
    /// As the database says.
    pub async fn hitl(
        &mut self,
        ti: TaskInstanceId,
        try_number: TryNumber,
    ) -> Result<Option<HitlRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM hitl_detail WHERE ti_id = ? AND try_number = ?");
        self.query_one(&sql, params![ti, try_number])
            .await?
            .map(HitlRecord::read)
            .transpose()
    }

    /// A page of questions, and how many there are.
    ///
    /// # Errors
    /// As the database says.
    pub async fn hitls(&mut self, listing: &Listing) -> Result<(Vec<HitlRecord>, i64), StoreError> {
        let (rows, total) = self.list("hitl_detail", COLUMNS, listing).await?;
        let found = rows.into_iter().map(HitlRecord::read);
        Ok((found.collect::<Result<_, _>>()?, total))
    }

    /// Notes an answer, and lets the task go on if it waits for it. Whether the question was still open.
    ///
    /// # Errors
    /// As the database says.
    pub async fn answer_person(
        &mut self,
        ti: TaskInstanceId,
        try_number: TryNumber,
        response: &Response,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let lock = self.dialect().for_update();
        let sql = format!("SELECT {TASK} FROM task_instance WHERE id = ?{lock}");
        let Some(row) = self.query_one(&sql, params![ti]).await? else {
            return Ok(false);
        };
        let ti = TaskInstanceRecord::read(row)?;
        let by = response.by.as_ref().map(|by| {
            let by = serde_json::json!({"id": by.id, "name": by.name});
            by.to_string()
        });
        let sql = "UPDATE hitl_detail SET responded_at = ?, responded_by = ?, chosen_options = ?, params_input = ? \
                   WHERE ti_id = ? AND try_number = ? AND responded_at IS NULL";
        let values = params![
            response.at,
            by,
            json(&response.chosen),
            json(&response.params),
            ti.id,
            try_number
        ];
        if self.execute(sql, values).await?.rows != 1 {
            return Ok(false);
        }
        if ti.state == StateName::AwaitingInput && ti.try_number == try_number {
            self.resume_with(&ti, response.event(), now).await?;
        }
        Ok(true)
    }

    /// Lets a task go on that has just begun to wait, if the answer was faster.
    pub(super) async fn resume_if_answered(
        &mut self,
        id: TaskInstanceId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(ti) = self.task_instance_by_id(id).await? else {
            return Ok(());
        };
        let answered = self.hitl(ti.id, ti.try_number).await?;
        match answered.and_then(|detail| detail.response()) {
            Some(response) => self.resume_with(&ti, response.event(), now).await,
            None => Ok(()),
        }
    }

    /// Hands a waiting task to the planner, which lets it go on as one whose trigger has fired.
    async fn resume_with(
        &mut self,
        ti: &TaskInstanceRecord,
        event: Json,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let next = ti
            .full_state()?
            .apply(TaskEvent::Answer { at: now }, ti.counters())
            .map_err(|error| StoreError::Inconsistent(error.to_string()))?
            .name();
        let next_of = (ti.next_method.as_deref(), ti.next_kwargs.as_deref());
        let (method, arguments) = TriggerEvent::Fired(event).goes_on_with(next_of);
        let sql = "UPDATE task_instance SET state = ?, not_before = ?, next_method = ?, next_kwargs = ?, updated_at = ? \
                   WHERE id = ? AND state = ? AND claim_epoch = ?";
        let values = params![
            next.as_str(),
            now,
            method,
            arguments,
            now,
            ti.id,
            ti.state.as_str(),
            ti.claim_epoch
        ];
        if self.execute(sql, values).await?.rows != 1 {
            return Err(self.moved_meanwhile("answer", ti.id));
        }
        self.add_task_event(ti.run_key, ti.id, now).await
    }

    /// Task instances whose question was not answered in time.
    ///
    /// # Errors
    /// As the database says.
    pub async fn unanswered(
        &mut self,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<TaskInstanceId>, StoreError> {
        let sql = "SELECT id FROM task_instance WHERE state = 'awaiting_input' AND not_before <= ? ORDER BY not_before LIMIT ?";
        let rows = self.query(sql, params![now, limit]).await?;
        rows.into_iter().map(|mut row| row.next()).collect()
    }

    /// Takes the defaults of a question whose time is over, or lets its task fail. Returns the run.
    ///
    /// # Errors
    /// As the database says.
    pub async fn give_up_asking(
        &mut self,
        id: TaskInstanceId,
        now: Timestamp,
    ) -> Result<Option<DagRunKey>, StoreError> {
        let lock = self.dialect().for_update();
        let sql = format!("SELECT {TASK} FROM task_instance WHERE id = ?{lock}");
        let Some(row) = self.query_one(&sql, params![id]).await? else {
            return Ok(None);
        };
        let ti = TaskInstanceRecord::read(row)?;
        if ti.state != StateName::AwaitingInput || ti.not_before.is_none_or(|at| at > now) {
            return Ok(None);
        }
        let detail = self.hitl(ti.id, ti.try_number).await?;
        match detail.and_then(|detail| Some((detail.defaults?, detail.params))) {
            Some((defaults, params)) => {
                let response = Response {
                    by: None,
                    at: now,
                    chosen: defaults,
                    params: default_params(&params),
                    timed_out: true,
                };
                self.answer_person(ti.id, ti.try_number, &response, now).await?;
            }
            None => self.resume_with(&ti, unanswered(), now).await?,
        }
        Ok(Some(ti.run_key))
    }
}
