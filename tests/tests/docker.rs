//! Tasks in containers of a real Docker engine.

use harness::{Api, Cluster, Engine, IMAGE, Installation, Process, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

/// Each task twice: as a DockerOperator, which runs natively, and as a subclass of it, which runs in Python.
const TWINS: &str = r#"
from airflow.sdk import DAG
from airflow.providers.docker.operators.docker import DockerOperator

class Twin(DockerOperator):
    pass

CASES = {
    "text": dict(command="sh -c 'echo {{ run_id }} $WHO $HID; printf last'", environment={"WHO": "{{ dag.dag_id }}", "API_KEY": "hidden1"},
                 private_environment={"HID": "hidden2"}, tmp_dir="/scratch"),
    "words": dict(command=["sh", "-c", "test -d $AIRFLOW_TMP_DIR && echo grüße 世界"], working_dir="/data", hostname="here"),
    "fails": dict(command="sh -c 'echo before; exit 3'", auto_remove="force"),
    "skips": dict(command="sh -c 'exit 9'", skip_on_exit_code=[9, 10], auto_remove="success"),
    "all": dict(command="seq 3", xcom_all=True, mount_tmp_dir=False, labels=["mine"]),
    "limits": dict(command="sh -c 'id -u; cat /proc/1/limits | awk \"/open files/ {print \\$4}\"; cat /proc/1/status | awk \"/CapBnd/\"'",
                   user="1000", cap_add=["SYS_TIME"], mem_limit="64m", cpus=0.5, shm_size=8388608, xcom_all=True),
    "terminal": dict(command="sh -c 'echo ü; test -t 1 && echo tty'", tty=True, xcom_all=True),
    "silent": dict(command="true", do_xcom_push=True),
    "memory": dict(command="sh -c 'x=a; while true; do x=$x$x; done'", mem_limit="32m"),
    "absent": dict(command="/absent"),
    "entry": dict(command="entry", entrypoint=["echo", "from"]),
}

with DAG("twins", schedule=None, max_active_tasks=4) as dag:
    for kind, prefix in ((DockerOperator, "native"), (Twin, "python")):
        for name, arguments in CASES.items():
            kind(task_id=f"{prefix}_{name}", image="IMAGE", **arguments)
"#;

/// An installation whose containers are made by the test engine.
fn standalone(engine: &Engine, dags: &[(&str, &str)]) -> Option<(Installation, Process, Api)> {
    let mut installation = Installation::new(&harness::python()?);
    installation.set("DOCKER_HOST", engine.address());
    for (name, text) in dags {
        installation.dag(name, &text.replace("IMAGE", IMAGE));
    }
    let process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    Some((installation, process, api))
}

/// What a user sees of a task, without what only a Python process says of itself.
fn seen(api: &Api, run_id: &str, task: &str) -> Value {
    let path = format!(
        "/api/v2/dags/twins/dagRuns/{}/taskInstances/{task}",
        run_id.replace('+', "%2B")
    );
    let found = api.get(&path);
    let xcom = api.call("GET", &format!("{path}/xcomEntries/return_value"), None);
    let log: Vec<String> = api
        .log("twins", run_id, task, 1)
        .into_iter()
        .filter(|line| {
            let own = [
                "Worker startup",
                "Task instance startup",
                "DAG bundles loaded",
                "Filling up the DagBag",
                "Log message source",
            ];
            // Native tasks name what exit codes do not say.
            let cause = line.starts_with("the container ");
            let place = line.contains("/logs/dag_id=");
            !own.iter().any(|text| line.starts_with(text)) && !cause && !place
        })
        .collect();
    json!({
        "state": found["state"], "fields": found["rendered_fields"], "log": log,
        "xcom": xcom.ok().filter(|(status, _)| *status == 200).map(|(_, entry)| entry["value"].clone()),
    })
}

#[test]
fn a_container_runs_the_same_natively_and_in_python() {
    let Some(engine) = Engine::find() else { return };
    let Some((_home, _process, api)) = standalone(&engine, &[("twins.py", TWINS)]) else {
        return;
    };
    api.wait_for_dag("twins");
    let run_id = api.trigger("twins", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("twins", &run_id), "failed");
    let names: Vec<String> = api
        .tasks("twins", &run_id)
        .iter()
        .filter_map(|task| {
            task["task_id"]
                .as_str()?
                .strip_prefix("native_")
                .map(str::to_owned)
        })
        .collect();
    assert_eq!(names.len(), 11);
    for name in &names {
        let native = seen(&api, &run_id, &format!("native_{name}"));
        let python = seen(&api, &run_id, &format!("python_{name}"));
        assert_eq!(native, python, "{name}");
        assert!(!native.to_string().contains("hidden1"), "{native}");
    }
    let states: Vec<Value> = ["text", "fails", "skips"]
        .map(|name| seen(&api, &run_id, &format!("native_{name}"))["state"].clone())
        .into();
    assert_eq!(states, [json!("success"), json!("failed"), json!("skipped")]);
    let log = api.log("twins", &run_id, "native_memory", 1).join("\n");
    assert!(
        log.contains("ran out of memory (its mem_limit is 32 MiB)"),
        "{log}"
    );
    let ran_in_python = |task: &str| {
        let log = api.log("twins", &run_id, task, 1).join("\n");
        log.contains("Filling up the DagBag")
    };
    assert!(names.iter().all(|name| !ran_in_python(&format!("native_{name}"))));
    assert!(names.iter().all(|name| ran_in_python(&format!("python_{name}"))));
}

const SLOW: &str = r#"
from datetime import timedelta
from airflow.sdk import DAG
from airflow.providers.docker.operators.docker import DockerOperator

class Twin(DockerOperator):
    pass

with DAG("slow", schedule=None) as dag:
    for kind, name in ((DockerOperator, "native"), (Twin, "python")):
        kind(task_id=name, image="IMAGE", command="sh -c 'echo up; trap \"echo bye; exit 0\" TERM; while :; do sleep 0.1; done'", auto_remove="force")
"#;

#[test]
fn a_task_that_is_stopped_stops_its_container() {
    let Some(engine) = Engine::find() else { return };
    let Some((_home, _process, api)) = standalone(&engine, &[("slow.py", SLOW)]) else {
        return;
    };
    api.wait_for_dag("slow");
    let run_id = api.trigger("slow", &json!({"logical_date": null, "dag_run_id": "stopped"}));
    for task in ["native", "python"] {
        let label = format!("updraft.task_id={task}");
        eventually("the container runs", PATIENCE, || match engine.running(&label) {
            ids if ids.len() == 1 => Ok(()),
            ids => Err(format!("{ids:?} {:?}", api.tasks("slow", &run_id))),
        });
        eventually("the container says something", PATIENCE, || {
            match api.log("slow", &run_id, task, 1) {
                log if log.iter().any(|line| line == "up") => Ok(()),
                log => Err(format!("{log:?}")),
            }
        });
        let path = format!("/api/v2/dags/slow/dagRuns/{run_id}/taskInstances/{task}");
        let (status, body) = api
            .call("PATCH", &path, Some(&json!({"new_state": "failed"})))
            .expect("an answer");
        assert_eq!(status, 200, "{body}");
        eventually("the container is gone", PATIENCE, || {
            match engine.running(&label) {
                ids if ids.is_empty() => Ok(()),
                ids => Err(format!("{ids:?}")),
            }
        });
    }
}

const LONG: &str = r#"
from airflow.sdk import DAG
from airflow.providers.docker.operators.docker import DockerOperator

class Twin(DockerOperator):
    pass

COMMAND = ["sh", "-c", "echo start $WHO >> /data/witness; sleep {{ 600 if ti.try_number == 1 else 0 }}; echo end $WHO >> /data/witness"]

with DAG("long", schedule=None) as dag:
    for kind, name in ((DockerOperator, "native"), (Twin, "python")):
        kind(task_id=name, image="IMAGE", command=COMMAND, environment={"WHO": "{{ ti.task_id }}-{{ ti.try_number }}"},
             mounts=[{"Target": "/data", "Source": "FOLDER", "Type": "bind"}])
"#;

#[test]
fn a_killed_workers_container_ends_before_the_next_try_begins() {
    let Some(engine) = Engine::find() else { return };
    let Some(mut cluster) = Cluster::start_with(&[("DOCKER_HOST", engine.address())]) else {
        return;
    };
    let folder = cluster.installation.path().join("data");
    std::fs::create_dir(&folder).expect("a folder");
    let text = LONG
        .replace("IMAGE", IMAGE)
        .replace("FOLDER", &folder.to_string_lossy());
    cluster.installation.dag("long.py", &text);
    cluster.api.wait_for_dag("long");
    let run_id = cluster
        .api
        .trigger("long", &json!({"logical_date": null, "dag_run_id": "killed"}));
    let witness = || std::fs::read_to_string(folder.join("witness")).unwrap_or_default();
    eventually("both containers run", PATIENCE, || match witness() {
        text if text.lines().count() == 2 => Ok(()),
        text => Err(text),
    });
    let own = "updraft.dag_id=long";
    assert_eq!(engine.running(own).len(), 2);
    for role in ["worker-1", "worker-2"] {
        cluster.kill(role);
    }
    eventually(
        "the containers are gone",
        Duration::from_secs(20),
        || match engine.running(own) {
            ids if ids.is_empty() => Ok(()),
            ids => Err(format!("{ids:?}")),
        },
    );
    cluster.restart("worker-1");
    assert_eq!(cluster.api.wait_for_end("long", &run_id), "success");
    let text = witness();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let expected = [
        "end native-2",
        "end python-2",
        "start native-1",
        "start native-2",
        "start python-1",
        "start python-2",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_flood_of_output_is_kept_line_by_line() {
    const LINES: usize = 100_000;
    let Some(engine) = Engine::find() else { return };
    let file = format!(
        "from airflow.sdk import DAG\nfrom airflow.providers.docker.operators.docker import DockerOperator\n\
         with DAG('flood', schedule=None):\n\x20   DockerOperator(task_id='flood', image='IMAGE', command='seq {LINES}')\n"
    );
    let Some((_home, process, api)) = standalone(&engine, &[("flood.py", &file)]) else {
        return;
    };
    api.wait_for_dag("flood");
    let run_id = api.trigger("flood", &json!({"logical_date": null, "dag_run_id": "flood"}));
    assert_eq!(
        api.wait_for_end("flood", &run_id),
        "success",
        "{}",
        process.output()
    );
    let path = format!("/api/v2/dags/flood/dagRuns/{run_id}/taskInstances/flood/logs/1");
    let headers = vec![
        ("Authorization".to_owned(), format!("Bearer {}", api.token())),
        ("Accept".to_owned(), "application/x-ndjson".to_owned()),
    ];
    let log = api.exchange("GET", &path, &headers, "").expect("the log").body;
    let numbers: Vec<usize> = log
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<Value>(line).ok()?["event"]
                .as_str()?
                .parse()
                .ok()
        })
        .collect();
    assert_eq!(numbers, (1..=LINES).collect::<Vec<_>>());
}

/// What the course's image does, but for the movies: `fetch-ratings --start_date A --end_date B --output_path FILE ...`
const FETCH: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in
    --start_date) from=$2;; --end_date) to=$2;; --output_path) out=$2;; --user) user=$2;; --host) host=$2;;
  esac
  shift 2
done
echo "fetching ratings from $from to $to as $user"
mkdir -p "${out%/*}" && wget -q -O "$out" "$host/cgi-bin/ratings?start=$from" && echo "wrote $out"
"#;
const RANK: &str = r#"#!/bin/sh
mkdir -p "${4%/*}" && { echo movie,rating; cat "$2"; } > "$4" && echo "ranked $2"
"#;
const RATINGS: &str = "#!/bin/sh\necho; echo \"1,5.0 $QUERY_STRING\"\n";

#[test]
fn the_container_file_of_a_course_runs_unmodified() {
    let (Some(engine), Some(seeds)) = (Engine::find(), harness::seeds()) else {
        return;
    };
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    installation.set("DOCKER_HOST", engine.address());
    for (name, value) in [
        ("USER", "me"),
        ("PASSWORD", "secret"),
        ("HOST", "http://movielens:5000"),
    ] {
        installation.set(&format!("MOVIELENS_{name}"), value);
    }
    let scratch = installation.path();
    engine.make_image(
        "manning-airflow/movielens-fetch",
        &[("fetch-ratings", FETCH)],
        scratch,
    );
    engine.make_image(
        "manning-airflow/movielens-rank",
        &[("rank-movies", RANK)],
        scratch,
    );
    engine.make_image("updraft-test/ratings:1", &[("ratings", RATINGS)], scratch);
    // What an earlier run of this test may have left.
    engine.try_run(&["rm", "--force", "movielens"]).ok();
    engine.try_run(&["network", "rm", "airflow"]).ok();
    let bridge = "com.docker.network.bridge.name=updraft-test";
    engine.run(&["network", "create", "--opt", bridge, "airflow"]);
    let serve = "mkdir -p /www/cgi-bin && cp /bin/ratings /www/cgi-bin/ratings && printf 'A:*\n' > /etc/httpd.conf; exec httpd -f -p 5000 -h /www";
    let serve = serve.replace("/www/cgi-bin && cp", "/etc /www/cgi-bin && busybox cp");
    engine.run(&[
        "run",
        "--detach",
        "--name",
        "movielens",
        "--network",
        "airflow",
        "updraft-test/ratings:1",
        "sh",
        "-c",
        &serve,
    ]);
    // The file names this folder; the engine makes it, as it did for Airflow 2.
    std::fs::remove_dir_all("/tmp/airflow/data").ok();
    let file = std::fs::read_to_string(seeds.join("01_docker.py")).expect("the course file");
    installation.dag("01_docker.py", &file);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("01_docker");
    let runs = eventually("three days are done", PATIENCE, || {
        let runs = api.get("/api/v2/dags/01_docker/dagRuns?order_by=logical_date")["dag_runs"].clone();
        let states: Vec<&str> = runs
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|run| run["state"].as_str())
            .collect();
        if states == ["success"; 3] {
            Ok(runs)
        } else {
            Err(format!("{states:?}"))
        }
    });
    let run_id = runs[1]["dag_run_id"].as_str().expect("a run id");
    let log = api.log("01_docker", run_id, "fetch_ratings", 1).join("\n");
    assert!(
        log.contains("fetching ratings from 2019-01-02 to 2019-01-03 as me"),
        "{log}"
    );
    let ranking = std::fs::read_to_string("/tmp/airflow/data/rankings/2019-01-02.csv").expect("a ranking");
    assert!(ranking.starts_with("movie,rating\n1,5.0"), "{ranking}");
    engine.run(&["rm", "--force", "movielens"]);
    std::fs::remove_dir_all("/tmp/airflow/data").ok();
}
