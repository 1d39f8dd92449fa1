//! A campaign from its begin to its end.

use super::checks::{self, Broken};
use super::database::Session;
use super::disk::Disk;
use super::ending;
use super::faults::{InForce, World};
use super::kinds::{Bound, Kind, MEMBERS};
use super::load::{self, Amount, Load};
use super::members::{Members, needs, role};
use super::recovery::Recovery;
use super::report::{Happened, Report};
use super::schedule::{Planned, draw};
use super::silence::Silence;
use super::witness::{Record, Witness};
use crate::Api;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const READY: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(50);
/// How many times its bound a recovery is waited for.
const PATIENCE: u32 = 6;

/// What a campaign is like.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Draws the faults.
    pub seed: u64,
    /// For how long faults are begun.
    pub length: Duration,
    /// The load.
    pub amount: Amount,
    /// A worker's lease.
    pub lease: Duration,
    /// The kinds that are drawn.
    pub kinds: Vec<&'static Kind>,
    /// The command that does all of it again.
    pub replay: String,
    /// `true` if all files are left where they are, even if nothing broke.
    pub keep: bool,
}

struct Campaign<'a> {
    plan: &'a Plan,
    say: &'a dyn Fn(&str),
    world: World,
    apis: [Api; 2],
    load: Load,
    witness: PathBuf,
    report: Report,
    known: BTreeSet<Broken>,
    begin: Instant,
    /// When nobody could be told by which worker how its tasks ended, in milliseconds of CLOCK_BOOTTIME.
    silences: Vec<Silence>,
    /// How much of each file of a component's output has been looked at.
    read: BTreeMap<PathBuf, u64>,
}

/// Runs a campaign.
///
/// # Errors
/// When the cluster does not come up, or a fault cannot be made to happen.
pub fn run(plan: &Plan, say: &dyn Fn(&str)) -> anyhow::Result<Report> {
    say(&format!("seed {}; the same again: {}", plan.seed, plan.replay));
    let needs = needs(plan.lease)?;
    let mut members = Members::new(&needs)?;
    let witness = load::write(&members, plan.amount)?;
    let (ok, text) = members.installation.run("updraft", &["db", "migrate"]);
    anyhow::ensure!(ok, "the database cannot be prepared: {text}");
    let disk = Disk::mount(&members.installation.path().join("logs"));
    if disk.is_none() {
        say("file systems cannot be mounted here: no disk is made full");
    }
    // The first API server makes the passwords.
    members.start("api-server-1");
    let api = members.installation.api();
    MEMBERS
        .into_iter()
        .filter(|name| *name != "api-server-1")
        .for_each(|name| members.start(name));
    for name in MEMBERS {
        members.wait_until_ready(name, READY)?;
    }
    load::prepare(&api)?;
    let apis = [api.clone(), api.on(members.ports[1])];
    let load = Load::start(apis.clone(), &needs.database, &witness, plan.amount);
    let mut campaign = Campaign {
        plan,
        say,
        world: World {
            members,
            session: Session::new(&needs.database),
            database: needs.database.clone(),
            broker: needs.broker.clone(),
            disk,
        },
        apis,
        load,
        witness,
        report: Report {
            seed: plan.seed,
            replay: plan.replay.clone(),
            ..Report::default()
        },
        known: BTreeSet::new(),
        begin: Instant::now(),
        silences: Vec::new(),
        read: BTreeMap::new(),
    };
    let outcome = campaign.work();
    let failed = outcome.is_err() || !campaign.known.is_empty();
    if plan.keep || failed {
        campaign.world.members.installation.keep();
        if let Some(disk) = &campaign.world.disk {
            disk.copy_to(&campaign.world.members.installation.path().join("logs-kept"));
        }
        say(&format!(
            "all files are in {}",
            campaign.world.members.installation.path().display()
        ));
    }
    outcome?;
    Ok(campaign.report)
}

/// A fault of a group, from its begin to its recovery.
struct Active {
    fault: Planned,
    force: Option<InForce>,
    ended: Option<Instant>,
    recovery: Option<Recovery>,
    happened: Happened,
}

impl Campaign<'_> {
    fn work(&mut self) -> anyhow::Result<()> {
        let plan = self.plan;
        let faults = draw(plan.seed, plan.length, plan.lease, &plan.kinds);
        (self.say)(&format!(
            "{} faults in {} s, a lease of {} s, {} runs in flight",
            faults.len(),
            plan.length.as_secs(),
            plan.lease.as_secs(),
            plan.amount.runs
        ));
        let mut rest = faults.as_slice();
        while let Some(first) = rest.first() {
            let count = 1 + rest.iter().skip(1).take_while(|fault| fault.beside).count();
            let (group, others) = rest.split_at(count);
            rest = others;
            if self.begin.elapsed() > plan.length + Duration::from_secs(30) {
                (self.say)("the time is over; the faults that are left are not begun");
                break;
            }
            while self.begin.elapsed() < first.at {
                std::thread::sleep(TICK);
            }
            self.group(group)?;
        }
        self.end()
    }

    /// Faults of which each begins while the one before lasts; mostly one.
    fn group(&mut self, group: &[Planned]) -> anyhow::Result<()> {
        let begin = Instant::now();
        let alone = group.len() == 1;
        let mut active: Vec<Active> = group.iter().map(|fault| self.active(fault, alone)).collect();
        loop {
            let mut busy = false;
            for one in &mut active {
                busy |= self.step(one, begin.elapsed() + group[0].at, alone)?;
            }
            if !busy {
                break;
            }
            std::thread::sleep(TICK);
        }
        let mut found = self.look()?;
        for one in active {
            let mut happened = one.happened;
            // Which of them broke it nobody knows: it is told with the first.
            happened.broken = std::mem::take(&mut found);
            self.tell(&happened);
            self.report.happened.push(happened);
        }
        Ok(())
    }

    fn active(&self, fault: &Planned, alone: bool) -> Active {
        Active {
            fault: fault.clone(),
            force: None,
            ended: None,
            recovery: None,
            happened: Happened {
                fault: fault.clone(),
                began: self.begin.elapsed(),
                recovery: None,
                bound: fault.kind.bound.limit(self.plan.lease),
                alone,
                waited_for: None,
                stuck: None,
                skipped: None,
                broken: Vec::new(),
            },
        }
    }

    /// Begins, ends or looks at one fault; `false` once there is nothing left to do.
    fn step(&mut self, one: &mut Active, now: Duration, alone: bool) -> anyhow::Result<bool> {
        let Some(force) = one.force.as_mut() else {
            if now >= one.fault.at {
                self.begin(one)?;
            }
            return Ok(true);
        };
        if force.skipped.is_some() {
            one.happened.skipped = force.skipped.clone();
            if one.ended.is_none() {
                self.world.end(force)?;
                one.ended = Some(Instant::now());
            }
            return Ok(false);
        }
        if one.ended.is_none() && force.begun.elapsed() >= one.fault.span {
            let waiting = self.world.end(force)?;
            one.ended = Some(Instant::now());
            if let Some(recovery) = one.recovery.as_mut() {
                recovery.add_waiting(waiting);
            }
        }
        let since = match (one.fault.kind.bound, one.ended) {
            (Bound::Begin(_) | Bound::Lease(_), _) if alone => force.begun,
            (_, Some(ended)) => ended,
            (_, None) => return Ok(true),
        };
        let left = match (one.recovery.as_mut(), one.happened.recovery) {
            (Some(recovery), None) => recovery.look(&mut self.world, &self.apis),
            _ => None,
        };
        let (bound, elapsed) = (one.happened.bound, since.elapsed());
        match left {
            None => {
                one.happened.recovery.get_or_insert(elapsed);
                Ok(one.ended.is_none())
            }
            Some(left) if elapsed < bound * PATIENCE + Duration::from_secs(30) => {
                one.happened.waited_for = Some(left);
                Ok(true)
            }
            Some(left) => {
                one.happened.stuck = Some(left);
                one.happened.recovery = Some(elapsed);
                Ok(one.ended.is_none())
            }
        }
    }

    fn begin(&mut self, one: &mut Active) -> anyhow::Result<()> {
        one.happened.began = self.begin.elapsed();
        (self.say)(&one.fault.to_string());
        let before = boot_clock();
        let mut force = self.world.begin(&one.fault)?;
        self.silences
            .extend(Silence::of(&one.fault, self.plan.lease, before..boot_clock()));
        // What a killed server answered last is asked of that server itself, once it is back.
        let server = match (one.fault.kind.name, one.fault.target) {
            ("kill-api-server", name) if role(name) == "api-server" => Some(usize::from(name.ends_with('2'))),
            _ => None,
        };
        let claims = std::mem::take(&mut force.claims);
        let claims = if one.fault.kind.name == "stop-worker-short" {
            Vec::new()
        } else {
            claims
        };
        one.recovery = Some(Recovery::new(one.fault.number, claims, server));
        one.force = Some(force);
        Ok(())
    }

    /// Looks at everything that can be seen while the campaign goes on. Returns what is newly broken.
    fn look(&mut self) -> anyhow::Result<Vec<Broken>> {
        let left = self.world.members.left();
        let mut found: Vec<Broken> = left
            .into_iter()
            .map(|(name, said)| Broken {
                invariant: checks::LEFT,
                seen: format!("{name} ended by itself: {said}"),
            })
            .collect();
        let witness = Witness::read(&self.witness)?;
        let silences = &self.silences;
        let excused = |end: &Record| silences.iter().any(|silence| silence.covers(end));
        found.extend(checks::of_witness(&witness, &load::RULES, &excused));
        found.extend(self.said()?);
        found.retain(|broken| self.known.insert(broken.clone()));
        Ok(found)
    }

    /// New lines of the components in which one says that it, or the database, has met what may never be.
    fn said(&mut self) -> anyhow::Result<Vec<Broken>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.world.members.installation.path())? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "out") {
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            let read = self.read.entry(path.clone()).or_default();
            let new = text.get(*read as usize..).unwrap_or_default();
            // A line that is being written comes next time.
            let whole = new.rfind('\n').map_or("", |end| &new[..=end]);
            *read += whole.len() as u64;
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            found.extend(checks::of_lines(&name, whole));
        }
        Ok(found)
    }

    fn tell(&self, happened: &Happened) {
        let said = match (&happened.skipped, &happened.stuck, happened.recovery) {
            (Some(why), _, _) => format!("did not happen: {why}"),
            (_, Some(stuck), _) => format!("NOT RECOVERED: {stuck}"),
            (_, _, Some(recovery)) => {
                let last = happened.waited_for.as_deref().unwrap_or("nothing");
                let late = match happened.is_late() {
                    true => format!(", TOO LATE, waiting for this last: {last}"),
                    false => String::new(),
                };
                format!(
                    "recovered in {:.1} s of {} s{late}",
                    recovery.as_secs_f64(),
                    happened.bound.as_secs()
                )
            }
            _ => "not measured".to_owned(),
        };
        let (now, most) = self.load.in_flight();
        (self.say)(&format!(
            "      {said}; {now} runs in flight, at most {most} so far"
        ));
        self.tell_broken(&happened.broken);
    }

    fn tell_broken(&self, broken: &[Broken]) {
        for one in broken {
            (self.say)(&format!("BROKEN: {}: {}", one.invariant, one.seen));
        }
        if !broken.is_empty() {
            (self.say)(&format!("the same again: {}", self.plan.replay));
        }
    }

    /// No more faults: everything must come to its end.
    fn end(&mut self) -> anyhow::Result<()> {
        (self.say)("no more faults; everything is to end");
        self.load.stop();
        let pace = Duration::from_secs(self.plan.amount.pace);
        let acknowledged = self.load.acknowledged();
        let quiet = ending::quiesce(
            &mut self.world,
            &self.apis,
            pace + self.plan.lease + ending::SETTLE,
        );
        (self.say)(&format!("everything ended within {:.1} s", quiet.as_secs_f64()));
        let mut found = self.look()?;
        let witness = Witness::read(&self.witness)?;
        let last = ending::read(&mut self.world, &self.apis, acknowledged)?;
        found.extend(checks::of_ending(&last, &witness));
        found.extend(witness.unreadable.iter().map(|line| Broken {
            invariant: checks::LEFT_OVER,
            seen: format!("a line of the witness that nobody can read: {line}"),
        }));
        found.retain(|broken| {
            self.known.insert(broken.clone()) || !self.report.all_broken().any(|b| b == broken)
        });
        self.tell_broken(&found);
        self.report.broken = found;
        self.report.figures.extend([
            ("runs", last.runs.len() as u64),
            ("task instances", last.tasks.len() as u64),
            ("tries", witness.tries.len() as u64),
            ("runs in flight at most", self.load.in_flight().1),
            (
                "faults",
                self.report
                    .happened
                    .iter()
                    .filter(|one| one.skipped.is_none())
                    .count() as u64,
            ),
        ]);
        Ok(())
    }
}

/// Milliseconds of CLOCK_BOOTTIME.
fn boot_clock() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(0, |now| {
        now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000
    })
}
