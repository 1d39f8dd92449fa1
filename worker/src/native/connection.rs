//! Connections of native tasks: those of the metadata database, read through the control plane.

use super::Settings;
use crate::Shared;
use crate::control::is_away;
use crate::log::TryLog;
use crate::run::Facts;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long a control plane that is away is waited for, and the pauses in between.
const AWAY: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// Why nobody can tell whether there is a connection.
pub(super) struct Untold(pub(super) String);

/// Whether a connection is looked for in this worker's environment or in a secrets backend first.
pub(super) fn is_elsewhere(settings: &Settings, conn_id: &str) -> bool {
    let variable = format!("AIRFLOW_CONN_{}", conn_id.to_uppercase());
    settings.has_secrets_backend || std::env::var_os(variable).is_some()
}

/// Reads a connection (`ConnectionResult`); `None` if there is none of that id. What is secret of it is masked in the log.
///
/// # Errors
/// When nobody can tell: the control plane fails.
pub(super) async fn read(
    shared: &Shared,
    facts: &Facts,
    log: &TryLog,
    conn_id: &str,
) -> Result<Option<Value>, Untold> {
    let request = json!({"type": "GetConnection", "conn_id": conn_id}).to_string();
    let begin = Instant::now();
    loop {
        let asked = shared
            .control
            .ask(&facts.start.token, request.clone().into_bytes())
            .await;
        let (problem, passes) = match asked {
            Ok(reply) => match serde_json::from_slice::<Value>(&reply.error) {
                Err(_) => return Ok(found(&reply.body, log)),
                Ok(error) => (error.to_string(), error.to_string().contains("503")),
            },
            Err(status) => (status.message().to_owned(), is_away(&status)),
        };
        if !passes || begin.elapsed() > AWAY {
            return Err(Untold(format!("connection {conn_id} cannot be read: {problem}")));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn found(body: &[u8], log: &TryLog) -> Option<Value> {
    let connection: Value = serde_json::from_slice(body).ok()?;
    let is_one = connection.get("type").and_then(Value::as_str) == Some("ConnectionResult");
    is_one.then(|| {
        log.masker().add_connection(&connection);
        connection
    })
}
