//! Assets and aliases, and which DAGs and tasks name them.

use super::dags::hex;
use super::list::Listing;
use super::news::News;
use crate::sql::{Row, Value, placeholders};
use crate::unit_of_work::Tx;
use crate::{StoreError, limits, params};
use model::asset::{Asset, AssetKey, AssetLike};
use model::dag::Dag;
use model::{AssetAliasId, AssetId, DagId, TaskId, Timestamp};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

const COLUMNS: &str = "id, name, uri, asset_group, extra, is_active, created_at, updated_at";

/// An asset.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the column of its name; the names are those of Airflow's AssetModel"
)]
pub struct AssetRecord {
    pub id: AssetId,
    pub key: AssetKey,
    pub group: String,
    /// JSON object.
    pub extra: String,
    pub is_active: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl AssetRecord {
    pub(super) fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.next()?,
            key: AssetKey {
                name: row.next()?,
                uri: row.next()?,
            },
            group: row.next()?,
            extra: row.next()?,
            is_active: row.next()?,
            created_at: row.next()?,
            updated_at: row.next()?,
        })
    }
}

/// An alias.
#[derive(Debug, Clone)]
pub struct AssetAliasRecord {
    /// The store's number for it.
    pub id: AssetAliasId,
    /// Its name.
    pub name: String,
    /// What kind of thing it is.
    pub group: String,
}

impl AssetAliasRecord {
    pub(super) fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.next()?,
            name: row.next()?,
            group: row.next()?,
        })
    }
}

/// How a DAG or a task names an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AssetUse {
    /// Its updates start runs.
    Schedule,
    /// A task reads it.
    Inlet,
    /// A task updates it.
    Outlet,
    /// What is attached to the alias starts runs.
    ScheduleAlias,
    /// The asset of that name starts runs.
    ScheduleName,
    /// The asset at that URI starts runs.
    ScheduleUri,
}

impl AssetUse {
    const fn word(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Inlet => "inlet",
            Self::Outlet => "outlet",
            Self::ScheduleAlias => "schedule_alias",
            Self::ScheduleName => "schedule_name",
            Self::ScheduleUri => "schedule_uri",
        }
    }
}

/// A DAG or task that names an asset.
#[derive(Debug, Clone)]
pub struct AssetReference {
    /// The DAG.
    pub dag_id: DagId,
    /// The task; empty for the DAG's schedule.
    pub task_id: TaskId,
    /// Since when.
    pub created_at: Timestamp,
    /// When it was last different.
    pub updated_at: Timestamp,
}

/// A reference as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    task_id: String,
    kind: &'static str,
    target: i64,
    words: Option<String>,
}

/// What stands for the name of an alias in a unique index, for which it is too long.
fn alias_hash(name: &str) -> String {
    hex(&Sha256::digest(name.as_bytes())[..16])
}

fn hash(key: &AssetKey) -> String {
    let mut hasher = Sha256::new();
    hasher.update(key.name.as_bytes());
    hasher.update([0]);
    hasher.update(key.uri.as_bytes());
    hex(&hasher.finalize()[..16])
}

impl Tx {
    /// The asset with that key.
    ///
    /// # Errors
    /// As the database says.
    pub async fn asset(&mut self, key: &AssetKey) -> Result<Option<AssetRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM asset WHERE key_hash = ?");
        self.query_one(&sql, params![hash(key)])
            .await?
            .map(AssetRecord::read)
            .transpose()
    }

    /// The asset with that number.
    ///
    /// # Errors
    /// As the database says.
    pub async fn asset_by_id(&mut self, id: AssetId) -> Result<Option<AssetRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM asset WHERE id = ?");
        self.query_one(&sql, params![id])
            .await?
            .map(AssetRecord::read)
            .transpose()
    }

    /// The active asset of that name.
    ///
    /// # Errors
    /// As the database says.
    pub async fn asset_named(&mut self, name: &str) -> Result<Option<AssetRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM asset WHERE name = ? AND is_active = 1");
        self.query_one(&sql, params![name])
            .await?
            .map(AssetRecord::read)
            .transpose()
    }

    /// The active asset at that URI.
    ///
    /// # Errors
    /// As the database says.
    pub async fn asset_at(&mut self, uri: &str) -> Result<Option<AssetRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM asset WHERE uri = ? AND is_active = 1");
        self.query_one(&sql, params![uri])
            .await?
            .map(AssetRecord::read)
            .transpose()
    }

    /// The assets that have been attached to an alias.
    ///
    /// # Errors
    /// As the database says.
    pub async fn assets_of_alias(&mut self, name: &str) -> Result<Vec<AssetRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM asset WHERE id IN (SELECT l.asset_id FROM asset_alias_asset l \
             JOIN asset_alias a ON a.id = l.alias_id WHERE a.name = ?) ORDER BY id"
        );
        let rows = self.query(&sql, params![name]).await?;
        rows.into_iter().map(AssetRecord::read).collect()
    }

    /// The aliases that an asset has been attached to.
    ///
    /// # Errors
    /// As the database says.
    pub async fn aliases_of_asset(&mut self, id: AssetId) -> Result<Vec<AssetAliasRecord>, StoreError> {
        let sql = "SELECT id, name, asset_group FROM asset_alias \
                   WHERE id IN (SELECT alias_id FROM asset_alias_asset WHERE asset_id = ?) ORDER BY id";
        let rows = self.query(sql, params![id]).await?;
        rows.into_iter().map(AssetAliasRecord::read).collect()
    }

    /// A page of assets, and how many there are.
    ///
    /// # Errors
    /// As the database says.
    pub async fn assets(&mut self, listing: &Listing) -> Result<(Vec<AssetRecord>, i64), StoreError> {
        let (rows, total) = self.list("asset", COLUMNS, listing).await?;
        let assets = rows.into_iter().map(AssetRecord::read);
        Ok((assets.collect::<Result<_, _>>()?, total))
    }

    /// A page of aliases, and how many there are.
    ///
    /// # Errors
    /// As the database says.
    pub async fn asset_aliases(
        &mut self,
        listing: &Listing,
    ) -> Result<(Vec<AssetAliasRecord>, i64), StoreError> {
        let (rows, total) = self.list("asset_alias", "id, name, asset_group", listing).await?;
        let aliases = rows.into_iter().map(AssetAliasRecord::read);
        Ok((aliases.collect::<Result<_, _>>()?, total))
    }

    /// Who uses an asset in that way.
    ///
    /// # Errors
    /// As the database says.
    pub async fn asset_references(
        &mut self,
        id: AssetId,
        kind: AssetUse,
    ) -> Result<Vec<AssetReference>, StoreError> {
        let sql = "SELECT dag_id, task_id, created_at, updated_at FROM asset_reference \
                   WHERE kind = ? AND target = ? ORDER BY dag_id, task_id";
        let read = |mut row: Row| {
            Ok(AssetReference {
                dag_id: row.next()?,
                task_id: row.next()?,
                created_at: row.next()?,
                updated_at: row.next()?,
            })
        };
        let rows = self.query(sql, params![kind.word(), id]).await?;
        rows.into_iter().map(read).collect()
    }

    /// The number of an asset, which is made if it is new. What the file says about it replaces what was said before.
    ///
    /// # Errors
    /// As the database says.
    pub(super) async fn asset_id(&mut self, asset: &Asset, now: Timestamp) -> Result<AssetId, StoreError> {
        let extra = Value::from(serde_json::Value::Object(asset.extra.clone()).to_string());
        if let Some(found) = self.asset(&asset.key).await? {
            let sql = "UPDATE asset SET asset_group = ?, extra = ?, updated_at = ? \
                       WHERE id = ? AND (asset_group <> ? OR extra <> ?)";
            let values = params![
                &asset.group,
                extra.clone(),
                now,
                found.id,
                &asset.group,
                extra.clone()
            ];
            self.execute(sql, values).await?;
            return Ok(found.id);
        }
        limits::ASSET_NAME.check(&asset.key.name)?;
        limits::ASSET_URI.check(&asset.key.uri)?;
        limits::ASSET_GROUP.check(&asset.group)?;
        let sql = "INSERT INTO asset (key_hash, name, uri, asset_group, extra, is_active, created_at, updated_at) \
                   VALUES (?, ?, ?, ?, ?, 0, ?, ?)";
        let values = params![
            hash(&asset.key),
            &asset.key.name,
            &asset.key.uri,
            &asset.group,
            extra.clone(),
            now,
            now
        ];
        let id = AssetId(self.execute(sql, values).await?.last_key);
        let hooks = self.listeners().await?;
        self.tell(&hooks, &News::AssetCreated(asset), now).await?;
        Ok(id)
    }

    pub(super) async fn alias_id(
        &mut self,
        name: &str,
        group: &str,
        now: Timestamp,
    ) -> Result<AssetAliasId, StoreError> {
        let found = self
            .query_one("SELECT id FROM asset_alias WHERE name = ?", params![name])
            .await?;
        if let Some(mut row) = found {
            let id: AssetAliasId = row.next()?;
            let sql = "UPDATE asset_alias SET asset_group = ? WHERE id = ? AND asset_group <> ?";
            self.execute(sql, params![group, id, group]).await?;
            return Ok(id);
        }
        limits::ALIAS_NAME.check(name)?;
        limits::ALIAS_GROUP.check(group)?;
        let sql = "INSERT INTO asset_alias (name, asset_group, key_hash) VALUES (?, ?, ?)";
        let values = params![name, group, alias_hash(name)];
        let id = AssetAliasId(self.execute(sql, values).await?.last_key);
        let hooks = self.listeners().await?;
        self.tell(&hooks, &News::AliasCreated(name, group), now).await?;
        Ok(id)
    }

    /// Notes which assets a DAG and its tasks name, in the transaction that stores the DAG.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_asset_references(&mut self, dag: &Dag, now: Timestamp) -> Result<(), StoreError> {
        let mut wanted = BTreeSet::new();
        let leaves = dag.asset_condition.as_ref().map(|condition| condition.leaves());
        for leaf in leaves.unwrap_or_default() {
            wanted.insert(self.wanted_schedule(leaf, now).await?);
        }
        for task in &dag.tasks {
            for (uses, kind) in [(&task.inlets, AssetUse::Inlet), (&task.outlets, AssetUse::Outlet)] {
                for leaf in uses {
                    wanted.extend(self.wanted_by_task(&task.task_id, leaf, kind, now).await?);
                }
            }
        }
        let mut watchers = Vec::new();
        for leaf in dag
            .asset_condition
            .iter()
            .flat_map(|condition| condition.leaves())
        {
            if let AssetLike::Asset(asset) = leaf
                && !asset.watchers.is_empty()
            {
                let id = self.asset_id(asset, now).await?;
                watchers.extend(asset.watchers.iter().map(|watcher| (id, watcher)));
            }
        }
        self.set_watchers(&dag.dag_id, &watchers, now).await?;
        let expression = dag.asset_condition.as_ref().map(|it| it.expression().to_string());
        let sql = "UPDATE dag SET asset_expression = ? WHERE dag_id = ?";
        self.execute(sql, params![expression, &dag.dag_id]).await?;
        if dag.asset_condition.is_none() {
            self.execute("DELETE FROM asset_queue WHERE dag_id = ?", params![&dag.dag_id])
                .await?;
        }
        self.replace_references(&dag.dag_id, wanted, now).await
    }

    /// Forgets what a DAG named, because it is gone.
    ///
    /// # Errors
    /// As the database says.
    pub async fn drop_asset_references(&mut self, dag_id: &DagId, now: Timestamp) -> Result<(), StoreError> {
        self.set_watchers(dag_id, &[], now).await?;
        self.replace_references(dag_id, BTreeSet::new(), now).await
    }

    async fn wanted_schedule(&mut self, leaf: &AssetLike, now: Timestamp) -> Result<Wanted, StoreError> {
        let wanted = |kind: AssetUse, target: i64, words: Option<&String>| Wanted {
            task_id: String::new(),
            kind: kind.word(),
            target,
            words: words.cloned(),
        };
        Ok(match leaf {
            AssetLike::Asset(asset) => wanted(AssetUse::Schedule, self.asset_id(asset, now).await?.0, None),
            AssetLike::Alias { name, group } => wanted(
                AssetUse::ScheduleAlias,
                self.alias_id(name, group, now).await?.0,
                None,
            ),
            AssetLike::NameRef(name) => wanted(AssetUse::ScheduleName, 0, Some(name)),
            AssetLike::UriRef(uri) => wanted(AssetUse::ScheduleUri, 0, Some(uri)),
        })
    }

    async fn wanted_by_task(
        &mut self,
        task_id: &TaskId,
        leaf: &AssetLike,
        kind: AssetUse,
        now: Timestamp,
    ) -> Result<Option<Wanted>, StoreError> {
        Ok(match leaf {
            AssetLike::Asset(asset) => Some(Wanted {
                task_id: task_id.to_string(),
                kind: kind.word(),
                target: self.asset_id(asset, now).await?.0,
                words: None,
            }),
            AssetLike::Alias { name, group } => {
                self.alias_id(name, group, now).await?;
                None
            }
            AssetLike::NameRef(_) | AssetLike::UriRef(_) => None,
        })
    }

    async fn replace_references(
        &mut self,
        dag_id: &DagId,
        mut wanted: BTreeSet<Wanted>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "SELECT id, task_id, kind, target, words FROM asset_reference WHERE dag_id = ?";
        let mut surplus = Vec::new();
        for mut row in self.query(sql, params![dag_id]).await? {
            let (id, task_id, kind, target, words): (i64, String, String, i64, Option<String>) =
                (row.next()?, row.next()?, row.next()?, row.next()?, row.next()?);
            let same = wanted
                .iter()
                .find(|w| w.task_id == task_id && w.kind == kind && w.target == target && w.words == words)
                .cloned();
            match same {
                Some(same) => {
                    wanted.remove(&same);
                }
                None => surplus.push(Value::from(id)),
            }
        }
        for chunk in Self::chunks(&surplus) {
            let sql = format!(
                "DELETE FROM asset_reference WHERE id IN ({})",
                placeholders(chunk.len())
            );
            self.execute(&sql, chunk).await?;
        }
        for it in &wanted {
            let sql = "INSERT INTO asset_reference (dag_id, task_id, kind, target, words, created_at, updated_at) \
                       VALUES (?, ?, ?, ?, ?, ?, ?)";
            let values = params![
                dag_id,
                &it.task_id,
                it.kind,
                it.target,
                it.words.clone(),
                now,
                now
            ];
            self.execute(sql, values).await?;
        }
        if wanted.is_empty() && surplus.is_empty() {
            return Ok(());
        }
        self.activate_assets().await
    }

    /// An asset is active while somebody names it and no other active one has its name or its URI
    /// (`SchedulerJobRunner._update_asset_orphanage`).
    pub(super) async fn activate_assets(&mut self) -> Result<(), StoreError> {
        const NAMED: &str = "(EXISTS (SELECT 1 FROM asset_reference r WHERE r.target = asset.id \
                             AND r.kind IN ('schedule', 'inlet', 'outlet')) \
                             OR EXISTS (SELECT 1 FROM asset_alias_asset l WHERE l.asset_id = asset.id))";
        let sql = format!("UPDATE asset SET is_active = 0 WHERE is_active = 1 AND NOT {NAMED}");
        self.execute(&sql, &[]).await?;
        let sql = format!("SELECT {COLUMNS} FROM asset WHERE is_active = 0 AND {NAMED} ORDER BY id");
        for row in self.query(&sql, &[]).await? {
            let asset = AssetRecord::read(row)?;
            let taken = self.asset_named(&asset.key.name).await?.is_some()
                || self.asset_at(&asset.key.uri).await?.is_some();
            if !taken {
                self.execute("UPDATE asset SET is_active = 1 WHERE id = ?", params![asset.id])
                    .await?;
                self.look_at_partitions_of(asset.id).await?;
            }
        }
        Ok(())
    }
}
