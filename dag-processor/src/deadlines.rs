//! When deadlines are that cannot be known without Variables or Python.

use crate::Shared;
use crate::timetables::Unanswered;
use chrono::Duration;
use model::Timestamp;
use serde_json::{Value, json};
use store::StoreError;
use store::repo::{OpenDeadline, RunRecord};

/// How many deadlines are measured in one turn.
const MEASURES: i64 = 100;

/// A run as the REST API shows it.
pub(crate) fn shown(run: &RunRecord, dag_id: &str) -> Value {
    let when = |at: Option<Timestamp>| at.map(model::time::rest_format);
    let took = run
        .start_date
        .zip(run.end_date)
        .map(|(start, end)| (end - start).as_seconds_f64());
    json!({
        "dag_run_id": run.run_id, "dag_id": run.dag_id, "logical_date": when(run.logical_date),
        "queued_at": when(run.queued_at), "start_date": when(run.start_date), "end_date": when(run.end_date),
        "duration": took, "data_interval_start": when(run.data_interval_start),
        "data_interval_end": when(run.data_interval_end), "run_after": when(Some(run.run_after)),
        "last_scheduling_decision": when(run.last_decision_at), "run_type": run.run_type.as_str(),
        "state": run.state.as_str(), "triggered_by": run.triggered_by, "triggering_user_name": run.triggering_user,
        "conf": serde_json::from_str::<Value>(&run.conf).unwrap_or_default(), "note": run.note,
        "dag_versions": [{"id": run.version_id}], "bundle_version": null, "dag_display_name": dag_id,
        "partition_key": run.partition_key, "partition_date": when(run.partition_date),
    })
}

/// What is known of a deadline after asking.
enum Measured {
    /// From when on it counts where that was asked, and how long it is; without a length it is none.
    Known(Option<Timestamp>, Option<Duration>),
    /// Python is away.
    Later,
}

impl Shared {
    /// Asks what must be known of deadlines. One that goes without an answer is none, and that is told.
    pub(crate) async fn measure_deadlines(&self, now: Timestamp) -> Result<(), StoreError> {
        let open = self.store.reader().await?.open_deadlines(MEASURES).await?;
        for one in open {
            let Measured::Known(base, length) = self.measure(&one).await? else {
                continue;
            };
            store::transact!(self.store, "measure deadline", |tx| tx
                .set_deadline(one.id, base, length, now)
                .await)?;
        }
        Ok(())
    }

    async fn measure(&self, open: &OpenDeadline) -> Result<Measured, StoreError> {
        let length = match &open.variable {
            None => open.length,
            Some(variable) => self.seconds_in(variable).await?,
        };
        let Some(reference) = &open.reference else {
            return Ok(Measured::Known(None, length));
        };
        let run = self.store.reader().await?.run_by_key(open.run_key).await?;
        let Some(run) = run else {
            return Ok(Measured::Known(None, None));
        };
        let reference: Value = serde_json::from_str(reference).unwrap_or_default();
        let dag_run = shown(&run, run.dag_id.as_str());
        let question =
            json!({"kind": "deadline", "reference": reference, "dag_run": dag_run, "run_key": run.key.0});
        Ok(match self.ask(question).await {
            Ok(answer) => {
                let at = answer.get("at").and_then(Value::as_i64);
                let at = at.and_then(model::time::from_micros);
                Measured::Known(at, length.filter(|_| at.is_some()))
            }
            Err(Unanswered::Never(why)) => {
                tracing::error!(dag_id = %run.dag_id, run_id = %run.run_id, "a run has no deadline of this reference: {why}");
                Measured::Known(None, None)
            }
            Err(Unanswered::Later(why)) => {
                tracing::warn!("the reference of a deadline cannot be asked, trying again: {why}");
                Measured::Later
            }
        })
    }

    /// As many seconds as a Variable says.
    async fn seconds_in(&self, variable: &str) -> Result<Option<Duration>, StoreError> {
        let own = std::env::var(format!("AIRFLOW_VAR_{}", variable.to_uppercase())).ok();
        let value = match own {
            Some(value) => Some(value),
            None => match self.store.reader().await?.variable(variable, &self.cipher).await {
                Ok(found) => found.map(|found| found.value),
                // It cannot be decrypted; the database itself would say so again.
                Err(error) => {
                    tracing::error!(variable, "a Variable cannot be read: {error}");
                    None
                }
            },
        };
        let seconds = value.and_then(|text| text.trim().parse::<i64>().ok());
        if seconds.is_none() {
            tracing::error!(
                variable,
                "a run has no deadline: this Variable is no number of seconds"
            );
        }
        Ok(seconds.and_then(Duration::try_seconds))
    }
}
