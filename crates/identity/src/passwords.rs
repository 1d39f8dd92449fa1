//! Passwords of the simple auth manager: a JSON file `{"admin": "..."}`, read anew at each login.

use config::{Secret, SimpleUser};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;

const LENGTH: usize = 16;

/// The file of passwords cannot be used.
#[derive(Debug, Error)]
#[error("the passwords file {path}: {problem}")]
pub struct PasswordError {
    path: PathBuf,
    problem: String,
}

/// The file of passwords.
#[derive(Debug, Clone)]
pub struct Passwords {
    path: PathBuf,
}

impl Passwords {
    /// In that file.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    fn error(&self, problem: &dyn std::fmt::Display) -> PasswordError {
        PasswordError {
            path: self.path.clone(),
            problem: problem.to_string(),
        }
    }

    fn read(&self) -> Result<BTreeMap<String, String>, PasswordError> {
        match std::fs::read_to_string(&self.path) {
            Ok(text) if text.trim().is_empty() => Ok(BTreeMap::new()),
            Ok(text) => serde_json::from_str(&text).map_err(|error| self.error(&error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(self.error(&error)),
        }
    }

    /// Makes up a password for every user who has none, and returns the passwords of all.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn ensure(&self, users: &[SimpleUser]) -> Result<Vec<(String, Secret)>, PasswordError> {
        let mut known = self.read()?;
        let mut changed = false;
        for user in users {
            if !known.contains_key(&user.name) {
                known.insert(user.name.clone(), make_up());
                changed = true;
            }
        }
        if changed {
            self.write(&known)?;
        }
        let of = |user: &SimpleUser| {
            known
                .get(&user.name)
                .map(|p| (user.name.clone(), Secret::new(p.as_str())))
        };
        Ok(users.iter().filter_map(of).collect())
    }

    fn write(&self, passwords: &BTreeMap<String, String>) -> Result<(), PasswordError> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| self.error(&error))?;
        }
        let text = serde_json::to_string(passwords).map_err(|error| self.error(&error))?;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&self.path).map_err(|error| self.error(&error))?;
        file.write_all(text.as_bytes())
            .map_err(|error| self.error(&error))
    }

    /// Whether that is the user's password. Takes as long for a wrong one as for a right one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn check(&self, user: &str, password: &str) -> Result<bool, PasswordError> {
        let known = self.read()?;
        let expected = known.get(user).map_or("", String::as_str);
        let same_length = expected.len() == password.len();
        let difference = expected
            .bytes()
            .chain(std::iter::repeat(0))
            .zip(password.bytes())
            .fold(0u8, |difference, (a, b)| difference | (a ^ b));
        Ok(known.contains_key(user) && same_length && difference == 0)
    }
}

fn make_up() -> String {
    const ALPHABET: &[u8] = b"abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    (0..LENGTH)
        .map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_made_up_once_and_kept_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let passwords = Passwords::new(&folder.path().join("p.json"));
        let users = [SimpleUser {
            name: "admin".to_owned(),
            role: "admin".to_owned(),
        }];
        let first = passwords.ensure(&users).unwrap();
        assert_eq!(first, passwords.ensure(&users).unwrap());
        let secret = first[0].1.expose();
        assert!(passwords.check("admin", secret).unwrap());
        assert!(!passwords.check("admin", "wrong").unwrap());
        assert!(!passwords.check("nobody", "").unwrap());
        let mode = std::fs::metadata(folder.path().join("p.json"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
