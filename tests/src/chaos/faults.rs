//! Making a fault happen, and making it end.

use super::database::Session;
use super::disk::Disk;
use super::kinds::{Action, Backend, Helper, Wire};
use super::members::{Members, kill_of, member, role};
use super::schedule::Planned;
use crate::Service;
use anyhow::Context;
use broker::{Broker, RabbitBroker, TaskMessage};
use model::{QueueName, TaskInstanceId, TryNumber};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How long a worker may take to come to the point at which it is to stop.
const REACH: Duration = Duration::from_secs(20);
const READY: Duration = Duration::from_secs(60);
/// Messages in hand of who steals them.
const HANDFUL: u16 = 50;

/// All that faults are done to.
pub(super) struct World {
    /// The components.
    pub(super) members: Members,
    /// The campaign's own session.
    pub(super) session: Session,
    /// Where the database is.
    pub(super) database: String,
    /// Where the broker is.
    pub(super) broker: String,
    /// The disk of the logs, where there is one of its own.
    pub(super) disk: Option<Disk>,
}

/// A fault that lasts.
pub(super) struct InForce {
    /// When it began.
    pub(super) begun: Instant,
    /// Claims that were running where it struck: task instances, and the numbers of their claims.
    pub(super) claims: Vec<(String, String)>,
    /// The reason why it did not happen.
    pub(super) skipped: Option<String>,
    undo: Undo,
}

enum Undo {
    Nothing,
    Continue(i32),
    Start(&'static str),
    /// Killed and started again.
    Restart(&'static str),
    Open(&'static str, Backend),
    OpenAll(Backend),
    Free,
    Connections(u64),
    Unlock(Session),
    Messages(Meddling),
}

impl World {
    /// Begins a fault.
    ///
    /// # Errors
    /// When it cannot be made to happen.
    pub(super) fn begin(&mut self, fault: &Planned) -> anyhow::Result<InForce> {
        let mut force = InForce {
            begun: Instant::now(),
            claims: Vec::new(),
            skipped: None,
            undo: Undo::Nothing,
        };
        let target = fault.target;
        match fault.kind.action {
            Action::Kill => {
                force.claims = self.claims_of(target)?;
                force.begun = Instant::now();
                self.members.kill(member(target));
                self.members.start(member(target));
            }
            Action::KillBoth => self.kill_both(target, &mut force)?,
            Action::Lose => self.lose(target, &mut force)?,
            Action::Stop => {
                force.claims = self.claims_of(target)?;
                force.undo = stop(self.members.process(target)?.pid(), &mut force.begun)?;
            }
            Action::KillHelper(_) | Action::StopHelper(_) => self.helper(fault, &mut force)?,
            Action::KillService => drop(service(target).kill()),
            Action::StopService => force.undo = stop(service(target).pid(), &mut force.begun)?,
            Action::Hang => {
                let backend = backend(target)?;
                self.members.set_wires(backend, Wire::Hang);
                force.undo = Undo::OpenAll(backend);
            }
            Action::Wire(wire) => {
                let (name, to) = target.split_once('>').context("a wire has two ends")?;
                let (name, backend) = (member(name), backend(to)?);
                self.members.set_wire(name, backend, wire);
                force.undo = Undo::Open(name, backend);
            }
            Action::DiskFull => match &self.disk {
                Some(disk) => {
                    disk.fill()?;
                    force.undo = Undo::Free;
                }
                None => force.skipped = Some("file systems cannot be mounted here".to_owned()),
            },
            Action::ConnectionLimit | Action::CutSessions | Action::LockTables => {
                self.database_fault(fault.kind.action, &mut force)?;
            }
            Action::Steal | Action::Double | Action::Junk => {
                let meddling = Meddling::start(self, fault.kind.action)?;
                force.undo = Undo::Messages(meddling);
            }
            Action::HalfKilled | Action::HalfStopped => self.half(fault, &mut force)?,
            Action::Panic | Action::HangPart => self.part(fault, &mut force)?,
        }
        Ok(force)
    }

    /// Ends a fault. Returns what must change until all is as before: task instances that wait for a message, and the
    /// numbers of their claims.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub(super) fn end(&mut self, force: &mut InForce) -> anyhow::Result<Vec<(String, String)>> {
        match std::mem::replace(&mut force.undo, Undo::Nothing) {
            Undo::Nothing => {}
            Undo::Continue(pid) => {
                // One that was killed meanwhile is no error.
                kill(Pid::from_raw(pid), Signal::SIGCONT).ok();
            }
            Undo::Start(name) => self.members.start(name),
            Undo::Restart(name) => {
                self.members.kill(name);
                self.members.start(name);
            }
            Undo::Open(name, backend) => self.members.set_wire(name, backend, Wire::Open),
            Undo::OpenAll(backend) => self.members.set_wires(backend, Wire::Open),
            Undo::Free => {
                if let Some(disk) = &self.disk {
                    disk.free()?;
                }
            }
            Undo::Connections(most) => {
                self.session
                    .surely(&format!("SET GLOBAL max_connections = {most}"))?;
            }
            Undo::Unlock(mut session) => {
                session.query("UNLOCK TABLES")?;
            }
            Undo::Messages(meddling) => {
                let ids = meddling.end(self)?;
                return self.waiting(&ids);
            }
        }
        Ok(Vec::new())
    }

    /// What a worker runs now.
    fn claims_of(&mut self, target: &str) -> anyhow::Result<Vec<(String, String)>> {
        if role(target) != "worker" {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT HEX(t.id), t.claim_epoch FROM task_instance t JOIN worker w ON w.id = t.worker_id \
             WHERE t.state = 'running' AND w.name LIKE '%@{target}'"
        );
        Ok(pairs(self.session.surely(&sql)?))
    }

    /// Those of these task instances that wait in a queue, and the numbers of their claims.
    fn waiting(&mut self, ids: &[TaskInstanceId]) -> anyhow::Result<Vec<(String, String)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let list: Vec<String> = ids
            .iter()
            .map(|id| format!("'{}'", id.to_string().replace('-', "")))
            .collect();
        let sql = format!(
            "SELECT HEX(id), claim_epoch FROM task_instance WHERE state = 'queued' AND HEX(id) IN ({})",
            list.join(", ")
        );
        Ok(pairs(self.session.surely(&sql)?))
    }

    fn kill_both(&mut self, target: &str, force: &mut InForce) -> anyhow::Result<()> {
        let both = [format!("{target}-1"), format!("{target}-2")];
        for name in &both {
            force.claims.extend(self.claims_of(name)?);
        }
        force.begun = Instant::now();
        both.iter().for_each(|name| self.members.kill(member(name)));
        both.iter().for_each(|name| self.members.start(member(name)));
        Ok(())
    }

    fn lose(&mut self, target: &str, force: &mut InForce) -> anyhow::Result<()> {
        force.claims = self.claims_of(target)?;
        force.begun = Instant::now();
        // A machine is lost as a whole: nobody may tell of the worker's death.
        if let Some(watchdog) = self.members.helper(target, Helper::Watchdog) {
            kill(Pid::from_raw(watchdog), Signal::SIGKILL).ok();
        }
        self.members.kill(member(target));
        while kill_of(&self.members.installation, target) > 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        force.undo = Undo::Start(member(target));
        Ok(())
    }

    fn helper(&mut self, fault: &Planned, force: &mut InForce) -> anyhow::Result<()> {
        let (which, signal) = match fault.kind.action {
            Action::StopHelper(which) => (which, Signal::SIGSTOP),
            Action::KillHelper(which) => (which, Signal::SIGKILL),
            _ => return Ok(()),
        };
        let Some(pid) = self.members.helper(fault.target, which) else {
            force.skipped = Some("there is no such process at this moment".to_owned());
            return Ok(());
        };
        kill(Pid::from_raw(pid), signal).ok();
        if signal == Signal::SIGSTOP {
            force.undo = Undo::Continue(pid);
        }
        Ok(())
    }

    fn database_fault(&mut self, action: Action, force: &mut InForce) -> anyhow::Result<()> {
        match action {
            Action::LockTables => {
                let mut session = Session::new(&self.database);
                session.query("SET lock_wait_timeout = 8; FLUSH TABLES WITH READ LOCK")?;
                force.begun = Instant::now();
                force.undo = Undo::Unlock(session);
                return Ok(());
            }
            Action::ConnectionLimit => {
                let most = self.session.surely("SELECT @@GLOBAL.max_connections")?;
                let most = most.first().and_then(|row| row.first()?.parse().ok());
                let most: u64 = most.context("MariaDB does not tell how many connections it takes")?;
                // The least that MariaDB takes.
                self.session.surely("SET GLOBAL max_connections = 10")?;
                force.undo = Undo::Connections(most);
            }
            _ => {}
        }
        let name = self.database.rsplit('/').next().unwrap_or_default();
        let sql = format!(
            "SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND db = '{name}'"
        );
        let ids = self.session.surely(&sql)?;
        for id in ids.iter().filter_map(|row| row.first()) {
            // One that has ended is what we want; the error ends our own session, which is opened anew.
            self.session.query(&format!("KILL {id}")).ok();
        }
        Ok(())
    }

    fn half(&mut self, fault: &Planned, force: &mut InForce) -> anyhow::Result<()> {
        let (name, point) = fault.target.split_once(':').context("a point has a member")?;
        let name = member(name);
        let file = self
            .members
            .installation
            .path()
            .join(format!("stopped-{}", fault.number));
        let at = format!("{point}:{}", file.display());
        self.members.kill(name);
        self.members.start_with(name, &[("UPDRAFT_TEST_STOP_AT", &at)]);
        let begin = Instant::now();
        while !file.exists() {
            if begin.elapsed() > REACH {
                force.skipped = Some(format!("{name} did not come to this point"));
                force.undo = Undo::Restart(name);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        force.claims = self.claims_of(name)?;
        force.begun = Instant::now();
        match fault.kind.action {
            Action::HalfStopped => force.undo = Undo::Continue(self.members.process(name)?.pid()),
            _ => {
                self.members.kill(name);
                self.members.start(name);
            }
        }
        Ok(())
    }

    fn part(&mut self, fault: &Planned, force: &mut InForce) -> anyhow::Result<()> {
        let (name, part) = fault.target.split_once(':').context("a part has a member")?;
        let name = member(name);
        let hangs = fault.kind.action == Action::HangPart;
        let wish = format!("{}:{part}", if hangs { "hang" } else { "panic" });
        force.claims = self.claims_of(name)?;
        force.begun = Instant::now();
        self.members.kill(name);
        self.members.start_with(name, &[("UPDRAFT_TEST_FAULT", &wish)]);
        self.members.may_leave(name);
        if hangs {
            force.undo = Undo::Restart(name);
            return Ok(());
        }
        let begin = Instant::now();
        while self.members.process(name)?.is_running() {
            anyhow::ensure!(
                begin.elapsed() < READY,
                "{name} goes on although its {part} panicked"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        force.begun = Instant::now();
        self.members.start(name);
        Ok(())
    }
}

fn pairs(rows: Vec<Vec<String>>) -> Vec<(String, String)> {
    let pair = |row: Vec<String>| {
        let mut fields = row.into_iter();
        fields.next().zip(fields.next())
    };
    rows.into_iter().filter_map(pair).collect()
}

fn stop(pid: i32, begun: &mut Instant) -> anyhow::Result<Undo> {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).context("it cannot be stopped")?;
    *begun = Instant::now();
    Ok(Undo::Continue(pid))
}

fn service(target: &str) -> Service {
    match target {
        "database" => Service::MariaDb,
        _ => Service::RabbitMq,
    }
}

fn backend(name: &str) -> anyhow::Result<Backend> {
    let all = [Backend::Database, Backend::Broker, Backend::Control];
    let found = all.into_iter().find(|backend| backend.name() == name);
    found.with_context(|| format!("there is no backend {name}"))
}

/// Somebody who meddles with the queue until told to end.
struct Meddling {
    end: Arc<AtomicBool>,
    work: JoinHandle<Vec<TaskInstanceId>>,
}

impl Meddling {
    fn start(world: &World, action: Action) -> anyhow::Result<Self> {
        let broker = RabbitBroker::new(&world.broker, "campaign")?;
        let queue = QueueName::from(world.members.queue.as_str());
        let end = Arc::new(AtomicBool::new(false));
        let work = meddle(broker, queue, action, Arc::clone(&end));
        let work = world.members.runtime().spawn(work);
        Ok(Self { end, work })
    }

    /// The task instances whose messages were touched.
    fn end(self, world: &World) -> anyhow::Result<Vec<TaskInstanceId>> {
        self.end.store(true, Ordering::Relaxed);
        Ok(world.members.runtime().block_on(self.work)?)
    }
}

async fn meddle(
    broker: RabbitBroker,
    queue: QueueName,
    action: Action,
    end: Arc<AtomicBool>,
) -> Vec<TaskInstanceId> {
    let mut touched = Vec::new();
    let Ok(mut deliveries) = broker.consume(&queue, HANDFUL).await else {
        return touched;
    };
    while !end.load(Ordering::Relaxed) {
        if action == Action::Junk {
            broker.publish(&[forged(&queue)]).await.into_iter().for_each(drop);
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        let next = tokio::time::timeout(Duration::from_millis(100), deliveries.next()).await;
        let Ok(delivery) = next else { continue };
        if let Ok(message) = delivery.message.clone() {
            touched.push(message.task_instance);
            if action == Action::Double {
                broker
                    .publish(&[message.clone(), message])
                    .await
                    .into_iter()
                    .for_each(drop);
            }
        }
        delivery.ack().await;
    }
    deliveries.pause().await;
    broker.close().await;
    touched
}

/// A message about a task instance that nobody knows.
fn forged(queue: &QueueName) -> TaskMessage {
    TaskMessage {
        version: TaskMessage::VERSION,
        task_instance: TaskInstanceId::new(uuid::Uuid::new_v4()),
        try_number: TryNumber(1),
        sequence: 1,
        queue: queue.clone(),
    }
}
