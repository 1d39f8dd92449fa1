//! Real Airflow's answers: asked for by hand, kept in a file.

use super::Case;
use super::compare::Outcome;
use crate::conformance::{Side, airflow};
use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long all runs may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// Runs at the same time; Airflow on SQLite does not bear many.
const AT_ONCE: usize = 6;

/// The answers of `tests/differential/recorded.json`, by the name of the case.
///
/// # Errors
/// When the file is no such list.
pub fn recorded() -> anyhow::Result<BTreeMap<String, Value>> {
    serde_json::from_str(include_str!("../../differential/recorded.json"))
        .context("tests/differential/recorded.json")
}

/// Runs the cases on real Airflow and returns its answers by name.
///
/// # Errors
/// When Airflow does not come up, or does not run a case.
pub fn record(python: &str, cases: &[Case], say: impl Fn(&str)) -> anyhow::Result<Map<String, Value>> {
    let folder = tempfile::tempdir()?;
    let dags = folder.path().join("dags");
    std::fs::create_dir_all(&dags)?;
    let bodies: Vec<&Value> = cases.iter().map(|case| &case.body).collect();
    std::fs::write(dags.join("cases.json"), serde_json::to_string(&bodies)?)?;
    let build = include_str!("build.py");
    std::fs::write(
        dags.join("differential.py"),
        format!(
            "# airflow DAG\n{build}\n\nimport json\nimport pathlib\n\nfor case in json.loads(pathlib.Path(__file__).with_name(\"cases.json\").read_text()):\n    try:\n        globals()[case[\"dag_id\"]] = build(case)\n    except Exception:\n        pass\n"
        ),
    )?;
    say("starting Airflow");
    let side = airflow(python, &dags, None, "INFO")?;
    wait_for(&side, cases)?;
    let mut answers = Map::new();
    let begin = Instant::now();
    for batch in cases.chunks(AT_ONCE) {
        let mut started = Vec::new();
        for case in batch {
            if start(&side, case)? {
                started.push(case);
            }
        }
        for case in started {
            ensure!(begin.elapsed() < PATIENCE, "the runs take too long");
            answers.insert(case.name.clone(), outcome(&side, case)?);
            say(&format!("recorded {}", case.name));
        }
    }
    Ok(answers)
}

fn dag_id(case: &Case) -> &str {
    case.body["dag_id"].as_str().unwrap_or_default()
}

fn wait_for(side: &Side, cases: &[Case]) -> anyhow::Result<()> {
    let last = cases.iter().rev().map(dag_id).next().context("no cases")?;
    let begin = Instant::now();
    loop {
        let (status, _) = side.api.call("GET", &format!("/api/v2/dags/{last}"), None)?;
        if status == 200 {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(180),
            "Airflow does not find the DAGs"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn run_id(case: &Case) -> &str {
    case.body["run_id"].as_str().unwrap_or("r")
}

/// Starts a case. Returns `false` if Airflow does not take it.
fn start(side: &Side, case: &Case) -> anyhow::Result<bool> {
    let path = format!("/api/v2/dags/{}", dag_id(case));
    let (status, _) = side
        .api
        .call("PATCH", &path, Some(&json!({"is_paused": false})))?;
    if status == 404 {
        return Ok(false);
    }
    let date = case.body.get("logical_date").cloned();
    let body = json!({
        "dag_run_id": run_id(case), "logical_date": date.unwrap_or_else(|| json!("2025-03-01T16:30:00Z")),
        "conf": case.body.get("conf").cloned().unwrap_or_else(|| json!({})),
    });
    let begin = Instant::now();
    loop {
        let (status, answer) = side.api.call("POST", &format!("{path}/dagRuns"), Some(&body))?;
        match status {
            200 => return Ok(true),
            400 => return Ok(false),
            // Its SQLite is locked.
            _ if begin.elapsed() < Duration::from_secs(60) => std::thread::sleep(Duration::from_secs(1)),
            _ => anyhow::bail!("{} cannot be triggered: {status} {answer}", case.name),
        }
    }
}

/// What became of the one task of a case.
fn outcome(side: &Side, case: &Case) -> anyhow::Result<Value> {
    let run = run_id(case).replace('+', "%2B").replace(':', "%3A");
    let path = format!("/api/v2/dags/{}/dagRuns/{run}/taskInstances/t", dag_id(case));
    let begin = Instant::now();
    let task = loop {
        let (_, task) = side.api.call("GET", &path, None)?;
        if matches!(task["state"].as_str(), Some("success" | "failed" | "skipped")) {
            break task;
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(120),
            "{} does not end: {task}",
            case.name
        );
        std::thread::sleep(Duration::from_millis(200));
    };
    let state = task["state"].as_str().unwrap_or_default().to_uppercase();
    let (status, xcom) = side
        .api
        .call("GET", &format!("{path}/xcomEntries/return_value"), None)?;
    let xcoms = if status == 200 {
        json!({"return_value": xcom["value"]})
    } else {
        json!({})
    };
    let answer = json!({
        "state": format!("ENDING_{state}"), "rendered": task["rendered_fields"], "xcoms": xcoms,
        "records": records(side, &path)?,
    });
    Ok(Outcome::read(&answer).to_json())
}

/// The log of the task, once it is whole.
fn records(side: &Side, path: &str) -> anyhow::Result<Vec<Value>> {
    let begin = Instant::now();
    loop {
        let (_, log) = side
            .api
            .call("GET", &format!("{path}/logs/1?full_content=true"), None)?;
        let records: Vec<Value> = log["content"].as_array().cloned().unwrap_or_default();
        // The first records tell where the log is from.
        let first = records
            .iter()
            .position(|record| record["event"] == "::group::Pre Execute");
        if let Some(first) = first
            && records
                .iter()
                .any(|record| record["event"] == "::group::Post Execute")
            && records
                .last()
                .is_some_and(|record| record["event"] == "::endgroup::")
        {
            return Ok(records[first..].to_vec());
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(30),
            "{path}: no whole log: {log}"
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Writes answers to `tests/differential/recorded.json`.
///
/// # Errors
/// When it cannot be written.
pub fn write(answers: &Map<String, Value>) -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("differential/recorded.json");
    let lines: Vec<String> = answers
        .iter()
        .map(|(name, answer)| format!("{}: {answer}", json!(name)))
        .collect();
    std::fs::write(path, format!("{{\n{}\n}}\n", lines.join(",\n")))?;
    Ok(())
}
