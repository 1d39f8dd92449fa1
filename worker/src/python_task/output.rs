//! What a child of the fork server writes: its output and its records, line by line to the log.

use crate::log::{Lines, TryLog};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Takes a stream out of a child, leaving a closed one.
pub(super) fn take(stream: &mut UnixStream) -> Option<UnixStream> {
    let (closed, _) = UnixStream::pair().ok()?;
    Some(std::mem::replace(stream, closed))
}

/// What comes out of a stream.
pub(super) enum Stream {
    /// Lines of text, as records of this level and logger.
    Output {
        level: &'static str,
        logger: &'static str,
    },
    /// Records of the SDK.
    Records,
}

/// Writes a stream of the child to the log, line by line, until it ends.
pub(super) async fn pump(mut stream: UnixStream, kind: Stream, log: TryLog) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let (complete, ended) = match stream.read(&mut buffer).await {
            Ok(length @ 1..) => (lines.push(&buffer[..length]), false),
            Ok(0) | Err(_) => (lines.finish().into_iter().collect(), true),
        };
        for line in complete {
            match kind {
                Stream::Output { level, logger } => {
                    let left_out = line.left_out;
                    let mut text = line.into_text();
                    text.truncate(text.trim_ascii_end().len());
                    if left_out > 0 {
                        text.push_str(&format!(" ... [{left_out} bytes more are left out]"));
                    }
                    log.record(level, logger, &text).await;
                }
                Stream::Records => log.sdk_record(line).await,
            }
        }
        if ended {
            return;
        }
    }
}
