//! How many instances mapped tasks and groups have, and which belong together.

use super::*;

#[test]
fn a_mapped_task_expands_to_the_length_of_what_it_maps_over() {
    let dag = dag_of(
        vec![
            json!({"task_id": "gen", "task_type": "X", "downstream_task_ids": ["m"]}),
            json!({"task_id": "m", "task_type": "X", "_is_mapped": true, "_expand_input_attr": "expand_input",
                   "expand_input": {"type": "dict-of-lists", "value": {"__type": "dict", "__var": {
                       "x": {"__type": "xcomref", "__var": {"task_id": "gen", "key": "return_value"}}}}}}),
        ],
        16,
    );
    let mut three = world();
    three.lengths.insert("gen".into(), 3);
    let tasks = instances(&dag, &[Success, NoStatus]);
    assert_eq!(
        decisions(&plan_in(&three, &dag, &tasks, false)),
        [Decision::Expand(3)]
    );
    three.lengths.insert("gen".into(), 0);
    let none = plan_in(&three, &dag, &tasks, false);
    assert_eq!(
        (decisions(&none), none.end),
        (vec![Decision::Skip], Some(RunEnd::Success))
    );
}

#[test]
fn a_mapped_task_expands_only_when_all_that_it_maps_over_has_ended() {
    let dag = dag_of(
        vec![
            json!({"task_id": "gen", "task_type": "X", "_is_mapped": true, "_expand_input_attr": "expand_input",
                   "expand_input": {"type": "dict-of-lists", "value": {"__type": "dict", "__var": {"x": [1, 2]}}},
                   "downstream_task_ids": ["m"]}),
            json!({"task_id": "m", "task_type": "X", "trigger_rule": "one_success", "_is_mapped": true,
                   "_expand_input_attr": "expand_input",
                   "expand_input": {"type": "dict-of-lists", "value": {"__type": "dict", "__var": {
                       "x": {"__type": "xcomref", "__var": {"task_id": "gen", "key": "return_value"}}}}}}),
        ],
        16,
    );
    let planned = |second: StateName| {
        let mut tasks = instances(&dag, &[Success, NoStatus]);
        tasks[0].map_index = MapIndex(0);
        tasks.push(TaskSnapshot {
            id: TaskInstanceId::new(Uuid::new_v4()),
            map_index: MapIndex(1),
            state: second,
            ..tasks[0].clone()
        });
        let mut world = world();
        world.lengths.insert("gen".into(), 1);
        plan_in(&world, &dag, &tasks, false)
    };
    let waiting = planned(Running);
    assert_eq!((waiting.moves.len(), waiting.end), (0, None));
    assert_eq!(decisions(&planned(Failed)), [Decision::Expand(1)]);
}

#[test]
fn a_cleared_mapped_task_is_fitted_to_what_it_maps_over_now() {
    let dag = dag_of(
        vec![
            json!({"task_id": "gen", "task_type": "X", "downstream_task_ids": ["m"]}),
            json!({"task_id": "m", "task_type": "X", "_is_mapped": true, "_expand_input_attr": "expand_input",
                   "expand_input": {"type": "dict-of-lists", "value": {"__type": "dict", "__var": {
                       "x": {"__type": "xcomref", "__var": {"task_id": "gen", "key": "return_value"}}}}}}),
        ],
        16,
    );
    let mut tasks = instances(&dag, &[Success]);
    for (index, state) in [NoStatus, Success, NoStatus].into_iter().enumerate() {
        tasks.push(TaskSnapshot {
            id: TaskInstanceId::new(Uuid::new_v4()),
            task_id: "m".into(),
            map_index: MapIndex(i32::try_from(index).unwrap()),
            state,
            not_before: None,
            goes_on: false,
            weight: 1,
            pool: "default_pool".into(),
        });
    }
    let planned = |length: Option<usize>| {
        let mut world = world();
        world.lengths.extend(length.map(|length| ("gen".into(), length)));
        decisions(&plan_in(&world, &dag, &tasks, false))
    };
    assert_eq!(
        planned(None),
        [Decision::Schedule, Decision::Schedule],
        "nobody says that it changed"
    );
    assert_eq!(planned(Some(3)), [Decision::Schedule, Decision::Schedule]);
    assert_eq!(
        planned(Some(1)),
        [Decision::Remove, Decision::Remove, Decision::Schedule]
    );
    let more = Decision::Grow(vec![MapIndex(3), MapIndex(4)]);
    assert_eq!(planned(Some(5)), [more, Decision::Schedule, Decision::Schedule]);
    assert_eq!(planned(Some(0)), vec![Decision::Remove; 3]);
}

#[test]
fn instances_of_a_mapped_group_follow_those_of_their_own_index() {
    let mut dag = Dag::from_serialized(&json!({"__version": 3, "dag": {
        "dag_id": "d", "max_active_tasks": 16, "max_active_runs": 1,
        "timetable": {"__type": "airflow.timetables.simple.NullTimetable", "__var": {}},
        "tasks": [
            {"__type": "operator", "__var": {"task_id": "g.a", "task_type": "X", "_needs_expansion": true, "downstream_task_ids": ["g.b"]}},
            {"__type": "operator", "__var": {"task_id": "g.b", "task_type": "X", "_needs_expansion": true}},
        ],
        "task_group": {"_group_id": null, "children": {"g": ["taskgroup", {"_group_id": "g", "is_mapped": true,
            "expand_input": {"type": "dict-of-lists", "value": {"__type": "dict", "__var": {"n": [1, 2]}}},
            "children": {"g.a": ["operator", "g.a"], "g.b": ["operator", "g.b"]}}]}},
    }}))
    .unwrap();
    dag.max_active_runs = 1;
    let unexpanded = plan(&dag, &instances(&dag, &[NoStatus, NoStatus]));
    assert_eq!(decisions(&unexpanded), [Decision::Expand(2), Decision::Expand(2)]);
    let one = |task_id: &str, index: i32, state: StateName| TaskSnapshot {
        id: TaskInstanceId::new(Uuid::new_v4()),
        task_id: task_id.into(),
        map_index: MapIndex(index),
        state,
        not_before: None,
        goes_on: true,
        weight: 1,
        pool: "default_pool".into(),
    };
    let tasks = [
        one("g.a", 0, Success),
        one("g.a", 1, Failed),
        one("g.b", 0, NoStatus),
        one("g.b", 1, NoStatus),
    ];
    let next = plan(&dag, &tasks);
    let fate = |at: usize| {
        let found = next.moves.iter().find(|planned| planned.id == tasks[at].id);
        found.map(|planned| planned.decision.clone())
    };
    assert_eq!(
        (fate(2), fate(3)),
        (Some(Decision::Schedule), Some(Decision::FailUpstream))
    );
}

/// Three times `outer.t`, and within each twice `outer.inner.a` and `outer.inner.b`; `outer.e` comes after all `b`.
fn nested() -> Dag {
    let over =
        |values: Value| json!({"type": "dict-of-lists", "value": {"__type": "dict", "__var": {"n": values}}});
    let inner = json!({"_group_id": "outer.inner", "is_mapped": true, "expand_input": over(json!([10, 20])), "children": {
        "outer.inner.a": ["operator", "outer.inner.a"], "outer.inner.b": ["operator", "outer.inner.b"],
    }});
    let outer = json!({"_group_id": "outer", "is_mapped": true, "expand_input": over(json!(["x", "y", "z"])), "children": {
        "outer.t": ["operator", "outer.t"], "outer.e": ["operator", "outer.e"], "outer.inner": ["taskgroup", inner],
    }});
    let task = |id: &str, next: &[&str]| json!({"__type": "operator", "__var": {"task_id": id, "task_type": "X", "downstream_task_ids": next}});
    Dag::from_serialized(&json!({"__version": 3, "dag": {
        "dag_id": "d", "max_active_tasks": 100, "max_active_runs": 1,
        "timetable": {"__type": "airflow.timetables.simple.NullTimetable", "__var": {}},
        "tasks": [task("outer.t", &["outer.inner.a"]), task("outer.inner.a", &["outer.inner.b"]),
                  task("outer.inner.b", &["outer.e"]), task("outer.e", &[])],
        "task_group": {"_group_id": null, "children": {"outer": ["taskgroup", outer]}},
    }}))
    .expect("a DAG")
}

#[test]
fn mapped_groups_within_mapped_groups_are_counted_row_by_row() {
    let dag = nested();
    let unexpanded = plan(&dag, &instances(&dag, &[NoStatus; 4]));
    let counts: HashMap<TaskInstanceId, Decision> = unexpanded
        .moves
        .into_iter()
        .map(|planned| (planned.id, planned.decision))
        .collect();
    let counts: Vec<Decision> = (0..4)
        .map(|n| counts[&TaskInstanceId::new(Uuid::from_u128(n))].clone())
        .collect();
    assert_eq!(
        counts,
        [3, 6, 6, 3].map(Decision::Expand),
        "t, inner.a, inner.b and e"
    );
    let mut tasks = Vec::new();
    let mut add = |task_id: &str, states: &[StateName]| {
        for (index, state) in states.iter().enumerate() {
            tasks.push(TaskSnapshot {
                id: TaskInstanceId::new(Uuid::from_u128(tasks.len() as u128)),
                task_id: task_id.into(),
                map_index: MapIndex(i32::try_from(index).unwrap_or_default()),
                state: *state,
                not_before: None,
                goes_on: true,
                weight: 1,
                pool: "default_pool".into(),
            });
        }
    };
    add("outer.t", &[Success, Failed, NoStatus]);
    add("outer.inner.a", &[NoStatus; 6]);
    add(
        "outer.inner.b",
        &[Success, Success, NoStatus, NoStatus, NoStatus, NoStatus],
    );
    add("outer.e", &[NoStatus; 3]);
    let next = plan(&dag, &tasks);
    let fate = |at: usize| {
        let found = next.moves.iter().find(|planned| planned.id == tasks[at].id);
        found.map(|planned| planned.decision.clone())
    };
    let of_a: Vec<Option<Decision>> = (3..9).map(fate).collect();
    let (runs, fails) = (Some(Decision::Schedule), Some(Decision::FailUpstream));
    assert_eq!(
        of_a,
        [
            runs.clone(),
            runs.clone(),
            fails.clone(),
            fails.clone(),
            None,
            None
        ]
    );
    // As in Airflow, where the same index is read: not those of its own inner group.
    assert_eq!((fate(15), fate(16), fate(17)), (runs.clone(), runs, fails));
}

#[test]
fn a_mapped_task_over_what_was_skipped_is_skipped() {
    let over = json!({"type": "dict-of-lists", "value": {"__type": "dict", "__var": {
        "x": {"__type": "xcomref", "__var": {"task_id": "up", "key": "return_value"}}}}});
    let dag = dag_of(
        vec![
            json!({"task_id": "up", "task_type": "X", "downstream_task_ids": ["m"]}),
            json!({"task_id": "m", "task_type": "X", "_is_mapped": true, "trigger_rule": "all_done", "expand_input": over}),
        ],
        16,
    );
    for (state, fate) in [
        (StateName::Skipped, Decision::Skip),
        (Failed, Decision::FailUpstream),
    ] {
        assert_eq!(
            decisions(&plan(&dag, &instances(&dag, &[state, NoStatus]))),
            [fate]
        );
    }
}
