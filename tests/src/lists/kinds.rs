//! What people and the UI ask for.

/// How much there is in a store.
#[derive(Debug, Clone, Copy)]
pub struct Store {
    /// Runs.
    pub runs: u64,
    /// Task instances of each.
    pub tasks: u64,
}

/// A kind of question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The list of DAGs.
    Dags,
    /// Runs of all DAGs, in any order, at their beginning.
    Runs,
    /// Runs of all DAGs, anywhere.
    RunsDeep,
    /// Runs whose id is like something.
    RunsLike,
    /// Runs of one DAG.
    RunsOfDag,
    /// Task instances of everything, in any order, at their beginning.
    Tasks,
    /// Task instances of everything, anywhere.
    TasksDeep,
    /// Task instances in a state.
    TasksInState,
    /// Task instances whose DAG, run or task is named like something.
    TasksLike,
    /// Task instances of one DAG, in any order.
    TasksOfDag,
    /// Task instances of one run, in any order.
    TasksOfRun,
    /// Pages that follow a cursor.
    Cursor,
}

/// All kinds, and how many of a hundred questions are of each.
pub const KINDS: [(Kind, u64); 12] = [
    (Kind::Dags, 10),
    (Kind::Runs, 12),
    (Kind::RunsDeep, 4),
    (Kind::RunsLike, 4),
    (Kind::RunsOfDag, 10),
    (Kind::Tasks, 18),
    (Kind::TasksDeep, 6),
    (Kind::TasksInState, 8),
    (Kind::TasksLike, 6),
    (Kind::TasksOfDag, 8),
    (Kind::TasksOfRun, 12),
    (Kind::Cursor, 2),
];

const RUN_ORDERS: [&str; 8] = [
    "run_after",
    "logical_date",
    "start_date",
    "end_date",
    "duration",
    "state",
    "dag_id",
    "id",
];
const TASK_ORDERS: [&str; 12] = [
    "id",
    "state",
    "duration",
    "start_date",
    "end_date",
    "map_index",
    "try_number",
    "logical_date",
    "run_after",
    "data_interval_start",
    "rendered_map_index",
    "operator",
];

fn one<'a>(from: &[&'a str], random: &mut dyn FnMut(u64) -> u64) -> &'a str {
    let at = random(from.len() as u64);
    from[usize::try_from(at).unwrap_or(0)]
}

fn order(from: &[&str], random: &mut dyn FnMut(u64) -> u64) -> String {
    let sign = if random(2) == 0 { "-" } else { "" };
    format!("limit=50&order_by={sign}{}", one(from, random))
}

/// The path of a question of this kind; `random` gives a number below its argument.
pub fn path(kind: Kind, store: Store, random: &mut dyn FnMut(u64) -> u64) -> String {
    let run = random(store.runs);
    let dag = run % u64::try_from(super::DAGS).unwrap_or(1);
    let all = store.runs * store.tasks;
    let runs = "/api/v2/dags/~/dagRuns";
    let tasks = "/api/v2/dags/~/dagRuns/~/taskInstances";
    match kind {
        Kind::Dags => format!(
            "/api/v2/dags?limit=50&order_by={}",
            one(&["dag_id", "-dag_id"], random)
        ),
        Kind::Runs => format!("{runs}?{}", order(&RUN_ORDERS, random)),
        Kind::RunsDeep => format!(
            "{runs}?{}&offset={}",
            order(&RUN_ORDERS, random),
            random(store.runs)
        ),
        Kind::RunsLike => format!(
            "{runs}?limit=50&order_by=-run_after&run_id_pattern=d__{}",
            random(1000)
        ),
        Kind::RunsOfDag => format!("/api/v2/dags/filled_{dag}/dagRuns?{}", order(&RUN_ORDERS, random)),
        Kind::Tasks => format!("{tasks}?{}", order(&TASK_ORDERS, random)),
        Kind::TasksDeep => format!("{tasks}?{}&offset={}", order(&TASK_ORDERS, random), random(all)),
        Kind::TasksInState => {
            let state = one(&["failed", "success", "running", "queued"], random);
            format!("{tasks}?{}&state={state}", order(&TASK_ORDERS[..6], random))
        }
        Kind::TasksLike => match random(3) {
            0 => format!("{tasks}?limit=50&order_by=-start_date&dag_id_pattern=led_{dag}"),
            1 => format!(
                "{tasks}?limit=50&order_by=-start_date&run_id_pattern=d__{}",
                random(1000)
            ),
            _ => format!(
                "{tasks}?limit=50&order_by=-start_date&task_display_name_pattern=sk_{}",
                random(20)
            ),
        },
        Kind::TasksOfDag => format!(
            "/api/v2/dags/filled_{dag}/dagRuns/~/taskInstances?{}",
            order(&TASK_ORDERS, random)
        ),
        Kind::TasksOfRun => format!(
            "/api/v2/dags/filled_{dag}/dagRuns/filled__{run}/taskInstances?{}",
            order(&TASK_ORDERS, random)
        ),
        Kind::Cursor => format!(
            "{}?limit=50&cursor=&order_by=-start_date",
            one(&[runs, tasks], random)
        ),
    }
}
