//! Tokens of people who have logged out.

use crate::App;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use identity::{TokenError, UserToken};
use model::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};
use store::StoreError;

/// Hashes of the tokens, as read from the store a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Revoked {
    hashes: RwLock<HashSet<String>>,
}

fn hash(token: &str) -> String {
    let digest = Sha256::digest(token.as_bytes());
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// When a token that has been checked ends by itself.
fn end_of(token: &str) -> Option<Timestamp> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let payload: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    chrono::DateTime::from_timestamp(payload["exp"].as_i64()?, 0)
}

impl Revoked {
    /// Returns `true` if its owner has logged out.
    fn has(&self, token: &str) -> bool {
        let hashes = self.hashes.read().unwrap_or_else(PoisonError::into_inner);
        !hashes.is_empty() && hashes.contains(&hash(token))
    }
}

impl App {
    /// The user that a token is about: the one way in which any door lets users in.
    ///
    /// # Errors
    /// When it is expired, no user's token of ours, or its owner has logged out.
    pub(crate) fn user_of(&self, token: &str) -> Result<UserToken, TokenError> {
        let user = self.tokens.user(token)?;
        if self.revoked.has(token) {
            return Err(TokenError::Invalid);
        }
        Ok(user)
    }
}

/// Makes a token, one of ours, good no more: here at once, elsewhere within seconds.
pub(crate) async fn revoke(app: &App, token: &str) -> Result<(), StoreError> {
    let Some(ends_at) = end_of(token).filter(|_| app.tokens.user(token).is_ok()) else {
        return Ok(());
    };
    let (hash, now) = (hash(token), Utc::now());
    store::transact!(app.store, "revoke token", |tx| tx
        .revoke_token(&hash, ends_at, now)
        .await)?;
    let mut hashes = app.revoked.hashes.write().unwrap_or_else(PoisonError::into_inner);
    hashes.insert(hash);
    Ok(())
}

/// Reads anew which tokens are good no more.
pub(crate) async fn refresh(app: &App) -> Result<(), StoreError> {
    let read = app.store.reader().await?.revoked_tokens(Utc::now()).await?;
    let mut hashes = app.revoked.hashes.write().unwrap_or_else(PoisonError::into_inner);
    *hashes = read.into_iter().collect();
    Ok(())
}
