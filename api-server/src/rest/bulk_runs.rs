//! Bulk changes of DagRuns and task instances.

use super::access::Caller;
use super::body::Body;
use super::bulk::{self, Outcome, Results, Verb};
use super::error::{ApiError, ApiResult};
use super::mark::TaskChange;
use super::mark_run::RunChange;
use super::runs;
use super::tasks;
use crate::App;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use identity::Role;
use model::python_text::repr as python_repr;
use model::{DagId, MapIndex, RunId, TaskId};
use serde_json::{Value, json};

/// Names a run in a request; the path of the request fills in the rest.
struct RunEntity {
    dag_id: DagId,
    run_id: RunId,
    change: RunChange,
}

impl RunEntity {
    fn read(value: Value, place: Vec<Value>, dag_id: &DagId) -> ApiResult<Self> {
        if let Value::String(run_id) = value {
            return Ok(Self {
                dag_id: dag_id.clone(),
                run_id: RunId::new(run_id),
                change: RunChange::default(),
            });
        }
        let mut body = Body::of(value, place)?;
        let run_id = RunId::new(body.required_text("dag_run_id"));
        let named = body.text("dag_id", 250).map(DagId::new);
        let mut change = RunChange::read(&mut body);
        // Null is no wish to remove it here.
        change.note = change.note.filter(Option::is_some);
        body.finish()?;
        Ok(Self {
            dag_id: named.unwrap_or_else(|| dag_id.clone()),
            run_id,
            change,
        })
    }
}

/// `PATCH dagRuns`
pub(crate) async fn dag_runs(
    State(app): State<App>,
    caller: Caller,
    Path(dag_id): Path<DagId>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let mut outcome = Outcome::default();
    for action in bulk::read(&headers, &bytes)? {
        let mut entities = Vec::new();
        for (number, entity) in action.entities.iter().enumerate() {
            entities.push(RunEntity::read(entity.clone(), action.place_of(number), &dag_id)?);
        }
        let results = outcome.of(&action.verb);
        let done = change_runs(&app, &action.verb, entities, results).await;
        if let Err(error) = done {
            results.failed(&error);
        }
    }
    Ok(outcome.into_answer())
}

async fn change_runs(
    app: &App,
    verb: &Verb,
    entities: Vec<RunEntity>,
    results: &mut Results,
) -> ApiResult<()> {
    let skip_missing = match verb {
        Verb::Create(_) => {
            let text = "Dag Runs bulk create is not supported. Use the trigger Dag Run endpoint instead.";
            return Err(ApiError::detail(StatusCode::METHOD_NOT_ALLOWED, text));
        }
        Verb::Update { skip_missing, .. } | Verb::Delete { skip_missing } => *skip_missing,
    };
    let (mut found, mut absent) = (Vec::new(), Vec::new());
    for entity in entities {
        if entity.dag_id.as_str() == "~" || entity.run_id.as_str() == "~" {
            results.failed(&ApiError::bad_request(format!(
                "When using wildcard in path, dag_id must be specified in request body for dag_run_id: {}",
                entity.run_id
            )));
            continue;
        }
        let run = app
            .store
            .reader()
            .await?
            .run(&entity.dag_id, &entity.run_id)
            .await?;
        match run {
            Some(run) => found.push((run, entity.change)),
            None => {
                let repr = |text: &str| python_repr(&json!(text)).0;
                absent.push(format!(
                    "({}, {})",
                    repr(entity.dag_id.as_str()),
                    repr(entity.run_id.as_str())
                ));
            }
        }
    }
    if !absent.is_empty() && !skip_missing {
        absent.sort();
        return Err(ApiError::not_found(format!(
            "The DagRuns with these identifiers: [{}] were not found",
            absent.join(", ")
        )));
    }
    for (run, change) in found {
        let done = match verb {
            Verb::Delete { .. } => runs::remove(app, &run).await,
            Verb::Update { .. } | Verb::Create(_) => change.apply(app, &run).await,
        };
        match done {
            Ok(()) => results.succeeded(format!("{}.{}", run.dag_id, run.run_id)),
            Err(error) => results.failed(&error),
        }
    }
    Ok(())
}

/// Names a task instance, or all instances of a task, in a request.
struct TaskEntity {
    path: (DagId, RunId, TaskId),
    map_index: Option<MapIndex>,
    change: TaskChange,
}

impl TaskEntity {
    fn read(value: Value, place: Vec<Value>, (dag_id, run_id): (&DagId, &RunId)) -> ApiResult<Self> {
        if let Value::String(task_id) = value {
            return Ok(Self {
                path: (dag_id.clone(), run_id.clone(), TaskId::new(task_id)),
                map_index: None,
                change: TaskChange::default(),
            });
        }
        let mut body = Body::of(value, place)?;
        let change = TaskChange::read(&mut body);
        let task_id = TaskId::new(body.required_text("task_id"));
        let map_index = body.integer("map_index", None, false).map(tasks::map_index);
        let named_dag = body.text("dag_id", 250).map(DagId::new);
        let named_run = body.text("dag_run_id", 250).map(RunId::new);
        body.finish()?;
        let path = (
            named_dag.unwrap_or_else(|| dag_id.clone()),
            named_run.unwrap_or_else(|| run_id.clone()),
            task_id,
        );
        Ok(Self {
            path,
            map_index,
            change,
        })
    }
}

/// `PATCH taskInstances`
pub(crate) async fn task_instances(
    State(app): State<App>,
    caller: Caller,
    Path((dag_id, run_id)): Path<(DagId, RunId)>,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.must_be(Role::User)?;
    let mut outcome = Outcome::default();
    for action in bulk::read(&headers, &bytes)? {
        let mut entities = Vec::new();
        for (number, entity) in action.entities.iter().enumerate() {
            let place = action.place_of(number);
            entities.push(TaskEntity::read(entity.clone(), place, (&dag_id, &run_id))?);
        }
        let results = outcome.of(&action.verb);
        for entity in entities {
            if let Err(error) = change_tasks(&app, &action.verb, entity, results).await {
                results.failed(&error);
            }
        }
    }
    Ok(outcome.into_answer())
}

async fn change_tasks(app: &App, verb: &Verb, entity: TaskEntity, results: &mut Results) -> ApiResult<()> {
    let (dag_id, run_id, task_id) = &entity.path;
    let (skip_missing, mask) = match verb {
        Verb::Create(_) => {
            let text = "Task instances bulk create is not supported";
            return Err(ApiError::detail(StatusCode::METHOD_NOT_ALLOWED, text));
        }
        Verb::Update { skip_missing, mask } => (*skip_missing, mask.iter().map(String::as_str).collect()),
        Verb::Delete { skip_missing } => (*skip_missing, Vec::new()),
    };
    if dag_id.as_str() == "~" || run_id.as_str() == "~" {
        return Err(ApiError::bad_request(format!(
            "When using wildcard in path, dag_id and dag_run_id must be specified in request body for task_id: {task_id}"
        )));
    }
    let tis = match verb {
        Verb::Delete { .. } => store::transact!(app.store, "delete task instances", |tx| {
            let tis = tasks::instances(tx, &entity.path, entity.map_index).await?;
            for ti in &tis {
                tx.delete_task_instance(ti).await?;
            }
            Ok(tis)
        })?,
        Verb::Update { .. } | Verb::Create(_) => {
            let change = entity.change.masked(&mask);
            change.apply(app, &entity.path, entity.map_index).await?
        }
    };
    if tis.is_empty() && !skip_missing {
        return Err(ApiError::not_found(match entity.map_index {
            None => {
                format!("No task instances found for dag_id: {dag_id}, run_id: {run_id}, task_id: {task_id}")
            }
            Some(index) => {
                let repr = |text: &str| python_repr(&json!(text)).0;
                format!(
                    "The task instances with these identifiers: [{{'dag_id': {}, 'dag_run_id': {}, 'task_id': {}, 'map_index': \
                     {index}}}] were not found",
                    repr(dag_id.as_str()),
                    repr(run_id.as_str()),
                    repr(task_id.as_str())
                )
            }
        }));
    }
    for ti in &tis {
        results.succeeded(format!("{dag_id}.{run_id}.{task_id}[{}]", ti.map_index));
    }
    Ok(())
}
