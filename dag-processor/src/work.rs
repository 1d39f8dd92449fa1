//! Which files are due, and having them parsed.

use crate::dependencies::{Dependencies, Dependency, Present};
use crate::files::{self, DagFile};
use crate::pace::{self, Rest};
use crate::parsing::{Done, Job};
use crate::watch::{self, Changes};
use crate::{Shared, lock};
use anyhow::Context;
use bootstrap::Health;
use chrono::Utc;
use config::Config;
use lifecycle::Stop;
use model::Timestamp;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::repo::{FileKey, FileRecord, SecretVersions};
use tokio::task::JoinSet;

/// How long a change is given to settle: editors and `git pull` touch files several times.
const SETTLE: Duration = Duration::from_millis(150);
/// Wait after Python itself could not be used.
const PYTHON_AWAY: Duration = Duration::from_secs(5);
/// Time between two questions after the Variables and connections that files depend on.
const SECRETS: Duration = Duration::from_millis(800);
/// Time between two looks at the times of all files, for what no watch tells of.
const SWEEP: Duration = Duration::from_secs(5);
/// Time between full looks where the DAG folder cannot be watched.
const UNWATCHED: Duration = Duration::from_secs(30);
/// Time after a start in which no file is parsed that did not change.
const START: Duration = Duration::from_secs(30);
/// Shortest time between parses of a file that did not change.
const SHORTEST: Duration = Duration::from_secs(1);

/// Finds what is due and has it parsed, until told to stop.
///
/// # Errors
/// When a DAG folder cannot be made, or parsing breaks.
pub(crate) async fn work(shared: &Arc<Shared>, health: &Health, stop: &Stop) -> anyhow::Result<()> {
    make_folder(&shared.config)?;
    let mut work = Work::new(shared);
    tokio::select! {
        () = stop.draining().cancelled() => Ok(()),
        ended = work.go_on(health) => ended,
    }
}

/// Makes the DAG folder, if a bundle is there. Other folders are whoever configured them to make.
fn make_folder(config: &Config) -> anyhow::Result<()> {
    let folder = &config.core.dags_folder;
    for bundle in &config.dag_processor.bundles {
        match &bundle.folder {
            Some(own) if own == folder => std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the DAG folder {}", folder.display()))?,
            Some(own) if !own.is_dir() => tracing::warn!(
                bundle = bundle.name,
                "the folder {} is not there; its DAGs come when it does",
                own.display()
            ),
            Some(_) | None => {}
        }
    }
    Ok(())
}

/// Time between full looks.
fn interval(config: &Config) -> Duration {
    let bundles = &config.dag_processor.bundles;
    let folders = bundles.iter().filter(|bundle| bundle.folder.is_some());
    let shortest = folders.filter_map(|bundle| bundle.refresh_interval).min();
    let usual = config.dag_processor.refresh_interval;
    shortest.map_or(usual, |shortest| shortest.clamp(SHORTEST, usual.max(SHORTEST)))
}

/// Why a file is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It, or something that it depends on, is another.
    Changed,
    /// It could not be imported; time may have healed that.
    Retry,
    /// For what cannot be seen.
    Idle,
}

/// A file as this process knows it.
#[derive(Default)]
struct Known {
    record: Option<FileRecord>,
    /// `None` when that is not known: the file is to be parsed.
    dependencies: Option<Dependencies>,
    /// The look after which its last parse began.
    begun: u64,
    rest: Rest,
}

struct Work {
    shared: Arc<Shared>,
    /// `true` if it is to be seen which files left with their bundles.
    is_bundle_new: bool,
    changes: Changes,
    /// Time between full looks.
    interval: Duration,
    known: HashMap<FileKey, Known>,
    versions: SecretVersions,
    all: Arc<HashSet<FileKey>>,
    queue: VecDeque<(DagFile, Why)>,
    parsing: JoinSet<(FileKey, Why, anyhow::Result<Option<Done>>)>,
    /// Files that are being parsed, each with the look after which that began.
    in_hand: HashMap<FileKey, u64>,
    /// `true` if a file was due while it was in hand.
    missed: bool,
    /// When the next file is due without a change.
    next_due: Option<Instant>,
    /// Until when no unchanged file is parsed.
    idle_until: Instant,
    /// Until when Python is left alone.
    away_until: Instant,
    looked: Instant,
    swept: Instant,
    asked: Instant,
}

impl Work {
    fn new(shared: &Arc<Shared>) -> Self {
        let (changes, watching) = watch::start(&shared.bundles.known());
        let refresh = interval(&shared.config);
        let now = Instant::now();
        Self {
            shared: Arc::clone(shared),
            is_bundle_new: true,
            changes,
            interval: if watching { refresh } else { refresh.min(UNWATCHED) },
            known: HashMap::new(),
            versions: SecretVersions::default(),
            all: Arc::default(),
            queue: VecDeque::new(),
            parsing: JoinSet::new(),
            in_hand: HashMap::new(),
            missed: false,
            next_due: Some(now),
            // A start has better things to do.
            idle_until: now + START,
            away_until: now,
            looked: now,
            swept: now,
            asked: now,
        }
    }

    async fn go_on(&mut self, health: &Health) -> anyhow::Result<()> {
        let mut look = true;
        loop {
            if look {
                match self.look().await {
                    Ok(()) if self.away_until <= Instant::now() => health.completed(),
                    Ok(()) => {}
                    Err(error) => {
                        tracing::warn!("DAG files could not be processed, trying again: {error:#}");
                        self.next_due = Some(Instant::now() + PYTHON_AWAY);
                    }
                }
            }
            self.begin().await?;
            look = tokio::select! {
                Some(ended) = self.parsing.join_next() => {
                    let (path, why, done) = ended.context("parsing a file broke")?;
                    self.ended(&path, why, done);
                    std::mem::take(&mut self.missed)
                }
                () = self.changes.changed() => {
                    tokio::time::sleep(SETTLE).await;
                    true
                }
                () = self.shared.bundles.changed() => {
                    self.is_bundle_new = true;
                    true
                }
                () = tokio::time::sleep(SECRETS) => self.is_time().await,
            };
        }
    }

    /// Returns `true` if it is time for a look although no watch told of a change.
    async fn is_time(&mut self) -> bool {
        let now = Instant::now();
        if self.next_due.is_some_and(|due| due <= now) || now.duration_since(self.looked) >= self.interval {
            return true;
        }
        if now.duration_since(self.swept) >= SWEEP {
            self.swept = now;
            if lock(&self.shared.looks).is_outdated() || self.is_asked_for().await.unwrap_or(false) {
                return true;
            }
        }
        if now.duration_since(self.asked) < SECRETS {
            return false;
        }
        // A database that is away is told of by whoever looks.
        self.read_versions().await.unwrap_or(false)
    }

    /// Returns `true` if any file is to be parsed again because somebody deleted one of its DAGs.
    async fn is_asked_for(&self) -> anyhow::Result<bool> {
        Ok(self.shared.store.reader().await?.files_are_asked_for().await?)
    }

    /// Reads which settings of Variables and connections are the current ones. Whether any that matters is another.
    async fn read_versions(&mut self) -> anyhow::Result<bool> {
        self.asked = Instant::now();
        let (mut variables, mut connections) = (HashSet::new(), HashSet::new());
        for dependency in self
            .known
            .values()
            .filter_map(|known| known.dependencies.as_ref())
            .flat_map(Dependencies::iter)
        {
            match dependency {
                Dependency::Variable(key) => variables.insert(key.clone()),
                Dependency::Connection(id) => connections.insert(id.clone()),
                Dependency::File(_)
                | Dependency::Names(_)
                | Dependency::There(_)
                | Dependency::Packages(_)
                | Dependency::Environment(_) => false,
            };
        }
        let versions = if variables.is_empty() && connections.is_empty() {
            SecretVersions::default()
        } else {
            let (variables, connections): (Vec<_>, Vec<_>) =
                (variables.into_iter().collect(), connections.into_iter().collect());
            let mut db = self.shared.store.reader().await?;
            db.secret_versions(&variables, &connections).await?
        };
        let is_other = versions != self.versions;
        self.versions = versions;
        Ok(is_other)
    }

    /// Looks at all files: which are there, and which are due.
    async fn look(&mut self) -> anyhow::Result<()> {
        self.looked = Instant::now();
        let shared = Arc::clone(&self.shared);
        let records = shared.store.reader().await?.files().await?;
        let bundles = shared.bundles.known();
        let (found, folders) = files::find(&bundles);
        let present: HashSet<FileKey> = found.iter().map(DagFile::key).collect();
        for gone in self.gone(&records, &present).await? {
            shared.forget(&gone).await?;
        }
        self.is_bundle_new = false;
        self.learn(records, &found);
        self.known.retain(|path, _| present.contains(path));
        self.all = Arc::new(present);
        self.read_versions().await?;
        self.choose(found, &folders);
        let all = self
            .known
            .values()
            .filter_map(|known| known.dependencies.as_ref());
        self.changes.refresh(&bundles, all.flat_map(Dependencies::iter));
        let (files, due, took) = (self.known.len(), self.queue.len(), self.looked.elapsed());
        tracing::debug!(files, due, ?took, "looked at all DAG files");
        Ok(())
    }

    /// The files that are known and not there any more.
    async fn gone(&self, records: &[FileRecord], present: &HashSet<FileKey>) -> anyhow::Result<Vec<FileKey>> {
        let shared = &self.shared;
        let is_gone = |file: &FileKey| !present.contains(file) && !shared.bundles.may_have(file);
        if self.is_bundle_new {
            let absent = store::transact!(shared.store, "find files that are gone", |tx| tx
                .files_without(present)
                .await)?;
            return Ok(absent.into_iter().filter(is_gone).collect());
        }
        let records = records.iter().map(|record| &record.key);
        Ok(records.filter(|file| is_gone(file)).cloned().collect())
    }

    /// Takes over what is stored of the files; other DAG processors write there, too.
    fn learn(&mut self, records: Vec<FileRecord>, found: &[DagFile]) {
        let mut records: HashMap<FileKey, FileRecord> = records
            .into_iter()
            .map(|record| (record.key.clone(), record))
            .collect();
        for file in found {
            let key = file.key();
            let record = records.remove(&key);
            let known = self.known.entry(key).or_default();
            if known.record == record {
                continue;
            }
            known.dependencies = record
                .as_ref()
                .and_then(|record| Dependencies::from_json(&record.dependencies, &file.bundle.path));
            known.record = record;
        }
    }

    /// Queues the files that are due, in the order in which they were found; what changed goes first.
    fn choose(&mut self, found: Vec<DagFile>, folders: &[std::path::PathBuf]) {
        let shared = Arc::clone(&self.shared);
        let mut looks = lock(&shared.looks);
        let number = looks.begin();
        folders.iter().for_each(|folder| looks.see(folder, None));
        self.next_due = None;
        let (mut changed, mut later) = (VecDeque::new(), Vec::new());
        let (now, date) = (Instant::now(), Utc::now());
        for file in found {
            let mut present = Present {
                looks: &mut looks,
                versions: &self.versions,
                python: shared.python.config(),
                options: &shared.config.dag_processor.options_of_dags,
            };
            let key = file.key();
            let Some(known) = self.known.get(&key) else {
                continue;
            };
            if let Some(begun) = self.in_hand.get(&key) {
                let moved = known.dependencies.as_ref().map_or(0, |all| present.moved(all));
                self.missed |= present.touched(&file).max(moved) > *begun;
                continue;
            }
            let due = match is_due(&mut present, &file, known, now) {
                Due::Now => {
                    changed.push_back((file, Why::Changed));
                    continue;
                }
                Due::At(at) => {
                    self.next_due = earlier(self.next_due, at);
                    continue;
                }
                Due::Unchanged => known.record.as_ref().map(|record| self.unchanged(record, date)),
            };
            match due {
                Some((why, Duration::ZERO)) => later.push((file, why)),
                Some((_, wait)) => self.next_due = earlier(self.next_due, now + wait),
                None => {}
            }
        }
        looks.forget_before(number);
        self.queue = changed;
        let paced = self
            .shared
            .config
            .dag_processor
            .min_file_process_interval
            .is_some();
        let mut is_first = self.queue.is_empty() && self.in_hand.is_empty();
        for (file, why) in later {
            match why {
                Why::Changed | Why::Retry => self.queue.push_back((file, why)),
                Why::Idle if paced => self.queue.push_back((file, why)),
                // One at a time, and only when there is nothing else to do.
                Why::Idle if is_first && self.idle_until <= now => {
                    is_first = false;
                    self.queue.push_back((file, why));
                }
                Why::Idle => self.next_due = earlier(self.next_due, self.idle_until.max(now + SECRETS)),
            }
        }
    }

    /// When a file that did not change is to be parsed all the same, and for which reason; without a wait when that is now.
    fn unchanged(&self, record: &FileRecord, now: Timestamp) -> (Why, Duration) {
        let explicit = self.shared.config.dag_processor.min_file_process_interval;
        let idle = explicit.map_or(pace::IDLE, |interval| interval.max(SHORTEST));
        let age = (now - record.parsed_at).to_std().unwrap_or_default();
        if record.failures > 0 {
            let retry = pace::retry(record.failures, record.parse_duration);
            return (Why::Retry, retry.min(idle).saturating_sub(age));
        }
        (Why::Idle, idle.saturating_sub(age))
    }

    /// Begins to parse as many files as may be parsed at a time.
    async fn begin(&mut self) -> anyhow::Result<()> {
        while self.parsing.len() < self.shared.config.dag_processor.parsing_processes {
            if self.away_until > Instant::now() {
                self.next_due = earlier(self.next_due, self.away_until);
                return Ok(());
            }
            let Some((file, why)) = self.queue.pop_front() else {
                return Ok(());
            };
            let key = file.key();
            let record = self.known.get(&key).and_then(|known| known.record.clone());
            if let (Why::Retry | Why::Idle, Some(record)) = (why, &record) {
                let now = Utc::now();
                let taken = store::transact!(self.shared.store, "take file", |tx| tx
                    .take_file(record, now)
                    .await);
                if !matches!(taken, Ok(true)) {
                    // Another DAG processor has it, or the database is away: the next look tells.
                    self.next_due = earlier(self.next_due, Instant::now() + SHORTEST);
                    continue;
                }
            }
            let begun = lock(&self.shared.looks).number();
            self.in_hand.insert(key.clone(), begun);
            let job = Job {
                begun,
                record,
                all: Arc::clone(&self.all),
                file,
            };
            let shared = Arc::clone(&self.shared);
            self.parsing
                .spawn(async move { (key, why, shared.parse(job).await) });
        }
        Ok(())
    }

    /// A file was parsed, or could not be.
    fn ended(&mut self, file: &FileKey, why: Why, done: anyhow::Result<Option<Done>>) {
        self.in_hand.remove(file);
        let now = Instant::now();
        match done {
            Ok(Some(done)) => {
                self.changes.follow(done.dependencies.iter());
                self.missed |= done.has_woken_others;
                if why == Why::Idle {
                    let length = Duration::try_from_secs_f64(done.record.parse_duration * pace::IDLE_SHARE);
                    self.idle_until = now + length.unwrap_or(pace::IDLE);
                }
                let due = self.unchanged(&done.record, Utc::now()).1;
                self.next_due = earlier(self.next_due, now + due);
                let known = self.known.entry(done.file.key()).or_default();
                known.rest.parsed(now);
                known.begun = done.begun;
                known.dependencies = Some(done.dependencies);
                known.record = Some(done.record);
            }
            Ok(None) => {
                self.away_until = now + PYTHON_AWAY;
                self.queue.clear();
                self.next_due = earlier(self.next_due, self.away_until);
            }
            Err(error) => {
                tracing::warn!(
                    %file,
                    "the file could not be processed, trying again: {error:#}"
                );
                self.away_until = now + PYTHON_AWAY;
                self.next_due = earlier(self.next_due, self.away_until);
            }
        }
    }
}

/// Whether a file is due because something changed.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Now,
    /// It was parsed too often lately.
    At(Instant),
    Unchanged,
}

fn is_due(present: &mut Present<'_>, file: &DagFile, known: &Known, now: Instant) -> Due {
    let (Some(record), Some(dependencies)) = (&known.record, &known.dependencies) else {
        // Never parsed, or by a version that did not note what it depended on.
        return Due::Now;
    };
    let is_asked_for = record.fingerprint.is_empty() && record.failures == 0;
    if is_asked_for || present.touched(file) > known.begun {
        return Due::Now;
    }
    let moved = present.moved(dependencies) > known.begun;
    if moved
        || !record.fingerprint.is_empty() && present.fingerprint(file, dependencies) != record.fingerprint
    {
        return match known.rest.until() {
            Some(until) if until > now => Due::At(until),
            Some(_) | None => Due::Now,
        };
    }
    Due::Unchanged
}

fn earlier(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}
