//! The two sides of the comparison: a Python with the real operator, and the native runner in this process.

use super::Case;
use anyhow::{Context, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
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
    trials: Trials,
}

impl NativeSide {
    /// # Errors
    /// When it cannot be set up.
    pub fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let trials = Trials::new(options(Path::new("/nonexistent")))?;
        Ok(Self { runtime, trials })
    }

    /// Runs a case, given its `StartupDetails` and the side document that the shim wrote.
    pub fn run(&self, case: &Case, startup: Value, document: &Value) -> Value {
        let limit = case.body["execution_timeout"].as_f64().unwrap_or(0.0);
        self.runtime.block_on(self.trials.run(startup, document, limit))
    }
}
