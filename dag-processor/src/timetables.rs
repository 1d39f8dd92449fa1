//! Timetables of the user's own: asked here, where Python is.

use crate::{Shared, goes_on};
use broker::Hint;
use chrono::Utc;
use lifecycle::Stop;
use model::dag_run::is_valid_run_id;
use model::timetable::{DataInterval, NextRun};
use model::{DagId, Timestamp};
use python::{Instead, ParseFailure, ParseRequest, parse_file};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use store::repo::{AskedTimetable, TimetableQuestion};
use store::{Graphs, StoreError};

/// Why there is no answer to a question.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    /// Python is away; it may be asked again.
    #[error("{0}")]
    Later(String),
    /// There will never be one.
    #[error("{0}")]
    Never(String),
}

const TURN: Duration = Duration::from_millis(200);

/// Runs that one answer may have.
const MOST_RUNS: u32 = 20_000;

/// Answers questions until told to stop.
pub(crate) async fn answer(shared: Arc<Shared>, stop: Stop) {
    let graphs = Graphs::default();
    let what = "timetables cannot be asked";
    while goes_on(what, shared.answer_one(&graphs).await, TURN, &stop).await {
        let mapped = shared.map_partitions(&graphs).await;
        if let Err(error) = mapped {
            tracing::warn!("partition mappers cannot be asked, trying again: {error}");
        }
        if let Err(error) = shared.mutate_all(&graphs).await {
            tracing::warn!("task instances cannot be mutated, trying again: {error}");
        }
    }
}

fn micros(at: Option<Timestamp>) -> Option<i64> {
    at.map(model::time::to_micros)
}

impl Shared {
    /// Answers the oldest question that waits. Whether there was one.
    async fn answer_one(&self, graphs: &Graphs) -> Result<bool, StoreError> {
        let now = Utc::now();
        if !self.store.reader().await?.has_timetable_question(now).await? {
            return Ok(false);
        }
        let claimed = store::transact!(self.store, "claim question", |tx| tx
            .claim_timetable_question(now, self.hold())
            .await)?;
        let Some(asked) = claimed else { return Ok(false) };
        let question = self.question_for(graphs, &asked).await?;
        let gone = question.is_none();
        let answer = match question {
            Some(question) => self.ask(question).await,
            None => Err(Unanswered::Never("the DAG is gone".to_owned())),
        };
        match (asked.question, answer) {
            (TimetableQuestion::Next { .. }, Ok(answer)) => {
                self.set_next(&asked, next_of(&answer), run_id_of(&answer))
                    .await?;
            }
            (TimetableQuestion::Next { .. }, Err(_)) if gone => self.set_next(&asked, None, None).await?,
            // Forgotten, the question would not be asked again before the file changes, and the DAG would stand still
            // for good: it stays, and is taken up again when the hold on it ends.
            (TimetableQuestion::Next { .. }, Err(why)) => {
                tracing::error!(dag_id = %asked.dag_id, "no next run yet, asking again in {:?}: {why}", self.hold());
            }
            (
                TimetableQuestion::Manual { .. }
                | TimetableQuestion::Name { .. }
                | TimetableQuestion::Between { .. },
                answer,
            ) => {
                let text = match answer {
                    Ok(answer) => answer.to_string(),
                    Err(why) => json!({"error": why.to_string()}).to_string(),
                };
                store::transact!(self.store, "answer question", |tx| tx
                    .answer_timetable(asked.id, &text)
                    .await)?;
            }
        }
        Ok(true)
    }

    /// The question as Python reads it; `None` when the DAG is gone.
    async fn question_for(
        &self,
        graphs: &Graphs,
        asked: &AskedTimetable,
    ) -> Result<Option<Value>, StoreError> {
        let mut db = self.store.reader().await?;
        let Some(record) = db.dag(&asked.dag_id).await? else {
            return Ok(None);
        };
        let graph = graphs.get(&mut db, record.version_id).await?;
        let Some(timetable) = graph.document.pointer("/dag/timetable") else {
            return Ok(None);
        };
        Ok(Some(match asked.question {
            TimetableQuestion::Manual { at, run_after } => {
                let [at, run_after] = [at, run_after].map(model::time::to_micros);
                json!({"kind": "manual", "timetable": timetable, "at": at, "run_after": run_after})
            }
            TimetableQuestion::Name { interval, run_after } => json!({
                "kind": "name", "timetable": timetable, "run_after": model::time::to_micros(run_after),
                "span": interval.map(|span| [span.start, span.end].map(model::time::to_micros)),
            }),
            TimetableQuestion::Between { from, to } => {
                let [from, to] = [from, to].map(model::time::to_micros);
                json!({"kind": "between", "timetable": timetable, "from": from, "to": to, "most": MOST_RUNS})
            }
            TimetableQuestion::Next { last } => {
                let restriction = graph.dag.time_restriction();
                let last = last.map(|last| [last.start, last.end].map(model::time::to_micros));
                json!({
                    "kind": "next", "timetable": timetable, "last": last, "earliest": micros(restriction.earliest),
                    "latest": micros(restriction.latest), "catchup": restriction.catchup,
                })
            }
        }))
    }

    /// Asks what only Python knows and no DAG file is needed for.
    pub(crate) async fn ask(&self, question: Value) -> Result<Value, Unanswered> {
        self.ask_for(question, self.limits().time).await
    }

    /// As [`Shared::ask`], with this much time for the answer.
    pub(crate) async fn ask_for(&self, question: Value, time: Duration) -> Result<Value, Unanswered> {
        let mut request = self.without_file(Instead::Question(question));
        request.limits.time = time;
        let told: Result<_, ParseFailure> =
            parse_file(&self.python, &request, |question| self.answer(question)).await;
        let told = told.map_err(|failure| match failure {
            ParseFailure::Lost | ParseFailure::Void | ParseFailure::Python(_) => {
                Unanswered::Later(failure.to_string())
            }
            ParseFailure::TooSlow(_) | ParseFailure::Died { .. } | ParseFailure::Nonsense(_) => {
                Unanswered::Never(failure.to_string())
            }
        })?;
        let nothing = || Unanswered::Never("Python gave no answer".to_owned());
        let answer = told.answer.ok_or_else(nothing)?;
        match answer.get("error").and_then(Value::as_str) {
            Some(why) => Err(Unanswered::Never(why.to_owned())),
            None => Ok(answer),
        }
    }

    /// Asks a child for something that no DAG file is needed for.
    pub(crate) fn without_file(&self, what: Instead) -> ParseRequest {
        let bundle = self.bundles.any();
        ParseRequest {
            file: bundle.path.clone(),
            bundle,
            limits: self.limits(),
            instead: Some(what),
        }
    }

    async fn set_next(
        &self,
        asked: &AskedTimetable,
        next: Option<NextRun>,
        run_id: Option<&str>,
    ) -> Result<(), StoreError> {
        let dag_id: &DagId = &asked.dag_id;
        store::transact!(self.store, "set next run", |tx| {
            // Whoever asked again meanwhile wants another answer.
            if tx.forget_timetable_question(asked.id).await? {
                tx.set_next_run(dag_id, next).await?;
                tx.set_next_run_id(dag_id, run_id).await?;
            }
            Ok(())
        })?;
        self.broker.hint(Hint::Timetables);
        Ok(())
    }
}

/// The name that the timetable gives its next run, where it may have it.
fn run_id_of(answer: &Value) -> Option<&str> {
    let run_id = answer.get("run_id")?.as_str()?;
    if !is_valid_run_id(run_id) {
        tracing::error!(
            run_id,
            "a timetable names its next run so that it cannot be; it gets the usual name"
        );
        return None;
    }
    Some(run_id)
}

fn next_of(answer: &Value) -> Option<NextRun> {
    let instants: Vec<Timestamp> = answer
        .get("next")?
        .as_array()?
        .iter()
        .filter_map(|n| model::time::from_micros(n.as_i64()?))
        .collect();
    let [start, end, run_after] = instants.try_into().ok()?;
    Some(NextRun {
        logical_date: start,
        interval: DataInterval { start, end },
        run_after,
    })
}
