//! Finding or making the Python environment of the DAGs.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// What the environment made by `updraft standalone` holds, pinned.
pub const REQUIREMENTS: &str = include_str!("shim/requirements.txt");

/// Why there is no environment.
#[derive(Debug, Error)]
pub enum EnvironmentError {
    /// No Python that could be used.
    #[error(
        "no Python from 3.10 to 3.13 was found; install one (Debian: apt-get install python3 python3-venv), or set [updraft] python to the interpreter of an environment with apache-airflow-task-sdk"
    )]
    NoPython,
    /// Python cannot make virtual environments.
    #[error(
        "{python} cannot make a virtual environment: {problem}; install the venv module (Debian: apt-get install python3-venv)"
    )]
    NoVenv {
        /// The interpreter.
        python: PathBuf,
        /// What it said.
        problem: String,
    },
    /// The packages could not be installed.
    #[error(
        "installing {package} into {folder} failed: {problem}; check the network and the package index (pip's PIP_INDEX_URL), or set [updraft] python to an environment that has it"
    )]
    Install {
        /// What was being installed.
        package: &'static str,
        /// The environment.
        folder: PathBuf,
        /// What pip said last.
        problem: String,
    },
    /// The folder cannot be written.
    #[error("cannot write {path}: {source}")]
    Io {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// The interpreter of the environment under `home`, made and filled now if it is not there. `progress` gets a line for
/// each step.
///
/// # Errors
/// When Python, its venv module or the network is missing; the message says what to install.
pub async fn ensure(
    home: &Path,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<PathBuf, EnvironmentError> {
    let folder = home.join("venv");
    let python = folder.join("bin/python");
    let marker = folder.join(".updraft-requirements");
    if std::fs::read_to_string(&marker).is_ok_and(|text| text == REQUIREMENTS) && python.exists() {
        return Ok(python);
    }
    let base = find_python().await.ok_or(EnvironmentError::NoPython)?;
    progress(&format!(
        "Making the Python environment {} (once; about a minute)",
        folder.display()
    ));
    make_venv(&base, &folder).await?;
    let list = folder.join("updraft-requirements.txt");
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| EnvironmentError::Io { path, source }
    };
    std::fs::write(&list, REQUIREMENTS).map_err(io(&list))?;
    install(&python, &folder, &list, progress).await?;
    // The marker comes last: an environment that was not finished is made anew.
    std::fs::write(&marker, REQUIREMENTS).map_err(io(&marker))?;
    progress("The Python environment is ready");
    Ok(python)
}

async fn find_python() -> Option<PathBuf> {
    for name in ["python3", "python3.13", "python3.12", "python3.11", "python3.10"] {
        let check =
            "import sys; print(sys.executable) if (3, 10) <= sys.version_info < (3, 14) else sys.exit(1)";
        let output = Command::new(name)
            .args(["-I", "-c", check])
            .stdin(Stdio::null())
            .output()
            .await;
        if let Ok(output) = output
            && output.status.success()
        {
            return Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
        }
    }
    None
}

async fn make_venv(base: &Path, folder: &Path) -> Result<(), EnvironmentError> {
    let output = Command::new(base)
        .args(["-I", "-m", "venv", "--clear"])
        .arg(folder)
        .stdin(Stdio::null())
        .output()
        .await;
    let problem = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&text)
                .trim()
                .lines()
                .last()
                .unwrap_or("it failed")
                .to_owned()
        }
        Err(error) => error.to_string(),
    };
    Err(EnvironmentError::NoVenv {
        python: base.to_owned(),
        problem,
    })
}

async fn install(
    python: &Path,
    folder: &Path,
    list: &Path,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), EnvironmentError> {
    let failed = |problem: String| EnvironmentError::Install {
        package: "apache-airflow-task-sdk",
        folder: folder.to_owned(),
        problem,
    };
    let mut child = Command::new(python)
        // Isolated, so that no file of the working directory stands for a module.
        .args([
            "-I",
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar",
            "off",
            "-r",
        ])
        .arg(list)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let stderr = child.stderr.take();
    let errors = async move {
        let mut last = String::new();
        let mut lines = stderr.map(|stderr| BufReader::new(stderr).lines());
        while let Some(lines) = lines.as_mut()
            && let Ok(Some(line)) = lines.next_line().await
        {
            if line.starts_with("ERROR") || last.is_empty() {
                last = line;
            }
        }
        last
    };
    let stdout = child.stdout.take();
    let steps = async {
        let mut lines = stdout.map(|stdout| BufReader::new(stdout).lines());
        while let Some(lines) = lines.as_mut()
            && let Ok(Some(line)) = lines.next_line().await
        {
            if let Some(name) = line.strip_prefix("Collecting ") {
                progress(&format!("  {}", name.split_whitespace().next().unwrap_or(name)));
            } else if line.starts_with("Installing") {
                progress("  installing");
            }
        }
    };
    let (last_error, ()) = tokio::join!(errors, steps);
    let status = child.wait().await.map_err(|error| failed(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    Err(failed(last_error))
}
