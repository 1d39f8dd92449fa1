//! Keeps secrets out of logs.

use serde_json::Value;
use std::sync::{Mutex, PoisonError};

/// Shorter values are not masked, as in Airflow (`[logging] min_length_masked_secret`).
const SHORTEST: usize = 5;
/// Words in a name that make its value a secret (`airflow.sdk._shared.secrets_masker`).
const SENSITIVE: [&str; 21] = [
    "access_key",
    "access_token",
    "api_key",
    "apikey",
    "auth_header",
    "authorization",
    "bearer",
    "connection_string",
    "dsn",
    "passphrase",
    "passwd",
    "password",
    "private_key",
    "proxy",
    "proxies",
    "secret",
    "service_account",
    "service_key",
    "token",
    "keyfile_dict",
    "webhook_url",
];

/// Whether a name says that its value is a secret.
pub(crate) fn is_sensitive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SENSITIVE.iter().any(|word| name.contains(word))
}

/// The secrets that one try has seen.
#[derive(Default)]
pub(crate) struct Masker {
    secrets: Mutex<Vec<String>>,
}

impl Masker {
    /// Remembers a value, and the forms that it takes inside JSON text. With a name, only if the name is sensitive.
    pub(crate) fn add(&self, value: &Value, name: Option<&str>) {
        match value {
            Value::String(text) => {
                if name.is_none_or(is_sensitive) {
                    self.add_text(text);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.add(item, name)),
            Value::Object(fields) => fields.iter().for_each(|(key, item)| self.add(item, Some(key))),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Remembers what is secret of a connection (`ConnectionResult`): its password, and its extra by the names in it.
    pub(crate) fn add_connection(&self, connection: &Value) {
        if let Some(password) = connection.get("password").filter(|password| password.is_string()) {
            self.add(password, None);
        }
        let extra = connection.get("extra").and_then(Value::as_str);
        if let Some(extra) = extra.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
            self.add(&extra, None);
        }
    }

    fn add_text(&self, text: &str) {
        if text.len() < SHORTEST || text.eq_ignore_ascii_case("airflow") {
            return;
        }
        let escaped = Value::from(text).to_string();
        let escaped = escaped[1..escaped.len() - 1].to_owned();
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        for form in [text.to_owned(), escaped] {
            if !secrets.contains(&form) {
                secrets.push(form);
            }
        }
        // Longer ones first, so that a secret within another leaves nothing of the other behind.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }

    /// The text with every secret replaced.
    pub(crate) fn mask(&self, text: String) -> String {
        let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.iter().fold(text, |text, secret| {
            if text.contains(secret) {
                text.replace(secret, "***")
            } else {
                text
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_masked_in_every_form_and_plain_values_are_not() {
        let masker = Masker::default();
        masker.add(&json!("p\"ss-word"), None);
        masker.add(
            &json!({"password": "hunter2!", "host": "db.example", "nested": {"api_key": "abcdef"}}),
            None,
        );
        masker.add(&json!("visible"), Some("greeting"));
        let text = r#"p"ss-word p\"ss-word hunter2! db.example abcdef visible"#;
        assert_eq!(masker.mask(text.to_owned()), "*** *** *** db.example *** visible");
    }
}
