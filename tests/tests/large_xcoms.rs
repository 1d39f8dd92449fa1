//! XComs of many megabytes.

use harness::Installation;
use serde_json::json;

const DAG: &str = r#"
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowRuntimeError

with DAG("sizes", schedule=None):
    @task
    def length(value):
        return len(value)

    for mb in (1, 8, 20, 60):
        @task(task_id=f"size_{mb}m")
        def size(mb=mb):
            return "x" * (mb * 1_000_000)
        length.override(task_id=f"length_{mb}m")(size())

    @task
    def too_large(ti=None):
        try:
            ti.xcom_push("large", "x" * 70_000_000)
        except AirflowRuntimeError as error:
            assert "max_message_mb" in str(error), error
            return "refused"

    too_large()
"#;

#[test]
fn xcoms_of_many_megabytes_go_through_and_larger_ones_are_an_error_of_the_task() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    installation.dag("sizes.py", DAG);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("sizes");
    api.trigger("sizes", &json!({"logical_date": null, "dag_run_id": "r"}));
    let state = api.wait_for_end("sizes", "r");
    assert_eq!(state, "success", "{}", process.output());
    for mb in [1, 8, 20, 60] {
        let path =
            format!("/api/v2/dags/sizes/dagRuns/r/taskInstances/length_{mb}m/xcomEntries/return_value");
        assert_eq!(api.get(&path)["value"], json!(mb * 1_000_000), "{mb}");
    }
    let path = "/api/v2/dags/sizes/dagRuns/r/taskInstances/too_large/xcomEntries/return_value";
    assert_eq!(api.get(path)["value"], json!("refused"));
}
