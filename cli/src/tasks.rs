//! `tasks`

use crate::arguments::{ClearOptions, TasksCommand};
use crate::clear::{self, TasksWish};
use crate::database::open;
use crate::output::{print, rows};
use anyhow::Context;
use api_server::ClearChoice;
use config::{Config, Executors};
use model::dag_run::DagRunState;
use model::time::rest_format;
use model::{DagId, ExecutorName, MapIndex, RunId, TaskId, Timestamp};
use serde_json::{Value, json};
use store::repo::{Condition, Listing, RunRecord, TaskInstanceRecord, Wait};
use store::{Graphs, Store, Tx};

pub(crate) async fn run(command: TasksCommand, config: Config) -> anyhow::Result<()> {
    let store = open(&config).await?;
    let outcome = match command {
        TasksCommand::List { dag_id } => list(&store, &DagId::new(dag_id)).await,
        TasksCommand::Clear(options) => clear::tasks(&store, &config, wish_of(options)).await,
        TasksCommand::State {
            dag_id,
            task_id,
            logical_date_or_run_id,
            map_index,
        } => {
            let run = (DagId::new(dag_id), logical_date_or_run_id);
            state(&store, run, (TaskId::new(task_id), MapIndex(map_index))).await
        }
        TasksCommand::Explain {
            dag_id,
            logical_date_or_run_id,
            task_id,
            map_index,
        } => {
            let (dag_id, task_id) = (DagId::new(dag_id), TaskId::new(task_id));
            let index = MapIndex(map_index);
            let run = (&dag_id, logical_date_or_run_id.as_str());
            explain(&store, &config.core.executors, run, (&task_id, index)).await
        }
        TasksCommand::FailedDeps {
            dag_id,
            task_id,
            logical_date_or_run_id,
            map_index,
        } => {
            let (dag_id, task_id) = (DagId::new(dag_id), TaskId::new(task_id));
            let run = (&dag_id, logical_date_or_run_id.as_str());
            let ti = (&task_id, MapIndex(map_index));
            failed_deps(&store, &config.core.executors, run, ti).await
        }
        TasksCommand::StatesForDagRun {
            dag_id,
            logical_date_or_run_id,
            output,
        } => {
            states(
                &store,
                &DagId::new(dag_id),
                &logical_date_or_run_id,
                output.output,
            )
            .await
        }
    };
    store.close().await;
    outcome
}

fn wish_of(options: ClearOptions) -> TasksWish {
    TasksWish {
        dag_id: DagId::new(options.dag_id),
        task_regex: options.task_regex,
        start_date: options.start_date,
        end_date: options.end_date,
        choice: ClearChoice {
            tasks: None,
            upstream: options.upstream,
            downstream: options.downstream,
            only_failed: options.only_failed,
            only_running: options.only_running,
        },
        yes: options.yes,
    }
}

async fn list(store: &Store, dag_id: &DagId) -> anyhow::Result<()> {
    let mut db = store.reader().await?;
    let dag = db
        .dag(dag_id)
        .await?
        .with_context(|| format!("Dag with dag_id: '{dag_id}' not found"))?;
    let graph = Graphs::default().get(&mut db, dag.version_id).await?;
    let mut names: Vec<&str> = graph.dag.tasks.iter().map(|task| task.task_id.as_str()).collect();
    names.sort_unstable();
    print(&format!("{}\n", names.join("\n")));
    Ok(())
}

/// The run of that id, or of that logical date.
pub(crate) async fn run_of(db: &mut Tx, dag_id: &DagId, name: &str) -> anyhow::Result<RunRecord> {
    let mut run = db.run(dag_id, &RunId::new(name)).await?;
    if let (None, Ok(date)) = (&run, chrono::DateTime::parse_from_rfc3339(name)) {
        let conditions = vec![
            Condition::Is("dag_id", dag_id.into()),
            Condition::Is("logical_date", date.to_utc().into()),
        ];
        run = db
            .runs(&Listing {
                conditions,
                limit: 1,
                ..Listing::default()
            })
            .await?
            .0
            .into_iter()
            .next();
    }
    run.with_context(|| format!("DagRun for {dag_id} with run_id or logical_date of {name:?} not found"))
}

async fn state(
    store: &Store,
    (dag_id, name): (DagId, String),
    (task_id, map_index): (TaskId, MapIndex),
) -> anyhow::Result<()> {
    let mut db = store.reader().await?;
    let run = run_of(&mut db, &dag_id, &name).await?;
    let ti = db
        .task_instance(&dag_id, &run.run_id, &task_id, map_index)
        .await?;
    let ti = ti.with_context(|| {
        format!(
            "{task_id} has no instance of map index {} in this run",
            map_index.0
        )
    })?;
    print(&format!("{}\n", ti.state.rest_word().unwrap_or("None")));
    Ok(())
}

/// A task instance, and what it waits for.
async fn waits(
    store: &Store,
    executors: &Executors,
    (dag_id, name): (&DagId, &str),
    (task_id, map_index): (&TaskId, MapIndex),
) -> anyhow::Result<(TaskInstanceRecord, Vec<Wait>)> {
    let mut db = store.reader().await?;
    let run = run_of(&mut db, dag_id, name).await?;
    let ti = db.task_instance(dag_id, &run.run_id, task_id, map_index).await?;
    let ti = ti.with_context(|| {
        format!(
            "{task_id} has no instance of map index {} in this run",
            map_index.0
        )
    })?;
    let in_pod = executors.is_pod(ti.executor.as_ref().map(ExecutorName::as_str));
    let waits = db
        .waits_for(&Graphs::default(), &ti, in_pod, chrono::Utc::now())
        .await?;
    Ok((ti, waits))
}

/// What is over waits for nothing, and does not run either: in Airflow's words.
fn over(run: &RunRecord, ti: &TaskInstanceRecord) -> Vec<String> {
    let mut lines = Vec::new();
    if run.state != DagRunState::Running {
        let state = run.state.as_str();
        lines.push(format!(
            "Dagrun Running: Task instance's dagrun was not running but in the state '{state}'."
        ));
    }
    if ti.state.is_finished() {
        let state = ti.state.rest_word().unwrap_or("None");
        lines.push(format!("Task Instance State: Task is in the '{state}' state."));
    }
    lines
}

async fn failed_deps(
    store: &Store,
    executors: &Executors,
    run: (&DagId, &str),
    ti: (&TaskId, MapIndex),
) -> anyhow::Result<()> {
    let (ti, waits) = waits(store, executors, run, ti).await?;
    let mut unmet = over(&run_of(&mut store.reader().await?, run.0, run.1).await?, &ti);
    unmet.extend(waits.iter().map(|wait| format!("{}: {}", wait.name, wait.reason)));
    if unmet.is_empty() {
        print("Task instance dependencies are all met.\n");
        return Ok(());
    }
    print("Task instance dependencies not met:\n");
    for line in unmet {
        print(&format!("{line}\n"));
    }
    Ok(())
}

async fn explain(
    store: &Store,
    executors: &Executors,
    run: (&DagId, &str),
    (task_id, map_index): (&TaskId, MapIndex),
) -> anyhow::Result<()> {
    let (ti, waits) = waits(store, executors, run, (task_id, map_index)).await?;
    let reasons: Vec<String> = waits.into_iter().map(|wait| wait.reason).collect();
    let state = ti.state.rest_word().unwrap_or("not started");
    match reasons.is_empty() {
        true => print(&format!("{task_id} is {state} and waits for nothing\n")),
        false => print(&format!("{task_id} is {state}: {}\n", reasons.join("; "))),
    }
    Ok(())
}

async fn states(
    store: &Store,
    dag_id: &DagId,
    name: &str,
    format: crate::output::Format,
) -> anyhow::Result<()> {
    let mut db = store.reader().await?;
    let run = run_of(&mut db, dag_id, name).await?;
    let when = |at: Option<Timestamp>| at.map(rest_format);
    let tis = db.task_instances_of(run.key).await?;
    let is_mapped = tis.iter().any(|ti| ti.map_index.0 >= 0);
    let shown: Vec<Value> = tis
        .iter()
        .map(|ti| {
            let mut row = json!({
                "dag_id": ti.dag_id, "logical_date": when(run.logical_date), "task_id": ti.task_id,
                "state": ti.state.rest_word(), "start_date": when(ti.start_date), "end_date": when(ti.end_date),
            });
            if let Some(fields) = row.as_object_mut().filter(|_| is_mapped) {
                let index = Some(ti.map_index.0).filter(|index| *index >= 0);
                let shown = index.map_or_else(String::new, |index| index.to_string());
                fields.insert("map_index".to_owned(), json!(shown));
            }
            row
        })
        .collect();
    let mut columns = vec![
        "dag_id",
        "logical_date",
        "task_id",
        "state",
        "start_date",
        "end_date",
    ];
    columns.extend(is_mapped.then_some("map_index"));
    rows(format, &columns, &shown);
    Ok(())
}
