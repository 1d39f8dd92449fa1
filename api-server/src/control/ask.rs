//! What running tasks ask for.

use super::start::dag_run;
use crate::App;
use crate::trigger::{TriggerError, TriggerRequest, trigger_run};
use broker::Hint;
use chrono::Utc;
use model::dag_run::{DagRunState, DagRunType};
use model::task_instance::StateName;
use model::time::rest_format;
use model::{DagId, DagRunKey, MapIndex, RunId, TaskId, Timestamp};
use python::messages::{Answer, Question};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use store::repo::{Condition, Listing, NewXCom, Order, RunRecord, TaskInstanceRecord};
use store::{StoreError, Tx};

/// Answers a question of a running task.
pub(super) async fn answer(app: &App, ti: &TaskInstanceRecord, question: Question) -> Answer {
    let asked = Asked { app, ti };
    match asked.answer(question).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!("a question of task {} could not be answered: {error}", ti.task_id);
            Answer::failure(if error.is_transient() { 503 } else { 500 }, error.to_string())
        }
    }
}

struct Asked<'a> {
    app: &'a App,
    ti: &'a TaskInstanceRecord,
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

/// Python's slice of a list.
fn slice(items: Vec<Value>, start: Option<i64>, stop: Option<i64>, step: Option<i64>) -> Vec<Value> {
    let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let step = step.unwrap_or(1);
    if step == 0 {
        return Vec::new();
    }
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |at: i64| {
        if at < 0 {
            (at + length).max(low)
        } else {
            at.min(high)
        }
    };
    let start = start.map_or(if step > 0 { low } else { high }, place);
    let stop = stop.map_or(if step > 0 { high } else { low }, place);
    let mut out = Vec::new();
    let mut at = start;
    while if step > 0 { at < stop } else { at > stop } {
        out.extend(usize::try_from(at).ok().and_then(|at| items.get(at).cloned()));
        at += step;
    }
    out
}

/// How a previous or other run looks to a task.
fn interval(run: &RunRecord) -> Value {
    let when = |at: Option<Timestamp>| at.map(rest_format);
    json!({
        "data_interval_start": when(run.data_interval_start), "data_interval_end": when(run.data_interval_end),
        "start_date": when(run.start_date), "end_date": when(run.end_date),
    })
}

impl Asked<'_> {
    async fn db(&self) -> Result<Tx, StoreError> {
        self.app.store.reader().await
    }

    async fn answer(&self, question: Question) -> Result<Answer, StoreError> {
        use Question as Q;
        Ok(match question {
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
            Q::ValidateInletsAndOutlets {} => {
                Answer::of("InactiveAssetsResult", json!({"inactive_assets": []}))
            }
        })
    }

    async fn secrets(&self, question: Question) -> Result<Answer, StoreError> {
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

    /// The key of a run; usually the task's own.
    async fn run_key(
        &self,
        db: &mut Tx,
        dag_id: &str,
        run_id: &str,
    ) -> Result<Option<DagRunKey>, StoreError> {
        if self.ti.dag_id.as_str() == dag_id && self.ti.run_id.as_str() == run_id {
            return Ok(Some(self.ti.run_key));
        }
        Ok(db
            .run(&DagId::new(dag_id), &RunId::new(run_id))
            .await?
            .map(|run| run.key))
    }

    async fn series(
        &self,
        dag_id: &str,
        run_id: &str,
        task_id: &str,
        key: &str,
    ) -> Result<Vec<Value>, StoreError> {
        let mut db = self.db().await?;
        let Some(run) = self.run_key(&mut db, dag_id, run_id).await? else {
            return Ok(Vec::new());
        };
        let series = db.xcom_series(run, &TaskId::new(task_id), key).await?;
        Ok(series.iter().map(|xcom| json_of(&xcom.value)).collect())
    }

    async fn xcoms(&self, question: Question) -> Result<Answer, StoreError> {
        Ok(match question {
            Question::GetXCom {
                key,
                dag_id,
                run_id,
                task_id,
                map_index,
                include_prior_dates,
            } => {
                let mut db = self.db().await?;
                let task = TaskId::new(task_id);
                let run = db.run(&DagId::new(dag_id.as_str()), &RunId::new(run_id)).await?;
                let found = match run {
                    None => None,
                    Some(run) => match (include_prior_dates, run.logical_date) {
                        (true, Some(date)) => {
                            db.xcom_with_past(&run.dag_id, date, &task, index(map_index), &key)
                                .await?
                        }
                        _ => db.xcom(run.key, &task, index(map_index), &key).await?,
                    },
                };
                let value = found.map_or(Value::Null, |xcom| json_of(&xcom.value));
                Answer::of("XComResult", json!({"key": key, "value": value}))
            }
            Question::SetXCom {
                key,
                value,
                dag_id,
                run_id,
                task_id,
                map_index,
                mapped_length,
            } => {
                let now = Utc::now();
                let xcom = NewXCom {
                    key,
                    value: value.to_string(),
                    mapped_length,
                };
                let (dag_id, run_id, task_id) =
                    (DagId::new(dag_id), RunId::new(run_id), TaskId::new(task_id));
                let stored = store::transact!(self.app.store, "set xcom", |tx| {
                    let ti = tx
                        .task_instance(&dag_id, &run_id, &task_id, index(map_index))
                        .await?;
                    match ti {
                        Some(ti) => tx.set_xcom(&ti, &xcom, now).await.map(|()| true),
                        None => Ok(false),
                    }
                })?;
                if stored {
                    Answer::done()
                } else {
                    Answer::failure(404, "the task instance does not exist")
                }
            }
            Question::DeleteXCom {
                key,
                dag_id,
                run_id,
                task_id,
                map_index,
            } => {
                let run = self.run_key(&mut self.db().await?, &dag_id, &run_id).await?;
                if let Some(run) = run {
                    let task_id = TaskId::new(task_id);
                    store::transact!(self.app.store, "delete xcom", |tx| {
                        tx.delete_xcom(run, &task_id, index(map_index), &key).await
                    })?;
                }
                Answer::done()
            }
            Question::GetXComCount {
                key,
                dag_id,
                run_id,
                task_id,
            } => {
                let count = self.series(&dag_id, &run_id, &task_id, &key).await?.len();
                Answer::of("XComCountResponse", json!({"len": count}))
            }
            Question::GetXComSequenceItem {
                key,
                dag_id,
                run_id,
                task_id,
                offset,
            } => {
                let items = self.series(&dag_id, &run_id, &task_id, &key).await?;
                let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let at = usize::try_from(if offset < 0 { offset + length } else { offset }).ok();
                match at.and_then(|at| items.get(at)) {
                    Some(item) => Answer::of("XComSequenceIndexResult", json!({"root": item})),
                    None => Answer::missing(
                        "XCOM_NOT_FOUND",
                        json!({"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "key": key, "offset": offset}),
                    ),
                }
            }
            Question::GetXComSequenceSlice {
                key,
                dag_id,
                run_id,
                task_id,
                start,
                stop,
                step,
            } => {
                let items = self.series(&dag_id, &run_id, &task_id, &key).await?;
                Answer::of(
                    "XComSequenceSliceResult",
                    json!({"root": slice(items, start, stop, step)}),
                )
            }
            _ => Answer::failure(400, "Unhandled request"),
        })
    }

    async fn skip(&self, tasks: &[Value]) -> Result<Answer, StoreError> {
        let name = |task: &Value| match task {
            Value::String(id) => Some((TaskId::new(id.as_str()), MapIndex::UNMAPPED)),
            other => {
                let at = i32::try_from(other.get(1)?.as_i64()?).ok()?;
                Some((TaskId::new(other.get(0)?.as_str()?), MapIndex(at)))
            }
        };
        let tasks: Vec<(TaskId, MapIndex)> = tasks.iter().filter_map(name).collect();
        let (run, now) = (self.ti.run_key, Utc::now());
        store::transact!(self.app.store, "skip downstream", |tx| tx
            .skip_tasks(run, &tasks, now)
            .await)?;
        Ok(Answer::done())
    }

    async fn trigger(&self, question: Question) -> Result<Answer, StoreError> {
        let Question::TriggerDagRun {
            dag_id,
            run_id,
            logical_date,
            run_after,
            conf,
            reset_dag_run,
            note,
        } = question
        else {
            return Ok(Answer::failure(400, "Unhandled request"));
        };
        let at = |text: Option<String>| text.and_then(|text| crate::rest_instant(&text));
        let request = TriggerRequest {
            dag_id: DagId::new(dag_id.as_str()),
            run_id: Some(run_id.clone()),
            logical_date: at(logical_date),
            interval: None,
            run_after: at(run_after),
            conf: conf.filter(Value::is_object).unwrap_or_else(|| json!({})),
            note,
            run_type: DagRunType::OperatorTriggered,
            triggered_by: "operator",
            user: None,
        };
        let app = self.app;
        match trigger_run(&app.store, &app.graphs, &*app.broker, &request).await {
            Ok(_) => Ok(Answer::ok()),
            Err(TriggerError::Duplicate { .. }) if reset_dag_run == Some(true) => {
                self.reset(&request.dag_id, &RunId::new(run_id)).await
            }
            Err(TriggerError::Duplicate { .. }) => Ok(Answer::missing(
                "DAGRUN_ALREADY_EXISTS",
                json!({"dag_id": dag_id, "run_id": run_id}),
            )),
            Err(TriggerError::Store(error)) => Err(error),
            Err(error @ TriggerError::UnknownDag(_)) => Ok(Answer::failure(404, error.to_string())),
            Err(error) => Ok(Answer::failure(400, error.to_string())),
        }
    }

    /// Clears every task of an existing run.
    async fn reset(&self, dag_id: &DagId, run_id: &RunId) -> Result<Answer, StoreError> {
        let now = Utc::now();
        store::transact!(self.app.store, "reset run", |tx| {
            let Some(run) = tx.run(dag_id, run_id).await? else {
                return Ok(());
            };
            for ti in tx.task_instances_of(run.key).await? {
                tx.clear_task_instance(&ti, ti.max_tries, now).await?;
            }
            tx.mark_run(run.key, DagRunState::Queued, now).await
        })?;
        self.app.broker.hint(Hint::Dag(dag_id.clone())).await;
        Ok(Answer::ok())
    }

    async fn runs(&self, question: Question) -> Result<Answer, StoreError> {
        let mut db = self.db().await?;
        Ok(match question {
            Question::GetDagRun { dag_id, run_id } => {
                match db.run(&DagId::new(dag_id), &RunId::new(run_id)).await? {
                    Some(run) => Answer::of("DagRunResult", dag_run(&run)),
                    None => Answer::failure(404, "the DAG run was not found"),
                }
            }
            Question::GetDagRunState { dag_id, run_id } => {
                match db.run(&DagId::new(dag_id), &RunId::new(run_id)).await? {
                    Some(run) => Answer::of("DagRunStateResult", json!({"state": run.state.as_str()})),
                    None => Answer::failure(404, "the DAG run was not found"),
                }
            }
            Question::GetDag { dag_id } => match db.dag(&DagId::new(dag_id)).await? {
                Some(dag) => Answer::of(
                    "DagResult",
                    json!({"dag_id": dag.dag_id, "is_paused": dag.is_paused, "bundle_name": dag.bundle_name,
                           "bundle_version": null, "relative_fileloc": dag.relative_fileloc, "owners": dag.owners.join(", "),
                           "tags": dag.tags, "next_dagrun": dag.next_logical_date.map(rest_format)}),
                ),
                None => Answer::failure(404, "the DAG was not found"),
            },
            Question::GetDRCount {
                dag_id,
                logical_dates,
                run_ids,
                states,
            } => {
                let mut conditions = vec![Condition::Is("dag_id", dag_id.into())];
                if let Some(run_ids) = run_ids {
                    conditions.push(Condition::In("run_id", texts(&run_ids)));
                }
                if let Some(states) = states {
                    conditions.push(Condition::In("state", texts(&states)));
                }
                if let Some(dates) = logical_dates {
                    conditions.push(Condition::In("logical_date", instants(&dates)));
                }
                let count = db
                    .count_runs(&Listing {
                        conditions,
                        ..Listing::default()
                    })
                    .await?;
                Answer::of("DRCount", json!({"count": count}))
            }
            Question::GetPreviousDagRun {
                dag_id,
                logical_date,
                state,
            } => {
                let state = state.and_then(|state| state.parse().ok());
                let found = match crate::rest_instant(&logical_date) {
                    Some(date) => db.previous_run(&DagId::new(dag_id), date, state).await?,
                    None => None,
                };
                Answer::of(
                    "PreviousDagRunResult",
                    json!({"dag_run": found.as_ref().map(dag_run)}),
                )
            }
            Question::GetPrevSuccessfulDagRun {} => {
                let own = db.run_by_key(self.ti.run_key).await?;
                let found = match own.and_then(|run| run.logical_date) {
                    Some(date) => {
                        db.previous_run(&self.ti.dag_id, date, Some(DagRunState::Success))
                            .await?
                    }
                    None => None,
                };
                Answer::of(
                    "PrevSuccessfulDagRunResult",
                    found.as_ref().map_or_else(|| json!({}), interval),
                )
            }
            _ => Answer::failure(400, "Unhandled request"),
        })
    }

    /// Task instances that a question is about.
    async fn select(
        &self,
        dag_id: String,
        map_index: Option<i32>,
        task_ids: Option<Vec<String>>,
        logical_dates: Option<Vec<String>>,
        run_ids: Option<Vec<String>>,
        states: Option<Vec<String>>,
    ) -> Result<Vec<TaskInstanceRecord>, StoreError> {
        let mut db = self.db().await?;
        let mut conditions = vec![Condition::Is("dag_id", dag_id.as_str().into())];
        if let Some(index) = map_index.filter(|index| *index >= 0) {
            conditions.push(Condition::Is("map_index", index.into()));
        }
        if let Some(task_ids) = task_ids {
            conditions.push(Condition::In("task_id", texts(&task_ids)));
        }
        if let Some(run_ids) = run_ids {
            conditions.push(Condition::In("run_id", texts(&run_ids)));
        }
        if let Some(states) = states {
            conditions.push(Condition::In("state", texts(&states)));
        }
        if let Some(dates) = logical_dates {
            let by_date = vec![
                Condition::Is("dag_id", dag_id.as_str().into()),
                Condition::In("logical_date", instants(&dates)),
            ];
            let (runs, _) = db
                .runs(&Listing {
                    conditions: by_date,
                    limit: 10_000,
                    ..Listing::default()
                })
                .await?;
            conditions.push(Condition::In(
                "run_key",
                runs.iter().map(|run| run.key.into()).collect(),
            ));
        }
        let order = vec![Order {
            column: "id",
            descending: false,
        }];
        Ok(db
            .task_instances(&Listing {
                conditions,
                order,
                limit: 100_000,
                ..Listing::default()
            })
            .await?
            .0)
    }

    async fn tasks(&self, question: Question) -> Result<Answer, StoreError> {
        Ok(match question {
            Question::GetTICount {
                task_group_id: Some(_),
                ..
            }
            | Question::GetTaskStates {
                task_group_id: Some(_),
                ..
            } => Answer::failure(400, "questions about task groups are not supported yet"),
            Question::GetTICount {
                dag_id,
                map_index,
                task_ids,
                logical_dates,
                run_ids,
                states,
                ..
            } => {
                let tis = self
                    .select(dag_id, map_index, task_ids, logical_dates, run_ids, states)
                    .await?;
                Answer::of("TICount", json!({"count": tis.len()}))
            }
            Question::GetTaskStates {
                dag_id,
                map_index,
                task_ids,
                logical_dates,
                run_ids,
                ..
            } => {
                let mut states: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
                for ti in self
                    .select(dag_id, map_index, task_ids, logical_dates, run_ids, None)
                    .await?
                {
                    let name = match ti.map_index.0 {
                        ..0 => ti.task_id.to_string(),
                        index => format!("{}_{index}", ti.task_id),
                    };
                    states
                        .entry(ti.run_id.to_string())
                        .or_default()
                        .insert(name, json!(ti.state.rest_word()));
                }
                Answer::of("TaskStatesResult", json!({"task_states": states}))
            }
            Question::GetTaskBreadcrumbs { dag_id, run_id } => {
                let tis = self
                    .select(dag_id, None, None, None, Some(vec![run_id]), None)
                    .await?;
                let crumb = |ti: &TaskInstanceRecord| {
                    json!({"task_id": ti.task_id, "map_index": ti.map_index, "state": ti.state.as_str(),
                           "operator": ti.operator, "duration": ti.duration()})
                };
                let crumbs: Vec<Value> = tis
                    .iter()
                    .filter(|ti| ti.state.is_finished())
                    .map(crumb)
                    .collect();
                Answer::of("TaskBreadcrumbsResult", json!({"breadcrumbs": crumbs}))
            }
            Question::GetPreviousTI {
                dag_id,
                task_id,
                logical_date,
                map_index,
                state,
            } => {
                let found = self
                    .previous(&dag_id, &task_id, logical_date, map_index, state)
                    .await?;
                Answer::of("PreviousTIResult", json!({"task_instance": found}))
            }
            Question::GetTaskRescheduleStartDate {} => {
                let first = if self.ti.reschedules > 0 {
                    self.ti.first_start
                } else {
                    None
                };
                Answer::of(
                    "TaskRescheduleStartDate",
                    json!({"start_date": first.map(rest_format)}),
                )
            }
            _ => Answer::failure(400, "Unhandled request"),
        })
    }

    async fn previous(
        &self,
        dag_id: &str,
        task_id: &str,
        logical_date: Option<String>,
        map_index: Option<i32>,
        state: Option<String>,
    ) -> Result<Option<Value>, StoreError> {
        let mut db = self.db().await?;
        let dag_id = DagId::new(dag_id);
        let wanted: Option<StateName> = state.and_then(|state| state.parse().ok());
        let mut before = logical_date.as_deref().and_then(crate::rest_instant);
        // Walks back from run to run; a task that was skipped for years is not looked for for ever.
        for _ in 0..100 {
            let Some(date) = before else { return Ok(None) };
            let Some(run) = db.previous_run(&dag_id, date, None).await? else {
                return Ok(None);
            };
            before = run.logical_date;
            let ti = db
                .task_instance(&dag_id, &run.run_id, &TaskId::new(task_id), index(map_index))
                .await?;
            let Some(ti) = ti.filter(|ti| wanted.is_none_or(|wanted| ti.state == wanted)) else {
                continue;
            };
            let when = |at: Option<Timestamp>| at.map(rest_format);
            return Ok(Some(json!({
                "task_id": ti.task_id, "dag_id": ti.dag_id, "run_id": ti.run_id, "logical_date": when(run.logical_date),
                "start_date": when(ti.start_date), "end_date": when(ti.end_date), "state": ti.state.rest_word(),
                "try_number": ti.try_number, "map_index": ti.map_index, "duration": ti.duration(),
            })));
        }
        Ok(None)
    }
}

fn instants(texts: &[String]) -> Vec<store::sql::Value> {
    texts
        .iter()
        .filter_map(|text| crate::rest_instant(text))
        .map(Into::into)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_those_of_python() {
        let items = || (0..5).map(Value::from).collect::<Vec<_>>();
        let cut = |start, stop, step| {
            slice(items(), start, stop, step)
                .iter()
                .filter_map(Value::as_i64)
                .collect::<Vec<_>>()
        };
        assert_eq!(cut(None, None, None), [0, 1, 2, 3, 4]);
        assert_eq!(cut(Some(1), Some(-1), None), [1, 2, 3]);
        assert_eq!(cut(None, None, Some(-1)), [4, 3, 2, 1, 0]);
        assert_eq!(cut(Some(-2), Some(99), None), [3, 4]);
        assert_eq!(cut(Some(3), Some(0), Some(-2)), [3, 1]);
        assert_eq!(cut(Some(3), Some(1), None), [0i64; 0]);
    }
}
