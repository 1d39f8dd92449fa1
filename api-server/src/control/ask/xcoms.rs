//! XComs.

use super::{Asked, index, json_of};
use chrono::Utc;
use model::{DagId, DagRunKey, RunId, TaskId};
use python::messages::{Answer, Question};
use serde_json::{Value, json};
use store::repo::NewXCom;
use store::{StoreError, Tx};

/// Python's slice of a list.
fn slice(items: Vec<Value>, start: Option<i64>, stop: Option<i64>, step: Option<i64>) -> Vec<Value> {
    let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let step = step.unwrap_or(1);
    if step == 0 {
        return Vec::new();
    }
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |at: i64| {
        if at < 0 {
            (at + length).max(low)
        } else {
            at.min(high)
        }
    };
    let start = start.map_or(if step > 0 { low } else { high }, place);
    let stop = stop.map_or(if step > 0 { high } else { low }, place);
    let mut out = Vec::new();
    let mut at = start;
    while if step > 0 { at < stop } else { at > stop } {
        out.extend(usize::try_from(at).ok().and_then(|at| items.get(at).cloned()));
        at += step;
    }
    out
}

impl Asked<'_> {
    /// The key of a run; usually the task's own.
    async fn run_key(
        &self,
        db: &mut Tx,
        dag_id: &str,
        run_id: &str,
    ) -> Result<Option<DagRunKey>, StoreError> {
        if let Some(ti) = self.ti
            && ti.dag_id.as_str() == dag_id
            && ti.run_id.as_str() == run_id
        {
            return Ok(Some(ti.run_key));
        }
        Ok(db
            .run(&DagId::new(dag_id), &RunId::new(run_id))
            .await?
            .map(|run| run.key))
    }

    async fn series(
        &self,
        dag_id: &str,
        run_id: &str,
        task_id: &str,
        key: &str,
    ) -> Result<Vec<Value>, StoreError> {
        let mut db = self.db().await?;
        let Some(run) = self.run_key(&mut db, dag_id, run_id).await? else {
            return Ok(Vec::new());
        };
        let series = db.xcom_series(run, &TaskId::new(task_id), key).await?;
        Ok(series.iter().map(|xcom| json_of(&xcom.value)).collect())
    }

    pub(super) async fn xcoms(&self, question: Question) -> Result<Answer, StoreError> {
        Ok(match question {
            Question::GetXCom {
                key,
                dag_id,
                run_id,
                task_id,
                map_index,
                include_prior_dates,
            } => {
                let mut db = self.db().await?;
                let task = TaskId::new(task_id);
                let run = db.run(&DagId::new(dag_id.as_str()), &RunId::new(run_id)).await?;
                let found = match run {
                    None => None,
                    Some(run) => match (include_prior_dates, run.logical_date) {
                        (true, Some(date)) => {
                            db.xcom_with_past(&run.dag_id, date, &task, index(map_index), &key)
                                .await?
                        }
                        _ => db.xcom(run.key, &task, index(map_index), &key).await?,
                    },
                };
                let value = found.map_or(Value::Null, |xcom| json_of(&xcom.value));
                Answer::of("XComResult", json!({"key": key, "value": value}))
            }
            Question::SetXCom {
                key,
                value,
                dag_id,
                run_id,
                task_id,
                map_index,
                mapped_length,
            } => {
                let most = i64::from(self.app.config.core.max_map_length);
                if mapped_length.is_some_and(|length| length > most) {
                    return Ok(Answer::failure(
                        400,
                        "unmappable_return_value_length: pushed value is too large to map as a downstream's dependency \
                         ([core] max_map_length)",
                    ));
                }
                let now = Utc::now();
                let xcom = NewXCom {
                    key,
                    value: value.to_string(),
                    mapped_length,
                };
                let (dag_id, run_id, task_id) =
                    (DagId::new(dag_id), RunId::new(run_id), TaskId::new(task_id));
                let stored = store::transact!(self.app.store, "set xcom", |tx| {
                    let ti = tx
                        .task_instance(&dag_id, &run_id, &task_id, index(map_index))
                        .await?;
                    match ti {
                        Some(ti) => tx.set_xcom(&ti, &xcom, now).await.map(|()| true),
                        None => Ok(false),
                    }
                })?;
                if stored {
                    Answer::done()
                } else {
                    Answer::failure(404, "the task instance does not exist")
                }
            }
            Question::DeleteXCom {
                key,
                dag_id,
                run_id,
                task_id,
                map_index,
            } => {
                let run = self.run_key(&mut self.db().await?, &dag_id, &run_id).await?;
                if let Some(run) = run {
                    let task_id = TaskId::new(task_id);
                    store::transact!(self.app.store, "delete xcom", |tx| {
                        tx.delete_xcom(run, &task_id, index(map_index), &key).await
                    })?;
                }
                Answer::done()
            }
            Question::GetXComCount {
                key,
                dag_id,
                run_id,
                task_id,
            } => {
                let count = self.series(&dag_id, &run_id, &task_id, &key).await?.len();
                Answer::of("XComCountResponse", json!({"len": count}))
            }
            Question::GetXComSequenceItem {
                key,
                dag_id,
                run_id,
                task_id,
                offset,
            } => {
                let items = self.series(&dag_id, &run_id, &task_id, &key).await?;
                let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let at = usize::try_from(if offset < 0 { offset + length } else { offset }).ok();
                match at.and_then(|at| items.get(at)) {
                    Some(item) => Answer::of("XComSequenceIndexResult", json!({"root": item})),
                    None => Answer::missing(
                        "XCOM_NOT_FOUND",
                        json!({"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "key": key, "offset": offset}),
                    ),
                }
            }
            Question::GetXComSequenceSlice {
                key,
                dag_id,
                run_id,
                task_id,
                start,
                stop,
                step,
            } => {
                let items = self.series(&dag_id, &run_id, &task_id, &key).await?;
                Answer::of(
                    "XComSequenceSliceResult",
                    json!({"root": slice(items, start, stop, step)}),
                )
            }
            _ => Answer::failure(400, "Unhandled request"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_those_of_python() {
        let items = || (0..5).map(Value::from).collect::<Vec<_>>();
        let cut = |start, stop, step| {
            slice(items(), start, stop, step)
                .iter()
                .filter_map(Value::as_i64)
                .collect::<Vec<_>>()
        };
        assert_eq!(cut(None, None, None), [0, 1, 2, 3, 4]);
        assert_eq!(cut(Some(1), Some(-1), None), [1, 2, 3]);
        assert_eq!(cut(None, None, Some(-1)), [4, 3, 2, 1, 0]);
        assert_eq!(cut(Some(-2), Some(99), None), [3, 4]);
        assert_eq!(cut(Some(3), Some(0), Some(-2)), [3, 1]);
        assert_eq!(cut(Some(3), Some(1), None), [0i64; 0]);
    }
}
