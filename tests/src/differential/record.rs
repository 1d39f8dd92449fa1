//! Real Airflow's answers: asked for by hand, kept in a file.

use super::Case;
use super::compare::{Outcome, is_of_the_process};
use crate::conformance::{Side, airflow_with};
use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long all runs may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// Runs at the same time; Airflow on SQLite does not bear many.
const AT_ONCE: usize = 12;

/// A case and what real Airflow made of it.
pub struct Recorded {
    /// The case.
    pub case: Case,
    /// The answer.
    pub answer: Value,
}

/// The cases of `tests/differential/recorded.json`, each with real Airflow's answer.
///
/// # Errors
/// When the file is no such list.
pub fn recorded() -> anyhow::Result<Vec<Recorded>> {
    let all: Map<String, Value> = serde_json::from_str(include_str!("../../differential/recorded.json"))
        .context("tests/differential/recorded.json")?;
    let read = |(name, mut entry): (String, Value)| Recorded {
        case: Case::new(name, entry["case"].take()),
        answer: entry["answer"].take(),
    };
    Ok(all.into_iter().map(read).collect())
}

/// Runs the cases on real Airflow and returns them with its answers by name. Cases with options of their own have an
/// Airflow of their own.
///
/// # Errors
/// When Airflow does not come up, or does not run a case.
pub fn record(python: &str, cases: &[Case], say: impl Fn(&str)) -> anyhow::Result<Map<String, Value>> {
    let mut by_options: BTreeMap<BTreeMap<String, String>, Vec<&Case>> = BTreeMap::new();
    for case in cases {
        by_options.entry(case.options()).or_default().push(case);
    }
    let mut answers = Map::new();
    for (options, cases) in by_options {
        say(&format!(
            "starting Airflow for {} cases with {options:?}",
            cases.len()
        ));
        record_some(python, &options, &cases, &mut answers, &say)?;
    }
    Ok(answers)
}

fn record_some(
    python: &str,
    options: &BTreeMap<String, String>,
    cases: &[&Case],
    answers: &mut Map<String, Value>,
    say: &impl Fn(&str),
) -> anyhow::Result<()> {
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
    let mut set = vec![("AIRFLOW__LOGGING__LOGGING_LEVEL", "INFO")];
    set.extend(options.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    let side = airflow_with(python, &dags, None, &set)?;
    wait_for(&side, cases)?;
    let begin = Instant::now();
    for batch in cases.chunks(AT_ONCE) {
        let mut started = Vec::new();
        for case in batch {
            let start = start(&side, case)?;
            if case.kind() == "trigger" {
                answers.insert(case.name.clone(), entry(case, &start.answer()));
            } else if matches!(start, Start::Taken) {
                started.push(case);
            }
        }
        for case in started {
            ensure!(begin.elapsed() < PATIENCE, "the runs take too long");
            match outcome(&side, case) {
                // With a socket as its input bash reads the start-up file of whoever records.
                Ok(answer)
                    if [".bashrc", "/usr/bin/env:"]
                        .iter()
                        .any(|sign| answer.to_string().contains(sign)) =>
                {
                    say(&format!("not recorded: {} shows this machine", case.name));
                }
                Ok(answer) => {
                    answers.insert(case.name.clone(), entry(case, &answer));
                    say(&format!("recorded {}", case.name));
                }
                Err(error) => say(&format!("not recorded: {error:#}")),
            }
        }
    }
    Ok(())
}

fn entry(case: &Case, answer: &Value) -> Value {
    json!({"case": case.body, "answer": answer})
}

fn dag_id(case: &Case) -> &str {
    case.body["dag_id"].as_str().unwrap_or_default()
}

fn wait_for(side: &Side, cases: &[&Case]) -> anyhow::Result<()> {
    let last = cases
        .iter()
        .rev()
        .map(|case| dag_id(case))
        .next()
        .context("no cases")?;
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

/// What Airflow says to a run.
enum Start {
    Taken,
    Refused(String),
    /// There is no such DAG: it could not be made.
    Unknown,
}

impl Start {
    /// What of it is compared.
    fn answer(&self) -> Value {
        let (state, words) = match self {
            Self::Taken => ("taken", Value::Null),
            Self::Refused(words) => ("refused", words.as_str().into()),
            Self::Unknown => ("unknown", Value::Null),
        };
        let extent = json!({"of the process": false, "frames": false, "sources": false});
        json!({"state": state, "rendered": {"words": words}, "xcoms": {}, "records": [], "extent": extent})
    }
}

/// Starts a case.
fn start(side: &Side, case: &Case) -> anyhow::Result<Start> {
    let path = format!("/api/v2/dags/{}", dag_id(case));
    let (status, _) = side
        .api
        .call("PATCH", &path, Some(&json!({"is_paused": false})))?;
    if status == 404 {
        return Ok(Start::Unknown);
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
            200 => return Ok(Start::Taken),
            400 => {
                let words = answer["detail"].as_str().unwrap_or_default().to_owned();
                return Ok(Start::Refused(words));
            }
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
        let (status, task) = side.api.call("GET", &path, None)?;
        ensure!(
            status == 200 || begin.elapsed() < Duration::from_secs(5),
            "{} did not begin: {task}",
            case.name
        );
        if matches!(task["state"].as_str(), Some("success" | "failed" | "skipped")) {
            break task;
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(60),
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
            // What comes before is about the process, and where the log is from.
            let whole = records
                .iter()
                .enumerate()
                .filter(|(at, record)| *at >= first || is_of_the_process(record));
            return Ok(whole.map(|(_, record)| record.clone()).collect());
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
