//! Tokens of people who have logged out.

use crate::unit_of_work::Tx;
use crate::{StoreError, params};
use model::Timestamp;

/// Tokens that are kept; beyond it those go first that end first.
const MOST: i64 = 10_000;

impl Tx {
    /// Notes that a token is good no more; `hash` has at most 50 characters.
    ///
    /// # Errors
    /// As the database says.
    pub async fn revoke_token(
        &mut self,
        hash: &str,
        ends_at: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.execute("DELETE FROM revoked_token WHERE ends_at < ?", params![now])
            .await?;
        let count = self.query_one("SELECT COUNT(*) FROM revoked_token", &[]).await?;
        let count: i64 = count.map_or(Ok(0), |mut row| row.next())?;
        if count >= MOST {
            let sql = "SELECT ends_at FROM revoked_token ORDER BY ends_at LIMIT 1 OFFSET ?";
            let bound = self.query_one(sql, params![count - MOST]).await?;
            let bound: Option<Timestamp> = bound.map(|mut row| row.next()).transpose()?;
            if let Some(bound) = bound {
                self.execute("DELETE FROM revoked_token WHERE ends_at <= ?", params![bound])
                    .await?;
            }
        }
        let head = self.dialect().insert_ignore();
        let sql = format!("{head} revoked_token (token_hash, ends_at) VALUES (?, ?)");
        self.execute(&sql, params![hash, ends_at]).await.map(|_| ())
    }

    /// Hashes of the tokens that are good no more and have not ended by themselves.
    ///
    /// # Errors
    /// As the database says.
    pub async fn revoked_tokens(&mut self, now: Timestamp) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT token_hash FROM revoked_token WHERE ends_at >= ?";
        let rows = self.query(sql, params![now]).await?;
        rows.into_iter().map(|mut row| row.next()).collect()
    }
}
