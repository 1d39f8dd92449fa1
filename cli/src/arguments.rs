//! The verbs of `airflow`, as far as they are here.

mod work;

pub(crate) use work::{ClearOptions, DagsCommand, TasksCommand, TriggerOptions};

use crate::output::Format;
use clap::{Args, Parser, Subcommand};
use model::TaskInstanceId;
use std::path::PathBuf;

/// Apache Airflow 3 workloads on a Rust core.
///
/// Configured like Airflow: $AIRFLOW_HOME/airflow.cfg and AIRFLOW__SECTION__KEY; see `updraft config list --defaults`.
#[derive(Debug, Parser)]
#[command(name = "updraft", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs everything in one process: for a laptop, on SQLite and an in-process queue
    Standalone(StandaloneOptions),
    /// Starts a scheduler
    Scheduler(NoOptions),
    /// Starts a worker
    Worker(WorkerOptions),
    /// Starts a triggerer: a worker that runs triggers only
    Triggerer(TriggererOptions),
    /// Starts a DAG processor
    DagProcessor(NoOptions),
    /// Starts an API server with the gRPC control plane
    ApiServer(ApiServerOptions),
    /// `celery worker` is `worker`
    #[command(subcommand)]
    Celery(CeleryCommand),
    /// The metadata database
    #[command(subcommand)]
    Db(DbCommand),
    /// DAGs
    #[command(subcommand)]
    Dags(DagsCommand),
    /// Tasks
    #[command(subcommand)]
    Tasks(TasksCommand),
    /// Assets
    #[command(subcommand)]
    Assets(AssetsCommand),
    /// Partitions of runs
    #[command(subcommand)]
    Partitions(PartitionsCommand),
    /// Backfills
    #[command(subcommand)]
    Backfill(BackfillCommand),
    /// Pools
    #[command(subcommand)]
    Pools(PoolsCommand),
    /// Variables
    #[command(subcommand)]
    Variables(VariablesCommand),
    /// Workers
    #[command(subcommand)]
    Workers(WorkersCommand),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Shows the version
    Version,
    /// Shows facts about this installation
    Info(OutputOptions),
}

/// A component without options of its own.
#[derive(Debug, Args)]
pub(crate) struct NoOptions {}

#[derive(Debug, Args)]
pub(crate) struct StandaloneOptions {
    /// Port of the UI and the API
    #[arg(short, long)]
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct ApiServerOptions {
    /// Port to listen on
    #[arg(short, long)]
    pub(crate) port: Option<u16>,
    /// Address to listen on
    #[arg(short = 'H', long)]
    pub(crate) host: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TriggererOptions {
    /// Triggers that run at the same time
    #[arg(long)]
    pub(crate) capacity: Option<u32>,
    /// Name of this triggerer, the same after a restart
    #[arg(short = 'H', long)]
    pub(crate) hostname: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerOptions {
    /// Tasks that run at the same time
    #[arg(short, long)]
    pub(crate) concurrency: Option<u32>,
    /// Queues to serve, separated by commas
    #[arg(short, long)]
    pub(crate) queues: Option<String>,
    /// Name of this worker, the same after a restart
    #[arg(short = 'H', long = "celery-hostname")]
    pub(crate) hostname: Option<String>,
    /// Runs this one task instance and ends, as the pods of the KubernetesExecutor do
    #[arg(long, value_name = "ID", requires = "try_number")]
    pub(crate) task_instance: Option<TaskInstanceId>,
    /// Its try
    #[arg(long, value_name = "N", requires = "task_instance")]
    pub(crate) try_number: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CeleryCommand {
    /// Starts a worker
    Worker(WorkerOptions),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DbCommand {
    /// Brings the database to the schema of this program
    Migrate,
    /// Checks that the database can be reached and has the right schema
    Check,
    /// Deletes everything and starts over
    Reset {
        /// Does not ask
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct OutputOptions {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AssetsCommand {
    /// Lists assets
    List {
        /// Lists aliases instead
        #[arg(long)]
        alias: bool,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Shows an asset
    Details {
        /// Shows an alias instead
        #[arg(long)]
        alias: bool,
        #[command(flatten)]
        wish: AssetWish,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Triggers the DAG that updates an asset
    Materialize {
        #[command(flatten)]
        wish: AssetWish,
        #[command(flatten)]
        output: OutputOptions,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BackfillCommand {
    /// Makes a backfill: runs of a DAG for a range of logical dates
    Create(BackfillOptions),
}

#[derive(Debug, Args)]
pub(crate) struct BackfillOptions {
    /// The DAG
    #[arg(long)]
    pub(crate) dag_id: String,
    /// First logical date (RFC 3339, or YYYY-MM-DD)
    #[arg(long)]
    pub(crate) from_date: String,
    /// Last logical date
    #[arg(long)]
    pub(crate) to_date: String,
    /// Parameters of the runs, a JSON object
    #[arg(long)]
    pub(crate) dag_run_conf: Option<String>,
    /// Runs the last date first
    #[arg(long)]
    pub(crate) run_backwards: bool,
    /// Runs at the same time
    #[arg(long, default_value_t = 10)]
    pub(crate) max_active_runs: u32,
    /// What to do about dates that have a run already
    #[arg(long, value_parser = ["none", "failed", "completed"])]
    pub(crate) reprocess_behavior: Option<String>,
    /// Accepted for Airflow's sake: runs always go on with the latest version of a DAG
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) run_on_latest_version: Option<bool>,
    /// Only shows the dates
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PartitionsCommand {
    /// Lets runs be about no partition any more
    Clear {
        /// The DAG
        #[arg(short, long)]
        dag_id: String,
        /// The run of that name
        #[arg(short, long)]
        run_id: Option<String>,
        /// The runs about that partition
        #[arg(short = 'k', long)]
        partition_key: Option<String>,
        /// The runs about partitions from that date on
        #[arg(short, long)]
        start_date: Option<String>,
        /// The runs about partitions up to that date
        #[arg(short, long)]
        end_date: Option<String>,
        /// Both dates as `a~b`
        #[arg(long)]
        date: Option<String>,
        /// Runs their tasks again, too
        #[arg(long)]
        clear_task_instances: bool,
        /// Only tells what would be done
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which runs are meant: exactly one way to say it.
#[derive(Debug, Args)]
pub(crate) struct RunsWish {
    /// The run of that name
    #[arg(long)]
    pub(crate) run_id: Option<String>,
    /// The runs about that partition
    #[arg(long)]
    pub(crate) partition_key: Option<String>,
    /// The runs about partitions from that date on
    #[arg(long)]
    pub(crate) partition_date_start: Option<String>,
    /// The runs about partitions up to that date
    #[arg(long)]
    pub(crate) partition_date_end: Option<String>,
}

/// Which asset is meant.
#[derive(Debug, Args)]
pub(crate) struct AssetWish {
    /// Its name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Its URI
    #[arg(long)]
    pub(crate) uri: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkersCommand {
    /// Prints the join token of a pool of workers, for [updraft] join_token; needs the API servers' [api_auth] jwt_secret
    JoinToken {
        /// The pool, one of [updraft] worker_pools
        #[arg(long, default_value = bootstrap::DEFAULT_POOL)]
        pool: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolsCommand {
    /// Lists pools
    List(OutputOptions),
    /// Shows a pool
    Get {
        /// Its name
        pool: String,
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Makes or changes a pool
    Set {
        /// Its name
        pool: String,
        /// Its slots; -1 for no limit
        #[arg(allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
        slots: i64,
        /// What it is for
        description: String,
        /// Deferred task instances hold their slots
        #[arg(long)]
        include_deferred: bool,
    },
    /// Deletes a pool
    Delete {
        /// Its name
        pool: String,
    },
    /// Makes or changes pools as a JSON file says
    Import {
        /// The file: an object of names, each with `slots` and `description`
        file: PathBuf,
    },
    /// Writes all pools to a JSON file
    Export {
        /// The file; - for standard output
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VariablesCommand {
    /// Lists variables
    List(OutputOptions),
    /// Shows a variable
    Get {
        /// Its name
        key: String,
        /// What to show if there is none
        #[arg(short, long)]
        default: Option<String>,
        /// Reads the value as JSON
        #[arg(short, long)]
        json: bool,
    },
    /// Sets a variable
    Set {
        /// Its name
        key: String,
        /// Its value
        value: String,
        /// What it is for
        #[arg(long)]
        description: Option<String>,
        /// The value is JSON
        #[arg(short, long)]
        json: bool,
    },
    /// Deletes a variable
    Delete {
        /// Its name
        key: String,
    },
    /// Sets variables from a JSON file
    Import {
        /// The file: an object of names and values
        file: PathBuf,
        /// What to do with variables that exist
        #[arg(short, long, default_value = "overwrite", value_parser = ["overwrite", "fail", "skip"])]
        action_on_existing_key: String,
    },
    /// Writes all variables to a JSON file
    Export {
        /// The file; - for standard output
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Lists options with their values
    List(ConfigListOptions),
    /// Shows the value of one option
    GetValue {
        /// The section
        section: String,
        /// The option
        option: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ConfigListOptions {
    /// Shows the defaults with their descriptions, ready for airflow.cfg
    #[arg(short = 'a', long)]
    pub(crate) defaults: bool,
    /// Only this section
    #[arg(long)]
    pub(crate) section: Option<String>,
    /// Shows where each value comes from
    #[arg(short = 's', long)]
    pub(crate) include_sources: bool,
    /// Shows secrets
    #[arg(long)]
    pub(crate) show_values: bool,
}
