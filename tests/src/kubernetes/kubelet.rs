//! Pods as processes of this machine.

use super::Shared;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;

/// Runs the first container of a pod: its command with its arguments and its environment.
pub(super) async fn run(shared: Arc<Shared>, name: String, pod: Value) {
    let container = &pod["spec"]["containers"][0];
    let texts = |key: &str| -> Vec<String> {
        let list = container[key].as_array().into_iter().flatten();
        list.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let line = [texts("command"), texts("args")].concat();
    let mut command = Command::new(line.first().expect("a command"));
    command
        .args(&line[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    command.envs(shared.lock().environment.clone());
    for entry in container["env"].as_array().into_iter().flatten() {
        command.env(
            entry["name"].as_str().unwrap_or_default(),
            entry["value"].as_str().unwrap_or_default(),
        );
    }
    let mut process = command
        .stderr(Stdio::null())
        .spawn()
        .expect("the process of a pod");
    let pid = Pid::from_raw(i32::try_from(process.id().expect("a process id")).expect("a process id"));
    let state = |state: Value| json!([{"name": container["name"], "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": state}]);
    let running = json!({"running": {"startedAt": "2025-01-01T00:00:00Z"}});
    shared.change(&name, |pod| {
        pod["metadata"]["annotations"]["pid"] = pid.to_string().into();
        pod["status"] = json!({"phase": "Running", "containerStatuses": state(running)});
    });
    // As a kubelet: once, and then it waits.
    let mut told = false;
    let ended = loop {
        tokio::select! {
            ended = process.wait() => break ended.expect("the end of a process"),
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                if !told && !shared.lock().pods.contains_key(&name) {
                    told = true;
                    kill(pid, Signal::SIGTERM).ok();
                }
            }
        }
    };
    let code = ended.code().unwrap_or(137);
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let reason = if code == 0 { "Completed" } else { "Error" };
    let now = chrono::Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let end = json!({"terminated": {"exitCode": code, "reason": reason, "finishedAt": now}});
    shared.change(&name, |pod| {
        pod["status"] = json!({"phase": phase, "containerStatuses": state(end)});
    });
}
