//! `dags`

use crate::arguments::{DagsCommand, TriggerOptions};
use crate::clear;
use crate::database::open;
use crate::output::{Format, print, rows};
use crate::tasks::run_of;
use anyhow::Context;
use api_server::{ClearChoice, TriggerRequest, trigger_run};
use broker::{Broker, Hint, LocalBroker};
use chrono::{NaiveDate, Timelike, Utc};
use config::{Config, DatabaseUrl};
use model::dag_run::{DagRunState, DagRunType};
use model::time::{python_isoformat, rest_format};
use model::timetable::{DataInterval, NextRun};
use model::{DagId, Timestamp};
use serde_json::{Value, json};
use std::sync::Arc;
use store::repo::{Condition, Listing, Order, RunRecord};
use store::{Graphs, Store};

pub(crate) async fn run(command: DagsCommand, config: Config) -> anyhow::Result<()> {
    if let DagsCommand::UpgradeCheck { files, output } = &command {
        return crate::upgrade_check::run(config, files, output.output).await;
    }
    let store = open(&config).await?;
    let outcome = match command {
        DagsCommand::List(options) => list(&store, options.output).await,
        DagsCommand::Details { dag_id, output } => details(&store, &DagId::new(dag_id), output.output).await,
        DagsCommand::ListRuns {
            dag_id,
            state,
            output,
        } => list_runs(&store, &DagId::new(dag_id), state.as_deref(), output.output).await,
        DagsCommand::Clear {
            dag_id,
            runs,
            only_failed,
            only_running,
            yes,
        } => {
            let choice = ClearChoice {
                only_failed,
                only_running,
                ..ClearChoice::default()
            };
            clear::runs(&store, &config, &DagId::new(dag_id), runs, &choice, yes).await
        }
        DagsCommand::State {
            dag_id,
            logical_date_or_run_id,
        } => state(&store, &DagId::new(dag_id), &logical_date_or_run_id).await,
        DagsCommand::NextExecution {
            dag_id,
            num_executions,
        } => next_execution(&store, &DagId::new(dag_id), num_executions).await,
        DagsCommand::Delete { dag_id, yes } => clear::delete(&store, &DagId::new(dag_id), yes).await,
        DagsCommand::ListImportErrors(options) => import_errors(&store, options.output).await,
        // Needs no store, so it has been done.
        DagsCommand::UpgradeCheck { .. } => Ok(()),
        DagsCommand::Pause { dag_id, output, .. } => {
            pause(&store, &config, &dag_id, true, output.output).await
        }
        DagsCommand::Unpause { dag_id, output, .. } => {
            pause(&store, &config, &dag_id, false, output.output).await
        }
        DagsCommand::Trigger(wish) => trigger(&store, &config, wish).await,
    };
    store.close().await;
    outcome
}

/// What tells the schedulers of a cluster. On one machine, the scheduler finds out by itself within a second.
pub(crate) fn hints(config: &Config) -> Arc<dyn Broker> {
    match &config.database.url {
        DatabaseUrl::Sqlite(_) => Arc::new(LocalBroker::default()),
        DatabaseUrl::MariaDb(_) => {
            bootstrap::open_broker_for_command(config).unwrap_or_else(|_| Arc::new(LocalBroker::default()))
        }
    }
}

async fn list(store: &Store, format: Format) -> anyhow::Result<()> {
    let dags = store.reader().await?.dags().await?;
    let shown: Vec<Value> = dags
        .iter()
        .filter(|dag| !dag.is_stale)
        .map(|dag| {
            json!({"dag_id": dag.dag_id, "fileloc": dag.fileloc, "owners": dag.owners.join(", "), "is_paused": dag.is_paused,
                   "bundle_name": dag.bundle_name, "bundle_version": null})
        })
        .collect();
    rows(
        format,
        &[
            "dag_id",
            "fileloc",
            "owners",
            "is_paused",
            "bundle_name",
            "bundle_version",
        ],
        &shown,
    );
    Ok(())
}

async fn details(store: &Store, dag_id: &DagId, format: Format) -> anyhow::Result<()> {
    let record = store.reader().await?.dag(dag_id).await?;
    let record = record.with_context(|| format!("DAG: {dag_id} does not exist in 'dag' table"))?;
    let facts = api_server::dag_facts(&record);
    let shown = match format {
        Format::Json | Format::Yaml => vec![facts],
        Format::Table | Format::Plain => {
            let facts = facts.as_object().into_iter().flatten();
            let row = |(name, value)| json!({"property_name": name, "property_value": value});
            facts.map(row).collect()
        }
    };
    rows(format, &["property_name", "property_value"], &shown);
    Ok(())
}

async fn state(store: &Store, dag_id: &DagId, name: &str) -> anyhow::Result<()> {
    let mut db = store.reader().await?;
    match run_of(&mut db, dag_id, name).await {
        Ok(run) if run.conf != "{}" => print(&format!("{}, {}\n", run.state, run.conf)),
        Ok(run) => print(&format!("{}\n", run.state)),
        // A DAG without such a run has no state; a DAG that is not there is a mistake.
        Err(_) => {
            let dag = db.dag(dag_id).await?;
            anyhow::ensure!(dag.is_some(), "DAG: {dag_id} does not exist in 'dag' table");
            print("None\n");
        }
    }
    Ok(())
}

/// The dates of the next runs, or their partitions.
async fn next_execution(store: &Store, dag_id: &DagId, count: usize) -> anyhow::Result<()> {
    let mut db = store.reader().await?;
    let record = db.dag(dag_id).await?;
    let record = record.with_context(|| format!("Dag with dag_id: '{dag_id}' not found"))?;
    let graph = Graphs::default().get(&mut db, record.version_id).await?;
    if record.is_paused {
        print("[INFO] Please be reminded this Dag is PAUSED now.\n");
    }
    let timetable = &graph.dag.timetable;
    let start = record.next_interval_start.zip(record.next_interval_end);
    let mut next = start
        .zip(record.next_logical_date.zip(record.next_run_after))
        .map(|((start, end), (logical_date, run_after))| NextRun {
            logical_date,
            interval: DataInterval { start, end },
            run_after,
        });
    for _ in 0..count {
        let Some(run) = next else {
            print("None\n");
            break;
        };
        let named = match timetable.partition_of(run.run_after)? {
            Some(partition) => partition.key,
            None => python_isoformat(run.logical_date),
        };
        print(&format!("{named}\n"));
        next = timetable.next_run(Some(run.interval), &graph.dag.time_restriction(), Utc::now())?;
    }
    Ok(())
}

/// How many runs `list-runs` shows.
const RUNS_SHOWN: u64 = 1000;

async fn list_runs(store: &Store, dag_id: &DagId, state: Option<&str>, format: Format) -> anyhow::Result<()> {
    let mut db = store.reader().await?;
    anyhow::ensure!(
        db.dag(dag_id).await?.is_some(),
        "Dag with dag_id: '{dag_id}' not found"
    );
    let mut conditions = vec![Condition::Is("dag_id", dag_id.into())];
    if let Some(name) = state {
        let state: DagRunState = name.parse().map_err(|_| {
            anyhow::anyhow!("--state is {name:?}; it can be queued, running, success or failed")
        })?;
        conditions.push(Condition::Is("state", state.as_str().into()));
    }
    let newest_first = |column| Order {
        column,
        descending: true,
    };
    let listing = Listing {
        conditions,
        order: vec![newest_first("run_after"), newest_first("id")],
        limit: RUNS_SHOWN,
        ..Listing::default()
    };
    let when = |at: Option<Timestamp>| at.map(rest_format);
    let (runs, _) = db.runs(&listing).await?;
    let shown: Vec<Value> = runs
        .iter()
        .map(|run| {
            json!({"dag_id": run.dag_id, "run_id": run.run_id, "state": run.state.as_str(), "run_after": rest_format(run.run_after),
                   "logical_date": when(run.logical_date), "start_date": when(run.start_date), "end_date": when(run.end_date)})
        })
        .collect();
    rows(
        format,
        &[
            "dag_id",
            "run_id",
            "state",
            "run_after",
            "logical_date",
            "start_date",
            "end_date",
        ],
        &shown,
    );
    Ok(())
}

async fn import_errors(store: &Store, format: Format) -> anyhow::Result<()> {
    let errors = store.reader().await?.import_errors().await?;
    let shown: Vec<Value> = errors
        .iter()
        .map(|error| json!({"bundle_name": error.bundle_name, "filepath": error.fileloc, "error": error.stack_trace}))
        .collect();
    rows(format, &["bundle_name", "filepath", "error"], &shown);
    anyhow::ensure!(shown.is_empty(), "{} file(s) cannot be imported", shown.len());
    Ok(())
}

async fn pause(
    store: &Store,
    config: &Config,
    dag_id: &str,
    paused: bool,
    format: Format,
) -> anyhow::Result<()> {
    let (dag_id, now) = (DagId::new(dag_id), Utc::now());
    let found = store::transact!(*store, "pause dag", |tx| tx
        .set_paused(&dag_id, paused, now)
        .await)?;
    anyhow::ensure!(found, "Dag with dag_id: '{dag_id}' not found");
    let broker = hints(config);
    broker.hint(Hint::Dag(dag_id.clone()));
    broker.close().await;
    rows(
        format,
        &["dag_id", "is_paused"],
        &[json!({"dag_id": dag_id, "is_paused": paused})],
    );
    Ok(())
}

pub(crate) fn instant(text: &str) -> anyhow::Result<Timestamp> {
    if let Ok(at) = chrono::DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d")
        .ok()
        .and_then(|date| date.and_hms_opt(0, 0, 0));
    date.map(|date| date.and_utc())
        .with_context(|| format!("{text:?} is neither RFC 3339 nor YYYY-MM-DD"))
}

async fn trigger(store: &Store, config: &Config, wish: TriggerOptions) -> anyhow::Result<()> {
    let conf: Value = match &wish.conf {
        Some(text) => model::json::read(text).context("--conf is not JSON")?,
        None => json!({}),
    };
    anyhow::ensure!(conf.is_object(), "--conf is not a JSON object");
    let logical_date = wish.logical_date.as_deref().map(instant).transpose()?;
    let whole = |date: Timestamp| date.with_nanosecond(0).unwrap_or(date);
    let request = TriggerRequest {
        dag_id: DagId::new(wish.dag_id),
        run_id: wish.run_id,
        logical_date: logical_date.map(|date| {
            if wish.no_replace_microseconds {
                date
            } else {
                whole(date)
            }
        }),
        interval: None,
        run_after: None,
        conf,
        note: None,
        run_type: DagRunType::Manual,
        triggered_by: "cli",
        user: Some(bootstrap::username()),
        partition_key: None,
    };
    make_run(store, config, &request, wish.output.output).await
}

/// Makes a run as asked, and shows it.
pub(crate) async fn make_run(
    store: &Store,
    config: &Config,
    request: &TriggerRequest,
    format: Format,
) -> anyhow::Result<()> {
    let broker = hints(config);
    let run = trigger_run(store, &Graphs::default(), &*broker, request).await?;
    broker.close().await;
    run_made(format, &run);
    Ok(())
}

/// Shows a run that has just been made.
fn run_made(format: Format, run: &RunRecord) {
    let when = |at: Option<Timestamp>| at.map(rest_format);
    let columns = [
        "conf",
        "dag_id",
        "dag_run_id",
        "data_interval_start",
        "data_interval_end",
        "end_date",
        "logical_date",
        "run_type",
        "start_date",
        "state",
    ];
    let row = json!({
        "conf": serde_json::from_str::<Value>(&run.conf).unwrap_or_default(), "dag_id": run.dag_id, "dag_run_id": run.run_id, "data_interval_start": when(run.data_interval_start),
        "data_interval_end": when(run.data_interval_end), "end_date": null, "logical_date": when(run.logical_date),
        "run_type": run.run_type.as_str(), "start_date": null, "state": run.state.as_str(),
    });
    rows(format, &columns, &[row]);
}
