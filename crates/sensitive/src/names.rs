//! Names of variables, fields and extras whose values are secrets.

use serde_json::Value;

/// What is shown in the place of a secret.
pub(crate) const HIDDEN: &str = "***";

/// Words in a name that make its value a secret (`DEFAULT_SENSITIVE_FIELDS` of Airflow).
const WORDS: [&str; 22] = [
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
    "proxy_password",
    "proxies",
    "secret",
    "service_account",
    "service_key",
    "token",
    "keyfile_dict",
    "webhook_url",
];

/// Decides by name whether a value is a secret.
#[derive(Debug, Clone)]
pub struct Names {
    hides: bool,
    words: Vec<String>,
}

impl Names {
    /// Names as the options say: `[core] hide_sensitive_var_conn_fields` and `[core] sensitive_var_conn_names`.
    pub fn new(hides: bool, more: &[String]) -> Self {
        let own = WORDS.iter().map(|word| (*word).to_owned());
        // As they are written: Airflow compares them with names in lower case, too.
        let more = more.iter().map(|word| word.trim().to_owned());
        Self {
            hides,
            words: own.chain(more.filter(|word| !word.is_empty())).collect(),
        }
    }

    /// Returns `true` if the value of this name is to be hidden. What is no letter, digit or underscore counts as an
    /// underscore: `api-key` is `api_key`.
    pub fn is_sensitive(&self, name: &str) -> bool {
        if !self.hides {
            return false;
        }
        let mut normal = String::with_capacity(name.len());
        for c in name.trim().to_lowercase().chars() {
            if c.is_alphanumeric() || c == '_' {
                normal.push(c);
            } else if !normal.ends_with('\u{0}') {
                normal.push('\u{0}');
            }
        }
        let normal = normal.replace('\u{0}', "_");
        self.words.iter().any(|word| normal.contains(word.as_str()))
    }

    /// The value without the texts that its own name, or a name within it, makes secret.
    pub fn redact(&self, value: &Value, name: Option<&str>) -> Value {
        if name.is_some_and(|name| self.is_sensitive(name)) {
            return hide(value);
        }
        match value {
            Value::Array(items) => items.iter().map(|item| self.redact(item, None)).collect(),
            Value::Object(fields) => fields
                .iter()
                .map(|(key, item)| (key.clone(), self.redact(item, Some(key))))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
        }
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::new(true, &[])
    }
}

/// The value with every text in it hidden.
fn hide(value: &Value) -> Value {
    match value {
        Value::String(_) => HIDDEN.into(),
        Value::Array(items) => items.iter().map(hide).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, item)| (key.clone(), hide(item)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_sensitive_by_the_words_in_them_and_by_those_of_the_options() {
        let names = Names::new(true, &["pin ".to_owned(), "HOST".to_owned(), String::new()]);
        for name in ["API-KEY", "db_password", "x.secret", "my pin", " Token"] {
            assert!(names.is_sensitive(name), "{name}");
        }
        assert!(!names.is_sensitive("host") && !Names::default().is_sensitive("my pin"));
        assert!(!Names::new(false, &[]).is_sensitive("password"));
    }

    #[test]
    fn what_is_under_a_sensitive_name_is_hidden_at_any_depth() {
        let value =
            json!({"API_KEY": {"a": ["x", 1], "b": null}, "list": [{"password": "p"}, "shown"], "n": 1});
        assert_eq!(
            Names::default().redact(&value, Some("environment")),
            json!({"API_KEY": {"a": ["***", 1], "b": null}, "list": [{"password": "***"}, "shown"], "n": 1})
        );
    }
}
