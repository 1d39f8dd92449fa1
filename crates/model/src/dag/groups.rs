//! Task groups of a serialized DAG.

use super::parse::plain;
use crate::{GroupId, TaskId};
use serde_json::{Map, Value};

/// The tasks of a task group, those of the groups within it included; `None` when the DAG has no such group.
pub fn tasks_of_group(document: &Value, wanted: &GroupId) -> Option<Vec<TaskId>> {
    let root = plain(document.pointer("/dag/task_group")?);
    let mut tasks = Vec::new();
    collect(find(root, wanted)?, &mut tasks);
    Some(tasks)
}

/// Kind and definition of what stands in a group.
fn children(group: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let children = group.get("children").map(plain).and_then(Value::as_object);
    children
        .into_iter()
        .flat_map(Map::values)
        .filter_map(|child| Some((child.get(0)?.as_str()?, plain(child.get(1)?))))
}

fn find<'a>(group: &'a Value, wanted: &GroupId) -> Option<&'a Value> {
    if group.get("_group_id").and_then(Value::as_str) == Some(wanted.as_str()) {
        return Some(group);
    }
    let mut groups = children(group).filter(|(kind, _)| *kind == "taskgroup");
    groups.find_map(|(_, inner)| find(inner, wanted))
}

fn collect(group: &Value, tasks: &mut Vec<TaskId>) {
    for (kind, child) in children(group) {
        match child.as_str() {
            Some(task) if kind != "taskgroup" => tasks.push(TaskId::new(task)),
            _ => collect(child, tasks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_group_holds_the_tasks_of_the_groups_within_it() {
        let inner = json!({"_group_id": "a.b", "children": {"a.b.two": ["operator", "a.b.two"]}});
        let outer = json!({"_group_id": "a", "children": {
            "a.one": ["operator", "a.one"], "a.b": ["taskgroup", inner],
        }});
        let document = json!({"dag": {"task_group": {"_group_id": null, "children": {
            "a": ["taskgroup", outer], "alone": ["operator", "alone"],
        }}}});
        let tasks = |group: &str| {
            let mut tasks = tasks_of_group(&document, &GroupId::new(group))?;
            tasks.sort();
            Some(
                tasks
                    .iter()
                    .map(|task| task.as_str().to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(tasks("a"), Some(vec!["a.b.two".to_owned(), "a.one".to_owned()]));
        assert_eq!(tasks("a.b"), Some(vec!["a.b.two".to_owned()]));
        assert_eq!(tasks("b"), None);
    }
}
