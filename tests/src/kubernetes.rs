//! A Kubernetes API server small enough to misbehave on demand: pods that live by a script in their annotation `script`,
//! watches that are reset or expire, logs that break off, calls that fail.
//!
//! The script is JSON: `lines` (what the base container writes), `exit` (its code), `pending` (why it never starts),
//! `xcom` (what the sidecar hands out), `until_deleted` (it runs until somebody deletes it), `waiting` (why its image does
//! not come). A pod of the KubernetesExecutor without a script runs what its first container says as a process of this machine.

#![expect(
    clippy::disallowed_methods,
    reason = "a test that needs the server notices its end; nothing is to be stopped in order"
)]

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

mod exec;
mod kubelet;

type Parameters = Query<HashMap<String, String>>;

/// A call that is to fail.
struct Fault {
    method: Method,
    part: String,
    status: u16,
    message: String,
    times: usize,
}

#[derive(Default)]
struct Inside {
    version: u64,
    pods: BTreeMap<String, Value>,
    /// Lines with their timestamps, by pod; complete once the pod is over.
    logs: BTreeMap<String, Vec<String>>,
    events: Vec<Value>,
    faults: Vec<Fault>,
    /// Lines after which a log stream breaks off, one entry for each stream to come.
    log_cuts: Vec<usize>,
    /// Creations and deletions, in order.
    history: Vec<String>,
    /// Environment of the processes in pods.
    environment: HashMap<String, String>,
}

struct Shared {
    inside: Mutex<Inside>,
    changes: broadcast::Sender<Value>,
}

/// The server; it ends with the test.
pub struct Kubernetes {
    shared: Arc<Shared>,
    port: u16,
    _runtime: tokio::runtime::Runtime,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a pod, if it is there still. Whether it is.
    fn change(&self, name: &str, change: impl FnOnce(&mut Value)) -> bool {
        let mut inside = self.lock();
        inside.version += 1;
        let version = inside.version;
        let Some(pod) = inside.pods.get_mut(name) else {
            return false;
        };
        change(pod);
        pod["metadata"]["resourceVersion"] = version.to_string().into();
        self.changes.send(json!({"type": "MODIFIED", "object": pod})).ok();
        true
    }
}

impl Kubernetes {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let shared = Arc::new(Shared {
            inside: Mutex::default(),
            changes: broadcast::channel(1000).0,
        });
        let pods = "/api/v1/namespaces/{namespace}/pods";
        let app = Router::new()
            .route(pods, post(create).get(list))
            .route(&format!("{pods}/{{name}}"), get(read).delete(delete).patch(patch))
            .route(&format!("{pods}/{{name}}/log"), get(log))
            .route(&format!("{pods}/{{name}}/exec"), get(exec::exec))
            .route("/api/v1/namespaces/{namespace}/events", get(events))
            .layer(middleware::from_fn_with_state(Arc::clone(&shared), fail))
            .with_state(Arc::clone(&shared));
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let port = listener.local_addr().expect("an address").port();
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self {
            shared,
            port,
            _runtime: runtime,
        }
    }

    /// A kubeconfig file with the context `here`.
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "elsewhere",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{}", self.port)}},
                         {"name": "n", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}},
                         {"name": "elsewhere", "context": {"cluster": "n", "user": "u"}}],
        })
        .to_string()
    }

    /// Gives the processes in pods this environment, too.
    pub fn set_environment(&self, environment: impl IntoIterator<Item = (String, String)>) {
        self.shared.lock().environment.extend(environment);
    }

    /// Lets the next `times` calls of this method, whose address contains `part`, fail.
    pub fn fail(&self, method: &str, part: &str, status: u16, times: usize) {
        self.fail_with(method, part, (status, "as the test wants it"), times);
    }

    /// The same, with this status and these words.
    pub fn fail_with(&self, method: &str, part: &str, (status, message): (u16, &str), times: usize) {
        self.shared.lock().faults.push(Fault {
            method: method.parse().expect("a method"),
            part: part.to_owned(),
            status,
            message: message.to_owned(),
            times,
        });
    }

    /// Lets the next log stream break off after so many lines.
    pub fn cut_log(&self, lines: usize) {
        self.shared.lock().log_cuts.push(lines);
    }

    /// Tells all watchers that their version has expired (410).
    pub fn expire_watches(&self) {
        let status = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"});
        self.shared
            .changes
            .send(json!({"type": "ERROR", "object": status}))
            .ok();
    }

    /// Takes a pod away, as `kubectl delete pod` does.
    pub fn take_away(&self, name: &str) {
        let gone = self.shared.lock().pods.remove(name);
        assert!(gone.is_some(), "there is no pod {name}");
    }

    /// The pods that are there.
    pub fn pods(&self) -> Vec<Value> {
        self.shared.lock().pods.values().cloned().collect()
    }

    /// `create NAME` and `delete NAME`, in order.
    pub fn history(&self) -> Vec<String> {
        self.shared.lock().history.clone()
    }
}

async fn fail(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let address = request.uri().to_string();
    let status = {
        let mut inside = shared.lock();
        let fault = inside.faults.iter_mut().find(|fault| {
            fault.times > 0 && fault.method == *request.method() && address.contains(&fault.part)
        });
        fault.map(|fault| {
            fault.times -= 1;
            (fault.status, fault.message.clone())
        })
    };
    match status {
        Some((code, message)) => refuse(code, &message),
        None => next.run(request).await,
    }
}

fn refuse(code: u16, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "Test"});
    let code = StatusCode::from_u16(code).expect("a status");
    (code, axum::Json(status)).into_response()
}

async fn create(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let mut pod: Value = serde_json::from_slice(&body).expect("a pod");
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    {
        let mut inside = shared.lock();
        if inside.pods.contains_key(&name) {
            return refuse(409, "AlreadyExists");
        }
        inside.version += 1;
        pod["metadata"]["resourceVersion"] = inside.version.to_string().into();
        pod["metadata"]["uid"] = name.as_str().into();
        let now = chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string();
        pod["metadata"]["creationTimestamp"] = now.into();
        pod["status"] = json!({"phase": "Pending"});
        if let Some(labels) = pod["metadata"]["labels"].as_object_mut() {
            labels.sort_keys();
        }
        inside.pods.insert(name.clone(), pod.clone());
        inside.history.push(format!("create {name}"));
    }
    let is_scripted = pod["metadata"]["annotations"]["script"].is_string();
    if pod["metadata"]["labels"]["kubernetes_executor"] == "True" && !is_scripted {
        tokio::spawn(kubelet::run(Arc::clone(&shared), name, pod.clone()));
    } else {
        tokio::spawn(live(Arc::clone(&shared), name, pod.clone()));
    }
    (StatusCode::CREATED, axum::Json(pod)).into_response()
}

/// What a scheduler and a kubelet would do with a pod.
async fn live(shared: Arc<Shared>, name: String, pod: Value) {
    let script = pod["metadata"]["annotations"]["script"].as_str().unwrap_or("{}");
    let script: Value = serde_json::from_str(script).expect("a script");
    let step = || tokio::time::sleep(Duration::from_millis(50));
    let names: Vec<String> = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|container| container["name"].as_str().map(str::to_owned))
        .collect();
    step().await;
    if let Some(reason) = script["waiting"].as_str() {
        let waiting = json!({"waiting": {"reason": reason, "message": "as the test wants it"}});
        shared.change(&name, |pod| {
            pod["status"]["containerStatuses"] =
                json!([{"name": "base", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": waiting}]);
        });
        return;
    }
    if let Some(why) = script["pending"].as_str() {
        shared.change(&name, |pod| {
            let condition =
                json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why});
            pod["status"]["conditions"] = json!([condition]);
        });
        let event = json!({"metadata": {"name": format!("{name}.1"), "uid": "e1", "resourceVersion": "1"}, "type": "Warning",
                           "reason": "FailedScheduling", "message": why, "involvedObject": {"name": name}});
        shared.lock().events.push(event);
        return;
    }
    let status = |state: Value, phase: &str| {
        let all: Vec<Value> = names
            .iter()
            .map(|container| {
                let running = json!({"running": {"startedAt": "2025-01-01T00:00:00Z"}});
                let is_sidecar = container == "airflow-xcom-sidecar";
                json!({"name": container, "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                       "state": if is_sidecar && phase == "Running" { running } else { state.clone() }})
            })
            .collect();
        json!({"phase": phase, "containerStatuses": all, "conditions": [{"type": "PodScheduled", "status": "True"}]})
    };
    let running = json!({"running": {"startedAt": "2025-01-01T00:00:00Z"}});
    shared.change(&name, |pod| pod["status"] = status(running.clone(), "Running"));
    let lines = script["lines"].as_array().cloned().unwrap_or_default();
    for (n, line) in lines.iter().enumerate() {
        let stamped = format!(
            "2025-01-01T00:00:{:02}.{:09}Z {}",
            n / 10,
            (n % 10) * 1000,
            line.as_str().unwrap_or_default()
        );
        shared.lock().logs.entry(name.clone()).or_default().push(stamped);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if script["until_deleted"] == true {
        while shared.lock().pods.contains_key(&name) {
            step().await;
        }
        return;
    }
    step().await;
    let code = script["exit"].as_i64().unwrap_or(0);
    let reason = script["reason"]
        .as_str()
        .unwrap_or(if code == 0 { "Completed" } else { "Error" });
    let end = json!({"terminated": {"exitCode": code, "reason": reason, "finishedAt": chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string(), "message": script["message"]}});
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    if names.len() > 1 {
        // The sidecar keeps the pod running until it is told to end.
        shared.change(&name, |pod| pod["status"] = status(end.clone(), "Running"));
        for _ in 0..600 {
            step().await;
            if shared.lock().history.contains(&format!("released {name}")) {
                break;
            }
        }
    }
    shared.change(&name, |pod| pod["status"] = status(end, phase));
}

fn matches(pod: &Value, parameters: &HashMap<String, String>) -> bool {
    let labels = &pod["metadata"]["labels"];
    let selector = parameters.get("labelSelector").map_or("", String::as_str);
    let by_label = selector.split(',').filter(|term| !term.is_empty()).all(|term| {
        if let Some((key, value)) = term.split_once("!=") {
            labels[key] != value
        } else if let Some((key, value)) = term.split_once('=') {
            labels[key] == value
        } else {
            term.strip_prefix('!').is_none_or(|key| labels[key].is_null())
        }
    });
    let field = parameters.get("fieldSelector").map_or("", String::as_str);
    by_label
        && field
            .strip_prefix("metadata.name=")
            .is_none_or(|name| pod["metadata"]["name"] == name)
}

async fn list(State(shared): State<Arc<Shared>>, Query(parameters): Parameters) -> Response {
    if parameters
        .get("watch")
        .is_some_and(|watch| watch == "true" || watch == "1")
    {
        return watch(&shared, parameters);
    }
    let inside = shared.lock();
    let items: Vec<&Value> = inside
        .pods
        .values()
        .filter(|pod| matches(pod, &parameters))
        .collect();
    axum::Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": inside.version.to_string()}, "items": items}))
        .into_response()
}

fn watch(shared: &Arc<Shared>, parameters: HashMap<String, String>) -> Response {
    let from: u64 = parameters
        .get("resourceVersion")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let mut changes = shared.changes.subscribe();
    let (sender, receiver) = tokio::sync::mpsc::channel::<Value>(100);
    let version = |pod: &Value| {
        pod["metadata"]["resourceVersion"]
            .as_str()
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let missed: Vec<Value> = {
        let inside = shared.lock();
        let newer = inside
            .pods
            .values()
            .filter(|pod| matches(pod, &parameters) && version(pod) > from);
        newer
            .map(|pod| json!({"type": "MODIFIED", "object": pod}))
            .collect()
    };
    tokio::spawn(async move {
        for change in missed {
            sender.send(change).await.ok();
        }
        while let Ok(change) = changes.recv().await {
            let is_error = change["type"] == "ERROR";
            if (is_error || matches(&change["object"], &parameters)) && sender.send(change).await.is_err() {
                return;
            }
            if is_error {
                return;
            }
        }
    });
    let lines = ReceiverStream::new(receiver).map(|change| Ok::<_, std::io::Error>(format!("{change}\n")));
    #[expect(clippy::disallowed_methods, reason = "nothing here is compressed")]
    let body = Body::from_stream(lines);
    body.into_response()
}

async fn read(State(shared): State<Arc<Shared>>, Path((_, name)): Path<(String, String)>) -> Response {
    match shared.lock().pods.get(&name) {
        Some(pod) => axum::Json(pod.clone()).into_response(),
        None => refuse(404, "pod not found"),
    }
}

async fn delete(State(shared): State<Arc<Shared>>, Path((_, name)): Path<(String, String)>) -> Response {
    let mut inside = shared.lock();
    match inside.pods.remove(&name) {
        Some(pod) => {
            inside.history.push(format!("delete {name}"));
            shared
                .changes
                .send(json!({"type": "DELETED", "object": pod}))
                .ok();
            axum::Json(pod).into_response()
        }
        None => refuse(404, "pod not found"),
    }
}

async fn patch(
    State(shared): State<Arc<Shared>>,
    Path((_, name)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let patch: Value = serde_json::from_slice(&body).expect("a patch");
    let changed = shared.change(&name, |pod| {
        for (key, value) in patch["metadata"]["labels"].as_object().into_iter().flatten() {
            pod["metadata"]["labels"][key] = value.clone();
        }
    });
    if changed {
        axum::Json(shared.lock().pods[&name].clone()).into_response()
    } else {
        refuse(404, "pod not found")
    }
}

async fn events(State(shared): State<Arc<Shared>>, Query(parameters): Parameters) -> Response {
    let inside = shared.lock();
    let name = parameters
        .get("fieldSelector")
        .and_then(|field| field.strip_prefix("involvedObject.name="));
    let items: Vec<&Value> = inside
        .events
        .iter()
        .filter(|event| name.is_none_or(|name| event["involvedObject"]["name"] == name))
        .collect();
    axum::Json(json!({"kind": "EventList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items})).into_response()
}

async fn log(
    State(shared): State<Arc<Shared>>,
    Path((_, name)): Path<(String, String)>,
    Query(parameters): Parameters,
) -> Response {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(10);
    let cut = shared.lock().log_cuts.pop();
    // Whole seconds, as the real server has it.
    let since = parameters
        .get("sinceTime")
        .map(|text| text[..19].to_owned())
        .unwrap_or_default();
    tokio::spawn(async move {
        let mut at = 0;
        loop {
            let (lines, over) = {
                let inside = shared.lock();
                let lines = inside
                    .logs
                    .get(&name)
                    .map(|lines| lines[at.min(lines.len())..].to_vec())
                    .unwrap_or_default();
                let over = inside.pods.get(&name).is_none_or(|pod| {
                    pod["status"]["containerStatuses"][0]["state"]["terminated"].is_object()
                });
                (lines, over)
            };
            for line in lines {
                at += 1;
                if cut.is_some_and(|cut| at > cut) {
                    sender.send(Err(std::io::Error::other("cut"))).await.ok();
                    return;
                }
                if line[..19] >= since[..] && sender.send(Ok(format!("{line}\n"))).await.is_err() {
                    return;
                }
            }
            if over {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    #[expect(clippy::disallowed_methods, reason = "nothing here is compressed")]
    let body = Body::from_stream(ReceiverStream::new(receiver));
    body.into_response()
}
