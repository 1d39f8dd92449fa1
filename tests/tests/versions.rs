//! Runs go on with the latest version of their DAG.

use harness::{Api, Installation, Process, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// A server whose DAG `versions` has these tasks.
fn server(tasks: &str) -> Option<(Installation, Process, Api)> {
    let python = harness::python()?;
    let installation = Installation::new(&python);
    write(&installation, tasks);
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("versions");
    Some((installation, process, api))
}

fn write(installation: &Installation, tasks: &str) {
    let head = "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator as Bash\n";
    let path = installation.path().to_string_lossy();
    let tasks = tasks.replace("PATH", &path);
    installation.dag(
        "versions.py",
        &format!("{head}with DAG('versions', schedule=None):\n    {tasks}\n"),
    );
}

fn wait_for_version(api: &Api, number: u64) {
    eventually("there is another version", PATIENCE, || {
        match api.get("/api/v2/dags/versions/dagVersions")["total_entries"].as_u64() {
            Some(found) if found == number => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// `task state try_number max_tries version_number` of each.
fn states(api: &Api, run_id: &str) -> Vec<String> {
    let mut states: Vec<String> = api
        .tasks("versions", run_id)
        .iter()
        .map(|ti| {
            let word = |key: &str| ti[key].as_str().unwrap_or("none").to_owned();
            let version = &ti["dag_version"]["version_number"];
            format!(
                "{} {} {} {} v{version}",
                word("task_id"),
                word("state"),
                ti["try_number"],
                ti["max_tries"]
            )
        })
        .collect();
    states.sort();
    states
}

fn clear(api: &Api, run_id: &str, body: &Value) {
    let path = format!("/api/v2/dags/versions/dagRuns/{run_id}/clear").replace('+', "%2B");
    let (status, answer) = api.call("POST", &path, Some(body)).expect("an answer");
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn a_cleared_run_goes_on_with_the_latest_version() {
    let Some((installation, _process, api)) = server("Bash(task_id='old', bash_command='true')") else {
        return;
    };
    let run_id = api.trigger("versions", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("versions", &run_id), "success");
    write(
        &installation,
        "Bash(task_id='old', bash_command='true', retries=3) >> Bash(task_id='new', bash_command='true')",
    );
    wait_for_version(&api, 2);
    let clear = |body: Value| {
        clear(&api, &run_id, &body);
        assert_eq!(api.wait_for_end("versions", &run_id), "success");
        states(&api, &run_id)
    };
    let only_new = clear(json!({"dry_run": false, "only_new": true}));
    assert_eq!(only_new, ["new success 1 0 v2", "old success 1 0 v1"]);
    let all = clear(json!({"dry_run": false, "run_on_latest_version": false}));
    assert_eq!(all, ["new success 2 1 v2", "old success 2 4 v2"]);
    // What ran before stays known by its own version.
    let run = api.get(&format!("/api/v2/dags/versions/dagRuns/{run_id}").replace('+', "%2B"));
    let versions = run["dag_versions"].as_array().map(|versions| {
        let numbers = versions.iter().map(|version| version["version_number"].as_u64());
        numbers.collect::<Vec<_>>()
    });
    assert_eq!(versions, Some(vec![Some(1), Some(2)]));
    let path = format!("/api/v2/dags/versions/dagRuns/{run_id}/taskInstances/old/tries");
    let tries = api.get(&path.replace('+', "%2B"));
    let number = |at: usize| tries["task_instances"][at]["dag_version"]["version_number"].as_u64();
    assert_eq!((number(0), number(1)), (Some(1), Some(2)));
}

#[test]
fn a_running_run_takes_over_what_changed_in_its_dag() {
    let first = "Bash(task_id='first', bash_command='until test -e PATH/go; do sleep 0.1; done')";
    let before = format!(
        "{first} >> [Bash(task_id='word', bash_command='echo before'), Bash(task_id='gone', bash_command='true')]"
    );
    let Some((installation, _process, api)) = server(&before) else {
        return;
    };
    let run_id = api.trigger("versions", &json!({"logical_date": null}));
    eventually("the first task runs", PATIENCE, || {
        let states = states(&api, &run_id);
        match states[0].starts_with("first running") {
            true => Ok(()),
            false => Err(format!("{states:?}")),
        }
    });
    write(
        &installation,
        &format!(
            "{first} >> Bash(task_id='word', bash_command='echo after') >> Bash(task_id='new', bash_command='true')"
        ),
    );
    wait_for_version(&api, 2);
    eventually("the run has the new task", PATIENCE, || {
        let states = states(&api, &run_id);
        match states.iter().any(|state| state.starts_with("new ")) {
            true => Ok(()),
            false => Err(format!("{states:?}")),
        }
    });
    std::fs::write(installation.path().join("go"), "").expect("a sign");
    assert_eq!(api.wait_for_end("versions", &run_id), "success");
    let expected = [
        "first success 1 0 v2",
        "gone removed 0 0 v2",
        "new success 1 0 v2",
        "word success 1 0 v2",
    ];
    assert_eq!(states(&api, &run_id), expected);
    let path = format!("/api/v2/dags/versions/dagRuns/{run_id}/taskInstances/word/xcomEntries/return_value");
    assert_eq!(api.get(&path.replace('+', "%2B"))["value"], json!("after"));

    // A task that comes back is wanted again.
    write(&installation, "Bash(task_id='gone', bash_command='true')");
    wait_for_version(&api, 3);
    clear(&api, &run_id, &json!({"dry_run": false}));
    assert_eq!(api.wait_for_end("versions", &run_id), "success");
    let gone = states(&api, &run_id);
    assert_eq!(gone[1], "gone success 1 0 v3", "{gone:?}");
}
