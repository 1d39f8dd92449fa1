//! The verbs about DAGs and tasks.

use super::{OutputOptions, RunsWish};
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum DagsCommand {
    /// Lists all DAGs
    List(OutputOptions),
    /// Shows what is known of a DAG
    Details {
        /// The DAG
        dag_id: String,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Lists the runs of a DAG, the newest first
    ListRuns {
        /// The DAG
        dag_id: String,
        /// Only runs in that state
        #[arg(long)]
        state: Option<String>,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Triggers a run
    Trigger(TriggerOptions),
    /// Pauses a DAG
    Pause {
        /// The DAG
        dag_id: String,
        /// As in Airflow; nothing is asked
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Resumes a paused DAG
    Unpause {
        /// The DAG
        dag_id: String,
        /// As in Airflow; nothing is asked
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Clears runs: all their tasks run again
    Clear {
        /// The DAG
        dag_id: String,
        #[command(flatten)]
        runs: RunsWish,
        /// Only tasks that failed
        #[arg(short = 'f', long)]
        only_failed: bool,
        /// Only tasks that run
        #[arg(short = 'r', long)]
        only_running: bool,
        /// Does not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Shows the state of a run
    State {
        /// The DAG
        dag_id: String,
        /// Run id, or logical date
        logical_date_or_run_id: String,
    },
    /// Shows when a DAG runs next by itself
    NextExecution {
        /// The DAG
        dag_id: String,
        /// How many runs
        #[arg(short, long, default_value_t = 1)]
        num_executions: usize,
    },
    /// Deletes a DAG with all its runs; it comes back if its file is still there
    Delete {
        /// The DAG
        dag_id: String,
        /// Does not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Lists files that cannot be imported; fails if there are any
    ListImportErrors(OutputOptions),
    /// Lists what DAG files say in the words of Airflow 1.10 or 2, with the modern form
    UpgradeCheck {
        /// The files
        #[arg(required = true)]
        files: Vec<std::path::PathBuf>,
        #[command(flatten)]
        output: OutputOptions,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TasksCommand {
    /// Lists the tasks of a DAG
    List {
        /// The DAG
        dag_id: String,
    },
    /// Clears task instances: they run again
    Clear(ClearOptions),
    /// Shows the state of a task instance
    State {
        /// The DAG
        dag_id: String,
        /// The task
        task_id: String,
        /// Run id, or logical date
        logical_date_or_run_id: String,
        /// Which of its mapped instances
        #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
        map_index: i32,
    },
    /// Says why a task instance of a run waits
    Explain {
        /// The DAG
        dag_id: String,
        /// Run id, or logical date
        logical_date_or_run_id: String,
        /// The task
        task_id: String,
        /// Which of its mapped instances
        #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
        map_index: i32,
    },
    /// Shows what a task instance waits for, one thing a line, each with Airflow's name
    FailedDeps {
        /// The DAG
        dag_id: String,
        /// The task
        task_id: String,
        /// Run id, or logical date
        logical_date_or_run_id: String,
        /// Which of its mapped instances
        #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
        map_index: i32,
    },
    /// Shows the states of all task instances of a run
    StatesForDagRun {
        /// The DAG
        dag_id: String,
        /// Run id, or logical date
        logical_date_or_run_id: String,
        #[command(flatten)]
        output: OutputOptions,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TriggerOptions {
    /// The DAG
    pub(crate) dag_id: String,
    /// Name of the run; made up if absent
    #[arg(short, long)]
    pub(crate) run_id: Option<String>,
    /// Parameters, a JSON object
    #[arg(short, long)]
    pub(crate) conf: Option<String>,
    /// Logical date (RFC 3339, or YYYY-MM-DD); whole seconds count
    #[arg(short, long, alias = "exec-date")]
    pub(crate) logical_date: Option<String>,
    /// Keeps the microseconds of the logical date
    #[arg(long)]
    pub(crate) no_replace_microseconds: bool,
    #[command(flatten)]
    pub(crate) output: OutputOptions,
}

#[derive(Debug, Args)]
pub(crate) struct ClearOptions {
    /// The DAG
    pub(crate) dag_id: String,
    /// Only tasks whose names match this regular expression somewhere
    #[arg(short, long)]
    pub(crate) task_regex: Option<String>,
    /// Runs with logical dates from then on
    #[arg(short, long)]
    pub(crate) start_date: Option<String>,
    /// Runs with logical dates up to then
    #[arg(short, long)]
    pub(crate) end_date: Option<String>,
    /// And the tasks before them
    #[arg(short, long)]
    pub(crate) upstream: bool,
    /// And the tasks after them
    #[arg(short, long)]
    pub(crate) downstream: bool,
    /// Only tasks that failed
    #[arg(short = 'f', long)]
    pub(crate) only_failed: bool,
    /// Only tasks that run
    #[arg(short = 'r', long)]
    pub(crate) only_running: bool,
    /// Does not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}
