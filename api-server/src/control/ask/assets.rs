//! Assets: what they are, what updated them, what tasks keep with them.

use super::{Asked, json_of};
use chrono::Utc;
use model::asset::{AssetKey, AssetLike};
use model::time::rest_format;
use python::messages::{Answer, EventWindow, Question};
use serde_json::{Value, json};
use store::repo::{AssetRecord, Condition, Listing, Order};
use store::sql::Value as Stored;
use store::{StoreError, Tx};

/// Updates that a task gets at most when it names no limit.
const MOST_EVENTS: u64 = 100_000;

fn shown(asset: &AssetRecord) -> Value {
    let AssetKey { name, uri } = &asset.key;
    json!({"name": name, "uri": uri, "group": asset.group, "extra": json_of(&asset.extra)})
}

fn missing(which: Value) -> Answer {
    Answer::missing("ASSET_NOT_FOUND", which)
}

/// How a question names an asset.
enum Named {
    Name(String),
    Uri(String),
}

impl Named {
    async fn find(&self, db: &mut Tx) -> Result<Option<AssetRecord>, StoreError> {
        match self {
            Self::Name(name) => db.asset_named(name).await,
            Self::Uri(uri) => db.asset_at(uri).await,
        }
    }

    fn shown(&self) -> Value {
        match self {
            Self::Name(name) => json!({"name": name}),
            Self::Uri(uri) => json!({"uri": uri}),
        }
    }
}

impl Asked<'_> {
    /// Assets that the task reads or updates and that others hold the name or URI of.
    pub(super) async fn inactive_assets(&self) -> Result<Answer, StoreError> {
        let mut db = self.db().await?;
        let ti = self.own()?;
        let graph = self.app.graphs.get(&mut db, ti.version_id).await?;
        let mut inactive = Vec::new();
        if let Some(task) = graph.dag.task(&ti.task_id) {
            for leaf in task.inlets.iter().chain(&task.outlets) {
                let AssetLike::Asset(asset) = leaf else { continue };
                let key = &asset.key;
                let found = db.asset(key).await?;
                let profile = json!({"name": key.name, "uri": key.uri, "type": "Asset"});
                if !found.is_some_and(|asset| asset.is_active) && !inactive.contains(&profile) {
                    inactive.push(profile);
                }
            }
        }
        Ok(Answer::of(
            "InactiveAssetsResult",
            json!({"inactive_assets": inactive}),
        ))
    }

    pub(super) async fn assets(&self, question: Question) -> Result<Answer, StoreError> {
        let mut db = self.db().await?;
        let asset_result = |named: Named, found: Option<AssetRecord>| match found {
            Some(asset) => Answer::of("AssetResult", shown(&asset)),
            None => missing(named.shown()),
        };
        Ok(match question {
            Question::GetAssetByName { name } => {
                let named = Named::Name(name);
                let found = named.find(&mut db).await?;
                asset_result(named, found)
            }
            Question::GetAssetByUri { uri } => {
                let named = Named::Uri(uri);
                let found = named.find(&mut db).await?;
                asset_result(named, found)
            }
            Question::GetAssetsByAlias { alias_name } => {
                let assets = db.assets_of_alias(&alias_name).await?;
                let assets: Vec<Value> = assets.iter().map(shown).collect();
                Answer::of("AssetsByAliasResult", json!({"assets": assets}))
            }
            Question::GetAssetEventByAsset { name, uri, window } => {
                let found = match (name, uri) {
                    (Some(name), Some(uri)) => db.asset(&AssetKey { name, uri }).await?,
                    (Some(name), None) => db.asset_named(&name).await?,
                    (None, Some(uri)) => db.asset_at(&uri).await?,
                    (None, None) => return Ok(Answer::failure(400, "name and uri cannot both be None")),
                };
                let Some(asset) = found else {
                    return Ok(Answer::of("AssetEventsResult", json!({"asset_events": []})));
                };
                let of_asset = Condition::Is("asset_id", asset.id.into());
                events(&mut db, of_asset, &window).await?
            }
            Question::GetAssetEventByAssetAlias { alias_name, window } => {
                let inner = Condition::Is("name", alias_name.into());
                let through = "SELECT e.event_id FROM asset_event_alias e JOIN asset_alias a ON a.id = e.alias_id WHERE";
                let of_alias = Condition::Through("id", through, Box::new(inner));
                events(&mut db, of_alias, &window).await?
            }
            _ => Answer::failure(400, "Unhandled request"),
        })
    }

    pub(super) async fn asset_states(&self, question: Question) -> Result<Answer, StoreError> {
        use Question as Q;
        let (named, key, value) = match question {
            Q::GetAssetStateStoreByName { name, key } => (Named::Name(name), Some(key), Access::Read),
            Q::GetAssetStateStoreByUri { uri, key } => (Named::Uri(uri), Some(key), Access::Read),
            Q::SetAssetStateStoreByName { name, key, value } => {
                (Named::Name(name), Some(key), Access::Write(value))
            }
            Q::SetAssetStateStoreByUri { uri, key, value } => {
                (Named::Uri(uri), Some(key), Access::Write(value))
            }
            Q::DeleteAssetStateStoreByName { name, key } => (Named::Name(name), Some(key), Access::Delete),
            Q::DeleteAssetStateStoreByUri { uri, key } => (Named::Uri(uri), Some(key), Access::Delete),
            Q::ClearAssetStateStoreByName { name } => (Named::Name(name), None, Access::Delete),
            Q::ClearAssetStateStoreByUri { uri } => (Named::Uri(uri), None, Access::Delete),
            _ => return Ok(Answer::failure(400, "Unhandled request")),
        };
        let mut db = self.db().await?;
        let Some(asset) = named.find(&mut db).await? else {
            return Ok(missing(named.shown()));
        };
        let key = key.as_deref();
        Ok(match (value, key) {
            (Access::Read, Some(key)) => match db.asset_state(asset.id, key).await? {
                Some(state) => Answer::of("AssetStateStoreResult", json!({"value": json_of(&state.value)})),
                None => Answer::missing("ASSET_STORE_NOT_FOUND", json!({"key": key})),
            },
            (Access::Write(value), Some(key)) => {
                let (value, writer) = (value.to_string(), self.writer().to_string());
                store::transact!(self.app.store, "keep an asset's state", |tx| {
                    tx.set_asset_state(asset.id, key, &value, &writer, Utc::now())
                        .await
                })?;
                Answer::ok()
            }
            (Access::Delete, key) => {
                store::transact!(self.app.store, "forget an asset's state", |tx| {
                    tx.delete_asset_state(asset.id, key).await
                })?;
                Answer::ok()
            }
            (Access::Read | Access::Write(_), None) => Answer::failure(400, "a key is needed"),
        })
    }

    /// Who writes, as the REST API shows it.
    fn writer(&self) -> Value {
        let Some(ti) = self.ti else {
            return json!({"kind": "watcher", "dag_id": null, "run_id": null, "task_id": null, "map_index": null});
        };
        json!({"kind": "task", "dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": ti.map_index.0})
    }
}

/// What is to be done with what is kept.
enum Access {
    Read,
    Write(Value),
    Delete,
}

async fn events(db: &mut Tx, which: Condition, window: &EventWindow) -> Result<Answer, StoreError> {
    let at = |text: &Option<String>| text.as_deref().and_then(crate::rest_instant).map(Stored::from);
    let mut conditions = vec![which];
    conditions.extend(at(&window.after).map(|at| Condition::AtLeast("created_at", at)));
    conditions.extend(at(&window.before).map(|at| Condition::AtMost("created_at", at)));
    let order = ["created_at", "id"].map(|column| Order {
        column,
        descending: !window.ascending,
    });
    let listing = Listing {
        conditions,
        order: order.into(),
        after: None,
        limit: window
            .limit
            .filter(|limit| *limit > 0)
            .map_or(MOST_EVENTS, u64::from),
        offset: 0,
    };
    let mut out = Vec::new();
    for event in db.asset_events(&listing).await?.0 {
        let asset = db.asset_of_event(&event).await?;
        let mut runs = Vec::new();
        for (run, _) in db.runs_of_asset_event(event.id).await? {
            // The SDK knows only runs that have started.
            let Some(start_date) = run.start_date else {
                continue;
            };
            runs.push(json!({
                "run_id": run.run_id, "dag_id": run.dag_id, "logical_date": run.logical_date.map(rest_format),
                "start_date": rest_format(start_date), "end_date": run.end_date.map(rest_format),
                "state": run.state.as_str(), "data_interval_start": run.data_interval_start.map(rest_format),
                "data_interval_end": run.data_interval_end.map(rest_format), "partition_key": run.partition_key,
            }));
        }
        out.push(json!({
            "id": event.id, "timestamp": rest_format(event.created_at), "extra": json_of(&event.extra),
            "asset": shown(&asset), "created_dagruns": runs, "source_task_id": event.source_task_id,
            "source_dag_id": event.source_dag_id, "source_run_id": event.source_run_id,
            "source_map_index": event.source_map_index.0, "partition_key": event.partition_key,
        }));
    }
    Ok(Answer::of("AssetEventsResult", json!({"asset_events": out})))
}
