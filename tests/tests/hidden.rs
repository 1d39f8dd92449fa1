//! What a task can see of the worker that runs it, as the same user: neither memory nor environment of the worker, or of its
//! watchdog.

use harness::{Installation, eventually};
use serde_json::json;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// A user that is not root: root reads everything.
const NOBODY: u32 = 65534;

/// Tries to read what it can of every process that it could send a signal to, of a process of its own above all.
const LOOK: &str = r#"
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator

with DAG("looks", schedule=None):
    BashOperator(task_id="t", queue="nobody", bash_command="""
        sleep 60 &
        own=$!
        trap 'kill $own' EXIT
        try() {
            for what in environ maps; do
                if head -c 1 /proc/$2/$what > /dev/null 2>&1; then echo "$1 $what read"; else echo "$1 $what denied"; fi
            done
            at=$(sed -n 's/^\\([0-9a-f]*\\)-.*rw-p.*/\\1/p' /proc/$2/maps 2> /dev/null | head -1)
            if dd if=/proc/$2/mem bs=1 count=1 skip=$((16#${at:-0})) > /dev/null 2>&1; then echo "$1 mem read"; else echo "$1 mem denied"; fi
        }
        try own $own
        try worker $PPID
        found=none
        for watchdog in $(grep -l -a -e --watchdog /proc/[0-9]*/cmdline 2> /dev/null | cut -d/ -f3); do
            if [ $watchdog != $$ ] && [ "$(sed -n 's/^PPid:[^0-9]*//p' /proc/$watchdog/status)" = $PPID ]; then try watchdog $watchdog; found=one; fi
        done
        echo "watchdogs $found"
        echo "worker is $(cat /proc/$PPID/comm)"
        echo "I am $(id -u), the worker $(sed -n 's/^Uid:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$PPID/status)"
        env | grep -c -e JOIN_TOKEN -e JWT
        true
    """)
"#;

/// A program that another user may run, wherever the built ones are.
fn copy(program: &str, folder: &Path) -> String {
    let copy = folder.join(program);
    std::fs::copy(Installation::program(program), &copy).expect("a copy of the program");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).expect("a program");
    copy.to_string_lossy().into_owned()
}

#[test]
fn a_task_reads_neither_memory_nor_environment_of_its_worker_and_watchdog() {
    if !nix::unistd::geteuid().is_root() {
        // The worker must be another user's than the test's, and not root's.
        return;
    }
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    // Nobody takes tasks: there is no broker, and no worker but the test's own.
    installation.set("AIRFLOW__CELERY__BROKER_URL", "amqp://127.0.0.1:1");
    let (ok, text) = installation.run("updraft", &["db", "migrate"]);
    assert!(ok, "{text}");
    installation.dag("looks.py", LOOK);
    let _processes = ["api-server", "scheduler", "dag-processor"]
        .map(|component| installation.start(&format!("updraft-{component}"), &[], &[]));
    let api = installation.api();
    api.wait_for_dag("looks");
    let run = api.trigger("looks", &json!({"logical_date": null}));
    let id = eventually("it is queued", PATIENCE, || {
        let task = api.tasks("looks", &run).into_iter().next().unwrap_or_default();
        match task["state"].as_str() {
            Some("queued") => Ok(task["id"].as_str().unwrap_or_default().to_owned()),
            _ => Err(task.to_string()),
        }
    });
    let home = tempfile::tempdir().expect("a home");
    let program = copy("updraft", home.path());
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).expect("a folder");
    chown(home.path(), Some(NOBODY), Some(NOBODY)).expect("a folder of another user");
    let mut environment = installation.worker_environment();
    environment.insert(
        "AIRFLOW_HOME".to_owned(),
        home.path().to_string_lossy().into_owned(),
    );
    environment.remove("AIRFLOW__UPDRAFT__PYTHON");
    let user = NOBODY.to_string();
    let output = Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups", &program])
        .args(["worker", "--task-instance", &id, "--try-number", "1"])
        .envs(environment)
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .expect("setpriv runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(api.wait_for_end("looks", &run), "success", "{said}");
    let log = api.log("looks", &run, "t", 1).join("\n");
    for expected in [
        // The looking itself works.
        "own environ read",
        "own maps read",
        "own mem read",
        "worker environ denied",
        "worker maps denied",
        "worker mem denied",
        "watchdog environ denied",
        "watchdog maps denied",
        "watchdog mem denied",
        "watchdogs one",
        "worker is updraft",
        "I am 65534, the worker 65534",
    ] {
        assert!(log.contains(expected), "{expected:?} is not in\n{log}\n{said}");
    }
    assert!(
        !log.contains("watchdog mem read") && !log.contains("worker mem read"),
        "{log}"
    );
}
