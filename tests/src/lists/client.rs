//! Clients that keep their connection and ask one question after another.

use anyhow::Context;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How long an answer may take before it counts as an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that is kept. Bodies are read and thrown away.
pub struct Connection {
    port: u16,
    token: String,
    stream: Option<TcpStream>,
}

impl Connection {
    /// None yet; it is made for the first question.
    pub fn new(port: u16, token: &str) -> Self {
        Self {
            port,
            token: token.to_owned(),
            stream: None,
        }
    }

    /// Asks, and reads the answer to its end; its status.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get(&mut self, path: &str) -> anyhow::Result<u16> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(("127.0.0.1", self.port))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\nAuthorization: Bearer {}\r\n\r\n",
            self.token
        );
        stream.write_all(head.as_bytes())?;
        let status = read(&mut stream)?;
        self.stream = Some(stream);
        Ok(status)
    }
}

fn read(stream: &mut TcpStream) -> anyhow::Result<u16> {
    let mut bytes = Vec::with_capacity(16 << 10);
    let mut piece = [0; 16 << 10];
    let mut more = |bytes: &mut Vec<u8>| -> anyhow::Result<()> {
        let got = stream.read(&mut piece)?;
        anyhow::ensure!(got > 0, "the connection was closed");
        bytes.extend_from_slice(&piece[..got]);
        Ok(())
    };
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        more(&mut bytes)?;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    let status = status.context("no status")?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    match length {
        Some(length) => {
            let length: usize = length.trim().parse()?;
            while bytes.len() < end + length {
                more(&mut bytes)?;
            }
        }
        None => {
            while !bytes.ends_with(b"0\r\n\r\n") {
                more(&mut bytes)?;
            }
        }
    }
    Ok(status)
}

/// One answer.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// Which of the questions.
    pub kind: usize,
    /// The answer's status; 0 for none.
    pub status: u16,
    /// How long it took.
    pub time: Duration,
}

/// All answers.
pub type Answers = Vec<Taken>;

/// When a client asks again.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// At once.
    AtOnce,
    /// After a pause.
    Pause(Duration),
}

/// Has `clients` clients ask until `end`; `question` gives the number of its kind and the path.
pub fn drive(
    (port, token): (u16, &str),
    clients: u64,
    (end, pace): (Instant, Pace),
    question: impl Fn(&mut dyn FnMut(u64) -> u64) -> (usize, String) + Sync,
) -> Answers {
    let question = &question;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..clients)
            .map(|client| {
                scope.spawn(move || {
                    let mut state = client.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                    let mut random = move |below: u64| {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        (state >> 11) % below.max(1)
                    };
                    let mut connection = Connection::new(port, token);
                    let mut answers = Answers::new();
                    while Instant::now() < end {
                        let (kind, path) = question(&mut random);
                        let begin = Instant::now();
                        let status = connection.get(&path).unwrap_or(0);
                        answers.push(Taken {
                            kind,
                            status,
                            time: begin.elapsed(),
                        });
                        if let Pace::Pause(pause) = pace {
                            std::thread::sleep(pause);
                        }
                    }
                    answers
                })
            })
            .collect();
        all.into_iter()
            .flat_map(|client| client.join().unwrap_or_default())
            .collect()
    })
}
