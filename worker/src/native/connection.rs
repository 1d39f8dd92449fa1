//! Connections of native tasks: those of the metadata database, read through the control plane.

use crate::Shared;
use crate::run::Facts;
use serde_json::{Value, json};

/// Whether a connection is looked for in this worker's environment or in a secrets backend first.
pub(super) fn is_elsewhere(conn_id: &str) -> bool {
    let variable = format!("AIRFLOW_CONN_{}", conn_id.to_uppercase());
    [
        variable.as_str(),
        "AIRFLOW__SECRETS__BACKEND",
        "AIRFLOW__WORKERS__SECRETS_BACKEND",
    ]
    .iter()
    .any(|name| std::env::var_os(name).is_some())
}

/// Reads a connection (`ConnectionResult`); `None` if there is none of that id.
///
/// # Errors
/// When the control plane cannot be asked.
pub(super) async fn read(shared: &Shared, facts: &Facts, conn_id: &str) -> Result<Option<Value>, String> {
    let request = json!({"type": "GetConnection", "conn_id": conn_id}).to_string();
    let reply = shared
        .control
        .ask(&facts.start.token, request.into_bytes())
        .await
        .map_err(|status| format!("connection {conn_id} cannot be read: {}", status.message()))?;
    let connection: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let is_one = connection.get("type").and_then(Value::as_str) == Some("ConnectionResult");
    Ok(is_one.then_some(connection))
}
