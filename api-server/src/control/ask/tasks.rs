//! Task instances: counting them, their states, their past.

use super::{Asked, index, instants, texts};
use chrono::Utc;
use model::task_instance::StateName;
use model::time::rest_format;
use model::{DagId, GroupId, MapIndex, TaskId, Timestamp};
use python::messages::{Answer, Question};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use store::StoreError;
use store::repo::{Condition, Listing, Order, TaskInstanceRecord};

impl Asked<'_> {
    pub(super) async fn skip(&self, tasks: &[Value]) -> Result<Answer, StoreError> {
        let name = |task: &Value| match task {
            Value::String(id) => Some((TaskId::new(id.as_str()), MapIndex::UNMAPPED)),
            other => {
                let at = i32::try_from(other.get(1)?.as_i64()?).ok()?;
                Some((TaskId::new(other.get(0)?.as_str()?), MapIndex(at)))
            }
        };
        let tasks: Vec<(TaskId, MapIndex)> = tasks.iter().filter_map(name).collect();
        let (run, now) = (self.own()?.run_key, Utc::now());
        store::transact!(self.app.store, "skip downstream", |tx| tx
            .skip_tasks(run, &tasks, now)
            .await)?;
        Ok(Answer::done())
    }

    /// The tasks that a question is about: those of a task group of the DAG's latest version, where it names one; `None`
    /// when there is no such group. No tasks at all stand for every task.
    async fn of_group(
        &self,
        dag_id: &str,
        group: Option<String>,
        tasks: Option<Vec<String>>,
    ) -> Result<Option<Option<Vec<String>>>, StoreError> {
        let Some(group) = group else {
            return Ok(Some(tasks));
        };
        let mut db = self.db().await?;
        let Some(dag) = db.dag(&DagId::new(dag_id)).await? else {
            return Ok(None);
        };
        let graph = self.app.graphs.get(&mut db, dag.version_id).await?;
        let found = model::dag::tasks_of_group(&graph.document, &GroupId::new(group));
        Ok(found.map(|found| {
            let wanted = |task: &String| tasks.as_ref().is_none_or(|tasks| tasks.contains(task));
            Some(
                found
                    .into_iter()
                    .map(|task| task.to_string())
                    .filter(wanted)
                    .collect(),
            )
        }))
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
            let states: Vec<String> = states
                .into_iter()
                .map(|state| if state == "null" { "none".to_owned() } else { state })
                .collect();
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

    pub(super) async fn tasks(&self, question: Question) -> Result<Answer, StoreError> {
        Ok(match question {
            Question::GetTICount {
                dag_id,
                map_index,
                task_ids,
                task_group_id,
                logical_dates,
                run_ids,
                states,
            } => {
                let Some(task_ids) = self.of_group(&dag_id, task_group_id, task_ids).await? else {
                    return Ok(Answer::failure(404, "there is no such task group"));
                };
                let tis = self
                    .select(dag_id, map_index, task_ids, logical_dates, run_ids, states)
                    .await?;
                Answer::of("TICount", json!({"count": tis.len()}))
            }
            Question::GetTaskStates {
                dag_id,
                map_index,
                task_ids,
                task_group_id,
                logical_dates,
                run_ids,
            } => {
                let Some(task_ids) = self.of_group(&dag_id, task_group_id, task_ids).await? else {
                    return Ok(Answer::failure(404, "there is no such task group"));
                };
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
                let ti = self.own()?;
                let first = if ti.reschedules > 0 { ti.first_start } else { None };
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
