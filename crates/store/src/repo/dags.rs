//! DAGs and their versions.

use super::files::FileKey;
use crate::sql::{Row, Value};
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::{DagId, DagVersionId, Timestamp};
use sha2::{Digest, Sha256};

const COLUMNS: &str = "dag_id, is_paused, is_stale, fileloc, relative_fileloc, bundle_name, display_name, description, \
    owners, tags, timetable_type, timetable_summary, timetable_description, has_timetable, max_active_runs, \
    max_active_tasks, max_consecutive_failed, has_import_errors, has_task_limits, version_id, version_number, \
    last_parsed_at, last_parse_duration, next_logical_date, next_interval_start, next_interval_end, next_run_after, \
    asset_expression, allowed_run_types, \
    (SELECT v.bundle_version FROM dag_version v WHERE v.id = dag.version_id) AS bundle_version";

/// A DAG as lists show it.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each field is the column of its name; the names are those of Airflow's DagModel"
)]
pub struct DagRecord {
    pub dag_id: DagId,
    pub is_paused: bool,
    pub is_stale: bool,
    pub fileloc: String,
    pub relative_fileloc: String,
    pub bundle_name: String,
    pub display_name: Option<String>,
    pub description: Option<String>,
    pub owners: Vec<String>,
    pub tags: Vec<String>,
    pub timetable_type: String,
    pub timetable_summary: Option<String>,
    pub timetable_description: Option<String>,
    pub has_timetable: bool,
    pub max_active_runs: u32,
    pub max_active_tasks: u32,
    pub max_consecutive_failed: u32,
    pub has_import_errors: bool,
    pub has_task_limits: bool,
    pub version_id: DagVersionId,
    pub version_number: i64,
    pub last_parsed_at: Timestamp,
    pub last_parse_duration: f64,
    pub next_logical_date: Option<Timestamp>,
    pub next_interval_start: Option<Timestamp>,
    pub next_interval_end: Option<Timestamp>,
    pub next_run_after: Option<Timestamp>,
    /// Airflow's `asset_expression`: JSON.
    pub asset_expression: Option<String>,
    /// `None` for all.
    pub allowed_run_types: Option<Vec<String>>,
    pub bundle_version: Option<String>,
}

impl DagRecord {
    /// Its file.
    pub fn file(&self) -> FileKey {
        FileKey::new(&self.bundle_name, &self.relative_fileloc)
    }

    /// Whether its runs are about partitions.
    pub fn is_partitioned(&self) -> bool {
        matches!(
            self.timetable_type.as_str(),
            "CronPartitionTimetable" | "PartitionedAssetTimetable"
        )
    }
}

fn words(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_default()
}

impl DagRecord {
    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            dag_id: row.next()?,
            is_paused: row.next()?,
            is_stale: row.next()?,
            fileloc: row.next()?,
            relative_fileloc: row.next()?,
            bundle_name: row.next()?,
            display_name: row.next()?,
            description: row.next()?,
            owners: words(&row.next::<String>()?),
            tags: words(&row.next::<String>()?),
            timetable_type: row.next()?,
            timetable_summary: row.next()?,
            timetable_description: row.next()?,
            has_timetable: row.next()?,
            max_active_runs: row.next()?,
            max_active_tasks: row.next()?,
            max_consecutive_failed: row.next()?,
            has_import_errors: row.next()?,
            has_task_limits: row.next()?,
            version_id: row.next()?,
            version_number: row.next()?,
            last_parsed_at: row.next()?,
            last_parse_duration: row.next()?,
            next_logical_date: row.next()?,
            next_interval_start: row.next()?,
            next_interval_end: row.next()?,
            next_run_after: row.next()?,
            asset_expression: row.next()?,
            allowed_run_types: row.next::<Option<String>>()?.map(|text| words(&text)),
            bundle_version: row.next()?,
        })
    }
}

/// A DAG as the parser found it.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "as in DagRecord")]
pub struct ParsedDag {
    pub dag_id: DagId,
    pub fileloc: String,
    pub relative_fileloc: String,
    pub bundle_name: String,
    pub bundle_version: Option<String>,
    pub display_name: Option<String>,
    pub description: Option<String>,
    pub owners: Vec<String>,
    pub tags: Vec<String>,
    pub timetable_type: String,
    pub timetable_summary: Option<String>,
    pub timetable_description: Option<String>,
    pub has_timetable: bool,
    pub max_active_runs: u32,
    pub max_active_tasks: u32,
    pub max_consecutive_failed: u32,
    pub has_task_limits: bool,
    /// Whether its tasks take slots of more than one pool.
    pub has_several_pools: bool,
    /// `None` for all.
    pub allowed_run_types: Option<Vec<String>>,
    /// Whether a DAG seen for the first time starts paused.
    pub paused_at_creation: bool,
    /// Airflow's serialized DAG, and the same in canonical form, by which versions are told apart.
    pub serialized: String,
    pub canonical: String,
    pub native: String,
    pub source: String,
    pub parse_duration: f64,
}

/// What saving a DAG did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedDag {
    /// The version that is current now.
    pub version_id: DagVersionId,
    /// Whether it is a new one.
    pub is_new_version: bool,
}

impl Tx {
    /// The DAG of that name, stale ones included.
    ///
    /// # Errors
    /// As the database says.
    pub async fn dag(&mut self, dag_id: &DagId) -> Result<Option<DagRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM dag WHERE dag_id = ?");
        self.query_one(&sql, params![dag_id])
            .await?
            .map(DagRecord::read)
            .transpose()
    }

    /// All DAGs by name, stale ones included.
    ///
    /// # Errors
    /// As the database says.
    pub async fn dags(&mut self) -> Result<Vec<DagRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM dag ORDER BY dag_id");
        self.query(&sql, &[])
            .await?
            .into_iter()
            .map(DagRecord::read)
            .collect()
    }

    /// Locks a DAG's row until the transaction ends, and reads it. `None` when another transaction holds it, or there is
    /// no such DAG.
    ///
    /// # Errors
    /// As the database says.
    pub async fn lock_dag(&mut self, dag_id: &DagId) -> Result<Option<DagRecord>, StoreError> {
        let lock = self.dialect().skip_locked();
        let sql = format!("SELECT {COLUMNS} FROM dag WHERE dag_id = ?{lock}");
        self.query_one(&sql, params![dag_id])
            .await?
            .map(DagRecord::read)
            .transpose()
    }

    /// As [`Tx::lock_dag`], but waits for whoever holds the row.
    ///
    /// # Errors
    /// As the database says.
    pub async fn lock_dag_waiting(&mut self, dag_id: &DagId) -> Result<Option<DagRecord>, StoreError> {
        let lock = self.dialect().for_update();
        let sql = format!("SELECT {COLUMNS} FROM dag WHERE dag_id = ?{lock}");
        self.query_one(&sql, params![dag_id])
            .await?
            .map(DagRecord::read)
            .transpose()
    }

    /// Pauses or unpauses. Task instances that wait for a slot go back to be decided anew. Whether there is such a DAG.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_paused(
        &mut self,
        dag_id: &DagId,
        paused: bool,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE dag SET is_paused = ? WHERE dag_id = ?";
        let found = self.execute(sql, params![paused, dag_id]).await?.rows == 1;
        if paused {
            // A try that was only scheduled never began: its number is free again.
            let sql = "UPDATE task_instance SET state = 'none', scheduled_at = NULL, updated_at = ?, \
                       try_number = try_number - CASE WHEN reschedules > 0 THEN 0 ELSE 1 END \
                       WHERE dag_id = ? AND state = 'scheduled'";
            self.execute(sql, params![now, dag_id]).await?;
        } else {
            let sql = "INSERT INTO run_event (run_key, created_at) \
                       SELECT id, ? FROM dag_run WHERE dag_id = ? AND state = 'running'";
            self.execute(sql, params![now, dag_id]).await?;
        }
        Ok(found)
    }

    /// Stores what the parser found. A new version is made only when the canonical structure differs from the current
    /// one; the source and the side document are kept up to date in any case.
    ///
    /// # Errors
    /// As the database says.
    pub async fn save_dag(
        &mut self,
        parsed: &ParsedDag,
        new_id: DagVersionId,
        now: Timestamp,
    ) -> Result<SavedDag, StoreError> {
        let hash = hex(&Sha256::digest(parsed.canonical.as_bytes())[..16]);
        let lock = self.dialect().for_update();
        let sql = format!("SELECT version_id, version_number FROM dag WHERE dag_id = ?{lock}");
        let current = self.query_one(&sql, params![&parsed.dag_id]).await?;
        let current: Option<(DagVersionId, i64)> = current
            .map(|mut row| Ok::<_, StoreError>((row.next()?, row.next()?)))
            .transpose()?;
        if let Some((version_id, _)) = current {
            // The same in another bundle is another version: nobody goes on with what was remembered of the file.
            let sql = "UPDATE dag_version SET source = ?, native = ?, serialized = ?, bundle_version = ?, \
                       source_updated_at = ? WHERE id = ? AND structure_hash = ? AND bundle_name = ?";
            let values = params![
                &parsed.source,
                &parsed.native,
                &parsed.serialized,
                parsed.bundle_version.clone(),
                now,
                version_id,
                &hash,
                &parsed.bundle_name
            ];
            if self.execute(sql, values).await?.rows == 1 {
                self.update_dag(parsed, now).await?;
                return Ok(SavedDag {
                    version_id,
                    is_new_version: false,
                });
            }
        }
        let number = current.map_or(1, |(_, number)| number + 1);
        let sql = "INSERT INTO dag_version (id, dag_id, version_number, structure_hash, serialized, native, source, fileloc, \
                   relative_fileloc, bundle_name, bundle_version, created_at, source_updated_at) \
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let values = params![
            new_id,
            &parsed.dag_id,
            number,
            &hash,
            &parsed.serialized,
            &parsed.native,
            &parsed.source,
            &parsed.fileloc,
            &parsed.relative_fileloc,
            &parsed.bundle_name,
            parsed.bundle_version.clone(),
            now,
            now,
        ];
        self.execute(sql, values).await?;
        if current.is_some() {
            let sql = "UPDATE dag SET version_id = ?, version_number = ? WHERE dag_id = ?";
            self.execute(sql, params![new_id, number, &parsed.dag_id]).await?;
            self.update_dag(parsed, now).await?;
        } else {
            self.insert_dag(parsed, new_id, now).await?;
        }
        Ok(SavedDag {
            version_id: new_id,
            is_new_version: true,
        })
    }

    async fn insert_dag(
        &mut self,
        parsed: &ParsedDag,
        version_id: DagVersionId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO dag (dag_id, is_paused, is_stale, fileloc, relative_fileloc, bundle_name, owners, tags, \
                   timetable_type, has_timetable, max_active_runs, max_active_tasks, max_consecutive_failed, \
                   has_import_errors, has_task_limits, version_id, version_number, last_parsed_at, last_parse_duration) \
                   VALUES (?, ?, 0, ?, ?, ?, '[]', '[]', '', 0, 0, 0, 0, 0, 0, ?, 1, ?, 0)";
        let values = params![
            &parsed.dag_id,
            parsed.paused_at_creation,
            &parsed.fileloc,
            &parsed.relative_fileloc,
            &parsed.bundle_name,
            version_id,
            now,
        ];
        self.execute(sql, values).await?;
        self.update_dag(parsed, now).await
    }

    async fn update_dag(&mut self, parsed: &ParsedDag, now: Timestamp) -> Result<(), StoreError> {
        let sql = "UPDATE dag SET is_stale = 0, has_import_errors = 0, fileloc = ?, relative_fileloc = ?, bundle_name = ?, \
                   display_name = ?, description = ?, owners = ?, tags = ?, timetable_type = ?, timetable_summary = ?, \
                   timetable_description = ?, has_timetable = ?, max_active_runs = ?, max_active_tasks = ?, \
                   max_consecutive_failed = ?, has_task_limits = ?, has_several_pools = ?, allowed_run_types = ?, last_parsed_at = ?, last_parse_duration = ? WHERE dag_id = ?";
        let json = |words: &[String]| serde_json::to_string(words).unwrap_or_else(|_| "[]".to_owned());
        let has_several_pools = parsed.has_several_pools || self.still_has_several_pools(parsed).await?;
        let values = params![
            &parsed.fileloc,
            &parsed.relative_fileloc,
            &parsed.bundle_name,
            parsed.display_name.clone(),
            parsed.description.clone(),
            json(&parsed.owners),
            json(&parsed.tags),
            &parsed.timetable_type,
            parsed.timetable_summary.clone(),
            parsed.timetable_description.clone(),
            parsed.has_timetable,
            parsed.max_active_runs,
            parsed.max_active_tasks,
            parsed.max_consecutive_failed,
            parsed.has_task_limits,
            has_several_pools,
            parsed.allowed_run_types.as_deref().map(json),
            now,
            parsed.parse_duration,
            &parsed.dag_id,
        ];
        self.execute(sql, values).await.map(|_| ())
    }

    /// Whether runs that began while a DAG used several pools are under way: their task instances keep theirs.
    async fn still_has_several_pools(&mut self, parsed: &ParsedDag) -> Result<bool, StoreError> {
        let sql = "SELECT COALESCE(has_several_pools, 1) FROM dag WHERE dag_id = ? \
                   AND EXISTS (SELECT 1 FROM dag_run r WHERE r.dag_id = dag.dag_id AND r.state = 'running')";
        let row = self.query_one(sql, params![&parsed.dag_id]).await?;
        row.map_or(Ok(false), |mut row| row.next())
    }

    /// Marks DAGs of a file that are not among `present` as stale. Returns those that changed.
    ///
    /// # Errors
    /// As the database says.
    pub async fn retire_missing_dags(
        &mut self,
        file: &FileKey,
        present: &[DagId],
        now: Timestamp,
    ) -> Result<Vec<DagId>, StoreError> {
        let sql = "SELECT dag_id FROM dag WHERE relative_fileloc = ? AND bundle_name = ? AND is_stale = 0";
        let mut gone = Vec::new();
        for mut row in self.query(sql, params![&file.path, &file.bundle]).await? {
            let dag_id: DagId = row.next()?;
            if !present.contains(&dag_id) {
                gone.push(dag_id);
            }
        }
        for dag_id in &gone {
            self.execute("UPDATE dag SET is_stale = 1 WHERE dag_id = ?", params![dag_id])
                .await?;
            self.drop_asset_references(dag_id, now).await?;
        }
        Ok(gone)
    }

    /// Notes whether the DAGs of a file are hidden behind an import error.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_import_error_flag(&mut self, file: &FileKey, broken: bool) -> Result<(), StoreError> {
        let sql = "UPDATE dag SET has_import_errors = ? WHERE relative_fileloc = ? AND bundle_name = ?";
        self.execute(sql, params![broken, &file.path, &file.bundle])
            .await
            .map(|_| ())
    }

    /// Deletes a DAG and everything that belongs to it. Whether there was one.
    ///
    /// # Errors
    /// As the database says.
    pub async fn delete_dag(&mut self, dag_id: &DagId) -> Result<bool, StoreError> {
        let runs = self
            .query("SELECT id FROM dag_run WHERE dag_id = ?", params![dag_id])
            .await?;
        for mut row in runs {
            self.delete_run(row.next()?).await?;
        }
        for table in [
            "dag_version",
            "asset_reference",
            "asset_queue",
            "asset_watcher",
            "backfill",
            "timetable_question",
            "partition_queue",
        ] {
            self.execute(&format!("DELETE FROM {table} WHERE dag_id = ?"), params![dag_id])
                .await?;
        }
        self.activate_assets().await?;
        // A file that is still there is read again, and brings the DAG back.
        if let Some(dag) = self.dag(dag_id).await? {
            self.wake_file(&dag.file()).await?;
        }
        Ok(self
            .execute("DELETE FROM dag WHERE dag_id = ?", params![dag_id])
            .await?
            .rows
            == 1)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The parameters for a list of ids.
pub(crate) fn id_values<T: Copy + Into<Value>>(ids: &[T]) -> Vec<Value> {
    ids.iter().map(|id| (*id).into()).collect()
}
