//! BashOperator, with the semantics and the log lines of `airflow.providers.standard.operators.bash` and its
//! `SubprocessHook`.

use super::narrate;
use super::scratch::Scratch;
use super::template::Renderer;
use crate::Shared;
use crate::log::{Lines, TryLog};
use crate::permission;
use crate::run::{End, Facts, NeverStarted};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};
use processes::orphans::Kept;
use serde_json::{Map, Value, json};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

const HOOK: &str = "airflow.task.hooks.airflow.providers.standard.hooks.subprocess.SubprocessHook";

/// A BashOperator with its templates rendered.
pub(crate) struct BashTask {
    command: String,
    env: Option<Vec<(String, String)>>,
    append_env: bool,
    cwd: Option<String>,
    skip_on: Vec<i64>,
    push: bool,
    owner: String,
    rendered: String,
}

impl BashTask {
    /// What the templates came to, as JSON.
    pub(crate) fn rendered(&self) -> &str {
        &self.rendered
    }
}

/// Renders the fields of a BashOperator.
///
/// # Errors
/// When a template needs Python.
pub(super) fn prepare(facts: &Facts, document: &Value) -> Result<BashTask, String> {
    let renderer = Renderer::new(facts, document.get("params"));
    let text = |key: &str| document.get(key).and_then(Value::as_str);
    let command = renderer.render(text("bash_command").ok_or("it has no bash_command")?)?;
    if command.ends_with(".sh") || command.ends_with(".bash") {
        return Err("the command is written to a script".to_owned());
    }
    if command.contains('\0') {
        return Err("the command contains a NUL byte".to_owned());
    }
    let cwd = text("cwd").map(|cwd| renderer.render(cwd)).transpose()?;
    let env = match document.get("env").and_then(Value::as_object) {
        Some(env) => {
            let render = |(key, value): (&String, &Value)| {
                Ok((key.clone(), renderer.render(value.as_str().unwrap_or_default())?))
            };
            Some(env.iter().map(render).collect::<Result<Vec<_>, String>>()?)
        }
        None => None,
    };
    let shown_env = env.as_ref().map(|env| {
        env.iter()
            .map(|(k, v)| (k.clone(), v.as_str().into()))
            .collect::<Map<String, Value>>()
    });
    let fields = json!({
        "bash_command": narrate::shown(&command.as_str().into(), "bash_command"),
        "env": shown_env.map(|env| narrate::shown(&env.into(), "env")),
        "cwd": cwd,
    });
    Ok(BashTask {
        command,
        env,
        append_env: document
            .get("append_env")
            .and_then(Value::as_bool)
            .unwrap_or(false),
        cwd,
        skip_on: document
            .get("skip_on_exit_code")
            .and_then(Value::as_array)
            .map(|codes| codes.iter().filter_map(Value::as_i64).collect())
            .unwrap_or_default(),
        push: document
            .get("do_xcom_push")
            .and_then(Value::as_bool)
            .unwrap_or(true),
        owner: text("owner").unwrap_or("airflow").to_owned(),
        rendered: fields.to_string(),
    })
}

/// How the command ended.
enum Ended {
    Exit(ExitStatus),
    TimedOut,
    Stopped,
    NeverStarted(NeverStarted),
}

/// Runs a BashOperator.
pub(super) async fn run(
    shared: &Shared,
    facts: &Facts,
    task: BashTask,
    log: &TryLog,
    stop: &CancellationToken,
) -> End {
    narrate::begins(log).await;
    let end = match execute(shared, facts, &task, log, stop).await {
        Ok((Ended::Exit(status), last)) => judge(facts, &task, status, last, log).await,
        Ok((Ended::TimedOut, _)) => narrate::timed_out(facts, log).await,
        Ok((Ended::Stopped, _)) => narrate::stopped(facts),
        Ok((Ended::NeverStarted(why), _)) => End::never_started(facts, why),
        Err(problem) => narrate::failed(facts, log, "AirflowException", &problem, "").await,
    };
    narrate::ended(log).await;
    End {
        rendered_fields: Some(task.rendered),
        ..end
    }
}

async fn judge(facts: &Facts, task: &BashTask, status: ExitStatus, last: String, log: &TryLog) -> End {
    let code = status
        .code()
        .map_or_else(|| -i64::from(status.signal().unwrap_or(0)), i64::from);
    log.record("info", HOOK, &format!("Command exited with return code {code}"))
        .await;
    if task.skip_on.contains(&code) {
        let reason = format!("Bash command returned exit code {code}. Skipping.");
        return narrate::skipped(log, &reason).await;
    }
    if code != 0 {
        let text = format!("Bash command failed. The command returned a non-zero exit code {code}.");
        return narrate::failed(facts, log, "AirflowException", &text, "").await;
    }
    narrate::succeeded(log, Some(last.into()), task.push).await
}

fn bash() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path)
            .map(|folder| folder.join("bash"))
            .find(|file| file.is_file());
        found.map_or_else(|| "bash".to_owned(), |file| file.to_string_lossy().into_owned())
    })
}

async fn execute(
    shared: &Shared,
    facts: &Facts,
    task: &BashTask,
    log: &TryLog,
    stop: &CancellationToken,
) -> Result<(Ended, String), String> {
    let scratch = match &task.cwd {
        Some(cwd) if !std::path::Path::new(cwd).exists() => {
            return Err(format!("Can not find the cwd: {cwd}"));
        }
        Some(cwd) if !std::path::Path::new(cwd).is_dir() => {
            return Err(format!("The cwd {cwd} must be a directory"));
        }
        Some(_) => None,
        None => Some(Scratch::new(None).map_err(|error| format!("cannot make a scratch folder: {error}"))?),
    };
    log.record(
        "info",
        HOOK,
        &format!("Tmp dir root location: {}", std::env::temp_dir().display()),
    )
    .await;
    let shown = python_repr(&task.command);
    log.record(
        "info",
        HOOK,
        &format!("Running command: ['{}', '-c', {shown}]", bash()),
    )
    .await;
    let mut command = Command::new(bash());
    command.args(["-c", &task.command]);
    match (&task.cwd, &scratch) {
        (Some(cwd), _) => command.current_dir(cwd),
        (None, Some(scratch)) => command.current_dir(scratch.path()),
        (None, None) => &mut command,
    };
    environment(shared, facts, task, &mut command);
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("cannot make a pipe: {error}"))?;
    let copy = writer
        .try_clone()
        .map_err(|error| format!("cannot make a pipe: {error}"))?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::from(writer))
        .stderr(Stdio::from(copy));
    command.process_group(0).kill_on_drop(true);
    processes::pause::point("bash");
    if let Err(why) = permission::granted(facts, stop).await {
        return Ok((Ended::NeverStarted(why), String::new()));
    }
    // No await from the look at the claim to here.
    let mut child = command
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", bash()))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let _kept = pid.map(Kept::new);
    if !facts.permit.holds()
        && let Some(pid) = pid
    {
        // We were stopped in between. It is gone before bash has read its first command.
        killpg(Pid::from_raw(pid), Signal::SIGKILL).ok();
        child.wait().await.ok();
        return Ok((Ended::Stopped, String::new()));
    }
    // The parent's ends of the pipe are in `command`; the reader sees the end only when they are closed.
    drop(command);
    log.record("info", HOOK, "Output:").await;
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(|error| error.to_string())?;
    let reader =
        tokio::net::unix::pipe::Receiver::from_owned_fd(reader).map_err(|error| error.to_string())?;
    let limit = facts.start.execution_timeout;
    let patience = || shared.kill_patience();
    let ended = wait(&mut child, reader, log, limit, patience, stop).await;
    drop(scratch);
    ended
}

fn environment(shared: &Shared, facts: &Facts, task: &BashTask, command: &mut Command) {
    if task.env.is_some() && !task.append_env {
        command.env_clear();
    } else {
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(bootstrap::is_secret_variable) {
                command.env_remove(name);
            }
        }
        command.env(
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
            "airflow-db-not-allowed:///",
        );
    }
    command.envs(task.env.iter().flatten().map(|(key, value)| (key, value)));
    command.envs(shared.watchdog.environment(&shared.name));
    for (name, value) in [
        ("AIRFLOW_CTX_DAG_OWNER", task.owner.as_str()),
        ("AIRFLOW_CTX_DAG_ID", facts.ti("dag_id")),
        ("AIRFLOW_CTX_TASK_ID", facts.ti("task_id")),
        ("AIRFLOW_CTX_DAG_RUN_ID", facts.ti("run_id")),
    ] {
        command.env(name, value);
    }
    command.env(crate::python_task::EPOCH, facts.start.epoch.to_string());
    command.env("AIRFLOW_CTX_TRY_NUMBER", facts.try_number().to_string());
    if let Some(date) = facts
        .run("logical_date")
        .and_then(|date| chrono::DateTime::parse_from_rfc3339(date).ok())
    {
        command.env(
            "AIRFLOW_CTX_LOGICAL_DATE",
            model::time::python_isoformat(date.to_utc()),
        );
    }
}

/// Reads the output to its end and waits for the command, unless it takes too long or is to be stopped.
async fn wait(
    child: &mut Child,
    mut output: tokio::net::unix::pipe::Receiver,
    log: &TryLog,
    limit: f64,
    patience: impl Fn() -> Duration,
    stop: &CancellationToken,
) -> Result<(Ended, String), String> {
    let group = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .map(Pid::from_raw);
    let signal = |signal| group.map(|group| killpg(group, signal));
    let work = async {
        let mut last = String::new();
        let mut lines = Lines::default();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let (complete, ended) = match output.read(&mut buffer).await {
                Ok(length @ 1..) => (lines.push(&buffer[..length]), false),
                Ok(0) | Err(_) => (lines.finish().into_iter().collect(), true),
            };
            for line in complete {
                last = line.trim_end().to_owned();
                log.record("info", HOOK, &last).await;
            }
            if ended {
                break;
            }
        }
        child
            .wait()
            .await
            .map(|status| (Ended::Exit(status), last))
            .map_err(|error| error.to_string())
    };
    tokio::pin!(work);
    let limit = if limit > 0.0 {
        Duration::from_secs_f64(limit)
    } else {
        Duration::from_secs(u64::from(u32::MAX))
    };
    let why = tokio::select! {
        ended = &mut work => return ended,
        () = tokio::time::sleep(limit) => Ended::TimedOut,
        () = stop.cancelled() => Ended::Stopped,
    };
    log.record("info", HOOK, "Sending SIGTERM signal to process group")
        .await;
    signal(Signal::SIGTERM);
    if tokio::time::timeout(patience(), &mut work).await.is_err() {
        signal(Signal::SIGKILL);
        tokio::time::timeout(Duration::from_secs(5), &mut work).await.ok();
    }
    // What ignored SIGTERM and let go of the output is still in the group.
    signal(Signal::SIGKILL);
    Ok((why, String::new()))
}

/// Python's `repr()` of a string.
fn python_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_shown_as_python_shows_them() {
        assert_eq!(python_repr("echo 'a'\n"), r#""echo 'a'\n""#);
        assert_eq!(python_repr("a'b\"c\\"), r#"'a\'b"c\\'"#);
    }
}
