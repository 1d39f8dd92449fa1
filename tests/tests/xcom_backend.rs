//! An XCom backend of the user's own.

use harness::Installation;
use serde_json::json;

const BACKEND: &str = r#"
import json, os, uuid
from airflow.sdk.bases.xcom import BaseXCom

FOLDER = "PATH/kept"

class InFiles(BaseXCom):
    @staticmethod
    def serialize_value(value, *, key=None, task_id=None, dag_id=None, run_id=None, map_index=None):
        os.makedirs(FOLDER, exist_ok=True)
        name = f"{task_id}-{uuid.uuid4()}"
        with open(f"{FOLDER}/{name}", "w") as out:
            json.dump(value, out)
        return BaseXCom.serialize_value(name)

    @staticmethod
    def deserialize_value(result):
        with open(f"{FOLDER}/{BaseXCom.deserialize_value(result)}") as kept:
            return json.load(kept)

    @classmethod
    def purge(cls, xcom, *args):
        os.remove(f"{FOLDER}/{xcom.value}")
"#;

const DAG: &str = r#"
from datetime import timedelta
from airflow.sdk import DAG, task
from airflow.providers.standard.operators.bash import BashOperator

with DAG("kept", schedule=None):
    says = BashOperator(task_id="says", bash_command="echo hello")

    @task(retries=1, retry_delay=timedelta(0))
    def many(ti=None):
        ti.xcom_push("seen", ti.try_number)
        if ti.try_number == 1:
            raise ValueError("once more")
        return [1, 2, 3]

    @task
    def each(n):
        return n * 2

    @task
    def reads(word, numbers):
        return f"{word} {sorted(numbers)}"

    reads(says.output, each.expand(n=many()))
    says >> BashOperator(task_id="renders", bash_command="test {{ ti.xcom_pull('says') }} = hello", do_xcom_push=False)
"#;

#[test]
fn xcoms_go_through_a_backend_of_ones_own() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    let path = installation.path().to_string_lossy().into_owned();
    let plugins = installation.path().join("plugins");
    std::fs::create_dir_all(&plugins).expect("a folder");
    std::fs::write(plugins.join("in_files.py"), BACKEND.replace("PATH", &path)).expect("a module");
    installation.set("AIRFLOW__CORE__XCOM_BACKEND", "in_files.InFiles");
    installation.dag("kept.py", DAG);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("kept");
    api.trigger("kept", &json!({"logical_date": null, "dag_run_id": "r"}));
    let state = api.wait_for_end("kept", "r");
    assert_eq!(state, "success", "{}", process.output());
    let kept: Vec<String> = std::fs::read_dir(installation.path().join("kept"))
        .expect("a folder")
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    let of = |task: &str| {
        kept.iter()
            .filter(|name| name.starts_with(&format!("{task}-")))
            .count()
    };
    // What the first try of `many` left is gone from where the backend kept it.
    assert_eq!(
        (of("says"), of("many"), of("each"), of("reads")),
        (1, 2, 3, 1),
        "{kept:?}"
    );
    let path = "/api/v2/dags/kept/dagRuns/r/taskInstances/reads/xcomEntries/return_value";
    let reference = api.get(path)["value"].as_str().unwrap_or_default().to_owned();
    let text = std::fs::read_to_string(installation.path().join("kept").join(reference)).expect("it");
    assert_eq!(text, "\"hello [2, 4, 6]\"");
}
