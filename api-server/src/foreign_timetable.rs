//! What only Python knows about a timetable, asked by way of a DAG processor.

use chrono::Utc;
use model::timetable::{DataInterval, NextRun};
use model::{DagId, Timestamp};
use serde_json::Value;
use std::time::{Duration, Instant};
use store::repo::TimetableQuestion;
use store::{Store, StoreError};

/// How long a DAG processor may take.
const ANSWER: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(50);

/// Asks; the text says why there is no answer.
async fn ask(
    store: &Store,
    dag_id: &DagId,
    question: TimetableQuestion,
) -> Result<Result<Value, String>, StoreError> {
    let now = Utc::now();
    let id = store::transact!(store, "ask timetable", |tx| tx
        .ask_timetable(dag_id, question, now)
        .await)?;
    let begin = Instant::now();
    let answer = loop {
        match store.reader().await?.timetable_answer(id).await? {
            Some(answer) => break Some(answer),
            None if begin.elapsed() > ANSWER => break None,
            None => tokio::time::sleep(LOOK).await,
        }
    };
    store::transact!(store, "forget question", |tx| tx
        .forget_timetable_question(id)
        .await)?;
    let Some(answer) = answer else {
        return Ok(Err(format!(
            "no DAG processor says what the timetable of DAG {dag_id} says; is one running?"
        )));
    };
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    Ok(match answer.get("error").and_then(Value::as_str) {
        Some(why) => Err(format!("the timetable of DAG {dag_id} cannot be asked: {why}")),
        None => Ok(answer),
    })
}

fn instant(value: Option<&Value>) -> Option<Timestamp> {
    value?.as_i64().and_then(model::time::from_micros)
}

/// The data interval of a run by hand, and the name that the timetable gives it.
pub(crate) async fn manual_run(
    store: &Store,
    dag_id: &DagId,
    at: Timestamp,
    run_after: Timestamp,
) -> Result<Result<(DataInterval, Option<String>), String>, StoreError> {
    let answer = ask(store, dag_id, TimetableQuestion::Manual { at, run_after }).await?;
    Ok(answer.and_then(|answer| {
        let span = instant(answer.get("start")).zip(instant(answer.get("end")));
        let (start, end) =
            span.ok_or_else(|| format!("the timetable of DAG {dag_id} gave no data interval"))?;
        let run_id = answer.get("run_id").and_then(Value::as_str).map(str::to_owned);
        Ok((DataInterval { start, end }, run_id))
    }))
}

/// The name that the timetable gives a run by hand whose interval is given, be it none; `None` where it has none for it.
pub(crate) async fn manual_name(
    store: &Store,
    dag_id: &DagId,
    interval: Option<DataInterval>,
    run_after: Timestamp,
) -> Result<Result<Option<String>, String>, StoreError> {
    let answer = ask(store, dag_id, TimetableQuestion::Name { interval, run_after }).await?;
    Ok(answer.map(|answer| answer.get("run_id").and_then(Value::as_str).map(str::to_owned)))
}

/// The runs with logical dates from `from` to `to`; `None` where there are none again and again.
pub(crate) async fn runs_between(
    store: &Store,
    dag_id: &DagId,
    (from, to): (Timestamp, Timestamp),
) -> Result<Result<Option<Vec<NextRun>>, String>, StoreError> {
    let answer = ask(store, dag_id, TimetableQuestion::Between { from, to }).await?;
    Ok(answer.map(|answer| {
        let runs = answer.get("runs")?.as_array()?;
        let read = |run: &Value| {
            let interval = DataInterval {
                start: instant(run.get(0))?,
                end: instant(run.get(1))?,
            };
            Some(NextRun {
                logical_date: interval.start,
                interval,
                run_after: instant(run.get(2))?,
            })
        };
        Some(runs.iter().filter_map(read).collect())
    }))
}
