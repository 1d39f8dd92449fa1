//! Names of metrics, in one place.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Upper bounds of the buckets of durations, in seconds.
pub const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

/// Runs created, by type.
pub const RUNS_CREATED: &str = "updraft_scheduler_runs_created_total";
/// Runs ended, by state.
pub const RUNS_ENDED: &str = "updraft_scheduler_runs_ended_total";
/// Plans made, by what came of them.
pub const PLANS: &str = "updraft_scheduler_plans_total";
/// Time that one plan took, with its transaction.
pub const PLAN_SECONDS: &str = "updraft_scheduler_plan_seconds";
/// Dispatches handed to the broker.
pub const DISPATCHED: &str = "updraft_scheduler_dispatched_total";
/// Dispatches handed over again, by reason.
pub const REDISPATCHED: &str = "updraft_scheduler_redispatched_total";
/// Hand-overs that failed.
pub const DISPATCH_FAILURES: &str = "updraft_scheduler_dispatch_failures_total";
/// Workers whose lease ran out.
pub const LEASES_EXPIRED: &str = "updraft_scheduler_leases_expired_total";
/// Task instances taken from workers that are gone.
pub const TASKS_LOST: &str = "updraft_scheduler_tasks_lost_total";
/// Unix time of the last completed sweep.
pub const LAST_SWEEP: &str = "updraft_scheduler_last_sweep_timestamp";
/// Claims, by outcome.
pub const CLAIMS: &str = "updraft_api_claims_total";
/// Reports, by outcome.
pub const REPORTS: &str = "updraft_api_reports_total";
/// Pieces of tasks' logs that could not be written.
pub const LOG_WRITES_FAILED: &str = "updraft_api_log_writes_failed_total";
/// REST requests, by status class.
pub const REQUESTS: &str = "updraft_api_requests_total";
/// Time that a REST request took.
pub const REQUEST_SECONDS: &str = "updraft_api_request_seconds";
/// Time that a REST list waited for its turn.
pub const LIST_WAIT_SECONDS: &str = "updraft_api_list_wait_seconds";
/// Tasks that run now.
pub const RUNNING: &str = "updraft_worker_running";
/// Tasks ended, by ending and way (native or python).
pub const TASKS_ENDED: &str = "updraft_worker_tasks_ended_total";
/// Time from a claim to the process's start.
pub const START_SECONDS: &str = "updraft_worker_start_seconds";
/// Files parsed, by outcome.
pub const FILES_PARSED: &str = "updraft_dag_processor_files_parsed_total";
/// Time that parsing a file took.
pub const PARSE_SECONDS: &str = "updraft_dag_processor_parse_seconds";
/// Triggers that fired or failed, by outcome.
pub const TRIGGERS: &str = "updraft_triggers_total";
/// Triggers that run now.
pub const TRIGGERS_RUNNING: &str = "updraft_worker_triggers_running";
/// Transactions run again.
pub const STORE_RETRIES: &str = "updraft_store_retries_total";
/// Statements that the database was given.
pub const STORE_STATEMENTS: &str = "updraft_store_statements_total";

pub(crate) fn describe() {
    for (name, text) in [
        (RUNS_CREATED, "DagRuns created"),
        (RUNS_ENDED, "DagRuns ended"),
        (PLANS, "Plans made for DagRuns"),
        (DISPATCHED, "Task instances handed to the broker"),
        (REDISPATCHED, "Task instances handed to the broker again"),
        (DISPATCH_FAILURES, "Hand-overs that the broker did not take"),
        (LEASES_EXPIRED, "Workers whose lease ran out"),
        (TASKS_LOST, "Task instances taken from workers that are gone"),
        (CLAIMS, "Claims of task instances"),
        (REPORTS, "Reports of workers"),
        (
            LOG_WRITES_FAILED,
            "Pieces of tasks' logs that could not be written",
        ),
        (REQUESTS, "REST requests"),
        (TASKS_ENDED, "Tasks ended"),
        (FILES_PARSED, "DAG files parsed"),
        (TRIGGERS, "Triggers that fired or failed"),
        (STORE_RETRIES, "Transactions run again"),
        (STORE_STATEMENTS, "Statements that the database was given"),
    ] {
        describe_counter!(name, Unit::Count, text);
    }
    for (name, text) in [
        (PLAN_SECONDS, "Time of one plan with its transaction"),
        (REQUEST_SECONDS, "Time of a REST request"),
        (LIST_WAIT_SECONDS, "Time that a REST list waited for its turn"),
        (START_SECONDS, "Time from a claim to the start of its process"),
        (PARSE_SECONDS, "Time of parsing a DAG file"),
    ] {
        describe_histogram!(name, Unit::Seconds, text);
    }
    describe_gauge!(LAST_SWEEP, Unit::Seconds, "Unix time of the last completed sweep");
    describe_gauge!(RUNNING, Unit::Count, "Tasks that run now");
    describe_gauge!(TRIGGERS_RUNNING, Unit::Count, "Triggers that run now");
}
