//! `assets`

use crate::arguments::{AssetWish, AssetsCommand};
use crate::dags::make_run;
use crate::database::open;
use crate::output::{Format, rows};
use api_server::TriggerRequest;
use config::Config;
use model::dag_run::DagRunType;
use model::time::rest_format;
use serde_json::{Value, json};
use store::Store;
use store::repo::{AssetRecord, AssetUse, Condition, Listing, Order};

pub(crate) async fn run(command: AssetsCommand, config: Config) -> anyhow::Result<()> {
    let store = open(&config).await?;
    let outcome = match command {
        AssetsCommand::List { alias, output } => list(&store, alias, output.output).await,
        AssetsCommand::Details { alias, wish, output } => details(&store, alias, &wish, output.output).await,
        AssetsCommand::Materialize { wish, output } => {
            materialize(&store, &config, &wish, output.output).await
        }
    };
    store.close().await;
    outcome
}

fn all(conditions: Vec<Condition>) -> Listing {
    let by_name = |column| Order {
        column,
        descending: false,
    };
    Listing {
        conditions,
        order: vec![by_name("name"), by_name("id")],
        limit: i64::MAX as u64,
        ..Listing::default()
    }
}

fn shown(asset: &AssetRecord) -> Value {
    let extra: Value = serde_json::from_str(&asset.extra).unwrap_or_default();
    json!({
        "id": asset.id, "name": asset.key.name, "uri": asset.key.uri, "group": asset.group, "extra": extra,
        "is_active": asset.is_active, "created_at": rest_format(asset.created_at), "updated_at": rest_format(asset.updated_at),
    })
}

async fn list(store: &Store, alias: bool, format: Format) -> anyhow::Result<()> {
    let mut db = store.reader().await?;
    if alias {
        let (aliases, _) = db.asset_aliases(&all(Vec::new())).await?;
        let found: Vec<Value> = aliases
            .iter()
            .map(|alias| json!({"name": alias.name, "group": alias.group}))
            .collect();
        rows(format, &["name", "group"], &found);
        return Ok(());
    }
    let (assets, _) = db.assets(&all(Vec::new())).await?;
    let found: Vec<Value> = assets.iter().map(shown).collect();
    rows(format, &["name", "uri", "group", "extra"], &found);
    Ok(())
}

/// The one asset of that name and URI, whichever is given.
async fn one(store: &Store, wish: &AssetWish) -> anyhow::Result<AssetRecord> {
    let mut conditions = Vec::new();
    let mut words = Vec::new();
    for (column, what, value) in [("name", "name", &wish.name), ("uri", "URI", &wish.uri)] {
        if let Some(value) = value {
            conditions.push(Condition::Is(column, value.into()));
            words.push(format!("{what} {value}"));
        }
    }
    anyhow::ensure!(!words.is_empty(), "Either --name or --uri is required");
    let words = words.join(" and ");
    let (mut found, _) = store.reader().await?.assets(&all(conditions)).await?;
    anyhow::ensure!(found.len() < 2, "More than one asset exists with {words}.");
    found
        .pop()
        .ok_or_else(|| anyhow::anyhow!("Asset with {words} does not exist."))
}

async fn details(store: &Store, alias: bool, wish: &AssetWish, format: Format) -> anyhow::Result<()> {
    let found = if alias {
        let name = wish
            .name
            .as_ref()
            .ok_or_else(|| anyhow::anyhow!("Required --name with --alias"))?;
        anyhow::ensure!(wish.uri.is_none(), "Cannot use --uri with --alias");
        let wanted = all(vec![Condition::Is("name", name.into())]);
        let (mut aliases, _) = store.reader().await?.asset_aliases(&wanted).await?;
        let alias = aliases
            .pop()
            .ok_or_else(|| anyhow::anyhow!("Asset alias with name {name} does not exist."))?;
        json!({"id": alias.id, "name": alias.name, "group": alias.group})
    } else {
        shown(&one(store, wish).await?)
    };
    match format {
        Format::Table | Format::Plain => {
            let properties: Vec<Value> = found
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, value)| json!({"property_name": key, "property_value": value}))
                .collect();
            rows(format, &["property_name", "property_value"], &properties);
        }
        Format::Json | Format::Yaml => {
            let columns: Vec<&str> = found
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, _)| key.as_str())
                .collect();
            rows(format, &columns, std::slice::from_ref(&found));
        }
    }
    Ok(())
}

async fn materialize(store: &Store, config: &Config, wish: &AssetWish, format: Format) -> anyhow::Result<()> {
    let asset = one(store, wish).await?;
    let mut db = store.reader().await?;
    let references = db.asset_references(asset.id, AssetUse::Outlet).await?;
    drop(db);
    let mut dags: Vec<_> = references.into_iter().map(|it| it.dag_id).collect();
    dags.dedup();
    anyhow::ensure!(
        dags.len() < 2,
        "More than one DAG materializes asset {}.",
        asset.key.name
    );
    let dag_id = dags
        .pop()
        .ok_or_else(|| anyhow::anyhow!("No DAG materializes asset {}.", asset.key.name))?;
    let request = TriggerRequest {
        dag_id,
        run_id: None,
        logical_date: None,
        interval: None,
        run_after: None,
        conf: json!({}),
        note: None,
        run_type: DagRunType::AssetMaterialization,
        triggered_by: "cli",
        user: Some(bootstrap::username()),
        partition_key: None,
    };
    make_run(store, config, &request, format).await
}
