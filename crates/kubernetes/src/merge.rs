//! One pod over another, as Airflow does it (`PodGenerator.reconcile_pods`): some lists grow, everything else is replaced.

use serde_json::{Map, Value};

/// Lists of a container that grow.
const GROWING: [&str; 5] = ["volumeMounts", "env", "envFrom", "ports", "volumeDevices"];

/// `over` on top of `base`; both are pods as JSON, as they are sent to Kubernetes.
pub fn pods(base: &Value, over: &Value) -> Value {
    let mut pod = over.clone();
    pod["spec"] = specs(&base["spec"], &over["spec"]);
    pod["metadata"] = metadata(&base["metadata"], &over["metadata"]);
    objects(base, &pod)
}

fn metadata(base: &Value, over: &Value) -> Value {
    let mut merged = over.clone();
    if is_empty(base) || is_empty(over) {
        return if is_empty(over) { base.clone() } else { merged };
    }
    for maps in ["labels", "annotations"] {
        merged[maps] = maps_of(&base[maps], &over[maps]);
    }
    objects(base, &merged)
}

fn specs(base: &Value, over: &Value) -> Value {
    if is_empty(base) || is_empty(over) {
        return if is_empty(over) {
            base.clone()
        } else {
            over.clone()
        };
    }
    let mut merged = over.clone();
    merged["containers"] = containers(list(&base["containers"]), list(&over["containers"])).into();
    let init = init_containers(list(&base["initContainers"]), list(&over["initContainers"]));
    merged["initContainers"] = init.into();
    merged["volumes"] = grown(&base["volumes"], &over["volumes"]);
    objects(base, &merged)
}

/// By place: the first over the first, and so on; what only one has stays.
fn containers(base: &[Value], over: &[Value]) -> Vec<Value> {
    let longest = base.len().max(over.len());
    (0..longest)
        .filter_map(|at| match (base.get(at), over.get(at)) {
            (Some(base), Some(over)) => Some(container(base, over)),
            (only, None) | (None, only) => only.cloned(),
        })
        .collect()
}

/// By name; new ones come last.
fn init_containers(base: &[Value], over: &[Value]) -> Vec<Value> {
    let same = |list: &[Value], name: &Value| list.iter().find(|one| one["name"] == *name).cloned();
    let changed = base.iter().map(|base| match same(over, &base["name"]) {
        Some(over) => container(base, &over),
        None => base.clone(),
    });
    let new = over.iter().filter(|over| same(base, &over["name"]).is_none());
    changed.chain(new.cloned()).collect()
}

fn container(base: &Value, over: &Value) -> Value {
    let mut merged = over.clone();
    for key in GROWING {
        merged[key] = grown(&base[key], &over[key]);
    }
    objects(base, &merged)
}

fn grown(base: &Value, over: &Value) -> Value {
    list(base).iter().chain(list(over)).cloned().collect()
}

fn maps_of(base: &Value, over: &Value) -> Value {
    let entries = |map: &Value| map.as_object().cloned().unwrap_or_default();
    let mut merged = entries(base);
    merged.extend(entries(over));
    merged.into()
}

/// What `over` has counts; what it leaves empty is `base`'s. Nothing stays in the result that is empty.
fn objects(base: &Value, over: &Value) -> Value {
    let mut merged: Map<String, Value> = base.as_object().cloned().unwrap_or_default();
    for (key, value) in over.as_object().into_iter().flatten() {
        if !is_empty(value) || !merged.contains_key(key) {
            merged.insert(key.clone(), value.clone());
        }
    }
    merged.retain(|_, value| !is_bare(value));
    merged.into()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Python's idea of emptiness, by which a field counts as not given.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        other @ (Value::Null | Value::Array(_) | Value::Object(_)) => is_bare(other),
    }
}

fn is_bare(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        // `emptyDir: {}` and its like mean something, but only below the fields that are merged.
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_grow_and_the_rest_is_replaced() {
        let base = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "template", "labels": {"tier": "airflow", "app": "x"}},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "base", "image": "old", "env": [{"name": "A", "value": "1"}], "resources": {"limits": {"cpu": "1"}}}],
                "initContainers": [{"name": "sync", "image": "git"}],
                "volumes": [{"name": "dags", "emptyDir": {}}],
            },
        });
        let over = json!({
            "metadata": {"name": "mine", "labels": {"app": "y"}, "annotations": {"k": "v"}},
            "spec": {
                "containers": [{"name": "base", "image": "", "env": [{"name": "B", "value": "2"}]}, {"name": "beside", "image": "s"}],
                "initContainers": [{"name": "sync", "image": "git:2"}, {"name": "more", "image": "m"}],
                "volumes": [{"name": "data", "emptyDir": {}}],
                "nodeSelector": {"disk": "ssd"},
            },
        });
        assert_eq!(
            pods(&base, &over),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "mine", "labels": {"tier": "airflow", "app": "y"}, "annotations": {"k": "v"}},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [
                        {"name": "base", "image": "old", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "resources": {"limits": {"cpu": "1"}}},
                        {"name": "beside", "image": "s"},
                    ],
                    "initContainers": [{"name": "sync", "image": "git:2"}, {"name": "more", "image": "m"}],
                    "volumes": [{"name": "dags", "emptyDir": {}}, {"name": "data", "emptyDir": {}}],
                    "nodeSelector": {"disk": "ssd"},
                },
            })
        );
    }

    #[test]
    fn a_pod_over_nothing_is_itself() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "base"}]}});
        assert_eq!(pods(&json!({}), &pod), pod);
        assert_eq!(pods(&pod, &json!({})), pod);
    }
}
