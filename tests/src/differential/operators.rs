//! Tasks in containers and pods: what their templates come to.

use super::cases::usual_params;
use super::expressions::template;
use crate::lots::Lots;
use serde_json::{Map, Value, json};

/// A text that may be a template.
fn text(lots: &mut Lots) -> String {
    match lots.below(5) {
        0 | 1 => template(lots),
        2 => "{{ ds }}-{{ params.s }}".to_owned(),
        3 => (*lots.one(&[
            "",
            "x",
            "Grüße\n",
            "a b",
            "{{",
            "{# c #}y",
            "run.sh",
            "x{{ params.n }}y",
        ]))
        .to_owned(),
        _ => "plain".to_owned(),
    }
}

fn texts(lots: &mut Lots) -> Value {
    (0..lots.below(4)).map(|_| text(lots)).collect()
}

/// Variables; names of secrets among them.
fn variables(lots: &mut Lots) -> Value {
    let mut all = Map::new();
    for name in ["A", "password", "x.y", "HOST", "my_token"] {
        if lots.below(3) == 0 {
            all.insert(name.to_owned(), text(lots).into());
        }
    }
    all.into()
}

fn run(kind: &str, task: Value) -> Value {
    json!({
        "kind": kind, "task": task, "params": usual_params(), "conf": {"c": "blue", "l": [1.0, true]},
        "logical_date": "2025-03-30T00:30:00Z",
    })
}

/// A DockerOperator.
pub(super) fn of_docker(lots: &mut Lots) -> Value {
    let command = match lots.below(3) {
        0 => Value::Null,
        1 => text(lots).into(),
        _ => texts(lots),
    };
    let mut environment = variables(lots);
    if lots.below(4) == 0 {
        environment["N"] = json!(lots.below(9));
    }
    let mut task = json!({"image": text(lots), "command": command, "environment": environment});
    if lots.below(3) == 0 {
        task["container_name"] = text(lots).into();
    }
    if lots.below(3) == 0 {
        task["private_environment"] = variables(lots);
    }
    if lots.below(4) == 0 {
        task["docker_conn_id"] = (*lots.one(&["c", "{{ params.e }}", "c_{{ ds_nodash }}"])).into();
    }
    if lots.below(3) == 0 {
        task["mounts"] = json!([{"target": text(lots), "source": text(lots), "type": "bind", "read_only": lots.below(2) == 0}]);
    }
    run("docker", task)
}

/// A KubernetesPodOperator.
pub(super) fn of_pod(lots: &mut Lots) -> Value {
    let mut task = json!({"name": lots.one(&["p", "a-{{ ds_nodash }}", "My_Pod"]), "image": text(lots)});
    for (name, of) in [
        ("cmds", texts as fn(&mut Lots) -> Value),
        ("arguments", texts),
        ("env_vars", variables),
        ("labels", variables),
        ("annotations", variables),
        ("node_selector", variables),
    ] {
        if lots.below(3) == 0 {
            task[name] = of(lots);
        }
    }
    for name in ["namespace", "hostname", "cluster_context"] {
        if lots.below(4) == 0 {
            task[name] = text(lots).into();
        }
    }
    run("pod", task)
}
