//! DAG files: what was parsed, and what could not be.

use super::dags::hex;
use super::news::News;
use crate::sql::{Row, Value, placeholders};
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::{DagId, Timestamp};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

/// Names a DAG file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey {
    /// Name of its bundle.
    pub bundle: String,
    /// Path within the bundle.
    pub path: String,
}

impl FileKey {
    /// The file of this bundle with this path.
    pub fn new(bundle: impl Into<String>, path: impl Into<String>) -> Self {
        Self {
            bundle: bundle.into(),
            path: path.into(),
        }
    }

    /// Together, name and path are too long for a key of MariaDB.
    fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.bundle.as_bytes());
        hasher.update([0]);
        hasher.update(self.path.as_bytes());
        hex(&hasher.finalize()[..16])
    }
}

impl fmt::Display for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.bundle, self.path)
    }
}

/// A file as it was when it was parsed last.
#[derive(Debug, Clone, PartialEq)]
pub struct FileRecord {
    /// Which file.
    pub key: FileKey,
    /// Hash of its content and of all that it depended on. Empty when it is to be parsed again.
    pub fingerprint: String,
    /// What it depended on (JSON list); empty when that is not known.
    pub dependencies: String,
    /// How many times in a row it could not be imported.
    pub failures: u32,
    /// When it was parsed.
    pub parsed_at: Timestamp,
    /// How long that took, in seconds.
    pub parse_duration: f64,
}

/// A file that could not be imported.
#[derive(Debug, Clone)]
pub struct ImportErrorRecord {
    /// Number.
    pub id: i64,
    /// Path within the bundle.
    pub path: String,
    /// Name of the bundle.
    pub bundle_name: String,
    /// Absolute path.
    pub fileloc: String,
    /// What Python said.
    pub stack_trace: String,
    /// When.
    pub created_at: Timestamp,
}

/// Settings of variables and connections by key: each time that one is set it gets another version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretVersions {
    /// Of variables.
    pub variables: HashMap<String, String>,
    /// Of connections.
    pub connections: HashMap<String, String>,
}

/// What the import error of a file says when another one has the same DAG; the other's path follows.
pub fn duplicate_words(dag_id: &DagId) -> String {
    format!("AirflowDagDuplicatedIdException: DAG {dag_id} is already defined in ")
}

const ERROR_COLUMNS: &str = "id, path, bundle_name, fileloc, stack_trace, created_at";

fn read_error(mut row: Row) -> Result<ImportErrorRecord, StoreError> {
    Ok(ImportErrorRecord {
        id: row.next()?,
        path: row.next()?,
        bundle_name: row.next()?,
        fileloc: row.next()?,
        stack_trace: row.next()?,
        created_at: row.next()?,
    })
}

impl Tx {
    /// All files that were parsed.
    ///
    /// # Errors
    /// As the database says.
    pub async fn files(&mut self) -> Result<Vec<FileRecord>, StoreError> {
        let sql = "SELECT bundle_name, path, fingerprint, dependencies, failures, parsed_at, parse_duration \
                   FROM bundle_file ORDER BY bundle_name, path";
        let read = |mut row: Row| {
            Ok(FileRecord {
                key: FileKey::new(row.next::<String>()?, row.next::<String>()?),
                fingerprint: row.next()?,
                dependencies: row.next()?,
                failures: row.next()?,
                parsed_at: row.next()?,
                parse_duration: row.next()?,
            })
        };
        self.query(sql, &[]).await?.into_iter().map(read).collect()
    }

    /// Returns `true` if any file is to be parsed again although it did not change.
    ///
    /// # Errors
    /// As the database says.
    pub async fn files_are_asked_for(&mut self) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM bundle_file WHERE fingerprint = '' LIMIT 1";
        Ok(self.query_one(sql, &[]).await?.is_some())
    }

    /// Notes that a file was parsed.
    ///
    /// # Errors
    /// As the database says.
    pub async fn save_file(&mut self, file: &FileRecord) -> Result<(), StoreError> {
        let tail = self.dialect().on_duplicate(
            "key_hash",
            &[
                "fingerprint",
                "dependencies",
                "failures",
                "parsed_at",
                "parse_duration",
            ],
        );
        let sql = format!(
            "INSERT INTO bundle_file (key_hash, bundle_name, path, fingerprint, dependencies, failures, parsed_at, \
             parse_duration) VALUES (?, ?, ?, ?, ?, ?, ?, ?){tail}"
        );
        let values = params![
            file.key.hash(),
            &file.key.bundle,
            &file.key.path,
            &file.fingerprint,
            &file.dependencies,
            file.failures,
            file.parsed_at,
            file.parse_duration
        ];
        self.execute(&sql, values).await.map(|_| ())
    }

    /// Takes a file that did not change, to parse it once more: of several DAG processors that saw it at the same time,
    /// one gets `true`.
    ///
    /// # Errors
    /// As the database says.
    pub async fn take_file(&mut self, file: &FileRecord, now: Timestamp) -> Result<bool, StoreError> {
        let sql =
            "UPDATE bundle_file SET parsed_at = ? WHERE key_hash = ? AND parsed_at = ? AND parsed_at < ?";
        let values = params![now, file.key.hash(), file.parsed_at, now];
        Ok(self.execute(sql, values).await?.rows == 1)
    }

    /// Lets files be parsed again that could not have one of these DAGs because another file had it.
    ///
    /// # Errors
    /// As the database says.
    pub async fn wake_duplicates(&mut self, dag_ids: &[DagId]) -> Result<(), StoreError> {
        for dag_id in dag_ids {
            let sql = "UPDATE bundle_file SET fingerprint = '', failures = 0 WHERE key_hash IN \
                       (SELECT file_hash FROM import_error WHERE stack_trace LIKE ?)";
            let words = format!("%{}%", duplicate_words(dag_id));
            self.execute(sql, params![words]).await?;
        }
        Ok(())
    }

    /// Lets a file be parsed again at the next look.
    ///
    /// # Errors
    /// As the database says.
    pub async fn wake_file(&mut self, file: &FileKey) -> Result<(), StoreError> {
        let sql = "UPDATE bundle_file SET fingerprint = '', failures = 0 WHERE key_hash = ?";
        self.execute(sql, params![file.hash()]).await.map(|_| ())
    }

    /// Which setting of each of these variables and connections is the current one; those that are absent are left out.
    ///
    /// # Errors
    /// As the database says.
    pub async fn secret_versions(
        &mut self,
        variables: &[String],
        connections: &[String],
    ) -> Result<SecretVersions, StoreError> {
        Ok(SecretVersions {
            variables: self.versions("variable", "var_key", variables).await?,
            connections: self.versions("connection", "conn_id", connections).await?,
        })
    }

    async fn versions(
        &mut self,
        table: &str,
        key: &str,
        wanted: &[String],
    ) -> Result<HashMap<String, String>, StoreError> {
        let mut found = HashMap::new();
        for some in wanted.chunks(500) {
            let marks = placeholders(some.len());
            let sql = format!("SELECT {key}, COALESCE(version, '') FROM {table} WHERE {key} IN ({marks})");
            let values: Vec<Value> = some.iter().map(|key| key.as_str().into()).collect();
            for mut row in self.query(&sql, &values).await? {
                found.insert(row.next()?, row.next()?);
            }
        }
        Ok(found)
    }

    /// Forgets a file: so that it is parsed again, or because it is gone.
    ///
    /// # Errors
    /// As the database says.
    pub async fn forget_file(&mut self, file: &FileKey) -> Result<(), StoreError> {
        self.execute("DELETE FROM bundle_file WHERE key_hash = ?", params![file.hash()])
            .await
            .map(|_| ())
    }

    /// Stores or clears the import error of a file.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_import_error(
        &mut self,
        file: &FileKey,
        fileloc: &str,
        stack_trace: Option<&str>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(stack_trace) = stack_trace else {
            return self
                .execute(
                    "DELETE FROM import_error WHERE file_hash = ?",
                    params![file.hash()],
                )
                .await
                .map(|_| ());
        };
        let hooks = self.listeners().await?;
        if !hooks.is_empty() {
            let sql = "SELECT id FROM import_error WHERE file_hash = ?";
            let is_new = self.query_one(sql, params![file.hash()]).await?.is_none();
            let news = News::ImportError {
                is_new,
                path: fileloc,
                stack_trace,
            };
            self.tell(&hooks, &news, now).await?;
        }
        let tail = self
            .dialect()
            .on_duplicate("file_hash", &["fileloc", "stack_trace", "created_at"]);
        let sql = format!(
            "INSERT INTO import_error (file_hash, path, bundle_name, fileloc, stack_trace, created_at) \
             VALUES (?, ?, ?, ?, ?, ?){tail}"
        );
        let values = params![file.hash(), &file.path, &file.bundle, fileloc, stack_trace, now];
        self.execute(&sql, values).await.map(|_| ())
    }

    /// Notes which version of its files a bundle has: what its DAGs run with from now on.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_bundle_version(
        &mut self,
        bundle: &str,
        version: Option<&str>,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE dag_version SET bundle_version = ? WHERE id IN \
                   (SELECT version_id FROM dag WHERE bundle_name = ? AND is_stale = 0)";
        self.execute(sql, params![version.map(str::to_owned), bundle])
            .await
            .map(|_| ())
    }

    /// The files that have DAGs or import errors although none of these files is there: they are gone, or their bundle is.
    ///
    /// # Errors
    /// As the database says.
    pub async fn files_without(&mut self, present: &HashSet<FileKey>) -> Result<Vec<FileKey>, StoreError> {
        // What an earlier version noted has no hash, and is noted again when its file is parsed.
        self.execute("DELETE FROM import_error WHERE file_hash IS NULL", &[])
            .await?;
        let mut gone = BTreeSet::new();
        for sql in [
            "SELECT DISTINCT bundle_name, relative_fileloc FROM dag WHERE is_stale = 0",
            "SELECT bundle_name, path FROM import_error",
            "SELECT bundle_name, path FROM bundle_file",
        ] {
            for mut row in self.query(sql, &[]).await? {
                let key = FileKey::new(row.next::<String>()?, row.next::<String>()?);
                if !present.contains(&key) {
                    gone.insert(key);
                }
            }
        }
        Ok(gone.into_iter().collect())
    }

    /// All import errors, oldest first.
    ///
    /// # Errors
    /// As the database says.
    pub async fn import_errors(&mut self) -> Result<Vec<ImportErrorRecord>, StoreError> {
        let sql = format!("SELECT {ERROR_COLUMNS} FROM import_error ORDER BY id");
        self.query(&sql, &[]).await?.into_iter().map(read_error).collect()
    }

    /// One import error.
    ///
    /// # Errors
    /// As the database says.
    pub async fn import_error(&mut self, id: i64) -> Result<Option<ImportErrorRecord>, StoreError> {
        let sql = format!("SELECT {ERROR_COLUMNS} FROM import_error WHERE id = ?");
        self.query_one(&sql, params![id])
            .await?
            .map(read_error)
            .transpose()
    }
}
