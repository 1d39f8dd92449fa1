//! DAG files come from several bundles: folders of this machine, and what a Python class fetches.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const LOCAL: &str = "airflow.dag_processing.bundles.local.LocalDagBundle";
const OPTION: &str = "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST";

fn put(folder: &Path, name: &str, text: &str) {
    std::fs::create_dir_all(folder).expect("a folder");
    let draft = folder.join(format!("{name}.draft"));
    std::fs::write(&draft, text).expect("a file");
    std::fs::rename(&draft, folder.join(name)).expect("a file");
}

/// A file with a DAG whose task returns what the module `helper` of its bundle says.
fn says(dag_id: &str) -> String {
    format!(
        "from airflow.sdk import dag, task
@dag('{dag_id}', schedule=None)
def d():
    @task
    def say(ti=None):
        from helper import WORD
        return f'{{WORD}} {{ti.bundle_instance.name}} {{ti.bundle_instance.version}}'
    say()
d()
"
    )
}

fn local(name: &str, path: &Path) -> Value {
    json!({"name": name, "classpath": LOCAL, "kwargs": {"path": path}})
}

fn start(installation: &mut Installation, bundles: &[Value]) -> (Process, Api) {
    installation.set(OPTION, &json!(bundles).to_string());
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    (process, api)
}

fn word_of(api: &Api, dag_id: &str) -> String {
    let run_id = api.trigger(dag_id, &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end(dag_id, &run_id), "success", "{dag_id}");
    let path = format!("/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/say/xcomEntries/return_value");
    let value = &api.get(&path)["value"];
    value.as_str().unwrap_or_default().to_owned()
}

fn facts(api: &Api, dag_id: &str) -> Value {
    let dag = api.get(&format!("/api/v2/dags/{dag_id}"));
    json!([dag["bundle_name"], dag["relative_fileloc"], dag["is_stale"]])
}

fn errors(api: &Api) -> Vec<Value> {
    let all = api.get("/api/v2/importErrors");
    let all = all["import_errors"].as_array().cloned().unwrap_or_default();
    let mut found: Vec<Value> = all
        .iter()
        .map(|error| json!([error["bundle_name"], error["filename"]]))
        .collect();
    found.sort_by_key(Value::to_string);
    found
}

#[test]
fn files_of_several_bundles_may_have_one_name_and_leave_with_their_bundle() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    let (first, second) = (installation.path().join("z1"), installation.path().join("b2"));
    for (folder, dag_id) in [(&first, "one"), (&second, "two")] {
        put(folder, "same.py", &says(dag_id));
        put(folder, "helper.py", &format!("WORD = 'of {dag_id}'\n"));
        put(folder, "twice.py", &says("twice"));
        put(folder, "broken.py", "# airflow DAG\n1 / 0\n");
    }
    let both = [local("first", &first), local("second", &second)];
    let (mut process, api) = start(&mut installation, &both);
    for dag_id in ["one", "two", "twice"] {
        api.wait_for_dag(dag_id);
    }
    assert_eq!(facts(&api, "one"), json!(["first", "same.py", false]));
    assert_eq!(facts(&api, "two"), json!(["second", "same.py", false]));
    // The order of the list decides, not that of the names or of the parses.
    let expected = [
        json!(["first", "broken.py"]),
        json!(["second", "broken.py"]),
        json!(["second", "twice.py"]),
    ];
    eventually("each file has its errors", PATIENCE, || {
        let (found, twice) = (errors(&api), facts(&api, "twice"));
        if found == expected && twice == json!(["first", "twice.py", false]) {
            return Ok(());
        }
        Err(format!("{found:?} {twice}"))
    });
    assert_eq!(word_of(&api, "one"), "of one first None");
    assert_eq!(word_of(&api, "two"), "of two second None");
    assert_eq!(word_of(&api, "twice"), "of one first None");
    let source = api.get("/api/v2/dagSources/two")["content"].clone();
    assert!(
        source.as_str().is_some_and(|text| text.contains("'two'")),
        "{source}"
    );
    let listed = api.get("/api/v2/dags?bundle_name=second");
    assert_eq!(listed["total_entries"], 1, "{listed}");
    // A DAG goes over to another bundle.
    put(&second, "moves.py", &says("moves"));
    api.wait_for_dag("moves");
    std::fs::rename(second.join("moves.py"), first.join("moves.py")).expect("a file");
    eventually("it is of the other bundle", PATIENCE, || {
        let found = facts(&api, "moves");
        if found == json!(["first", "moves.py", false]) {
            return Ok(());
        }
        Err(found.to_string())
    });
    assert_eq!(word_of(&api, "moves"), "of one first None");
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(process.wait(PATIENCE), "{}", process.output());
    let (_process, api) = start(&mut installation, &both[1..]);
    eventually("the bundle is gone with all that it had", PATIENCE, || {
        let (found, twice, one) = (errors(&api), facts(&api, "twice"), facts(&api, "one"));
        let is_gone = one == json!(["first", "same.py", true]) && found == [json!(["second", "broken.py"])];
        if is_gone && twice == json!(["second", "twice.py", false]) {
            return Ok(());
        }
        Err(format!("{found:?} {twice} {one}"))
    });
    assert_eq!(word_of(&api, "twice"), "of two second None");
}

const FETCHED: &str = "from pathlib import Path
from airflow.dag_processing.bundles.base import BaseDagBundle, BundleVersion
class Fetched(BaseDagBundle):
    supports_versioning = True
    def __init__(self, *, root, **kwargs):
        super().__init__(**kwargs)
        self.root = Path(root)
    def current(self):
        return self.version or (self.root / 'current').read_text().strip()
    def get_current_version(self):
        return BundleVersion(self.current())
    def refresh(self):
        assert not self.version, 'only the latest can be refreshed'
        (self.root / 'refreshed').touch()
    @property
    def path(self):
        return self.root / self.current()
";

#[test]
fn a_bundle_that_a_class_fetches_is_refreshed_and_its_tasks_run_in_the_version_that_was_parsed() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    let (modules, root) = (
        installation.path().join("modules"),
        installation.path().join("root"),
    );
    put(&modules, "fetched.py", FETCHED);
    for version in ["v1", "v2"] {
        put(&root.join(version), "same.py", &says("versioned"));
        put(
            &root.join(version),
            "helper.py",
            &format!("WORD = 'in {version}'\n"),
        );
    }
    put(&root.join("v2"), "new.py", &says("only_in_v2"));
    installation.set("PYTHONPATH", &modules.to_string_lossy());
    let bundle = |interval: u32| {
        json!({"name": "fetched", "classpath": "fetched.Fetched",
               "kwargs": {"root": root, "refresh_interval": interval}})
    };
    // It cannot be fetched at first, and the others do not wait for it.
    put(&installation.path().join("dags"), "helper.py", "WORD = 'local'\n");
    put(&installation.path().join("dags"), "mine.py", &says("mine"));
    let mine = json!({"name": "dags-folder", "classpath": LOCAL, "kwargs": {}});
    let (mut process, api) = start(&mut installation, &[mine.clone(), bundle(1)]);
    api.wait_for_dag("mine");
    assert_eq!(word_of(&api, "mine"), "local dags-folder None");
    put(&root, "current", "v1\n");
    api.wait_for_dag("versioned");
    assert_eq!(word_of(&api, "versioned"), "in v1 fetched v1");
    assert!(root.join("refreshed").exists());
    put(&root, "current", "v2\n");
    api.wait_for_dag("only_in_v2");
    eventually("the version is shown", PATIENCE, || {
        let shown = api.get("/api/v2/dags/versioned")["bundle_version"].clone();
        if shown == "v2" {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    });
    eventually("tasks run in it", PATIENCE, || {
        match word_of(&api, "versioned").as_str() {
            "in v2 fetched v2" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    // While it cannot be fetched nothing of it is gone.
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(process.wait(PATIENCE), "{}", process.output());
    put(
        &modules,
        "fetched.py",
        &format!("{FETCHED}\n    def initialize(self):\n        raise ConnectionError('away')\n"),
    );
    let (process, api) = start(&mut installation, &[mine, bundle(1)]);
    eventually("it is told", PATIENCE, || {
        let output = process.output();
        if output.contains("ConnectionError: away") {
            Ok(())
        } else {
            Err(output)
        }
    });
    assert_eq!(facts(&api, "versioned"), json!(["fetched", "same.py", false]));
}

#[test]
fn a_list_of_bundles_that_airflow_refuses_is_an_error_at_the_start() {
    let Some(python) = harness::python() else { return };
    for (list, words) in [
        ("[{", "JSON list"),
        (r#"[{"name": "a"}]"#, "classpath"),
        (
            r#"[{"name": "example_dags", "classpath": "x.Y", "kwargs": {}}]"#,
            "load_examples",
        ),
        (
            r#"[{"name": "a", "classpath": "x.Y", "kwargs": {}}, {"name": "a", "classpath": "x.Y", "kwargs": {}}]"#,
            "twice",
        ),
    ] {
        let mut installation = Installation::new(&python);
        installation.set(OPTION, list);
        let (has_succeeded, output) = installation.run("updraft", &["standalone"]);
        assert!(!has_succeeded, "{list}: {output}");
        assert!(
            output.contains("dag_bundle_config_list") && output.contains(words),
            "{list}: {output}"
        );
    }
}
