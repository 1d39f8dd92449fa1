//! The two sides of the comparison: a Python with the real operator, and the native runner in this process.

use super::Case;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tempfile::TempDir;
use worker::trial::Trials;

/// Options that both sides have.
fn options(home: &Path) -> BTreeMap<String, String> {
    let home = home.to_string_lossy().into_owned();
    [
        ("AIRFLOW_HOME", home.as_str()),
        ("AIRFLOW__CORE__LOAD_EXAMPLES", "False"),
        (
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
            "sqlite:////nonexistent/none.db",
        ),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// What every process of a task of ours has beside; natively the same.
const MARKS: [(&str, &str); 3] = [
    ("UPDRAFT_WORKER_LIFE", "trial"),
    ("UPDRAFT_WORKER_NAME", "trial"),
    ("UPDRAFT_CLAIM_EPOCH", "0"),
];

/// One long-lived Python that runs cases one after the other.
pub struct PythonSide {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _home: TempDir,
}

impl PythonSide {
    /// Starts it with this interpreter, which has Airflow.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(python: &str) -> anyhow::Result<Self> {
        let home = tempfile::tempdir()?;
        std::fs::write(
            home.path().join("differential_build.py"),
            include_str!("build.py"),
        )?;
        let program = home.path().join("python_side.py");
        std::fs::write(&program, include_str!("python_side.py"))?;
        let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/python/src/shim");
        let errors = std::fs::File::create(home.path().join("errors"))?;
        let mut child = Command::new(python)
            .arg(program)
            .envs(options(home.path()))
            .env("UPDRAFT_SHIM", shim)
            .envs(MARKS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("{python} cannot be started"))?;
        let input = child.stdin.take().context("an input")?;
        let output = BufReader::new(child.stdout.take().context("an output")?);
        Ok(Self {
            child,
            input,
            output,
            _home: home,
        })
    }

    /// Asks for a case. Its answer comes with [`PythonSide::answer`].
    ///
    /// # Errors
    /// When the Python is gone.
    pub fn ask(&mut self, case: &Case) -> anyhow::Result<()> {
        writeln!(self.input, "{}", case.body)?;
        Ok(self.input.flush()?)
    }

    /// The answer to the case that was asked for first.
    ///
    /// # Errors
    /// When the Python is gone.
    pub fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            let errors = std::fs::read_to_string(self._home.path().join("errors")).unwrap_or_default();
            bail!("the Python side ended: {errors}");
        }
        serde_json::from_str(&line).with_context(|| line.chars().take(500).collect::<String>())
    }
}

impl Drop for PythonSide {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The native runner.
pub struct NativeSide {
    runtime: tokio::runtime::Runtime,
    /// Workers with these options, by what is set.
    trials: BTreeMap<BTreeMap<String, String>, Trials>,
    /// A descriptor that programs inherit: no command is to see it.
    _open: OwnedFd,
}

impl NativeSide {
    /// # Errors
    /// When it cannot be set up.
    pub fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            trials: BTreeMap::new(),
            _open: nix::unistd::dup(std::io::stderr())?,
        })
    }

    /// Runs a case, given its `StartupDetails` and what the shim wrote of it.
    ///
    /// # Errors
    /// When its options cannot be used.
    pub fn run(&mut self, case: &Case, startup: Value, document: &Value) -> anyhow::Result<Value> {
        if case.kind() == "trigger" {
            return Ok(trigger(case, document));
        }
        let trials = worker(&mut self.trials, case)?;
        if case.kind() != "bash" {
            return Ok(trials.render(startup, document));
        }
        let limit = case.body["execution_timeout"].as_f64().unwrap_or(0.0);
        Ok(self.runtime.block_on(trials.run(startup, document, limit)))
    }
}

impl NativeSide {
    /// What a worker makes of what the case's process wrote and sent while it ran in Python.
    ///
    /// # Errors
    /// When its options cannot be used, or what was sent cannot be read.
    pub fn supervise(&mut self, case: &Case, in_python: &Value, written: &str) -> anyhow::Result<Value> {
        let trials = worker(&mut self.trials, case)?;
        let mut seen = in_python.clone();
        seen["records"] = self
            .runtime
            .block_on(trials.read_records(written.as_bytes()))
            .into();
        for sent in in_python["frames"].as_array().into_iter().flatten() {
            let path = sent["path"].as_str().context("a path")?;
            let frame = std::fs::read(path)?;
            std::fs::remove_file(path)?;
            let key = sent["key"].as_str().context("a key")?;
            seen["xcoms"][key] = match self.runtime.block_on(trials.read_message(&frame)) {
                Ok(mut message) => message["value"].take(),
                Err(why) => why.into(),
            };
        }
        Ok(seen)
    }
}

/// A worker with the case's options.
fn worker<'a>(
    all: &'a mut BTreeMap<BTreeMap<String, String>, Trials>,
    case: &Case,
) -> anyhow::Result<&'a Trials> {
    let set = case.options();
    if !all.contains_key(&set) {
        let options = options(Path::new("/nonexistent")).into_iter().chain(set.clone());
        all.insert(set.clone(), Trials::new(options.collect())?);
    }
    all.get(&set).context("a worker with these options")
}

/// Asks whether a run with the case's conf is taken.
fn trigger(case: &Case, dag: &Value) -> Value {
    let conf = case.body["conf"].as_object().cloned().unwrap_or_default();
    let (state, words) = match api_server::check_conf(dag, &conf) {
        Ok(()) => ("taken", Value::Null),
        Err(why) => ("refused", why.into()),
    };
    json!({"state": state, "rendered": {"words": words}, "xcoms": {}, "records": []})
}
