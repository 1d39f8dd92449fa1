//! Parsing one file and storing what came of it.

use crate::dependencies::{Asked, Dependencies, Present};
use crate::files::DagFile;
use crate::outcome::{self, FileOutcome};
use crate::{Shared, lock};
use chrono::Utc;
use python::{ParseFailure, ParseRequest, ParsedFile, parse_file};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};
use store::repo::{FileKey, FileRecord, SecretVersions};
use telemetry::metric;

/// A file in hand.
pub(crate) struct Job {
    pub(crate) file: DagFile,
    /// The look after which its parse begins.
    pub(crate) begun: u64,
    /// What was known of it before.
    pub(crate) record: Option<FileRecord>,
    /// All DAG files that there are.
    pub(crate) all: Arc<HashSet<FileKey>>,
}

/// A file that was parsed.
pub(crate) struct Done {
    pub(crate) file: DagFile,
    pub(crate) begun: u64,
    pub(crate) record: FileRecord,
    pub(crate) dependencies: Dependencies,
    /// `true` if other files are to be parsed because of it.
    pub(crate) has_woken_others: bool,
}

impl Shared {
    /// Parses one file and stores what came of it. `None` when Python could not be used, which is no fault of the file.
    pub(crate) async fn parse(self: Arc<Self>, job: Job) -> anyhow::Result<Option<Done>> {
        let file = &job.file;
        // Its start is none of the file's time.
        if let Err(error) = self.python.start().await {
            tracing::error!(file = %file.relative, "{error}");
            return Ok(None);
        }
        let request = ParseRequest {
            file: file.path.clone(),
            bundle: file.bundle.clone(),
            limits: self.limits(),
            instead: None,
        };
        let asked = Mutex::new(Asked::default());
        let (begin, since) = (Instant::now(), SystemTime::now());
        let parsed = parse_file(&self.python, &request, |question| {
            self.answer_noting(question, &asked)
        })
        .await;
        let seconds = parsed
            .as_ref()
            .map_or_else(|_| begin.elapsed().as_secs_f64(), |parsed| parsed.seconds);
        metrics::histogram!(metric::PARSE_SECONDS).record(seconds);
        let (entries, versions) = asked.into_inner().unwrap_or_default().into_parts();
        let (outcome, dependencies) = match parsed {
            Ok(mut parsed) => {
                leave_to_others(&mut parsed, &file.bundle.name, &job.all);
                let noted = std::mem::take(&mut parsed.dependencies);
                let found = Dependencies::new(noted, entries, parsed.too_many, &file.bundle.path);
                self.tell_of_old_forms(file, &parsed.old_forms);
                (
                    FileOutcome::read(file, parsed, seconds, &self.config, &self.cipher),
                    found,
                )
            }
            Err(ParseFailure::Python(error)) => {
                tracing::error!(file = %file.relative, "{error}");
                return Ok(None);
            }
            Err(failure) => {
                // What it depended on the time before is the best that is known.
                let before = job.record.as_ref().map_or("", |record| &record.dependencies);
                let known = Dependencies::from_json(before, &file.bundle.path).unwrap_or_default();
                (FileOutcome::failed(file, failure.to_string()), known)
            }
        };
        report(file, &outcome, &dependencies);
        let mut record = FileRecord {
            key: file.key(),
            fingerprint: self.fingerprint(file, &dependencies, &versions, since),
            dependencies: dependencies.to_json(),
            failures: job.record.map_or(0, |record| record.failures),
            parsed_at: Utc::now(),
            parse_duration: seconds,
        };
        let has_woken_others = self.save(file, outcome, &mut record).await?;
        Ok(Some(Done {
            file: job.file,
            begun: job.begun,
            record,
            dependencies,
            has_woken_others,
        }))
    }

    /// What the file and all that it depended on come to after its parse.
    fn fingerprint(
        &self,
        file: &DagFile,
        dependencies: &Dependencies,
        versions: &SecretVersions,
        since: SystemTime,
    ) -> String {
        let mut looks = lock(&self.looks);
        looks.begin();
        let mut present = Present {
            looks: &mut looks,
            versions,
            python: self.python.config(),
            options: &self.config.dag_processor.options_of_dags,
        };
        present.see(dependencies, since);
        present.fingerprint(file, dependencies)
    }
}

/// Drops DAGs that were made while the file imported another DAG file: they are that one's.
fn leave_to_others(parsed: &mut ParsedFile, bundle: &str, all: &HashSet<FileKey>) {
    let is_parsed = |other: &String| all.contains(&FileKey::new(bundle, other));
    parsed
        .dags
        .retain(|dag| !dag.other_file.as_ref().is_some_and(is_parsed));
}

fn report(file: &DagFile, outcome: &FileOutcome, dependencies: &Dependencies) {
    let word = if outcome.errors.is_empty() {
        "ok"
    } else {
        "import_error"
    };
    metrics::counter!(metric::FILES_PARSED, "outcome" => word).increment(1);
    tracing::debug!(file = %file.relative, outcome = word, "a file was parsed");
    for error in outcome.errors.values() {
        tracing::warn!(file = %file.relative, "import error: {}", outcome::summary(error));
    }
    if dependencies.are_incomplete {
        tracing::warn!(
            file = %file.relative,
            "parsing the file looks at more than 2000 files, folders and variables; changes of the others are seen only when it is parsed again in idle time"
        );
    }
}
