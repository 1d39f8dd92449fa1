//! DagRuns: looking at them, making them, clearing them.

use super::{Asked, instants, texts};
use crate::clearing::{self, EndedRuns};
use crate::trigger::{TriggerError, TriggerRequest, trigger_run};
use broker::Hint;
use chrono::Utc;
use model::dag_run::{DagRunState, DagRunType};
use model::time::rest_format;
use model::{DagId, RunId, Timestamp};
use python::messages::{Answer, Question};
use serde_json::{Value, json};
use store::StoreError;
use store::repo::{Condition, Listing, RunRecord};

/// How a previous or other run looks to a task.
fn interval(run: &RunRecord) -> Value {
    let when = |at: Option<Timestamp>| at.map(rest_format);
    json!({
        "data_interval_start": when(run.data_interval_start), "data_interval_end": when(run.data_interval_end),
        "start_date": when(run.start_date), "end_date": when(run.end_date),
    })
}

impl Asked<'_> {
    /// Who triggered the run of the task that asks: its child runs are that person's, too.
    async fn triggering_user(&self) -> Result<Option<String>, StoreError> {
        let Some(ti) = self.ti else { return Ok(None) };
        let run = self.db().await?.run_by_key(ti.run_key).await?;
        Ok(run.and_then(|run| run.triggering_user))
    }

    pub(super) async fn trigger(&self, question: Question) -> Result<Answer, StoreError> {
        let Question::TriggerDagRun {
            dag_id,
            run_id,
            logical_date,
            run_after,
            conf,
            reset_dag_run,
            note,
            partition_key,
        } = question
        else {
            return Ok(Answer::failure(400, "Unhandled request"));
        };
        let at = |text: Option<String>| text.and_then(|text| crate::rest_instant(&text));
        let request = TriggerRequest {
            dag_id: DagId::new(dag_id.as_str()),
            run_id: Some(run_id.clone()),
            logical_date: at(logical_date),
            interval: None,
            run_after: at(run_after),
            conf: conf.filter(Value::is_object).unwrap_or_else(|| json!({})),
            note,
            run_type: DagRunType::OperatorTriggered,
            triggered_by: "operator",
            user: self.triggering_user().await?,
            partition_key,
        };
        let app = self.app;
        match trigger_run(&app.store, &app.graphs, &*app.broker, &request).await {
            Ok(_) => Ok(Answer::ok()),
            Err(TriggerError::Duplicate { .. }) if reset_dag_run == Some(true) => {
                self.reset(&request.dag_id, &RunId::new(run_id)).await
            }
            Err(TriggerError::Duplicate { .. }) => Ok(Answer::missing(
                "DAGRUN_ALREADY_EXISTS",
                json!({"dag_id": dag_id, "run_id": run_id}),
            )),
            Err(TriggerError::Store(error)) => Err(error),
            Err(error @ TriggerError::UnknownDag(_)) => Ok(Answer::failure(404, error.to_string())),
            Err(error) => Ok(Answer::failure(400, error.to_string())),
        }
    }

    /// Clears every task of an existing run.
    async fn reset(&self, dag_id: &DagId, run_id: &RunId) -> Result<Answer, StoreError> {
        let now = Utc::now();
        let found = store::transact!(self.app.store, "reset run", |tx| {
            let Some(run) = tx.run(dag_id, run_id).await? else {
                return Ok(false);
            };
            let tis = tx.task_instances_of(run.key).await?;
            clearing::clear(tx, &self.app.graphs, &tis, EndedRuns::StartAgain, now).await?;
            Ok(true)
        })?;
        if !found {
            // Another run has its logical date.
            let text = format!("DAG {dag_id} has no run {run_id} that could be reset");
            return Ok(Answer::failure(404, text));
        }
        self.app.broker.hint(Hint::Dag(dag_id.clone()));
        Ok(Answer::ok())
    }

    pub(super) async fn runs(&self, question: Question) -> Result<Answer, StoreError> {
        let mut db = self.db().await?;
        Ok(match question {
            Question::GetDagRun { dag_id, run_id } => {
                match db.run(&DagId::new(dag_id), &RunId::new(run_id)).await? {
                    Some(run) => Answer::of("DagRunResult", db.run_for_sdk(&run).await?),
                    None => Answer::failure(404, "the DAG run was not found"),
                }
            }
            Question::GetDagRunState { dag_id, run_id } => {
                match db.run(&DagId::new(dag_id), &RunId::new(run_id)).await? {
                    Some(run) => Answer::of("DagRunStateResult", json!({"state": run.state.as_str()})),
                    None => Answer::failure(404, "the DAG run was not found"),
                }
            }
            Question::GetDag { dag_id } => match db.dag(&DagId::new(dag_id)).await? {
                Some(dag) => Answer::of(
                    "DagResult",
                    json!({"dag_id": dag.dag_id, "is_paused": dag.is_paused, "bundle_name": dag.bundle_name,
                           "bundle_version": null, "relative_fileloc": dag.relative_fileloc, "owners": dag.owners.join(", "),
                           "tags": dag.tags, "next_dagrun": dag.next_logical_date.map(rest_format)}),
                ),
                None => Answer::failure(404, "the DAG was not found"),
            },
            Question::GetDRCount {
                dag_id,
                logical_dates,
                run_ids,
                states,
            } => {
                let mut conditions = vec![Condition::Is("dag_id", dag_id.into())];
                if let Some(run_ids) = run_ids {
                    conditions.push(Condition::In("run_id", texts(&run_ids)));
                }
                if let Some(states) = states {
                    conditions.push(Condition::In("state", texts(&states)));
                }
                if let Some(dates) = logical_dates {
                    conditions.push(Condition::In("logical_date", instants(&dates)));
                }
                let count = db
                    .count_runs(&Listing {
                        conditions,
                        ..Listing::default()
                    })
                    .await?;
                Answer::of("DRCount", json!({"count": count}))
            }
            Question::GetPreviousDagRun {
                dag_id,
                logical_date,
                state,
            } => {
                let state = state.and_then(|state| state.parse().ok());
                let found = match crate::rest_instant(&logical_date) {
                    Some(date) => db.previous_run(&DagId::new(dag_id), date, state).await?,
                    None => None,
                };
                let shown = match &found {
                    Some(run) => db.run_for_sdk(run).await?,
                    None => Value::Null,
                };
                Answer::of("PreviousDagRunResult", json!({"dag_run": shown}))
            }
            Question::GetPrevSuccessfulDagRun {} => {
                let ti = self.own()?;
                let own = db.run_by_key(ti.run_key).await?;
                let found = match own.and_then(|run| run.logical_date) {
                    Some(date) => {
                        db.previous_run(&ti.dag_id, date, Some(DagRunState::Success))
                            .await?
                    }
                    None => None,
                };
                Answer::of(
                    "PrevSuccessfulDagRunResult",
                    found.as_ref().map_or_else(|| json!({}), interval),
                )
            }
            _ => Answer::failure(400, "Unhandled request"),
        })
    }
}
