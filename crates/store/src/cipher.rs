//! Encryption of variables and connections at rest, in Airflow's format (Fernet).

use crate::StoreError;
use fernet::{Fernet, MultiFernet};
use std::sync::Arc;

/// Encrypts with the first key, decrypts with any; without keys it leaves values as they are, as Airflow does.
#[derive(Clone, Default)]
pub struct Cipher {
    keys: Option<Arc<MultiFernet>>,
}

impl Cipher {
    /// Keys separated by commas, the newest first; empty for no encryption.
    ///
    /// # Errors
    /// When one is not a Fernet key.
    pub fn new(keys: &str) -> Result<Self, StoreError> {
        let keys: Vec<&str> = keys
            .split(',')
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .collect();
        if keys.is_empty() {
            return Ok(Self::default());
        }
        let bad = || {
            StoreError::Secret(
                "[core] fernet_key is not a Fernet key (32 bytes in URL-safe base64)".to_owned(),
            )
        };
        let keys = keys
            .into_iter()
            .map(|key| Fernet::new(key).ok_or_else(bad))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            keys: Some(Arc::new(MultiFernet::new(keys))),
        })
    }

    /// A key that nobody has yet.
    pub fn new_key() -> String {
        Fernet::generate_key()
    }

    /// The value as stored, and whether it is encrypted.
    pub fn seal(&self, value: &str) -> (String, bool) {
        match &self.keys {
            Some(keys) => (keys.encrypt(value.as_bytes()), true),
            None => (value.to_owned(), false),
        }
    }

    /// The value behind what is stored.
    ///
    /// # Errors
    /// When it is encrypted with another key, or no key is configured.
    pub fn open(&self, stored: String, is_encrypted: bool) -> Result<String, StoreError> {
        if !is_encrypted {
            return Ok(stored);
        }
        let broken = |why: &str| StoreError::Secret(format!("a stored secret cannot be decrypted: {why}"));
        let keys = self
            .keys
            .as_ref()
            .ok_or_else(|| broken("[core] fernet_key is not set"))?;
        let bytes = keys
            .decrypt(&stored)
            .map_err(|_| broken("[core] fernet_key is another one than it was stored with"))?;
        String::from_utf8(bytes).map_err(|_| broken("it is not text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_again_also_after_a_key_rotation() {
        let (old, new) = (Fernet::generate_key(), Fernet::generate_key());
        let (sealed, encrypted) = Cipher::new(&old).unwrap().seal("s3cret");
        assert!(encrypted && !sealed.contains("s3cret"));
        let rotated = Cipher::new(&format!("{new},{old}")).unwrap();
        assert_eq!(rotated.open(sealed.clone(), true).unwrap(), "s3cret");
        assert!(Cipher::new(&new).unwrap().open(sealed, true).is_err());
        assert!(Cipher::new("short").is_err());
    }
}
