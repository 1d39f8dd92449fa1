//! BashOperator, with the semantics and the log lines of `airflow.providers.standard.operators.bash` and its
//! `SubprocessHook`.

use super::narrate;
use super::scratch::Scratch;
use super::template::Renderer;
use super::{Settings, Surroundings};
use crate::log::{LINE, Lines, TryLog};
use crate::permission;
use crate::run::{End, Facts, NeverStarted};
use model::python_text::{decode_with_backslashes, repr_text, rstrip};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::pipe2;
use processes::program::{Child, Program, StartError};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

const HOOK: &str = "airflow.task.hooks.airflow.providers.standard.hooks.subprocess.SubprocessHook";

/// Bytes of a command, or of a variable, that are surely not too many for the system; longer ones are left to Python.
const ARGUMENT: usize = 100_000;
/// Bytes of all given variables together, likewise.
const VARIABLES: usize = 500_000;

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
pub(super) fn prepare(settings: &Settings, facts: &Facts, document: &Value) -> Result<BashTask, String> {
    let renderer = Renderer::new(settings, facts, document);
    let text = |key: &str| document.get(key).and_then(Value::as_str);
    let command = renderer.render(text("bash_command").ok_or("it has no bash_command")?)?;
    if command.ends_with(".sh") || command.ends_with(".bash") {
        return Err("the command is written to a script".to_owned());
    }
    if command.contains('\0') || command.len() > ARGUMENT {
        return Err("the command is one that the system may refuse".to_owned());
    }
    let cwd = text("cwd").map(|cwd| renderer.render(cwd)).transpose()?;
    if cwd
        .as_ref()
        .is_some_and(|cwd| !cwd.starts_with('/') || cwd.contains('\0'))
    {
        return Err("where its cwd is depends on the process".to_owned());
    }
    let env = variables(&renderer, document.get("env"))?;
    let shown_env = env.as_ref().map(|env| {
        env.iter()
            .map(|(k, v)| (k.clone(), v.as_str().into()))
            .collect::<Map<String, Value>>()
    });
    let fields = json!({
        "bash_command": narrate::shown(settings, &command.as_str().into(), "bash_command"),
        "env": shown_env.map(|env| narrate::shown(settings, &env.into(), "env")),
        "cwd": cwd.as_deref().map(|cwd| narrate::shown(settings, &cwd.into(), "cwd")),
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

/// The variables that a task gives, rendered.
fn variables(renderer: &Renderer, env: Option<&Value>) -> Result<Option<Vec<(String, String)>>, String> {
    let Some(env) = env.and_then(Value::as_object) else {
        return Ok(None);
    };
    let mut variables = Vec::with_capacity(env.len());
    for (name, value) in env {
        let value = renderer.render(value.as_str().ok_or("a variable is no text")?)?;
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') || value.len() > ARGUMENT {
            return Err("a variable is one that the system may refuse".to_owned());
        }
        variables.push((name.clone(), value));
    }
    if variables.iter().map(|(_, value)| value.len()).sum::<usize>() > VARIABLES {
        return Err("its variables are more than the system may take".to_owned());
    }
    Ok(Some(variables))
}

/// The last line of output.
#[derive(Default)]
struct Last {
    text: String,
    /// Bytes of it that were too many to be kept.
    left_out: u64,
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
    surroundings: &Surroundings<'_>,
    facts: &Facts,
    task: BashTask,
    log: &TryLog,
    stop: &CancellationToken,
) -> End {
    narrate::begins(log).await;
    let end = match execute(surroundings, facts, &task, log, stop).await {
        Ok((Ended::Exit(status), last)) => judge(facts, &task, status, last, log).await,
        Ok((Ended::TimedOut, _)) => narrate::timed_out(facts, log).await,
        Ok((Ended::Stopped, _)) => narrate::stopped(facts),
        Ok((Ended::NeverStarted(why), _)) => End::never_started(why.cause),
        Err(problem) => narrate::failed(facts, log, "AirflowException", &problem, "").await,
    };
    narrate::ended(log).await;
    End {
        rendered_fields: Some(task.rendered),
        ..end
    }
}

async fn judge(facts: &Facts, task: &BashTask, status: ExitStatus, last: Last, log: &TryLog) -> End {
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
    let value = Value::from(last.text);
    if task.push && (last.left_out > 0 || value.to_string().len() > LINE) {
        let text =
            format!("The last line of output is too long for an XCom: it may have {LINE} bytes at most.");
        return narrate::failed(facts, log, "AirflowException", &text, "").await;
    }
    narrate::succeeded(log, Some(value), task.push).await
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
    surroundings: &Surroundings<'_>,
    facts: &Facts,
    task: &BashTask,
    log: &TryLog,
    stop: &CancellationToken,
) -> Result<(Ended, Last), String> {
    let scratch = match &task.cwd {
        Some(cwd) if !Path::new(cwd).exists() => {
            return Err(format!("Can not find the cwd: {cwd}"));
        }
        Some(cwd) if !Path::new(cwd).is_dir() => {
            return Err(format!("The cwd {cwd} must be a directory"));
        }
        Some(_) => None,
        None => match Scratch::new(None) {
            Ok(scratch) => Some(scratch),
            Err(error) => return Ok(never_started(format!("cannot make a scratch folder: {error}"))),
        },
    };
    log.record(
        "info",
        HOOK,
        &format!("Tmp dir root location: {}", std::env::temp_dir().display()),
    )
    .await;
    let shown = repr_text(&task.command);
    log.record(
        "info",
        HOOK,
        &format!("Running command: ['{}', '-c', {shown}]", bash()),
    )
    .await;
    let folder = match (&task.cwd, &scratch) {
        (Some(cwd), _) => PathBuf::from(cwd),
        (None, Some(scratch)) => scratch.path().to_owned(),
        (None, None) => PathBuf::from("."),
    };
    let (program, reader) = match program(task, environment(surroundings, facts, task), folder) {
        Ok(made) => made,
        Err(error) => return Ok(never_started(format!("cannot make a pipe: {error}"))),
    };
    processes::pause::point("bash");
    if let Err(why) = permission::begins(facts, stop).await {
        return Ok((Ended::NeverStarted(why), Last::default()));
    }
    // No await from the look at the claim to here; the child looks again.
    let mut child = match program.start(&facts.permit) {
        Ok(child) => child,
        Err(StartError::Void) => {
            let cause = "the claim was void when the command was to start".to_owned();
            return Ok(never_started(cause));
        }
        Err(error) if is_want_of_room(&error) => {
            return Ok(never_started(format!("cannot start {}: {error}", bash())));
        }
        Err(error) => return Err(format!("cannot start {}: {error}", bash())),
    };
    log.record("info", HOOK, "Output:").await;
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(|error| error.to_string())?;
    let reader =
        tokio::net::unix::pipe::Receiver::from_owned_fd(reader).map_err(|error| error.to_string())?;
    let limit = facts.start.execution_timeout;
    let ended = wait(&mut child, reader, log, limit, &surroundings.patience, stop).await;
    drop(scratch);
    ended
}

/// The command did not begin, for no fault of the task's.
fn never_started(cause: String) -> (Ended, Last) {
    (Ended::NeverStarted(NeverStarted { cause }), Last::default())
}

/// Returns `true` if the system has no room for another process: memory, processes or descriptors.
fn is_want_of_room(error: &StartError) -> bool {
    let StartError::System(error) = error else {
        return false;
    };
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(
        number,
        Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE)
    )
}

/// The program to start, and the end of the pipe at which its output is read.
fn program(
    task: &BashTask,
    variables: BTreeMap<OsString, OsString>,
    folder: PathBuf,
) -> io::Result<(Program, OwnedFd)> {
    let (reader, output) = pipe2(OFlag::O_CLOEXEC)?;
    let program = Program {
        file: bash().into(),
        arguments: vec![bash().into(), "-c".into(), (&task.command).into()],
        variables,
        folder,
        input: File::open("/dev/null")?.into(),
        output,
    };
    Ok((program, reader))
}

/// All variables that the command finds.
fn environment(
    surroundings: &Surroundings<'_>,
    facts: &Facts,
    task: &BashTask,
) -> BTreeMap<OsString, OsString> {
    let is_inherited = task.env.is_none() || task.append_env;
    let inherited = std::env::vars_os().filter(|_| is_inherited);
    let mut variables = inherited
        .filter(|(name, _)| !name.to_str().is_some_and(bootstrap::is_secret_variable))
        .collect::<BTreeMap<OsString, OsString>>();
    let mut set = |name: &str, value: &str| drop(variables.insert(name.into(), value.into()));
    if is_inherited {
        set(
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
            "airflow-db-not-allowed:///",
        );
    }
    for (name, value) in task.env.iter().flatten() {
        set(name, value);
    }
    for (name, value) in &surroundings.marks {
        set(name, value);
    }
    for (name, value) in [
        ("AIRFLOW_CTX_DAG_OWNER", task.owner.as_str()),
        ("AIRFLOW_CTX_DAG_ID", facts.ti("dag_id")),
        ("AIRFLOW_CTX_TASK_ID", facts.ti("task_id")),
        ("AIRFLOW_CTX_DAG_RUN_ID", facts.ti("run_id")),
    ] {
        // Airflow leaves out what is empty.
        if !value.is_empty() {
            set(name, value);
        }
    }
    set(crate::python_task::EPOCH, &facts.start.epoch.to_string());
    set("AIRFLOW_CTX_TRY_NUMBER", &facts.try_number().to_string());
    if let Some(date) = facts
        .run("logical_date")
        .and_then(|date| chrono::DateTime::parse_from_rfc3339(date).ok())
    {
        set(
            "AIRFLOW_CTX_LOGICAL_DATE",
            &model::time::python_isoformat(date.to_utc()),
        );
    }
    variables
}

/// Reads the output to its end and waits for the command, unless it takes too long or is to be stopped.
async fn wait(
    child: &mut Child,
    mut output: tokio::net::unix::pipe::Receiver,
    log: &TryLog,
    limit: f64,
    patience: impl Fn() -> Duration,
    stop: &CancellationToken,
) -> Result<(Ended, Last), String> {
    let group = child.pid();
    let signal = |signal| killpg(group, signal).ok();
    let work = async {
        let mut last = Last::default();
        let mut lines = Lines::default();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let (complete, ended) = match output.read(&mut buffer).await {
                Ok(length @ 1..) => (lines.push(&buffer[..length]), false),
                Ok(0) | Err(_) => (lines.finish().into_iter().collect(), true),
            };
            for line in complete {
                let left_out = line.left_out;
                let mut text = decode_with_backslashes(&line.bytes);
                text.truncate(rstrip(&text).len());
                log.record("info", HOOK, &text).await;
                last = Last { text, left_out };
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
    if matches!(why, Ended::TimedOut) {
        narrate::times_out(log).await;
    }
    log.record("info", HOOK, "Sending SIGTERM signal to process group")
        .await;
    signal(Signal::SIGTERM);
    if tokio::time::timeout(patience(), &mut work).await.is_err() {
        signal(Signal::SIGKILL);
        tokio::time::timeout(Duration::from_secs(5), &mut work).await.ok();
    }
    // What ignored SIGTERM and let go of the output is still in the group.
    signal(Signal::SIGKILL);
    Ok((why, Last::default()))
}
