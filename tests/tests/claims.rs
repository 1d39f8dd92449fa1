//! What a task may read and write by its claim: what Airflow's Execution API lets a task's token do, also across DAGs. Of
//! Airflow 3.3.2, `execution_api/routes`: what has a task instance in its path is for that task alone (`ti:self`); without
//! teams, Variables, connections, XComs, assets, runs and states are for the tasks of all DAGs.

use harness::{Installation, ManualWorker, eventually, membership};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const DAGS: &str = r#"
from airflow.sdk import DAG, Asset
from airflow.providers.standard.operators.bash import BashOperator

with DAG("asks", schedule=None):
    t = BashOperator(task_id="t", bash_command="true", queue="nobody", outlets=[Asset("thing", uri="x://thing")])
    t >> BashOperator(task_id="after", bash_command="true", queue="nobody")
with DAG("other", schedule=None):
    BashOperator(task_id="t", bash_command="true", queue="nobody") >> BashOperator(task_id="after", bash_command="true", queue="nobody")
with DAG("started", schedule=None):
    BashOperator(task_id="t", bash_command="true", queue="nobody")
"#;

/// How Airflow answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Whatever DAG it is about.
    AnyDag,
    /// A task about itself; there is no way to ask about another.
    Itself,
}
use Reach::{AnyDag, Itself};

/// Questions with what Airflow's routes let a task do, in an order in which each finds what it asks for.
fn questions(run: &str) -> Vec<(Reach, Value)> {
    let of = |kind: &str, more: Value| {
        let mut question = json!({"type": kind});
        for (key, value) in more.as_object().into_iter().flatten() {
            question[key] = value.clone();
        }
        question
    };
    let xcom = |kind: &str, more: Value| {
        let mut question =
            json!({"type": kind, "key": "k", "dag_id": "other", "run_id": run, "task_id": "t"});
        for (key, value) in more.as_object().into_iter().flatten() {
            question[key] = value.clone();
        }
        question
    };
    let other = json!({"dag_id": "other", "run_id": run});
    vec![
        (AnyDag, of("PutVariable", json!({"key": "v", "value": "1"}))),
        (AnyDag, of("GetVariable", json!({"key": "v"}))),
        (AnyDag, of("GetVariableKeys", json!({}))),
        (AnyDag, of("DeleteVariable", json!({"key": "v"}))),
        (AnyDag, of("GetConnection", json!({"conn_id": "c"}))),
        (AnyDag, xcom("SetXCom", json!({"value": 1}))),
        (AnyDag, xcom("GetXCom", json!({}))),
        (AnyDag, xcom("GetXComCount", json!({}))),
        (AnyDag, xcom("GetXComSequenceItem", json!({"offset": 0}))),
        (AnyDag, xcom("GetXComSequenceSlice", json!({}))),
        (AnyDag, xcom("DeleteXCom", json!({}))),
        (AnyDag, of("GetDagRun", other.clone())),
        (AnyDag, of("GetDagRunState", other.clone())),
        (AnyDag, of("GetTaskBreadcrumbs", other)),
        (AnyDag, of("GetDRCount", json!({"dag_id": "other"}))),
        (AnyDag, of("GetTICount", json!({"dag_id": "other"}))),
        (AnyDag, of("GetTaskStates", json!({"dag_id": "other"}))),
        (AnyDag, of("GetDag", json!({"dag_id": "other"}))),
        (
            AnyDag,
            of("GetPreviousTI", json!({"dag_id": "other", "task_id": "t"})),
        ),
        (
            AnyDag,
            of(
                "GetPreviousDagRun",
                json!({"dag_id": "other", "logical_date": "2026-01-01T00:00:00Z"}),
            ),
        ),
        (
            AnyDag,
            of(
                "TriggerDagRun",
                json!({"dag_id": "started", "run_id": "by-a-task"}),
            ),
        ),
        (AnyDag, of("GetAssetByName", json!({"name": "thing"}))),
        (AnyDag, of("GetAssetByUri", json!({"uri": "x://thing"}))),
        (AnyDag, of("GetAssetsByAlias", json!({"alias_name": "none"}))),
        (AnyDag, of("GetAssetEventByAsset", json!({"name": "thing"}))),
        (
            AnyDag,
            of("GetAssetEventByAssetAlias", json!({"alias_name": "none"})),
        ),
        (
            AnyDag,
            of(
                "SetAssetStateStoreByName",
                json!({"name": "thing", "key": "k", "value": 1}),
            ),
        ),
        (
            AnyDag,
            of("GetAssetStateStoreByUri", json!({"uri": "x://thing", "key": "k"})),
        ),
        (AnyDag, of("ClearAssetStateStoreByName", json!({"name": "thing"}))),
        (
            Itself,
            of(
                "SetRenderedFields",
                json!({"rendered_fields": {"bash_command": "mine"}}),
            ),
        ),
        (Itself, of("SetTaskStateStore", json!({"key": "k", "value": 1}))),
        (Itself, of("GetTaskStateStore", json!({"key": "k"}))),
        (Itself, of("DeleteTaskStateStore", json!({"key": "k"}))),
        (Itself, of("ClearTaskStateStore", json!({}))),
        (Itself, of("SkipDownstreamTasks", json!({"tasks": ["after"]}))),
        (Itself, of("GetPrevSuccessfulDagRun", json!({}))),
        (Itself, of("GetTaskRescheduleStartDate", json!({}))),
        (Itself, of("ValidateInletsAndOutlets", json!({}))),
        (
            Itself,
            of(
                "CreateHITLDetailPayload",
                json!({"options": ["yes"], "subject": "?", "params": {}}),
            ),
        ),
        (
            Itself,
            of(
                "UpdateHITLDetail",
                json!({"chosen_options": ["yes"], "params_input": {}}),
            ),
        ),
    ]
}

/// The error of an answer.
async fn refusal(worker: &mut ManualWorker, token: &str, question: &Value) -> Option<String> {
    let answer = worker.ask(token, question).await.expect("an answer");
    (!answer.error.is_empty()).then(|| String::from_utf8_lossy(&answer.error).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_reaches_what_airflow_lets_a_task_reach_and_no_more() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    // Nobody takes tasks: there is no broker, and no worker but the test's own.
    installation.set("AIRFLOW__CELERY__BROKER_URL", "amqp://127.0.0.1:1");
    let (ok, text) = installation.run("updraft", &["db", "migrate"]);
    assert!(ok, "{text}");
    installation.dag("claims.py", DAGS);
    let _processes = ["api-server", "scheduler", "dag-processor"]
        .map(|component| installation.start(&format!("updraft-{component}"), &[], &[]));
    let api = installation.api();
    for dag in ["asks", "other", "started"] {
        api.wait_for_dag(dag);
    }
    let connection = json!({"connection_id": "c", "conn_type": "http"});
    let made = api.call("POST", "/api/v2/connections", Some(&connection));
    assert_eq!(made.expect("an answer").0, 201);
    let run_of = |dag: &str| api.trigger(dag, &json!({"logical_date": null}));
    let (run, other) = (run_of("asks"), run_of("other"));
    let task = |dag: &str, run: &str, task_id: &str| {
        let tasks = api.tasks(dag, run);
        let found = tasks.into_iter().find(|task| task["task_id"] == task_id);
        found.unwrap_or_default()
    };
    let queued = |dag: &str, run: &str| {
        eventually("it is queued", PATIENCE, || {
            let task = task(dag, run, "t");
            match task["state"].as_str() {
                Some("queued") => Ok(task["id"].as_str().unwrap_or_default().to_owned()),
                _ => Err(task.to_string()),
            }
        })
    };
    let (id, _) = (queued("asks", &run), queued("other", &other));
    let member = membership("default", "by hand");
    let worker = ManualWorker::register(&installation, &member, "by hand").await;
    let mut worker = worker.expect("a life");
    let claim = worker.claim(&id).await.token;
    let before = task("other", &other, "t");
    for (reach, question) in questions(&other) {
        let refused = refusal(&mut worker, &claim, &question).await;
        assert_eq!(refused, None, "{question}");
        // A trigger, which has no claim, asks about everything but itself.
        let as_trigger = worker.pass.worker_token.clone();
        if reach == Itself {
            let refused = refusal(&mut worker, &as_trigger, &question).await;
            assert!(
                refused.is_some_and(|text| text.contains("only a task can ask for this")),
                "{question}"
            );
        }
    }
    // What a task says of itself changed itself alone, although the other DAG has the same names.
    assert_eq!(task("asks", &run, "after")["state"], "skipped");
    assert_eq!(task("other", &other, "after")["state"], Value::Null);
    assert_eq!(task("other", &other, "t"), before);
    assert_eq!(task("asks", &run, "t")["rendered_fields"]["bash_command"], "mine");
    let started = api.get("/api/v2/dags/started/dagRuns/by-a-task");
    assert_eq!(started["run_type"], "operator_triggered");
}
