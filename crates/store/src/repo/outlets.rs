//! What tasks that succeeded updated.

use super::asset_events::{AssetEventSource, NewAssetEvent};
use super::tasks::TaskInstanceRecord;
use crate::StoreError;
use crate::unit_of_work::Tx;
use model::Timestamp;
use model::asset::{Asset, AssetKey, Outlet, OutletEvent};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

impl Tx {
    /// Notes what a task that succeeded updated, in the transaction of its report.
    ///
    /// # Errors
    /// As the database says.
    pub async fn register_outlets(
        &mut self,
        ti: &TaskInstanceRecord,
        outlets: &[Outlet],
        events: &[OutletEvent],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if outlets.is_empty() {
            return Ok(());
        }
        let run = self.run_by_key(ti.run_key).await?;
        let (partition, date) = run.map_or((None, None), |run| (run.partition_key, run.partition_date));
        let nothing = Map::new();
        for outlet in outlets {
            let found = match outlet {
                Outlet::Asset(key) => self.asset(key).await?.filter(|asset| asset.is_active),
                Outlet::NameRef(name) => self.asset_named(name).await?,
                Outlet::UriRef(uri) => self.asset_at(uri).await?,
                Outlet::Alias(_) => continue,
            };
            let Some(asset) = found else {
                tracing::warn!(dag = %ti.dag_id, task = %ti.task_id, "{outlet:?} is not an active asset; its update is not noted");
                continue;
            };
            let said: Vec<&OutletEvent> = events
                .iter()
                .filter(|event| event.alias.is_none() && event.asset == asset.key)
                .collect();
            let source = AssetEventSource::Task(ti);
            let mut event = NewAssetEvent {
                asset: asset.id,
                source,
                extra: &nothing,
                aliases: &[],
                partition_key: partition.as_deref(),
                partition_date: date,
            };
            if said.is_empty() {
                self.add_asset_event(&event, now).await?;
            }
            for said in said {
                event.extra = &said.extra;
                event.partition_key = said.partition_key.as_deref().or(partition.as_deref());
                event.partition_date = date.filter(|_| event.partition_key == partition.as_deref());
                self.add_asset_event(&event, now).await?;
            }
        }
        self.register_aliases(ti, outlets, events, (partition.as_deref(), date), now)
            .await
    }

    /// What was attached to aliases: one update for each asset and what is said about it, however many aliases.
    async fn register_aliases(
        &mut self,
        ti: &TaskInstanceRecord,
        outlets: &[Outlet],
        events: &[OutletEvent],
        (partition_key, partition_date): (Option<&str>, Option<Timestamp>),
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut through: BTreeMap<(AssetKey, String), (&OutletEvent, Vec<String>)> = BTreeMap::new();
        for event in events {
            let Some(alias) = event
                .alias
                .as_ref()
                .filter(|alias| outlets.contains(&Outlet::Alias((*alias).clone())))
            else {
                continue;
            };
            let said = Json::from(vec![
                Json::Object(event.asset_extra.clone()),
                Json::Object(event.extra.clone()),
            ]);
            let entry = through
                .entry((event.asset.clone(), said.to_string()))
                .or_insert((event, Vec::new()));
            if !entry.1.contains(alias) {
                entry.1.push(alias.clone());
            }
        }
        for ((key, _), (event, aliases)) in through {
            let asset = match self.asset(&key).await? {
                Some(asset) => asset.id,
                None => {
                    let asset = Asset {
                        key,
                        group: "asset".to_owned(),
                        extra: event.asset_extra.clone(),
                        watchers: Vec::new(),
                    };
                    self.asset_id(&asset, now).await?
                }
            };
            let new = NewAssetEvent {
                asset,
                source: AssetEventSource::Task(ti),
                extra: &event.extra,
                aliases: &aliases,
                partition_key,
                partition_date,
            };
            self.add_asset_event(&new, now).await?;
        }
        Ok(())
    }
}
