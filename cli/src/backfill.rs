//! `backfill`

use crate::arguments::BackfillOptions;
use crate::dags::{hints, instant};
use crate::database::open;
use crate::output::{Format, print, rows};
use anyhow::Context;
use api_server::{BackfillRequest, Reprocess, create_backfill, dry_run};
use config::Config;
use model::DagId;
use model::time::rest_format;
use serde_json::{Value, json};
use store::Graphs;

pub(crate) async fn create(options: BackfillOptions, config: Config) -> anyhow::Result<()> {
    let conf: Option<Value> = match &options.dag_run_conf {
        Some(text) => Some(model::json::read(text).context("Invalid JSON in --dag-run-conf")?),
        None => None,
    };
    let reprocess = options.reprocess_behavior.as_deref().unwrap_or("none");
    let request = BackfillRequest {
        dag_id: DagId::new(options.dag_id),
        from: instant(&options.from_date)?,
        to: instant(&options.to_date)?,
        reverse: options.run_backwards,
        conf,
        reprocess: reprocess.parse::<Reprocess>().map_err(anyhow::Error::msg)?,
        max_active_runs: options.max_active_runs,
        user: Some(bootstrap::username()),
    };
    let store = open(&config).await?;
    let graphs = Graphs::default();
    if options.dry_run {
        print("Performing dry run of backfill.\nRuns to be attempted:\n");
        let dates = dry_run(&store, &graphs, &request).await?;
        let shown: Vec<Value> = dates
            .iter()
            .map(|date| {
                let partition = date.partition.as_ref();
                json!({
                    "logical_date": date.logical_date().map(rest_format),
                    "partition_key": partition.map(|partition| &partition.key),
                    "partition_date": partition.and_then(|partition| partition.date).map(rest_format),
                })
            })
            .collect();
        let partitioned = dates.iter().any(|date| date.partition.is_some());
        let columns = ["logical_date", "partition_key", "partition_date"];
        rows(Format::Table, &columns[..if partitioned { 3 } else { 1 }], &shown);
    } else {
        let broker = hints(&config);
        let made = create_backfill(&store, &graphs, &*broker, &request).await?;
        broker.close().await;
        print(&format!(
            "Backfill {} of {} has been created.\n",
            made.id, made.dag_id
        ));
    }
    store.close().await;
    Ok(())
}
