//! The pod of a hand-over: the template, what we say, what the task's `pod_override` says, in this order.

use chrono::SecondsFormat;
use config::Config;
use k8s_openapi::api::core::v1::Pod;
use kubernetes::merge;
use kubernetes::names::label_value;
use model::{TaskInstanceId, Timestamp, TryNumber};
use serde_json::{Map, Value, json};
use store::repo::TaskInstanceRecord;

/// Labels that say which hand-over a pod is for.
const TASK_INSTANCE: &str = "updraft/task-instance";
const SEQUENCE: &str = "updraft/hand-over";
/// On a pod whose end has been dealt with, and which stays for people to look at.
pub(super) const SEEN: &str = "updraft/seen";
/// The container that runs the task.
pub(super) const BASE: &str = "base";
const DRAIN_GRACE: &str = "AIRFLOW__UPDRAFT__DRAIN_GRACE";
/// Kubernetes' default, in seconds.
const USUAL_GRACE: u64 = 30;
/// Seconds that a worker needs at most to end its task and to say goodbye.
const LEAVING: u64 = 15;
const CONTROL_PLANE: &str = "AIRFLOW__UPDRAFT__CONTROL_PLANE";

/// What a pod is made for.
pub(super) struct HandOver<'a> {
    pub(super) ti: &'a TaskInstanceRecord,
    pub(super) logical_date: Option<Timestamp>,
    pub(super) installation: &'a str,
}

/// The name of the pod of a hand-over: the same whenever it is asked for, so that no hand-over has two pods.
pub(super) fn name_of(id: TaskInstanceId, sequence: i64) -> String {
    format!("updraft-{id}-{sequence}")
}

/// Which hand-over a pod is for.
pub(super) fn hand_over_of(pod: &Pod) -> Option<(TaskInstanceId, i64)> {
    let labels = pod.metadata.labels.as_ref()?;
    let id = labels.get(TASK_INSTANCE)?.parse().ok()?;
    Some((id, labels.get(SEQUENCE)?.parse().ok()?))
}

/// What finds the pods that need looking after.
pub(super) fn selector(installation: &str) -> String {
    format!("kubernetes_executor=True,airflow-worker={installation},!{SEEN}")
}

/// The whole pod.
///
/// # Errors
/// When the template cannot be read, or what comes out is no pod.
pub(super) fn pod(
    config: &Config,
    hand_over: &HandOver<'_>,
    name: &str,
    wish: Option<&Value>,
) -> Result<Pod, String> {
    let template = template(config)?;
    let mut pod = merge::pods(&template, &own(config, hand_over, name, &template));
    if let Some(wish) = wish {
        pod = merge::pods(&pod, wish);
    }
    // Nobody may change what finds the pod again, nor let it begin anew: a try starts once.
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["namespace"] = config.kubernetes_executor.namespace.as_str().into();
    for (key, value) in labels(hand_over) {
        pod["metadata"]["labels"][key] = value.into();
    }
    pod["spec"]["restartPolicy"] = "Never".into();
    leave_time_to_leave(&mut pod);
    if pod.pointer("/spec/containers/0/image").is_none() {
        return Err(
            "no image is given; set [kubernetes_executor] worker_container_repository, or image in pod_template_file"
                .to_owned(),
        );
    }
    serde_json::from_value(pod)
        .map_err(|error| format!("template and pod_override make no valid pod: {error}"))
}

/// A pod that is told to go is killed after its grace: by then the worker in it must have given its task back.
fn leave_time_to_leave(pod: &mut Value) {
    let grace = pod["spec"]["terminationGracePeriodSeconds"]
        .as_u64()
        .unwrap_or(USUAL_GRACE);
    let Some(env) = pod
        .pointer_mut("/spec/containers/0/env")
        .and_then(Value::as_array_mut)
    else {
        return;
    };
    if !env.iter().any(|entry| entry["name"] == DRAIN_GRACE) {
        let drain = grace.saturating_sub(LEAVING).to_string();
        env.push(json!({"name": DRAIN_GRACE, "value": drain}));
    }
}

fn template(config: &Config) -> Result<Value, String> {
    let Some(path) = &config.kubernetes_executor.pod_template_file else {
        return Ok(plain_template());
    };
    let broken = |why: String| {
        format!(
            "[kubernetes_executor] pod_template_file {}: {why}",
            path.display()
        )
    };
    let text = std::fs::read_to_string(path).map_err(|error| broken(error.to_string()))?;
    let template: Value = serde_saphyr::from_str(&text).map_err(|error| broken(error.to_string()))?;
    match template.pointer("/spec/containers/0") {
        Some(_) => Ok(template),
        None => Err(broken("it has no container".to_owned())),
    }
}

/// The pod that tasks run in where no template says otherwise.
fn plain_template() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "base",
                "command": ["updraft"],
                "envFrom": [{"secretRef": {"name": "updraft-worker", "optional": true}}],
            }],
        },
    })
}

/// What every pod gets.
fn own(config: &Config, hand_over: &HandOver<'_>, name: &str, template: &Value) -> Value {
    let ti = hand_over.ti;
    let mut env = vec![json!({"name": "AIRFLOW_IS_K8S_EXECUTOR_POD", "value": "True"})];
    let given = template
        .pointer("/spec/containers/0/env")
        .and_then(Value::as_array);
    if !given
        .into_iter()
        .flatten()
        .any(|entry| entry["name"] == CONTROL_PLANE)
    {
        env.push(json!({"name": CONTROL_PLANE, "value": config.updraft.control_plane}));
    }
    let TryNumber(try_number) = ti.try_number;
    let mut base = json!({
        "name": BASE,
        "args": ["worker", "--task-instance", ti.id, "--try-number", try_number.to_string(), "--celery-hostname", name],
        "env": env,
    });
    if let Some(image) = &config.kubernetes_executor.image {
        base["image"] = image.as_str().into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": labels(hand_over).into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect::<Map<_, _>>(),
            "annotations": annotations(hand_over),
        },
        "spec": {"containers": [base]},
    })
}

fn labels(hand_over: &HandOver<'_>) -> Vec<(&'static str, String)> {
    let ti = hand_over.ti;
    let mut labels = vec![
        ("dag_id", label_value(ti.dag_id.as_str())),
        ("task_id", label_value(ti.task_id.as_str())),
        ("run_id", label_value(ti.run_id.as_str())),
        ("try_number", ti.try_number.0.to_string()),
        ("kubernetes_executor", "True".to_owned()),
        ("airflow-worker", hand_over.installation.to_owned()),
        (TASK_INSTANCE, ti.id.to_string()),
        (SEQUENCE, ti.dispatch_seq.to_string()),
    ];
    if ti.map_index.0 >= 0 {
        labels.push(("map_index", ti.map_index.0.to_string()));
    }
    labels
}

fn annotations(hand_over: &HandOver<'_>) -> Value {
    let ti = hand_over.ti;
    let mut texts = json!({
        "dag_id": ti.dag_id,
        "task_id": ti.task_id,
        "run_id": ti.run_id,
        "try_number": ti.try_number.0.to_string(),
    });
    if ti.map_index.0 >= 0 {
        texts["map_index"] = ti.map_index.0.to_string().into();
    }
    if let Some(date) = hand_over.logical_date {
        texts["logical_date"] = date.to_rfc3339_opts(SecondsFormat::AutoSi, false).into();
    }
    texts
}
