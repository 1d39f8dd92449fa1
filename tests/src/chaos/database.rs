//! The campaign's own session with MariaDB, which goes through no proxy.

use crate::parts::mariadb_client;
use anyhow::Context;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Ends an answer.
const END: &str = "--- the end of an answer ---";
const PATIENCE: Duration = Duration::from_secs(10);
const SURELY: Duration = Duration::from_secs(60);

/// A session. It is opened when it is needed, and after an error again.
pub(super) struct Session {
    url: String,
    client: Option<Client>,
}

struct Client {
    process: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Session {
    /// A session with the database of that URL.
    pub(super) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            client: None,
        }
    }

    fn open(&self) -> anyhow::Result<Client> {
        let mut process = mariadb_client(&self.url)
            .args(["--unbuffered", "--connect-timeout=3"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("the client of MariaDB cannot be started")?;
        let input = process.stdin.take().context("the client takes no input")?;
        let output = process.stdout.take().context("the client has no output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Client {
            process,
            input,
            lines,
        })
    }

    /// Statements, divided by semicolons: the rows that they answer.
    ///
    /// # Errors
    /// When the database cannot be reached, refuses or does not answer within ten seconds.
    pub(super) fn query(&mut self, sql: &str) -> anyhow::Result<Vec<Vec<String>>> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.open()?,
        };
        writeln!(client.input, "{sql};\nSELECT '{END}';").context("the database's client has ended")?;
        let mut rows = Vec::new();
        loop {
            let line = client
                .lines
                .recv_timeout(PATIENCE)
                .with_context(|| format!("the database does not answer: {sql}"))?;
            if line == END {
                // Only a session whose answer was read to its end is used again.
                self.client = Some(client);
                return Ok(rows);
            }
            rows.push(line.split('\t').map(str::to_owned).collect());
        }
    }

    /// As [`Session::query`], but tries again for as long as the database may be out of reach.
    ///
    /// # Errors
    /// When it stays so.
    pub(super) fn surely(&mut self, sql: &str) -> anyhow::Result<Vec<Vec<String>>> {
        let begin = Instant::now();
        loop {
            match self.query(sql) {
                Err(_) if begin.elapsed() < SURELY => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                other => return other,
            }
        }
    }

    /// The number that a statement answers.
    ///
    /// # Errors
    /// As [`Session::query`], and when the answer is none.
    pub(super) fn number(&mut self, sql: &str) -> anyhow::Result<u64> {
        let rows = self.query(sql)?;
        let field = rows.first().and_then(|row| row.first());
        let field = field.with_context(|| format!("no answer: {sql}"))?;
        field.parse().with_context(|| format!("{sql}: {field}"))
    }

    /// The first field of each row.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub(super) fn column(&mut self, sql: &str) -> anyhow::Result<Vec<String>> {
        let rows = self.query(sql)?;
        Ok(rows
            .into_iter()
            .filter_map(|row| row.into_iter().next())
            .collect())
    }
}
