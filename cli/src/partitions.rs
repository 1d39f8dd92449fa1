//! `partitions`

use crate::arguments::PartitionsCommand;
use crate::dags::{hints, instant};
use crate::database::open;
use crate::output::print;
use api_server::{ClearedPartitions, PartitionClearing, clear_partitions};
use config::Config;
use model::DagId;
use model::time::python_isoformat;
use store::Graphs;
use store::repo::{PartitionedRuns, RunRecord};

pub(crate) async fn run(command: PartitionsCommand, config: Config) -> anyhow::Result<()> {
    let PartitionsCommand::Clear {
        dag_id,
        run_id,
        partition_key,
        start_date,
        end_date,
        date,
        clear_task_instances,
        dry_run,
    } = command;
    let range = range(date.as_deref(), start_date, end_date)?;
    let wanted = match (run_id, partition_key, range) {
        (Some(run_id), None, None) => PartitionedRuns::Run(run_id),
        (None, Some(key), None) => PartitionedRuns::Key(key),
        (None, None, Some((from, to))) => {
            let read = |text: Option<String>| text.map(|text| instant(&text)).transpose();
            PartitionedRuns::Dated(read(from)?, read(to)?)
        }
        _ => anyhow::bail!(
            "Specify exactly one of --run-id, --partition-key, or a partition_date range (--start-date/--end-date or --date)."
        ),
    };
    let store = open(&config).await?;
    let (dag_id, graphs) = (DagId::new(dag_id), Graphs::default());
    let mut db = store.reader().await?;
    let Some(record) = db.dag(&dag_id).await? else {
        anyhow::bail!("there is no DAG {dag_id}");
    };
    let graph = graphs.get(&mut db, record.version_id).await?;
    drop(db);
    // The bounds are read on the clock of the timetable's zone.
    let here = |at| graph.dag.timetable.partition_instant(at);
    let wanted = match wanted {
        PartitionedRuns::Dated(Some(from), Some(to)) if from > to => {
            anyhow::bail!("--start-date must be on or before --end-date.")
        }
        PartitionedRuns::Dated(from, to) => PartitionedRuns::Dated(from.map(here), to.map(here)),
        named @ (PartitionedRuns::Run(_) | PartitionedRuns::Key(_)) => named,
    };
    let how = PartitionClearing {
        dry_run,
        with_tasks: clear_task_instances,
    };
    let broker = hints(&config);
    let cleared = clear_partitions(&store, &graphs, &*broker, &dag_id, &wanted, how).await?;
    broker.close().await;
    store.close().await;
    tell(&dag_id, &cleared, how);
    Ok(())
}

type Range = (Option<String>, Option<String>);

/// The bounds that were given, one way or the other.
fn range(both: Option<&str>, from: Option<String>, to: Option<String>) -> anyhow::Result<Option<Range>> {
    let Some(both) = both else {
        return Ok((from.is_some() || to.is_some()).then_some((from, to)));
    };
    if from.is_some() || to.is_some() {
        anyhow::bail!("--date cannot be combined with --start-date / --end-date.");
    }
    let Some((from, to)) = both.split_once('~') else {
        anyhow::bail!("--date must be in the form 'a~b', e.g. '2026-01-01~2026-01-31'.");
    };
    Ok(Some((Some(from.to_owned()), Some(to.to_owned()))))
}

fn tell(dag_id: &DagId, cleared: &ClearedPartitions, how: PartitionClearing) {
    if cleared.runs.is_empty() {
        print(&format!("No matching DagRuns found for dag_id={dag_id}.\n"));
        return;
    }
    for run in &cleared.runs {
        print(&line(run));
    }
    let (runs, count) = (cleared.runs.len(), cleared.count());
    if how.dry_run {
        print(&format!(
            "Dry run: would clear {count} DagRun(s). No changes written.\n"
        ));
        return;
    }
    print(&format!("Cleared partition fields on {count} DagRun(s).\n"));
    if how.with_tasks {
        let tasks = cleared.task_instances;
        print(&format!(
            "Cleared task instances on {runs} DagRun(s) ({tasks} task instance(s)).\n"
        ));
    }
}

fn line(run: &RunRecord) -> String {
    if !ClearedPartitions::was_partitioned(run) {
        return format!("DagRun {}: already cleared, skipping.\n", run.run_id);
    }
    let key = run
        .partition_key
        .as_ref()
        .map_or_else(|| "None".to_owned(), |key| format!("'{key}'"));
    let date = run
        .partition_date
        .map_or_else(|| "None".to_owned(), python_isoformat);
    format!(
        "DagRun {}: partition_key={key} -> None, partition_date={date} -> None\n",
        run.run_id
    )
}
