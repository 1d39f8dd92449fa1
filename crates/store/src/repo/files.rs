//! DAG files: what was parsed, and what could not be.

use super::news::News;
use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::Timestamp;

/// A file as it was when it was parsed last.
#[derive(Debug, Clone, PartialEq)]
pub struct FileRecord {
    /// Path within the bundle.
    pub path: String,
    /// Hash of its content and of what it imported from the bundle.
    pub fingerprint: String,
    /// Paths within the bundle of the modules that it imported (JSON list).
    pub imports: String,
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
        let rows = self
            .query(
                "SELECT path, fingerprint, imports FROM dag_file ORDER BY path",
                &[],
            )
            .await?;
        let read = |mut row: Row| {
            Ok(FileRecord {
                path: row.next()?,
                fingerprint: row.next()?,
                imports: row.next()?,
            })
        };
        rows.into_iter().map(read).collect()
    }

    /// Notes that a file was parsed.
    ///
    /// # Errors
    /// As the database says.
    pub async fn save_file(
        &mut self,
        file: &FileRecord,
        now: Timestamp,
        seconds: f64,
    ) -> Result<(), StoreError> {
        let tail = self
            .dialect()
            .on_duplicate("path", &["fingerprint", "imports", "parsed_at", "parse_duration"]);
        let sql = format!(
            "INSERT INTO dag_file (path, fingerprint, imports, parsed_at, parse_duration) VALUES (?, ?, ?, ?, ?){tail}"
        );
        self.execute(
            &sql,
            params![&file.path, &file.fingerprint, &file.imports, now, seconds],
        )
        .await
        .map(|_| ())
    }

    /// Forgets a file: so that it is parsed again, or because it is gone.
    ///
    /// # Errors
    /// As the database says.
    pub async fn forget_file(&mut self, path: &str) -> Result<(), StoreError> {
        self.execute("DELETE FROM dag_file WHERE path = ?", params![path])
            .await
            .map(|_| ())
    }

    /// Stores or clears the import error of a file.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_import_error(
        &mut self,
        path: &str,
        bundle_name: &str,
        fileloc: &str,
        stack_trace: Option<&str>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(stack_trace) = stack_trace else {
            return self
                .execute("DELETE FROM import_error WHERE path = ?", params![path])
                .await
                .map(|_| ());
        };
        let hooks = self.listeners().await?;
        if !hooks.is_empty() {
            let sql = "SELECT id FROM import_error WHERE path = ?";
            let is_new = self.query_one(sql, params![path]).await?.is_none();
            let news = News::ImportError {
                is_new,
                path: fileloc,
                stack_trace,
            };
            self.tell(&hooks, &news, now).await?;
        }
        let tail = self
            .dialect()
            .on_duplicate("path", &["bundle_name", "fileloc", "stack_trace", "created_at"]);
        let sql = format!(
            "INSERT INTO import_error (path, bundle_name, fileloc, stack_trace, created_at) VALUES (?, ?, ?, ?, ?){tail}"
        );
        self.execute(&sql, params![path, bundle_name, fileloc, stack_trace, now])
            .await
            .map(|_| ())
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
