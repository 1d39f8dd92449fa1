//! `dags upgrade-check`: what DAG files say in the words of Airflow 1.10 or 2. It needs no database.

use crate::output::{Format, print, rows};
use anyhow::Context;
use config::Config;
use python::messages::{Answer, Question};
use python::{Bundle, ForkServer, OldForm, ParseLimits, ParseRequest, environment, parse_file};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Checks these files; fails when one of them cannot be loaded.
pub(crate) async fn run(mut config: Config, files: &[PathBuf], format: Format) -> anyhow::Result<()> {
    // The files asked for, and nothing else.
    config.core.load_examples = false;
    let interpreter = match &config.updraft.python {
        Some(python) => python.clone(),
        None => environment::ensure(&config.home, &|step| tracing::info!("{step}")).await?,
    };
    let mut found: Vec<OldForm> = Vec::new();
    let mut problems = Vec::new();
    for file in files {
        let path = file
            .canonicalize()
            .with_context(|| format!("{} cannot be read", file.display()))?;
        match check(&config, &interpreter, &path).await {
            Ok((old_forms, errors)) => {
                found.extend(old_forms);
                problems.extend(errors);
            }
            Err(error) => problems.push(format!("{}: {error:#}", file.display())),
        }
    }
    found.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    let shown: Vec<Value> = found.iter().map(|form| json!(form)).collect();
    rows(format, &["file", "line", "old", "modern"], &shown);
    for problem in &problems {
        print(&format!("cannot be loaded: {problem}\n"));
    }
    anyhow::ensure!(
        problems.is_empty(),
        "{} of the files cannot be loaded",
        problems.len()
    );
    Ok(())
}

async fn check(
    config: &Config,
    interpreter: &Path,
    file: &Path,
) -> anyhow::Result<(Vec<OldForm>, Vec<String>)> {
    let folder = file.parent().unwrap_or_else(|| Path::new("/")).to_owned();
    let mut config = config.clone();
    config.core.dags_folder.clone_from(&folder);
    config.dag_processor.bundles.clear();
    let server: ForkServer = bootstrap::fork_server(
        &config,
        interpreter.to_owned(),
        &[],
        &lifecycle::Lifecycle::default(),
    )?;
    let request = ParseRequest {
        file: file.to_owned(),
        bundle: Bundle::local("dags-folder", folder),
        limits: ParseLimits {
            time: config.dag_processor.file_timeout,
            memory_mb: config.dag_processor.file_memory_mb,
        },
        instead: None,
    };
    let parsed = parse_file(&server, &request, answer).await;
    server.stop().await;
    let parsed = parsed?;
    let errors = parsed
        .import_errors
        .iter()
        .map(|(file, error)| format!("{file}: {}", error.trim()))
        .collect();
    Ok((parsed.old_forms, errors))
}

/// There are no variables and connections here; a file that reads some at its top level is told so.
async fn answer(question: Question) -> Answer {
    match question {
        Question::GetVariable { key } => Answer::missing("VARIABLE_NOT_FOUND", json!({"key": key})),
        Question::GetConnection { conn_id } => {
            Answer::missing("CONNECTION_NOT_FOUND", json!({"conn_id": conn_id}))
        }
        _ => Answer::failure(400, "this cannot be used at the top level of a DAG file"),
    }
}
