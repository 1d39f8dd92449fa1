//! The cluster of a campaign: two of each component, each with wires of its own to whatever it talks to.

use super::kinds::{Backend, Helper, MEMBERS, Wire};
use super::proxy::Proxy;
use crate::installation::free_port;
use crate::{Installation, Process, parts};
use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// The parts that a campaign needs.
pub(super) struct Needs {
    /// The DAGs' Python.
    pub(super) python: String,
    /// A database of its own.
    pub(super) database: String,
    /// The broker.
    pub(super) broker: String,
    /// A worker's lease.
    pub(super) lease: Duration,
}

struct Member {
    program: &'static str,
    arguments: &'static [&'static str],
    environment: Vec<(String, String)>,
    process: Option<Process>,
}

/// The cluster.
pub(super) struct Members {
    /// Its home.
    pub(super) installation: Installation,
    /// The queue of its tasks.
    pub(super) queue: String,
    /// Ports of both REST APIs.
    pub(super) ports: [u16; 2],
    members: BTreeMap<&'static str, Member>,
    wires: BTreeMap<(&'static str, Backend), Proxy>,
    /// Those that are away because of a fault.
    away: BTreeSet<&'static str>,
    /// Of the proxies.
    runtime: Runtime,
}

/// The member of that name, for as long as the program runs.
pub(super) fn member(name: &str) -> &'static str {
    let found = MEMBERS.iter().find(|member| **member == name);
    found.expect("targets name members")
}

/// `HOST:PORT` of a URL.
fn address_of(url: &str) -> anyhow::Result<SocketAddr> {
    let rest = url.rsplit('@').next().unwrap_or(url);
    let address = rest.split('/').next().unwrap_or(rest);
    let mut found = address
        .to_socket_addrs()
        .with_context(|| format!("no address: {address}"))?;
    found.next().with_context(|| format!("no address: {address}"))
}

/// The same URL with another port on this machine.
fn through(url: &str, port: u16) -> String {
    let (before, rest) = url.split_once('@').unwrap_or(("", url));
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    format!("{before}@127.0.0.1:{port}/{path}")
}

impl Members {
    /// Prepares the cluster; nothing runs yet.
    ///
    /// # Errors
    /// When a port cannot be taken.
    pub(super) fn new(needs: &Needs) -> anyhow::Result<Self> {
        let mut installation = Installation::new(&needs.python);
        let queue = format!("c{}", uuid::Uuid::new_v4().simple());
        let seconds = needs.lease.as_secs().to_string();
        let url = needs.database.replace("mysql://", "mysql+pymysql://");
        for (name, value) in [
            ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", url.as_str()),
            ("AIRFLOW__CELERY__BROKER_URL", &needs.broker),
            ("AIRFLOW__OPERATORS__DEFAULT_QUEUE", &queue),
            ("AIRFLOW__UPDRAFT__QUEUES", &queue),
            ("AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT", &seconds),
            ("AIRFLOW__CELERY__WORKER_CONCURRENCY", "24"),
            // However many faults meet one task instance, none of them is its own.
            ("AIRFLOW__UPDRAFT__INFRA_RETRIES", "1000"),
            ("AIRFLOW__UPDRAFT__START_RETRIES", "1000"),
            ("AIRFLOW__UPDRAFT__WORKER_LOSSES", "0"),
            ("NO_COLOR", "1"),
        ] {
            installation.set(name, value);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let ports = [installation.port, free_port()];
        let controls = [installation.control_port, free_port()];
        let mut members = Self {
            installation,
            queue,
            ports,
            members: BTreeMap::new(),
            wires: BTreeMap::new(),
            away: BTreeSet::new(),
            runtime,
        };
        for name in MEMBERS {
            members.add(name, needs, controls)?;
        }
        Ok(members)
    }

    fn add(&mut self, name: &'static str, needs: &Needs, controls: [u16; 2]) -> anyhow::Result<()> {
        let mut environment = Vec::new();
        let mut set = |key: &str, value: String| environment.push((key.to_owned(), value));
        let (program, arguments, backends): (_, &[&str], &[Backend]) = match role(name) {
            "scheduler" => ("updraft-scheduler", &[], &[Backend::Database, Backend::Broker]),
            "api-server" => ("updraft-api-server", &[], &[Backend::Database, Backend::Broker]),
            "dag-processor" => (
                "updraft-dag-processor",
                &[],
                &[Backend::Database, Backend::Broker],
            ),
            "worker" => ("updraft-worker", &[], &[Backend::Broker, Backend::Control]),
            _ => ("updraft", &["triggerer"], &[Backend::Control]),
        };
        for backend in backends {
            let servers = match backend {
                Backend::Database => vec![address_of(&needs.database)?],
                Backend::Broker => vec![address_of(&needs.broker)?],
                Backend::Control => controls
                    .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
                    .to_vec(),
            };
            let proxy = Proxy::start(&self.runtime, free_port(), servers)?;
            match backend {
                Backend::Database => {
                    let url = through(&needs.database, proxy.port).replace("mysql://", "mysql+pymysql://");
                    set("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", url);
                }
                Backend::Broker => set("AIRFLOW__CELERY__BROKER_URL", through(&needs.broker, proxy.port)),
                Backend::Control => set(
                    "AIRFLOW__UPDRAFT__CONTROL_PLANE",
                    format!("http://127.0.0.1:{}", proxy.port),
                ),
            }
            self.wires.insert((name, *backend), proxy);
        }
        match role(name) {
            "worker" | "triggerer" => set("AIRFLOW__UPDRAFT__WORKER_NAME", name.to_owned()),
            "api-server" => {
                let place = usize::from(name.ends_with('2'));
                set("AIRFLOW__API__PORT", self.ports[place].to_string());
                set("AIRFLOW__UPDRAFT__GRPC_PORT", controls[place].to_string());
            }
            _ => {}
        }
        let member = Member {
            program,
            arguments,
            environment,
            process: None,
        };
        self.members.insert(name, member);
        Ok(())
    }

    /// Of the proxies; for whatever else has to wait.
    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn member(&mut self, name: &str) -> &mut Member {
        self.members.get_mut(name).expect("targets name members")
    }

    /// Starts a member, with more of an environment.
    pub(super) fn start_with(&mut self, name: &'static str, more: &[(&str, &str)]) {
        let member = &self.members[name];
        let own = member
            .environment
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        let environment: Vec<(&str, &str)> = own.chain(more.iter().copied()).collect();
        let process = self
            .installation
            .start(member.program, member.arguments, &environment);
        self.member(name).process = Some(process);
        self.away.remove(name);
    }

    /// Starts a member.
    pub(super) fn start(&mut self, name: &'static str) {
        self.start_with(name, &[]);
    }

    /// `kill -9`; it is away until it is started again.
    pub(super) fn kill(&mut self, name: &'static str) {
        self.away.insert(name);
        if let Some(process) = self.member(name).process.as_mut() {
            process.kill();
        }
    }

    /// The process of a member.
    ///
    /// # Errors
    /// When it is away.
    pub(super) fn process(&mut self, name: &str) -> anyhow::Result<&mut Process> {
        let process = self.member(name).process.as_mut();
        process.with_context(|| format!("{name} does not run"))
    }

    /// Waits until a member says that it is ready.
    ///
    /// # Errors
    /// When it does not, with what it said last.
    pub(super) fn wait_until_ready(&mut self, name: &str, patience: Duration) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let output = self.process(name)?.output();
            if output.contains("ready") {
                return Ok(());
            }
            anyhow::ensure!(
                begin.elapsed() < patience,
                "{name} is not ready: {}",
                tail(&output)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Processes beside a member: its watchdog, its fork server, or the fork server's copy.
    pub(super) fn helper(&mut self, name: &str, which: Helper) -> Option<i32> {
        let process = self.process(name).ok()?;
        match which {
            Helper::Watchdog => process.children("--watchdog").first().copied(),
            Helper::ForkServer => fork_servers(process).first().copied(),
            Helper::Standby => fork_servers(process).get(1).copied(),
        }
    }

    /// From now on the wire of a member is like this.
    pub(super) fn set_wire(&self, name: &'static str, backend: Backend, wire: Wire) {
        if let Some(proxy) = self.wires.get(&(name, backend)) {
            proxy.set(wire);
        }
    }

    /// From now on all wires to a server are like this.
    pub(super) fn set_wires(&self, backend: Backend, wire: Wire) {
        for proxy in self
            .wires
            .iter()
            .filter(|((_, to), _)| *to == backend)
            .map(|(_, proxy)| proxy)
        {
            proxy.set(wire);
        }
    }

    /// Those that ended although nobody asked them to, with what they said last. They are started again.
    pub(super) fn left(&mut self) -> Vec<(&'static str, String)> {
        let mut left = Vec::new();
        for name in MEMBERS {
            if self.away.contains(name) {
                continue;
            }
            if let Some(process) = self.member(name).process.as_mut()
                && !process.is_running()
            {
                left.push((name, tail(&process.output())));
                self.start(name);
            }
        }
        left
    }

    /// Notes that a member may end by itself.
    pub(super) fn may_leave(&mut self, name: &'static str) {
        self.away.insert(name);
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        // Workers first: they must not wait for a control plane while they leave.
        for name in MEMBERS.iter().rev() {
            if let Some(mut process) = self.member(name).process.take()
                && process.is_running()
            {
                process.signal(nix::sys::signal::Signal::SIGCONT);
                process.kill();
            }
        }
        kill_of(&self.installation, "");
    }
}

/// Kills what is left of this installation, or of one of its workers. A process knows its home by its environment.
pub(super) fn kill_of(installation: &Installation, worker: &str) -> usize {
    let pids = processes_of(installation, worker);
    for pid in &pids {
        // One that is gone already is what we want.
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(*pid),
            nix::sys::signal::Signal::SIGKILL,
        )
        .ok();
    }
    pids.len()
}

/// What workers of this installation have started and still runs; of one worker, if it is named.
pub(super) fn processes_of(installation: &Installation, worker: &str) -> Vec<i32> {
    let mark = format!("UPDRAFT_WORKER_NAME={}@{worker}", installation.path().display());
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| {
                if worker.is_empty() {
                    entry.starts_with(mark.as_bytes())
                } else {
                    entry == mark.as_bytes()
                }
            })
        })
        .collect()
}

/// The role of a member: its name without its number.
pub(super) fn role(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(role, _)| role)
}

/// The fork server and its copy: an interpreter with the option `-u`, as a whole word. Commands of tasks may have it in them,
/// too, and children that run tasks have another title.
fn fork_servers(process: &Process) -> Vec<i32> {
    let is_one = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default();
        let is_python = String::from_utf8_lossy(program).contains("python");
        is_python && words.any(|word| word == b"-u")
    };
    let mut found: Vec<i32> = process.children("-u").into_iter().filter(is_one).collect();
    found.sort_unstable();
    found
}

/// The last lines of a text.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// The parts of the environment.
///
/// # Errors
/// When one is absent.
pub(super) fn needs(lease: Duration) -> anyhow::Result<Needs> {
    Ok(Needs {
        python: parts::python().context("UPDRAFT_TEST_PYTHON is not set; run `cargo xtask chaos`")?,
        database: parts::mariadb_database()
            .context("UPDRAFT_TEST_MARIADB is not set; run `cargo xtask chaos`")?,
        broker: parts::rabbitmq_url().context("UPDRAFT_TEST_RABBITMQ is not set; run `cargo xtask chaos`")?,
        lease,
    })
}
