//! Reading Airflow's serialized DAG JSON. Defaults are those of `airflow/serialization/schema.json`; per task the
//! order is schema default, then `client_defaults.tasks`, then the task's own keys.

mod expansion;

use super::{Dag, RetryPolicy, RunCallbacks, Task, TaskCallbacks, WeightRule};
use crate::asset::{AssetCondition, AssetLike};
use crate::deadline::DeadlineAlert;
use crate::timetable::{Timetable, TimetableError};
use crate::trigger::StartTrigger;
use crate::trigger_rule::TriggerRule;
use crate::{DagId, ExecutorName, PoolName, QueueName, TaskId, Timestamp};
use chrono::Duration;
use expansion::{expansion, map_groups};
use serde_json::{Map, Value};
use std::collections::HashMap;
use thiserror::Error;

/// A serialized DAG that cannot be used.
#[derive(Debug, Error)]
pub enum SerializedDagError {
    /// Not the version that this program reads.
    #[error("serialized DAG has version {0}, expected 3")]
    Version(String),
    /// A part is missing or has another form.
    #[error("serialized DAG: {0}")]
    Malformed(String),
    /// Tasks depend on each other in a circle.
    #[error("cycle detected in DAG {0}")]
    Cycle(DagId),
    /// The schedule cannot be understood.
    #[error("DAG {dag_id}: {source}")]
    Timetable {
        /// The DAG.
        dag_id: DagId,
        /// What is wrong with it.
        source: TimetableError,
    },
}

fn malformed(what: impl Into<String>) -> SerializedDagError {
    SerializedDagError::Malformed(what.into())
}

pub(super) use crate::serialized::unmarked as plain;

fn seconds(value: &Value) -> Option<Duration> {
    let micros = plain(value).as_f64()? * 1e6;
    Some(Duration::microseconds(micros as i64))
}

fn instant(value: &Value) -> Option<Timestamp> {
    crate::time::from_micros((plain(value).as_f64()? * 1e6).round() as i64)
}

/// One object, looked up key by key.
struct Fields<'a> {
    layers: Vec<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.layers
            .iter()
            .find_map(|layer| layer.get(key))
            .filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        plain(self.get(key)?).as_str()
    }

    fn whole(&self, key: &str) -> Option<i64> {
        let value = plain(self.get(key)?);
        value.as_i64().or_else(|| value.as_f64().map(|n| n as i64))
    }

    fn count(&self, key: &str, default: u32) -> u32 {
        self.whole(key).map_or(default, |n| u32::try_from(n).unwrap_or(0))
    }

    fn truth(&self, key: &str) -> bool {
        self.get(key)
            .is_some_and(|value| plain(value).as_bool() == Some(true))
    }

    fn filled(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| match plain(value) {
            Value::Array(items) => !items.is_empty(),
            Value::Bool(yes) => *yes,
            Value::Null => false,
            Value::Number(_) | Value::String(_) | Value::Object(_) => true,
        })
    }
}

pub(super) fn dag(document: &Value) -> Result<Dag, SerializedDagError> {
    if let Some(version) = document.get("__version").filter(|v| v.as_i64() != Some(3)) {
        return Err(SerializedDagError::Version(version.to_string()));
    }
    let body = document.get("dag").unwrap_or(document);
    let body = body
        .as_object()
        .ok_or_else(|| malformed("`dag` is not an object"))?;
    let fields = Fields { layers: vec![body] };
    let dag_id = DagId::new(
        fields
            .text("dag_id")
            .ok_or_else(|| malformed("`dag_id` is missing"))?,
    );
    let timetable = fields
        .get("timetable")
        .ok_or_else(|| malformed("`timetable` is missing"))?;
    let asset_condition = plain(timetable)
        .get("asset_condition")
        .and_then(AssetCondition::from_serialized);
    let timetable =
        Timetable::from_serialized(timetable).map_err(|source| SerializedDagError::Timetable {
            dag_id: dag_id.clone(),
            source,
        })?;
    let defaults = document
        .pointer("/client_defaults/tasks")
        .and_then(Value::as_object);
    let items = fields
        .get("tasks")
        .and_then(Value::as_array)
        .ok_or_else(|| malformed("`tasks` is missing"))?;
    let start_date = fields.get("start_date").and_then(instant);
    let end_date = fields.get("end_date").and_then(instant);
    let mut tasks = items
        .iter()
        .map(|item| {
            plain(item)
                .as_object()
                .ok_or_else(|| malformed("a task is not an object"))
        })
        .map(|object| object.and_then(|object| task(object, defaults, (start_date, end_date))))
        .collect::<Result<Vec<_>, _>>()?;
    connect(&mut tasks, items)?;
    if let Some(group) = fields.get("task_group").map(plain) {
        map_groups(&mut tasks, group, &[]);
    }
    Dag {
        dag_id,
        fileloc: fields.text("fileloc").unwrap_or_default().to_owned(),
        relative_fileloc: fields.text("relative_fileloc").unwrap_or_default().to_owned(),
        timetable,
        asset_condition,
        catchup: fields.truth("catchup"),
        start_date,
        end_date,
        max_active_runs: fields.count("max_active_runs", 16),
        max_active_tasks: fields.count("max_active_tasks", 16),
        dagrun_timeout: fields.get("dagrun_timeout").and_then(seconds),
        fail_fast: fields.truth("fail_fast"),
        has_callbacks: RunCallbacks {
            on_success: fields.truth("has_on_success_callback"),
            on_failure: fields.truth("has_on_failure_callback"),
        },
        deadlines: fields
            .get("deadline")
            .and_then(Value::as_array)
            .map(|alerts| alerts.iter().filter_map(DeadlineAlert::from_serialized).collect())
            .unwrap_or_default(),
        allowed_run_types: fields
            .get("allowed_run_types")
            .map(plain)
            .and_then(Value::as_array)
            .map(|kinds| {
                kinds
                    .iter()
                    .filter_map(|kind| plain(kind).as_str()?.parse().ok())
                    .collect()
            }),
        paused_upon_creation: fields
            .get("is_paused_upon_creation")
            .and_then(|v| plain(v).as_bool()),
        tasks,
        index: HashMap::new(),
        order: Vec::new(),
    }
    .build()
}

fn layers<'a>(object: &'a Map<String, Value>, defaults: Option<&'a Map<String, Value>>) -> Fields<'a> {
    let partial = object.get("partial_kwargs").map(plain).and_then(Value::as_object);
    Fields {
        layers: [Some(object), partial, defaults].into_iter().flatten().collect(),
    }
}

fn task(
    object: &Map<String, Value>,
    defaults: Option<&Map<String, Value>>,
    (dag_start, dag_end): (Option<Timestamp>, Option<Timestamp>),
) -> Result<Task, SerializedDagError> {
    let fields = layers(object, defaults);
    let task_id = TaskId::new(
        fields
            .text("task_id")
            .ok_or_else(|| malformed("a task has no `task_id`"))?,
    );
    let rule = fields.text("trigger_rule").unwrap_or("all_success");
    let trigger_rule: TriggerRule = rule
        .parse()
        .map_err(|error| malformed(format!("task {task_id}: {error}")))?;
    let task_type = fields.text("task_type").unwrap_or_default().to_owned();
    let empty = fields.truth("_is_empty");
    let needs_run = [
        "has_on_execute_callback",
        "has_on_success_callback",
        "inlets",
        "outlets",
    ]
    .iter()
    .any(|key| fields.filled(key));
    // Both are true unless the task says otherwise.
    let mails = |key: &str| {
        let receivers = fields.get("email").map(plain);
        let has_receivers = receivers.is_some_and(|receivers| match receivers {
            Value::String(receiver) => !receiver.is_empty(),
            Value::Array(receivers) => !receivers.is_empty(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
        });
        has_receivers && fields.get(key).and_then(Value::as_bool).unwrap_or(true)
    };
    Ok(Task {
        task_id,
        operator_name: fields.text("_operator_name").unwrap_or(&task_type).to_owned(),
        task_type,
        upstream: Vec::new(),
        downstream: Vec::new(),
        trigger_rule,
        retries: fields.count("retries", 0),
        retry: retry_policy(&fields),
        pool: PoolName::new(fields.text("pool").unwrap_or("default_pool")),
        pool_slots: fields.count("pool_slots", 1),
        queue: QueueName::new(fields.text("queue").unwrap_or("default")),
        executor: fields.text("executor").map(ExecutorName::new),
        pod_override: fields
            .get("executor_config")
            .and_then(|config| plain(config).get("pod_override"))
            .map(|pod| plain(pod).clone()),
        priority_weight: fields.whole("priority_weight").unwrap_or(1),
        weight_rule: match fields.text("weight_rule") {
            None | Some("downstream") => WeightRule::Downstream,
            Some("upstream") => WeightRule::Upstream,
            Some("absolute") => WeightRule::Absolute,
            Some(_) => WeightRule::Own,
        },
        max_active_tis_per_dag: fields
            .whole("max_active_tis_per_dag")
            .and_then(|n| n.try_into().ok()),
        max_active_tis_per_dagrun: fields
            .whole("max_active_tis_per_dagrun")
            .and_then(|n| n.try_into().ok()),
        depends_on_past: fields.truth("depends_on_past") || fields.truth("wait_for_downstream"),
        wait_for_downstream: fields.truth("wait_for_downstream"),
        ignore_first_depends_on_past: fields.truth("ignore_first_depends_on_past"),
        start_date: fields.get("start_date").and_then(instant).or(dag_start),
        end_date: fields.get("end_date").and_then(instant).or(dag_end),
        execution_timeout: fields.get("execution_timeout").and_then(seconds),
        completes_by_itself: empty && !needs_run,
        // The instances of a mapped task have arguments of their own, which only the operator makes: they begin on workers.
        start_trigger: fields
            .get("start_trigger_args")
            .filter(|_| fields.truth("start_from_trigger") && !fields.truth("_is_mapped"))
            .and_then(StartTrigger::from_serialized),
        has_callbacks: TaskCallbacks {
            on_failure: fields.truth("has_on_failure_callback"),
            on_retry: fields.truth("has_on_retry_callback"),
            mail_on_failure: mails("email_on_failure"),
            mail_on_retry: mails("email_on_retry"),
        },
        is_setup: fields.truth("is_setup"),
        is_teardown: fields.truth("is_teardown"),
        on_failure_fail_dagrun: fields.truth("on_failure_fail_dagrun")
            || fields.truth("_on_failure_fail_dagrun"),
        is_mapped: fields.truth("_is_mapped") || fields.truth("_needs_expansion"),
        expansion: expansion(object),
        inlets: assets(&fields, "inlets"),
        outlets: assets(&fields, "outlets"),
        can_skip_downstream: fields.truth("_can_skip_downstream"),
        waits_for: Vec::new(),
        mapped_groups: Vec::new(),
    })
}

/// The assets among the inlets or outlets of a task; other things may stand there too.
fn assets(fields: &Fields<'_>, key: &str) -> Vec<AssetLike> {
    let items = fields.get(key).map(plain).and_then(Value::as_array);
    let read = |items: &Vec<Value>| items.iter().filter_map(AssetLike::from_serialized).collect();
    items.map(read).unwrap_or_default()
}

fn retry_policy(fields: &Fields<'_>) -> RetryPolicy {
    let backoff_multiplier =
        fields
            .get("retry_exponential_backoff")
            .map_or(0.0, |value| match plain(value) {
                Value::Bool(true) => 2.0,
                Value::Bool(false) | Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                    0.0
                }
                Value::Number(n) => n.as_f64().unwrap_or(0.0),
            });
    RetryPolicy {
        delay: fields
            .get("retry_delay")
            .and_then(seconds)
            .unwrap_or_else(|| Duration::seconds(300)),
        backoff_multiplier,
        max_delay: fields.get("max_retry_delay").and_then(seconds),
    }
}

fn connect(tasks: &mut [Task], items: &[Value]) -> Result<(), SerializedDagError> {
    let index: HashMap<TaskId, usize> = tasks
        .iter()
        .enumerate()
        .map(|(at, task)| (task.task_id.clone(), at))
        .collect();
    for (at, item) in items.iter().enumerate() {
        let Some(ids) = plain(item)
            .get("downstream_task_ids")
            .map(plain)
            .and_then(Value::as_array)
        else {
            continue;
        };
        for id in ids.iter().filter_map(Value::as_str) {
            let down = index.get(&TaskId::new(id)).ok_or_else(|| {
                malformed(format!(
                    "task {} is before {id}, which does not exist",
                    tasks[at].task_id
                ))
            })?;
            tasks[at].downstream.push(*down);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dag::{Expansion, MappedLength};
    use serde_json::json;

    fn sample(tasks: Value) -> Value {
        json!({"__version": 3, "dag": {
            "dag_id": "d", "fileloc": "/dags/d.py", "relative_fileloc": "d.py", "catchup": false,
            "timetable": {"__type": "airflow.timetables.simple.NullTimetable", "__var": {}},
            "max_active_tasks": 4, "max_active_runs": 2, "tasks": tasks,
        }})
    }

    fn operator(body: Value) -> Value {
        json!({"__type": "operator", "__var": body})
    }

    #[test]
    fn edges_defaults_and_weights_are_read() {
        let dag = Dag::from_serialized(&sample(json!([
            operator(json!({"task_id": "a", "task_type": "BashOperator", "downstream_task_ids": ["b", "c"]})),
            operator(
                json!({"task_id": "b", "task_type": "BashOperator", "retries": 2, "retry_delay": 60.0,
                            "retry_exponential_backoff": true, "priority_weight": 5})
            ),
            operator(
                json!({"task_id": "c", "task_type": "EmptyOperator", "_is_empty": true, "pool": "p",
                            "trigger_rule": "one_failed"})
            ),
        ])))
        .unwrap();
        let a = dag.task(&"a".into()).unwrap();
        assert_eq!(a.priority_weight, 1 + 5 + 1);
        assert_eq!(a.retry.delay, Duration::seconds(300));
        let b = dag.task(&"b".into()).unwrap();
        assert_eq!((b.retries, b.upstream.as_slice()), (2, &[0][..]));
        assert!((b.retry.backoff_multiplier - 2.0).abs() < f64::EPSILON);
        let c = dag.task(&"c".into()).unwrap();
        assert!(c.completes_by_itself);
        assert_eq!((c.trigger_rule, c.pool.as_str()), (TriggerRule::OneFailed, "p"));
        assert_eq!(dag.deciding_leaves(), [1, 2]);
    }

    #[test]
    fn an_empty_operator_with_a_callback_must_run() {
        let dag = Dag::from_serialized(&sample(json!([operator(
            json!({"task_id": "a", "task_type": "EmptyOperator", "_is_empty": true, "has_on_success_callback": true})
        )])))
        .unwrap();
        assert!(!dag.tasks[0].completes_by_itself);
    }

    #[test]
    fn a_cycle_and_another_version_are_refused() {
        let cycle = sample(json!([
            operator(json!({"task_id": "a", "task_type": "X", "downstream_task_ids": ["b"]})),
            operator(json!({"task_id": "b", "task_type": "X", "downstream_task_ids": ["a"]})),
        ]));
        assert!(matches!(
            Dag::from_serialized(&cycle),
            Err(SerializedDagError::Cycle(_))
        ));
        let old = json!({"__version": 1, "dag": {}});
        assert!(matches!(
            Dag::from_serialized(&old),
            Err(SerializedDagError::Version(_))
        ));
    }

    #[test]
    fn what_a_mapped_task_expands_over_is_read() {
        let dag = Dag::from_serialized(&sample(json!([
            operator(json!({"task_id": "gen", "task_type": "X", "downstream_task_ids": ["m"]})),
            operator(json!({"task_id": "m", "task_type": "X", "_is_mapped": true, "_expand_input_attr": "op_kwargs_expand_input",
                "partial_kwargs": {"retries": 3},
                "op_kwargs_expand_input": {"type": "dict-of-lists", "value": {"__type": "dict", "__var": {
                    "x": {"__type": "xcomref", "__var": {"task_id": "gen", "key": "return_value"}}, "y": [1, 2]}}}})),
        ])))
        .unwrap();
        let m = dag.task(&"m".into()).unwrap();
        assert_eq!(m.retries, 3);
        assert_eq!(
            m.expansion,
            Some(Expansion::Product(vec![
                MappedLength::XCom("gen".into()),
                MappedLength::Literal(2)
            ]))
        );
    }
}
