//! Every try ends, and what the infrastructure loses is no try of the user's: claims whose answers were lost, reports that
//! the database refuses, logs that cannot be written, workers that die with a report in hand or cannot start a task.

use harness::{Api, Cluster, Installation, ManualWorker, eventually, membership, signed};
use proto::v1::{AppendLogRequest, Ending, ReportRequest, XCom};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(90);

const DAGS: &str = r#"
from datetime import timedelta
from airflow.sdk import DAG, BaseOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

class Defers(BaseOperator):
    def execute(self, context):
        # The name of a method has 1000 characters at most.
        self.defer(trigger=TimeDeltaTrigger(timedelta(hours=1)), method_name="m" * 1200)

with DAG("refused", schedule=None):
    Defers(task_id="updates", retries=0)

with DAG("unheard", schedule=None):
    BashOperator(task_id="t", bash_command="true", queue="nobody")

with DAG("in_hand", schedule=None):
    BashOperator(task_id="t", bash_command="touch {{ dag_run.conf['flag'] }}.began; while [ ! -e {{ dag_run.conf['flag'] }} ]; do sleep 0.1; done; echo it ran >> {{ dag_run.conf['flag'] }}")

with DAG("sick", schedule=None):
    BashOperator(task_id="t", bash_command="true")
"#;

fn task(api: &Api, dag_id: &str, run_id: &str) -> Value {
    api.tasks(dag_id, run_id).into_iter().next().unwrap_or_default()
}

#[test]
fn nothing_that_breaks_around_a_task_keeps_it_running_or_costs_it_a_try() {
    let lease = ("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", "40");
    let Some(mut cluster) = Cluster::start_with(&[lease]) else {
        return;
    };
    cluster.installation.dag("endings.py", DAGS);
    cluster.api.wait_for_dag("sick");
    a_report_that_the_database_refuses_ends_its_try_with_the_reason(&cluster.api);
    a_claim_whose_answer_is_lost_goes_back_as_the_same_try(&cluster);
    a_report_in_hand_outlives_its_worker(&mut cluster);
    a_worker_that_cannot_start_tasks_takes_none_and_says_so(&mut cluster);
}

fn a_report_that_the_database_refuses_ends_its_try_with_the_reason(api: &Api) {
    let run = api.trigger("refused", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("refused", &run), "failed");
    let log = api.log("refused", &run, "updates", 1).join("\n");
    assert!(
        log.contains("could not be stored") && log.contains("too long"),
        "{log}"
    );
}

fn a_claim_whose_answer_is_lost_goes_back_as_the_same_try(cluster: &Cluster) {
    let api = &cluster.api;
    let run = api.trigger("unheard", &json!({"logical_date": null}));
    let id = eventually("it is queued", PATIENCE, || {
        let task = task(api, "unheard", &run);
        match task["state"].as_str() {
            Some("queued") => Ok(task["id"].as_str().unwrap_or_default().to_owned()),
            _ => Err(task.to_string()),
        }
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let member = membership("default", "deaf");
        let worker = ManualWorker::register(&cluster.installation, &member, "deaf").await;
        let mut worker = worker.expect("a lease");
        let first = worker.claim(&id).await;
        // The answer is lost; the worker knows of nothing.
        assert!(worker.beat(1).await.expect("a reply").alive);
        assert_eq!(task(api, "unheard", &run)["state"], "running");
        assert!(worker.beat(2).await.expect("a reply").alive);
        eventually("it is queued again", PATIENCE, || {
            let task = task(api, "unheard", &run);
            match (task["state"].as_str(), task["try_number"].as_i64()) {
                (Some("queued"), Some(1)) => Ok(()),
                _ => Err(task.to_string()),
            }
        });
        let second = worker.claim(&id).await;
        assert_eq!((first.epoch, second.epoch), (1, 2));
        a_claim_that_has_ended_writes_nothing(&mut worker, &first.token, &second.token).await;
        assert_eq!(task(api, "unheard", &run)["state"], "running");
        let log = api.log("unheard", &run, "t", 1);
        assert_eq!(
            log.last().map(String::as_str),
            Some("the second claim's"),
            "{log:?}"
        );
        let xcoms = api.get(&format!(
            "/api/v2/dags/unheard/dagRuns/{run}/taskInstances/t/xcomEntries"
        ));
        assert_eq!(xcoms["total_entries"], 0, "{xcoms}");
    });
}

/// Neither a report, nor a log, nor an answer to a question changes anything under a claim that is not the current one.
async fn a_claim_that_has_ended_writes_nothing(worker: &mut ManualWorker, ended: &str, current: &str) {
    let text = |text: &str| format!("{}\n", json!({"event": text})).into_bytes();
    let own = AppendLogRequest {
        offset: 0,
        data: text("the second claim's").into(),
    };
    let written = worker.client.append_log(signed(own.clone(), current)).await;
    let length = written.expect("a log").into_inner().length;
    let log = AppendLogRequest {
        offset: length,
        data: text("late").into(),
    };
    let refused = worker.client.append_log(signed(log, ended)).await;
    assert_eq!(refused.expect_err("stale").code(), Code::FailedPrecondition);
    for ending in [Ending::Success, Ending::Failed, Ending::NeverStarted] {
        let report = ReportRequest {
            ending: ending.into(),
            xcoms: vec![XCom {
                key: "late".to_owned(),
                value: "1".to_owned(),
                mapped_length: None,
            }],
            log_offset: length,
            log_tail: text("late").into(),
            ..ReportRequest::default()
        };
        let reply = worker.client.report(signed(report, ended)).await;
        assert!(reply.expect("an answer").into_inner().stale, "{ending:?}");
    }
    let question = json!({"type": "SetTaskStateStore", "key": "late", "value": "1"});
    let refused = worker.ask(ended, &question).await.expect_err("stale");
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

fn a_report_in_hand_outlives_its_worker(cluster: &mut Cluster) {
    let flag = cluster.installation.path().join("flag");
    let conf = json!({"flag": flag.to_string_lossy()});
    let run = cluster
        .api
        .trigger("in_hand", &json!({"logical_date": null, "conf": conf}));
    eventually("it runs", PATIENCE, || {
        let began = flag.with_extension("began").exists();
        began
            .then_some(())
            .ok_or_else(|| task(&cluster.api, "in_hand", &run).to_string())
    });
    cluster.kill("api-server");
    std::fs::write(&flag, "").expect("a flag");
    let reports = cluster.installation.path().join(".updraft/reports");
    eventually("its report is written down", PATIENCE, || {
        match spooled(&reports) {
            0 => Err("no report".to_owned()),
            _ => Ok(()),
        }
    });
    cluster.kill("worker-1");
    cluster.kill("worker-2");
    cluster.restart("api-server");
    assert_eq!(cluster.api.wait_for_end("in_hand", &run), "success");
    assert_eq!(task(&cluster.api, "in_hand", &run)["try_number"], 1);
    let ran = std::fs::read_to_string(&flag).unwrap_or_default();
    assert_eq!(ran.lines().count(), 1, "a finished task is not run again: {ran}");
    eventually("nothing is left of it", PATIENCE, || match spooled(&reports) {
        0 => Ok(()),
        count => Err(format!("{count} reports")),
    });
}

fn spooled(folder: &Path) -> usize {
    let files = |entry: std::fs::DirEntry| std::fs::read_dir(entry.path()).map_or(0, |files| files.count());
    std::fs::read_dir(folder).map_or(0, |entries| entries.flatten().map(files).sum())
}

fn a_worker_that_cannot_start_tasks_takes_none_and_says_so(cluster: &mut Cluster) {
    let (real, ours) = (
        cluster.installation.environment()["AIRFLOW__UPDRAFT__PYTHON"].clone(),
        cluster.installation.path().join("python"),
    );
    let write = |text: &str| {
        let draft = ours.with_extension("draft");
        std::fs::write(&draft, text).expect("a script");
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).expect("a script");
        std::fs::rename(&draft, &ours).expect("a script");
    };
    write("#!/bin/sh\necho this interpreter is broken >&2\nexit 1\n");
    cluster
        .installation
        .set("AIRFLOW__UPDRAFT__PYTHON", &ours.to_string_lossy());
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let port = port.expect("a free port").port();
    cluster
        .installation
        .set("AIRFLOW__UPDRAFT__METRICS_PORT", &port.to_string());
    cluster.restart("worker-1");
    let health = |wanted: u16, problem: &str| {
        eventually("its health says so", PATIENCE, || {
            match Api::new(port).call("GET", "/health", None) {
                Ok((status, text)) if status == wanted && text.to_string().contains(problem) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    };
    health(503, "tasks that need Python cannot run");
    let api = &cluster.api;
    let run = api.trigger("sick", &json!({"logical_date": null}));
    eventually("it is explained", PATIENCE, || {
        let path = format!("/api/v2/dags/sick/dagRuns/{run}/taskInstances/t/dependencies");
        let text = api.get(&path)["explanation"].to_string();
        match text.contains("but is not well") && text.contains("tasks that need Python cannot run") {
            true => Ok(()),
            false => Err(text),
        }
    });
    write(&format!("#!/bin/sh\nexec {real} \"$@\"\n"));
    assert_eq!(api.wait_for_end("sick", &run), "success");
    assert_eq!(task(api, "sick", &run)["try_number"], 1);
    health(200, "healthy");
}

const LOUD: &str = r#"
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator

with DAG("quiet", schedule=None):
    BashOperator(task_id="t", bash_command="echo a line of the log")

with DAG("long", schedule=None):
    BashOperator(task_id="語" * 250, bash_command="echo a line of the log")

with DAG("loud", schedule=None):
    BashOperator(task_id="t", bash_command="yes 0123456789012345678901234567890123456789 | head -c 9000000; while [ ! -e $AIRFLOW_HOME/space ]; do sleep 0.1; done; sleep 4; echo the last line")
"#;

#[test]
fn a_log_is_no_condition_for_the_end_of_a_try() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    installation.dag("loud.py", LOUD);
    let _process = installation.start("updraft", &["standalone"], &[]);
    let api = installation.api();
    api.wait_for_dag("loud");
    // Ids of the legal length whose folders' names would be too long, in one byte a letter and in several.
    let long = json!({"logical_date": null, "dag_run_id": "k".repeat(250)});
    let run = api.trigger("long", &long);
    assert_eq!(api.wait_for_end("long", &run), "success");
    let log = api.log("long", &run, &"%E8%AA%9E".repeat(250), 1).join("\n");
    assert!(log.contains("a line of the log"), "{log}");
    // A folder that is none.
    let logs = installation.path().join("logs");
    let aside = installation.path().join("aside");
    std::fs::rename(&logs, &aside).expect("the logs");
    std::fs::write(&logs, "no folder").expect("a file");
    let run = api.trigger("quiet", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("quiet", &run), "success");
    let health = api.get("/api/v2/monitor/health");
    assert_eq!(health["task_logs"]["status"], "unhealthy", "{health}");
    std::fs::remove_file(&logs).expect("a file");
    std::fs::rename(&aside, &logs).expect("the logs");
    let run = api.trigger("quiet", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("quiet", &run), "success");
    assert!(api.get("/api/v2/monitor/health").get("task_logs").is_none());
    a_full_disk_leaves_a_mark_in_the_log(&installation, &api);
}

/// Runs only where a small file system may be mounted.
fn a_full_disk_leaves_a_mark_in_the_log(installation: &Installation, api: &Api) {
    let disk = installation.path().join("logs/dag_id=loud");
    std::fs::create_dir_all(&disk).expect("a folder");
    let mount = |arguments: &[&str]| {
        let mut command = std::process::Command::new("mount");
        command
            .args(arguments)
            .arg(&disk)
            .status()
            .is_ok_and(|status| status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=32m", "tmpfs"]) {
        return;
    }
    let _mounted = Mounted(&disk);
    let filler = disk.join("filler");
    // A write that fails in the middle is what is meant here.
    std::fs::write(&filler, vec![0; 33 << 20]).expect_err("the disk is full");
    let run = api.trigger("loud", &json!({"logical_date": null}));
    eventually("the disk is said to be full", PATIENCE, || {
        let health = api.get("/api/v2/monitor/health");
        match health["task_logs"]["problem"].as_str() {
            Some(problem) if problem.contains("space") => Ok(()),
            _ => Err(health.to_string()),
        }
    });
    // Others end all the same.
    let other = api.trigger("quiet", &json!({"logical_date": null}));
    assert_eq!(api.wait_for_end("quiet", &other), "success");
    std::fs::remove_file(&filler).expect("the filler");
    std::fs::write(installation.path().join("space"), "").expect("a flag");
    assert_eq!(api.wait_for_end("loud", &run), "success");
    let file = disk.join(format!("run_id={run}/task_id=t/attempt=1.log"));
    let log = std::fs::read_to_string(file).expect("a log");
    let mark = log
        .lines()
        .find(|line| line.contains("bytes of this log are left out here"));
    assert!(
        mark.is_some_and(|mark| mark.contains("space")),
        "{} bytes",
        log.len()
    );
    assert!(log.contains("the last line"));
    let whole = |line: &str| serde_json::from_str::<Value>(line).is_ok();
    assert!(log.lines().all(whole), "no half lines are left");
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0)
            .status()
            .ok();
    }
}
