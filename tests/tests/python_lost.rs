//! Python processes that die, hang or cannot start: none of it is at the cost of the user's tasks.

use harness::{Api, Installation, Process, eventually, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(90);

/// Eight tasks that wait for a file, and one that does not; none may be tried again.
fn dags(gate: &Path) -> String {
    format!(
        "import os, time\nfrom airflow.sdk import DAG, task\n\
         with DAG('waits', schedule=None):\n\
         \x20   @task\n    def wait(n):\n        open('{gate}.' + str(n), 'w').close()\n\
         \x20       while not os.path.exists('{gate}'): time.sleep(0.05)\n        return n\n\
         \x20   wait.expand(n=list(range(8)))\n\
         with DAG('quick', schedule=None):\n\
         \x20   @task\n    def quick(): return os.getcwd()\n    quick()\n",
        gate = gate.display()
    )
}

struct Scene {
    installation: Installation,
    process: Process,
    api: Api,
}

impl Scene {
    fn set() -> Option<Self> {
        let mut installation = Installation::new(&harness::python()?);
        installation.set("AIRFLOW__CELERY__WORKER_CONCURRENCY", "16");
        let gate = installation.path().join("gate");
        installation.dag("lost.py", &dags(&gate));
        let process = installation.start("updraft", &["standalone"], &[]);
        let api = installation.api();
        api.wait_for_dag("waits");
        api.wait_for_dag("quick");
        Some(Self {
            installation,
            process,
            api,
        })
    }

    fn trigger(&self, dag_id: &str, name: &str) -> String {
        self.api
            .trigger(dag_id, &json!({"logical_date": null, "dag_run_id": name}))
    }

    /// The fork server of the worker, which carries its mark.
    fn fork_server(&self) -> Option<i32> {
        let marked = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|text| {
                String::from_utf8_lossy(&text)
                    .split('\0')
                    .any(|entry| entry.starts_with("UPDRAFT_WORKER_LIFE="))
            })
        };
        self.process.children("-u").into_iter().find(marked)
    }

    /// Starts the tasks that wait; all of them run when this returns.
    fn start_waiting(&self) -> String {
        let run_id = self.trigger("waits", "w");
        wait_until("the tasks run", PATIENCE, || {
            (0..8).all(|n| self.installation.path().join(format!("gate.{n}")).exists())
        });
        run_id
    }

    fn open_gate(&self) {
        std::fs::write(self.installation.path().join("gate"), "").expect("a file");
    }

    fn all_ended_in_their_first_try(&self, dag_id: &str, run_id: &str) {
        assert_eq!(
            self.api.wait_for_end(dag_id, run_id),
            "success",
            "{}",
            self.process.output()
        );
        for task in self.api.tasks(dag_id, run_id) {
            assert_eq!(task["try_number"], json!(1), "{task}");
        }
    }
}

#[test]
fn a_killed_fork_server_costs_no_task_a_try_and_the_next_is_ready_at_once() {
    let Some(scene) = Scene::set() else { return };
    let waiting = scene.start_waiting();
    let first = scene.fork_server().expect("a fork server");
    kill(Pid::from_raw(first), Signal::SIGKILL).expect("it runs");
    let begin = Instant::now();
    let quick = scene.trigger("quick", "q");
    scene.all_ended_in_their_first_try("quick", &quick);
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "a task after the death took {:?}",
        begin.elapsed()
    );
    // And once more: the copy has been copied.
    let second = eventually("the copy takes over", PATIENCE, || {
        scene
            .fork_server()
            .filter(|pid| *pid != first)
            .ok_or_else(String::new)
    });
    kill(Pid::from_raw(second), Signal::SIGKILL).expect("it runs");
    let quick = scene.trigger("quick", "q2");
    scene.all_ended_in_their_first_try("quick", &quick);
    scene.open_gate();
    scene.all_ended_in_their_first_try("waits", &waiting);
}

#[test]
fn a_fork_server_that_hangs_is_replaced_and_its_tasks_go_on() {
    let Some(scene) = Scene::set() else { return };
    let waiting = scene.start_waiting();
    let server = scene.fork_server().expect("a fork server");
    kill(Pid::from_raw(server), Signal::SIGSTOP).expect("it runs");
    let quick = scene.trigger("quick", "q");
    scene.all_ended_in_their_first_try("quick", &quick);
    scene.open_gate();
    scene.all_ended_in_their_first_try("waits", &waiting);
}

#[test]
fn tasks_end_with_their_worker_also_when_their_fork_server_died_before() {
    let Some(mut scene) = Scene::set() else { return };
    scene.start_waiting();
    let server = scene.fork_server().expect("a fork server");
    let tasks = || -> Vec<i32> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let home = scene.installation.path().to_string_lossy().into_owned();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
                String::from_utf8_lossy(&read("cmdline")).starts_with("airflow worker -- ")
                    && String::from_utf8_lossy(&read("environ")).contains(&home)
            })
            .collect()
    };
    assert!(tasks().len() >= 8, "{:?}", tasks());
    kill(Pid::from_raw(server), Signal::SIGKILL).expect("it runs");
    let watchdogs = scene.process.children("watchdog");
    assert!(!watchdogs.is_empty());
    // Nobody is left to kill them: neither fork server, nor watchdog, nor worker.
    for watchdog in watchdogs {
        kill(Pid::from_raw(watchdog), Signal::SIGKILL).expect("it runs");
    }
    scene.process.kill();
    eventually("the tasks have ended", PATIENCE, || match tasks().as_slice() {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    });
}

#[test]
fn files_of_the_working_directory_stand_for_no_module() {
    let Some(python) = harness::python() else { return };
    let installation = Installation::new(&python);
    let folder = installation.path().join("work");
    std::fs::create_dir(&folder).expect("a folder");
    for name in ["attr.py", "json.py", "structlog.py", "types.py"] {
        std::fs::write(
            folder.join(name),
            "raise RuntimeError('taken from the working directory')\n",
        )
        .expect("a file");
    }
    installation.dag("lost.py", &dags(&installation.path().join("gate")));
    let program = Installation::program("updraft");
    let command = format!(
        "cd '{}' && exec '{}' standalone",
        folder.display(),
        program.display()
    );
    let process = installation.start("/bin/sh", &["-c", &command], &[]);
    let api = installation.api();
    api.wait_for_dag("quick");
    let run_id = api.trigger("quick", &json!({"logical_date": null, "dag_run_id": "q"}));
    assert_eq!(
        api.wait_for_end("quick", &run_id),
        "success",
        "{}",
        process.output()
    );
}

#[test]
fn a_worker_whose_python_cannot_start_takes_no_tasks_until_it_can() {
    let Some(mut scene) = Scene::set() else { return };
    // The same installation with an interpreter that is broken, as long as a file says so.
    scene.process.signal(Signal::SIGTERM);
    scene.process.wait(PATIENCE);
    let python = harness::python().expect("the DAGs' Python");
    let (broken, wrapper) = (
        scene.installation.path().join("broken"),
        scene.installation.path().join("python"),
    );
    std::fs::write(&broken, "").expect("a file");
    let text = format!(
        "#!/bin/sh\n[ -e '{}' ] && [ -n \"$UPDRAFT_WORKER_LIFE\" ] && exit 3\nexec '{python}' \"$@\"\n",
        broken.display()
    );
    std::fs::write(&wrapper, text).expect("a file");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&wrapper, executable).expect("a program");
    scene
        .installation
        .set("AIRFLOW__UPDRAFT__PYTHON", &wrapper.to_string_lossy());
    scene.process = scene.installation.start("updraft", &["standalone"], &[]);
    scene.api = scene.installation.api();
    eventually("the worker says that its Python is broken", PATIENCE, || {
        let output = scene.process.output();
        if output.contains("Python cannot be used") {
            Ok(())
        } else {
            Err(output)
        }
    });
    let runs: Vec<String> = (0..12)
        .map(|n| scene.trigger("quick", &format!("b{n}")))
        .collect();
    eventually("the worker stops taking tasks", PATIENCE, || {
        let output = scene.process.output();
        if output.contains("takes no tasks until this is mended") {
            Ok(())
        } else {
            Err(output)
        }
    });
    std::fs::remove_file(&broken).expect("the file");
    for run_id in runs {
        scene.all_ended_in_their_first_try("quick", &run_id);
    }
}
