//! Watchers: triggers that update assets, for as long as a DAG waits for these.

use super::asset_events::{AssetEventSource, NewAssetEvent};
use super::dags::hex;
use super::triggers::{Fired, TriggerRecord};
use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::asset::{AssetKey, Watcher};
use model::trigger::TriggerEvent;
use model::{AssetId, DagId, Timestamp};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashSet};

fn hash(watcher: &Watcher) -> String {
    let mut hasher = Sha256::new();
    hasher.update(watcher.classpath.as_bytes());
    hasher.update([0]);
    hasher.update(watcher.kwargs.to_string().as_bytes());
    hex(&hasher.finalize()[..16])
}

impl Tx {
    /// Replaces the watchers that a DAG names. The same trigger over several assets runs once.
    pub(super) async fn set_watchers(
        &mut self,
        dag_id: &DagId,
        watchers: &[(AssetId, &Watcher)],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "SELECT asset_id, name, watcher_hash FROM asset_watcher WHERE dag_id = ? ORDER BY asset_id";
        let mut present = BTreeSet::new();
        for mut row in self.query(sql, params![dag_id]).await? {
            let (asset, name, hash): (AssetId, String, String) = (row.next()?, row.next()?, row.next()?);
            present.insert((asset, name, hash));
        }
        let wanted: BTreeSet<(AssetId, String, String)> = watchers
            .iter()
            .map(|(asset, watcher)| (*asset, watcher.name.clone(), hash(watcher)))
            .collect();
        if present == wanted {
            return Ok(());
        }
        self.execute("DELETE FROM asset_watcher WHERE dag_id = ?", params![dag_id])
            .await?;
        for (asset, name, hash) in &wanted {
            let sql = "INSERT INTO asset_watcher (dag_id, asset_id, name, watcher_hash, created_at) VALUES (?, ?, ?, ?, ?)";
            self.execute(sql, params![dag_id, *asset, name, hash, now])
                .await?;
        }
        for (_, watcher) in watchers {
            let head = self.dialect().insert_ignore();
            let sql = format!(
                "{head} pending_trigger (claim_epoch, watcher_hash, classpath, kwargs, is_encrypted, created_at) \
                 VALUES (0, ?, ?, ?, 0, ?)"
            );
            let values = params![hash(watcher), &watcher.classpath, watcher.kwargs.to_string(), now];
            self.execute(&sql, values).await?;
        }
        let sql = "DELETE FROM pending_trigger WHERE watcher_hash IS NOT NULL \
                   AND watcher_hash NOT IN (SELECT watcher_hash FROM asset_watcher)";
        self.execute(sql, &[]).await.map(|_| ())
    }

    /// The watchers of assets that a DAG waits for which is not paused.
    pub(super) async fn active_watchers(&mut self) -> Result<HashSet<String>, StoreError> {
        let sql = "SELECT DISTINCT w.watcher_hash FROM asset_watcher w JOIN asset a ON a.id = w.asset_id \
                   WHERE a.is_active = 1 AND EXISTS (SELECT 1 FROM asset_reference r JOIN dag d ON d.dag_id = r.dag_id \
                   WHERE r.kind = 'schedule' AND r.target = w.asset_id AND d.is_paused = 0 AND d.is_stale = 0)";
        let rows = self.query(sql, &[]).await?;
        rows.into_iter().map(|mut row| row.next()).collect()
    }

    /// The assets that a watcher watches over.
    ///
    /// # Errors
    /// As the database says.
    pub async fn watched_assets(&mut self, watcher_hash: &str) -> Result<Vec<AssetKey>, StoreError> {
        let sql = "SELECT DISTINCT a.name, a.uri FROM asset a JOIN asset_watcher w ON w.asset_id = a.id \
                   WHERE w.watcher_hash = ?";
        let read = |mut row: Row| {
            Ok(AssetKey {
                name: row.next()?,
                uri: row.next()?,
            })
        };
        let rows = self.query(sql, params![watcher_hash]).await?;
        rows.into_iter().map(read).collect()
    }

    /// The watchers of an asset: name, number of the trigger, since when.
    ///
    /// # Errors
    /// As the database says.
    pub async fn watchers_of_asset(
        &mut self,
        asset: AssetId,
    ) -> Result<Vec<(String, i64, Timestamp)>, StoreError> {
        let sql = "SELECT DISTINCT w.name, p.id, p.created_at FROM asset_watcher w \
                   JOIN pending_trigger p ON p.watcher_hash = w.watcher_hash WHERE w.asset_id = ? ORDER BY w.name";
        let read = |mut row: Row| Ok((row.next()?, row.next()?, row.next()?));
        let rows = self.query(sql, params![asset]).await?;
        rows.into_iter().map(read).collect()
    }

    /// A watcher saw something: its assets are updated. One that failed is started again by whoever hosts it.
    pub(super) async fn fire_watcher(
        &mut self,
        trigger: &TriggerRecord,
        event: &TriggerEvent,
        now: Timestamp,
    ) -> Result<Fired, StoreError> {
        let Some(hash) = &trigger.watcher_hash else {
            return Ok(Fired::Stale);
        };
        let TriggerEvent::Fired(payload) = event else {
            if let TriggerEvent::Failed(lines) = event {
                tracing::warn!(trigger = %trigger.id, "a watcher failed: {}", lines.join(""));
            }
            return Ok(Fired::Stale);
        };
        let extra = Map::from_iter([
            ("from_trigger".to_owned(), Value::Bool(true)),
            ("payload".to_owned(), payload.clone()),
        ]);
        for key in self.watched_assets(hash).await? {
            let Some(asset) = self.asset(&key).await? else {
                continue;
            };
            let event = NewAssetEvent {
                asset: asset.id,
                source: AssetEventSource::Outside,
                extra: &extra,
                aliases: &[],
                partition_key: None,
                partition_date: None,
            };
            self.add_asset_event(&event, now).await?;
        }
        Ok(Fired::Assets)
    }
}
