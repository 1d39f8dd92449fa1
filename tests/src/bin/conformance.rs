//! `cargo xtask conformance`: runs DAG files on real Airflow and on Updraft and tells what is not the same.
//!
//! Without files: all examples that come with Airflow and its standard provider, and the scenarios of `tests/conformance`.

use anyhow::{Context, ensure};
use clap::Parser;
use harness::Api;
use harness::conformance::{
    Chosen, Difference, Engines, Observed, compare, last_words, observe, observe_all, runs,
};
use harness::program::{end, say};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

const RUN: &str = "conformance";
/// How the names of DAGs end whose runs others start: by assets, or by a task.
const FOLLOWER: &str = "_follows";
/// How long a DAG may take to be there, and its database to be free.
const PATIENT: Duration = Duration::from_secs(60);
/// The logical date of every run: past, on a Saturday, in summer.
const DATE: &str = "2025-06-14T10:00:00Z";

/// Runs DAG files on real Airflow and on Updraft and compares what a user sees of each.
#[derive(Parser)]
struct Arguments {
    /// DAG files or folders
    files: Vec<PathBuf>,
    /// Only DAGs whose id contains this
    #[arg(long)]
    only: Option<String>,
    /// Seconds that a run may take
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// Updraft as a cluster: two schedulers and two workers on MariaDB and RabbitMQ
    #[arg(long)]
    cluster: bool,
    /// Runs at the same time; Airflow on SQLite does not bear many
    #[arg(long, default_value_t = 4)]
    at_once: usize,
    /// Folder of plugins, and of `airflow_local_settings.py`, that both have
    #[arg(long)]
    plugins: Option<PathBuf>,
    /// Where all that was observed is written to, as JSON
    #[arg(long)]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    end(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let python = std::env::var("UPDRAFT_TEST_PYTHON").context("UPDRAFT_TEST_PYTHON is not set")?;
    let folder = tempfile::tempdir()?;
    let dags = folder.path().join("dags");
    let plugins = collect(&python, &arguments.files, &dags)?.or_else(|| arguments.plugins.clone());
    age(&dags)?;
    say("starting Airflow and Updraft");
    let engines = Engines::start(&python, &dags, plugins.as_deref(), arguments.cluster)?;
    let ids = all_dags(&engines)?;
    let wanted = |id: &&String| arguments.only.as_ref().is_none_or(|part| id.contains(part));
    let ids: Vec<&String> = ids.iter().filter(wanted).collect();
    let (followers, ids): (Vec<&String>, Vec<&String>) =
        ids.into_iter().partition(|id| id.ends_with(FOLLOWER));
    for id in &followers {
        unpause(&engines, id)?;
    }
    let chosen = Chosen::read(include_str!("../../conformance/chosen.txt"));
    let mut report = Report::default();
    report.import_errors(&engines)?;
    for batch in ids.chunks(arguments.at_once) {
        for id in batch {
            report.started(&engines, id)?;
        }
        wait(&engines, batch, Duration::from_secs(arguments.patience));
        for id in batch {
            let (airflow, updraft) = (
                observe(&engines.airflow, id, RUN)?,
                observe(&engines.updraft, id, RUN)?,
            );
            let differences = compare(id, &airflow, &updraft, &chosen);
            let states: Vec<String> = differences
                .iter()
                .filter(|found| found.reason.is_none())
                .filter_map(|found| {
                    found
                        .path
                        .strip_prefix("task ")?
                        .strip_suffix(" / state")
                        .map(str::to_owned)
                })
                .collect();
            report.add(id, airflow, updraft, differences);
            for task in states {
                for side in [&engines.airflow, &engines.updraft] {
                    let words = last_words(side, id, RUN, &task)?.join(" / ");
                    let words: String = words.chars().take(700).collect();
                    say(&format!("          {} says of {task}: {words}", side.name));
                }
            }
        }
    }
    follow(&engines, &followers, Duration::from_secs(arguments.patience))?;
    for id in followers {
        let (airflow, updraft) = (
            observe_all(&engines.airflow, id)?,
            observe_all(&engines.updraft, id)?,
        );
        let differences = compare(id, &airflow, &updraft, &chosen);
        report.add(id, airflow, updraft, differences);
    }
    if let Some(path) = &arguments.report {
        std::fs::write(path, serde_json::to_string_pretty(&report.facts)?)?;
    }
    Ok(report.end())
}

/// Copies the files to one folder; the folder of plugins that belong to them, if there is one.
fn collect(python: &str, files: &[PathBuf], to: &Path) -> anyhow::Result<Option<PathBuf>> {
    std::fs::create_dir_all(to)?;
    if !files.is_empty() {
        for file in files {
            copy(file, &to.join(file.file_name().context("a file without a name")?))?;
        }
        return Ok(None);
    }
    let ask = "import importlib.util as u\nfor n in ('airflow', 'airflow.providers.standard'):\n print(u.find_spec(n).submodule_search_locations[0])";
    let output = Command::new(python).args(["-c", ask]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let roots: Vec<&str> = text.lines().collect();
    ensure!(
        output.status.success() && roots.len() == 2,
        "{python} has no Apache Airflow: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    for (name, root) in ["core", "standard"].iter().zip(&roots) {
        copy(&Path::new(root).join("example_dags"), &to.join(name))?;
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    copy(&own, &to.join("own"))?;
    // Plugins are not DAG files.
    let plugins = to.with_file_name("plugins");
    std::fs::rename(to.join("core/plugins"), &plugins)?;
    Ok(Some(plugins))
}

/// Gives files times of change that follow their names: both engines read what changed last first, and where two examples
/// name assets of one URI, the one that is read first has it.
fn age(folder: &Path) -> anyhow::Result<()> {
    let (mut open, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut time = SystemTime::now();
    for path in files {
        time -= Duration::from_secs(2);
        std::fs::File::options()
            .append(true)
            .open(path)?
            .set_modified(time)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if !from.is_dir() {
        std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        return Ok(());
    }
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != "__pycache__" {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn dags_of(api: &Api) -> anyhow::Result<BTreeSet<String>> {
    let (status, body) = api.call("GET", "/api/v2/dags?limit=1000", None)?;
    ensure!(status == 200, "{body}");
    let list = body["dags"].as_array().into_iter().flatten();
    Ok(list
        .filter_map(|dag| dag["dag_id"].as_str().map(str::to_owned))
        .collect())
}

/// The DAGs of both, once neither finds more.
fn all_dags(engines: &Engines) -> anyhow::Result<BTreeSet<String>> {
    let begin = Instant::now();
    let mut last = (BTreeSet::new(), BTreeSet::new());
    let mut since = Instant::now();
    while begin.elapsed() < Duration::from_secs(180) {
        let now = (dags_of(&engines.airflow.api)?, dags_of(&engines.updraft.api)?);
        if now != last {
            last = now;
            since = Instant::now();
        } else if !last.0.is_empty() && since.elapsed() > Duration::from_secs(15) {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(last.0.union(&last.1).cloned().collect())
}

fn wait(engines: &Engines, ids: &[&String], patience: Duration) {
    let begin = Instant::now();
    let goes_on = |api: &Api, id: &str| {
        let state = api.run_state(id, RUN);
        matches!(state.as_deref(), Some("queued" | "running"))
    };
    while begin.elapsed() < patience {
        let open = ids
            .iter()
            .any(|id| goes_on(&engines.airflow.api, id) || goes_on(&engines.updraft.api, id));
        if !open {
            return;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn unpause(engines: &Engines, id: &str) -> anyhow::Result<()> {
    let body = json!({"is_paused": false});
    for side in [&engines.airflow, &engines.updraft] {
        side.api
            .call("PATCH", &format!("/api/v2/dags/{id}"), Some(&body))?;
    }
    Ok(())
}

/// Waits until the same number of runs has ended on both sides, and no more come.
fn follow(engines: &Engines, ids: &[&String], patience: Duration) -> anyhow::Result<()> {
    let begin = Instant::now();
    let (mut last, mut since) = (Vec::new(), Instant::now());
    while !ids.is_empty() && begin.elapsed() < patience {
        let mut now = Vec::new();
        for (side, id) in [&engines.airflow, &engines.updraft]
            .into_iter()
            .flat_map(|side| ids.iter().map(move |id| (side, id)))
        {
            let runs = runs(side, id)?;
            let is_over = |run: &&Value| matches!(run["state"].as_str(), Some("success" | "failed"));
            now.push((runs.len(), runs.iter().filter(is_over).count()));
        }
        let (airflow, updraft) = now.split_at(ids.len());
        let is_done = airflow == updraft && now.iter().all(|(all, over)| all == over && *all > 0);
        if now != last {
            (last, since) = (now, Instant::now());
        } else if is_done && since.elapsed() > Duration::from_secs(10) {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// What came out.
#[derive(Default)]
struct Report {
    facts: BTreeMap<String, Value>,
    differences: Vec<Difference>,
    dags: usize,
    same_dags: usize,
    total: usize,
}

impl Report {
    fn import_errors(&mut self, engines: &Engines) -> anyhow::Result<()> {
        let of = |api: &Api| -> anyhow::Result<Observed> {
            let (_, body) = api.call("GET", "/api/v2/importErrors?limit=500", None)?;
            let list = body["import_errors"].as_array().into_iter().flatten();
            Ok(list
                .map(|error| {
                    let trace = error["stack_trace"].as_str().unwrap_or_default();
                    let last = trace.trim_end().lines().last().unwrap_or_default();
                    (
                        error["filename"].as_str().unwrap_or_default().to_owned(),
                        json!(last),
                    )
                })
                .collect())
        };
        let (airflow, updraft) = (of(&engines.airflow.api)?, of(&engines.updraft.api)?);
        let found = compare("(import errors)", &airflow, &updraft, &Chosen::default());
        self.add("(import errors)", airflow, updraft, found);
        Ok(())
    }

    fn started(&mut self, engines: &Engines, id: &str) -> anyhow::Result<()> {
        // As a person would who turns it on and presses the button.
        unpause(engines, id)?;
        for side in [&engines.airflow, &engines.updraft] {
            let body = json!({"dag_run_id": RUN, "logical_date": DATE, "conf": {}});
            let path = format!("/api/v2/dags/{id}/dagRuns");
            let begin = Instant::now();
            let (status, answer) = loop {
                let (status, answer) = side.api.call("POST", &path, Some(&body))?;
                // A loaded Airflow has not parsed a file yet, or its SQLite is locked.
                let may_come = status == 404 || status >= 500;
                if !may_come || begin.elapsed() > PATIENT {
                    break (status, answer);
                }
                std::thread::sleep(Duration::from_secs(1));
                unpause(engines, id)?;
            };
            if status != 200 {
                say(&format!(
                    "{}: {id} cannot be triggered: {status} {answer}",
                    side.name
                ));
            }
        }
        Ok(())
    }

    fn add(&mut self, id: &str, airflow: Observed, updraft: Observed, differences: Vec<Difference>) {
        let paths: BTreeSet<&String> = airflow.keys().chain(updraft.keys()).collect();
        self.total += paths.len();
        self.dags += 1;
        let unmeant = differences.iter().filter(|found| found.reason.is_none()).count();
        self.same_dags += usize::from(unmeant == 0);
        let mark = if unmeant == 0 { "same  " } else { "DIFFERS" };
        say(&format!("{mark:8}{id}: {} facts, {unmeant} differ", paths.len()));
        for found in &differences {
            let show = |side: &Option<Value>| {
                let text = side.as_ref().map_or_else(|| "-".to_owned(), Value::to_string);
                text.chars().take(160).collect::<String>()
            };
            let why = found
                .reason
                .as_deref()
                .map_or_else(String::new, |why| format!("   (meant: {why})"));
            say(&format!(
                "          {}: {} | {}{why}",
                found.path,
                show(&found.airflow),
                show(&found.updraft)
            ));
        }
        self.facts
            .insert(id.to_owned(), json!({"airflow": airflow, "updraft": updraft}));
        self.differences.extend(differences);
    }

    fn end(&self) -> bool {
        let unmeant = self
            .differences
            .iter()
            .filter(|found| found.reason.is_none())
            .count();
        let same = self.total - unmeant;
        say(&format!(
            "\n{} of {} DAGs the same; {same} of {} facts ({:.2} %); {} differences are meant",
            self.same_dags,
            self.dags,
            self.total,
            100.0 * same as f64 / self.total.max(1) as f64,
            self.differences.len() - unmeant
        ));
        unmeant == 0
    }
}
