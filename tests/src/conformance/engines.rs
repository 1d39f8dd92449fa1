//! Both engines, side by side, on the same folder of DAG files.

use crate::{Api, Installation, Process, parts};
use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long Airflow may take to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// One engine.
pub struct Side {
    /// What it is called in the report.
    pub name: &'static str,
    /// Its REST API, logged in.
    pub api: Api,
    /// Its home, whose path is masked.
    pub home: PathBuf,
    _processes: Vec<Process>,
    _installation: Installation,
}

/// Real Airflow, and ours.
pub struct Engines {
    /// Apache Airflow: scheduler with LocalExecutor, DAG processor, triggerer, API server, SQLite.
    pub airflow: Side,
    /// `updraft standalone`, or a cluster with two schedulers and two workers on MariaDB and RabbitMQ.
    pub updraft: Side,
}

impl Engines {
    /// Starts both on these DAG files and plugins.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn start(python: &str, dags: &Path, plugins: Option<&Path>, cluster: bool) -> anyhow::Result<Self> {
        let airflow = airflow(python, dags, plugins, "WARNING")?;
        let updraft = if cluster {
            updraft_cluster(python, dags, plugins)?
        } else {
            updraft(python, dags, plugins)?
        };
        Ok(Self { airflow, updraft })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        for process in &self._processes {
            process.signal(Signal::SIGTERM);
        }
        let deadline = Instant::now() + Duration::from_secs(15);
        for process in &mut self._processes {
            while process.is_running() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn installation(python: &str, dags: &Path, plugins: Option<&Path>) -> Installation {
    let mut installation = Installation::new(python);
    installation.set("AIRFLOW__CORE__DAGS_FOLDER", &dags.to_string_lossy());
    installation.set("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "True");
    installation.set("AIRFLOW__CORE__EXECUTOR", "LocalExecutor");
    installation.set("AIRFLOW__CORE__PARALLELISM", "8");
    if let Some(plugins) = plugins {
        installation.set("AIRFLOW__CORE__PLUGINS_FOLDER", &plugins.to_string_lossy());
    }
    // What draws lots draws the same ones.
    let site = installation.path().join("site");
    let text = include_str!("sitecustomize.py");
    std::fs::create_dir_all(&site)
        .and_then(|()| std::fs::write(site.join("sitecustomize.py"), text))
        .ok();
    // Beside plugins there may be cluster policies (airflow_local_settings.py).
    let mut path = site.to_string_lossy().into_owned();
    if let Some(plugins) = plugins {
        path = format!("{path}:{}", plugins.display());
    }
    installation.set("PYTHONPATH", &path);
    // Both are to see the same variable and the same connection.
    installation.set("AIRFLOW_VAR_CONFORMANCE", "{\"answer\": 42}");
    installation.set(
        "AIRFLOW_CONN_CONFORMANCE",
        "http://user:pass@example.org:8080/?x=1",
    );
    installation
}

/// Starts real Airflow alone; records of tasks below this level are not in their logs.
///
/// # Errors
/// When it does not come up.
pub fn airflow(python: &str, dags: &Path, plugins: Option<&Path>, level: &str) -> anyhow::Result<Side> {
    airflow_with(
        python,
        dags,
        plugins,
        &[("AIRFLOW__LOGGING__LOGGING_LEVEL", level)],
    )
}

/// As [`airflow`], with these options.
///
/// # Errors
/// As [`airflow`].
pub fn airflow_with(
    python: &str,
    dags: &Path,
    plugins: Option<&Path>,
    options: &[(&str, &str)],
) -> anyhow::Result<Side> {
    let mut installation = installation(python, dags, plugins);
    let port = installation.port;
    let own = [
        (
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL",
            format!("http://127.0.0.1:{port}/execution/"),
        ),
        ("AIRFLOW__API__WORKERS", "1".to_owned()),
        ("AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME", "0.2".to_owned()),
        (
            "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL",
            "1".to_owned(),
        ),
        ("AIRFLOW__SECRETS__USE_CACHE", "False".to_owned()),
        ("PYTHONWARNINGS", "ignore".to_owned()),
    ];
    for (name, value) in own {
        installation.set(name, &value);
    }
    for (name, value) in options {
        installation.set(name, value);
    }
    let (ok, text) = installation.run(python, &["-m", "airflow", "db", "migrate"]);
    ensure!(ok, "{python} -m airflow db migrate: {text}");
    let port = port.to_string();
    let roles: [&[&str]; 4] = [
        &["-m", "airflow", "api-server", "--port", &port],
        &["-m", "airflow", "scheduler"],
        &["-m", "airflow", "dag-processor"],
        &["-m", "airflow", "triggerer"],
    ];
    let processes = roles.map(|role| installation.start(python, role, &[])).into();
    side("Airflow", installation, processes)
}

fn updraft(python: &str, dags: &Path, plugins: Option<&Path>) -> anyhow::Result<Side> {
    let installation = installation(python, dags, plugins);
    let processes = vec![installation.start("updraft", &["standalone"], &[])];
    side("Updraft", installation, processes)
}

fn updraft_cluster(python: &str, dags: &Path, plugins: Option<&Path>) -> anyhow::Result<Side> {
    let mut installation = installation(python, dags, plugins);
    let database = parts::mariadb_database().context("there is no MariaDB")?;
    let broker = parts::rabbitmq_url().context("there is no RabbitMQ")?;
    let url = database.replace("mysql://", "mysql+pymysql://");
    installation.set("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", &url);
    installation.set("AIRFLOW__CELERY__BROKER_URL", &broker);
    installation.set("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor");
    let (ok, text) = installation.run("updraft", &["db", "migrate"]);
    ensure!(ok, "updraft db migrate: {text}");
    // LocalExecutor knows no queues: an example names one.
    let worker: &[&str] = &["worker", "--queues", "default,kubernetes"];
    let roles = [
        ("updraft-api-server", &[][..]),
        ("updraft-dag-processor", &[]),
        ("updraft-scheduler", &[]),
        ("updraft-scheduler", &[]),
        ("updraft", worker),
        ("updraft", worker),
    ];
    let start = |(role, arguments)| installation.start(role, arguments, &[]);
    let processes = roles.map(start).into();
    side("Updraft", installation, processes)
}

fn side(name: &'static str, installation: Installation, processes: Vec<Process>) -> anyhow::Result<Side> {
    let api = Api::new(installation.port);
    let deadline = Instant::now() + PATIENCE;
    let api = loop {
        match api.call("GET", "/auth/token", None) {
            Ok((200 | 201, body)) => {
                let token = body["access_token"].as_str().context("a token without text")?;
                break api.with_token(token);
            }
            other if Instant::now() > deadline => {
                let said: Vec<String> = processes.iter().map(Process::output).collect();
                anyhow::bail!("{name} does not come up: {other:?}\n{}", said.join("\n"));
            }
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(300)),
        }
    };
    Ok(Side {
        name,
        api,
        home: installation.path().to_owned(),
        _processes: processes,
        _installation: installation,
    })
}
