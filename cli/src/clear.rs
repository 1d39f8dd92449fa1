//! `tasks clear`, `dags clear` and `dags delete`: what asks first.

use crate::arguments::RunsWish;
use crate::dags::{hints, instant};
use crate::output::print;
use anyhow::Context;
use api_server::{ClearChoice, clear_tasks};
use config::Config;
use fancy_regex::Regex;
use model::{DagId, TaskId};
use std::collections::BTreeSet;
use std::io::BufRead;
use store::repo::{PartitionedRuns, RunRecord, TaskInstanceRecord};
use store::{Graph, Graphs, Store};

/// Which tasks of which dates to clear.
pub(crate) struct TasksWish {
    pub(crate) dag_id: DagId,
    pub(crate) task_regex: Option<String>,
    pub(crate) start_date: Option<String>,
    pub(crate) end_date: Option<String>,
    pub(crate) choice: ClearChoice,
    pub(crate) yes: bool,
}

/// Whether the user wants it.
fn confirmed(question: &str) -> bool {
    print(&format!("{question} [y/n] "));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

async fn graph_of(store: &Store, graphs: &Graphs, dag_id: &DagId) -> anyhow::Result<std::sync::Arc<Graph>> {
    let mut db = store.reader().await?;
    let dag = db.dag(dag_id).await?;
    let dag = dag.with_context(|| format!("Dag with dag_id: '{dag_id}' not found"))?;
    Ok(graphs.get(&mut db, dag.version_id).await?)
}

/// Clears what of these runs is chosen, once the user agrees.
async fn clear(
    store: &Store,
    config: &Config,
    dag_id: &DagId,
    (runs, choice): (&[RunRecord], &ClearChoice),
    yes: bool,
) -> anyhow::Result<()> {
    let graphs = Graphs::default();
    let graph = graph_of(store, &graphs, dag_id).await?;
    let fits = choice.filter(&graph.dag);
    let mut tis: Vec<TaskInstanceRecord> = Vec::new();
    let mut db = store.reader().await?;
    for run in runs {
        tis.extend(db.task_instances_of(run.key).await?.into_iter().filter(&fits));
    }
    drop(db);
    if tis.is_empty() {
        print("Nothing to clear.\n");
        return Ok(());
    }
    if !yes {
        let name = |ti: &TaskInstanceRecord| match ti.map_index.0 {
            index if index < 0 => format!("{} {}", ti.run_id, ti.task_id),
            index => format!("{} {}[{index}]", ti.run_id, ti.task_id),
        };
        let names: Vec<String> = tis.iter().map(name).collect();
        let list = names.join("\n");
        if !confirmed(&format!(
            "These {} task instances run again:\n{list}\n\nAre you sure?",
            tis.len()
        )) {
            print("Cancelled, nothing was cleared.\n");
            return Ok(());
        }
    }
    let broker = hints(config);
    clear_tasks(store, &graphs, &*broker, dag_id, &tis).await?;
    broker.close().await;
    let runs: BTreeSet<_> = tis.iter().map(|ti| ti.run_key).collect();
    print(&format!(
        "Cleared {} task instance(s) across {} Dag run(s).\n",
        tis.len(),
        runs.len()
    ));
    Ok(())
}

pub(crate) async fn tasks(store: &Store, config: &Config, mut wish: TasksWish) -> anyhow::Result<()> {
    if let Some(pattern) = &wish.task_regex {
        let regex = Regex::new(pattern)
            .with_context(|| format!("--task-regex {pattern:?} is no regular expression"))?;
        let graph = graph_of(store, &Graphs::default(), &wish.dag_id).await?;
        let names = graph.dag.tasks.iter().map(|task| &task.task_id);
        let chosen: Vec<TaskId> = names
            .filter(|name| regex.is_match(name.as_str()).unwrap_or(false))
            .cloned()
            .collect();
        wish.choice.tasks = Some(chosen.into_iter().map(|task| (task, None)).collect());
    }
    let read = |text: &Option<String>| text.as_deref().map(instant).transpose();
    let (from, to) = (read(&wish.start_date)?, read(&wish.end_date)?);
    let runs = store.reader().await?.runs_dated(&wish.dag_id, from, to).await?;
    clear(store, config, &wish.dag_id, (&runs, &wish.choice), wish.yes).await
}

pub(crate) async fn runs(
    store: &Store,
    config: &Config,
    dag_id: &DagId,
    wish: RunsWish,
    choice: &ClearChoice,
    yes: bool,
) -> anyhow::Result<()> {
    let window = wish.partition_date_start.is_some() || wish.partition_date_end.is_some();
    let graph = graph_of(store, &Graphs::default(), dag_id).await?;
    let here = |text: Option<String>| -> anyhow::Result<_> {
        let at = text.as_deref().map(instant).transpose()?;
        Ok(at.map(|at| graph.dag.timetable.partition_instant(at)))
    };
    let wanted = match (wish.run_id, wish.partition_key, window) {
        (Some(run_id), None, false) => PartitionedRuns::Run(run_id),
        (None, Some(key), false) => PartitionedRuns::Key(key),
        (None, None, true) => {
            PartitionedRuns::Dated(here(wish.partition_date_start)?, here(wish.partition_date_end)?)
        }
        (None, None, false) => anyhow::bail!(
            "One of --run-id, --partition-key, or --partition-date-start / --partition-date-end must be provided."
        ),
        _ => anyhow::bail!(
            "--run-id, --partition-key, and --partition-date-start / --partition-date-end are mutually exclusive; provide \
             exactly one selector."
        ),
    };
    let found = store.reader().await?.partitioned_runs(dag_id, &wanted).await?;
    if found.is_empty() {
        print("No matching Dag runs found.\n");
        return Ok(());
    }
    clear(store, config, dag_id, (&found, choice), yes).await
}

pub(crate) async fn delete(store: &Store, dag_id: &DagId, yes: bool) -> anyhow::Result<()> {
    let question = format!("This will drop all existing records related to the Dag {dag_id}. Proceed?");
    if !yes && !confirmed(&question) {
        print("Cancelled\n");
        return Ok(());
    }
    let active = [model::dag_run::DagRunState::Running];
    let running = store.reader().await?.count_active_runs(dag_id, &active).await?;
    anyhow::ensure!(
        running == 0,
        "{running} runs of {dag_id} are still running; pause the DAG and wait for them, or end them"
    );
    let deleted = store::transact!(store, "delete dag", |tx| tx.delete_dag(dag_id).await)?;
    anyhow::ensure!(deleted, "Dag with dag_id: '{dag_id}' not found");
    print(&format!("Removed the Dag {dag_id} and all that belonged to it\n"));
    Ok(())
}
