//! Tasks that wait for a person.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

const DAGS: &str = r#"
from datetime import timedelta
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLBranchOperator, HITLOperator
from airflow.sdk import DAG, Param

with DAG("asks", schedule=None):
    approve = ApprovalOperator(task_id="approve", subject="Deploy {{ ds_nodash | default('now') }}?", body="Really?")
    branch = HITLBranchOperator(task_id="branch", subject="Where?", options=["left", "right"])
    approve >> branch >> [BashOperator(task_id="left", bash_command="true"), BashOperator(task_id="right", bash_command="true")]
    HITLOperator(task_id="fill", subject="How many?", options=["a", "b"], multiple=True, params={"n": Param(3, type="integer")},
                 assigned_users=[{"id": "mary", "name": "Mary"}])
    HITLOperator(task_id="default", subject="Well?", options=["x", "y"], defaults=["y"], params={"n": 7}, response_timeout=timedelta(seconds=1))
    HITLOperator(task_id="late", subject="Anyone?", options=["x"], response_timeout=timedelta(seconds=1))
"#;

fn server() -> Option<(Installation, Process, Api)> {
    let mut installation = Installation::new(&harness::python()?);
    installation.set(
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS",
        "admin:admin,mary:user,viewer:viewer",
    );
    installation.dag("asks.py", DAGS);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("asks");
    Some((installation, process, api))
}

fn login(installation: &Installation, api: &Api, user: &str) -> Api {
    let path = installation
        .path()
        .join("simple_auth_manager_passwords.json.generated");
    let text = std::fs::read_to_string(path).expect("passwords");
    let passwords: Value = serde_json::from_str(&text).expect("JSON");
    api.login(user, passwords[user].as_str().unwrap_or_default())
        .expect("a login")
}

fn state(api: &Api, run_id: &str, task_id: &str) -> Value {
    let tasks = api.tasks("asks", run_id);
    let found = tasks.iter().find(|task| task["task_id"] == task_id);
    found.map(|task| task["state"].clone()).unwrap_or_default()
}

fn wait_for_state(api: &Api, run_id: &str, task_id: &str, wanted: &str) {
    eventually(&format!("{task_id} is {wanted}"), PATIENCE, || {
        match state(api, run_id, task_id) {
            found if found == wanted => Ok(()),
            other => Err(other.to_string()),
        }
    });
}

#[test]
fn people_answer_and_tasks_go_on() {
    let Some((installation, _process, api)) = server() else {
        return;
    };
    let (mary, viewer) = (
        login(&installation, &api, "mary"),
        login(&installation, &api, "viewer"),
    );
    let run_id = api.trigger("asks", &json!({"logical_date": null}));
    let base = format!("/api/v2/dags/asks/dagRuns/{}", run_id.replace('+', "%2B"));
    let answer = |api: &Api, task_id: &str, body: Value| {
        let path = format!("{base}/taskInstances/{task_id}/-1/hitlDetails");
        api.call("PATCH", &path, Some(&body)).expect("an answer")
    };
    wait_for_state(&api, &run_id, "approve", "awaiting_input");
    wait_for_state(&api, &run_id, "fill", "awaiting_input");
    let open = api.get(&format!(
        "{base}/hitlDetails?response_received=false&task_id=approve"
    ));
    assert_eq!(open["total_entries"], 1, "{open}");
    let question = &open["hitl_details"][0];
    assert_eq!(
        (&question["subject"], &question["options"]),
        (&json!("Deploy now?"), &json!(["Approve", "Reject"]))
    );
    assert_eq!(question["task_instance"]["state"], "awaiting_input");
    let explained = api.get(&format!("{base}/taskInstances/approve/dependencies"));
    assert!(
        explained["explanation"]
            .as_str()
            .unwrap_or_default()
            .contains("person"),
        "{explained}"
    );

    assert_eq!(
        answer(&viewer, "approve", json!({"chosen_options": ["Approve"]})).0,
        403
    );
    let (status, refused) = answer(&api, "approve", json!({"chosen_options": ["Perhaps"]}));
    assert_eq!(status, 400);
    assert_eq!(
        refused["detail"],
        "Invalid options ['Perhaps']; allowed options are ['Approve', 'Reject']."
    );
    let (status, noted) = answer(&mary, "approve", json!({"chosen_options": ["Approve"]}));
    assert_eq!(
        (status, &noted["responded_by"]["id"]),
        (200, &json!("mary")),
        "{noted}"
    );
    assert_eq!(
        answer(&mary, "approve", json!({"chosen_options": ["Reject"]})).0,
        409
    );
    wait_for_state(&api, &run_id, "branch", "awaiting_input");
    assert_eq!(
        answer(&mary, "branch", json!({"chosen_options": ["right"]})).0,
        200
    );

    assert_eq!(
        answer(&api, "fill", json!({"chosen_options": ["a"]})).0,
        403,
        "only Mary may"
    );
    let body = json!({"chosen_options": ["a", "b"], "params_input": {"n": 5}});
    assert_eq!(answer(&mary, "fill", body).0, 200);
    assert_eq!(
        api.wait_for_end("asks", &run_id),
        "failed",
        "for nobody answered one of them"
    );
    for (task_id, wanted) in [
        ("left", "skipped"),
        ("right", "success"),
        ("fill", "success"),
        ("default", "success"),
        ("late", "failed"),
    ] {
        assert_eq!(state(&api, &run_id, task_id), wanted, "{task_id}");
    }
    let value = |task_id: &str| {
        api.get(&format!(
            "{base}/taskInstances/{task_id}/xcomEntries/return_value?deserialize=true"
        ))["value"]
            .clone()
    };
    assert_eq!(
        (&value("fill")["chosen_options"], &value("fill")["params_input"]),
        (&json!(["a", "b"]), &json!({"n": 5}))
    );
    assert_eq!(
        (
            &value("default")["chosen_options"],
            &value("default")["params_input"]
        ),
        (&json!(["y"]), &json!({"n": 7}))
    );
    let shown = api.get(&format!("{base}/taskInstances/default/-1/hitlDetails/tries/1"));
    assert_eq!(
        (&shown["response_received"], &shown["responded_by_user"]),
        (&json!(true), &Value::Null)
    );
}
