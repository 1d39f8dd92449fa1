//! Fills a metadata store with ended runs and task instances, to see how lists behave that are large.

use crate::parts::mariadb_client;
use anyhow::Context;
use chrono::{DateTime, Duration, Utc};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Rows of one statement.
const ROWS: usize = 500;
/// Statements of one transaction.
const BATCH: usize = 40;
const OPERATORS: [&str; 5] = [
    "BashOperator",
    "EmptyOperator",
    "KubernetesPodOperator",
    "PythonOperator",
    "SQLExecuteQueryOperator",
];

/// DAGs that the runs belong to.
pub const DAGS: i64 = 10;

const DAG: &str = "INSERT INTO dag (dag_id, is_paused, is_stale, fileloc, relative_fileloc, bundle_name, owners, tags, \
                   timetable_type, has_timetable, max_active_runs, max_active_tasks, max_consecutive_failed, \
                   has_import_errors, has_task_limits, version_id, version_number, last_parsed_at, last_parse_duration) VALUES ";
const VERSION: &str = "INSERT INTO dag_version (id, dag_id, version_number, structure_hash, serialized, native, source, \
                       fileloc, relative_fileloc, bundle_name, created_at, source_updated_at) VALUES ";
const RUN: &str = "INSERT INTO dag_run (id, dag_id, run_id, run_type, state, conf, run_after, queued_at, start_date, \
                   end_date, version_id, clear_number, updated_at) VALUES ";
const TASK: &str = "INSERT INTO task_instance (id, run_key, dag_id, run_id, task_id, map_index, state, try_number, \
                    max_tries, pool, pool_slots, queue, priority_weight, dispatch_order, operator, operator_name, \
                    version_id, claim_epoch, dispatch_seq, start_date, end_date, infra_losses, reschedules, \
                    updated_at) VALUES ";

/// Writes rows as statements to a client of the database.
struct Rows<'a> {
    head: &'static str,
    values: String,
    count: usize,
    statements: usize,
    out: &'a mut dyn std::io::Write,
}

impl Rows<'_> {
    fn add(&mut self, row: &str) -> std::io::Result<()> {
        let between = if self.count == 0 { "" } else { "," };
        write!(self.values, "{between}{row}").map_err(std::io::Error::other)?;
        self.count += 1;
        if self.count < ROWS {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        writeln!(self.out, "{}{};", self.head, self.values)?;
        self.values.clear();
        self.count = 0;
        self.statements += 1;
        if self.statements.is_multiple_of(BATCH) {
            writeln!(self.out, "COMMIT; BEGIN;")?;
        }
        Ok(())
    }
}

/// All statements: `runs` runs of ten DAGs, each with `tasks` task instances.
fn write(out: &mut dyn std::io::Write, runs: i64, tasks: i64) -> std::io::Result<()> {
    let begin: DateTime<Utc> = Utc::now() - Duration::minutes(runs);
    let version = |dag: i64| uuid::Uuid::from_u64_pair(7, u64::try_from(dag).unwrap_or(0));
    let name = |run: i64| (format!("filled_{}", run % DAGS), format!("filled__{run}"));
    // Beyond the numbers that a store in use has reached.
    let key = |run: i64| 1_000_000_000 + run;
    writeln!(out, "BEGIN;")?;
    let mut rows = Rows {
        head: DAG,
        values: String::new(),
        count: 0,
        statements: 0,
        out,
    };
    let now = begin.timestamp_micros();
    for dag in 0..DAGS {
        rows.add(&format!(
            "('filled_{dag}',1,0,'/filled.py','filled.py','dags-folder','[]','[]','NullTimetable',0,16,16,0,0,0,'{}',1,{now},0.1)",
            version(dag)
        ))?;
    }
    rows.flush()?;
    rows.head = VERSION;
    for dag in 0..DAGS {
        rows.add(&format!(
            "('{}','filled_{dag}',1,'','{{}}','{{}}','','/filled.py','filled.py','dags-folder',{now},{now})",
            version(dag)
        ))?;
    }
    rows.flush()?;
    rows.head = RUN;
    for run in 0..runs {
        let at = (begin + Duration::minutes(run)).timestamp_micros();
        let (end, version) = (at + 1_000_000 + run * 7919 % 600_000_000, version(run % DAGS));
        let ((dag_id, run_id), key) = (name(run), key(run));
        let state = if run % 50 == 0 { "failed" } else { "success" };
        rows.add(&format!(
            "({key},'{dag_id}','{run_id}','manual','{state}','{{}}',{at},{at},{at},{end},'{version}',0,{at})"
        ))?;
    }
    rows.flush()?;
    rows.head = TASK;
    for run in 0..runs {
        let ((dag_id, run_id), key) = (name(run), key(run));
        for task in 0..tasks {
            let at = (begin + Duration::minutes(run)).timestamp_micros() + task * 1000;
            let (id, number) = (uuid::Uuid::now_v7(), run * tasks + task);
            let (end, version) = (at + number * 104_729 % 900_000_000, version(run % DAGS));
            let state = if number % 100 == 0 { "failed" } else { "success" };
            let tries = 1 + i64::from(number % 30 == 0);
            let operator = OPERATORS[usize::try_from(task).unwrap_or(0) % OPERATORS.len()];
            rows.add(&format!(
                "('{id}',{key},'{dag_id}','{run_id}','task_{task}',-1,'{state}',{tries},0,'default_pool',1,'default',1,0,\
                 '{operator}','{operator}','{version}',1,1,{at},{end},0,0,{at})"
            ))?;
        }
    }
    rows.flush()?;
    writeln!(rows.out, "COMMIT;")
}

/// The client of a database, which reads statements.
fn client(url: &str) -> anyhow::Result<Command> {
    if let Some(path) = url.strip_prefix("sqlite:///") {
        let mut command = Command::new("sqlite3");
        command.arg(path);
        return Ok(command);
    }
    Ok(mariadb_client(url))
}

/// Fills the store at `url` (`sqlite:///PATH` or `mysql://...`, migrated) with `runs` runs of [`DAGS`] DAGs, each of
/// `tasks` task instances.
///
/// # Errors
/// When the database's own client cannot be run, or the database refuses.
pub fn fill(url: &str, runs: i64, tasks: i64) -> anyhow::Result<()> {
    let mut client = client(url)?
        .stdin(Stdio::piped())
        .spawn()
        .context("the client of the database")?;
    let pipe = client.stdin.take().context("the client reads nothing")?;
    let mut out = std::io::BufWriter::new(pipe);
    write(&mut out, runs, tasks)?;
    out.flush()?;
    drop(out);
    anyhow::ensure!(client.wait()?.success(), "the database refused");
    Ok(())
}
