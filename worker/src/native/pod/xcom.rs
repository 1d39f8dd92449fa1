//! The XCom of a pod: a file that its sidecar keeps until it has been read.

use super::{MANAGER, Problem};
use crate::log::TryLog;
use kube::Error;
use kube::api::AttachParams;
use kubernetes::cluster::{Pods, persistently};
use kubernetes::state;
use serde_json::Value;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

/// The sidecar that the operator adds.
pub(super) const SIDECAR: &str = "airflow-xcom-sidecar";
const EMPTY: &str = "__airflow_xcom_result_empty__";
const READ: &str = "if [ -s /airflow/xcom/return.json ]; then cat /airflow/xcom/return.json; else echo __airflow_xcom_result_empty__; fi";
const END: &str = "kill -2 $(pgrep -u $(id -u) -f 'sh') || for f in /proc/[0-9]*/comm; do [ -O $f ] && read c < $f && \
                   [ \"$c\" = \"sh\" ] && pid=${f%/comm} && kill -2 ${pid##*/}; done";
/// How long the sidecar may take to start, and how long a command in it.
const START: Duration = Duration::from_secs(900);
const COMMAND: Duration = Duration::from_secs(60);
/// Bytes that an XCom may have here.
const LARGEST: u64 = 16 << 20;

/// Reads the XCom and lets the sidecar go.
pub(super) async fn extract(pods: &Pods, pod: &str, log: &TryLog) -> Result<Option<Value>, Problem> {
    await_sidecar(pods, pod, log).await?;
    log.record("info", MANAGER, &format!("Running command... {READ}"))
        .await;
    let read = persistently(|| read(pods, pod)).await;
    if let Err(error) = persistently(|| run(pods, pod, END)).await {
        let text = format!("Failed to kill xcom sidecar container in pod {pod}, leaving it running: {error}");
        log.record("warning", MANAGER, &text).await;
    }
    match read? {
        Written::Nothing => {
            log.record("info", super::OPERATOR, "xcom result file is empty.")
                .await;
            Ok(None)
        }
        Written::Value(value) => Ok(Some(value)),
        Written::NotJson(why) => {
            let text = format!("the XCom of pod {pod} is not JSON: {why}");
            Err(Problem::of("JSONDecodeError", text))
        }
    }
}

/// What is in the file.
enum Written {
    Nothing,
    Value(Value),
    NotJson(String),
}

async fn read(pods: &Pods, pod: &str) -> Result<Written, Error> {
    let text = run(pods, pod, READ).await?;
    if text.trim_end() == EMPTY {
        return Ok(Written::Nothing);
    }
    Ok(match model::json::read(&text) {
        Ok(value) => Written::Value(value),
        Err(error) => Written::NotJson(error.to_string()),
    })
}

async fn await_sidecar(pods: &Pods, pod: &str, log: &TryLog) -> Result<(), Problem> {
    log.record("info", MANAGER, "Checking if xcom sidecar container is started.")
        .await;
    let deadline = Instant::now() + START;
    loop {
        let found = pods.get(pod).await?;
        if state::is_running(&found, SIDECAR) {
            log.record("info", MANAGER, "The xcom sidecar container has started.")
                .await;
            return Ok(());
        }
        if state::terminated(&found, SIDECAR).is_some() {
            return Err(Problem::airflow(
                "Xcom sidecar container is already terminated! Not possible to read xcom output of task.",
            ));
        }
        if Instant::now() > deadline {
            let minutes = START.as_secs() / 60;
            return Err(Problem::airflow(format!(
                "Xcom sidecar container did not start within {minutes} minutes."
            )));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Runs a command in the sidecar: what it wrote.
async fn run(pods: &Pods, pod: &str, command: &str) -> Result<String, Error> {
    let params = AttachParams::default()
        .container(SIDECAR)
        .stdin(false)
        .stdout(true)
        .stderr(false);
    let late = || Error::Service("the command in the sidecar does not end".into());
    let work = async {
        let mut process = pods.api.exec(pod, ["/bin/sh", "-c", command], &params).await?;
        let status = process.take_status();
        let mut text = Vec::new();
        if let Some(stdout) = process.stdout() {
            stdout
                .take(LARGEST)
                .read_to_end(&mut text)
                .await
                .map_err(|error| Error::Service(error.into()))?;
        }
        // What ends without a word has ended too early: its output may be cut.
        let lost = || Error::Service("the connection to the sidecar was lost".into());
        process.join().await.map_err(|_| lost())?;
        match status {
            Some(status) => status.await.ok_or_else(lost)?,
            None => return Err(lost()),
        };
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    tokio::time::timeout(COMMAND, work)
        .await
        .unwrap_or_else(|_| Err(late()))
}
