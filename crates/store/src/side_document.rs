//! What the side documents of native tasks hold back from readers of the database.
//!
//! A task's `sealed` text (the private environment of a container, say) is stored encrypted, as variables are.

use crate::{Cipher, StoreError};
use serde_json::{Map, Value, json};

const SEALED: &str = "sealed";

/// The side documents of a DAG as they are stored.
pub fn seal(native: String, cipher: &Cipher) -> String {
    let Ok(mut document) = model::json::read(&native) else {
        return native;
    };
    let mut changed = false;
    let tasks = document.get_mut("tasks").and_then(Value::as_object_mut);
    for task in tasks.into_iter().flat_map(Map::values_mut) {
        if let Some(Value::String(text)) = task.get(SEALED) {
            let (value, is_encrypted) = cipher.seal(text);
            task[SEALED] = json!({"value": value, "is_encrypted": is_encrypted});
            changed = true;
        }
    }
    if changed { document.to_string() } else { native }
}

/// The side document of one task as the worker needs it.
///
/// # Errors
/// When it was stored with a key that we do not have.
pub fn open(task: &Value, cipher: &Cipher) -> Result<String, StoreError> {
    let Some(sealed) = task.get(SEALED).filter(|sealed| sealed.is_object()) else {
        return Ok(task.to_string());
    };
    let value = sealed.get("value").and_then(Value::as_str).unwrap_or_default();
    let is_encrypted = sealed.get("is_encrypted") == Some(&Value::Bool(true));
    let mut task = task.clone();
    task[SEALED] = cipher.open(value.to_owned(), is_encrypted)?.into();
    Ok(task.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_unreadable_at_rest_and_whole_for_the_worker() {
        let native =
            json!({"tasks": {"a": {"operator": "docker", "sealed": "hunter2"}, "b": {"sealed": null}}});
        let cipher = Cipher::new(&Cipher::new_key()).unwrap();
        let stored = seal(native.to_string(), &cipher);
        assert!(!stored.contains("hunter2"));
        let stored: Value = serde_json::from_str(&stored).unwrap();
        let opened: Value = serde_json::from_str(&open(&stored["tasks"]["a"], &cipher).unwrap()).unwrap();
        assert_eq!(opened, native["tasks"]["a"]);
        assert!(open(&stored["tasks"]["a"], &Cipher::default()).is_err());
    }
}
