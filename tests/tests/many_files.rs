//! A start with many files that did not change parses none of them.

use harness::{Installation, Process, eventually};
use std::io::Write;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(600);

/// How many DAG files: `UPDRAFT_TEST_FILES`, such as 1000.
fn count() -> usize {
    let given = std::env::var("UPDRAFT_TEST_FILES").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(150)
}

fn start(installation: &Installation) -> Process {
    let more = [("RUST_LOG", "info,dag_processor=debug")];
    installation.start("updraft", &["standalone"], &more)
}

/// How many files were parsed since the process started.
fn parses(process: &Process) -> usize {
    process.output().matches("a file was parsed").count()
}

#[test]
fn a_second_start_with_many_files_parses_none_of_them() {
    let Some(python) = harness::python() else { return };
    let mut installation = Installation::new(&python);
    // As many at a time as help.
    installation.set("AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES", "2");
    let files = count();
    for number in 0..files {
        let text = format!(
            "from airflow.sdk import DAG\nfrom airflow.providers.standard.operators.bash import BashOperator\nwith DAG('d{number}', schedule='@daily'):\n    BashOperator(task_id='t', bash_command='true')\n"
        );
        installation.dag(&format!("team{}/d{number}.py", number % 20), &text);
    }
    let begin = Instant::now();
    let mut process = start(&installation);
    eventually("all files are parsed and stored", PATIENCE, || {
        match process.output().matches("file parsed file=").count() {
            stored if stored >= files => Ok(()),
            stored => Err(format!("{stored} of {files}")),
        }
    });
    let first = begin.elapsed();
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(process.wait(PATIENCE), "{}", process.output());
    let begin = Instant::now();
    let process = start(&installation);
    let wanted = format!("files={files} due=0");
    eventually("the files are looked at", PATIENCE, || {
        let output = process.output();
        if output.contains(&wanted) {
            Ok(())
        } else {
            Err(output.lines().last().unwrap_or_default().to_owned())
        }
    });
    let (second, used) = (begin.elapsed(), process.cpu_seconds());
    // A look that finds something due would have it parsed within this time.
    let calm = Instant::now();
    eventually("nothing is parsed", PATIENCE, || {
        assert_eq!(parses(&process), 0, "{}", process.output());
        if calm.elapsed() > Duration::from_secs(8) {
            Ok(())
        } else {
            Err("not over yet".to_owned())
        }
    });
    writeln!(
        std::io::stdout(),
        "{files} files: first start {first:.1?}; second start: none parsed, all looked at after {second:.2?} and {used:.2} s of a processor"
    )
    .expect("a standard output");
}
