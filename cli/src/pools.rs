//! `pools`

use crate::arguments::PoolsCommand;
use crate::database::open;
use crate::output::{Format, print, rows};
use anyhow::Context;
use config::Config;
use model::PoolName;
use serde_json::{Map, Value, json};
use std::path::Path;
use store::Store;
use store::repo::PoolRecord;

/// Those who ask for no other pool share it; there is always one.
const DEFAULT: &str = "default_pool";

pub(crate) async fn run(command: PoolsCommand, config: Config) -> anyhow::Result<()> {
    let store = open(&config).await?;
    let outcome = match command {
        PoolsCommand::List(options) => list(&store, None, options.output).await,
        PoolsCommand::Get { pool, output } => list(&store, Some(&pool), output.output).await,
        PoolsCommand::Set {
            pool,
            slots,
            description,
            include_deferred,
        } => {
            let set = set(&store, &pool, slots, &description, include_deferred).await;
            set.map(|()| print(&format!("Pool {pool} created\n")))
        }
        PoolsCommand::Delete { pool } => delete(&store, &pool).await,
        PoolsCommand::Import { file } => import(&store, &file).await,
        PoolsCommand::Export { file } => export(&store, &file).await,
    };
    store.close().await;
    outcome
}

async fn list(store: &Store, only: Option<&str>, format: Format) -> anyhow::Result<()> {
    let pools = store.reader().await?.pools().await?;
    let shown: Vec<Value> = pools
        .iter()
        .filter(|pool| only.is_none_or(|only| pool.name.as_str() == only))
        .map(|pool| {
            json!({
                "pool": pool.name, "slots": pool.slots, "description": pool.description,
                "include_deferred": pool.include_deferred, "team_name": null,
            })
        })
        .collect();
    if let Some(name) = only {
        anyhow::ensure!(!shown.is_empty(), "Pool {name} does not exist");
    }
    let columns = ["pool", "slots", "description", "include_deferred", "team_name"];
    rows(format, &columns, &shown);
    Ok(())
}

async fn set(
    store: &Store,
    name: &str,
    slots: i64,
    description: &str,
    include_deferred: bool,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        !name.trim().is_empty() && name.len() <= 250,
        "a pool's name has 1 to 250 letters"
    );
    anyhow::ensure!(slots >= -1, "pool {name}: {slots} slots; -1 is no limit");
    let name = PoolName::from(name);
    store::transact!(*store, "set pool", |tx| {
        let present = tx.pools().await?.into_iter().find(|pool| pool.name == name);
        let Some(present) = present else {
            return tx
                .create_pool(&name, slots, Some(description), include_deferred)
                .await;
        };
        let changed = PoolRecord {
            slots,
            description: Some(description.to_owned()),
            include_deferred,
            ..present
        };
        tx.update_pool(&name, &changed).await.map(|_| ())
    })?;
    Ok(())
}

async fn delete(store: &Store, name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(name != DEFAULT, "{DEFAULT} cannot be deleted");
    let name = PoolName::from(name);
    let found = store::transact!(*store, "delete pool", |tx| tx.delete_pool(&name).await)?;
    anyhow::ensure!(found, "Pool {name} does not exist");
    print(&format!("Pool {name} deleted\n"));
    Ok(())
}

async fn import(store: &Store, file: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let pools: Map<String, Value> =
        serde_json::from_str(&text).with_context(|| format!("{} is not a JSON object", file.display()))?;
    let (mut count, mut failed) = (0, Vec::new());
    for (name, pool) in &pools {
        let (slots, description) = (pool["slots"].as_i64(), pool.get("description"));
        let (Some(slots), Some(description)) = (slots, description) else {
            failed.push(name.as_str());
            continue;
        };
        let include_deferred = pool["include_deferred"].as_bool().unwrap_or(false);
        let description = description.as_str().unwrap_or_default();
        set(store, name, slots, description, include_deferred).await?;
        count += 1;
    }
    anyhow::ensure!(
        failed.is_empty(),
        "Failed to update pool(s): {}; each needs slots and a description",
        failed.join(", ")
    );
    print(&format!("Uploaded {count} pool(s)\n"));
    Ok(())
}

async fn export(store: &Store, file: &Path) -> anyhow::Result<()> {
    let pools = store.reader().await?.pools().await?;
    let mut all: Vec<(&str, Value)> = pools
        .iter()
        .map(|pool| {
            let facts = json!({
                "slots": pool.slots, "description": pool.description, "include_deferred": pool.include_deferred,
            });
            (pool.name.as_str(), facts)
        })
        .collect();
    all.sort_by_key(|(name, _)| *name);
    let all: Map<String, Value> = all
        .into_iter()
        .map(|(name, facts)| (name.to_owned(), facts))
        .collect();
    let text = format!("{}\n", serde_json::to_string_pretty(&all)?);
    if file == Path::new("-") {
        print(&text);
        return Ok(());
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    print(&format!("Exported {} pools to {}\n", all.len(), file.display()));
    Ok(())
}
