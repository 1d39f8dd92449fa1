//! Parsing one DAG file in a child.

use crate::bundle::Bundle;
use crate::fork_server::{Child, ChildExit, ForkServer, PythonError, Work};
use crate::frames::{read_request, write_reply};
use crate::messages::{Answer, Question};
use nix::sys::signal::Signal;
use processes::lease::Permit;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// A result may be this large, in bytes.
const RESULT_LIMIT: usize = 256 << 20;
/// Output of a file that is kept for an error message, in bytes.
const OUTPUT_KEPT: usize = 4 << 10;

/// Which file to parse.
#[derive(Debug, Clone)]
pub struct ParseRequest {
    /// The file.
    pub file: PathBuf,
    /// Its bundle.
    pub bundle: Bundle,
    /// What it may use.
    pub limits: ParseLimits,
    /// What to do instead of describing its DAGs.
    pub instead: Option<Instead>,
}

/// What a child can do that is ready to parse a file.
#[derive(Debug, Clone)]
pub enum Instead {
    /// Calls a callback of one of the file's DAGs (Airflow's `DagCallbackRequest`), if the permit still holds once the file is
    /// loaded. What goes wrong in it comes as an import error.
    Callback(Value, Permit),
    /// Tells listeners of plugins of something that is about no DAG, if the permit still holds then. No file is loaded.
    News(Value, Permit),
    /// Asks what only Python knows, such as a plugin's timetable; no file is loaded. The answer comes as
    /// [`ParsedFile::answer`].
    Question(Value),
}

/// What parsing one file may use.
#[derive(Debug, Clone, Copy)]
pub struct ParseLimits {
    /// Time in all.
    pub time: Duration,
    /// MiB of memory.
    pub memory_mb: u64,
}

/// What a file holds.
#[derive(Debug, Clone, Deserialize)]
pub struct ParsedFile {
    /// Its DAGs.
    pub dags: Vec<PythonDag>,
    /// Errors by file.
    pub import_errors: BTreeMap<String, String>,
    /// What it depended on, `kind:name` each; paths within the bundle are relative to it.
    #[serde(default)]
    pub dependencies: Vec<String>,
    /// `true` if it depended on more than is kept.
    #[serde(default)]
    pub too_many: bool,
    /// Seconds that parsing took, without the start of Python.
    #[serde(default)]
    pub seconds: f64,
    /// The hooks that listeners of plugins have.
    #[serde(default)]
    pub listeners: Vec<String>,
    /// What it says in the words of Airflow 1.10 or 2.
    pub old_forms: Vec<OldForm>,
    /// What the answer to a question is.
    #[serde(default)]
    pub answer: Option<Value>,
}

/// One use of what Airflow 3 no longer has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct OldForm {
    /// The file, in full.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// What stands there.
    pub old: String,
    /// What to write instead.
    pub modern: String,
}

/// A DAG as Python describes it.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the names are those of Airflow's DagModel")]
pub struct PythonDag {
    pub dag_id: String,
    pub fileloc: String,
    pub relative_fileloc: String,
    pub display_name: Option<String>,
    pub description: Option<String>,
    pub owners: Vec<String>,
    pub tags: Vec<String>,
    pub timetable_type: String,
    pub timetable_summary: Option<String>,
    pub timetable_description: Option<String>,
    pub has_timetable: bool,
    pub max_consecutive_failed: u32,
    pub paused_upon_creation: Option<bool>,
    pub serialized: String,
    pub canonical: String,
    pub native: String,
    /// The file of the bundle that it was made in, if the parsed file only imported that one.
    #[serde(default)]
    pub other_file: Option<String>,
}

/// Why a file gave no result. The text is what users see as the file's import error.
#[derive(Debug, Error)]
pub enum ParseFailure {
    /// The file took too long.
    #[error(
        "parsing the file took longer than {0} s ([dag_processor] dag_file_processor_timeout) and was stopped"
    )]
    TooSlow(u64),
    /// The child ended without a result.
    #[error("the process that parsed the file {how} before it delivered a result{output}")]
    Died {
        /// How it ended.
        how: String,
        /// What it printed last.
        output: String,
    },
    /// The child was lost with the fork server, perhaps by the file's doing, perhaps not.
    #[error("the process that parsed the file was lost with its parent; it will be tried again")]
    Lost,
    /// The permit did not hold any more when the child was to begin.
    #[error("it came too late: another process may have it in hand")]
    Void,
    /// What the child sent is no result.
    #[error("the process that parsed the file sent something that is no result: {0}")]
    Nonsense(String),
    /// Python cannot be used at all; no fault of the file.
    #[error(transparent)]
    Python(#[from] PythonError),
}

/// Parses a file. Questions for variables and connections at its top level are answered by `answer`.
///
/// # Errors
/// When the file gives no result; import errors are part of a result.
pub async fn parse_file<F, Fut>(
    server: &ForkServer,
    request: &ParseRequest,
    answer: F,
) -> Result<ParsedFile, ParseFailure>
where
    F: Fn(Question) -> Fut + Send,
    Fut: Future<Output = Answer> + Send,
{
    let work = Work::Parse {
        file: request.file.clone(),
        bundle: Box::new(request.bundle.clone()),
        memory_mb: request.limits.memory_mb,
        instead: request.instead.clone(),
    };
    let mut child = server.fork(&work, &[]).await?;
    let (Some(stdout), Some(stderr)) = (take(&mut child.stdout), take(&mut child.stderr)) else {
        return Err(PythonError::System("the child has no output".to_owned()).into());
    };
    // Reading ends with this call.
    let mut readers = JoinSet::new();
    readers.spawn(async { (0, last_output(stdout).await) });
    readers.spawn(async { (1, last_output(stderr).await) });
    let mut unread = JoinSet::new();
    if let Some(logs) = take(&mut child.logs) {
        unread.spawn(last_output(logs));
    }
    let outcome = tokio::time::timeout(request.limits.time, conversation(&mut child, &answer)).await;
    child.signal(Signal::SIGKILL);
    match outcome {
        Ok(Ok(Heard::Result(parsed))) => Ok(*parsed),
        Ok(Ok(Heard::Void)) => Err(ParseFailure::Void),
        Ok(Ok(Heard::End)) => {
            let how = match tokio::time::timeout(Duration::from_secs(5), &mut child.exit).await {
                Ok(Ok(ChildExit::Code(code))) => format!("ended with exit code {code}"),
                Ok(Ok(ChildExit::Signal(signal))) => format!("was ended by signal {signal}"),
                Ok(Ok(ChildExit::Lost) | Err(_)) | Err(_) => return Err(ParseFailure::Lost),
            };
            let mut output = BTreeMap::new();
            let reading = async {
                while let Some(read) = readers.join_next().await {
                    output.extend(read);
                }
            };
            // A grandchild may hold them open.
            tokio::time::timeout(Duration::from_secs(1), reading).await.ok();
            let output: String = output.into_values().collect();
            let output = if output.trim().is_empty() {
                String::new()
            } else {
                format!("; it printed:\n{}", output.trim())
            };
            Err(ParseFailure::Died { how, output })
        }
        Ok(Err(problem)) => Err(ParseFailure::Nonsense(problem)),
        Err(_) => Err(ParseFailure::TooSlow(request.limits.time.as_secs())),
    }
}

/// Takes a stream out of a child, leaving a closed one.
fn take(stream: &mut UnixStream) -> Option<UnixStream> {
    let (closed, _) = UnixStream::pair().ok()?;
    Some(std::mem::replace(stream, closed))
}

/// What a child says in the end.
enum Heard {
    Result(Box<ParsedFile>),
    /// It was about to begin, and found that it must not.
    Void,
    /// Nothing more.
    End,
}

async fn conversation<F, Fut>(child: &mut Child, answer: &F) -> Result<Heard, String>
where
    F: Fn(Question) -> Fut + Send,
    Fut: Future<Output = Answer> + Send,
{
    loop {
        let frame = read_request(&mut child.requests, RESULT_LIMIT)
            .await
            .map_err(|error| error.to_string())?;
        let Some(frame) = frame else {
            return Ok(Heard::End);
        };
        let kind = frame
            .body
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if kind == "UpdraftParseResult" {
            return serde_json::from_value(frame.body)
                .map(|parsed| Heard::Result(Box::new(parsed)))
                .map_err(|error| error.to_string());
        }
        if kind == "UpdraftVoid" {
            return Ok(Heard::Void);
        }
        let reply = match serde_json::from_value::<Question>(frame.body) {
            _ if kind == "MaskSecret" => Answer::done(),
            Ok(question) => answer(question).await,
            Err(_) => Answer::failure(
                400,
                format!("{kind} cannot be used at the top level of a DAG file"),
            ),
        };
        write_reply(
            &mut child.requests,
            frame.id,
            reply.body.as_ref(),
            reply.error.as_ref(),
        )
        .await
        .map_err(|error| error.to_string())?;
    }
}

/// Reads a stream to its end and keeps the last of it; however much there is, memory stays bounded.
async fn last_output(mut stream: UnixStream) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 8 << 10];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..length]);
        if kept.len() > 2 * OUTPUT_KEPT {
            kept.drain(..kept.len() - OUTPUT_KEPT);
        }
    }
    String::from_utf8_lossy(&kept[kept.len().saturating_sub(OUTPUT_KEPT)..]).into_owned()
}
