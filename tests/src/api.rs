//! A client of the REST API, as small as can be: every answer is checked by the test itself.

use crate::eventually;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long a DAG may take to be there, and a run to end.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The header of that name.
    pub content_type: Option<String>,
    /// All headers, with their names in small letters.
    pub headers: Vec<(String, String)>,
    /// The body as text; what was compressed has been unpacked.
    pub body: String,
}

impl Answer {
    /// The value of a header, by its name in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.ok_or_else(|| anyhow::anyhow!("no answer: {}", String::from_utf8_lossy(bytes)))?;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split_whitespace().nth(1))
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Self {
            status,
            content_type: None,
            headers,
            body: String::new(),
        };
        answer.content_type = answer.header("content-type").map(str::to_owned);
        let mut body = bytes[end + 4..].to_vec();
        if answer.header("transfer-encoding") == Some("chunked") {
            body = unchunk(&body)?;
        }
        if answer.header("content-encoding") == Some("gzip") {
            let mut unpacked = Vec::new();
            flate2::read::GzDecoder::new(body.as_slice()).read_to_end(&mut unpacked)?;
            body = unpacked;
        }
        answer.body = String::from_utf8_lossy(&body).into_owned();
        Ok(answer)
    }
}

/// What ordinary clients (requests, httpx, browsers) send with every request.
pub const ORDINARY: [(&str, &str); 2] = [
    ("Accept-Encoding", "gzip, deflate"),
    ("User-Agent", "python-requests/2.32.5"),
];

/// The API of one server, logged in or not.
#[derive(Debug, Clone)]
pub struct Api {
    port: u16,
    token: Option<String>,
    /// How long an answer may take.
    patience: Duration,
}

impl Api {
    /// Not logged in.
    pub fn new(port: u16) -> Self {
        Self {
            port,
            token: None,
            patience: ANSWER,
        }
    }

    /// With a token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            port: self.port,
            token: Some(token.to_owned()),
            patience: self.patience,
        }
    }

    /// The same API on another server of the installation.
    #[must_use]
    pub fn on(&self, port: u16) -> Self {
        Self { port, ..self.clone() }
    }

    /// The same API, which may take so long for an answer.
    #[must_use]
    pub fn patient(&self, patience: Duration) -> Self {
        Self {
            patience,
            ..self.clone()
        }
    }

    /// The token in use.
    pub fn token(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }

    /// Logs in.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub fn login(&self, name: &str, password: &str) -> anyhow::Result<Self> {
        let (status, body) = self.call(
            "POST",
            "/auth/token",
            Some(&json!({"username": name, "password": password})),
        )?;
        anyhow::ensure!(status == 201, "login: {status} {body}");
        Ok(self.with_token(body["access_token"].as_str().unwrap_or_default()))
    }

    /// One request: the status, and the body as JSON (or as text where it is none).
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Value)> {
        let text = body.map(Value::to_string).unwrap_or_default();
        let (status, answer) = self.raw(method, path, &text, "application/json")?;
        Ok((
            status,
            serde_json::from_str(&answer).unwrap_or(Value::String(answer)),
        ))
    }

    /// The same server, with nobody logged in.
    #[must_use]
    pub fn without_token(&self) -> Self {
        Self::new(self.port)
    }

    /// One request with any body.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn raw(&self, method: &str, path: &str, body: &str, kind: &str) -> anyhow::Result<(u16, String)> {
        let mut headers = vec![("Content-Type".to_owned(), kind.to_owned())];
        headers.extend(ORDINARY.map(|(key, value)| (key.to_owned(), value.to_owned())));
        if let Some(token) = &self.token {
            headers.push(("Authorization".to_owned(), format!("Bearer {token}")));
        }
        let answer = self.exchange(method, path, &headers, body)?;
        Ok((answer.status, answer.body))
    }

    /// One request with exactly these headers.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &str,
    ) -> anyhow::Result<Answer> {
        self.exchange_bytes(method, path, headers, body.as_bytes())
    }

    /// The same with a body that need not be text.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn exchange_bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> anyhow::Result<Answer> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(self.patience))?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for (key, value) in headers {
            head.push_str(&format!("{key}: {value}\r\n"));
        }
        if !body.is_empty() || method != "GET" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Answer::read(&bytes)
    }

    /// GET that must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub fn get(&self, path: &str) -> Value {
        let (status, body) = self
            .call("GET", path, None)
            .unwrap_or_else(|error| panic!("GET {path}: {error}"));
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// Triggers a run that must be accepted; its id.
    ///
    /// # Panics
    /// When it is not.
    pub fn trigger(&self, dag_id: &str, body: &Value) -> String {
        let path = format!("/api/v2/dags/{dag_id}/dagRuns");
        let (status, run) = self
            .call("POST", &path, Some(body))
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(status, 200, "{run}");
        run["dag_run_id"].as_str().unwrap_or_default().to_owned()
    }

    /// State of a run.
    pub fn run_state(&self, dag_id: &str, run_id: &str) -> Option<String> {
        let path = format!("/api/v2/dags/{dag_id}/dagRuns/{}", encode(run_id));
        let (_, run) = self.call("GET", &path, None).ok()?;
        run["state"].as_str().map(str::to_owned)
    }

    /// Waits until a DAG is there.
    ///
    /// # Panics
    /// When it does not come, with the import errors that there are.
    pub fn wait_for_dag(&self, dag_id: &str) {
        eventually(&format!("DAG {dag_id} is there"), PATIENCE, || {
            match self.call("GET", &format!("/api/v2/dags/{dag_id}"), None) {
                Ok((200, _)) => Ok(()),
                other => Err(format!(
                    "{other:?} {:?}",
                    self.call("GET", "/api/v2/importErrors", None)
                )),
            }
        });
    }

    /// Waits until a run has ended; its state.
    ///
    /// # Panics
    /// When it does not end, with its tasks.
    pub fn wait_for_end(&self, dag_id: &str, run_id: &str) -> String {
        eventually(&format!("run {run_id} of {dag_id} ends"), PATIENCE, || match self
            .run_state(dag_id, run_id)
        {
            Some(state) if state == "success" || state == "failed" => Ok(state),
            other => Err(format!("{other:?} {:?}", self.tasks(dag_id, run_id))),
        })
    }

    /// Task instances of a run.
    pub fn tasks(&self, dag_id: &str, run_id: &str) -> Vec<Value> {
        let path = format!(
            "/api/v2/dags/{dag_id}/dagRuns/{}/taskInstances?limit=100",
            encode(run_id)
        );
        self.get(&path)["task_instances"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// Texts of the log of a try.
    pub fn log(&self, dag_id: &str, run_id: &str, task_id: &str, try_number: u32) -> Vec<String> {
        let path = format!(
            "/api/v2/dags/{dag_id}/dagRuns/{}/taskInstances/{task_id}/logs/{try_number}",
            encode(run_id)
        );
        let content = self.get(&path)["content"].as_array().cloned().unwrap_or_default();
        content
            .iter()
            .filter_map(|record| record["event"].as_str())
            .map(str::to_owned)
            .collect()
    }
}

/// Puts the chunks of a body together.
///
/// # Errors
/// When the body breaks off: the last chunk is an empty one.
fn unchunk(body: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = body;
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n");
        let size = end.and_then(|end| std::str::from_utf8(&rest[..end]).ok());
        let size = size.and_then(|hex| usize::from_str_radix(hex.trim(), 16).ok());
        let (Some(end), Some(size)) = (end, size) else {
            anyhow::bail!("the answer breaks off after {} bytes", out.len());
        };
        if size == 0 {
            return Ok(out);
        }
        let from = end + 2;
        let chunk = rest.get(from..from + size);
        out.extend_from_slice(chunk.ok_or_else(|| anyhow::anyhow!("a chunk breaks off"))?);
        rest = rest.get(from + size + 2..).unwrap_or_default();
    }
}

/// A run id in a path.
pub(crate) fn encode(text: &str) -> String {
    text.replace('%', "%25").replace('+', "%2B").replace(':', "%3A")
}
