//! Clearing: task instances run again, on the DAG version that is asked for.
//!
//! Follows `clear_task_instances` of `airflow/models/taskinstance.py`.

use broker::{Broker, Hint};
use chrono::Utc;
use model::dag::{Dag, Task};
use model::dag_run::DagRunState;
use model::task_instance::StateName;
use model::{DagId, DagRunKey, MapIndex, TaskId, TaskInstanceId, Timestamp};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use store::repo::{RunRecord, TaskInstanceRecord};
use store::{Graph, Graphs, Store, StoreError, Tx};

/// Whether an instance is one of those that "only what failed" means.
pub(crate) fn has_failed(ti: &TaskInstanceRecord) -> bool {
    matches!(ti.state, StateName::Failed | StateName::UpstreamFailed)
}

/// What becomes of runs that have ended when something of theirs is cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndedRuns {
    /// They start again.
    StartAgain,
    /// They stay as they are.
    Stay,
}

/// Clears these instances, of any runs of one DAG, which go on with its latest version. Returns the runs concerned.
pub(crate) async fn clear(
    tx: &mut Tx,
    graphs: &Graphs,
    tis: &[TaskInstanceRecord],
    ended: EndedRuns,
    now: Timestamp,
) -> Result<Vec<DagRunKey>, StoreError> {
    let mut by_run: BTreeMap<DagRunKey, Vec<TaskInstanceId>> = BTreeMap::new();
    for ti in tis {
        by_run.entry(ti.run_key).or_default().push(ti.id);
    }
    for (key, ids) in &by_run {
        let Some(mut run) = tx.run_by_key(*key).await? else {
            continue;
        };
        let graph = adopt(tx, graphs, &mut run, now).await?;
        // As they are now: somebody may have thought about it for a while.
        for ti in tx.task_instances_by_id(ids).await? {
            let Some(task) = graph.dag.task(&ti.task_id) else {
                tx.clear_task_instance(&ti, 0, now).await?;
                continue;
            };
            tx.clear_task_instance(&ti, task.retries, now).await?;
            if ti.state != StateName::Running {
                tx.move_to_version(&ti, task, run.version_id, now).await?;
                tx.ask_mutations(run.key, &[(ti.id, task)]).await?;
            }
        }
        tx.note_clearing(*key, ended == EndedRuns::StartAgain, now)
            .await?;
    }
    Ok(by_run.into_keys().collect())
}

/// Lets a run go on with the latest version of its DAG, if it does not; tasks that are new in it get their instances.
pub(crate) async fn adopt(
    tx: &mut Tx,
    graphs: &Graphs,
    run: &mut RunRecord,
    now: Timestamp,
) -> Result<Arc<Graph>, StoreError> {
    let version = tx.version_for(run).await?;
    let mut ids = || TaskInstanceId::new(uuid::Uuid::now_v7());
    tx.adopt_version(graphs, run, version, &mut ids, now).await
}

/// Which instances of a run are to be cleared.
#[derive(Debug, Clone, Default)]
pub struct ClearChoice {
    /// These tasks, each whole or one instance of it; `None` for all.
    pub tasks: Option<Vec<(TaskId, Option<MapIndex>)>>,
    /// And what is before them.
    pub upstream: bool,
    /// And what is after them.
    pub downstream: bool,
    /// Only those that failed.
    pub only_failed: bool,
    /// Only those that run.
    pub only_running: bool,
}

impl ClearChoice {
    /// Whether an instance is chosen, in a DAG of that structure.
    pub fn filter(&self, dag: &Dag) -> impl Fn(&TaskInstanceRecord) -> bool + use<> {
        let selection = self.tasks.clone().map(|tasks| {
            let (mut down, mut up) = (Selection::of(tasks.clone()), Selection::of(tasks));
            if self.downstream {
                down.add_relatives(dag, false, true);
            }
            if self.upstream {
                up.add_relatives(dag, true, true);
            }
            for selection in [&mut down, &mut up] {
                selection.add_setups(dag);
            }
            (down, up)
        });
        let (only_failed, only_running) = (self.only_failed, self.only_running);
        move |ti: &TaskInstanceRecord| {
            let chosen = selection
                .as_ref()
                .is_none_or(|(down, up)| down.has(ti) || up.has(ti));
            let wanted = match (only_failed, only_running) {
                (true, true) => has_failed(ti) || ti.state == StateName::Running,
                (true, false) => has_failed(ti),
                (false, true) => ti.state == StateName::Running,
                (false, false) => true,
            };
            chosen && wanted
        }
    }
}

/// Clears these instances, of any runs of one DAG, which start again, and tells the schedulers.
///
/// # Errors
/// As the store says.
pub async fn clear_tasks(
    store: &Store,
    graphs: &Graphs,
    broker: &dyn Broker,
    dag_id: &DagId,
    tis: &[TaskInstanceRecord],
) -> Result<(), StoreError> {
    let now = Utc::now();
    let runs = store::transact!(store, "clear tasks", |tx| clear(
        tx,
        graphs,
        tis,
        EndedRuns::StartAgain,
        now
    )
    .await)?;
    for run in runs {
        broker.hint(Hint::Run(run));
    }
    broker.hint(Hint::Dag(dag_id.clone()));
    Ok(())
}

/// Which instances are meant: all of a task, or the one of that index.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    whole: HashSet<TaskId>,
    single: HashSet<(TaskId, MapIndex)>,
}

impl Selection {
    /// These tasks, each whole or one instance of it.
    pub(crate) fn of(tasks: impl IntoIterator<Item = (TaskId, Option<MapIndex>)>) -> Self {
        let mut selection = Self::default();
        for (task, index) in tasks {
            selection.add(task, index);
        }
        selection
    }

    fn add(&mut self, task: TaskId, index: Option<MapIndex>) -> bool {
        match index {
            Some(index) => self.single.insert((task, index)),
            None => self.whole.insert(task),
        }
    }

    /// Whether an instance is meant.
    pub(crate) fn has(&self, ti: &TaskInstanceRecord) -> bool {
        self.whole.contains(&ti.task_id) || self.single.contains(&(ti.task_id.clone(), ti.map_index))
    }

    /// Adds everything before or after what is selected. Within a mapped task group an instance has the relatives of its
    /// own index only; teardowns are added where `with_teardowns` says so.
    pub(crate) fn add_relatives(&mut self, dag: &Dag, upstream: bool, with_teardowns: bool) {
        let mut open: VecDeque<(TaskId, Option<MapIndex>)> = self
            .whole
            .iter()
            .map(|task| (task.clone(), None))
            .chain(
                self.single
                    .iter()
                    .map(|(task, index)| (task.clone(), Some(*index))),
            )
            .collect();
        while let Some((task_id, index)) = open.pop_front() {
            let Some(task) = dag.task(&task_id) else { continue };
            let edges = if upstream {
                &task.upstream
            } else {
                &task.downstream
            };
            for at in edges {
                let relative: &Task = &dag.tasks[*at];
                if relative.is_teardown && !with_teardowns {
                    continue;
                }
                let index = index.filter(|_| relative.is_sibling_of(task));
                if self.add(relative.task_id.clone(), index) {
                    open.push_back((relative.task_id.clone(), index));
                }
            }
        }
    }

    /// Adds the setups that what is selected needs, whose teardowns come after it or that have none, and their teardowns
    /// (`get_upstreams_only_setups_and_teardowns`).
    fn add_setups(&mut self, dag: &Dag) {
        let single = self.single.iter().map(|(task, _)| task);
        let selected: Vec<usize> = self
            .whole
            .iter()
            .chain(single)
            .filter_map(|task| dag.position(task))
            .collect();
        let mut added = Vec::new();
        for at in selected {
            if dag.tasks[at].is_setup {
                added.extend(dag.teardowns_of(at));
            } else if !dag.tasks[at].is_teardown {
                for setup in dag.setups_of(at) {
                    added.push(setup);
                    added.extend(dag.teardowns_of(setup));
                }
            }
        }
        for at in added {
            self.add(dag.tasks[at].task_id.clone(), None);
        }
    }
}

/// Whether a run has nothing left to do by itself.
pub(crate) fn has_ended(run: &RunRecord) -> bool {
    matches!(run.state, DagRunState::Success | DagRunState::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dag() -> Dag {
        let task = |id: &str, after: &[&str]| json!({"__type": "operator", "__var": {"task_id": id, "task_type": "T", "downstream_task_ids": after}});
        let document = json!({"__version": 3, "dag": {
            "dag_id": "d", "fileloc": "/d.py", "relative_fileloc": "d.py", "catchup": false,
            "timetable": {"__type": "airflow.timetables.simple.NullTimetable", "__var": {}},
            "tasks": [task("a", &["b"]), task("b", &["c"]), task("c", &[]), task("x", &["c"])],
        }});
        Dag::from_serialized(&document).expect("a DAG")
    }

    #[test]
    fn what_is_cleared_gets_its_setups_and_teardowns_again() {
        let task = |id: &str, after: &[&str], extra: &str| {
            let mut body = json!({"task_id": id, "task_type": "T", "downstream_task_ids": after});
            if !extra.is_empty() {
                body[extra] = json!(true);
            }
            json!({"__type": "operator", "__var": body})
        };
        let document = json!({"__version": 3, "dag": {
            "dag_id": "d", "timetable": {"__type": "airflow.timetables.simple.NullTimetable", "__var": {}},
            "tasks": [
                task("s", &["w", "t"], "is_setup"), task("w", &["t", "after"], ""), task("t", &[], "is_teardown"),
                task("after", &[], ""), task("alone", &["w"], ""),
            ],
        }});
        let dag = Dag::from_serialized(&document).expect("a DAG");
        let with_setups = |task: &str| {
            let mut selection = Selection::of([(TaskId::new(task), None)]);
            selection.add_setups(&dag);
            let mut names: Vec<String> = selection.whole.iter().map(TaskId::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(with_setups("w"), ["s", "t", "w"]);
        assert_eq!(with_setups("s"), ["s", "t"]);
        assert_eq!(with_setups("t"), ["t"]);
        assert_eq!(with_setups("after"), ["after"], "the teardown is not after it");
        assert_eq!(with_setups("alone"), ["alone"]);
    }

    #[test]
    fn relatives_are_followed_to_the_end_in_one_direction() {
        let mut down = Selection::of([(TaskId::new("a"), None)]);
        down.add_relatives(&dag(), false, true);
        assert_eq!(down.whole.len(), 3);
        assert!(!down.whole.contains(&TaskId::new("x")));
        let mut up = Selection::of([(TaskId::new("c"), Some(MapIndex(1)))]);
        up.add_relatives(&dag(), true, true);
        assert_eq!((up.whole.len(), up.single.len()), (3, 1));
    }
}
