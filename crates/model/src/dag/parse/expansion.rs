//! What mapped tasks and mapped task groups expand over.

use super::plain;
use crate::dag::{Expansion, MappedGroup, MappedLength, Task};
use crate::{GroupId, TaskId};
use serde_json::{Map, Value};

pub(super) fn expansion(object: &Map<String, Value>) -> Option<Expansion> {
    if object.get("_is_mapped").and_then(Value::as_bool) != Some(true) {
        return None;
    }
    let attribute = object
        .get("_expand_input_attr")
        .and_then(Value::as_str)
        .unwrap_or("expand_input");
    expansion_over(object.get(attribute)?)
}

/// Gives the tasks of mapped task groups what their groups expand over. `outer` are the mapped groups around this one.
pub(super) fn map_groups(tasks: &mut [Task], group: &Value, outer: &[MappedGroup]) {
    let mut groups = outer.to_vec();
    let own = group
        .get("expand_input")
        .filter(|_| group.get("is_mapped").and_then(Value::as_bool) == Some(true));
    groups.extend(own.and_then(expansion_over).map(|expansion| MappedGroup {
        id: GroupId::new(group.get("_group_id").and_then(Value::as_str).unwrap_or_default()),
        expansion,
    }));
    let whole = groups
        .iter()
        .map(|group| group.expansion.clone())
        .reduce(|outer, inner| inner.within(&outer));
    let children = group.get("children").map(plain).and_then(Value::as_object);
    for child in children.into_iter().flat_map(Map::values) {
        match (child.get(0).and_then(Value::as_str), child.get(1), &whole) {
            (Some("taskgroup"), Some(inner), _) => map_groups(tasks, plain(inner), &groups),
            (_, Some(Value::String(name)), Some(whole)) => {
                for task in tasks.iter_mut().filter(|task| task.task_id.as_str() == name) {
                    task.is_mapped = true;
                    task.expansion = Some(whole.clone());
                    task.mapped_groups.clone_from(&groups);
                }
            }
            _ => {}
        }
    }
}

fn expansion_over(input: &Value) -> Option<Expansion> {
    let unsupported = |what: &str| Some(Expansion::Unsupported(what.to_owned()));
    let value = input.get("value")?;
    match (input.get("type").and_then(Value::as_str), plain(value)) {
        (Some("dict-of-lists"), Value::Object(arguments)) => {
            let lengths: Option<Vec<MappedLength>> = arguments.values().map(mapped_length).collect();
            match lengths {
                Some(lengths) => Some(Expansion::Product(lengths)),
                None => unsupported("an argument that is neither a literal nor the value returned by a task"),
            }
        }
        // As it stands: a reference is told from a literal by what wraps it.
        (Some("list-of-dicts"), _) => match mapped_length(value) {
            Some(length) => Some(Expansion::Product(vec![length])),
            None => unsupported("expand_kwargs over a computed value"),
        },
        _ => unsupported("an unknown form of expand"),
    }
}

fn mapped_length(value: &Value) -> Option<MappedLength> {
    if value.get("__type").and_then(Value::as_str) == Some("xcomref") {
        return referred_length(value.get("__var")?);
    }
    match plain(value) {
        Value::Array(items) => Some(MappedLength::Literal(items.len())),
        Value::Object(items) => Some(MappedLength::Literal(items.len())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// A reference to a returned value, or to what `map`, `zip` and `concat` make of such.
fn referred_length(reference: &Value) -> Option<MappedLength> {
    let reference = plain(reference);
    let text = |key: &str| reference.get(key).and_then(Value::as_str);
    let parts = || -> Option<Vec<MappedLength>> {
        plain(reference.get("args")?)
            .as_array()?
            .iter()
            .map(referred_length)
            .collect()
    };
    match text("type") {
        None if text("key").unwrap_or("return_value") == "return_value" => {
            text("task_id").map(|id| MappedLength::XCom(TaskId::new(id)))
        }
        Some("map") => referred_length(reference.get("arg")?),
        Some("zip") => Some(MappedLength::Zip {
            parts: parts()?,
            is_filled: reference.get("fillvalue").is_some(),
        }),
        Some("concat") => Some(MappedLength::Concat(parts()?)),
        None | Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn over(input: Value) -> Option<Expansion> {
        expansion_over(&input)
    }

    #[test]
    fn keyword_sets_that_a_task_returns_are_as_many_as_it_returns() {
        let returned = MappedLength::XCom(TaskId::new("gen"));
        let reference = json!({"task_id": "gen", "key": "return_value"});
        let bare = json!({"type": "list-of-dicts", "value": {"__type": "xcomref", "__var": reference}});
        assert_eq!(over(bare), Some(Expansion::Product(vec![returned.clone()])));
        let map = json!({"type": "map", "arg": reference, "callables": ["f"]});
        let mapped = json!({"type": "list-of-dicts", "value": {"__type": "xcomref", "__var": map}});
        assert_eq!(over(mapped), Some(Expansion::Product(vec![returned])));
    }

    #[test]
    fn literal_keyword_sets_are_counted() {
        let literal = json!({"type": "list-of-dicts", "value": [
            {"__type": "dict", "__var": {"n": 1}}, {"__type": "dict", "__var": {"n": 2}},
        ]});
        let two = Expansion::Product(vec![MappedLength::Literal(2)]);
        assert_eq!(over(literal), Some(two));
    }
}
