//! The secrets that one task has seen, replaced wherever they come up in its log.

use crate::Names;
use crate::names::HIDDEN;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use model::json::dumps_text;
use model::python_text::repr_text;
use serde_json::Value;
use std::sync::{Mutex, PoisonError};

/// Common words that are never masked, whoever says that they are secret.
const NEVER: &str = "airflow";

/// Remembers secrets and replaces them in texts. Each is found as it is, and also in base64, quoted for a URL, and escaped
/// as JSON and Python escape it.
#[derive(Debug, Default)]
pub struct Masker {
    names: Names,
    shortest: usize,
    secrets: Mutex<Vec<String>>,
}

impl Masker {
    /// A masker that knows no secret yet. Values of fewer than `shortest` characters are not masked
    /// (`[logging] min_length_masked_secret`).
    pub fn new(names: Names, shortest: usize) -> Self {
        Self {
            names,
            shortest: shortest.max(1),
            secrets: Mutex::default(),
        }
    }

    /// The names that this masker goes by.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Remembers a value. With a name, only if the name is sensitive; what is within an object goes by its own name.
    pub fn add(&self, value: &Value, name: Option<&str>) {
        match value {
            Value::String(text) => {
                if name.is_none_or(|name| name.is_empty() || self.names.is_sensitive(name)) {
                    self.add_text(text);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.add(item, name)),
            Value::Object(fields) => fields.iter().for_each(|(key, item)| self.add(item, Some(key))),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Remembers what is secret of a connection (`ConnectionResult`): its password, and its extra by the names in it.
    pub fn add_connection(&self, connection: &Value) {
        if let Some(password) = connection.get("password").filter(|password| password.is_string()) {
            self.add(password, None);
        }
        let extra = connection.get("extra").and_then(Value::as_str);
        if let Some(extra) = extra.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
            self.add(&extra, None);
        }
    }

    fn add_text(&self, text: &str) {
        if text.chars().count() < self.shortest || text.eq_ignore_ascii_case(NEVER) {
            return;
        }
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        for form in forms(text) {
            let is_long = form.chars().count() >= self.shortest;
            if is_long && !secrets.contains(&form) {
                secrets.push(form);
            }
        }
        // Longer ones first, so that a secret within another leaves nothing of the other behind.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }

    /// The text with every secret replaced.
    pub fn mask(&self, text: String) -> String {
        let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.iter().fold(text, |text, secret| {
            if text.contains(secret) {
                text.replace(secret, HIDDEN)
            } else {
                text
            }
        })
    }

    /// Replaces every secret in the texts of a value; names of fields stay.
    pub fn mask_value(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.mask(std::mem::take(text)),
            Value::Array(items) => items.iter_mut().for_each(|item| self.mask_value(item)),
            Value::Object(fields) => fields.values_mut().for_each(|item| self.mask_value(item)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// The ways in which a secret is commonly written.
fn forms(text: &str) -> Vec<String> {
    let inside = |quoted: &str| quoted[1..quoted.len() - 1].to_owned();
    let json = Value::from(text).to_string();
    let mut forms = vec![
        text.to_owned(),
        inside(&json),
        inside(&dumps_text(text)),
        inside(&repr_text(text)),
        quoted(text, "/"),
        quoted(text, ""),
        quoted(text, " ").replace(' ', "+"),
    ];
    for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
        forms.push(engine.encode(text));
    }
    forms
}

/// Python's `urllib.parse.quote(text, safe)`.
fn quoted(text: &str, safe: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "_.-~".contains(c) || (c.is_ascii() && safe.contains(c)) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn masker() -> Masker {
        Masker::new(Names::default(), 5)
    }

    #[test]
    fn secrets_are_masked_in_every_form_and_plain_values_are_not() {
        let masker = masker();
        masker.add(&json!("p\"ss wörd/?"), None);
        let forms = [
            "p\"ss wörd/?",
            r#"p\"ss wörd/?"#,
            r#"p\"ss w\u00f6rd/?"#,
            "p%22ss%20w%C3%B6rd/%3F",
            "p%22ss%20w%C3%B6rd%2F%3F",
            "p%22ss+w%C3%B6rd%2F%3F",
            "cCJzcyB3w7ZyZC8/",
            "cCJzcyB3w7ZyZC8_",
        ];
        for form in forms {
            assert_eq!(masker.mask(format!("a {form} b")), "a *** b", "{form}");
        }
        assert_eq!(masker.mask("p ss".to_owned()), "p ss");
    }

    #[test]
    fn values_are_secret_by_their_own_name() {
        let masker = masker();
        masker.add(
            &json!({"password": "hunter2!", "host": "db.example", "nested": {"api_key": ["abcdef"]}}),
            None,
        );
        masker.add(&json!("visible"), Some("greeting"));
        masker.add(&json!(["tiny", "Airflow"]), None);
        let mut value = json!({"hunter2!": ["hunter2!", {"x": "abcdef visible"}], "n": 1, "t": "tiny airflow db.example"});
        masker.mask_value(&mut value);
        assert_eq!(
            value,
            json!({"hunter2!": ["***", {"x": "*** visible"}], "n": 1, "t": "tiny airflow db.example"})
        );
    }

    #[test]
    fn the_shortest_secret_is_as_long_as_the_options_say() {
        let masker = Masker::new(Names::default(), 3);
        masker.add(&json!("abc"), None);
        masker.add(&json!("xy"), None);
        assert_eq!(masker.mask("abc xy".to_owned()), "*** xy");
    }
}
