//! Packages that came without compiled modules are compiled once, wherever they are.

use harness::{Api, Installation, eventually};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// Modules of the package, with the package itself.
const MODULES: usize = 6;

/// A DAG whose task is named after how many modules of the package were compiled for this parse, and returns how many were
/// for its own process.
const DAG_FILE: &str = "import sys
compiled = []
sys.addaudithook(lambda event, told: compiled.append(told[1]) if event == 'compile' else None)
from airflow.sdk import dag, task
import slowly_built
def count():
    return sum('slowly_built' in str(name) for name in compiled)
@dag('counts', schedule=None)
def d():
    @task
    def of_the_task():
        return count()
    @task(task_id=f'compiled_{count()}')
    def of_the_parse():
        pass
    of_the_task()
    of_the_parse()
d()
";

fn package(site: &Path) {
    let folder = site.join("slowly_built");
    std::fs::create_dir_all(&folder).expect("a folder");
    let names: Vec<String> = (1..MODULES).map(|at| format!("part{at}")).collect();
    let imports = names.iter().map(|name| format!("from . import {name}\n"));
    std::fs::write(folder.join("__init__.py"), imports.collect::<String>()).expect("a module");
    for name in names {
        std::fs::write(folder.join(format!("{name}.py")), "VALUE = 1\n").expect("a module");
    }
}

fn wait_for_compiled(api: &Api, what: &str, count: usize) {
    let wanted = format!("compiled_{count}");
    eventually(what, PATIENCE, || {
        let tasks = api.get("/api/v2/dags/counts/tasks");
        let names = tasks["tasks"].as_array().into_iter().flatten();
        let mut names = names.filter_map(|task| task["task_id"].as_str());
        match names.find(|name| name.starts_with("compiled_")) {
            Some(name) if name == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn modules_of_a_package_without_any_are_compiled_by_the_first_parse_and_never_again() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    let site = installation.path().join("lib/site-packages");
    package(&site);
    installation.set("PYTHONPATH", &site.to_string_lossy());
    installation.dag("counts.py", DAG_FILE);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("counts");
    wait_for_compiled(&api, "the first parse compiles each module", MODULES);
    let touch = || {
        let path = installation.path().join("dags/counts.py");
        let file = std::fs::File::options()
            .append(true)
            .open(path)
            .expect("the file");
        file.set_modified(std::time::SystemTime::now()).expect("a time");
    };
    touch();
    wait_for_compiled(&api, "the second parse compiles none", 0);
    let run_id = api.trigger("counts", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("counts", &run_id), "success");
    let path =
        format!("/api/v2/dags/counts/dagRuns/{run_id}/taskInstances/of_the_task/xcomEntries/return_value");
    assert_eq!(api.get(&path)["value"], 0, "a task compiles none, either");
    // Another source is compiled, and that one alone.
    std::fs::write(site.join("slowly_built/part1.py"), "VALUE = 22\n").expect("a module");
    touch();
    wait_for_compiled(&api, "a module that changed is compiled", 1);
    touch();
    wait_for_compiled(&api, "and only once", 0);
    assert!(
        !site.join("slowly_built/__pycache__").exists(),
        "nothing is written beside sources"
    );
}
