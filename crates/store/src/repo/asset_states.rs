//! What tasks keep with an asset (Airflow's asset state store): it outlives runs.

use crate::sql::Row;
use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::{AssetId, Timestamp};

/// A value kept with an asset.
#[derive(Debug, Clone)]
pub struct AssetStateRecord {
    /// Under which key.
    pub key: String,
    /// JSON.
    pub value: String,
    /// When it was written.
    pub updated_at: Timestamp,
    /// Who wrote it: JSON, as the REST API shows it.
    pub writer: Option<String>,
}

impl AssetStateRecord {
    fn read(mut row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            key: row.next()?,
            value: row.next()?,
            updated_at: row.next()?,
            writer: row.next()?,
        })
    }
}

impl Tx {
    /// All that is kept with an asset, by key.
    ///
    /// # Errors
    /// As the database says.
    pub async fn asset_states(&mut self, asset: AssetId) -> Result<Vec<AssetStateRecord>, StoreError> {
        let sql = "SELECT state_key, value, updated_at, writer FROM asset_state WHERE asset_id = ? ORDER BY state_key";
        let rows = self.query(sql, params![asset]).await?;
        rows.into_iter().map(AssetStateRecord::read).collect()
    }

    /// What is kept under a key.
    ///
    /// # Errors
    /// As the database says.
    pub async fn asset_state(
        &mut self,
        asset: AssetId,
        key: &str,
    ) -> Result<Option<AssetStateRecord>, StoreError> {
        let sql = "SELECT state_key, value, updated_at, writer FROM asset_state WHERE asset_id = ? AND state_key = ?";
        self.query_one(sql, params![asset, key])
            .await?
            .map(AssetStateRecord::read)
            .transpose()
    }

    /// Keeps a value (JSON) under a key, in place of the one before.
    ///
    /// # Errors
    /// As the database says.
    pub async fn set_asset_state(
        &mut self,
        asset: AssetId,
        key: &str,
        value: &str,
        writer: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let own = "asset_id, state_key";
        let tail = self
            .dialect()
            .on_duplicate(own, &["value", "updated_at", "writer"]);
        let sql = format!(
            "INSERT INTO asset_state ({own}, value, updated_at, writer) VALUES (?, ?, ?, ?, ?){tail}"
        );
        self.execute(&sql, params![asset, key, value, now, writer])
            .await
            .map(|_| ())
    }

    /// Forgets one key of an asset, or all of them.
    ///
    /// # Errors
    /// As the database says.
    pub async fn delete_asset_state(&mut self, asset: AssetId, key: Option<&str>) -> Result<(), StoreError> {
        let all = "DELETE FROM asset_state WHERE asset_id = ?";
        match key {
            Some(key) => {
                let sql = format!("{all} AND state_key = ?");
                self.execute(&sql, params![asset, key]).await?;
            }
            None => {
                self.execute(all, params![asset]).await?;
            }
        }
        Ok(())
    }
}
