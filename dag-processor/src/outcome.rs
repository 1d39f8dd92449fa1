//! What came of a file, and how it is stored.

use crate::files::DagFile;
use crate::{Shared, lock};
use broker::Hint;
use config::Config;
use model::dag::Dag;
use model::dag_run::is_valid_dag_id;
use model::timetable::DataInterval;
use model::{DagId, DagVersionId, Timestamp};
use python::{OldForm, ParsedFile, PythonDag};
use std::collections::BTreeMap;
use store::repo::{FileKey, FileRecord, Hooks, ParsedDag, TimetableQuestion, duplicate_words};
use store::{Cipher, StoreError, Tx};

/// Source code beyond this is not stored, in bytes.
const SOURCE: usize = 4 << 20;
/// Old forms of one file that are told one by one.
const OLD_FORMS: usize = 20;
/// Old forms of imported modules and plugins that are remembered as told.
const TOLD: usize = 10_000;

/// A DAG with its structure.
pub(crate) struct ReadDag {
    parsed: ParsedDag,
    dag: Dag,
}

/// What came of a file.
#[derive(Default)]
pub(crate) struct FileOutcome {
    pub(crate) dags: Vec<ReadDag>,
    /// Errors by path within the bundle.
    pub(crate) errors: BTreeMap<String, String>,
    /// The hooks that listeners of plugins have.
    listeners: Option<Hooks>,
}

impl FileOutcome {
    /// The file gave nothing at all.
    pub(crate) fn failed(file: &DagFile, why: String) -> Self {
        Self {
            errors: BTreeMap::from([(file.relative.clone(), why)]),
            ..Self::default()
        }
    }

    /// Reads what Python found; a DAG that cannot be used becomes an error, the others go on.
    pub(crate) fn read(
        file: &DagFile,
        parsed: ParsedFile,
        seconds: f64,
        config: &Config,
        cipher: &Cipher,
    ) -> Self {
        let source = std::fs::read(&file.path).unwrap_or_default();
        let source = String::from_utf8_lossy(&source[..source.len().min(SOURCE)]).into_owned();
        let hooks = Hooks(parsed.listeners);
        let mut outcome = Self {
            errors: parsed.import_errors,
            listeners: Some(hooks.clone()),
            ..Self::default()
        };
        for found in parsed.dags {
            let dag_id = found.dag_id.clone();
            match read_dag(file, found, &source, seconds, config, cipher) {
                Ok(mut read) => {
                    // The hook may spread them over pools that no task names.
                    read.parsed.has_several_pools |= hooks.have_mutations();
                    outcome.dags.push(read);
                }
                Err(why) => {
                    let text = outcome.errors.entry(file.relative.clone()).or_default();
                    text.push_str(&format!("DAG {dag_id}: {why}\n"));
                }
            }
        }
        outcome
    }
}

fn read_dag(
    file: &DagFile,
    found: PythonDag,
    source: &str,
    seconds: f64,
    config: &Config,
    cipher: &Cipher,
) -> Result<ReadDag, String> {
    let document = serde_json::from_str(&found.serialized).map_err(|error| error.to_string())?;
    let dag = Dag::from_serialized(&document).map_err(|error| error.to_string())?;
    if !is_valid_dag_id(&dag.dag_id) {
        return Err(
            "the DAG id may have letters, digits, dashes, dots and underscores, and at most 250 of them"
                .to_owned(),
        );
    }
    let parsed = ParsedDag {
        dag_id: dag.dag_id.clone(),
        fileloc: found.fileloc,
        relative_fileloc: file.relative.clone(),
        bundle_name: file.bundle.name.clone(),
        bundle_version: file.bundle.version.clone(),
        display_name: found.display_name,
        description: found.description,
        owners: found.owners,
        tags: found.tags,
        timetable_type: found.timetable_type,
        timetable_summary: found.timetable_summary.filter(|summary| summary != "None"),
        timetable_description: found.timetable_description,
        has_timetable: found.has_timetable,
        max_active_runs: dag.max_active_runs,
        max_active_tasks: dag.max_active_tasks,
        max_consecutive_failed: found.max_consecutive_failed,
        has_task_limits: dag
            .tasks
            .iter()
            .any(|task| task.max_active_tis_per_dag.is_some() || task.max_active_tis_per_dagrun.is_some()),
        has_several_pools: dag.has_several_pools(),
        allowed_run_types: dag
            .allowed_run_types
            .as_ref()
            .map(|allowed| allowed.iter().map(|kind| kind.as_str().to_owned()).collect()),
        paused_at_creation: found
            .paused_upon_creation
            .unwrap_or(config.core.dags_are_paused_at_creation),
        serialized: found.serialized,
        canonical: found.canonical,
        native: store::side_document::seal(found.native, cipher),
        source: source.to_owned(),
        parse_duration: seconds,
    };
    Ok(ReadDag { parsed, dag })
}

impl Shared {
    /// Tells which old forms a file uses. Those of modules and plugins that it imports are told once, not for every file.
    pub(crate) fn tell_of_old_forms(&self, file: &DagFile, forms: &[OldForm]) {
        let own = |form: &&OldForm| std::path::Path::new(&form.file) == file.path;
        let others: Vec<&OldForm> = {
            let mut told = lock(&self.told);
            let is_new = |form: &&OldForm| told.len() < TOLD && told.insert((*form).clone());
            forms.iter().filter(|form| !own(form)).filter(is_new).collect()
        };
        let all: Vec<&OldForm> = forms.iter().filter(own).chain(others).collect();
        for form in all.iter().take(OLD_FORMS) {
            tracing::warn!(
                file = form.file,
                line = form.line,
                "{} is what Airflow 3 no longer has, and keeps its old meaning; write {}",
                form.old,
                form.modern
            );
        }
        if all.len() > OLD_FORMS {
            tracing::warn!(
                file = %file.relative,
                uses = all.len(),
                "the file has more of these; `updraft dags upgrade-check` lists all"
            );
        }
    }

    /// Stores what came of a file, all in one transaction. Whether other files are to be parsed because of it.
    pub(crate) async fn save(
        &self,
        file: &DagFile,
        outcome: FileOutcome,
        record: &mut FileRecord,
    ) -> anyhow::Result<bool> {
        let now = record.parsed_at;
        if let Some(listeners) = &outcome.listeners
            && self.store.reader().await?.listeners().await? != *listeners
        {
            store::transact!(self.store, "note listeners", |tx| tx
                .set_listeners(listeners)
                .await)?;
        }
        let ids: Vec<DagVersionId> = outcome
            .dags
            .iter()
            .map(|_| DagVersionId::new(uuid::Uuid::now_v7()))
            .collect();
        let failed_before = record.failures;
        let (new_versions, running, failures, woken) = store::transact!(self.store, "save file", |tx| {
            let mut errors = outcome.errors.clone();
            let mut present = Vec::new();
            let (mut new_versions, mut running, mut woken) = (0, Vec::new(), false);
            for (read, id) in outcome.dags.iter().zip(&ids) {
                let owner = self.owner(tx, &read.parsed).await?;
                if let Owner::Other(other) = owner {
                    let text = format!("{}{other}\n", duplicate_words(&read.dag.dag_id));
                    errors.entry(file.relative.clone()).or_default().push_str(&text);
                    continue;
                }
                if save_dag(tx, read, *id, now).await? {
                    new_versions += 1;
                    running.extend(tx.tell_runs_of_version(&read.dag.dag_id, now).await?);
                }
                woken |= owner == Owner::Taken;
                present.push(read.dag.dag_id.clone());
            }
            woken |= save_errors(tx, file, &errors, &present, now).await?;
            let failures = if errors.is_empty() { 0 } else { failed_before + 1 };
            let record = FileRecord {
                failures,
                ..record.clone()
            };
            tx.save_file(&record).await?;
            Ok((new_versions, running, failures, woken))
        })?;
        record.failures = failures;
        if new_versions > 0 {
            tracing::info!(file = %file.relative, dags = outcome.dags.len(), new_versions, "file parsed");
        }
        self.broker.hint(Hint::Timetables);
        for run in running {
            self.broker.hint(Hint::Run(run));
        }
        Ok(woken)
    }

    /// Of several files with the same DAG it is that of the first, by bundle and path, whichever was parsed first.
    async fn owner(&self, tx: &mut Tx, parsed: &ParsedDag) -> Result<Owner, StoreError> {
        let Some(record) = tx.dag(&parsed.dag_id).await? else {
            return Ok(Owner::Ours);
        };
        let known = self.bundles.place(&record.bundle_name, &record.relative_fileloc);
        let ours = self.bundles.place(&parsed.bundle_name, &parsed.relative_fileloc);
        // A bundle that is not configured any more keeps nothing.
        let elsewhere = known.is_some()
            && known != ours
            && !record.is_stale
            && std::path::Path::new(&record.fileloc).exists();
        if !elsewhere {
            return Ok(Owner::Ours);
        }
        if ours < known {
            tx.wake_file(&record.file()).await?;
            return Ok(Owner::Taken);
        }
        Ok(Owner::Other(record.fileloc))
    }
}

/// Stores a DAG with all that follows from its structure. Whether it is a new version.
async fn save_dag(tx: &mut Tx, read: &ReadDag, id: DagVersionId, now: Timestamp) -> Result<bool, StoreError> {
    let is_new = tx.save_dag(&read.parsed, id, now).await?.is_new_version;
    set_next_run(tx, &read.dag, is_new, now).await?;
    tx.set_asset_references(&read.dag, now).await?;
    if is_new {
        tx.look_at_partitions_again(&read.dag.dag_id).await?;
    }
    Ok(is_new)
}

/// Stores what could not be imported of a file, and what has become of the DAGs that it had. Whether DAGs left it.
async fn save_errors(
    tx: &mut Tx,
    file: &DagFile,
    errors: &BTreeMap<String, String>,
    present: &[DagId],
    now: Timestamp,
) -> Result<bool, StoreError> {
    let fileloc = file.path.to_string_lossy();
    if !errors.contains_key(&file.relative) {
        tx.set_import_error(&file.key(), &fileloc, None, now).await?;
    }
    for (path, text) in errors {
        let key = FileKey::new(&file.bundle.name, path);
        tx.set_import_error(&key, &fileloc, Some(text), now).await?;
    }
    // A file that is broken right now keeps its DAGs, hidden behind the error.
    if errors.is_empty() || !present.is_empty() {
        let gone = tx.retire_missing_dags(&file.key(), present, now).await?;
        tx.wake_duplicates(&gone).await?;
        return Ok(!gone.is_empty());
    }
    tx.set_import_error_flag(&file.key(), true).await?;
    Ok(false)
}

/// Whose a DAG is.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    /// The file's that was parsed.
    Ours,
    /// The same, from now on: the file that had it is parsed again, and says so.
    Taken,
    /// Another file's.
    Other(String),
}

/// Recomputes when the DAG runs next, from its last scheduled run on.
async fn set_next_run(tx: &mut Tx, dag: &Dag, is_new: bool, now: Timestamp) -> Result<(), StoreError> {
    let dag_id: &DagId = &dag.dag_id;
    let last = if dag.timetable.is_partitioned() {
        let last = tx.last_partitioned_run(dag_id).await?;
        last.map(DataInterval::exact)
    } else {
        let last = tx.last_automated_run(dag_id).await?;
        last.and_then(|run| {
            Some(DataInterval {
                start: run.data_interval_start?,
                end: run.data_interval_end?,
            })
        })
    };
    if dag.timetable.is_foreign() {
        let known = tx.dag(dag_id).await?.and_then(|record| record.next_run_after);
        if is_new || known.is_none() {
            tx.ask_timetable(dag_id, TimetableQuestion::Next { last }, now)
                .await?;
        }
        return Ok(());
    }
    let next = dag
        .timetable
        .next_run(last, &dag.time_restriction(), now)
        .unwrap_or_else(|error| {
            tracing::warn!(dag_id = %dag_id, "no next run: {error}");
            None
        });
    tx.set_next_run(dag_id, next).await
}

/// The line of a traceback that names the exception: the first that is not indented after the last that is.
pub(crate) fn summary(error: &str) -> &str {
    let lines: Vec<&str> = error.trim().lines().collect();
    let indented = lines
        .iter()
        .rposition(|line| line.starts_with(char::is_whitespace));
    let named = indented.and_then(|at| lines.get(at + 1)).or_else(|| lines.last());
    named.copied().unwrap_or_default()
}

#[cfg(test)]
mod summary_tests {
    use super::summary;

    #[test]
    fn the_exception_is_named_whatever_follows_it() {
        let traceback = "Traceback (most recent call last):\n  File \"a.py\", line 1\n    while True: pass\nTimeout: too long\nPlease look at\n* https://docs, PID: 1\n";
        assert_eq!(summary(traceback), "Timeout: too long");
        assert_eq!(summary("the process died"), "the process died");
        assert_eq!(summary(""), "");
    }
}
