//! Frames: four bytes of length (big endian), then a msgpack array. From the child `[id, body, trace context?]`, to the
//! child `[id, body, error?]`. Bodies are handled as JSON here; instants (msgpack extension -1) become RFC 3339 text, and
//! whole numbers of more than 64 bits (extension 10) what [`model::json`] makes of them.

use base64::Engine;
use model::json::{self, Text};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rmpv::Value as Packed;
use serde_json::{Map, Number, Value};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What can be wrong with a child's frames. The child is then to be killed.
#[derive(Debug, Error)]
pub enum FrameError {
    /// Larger than allowed.
    #[error("a frame of {found} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Its length.
        found: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// Not a frame.
    #[error("a broken frame: {0}")]
    Broken(String),
    /// The socket broke.
    #[error("the connection to the child broke: {0}")]
    Io(#[from] std::io::Error),
}

/// A request of a child.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestFrame {
    /// Number of the request, to be repeated in the reply.
    pub id: u64,
    /// The message, an object with a `type`.
    pub body: Value,
}

/// Memory for large frames that several readers share, in KiB.
pub type Room = Arc<Semaphore>;

/// msgpack's extension for whole numbers that have no room in 64 bits: their digits (`shim/large_numbers.py`).
const LARGE: i8 = 10;
/// Bytes up to which a frame needs no room of the shared memory.
const SMALL: usize = 1 << 20;
/// Bytes that are read at once.
const PIECE: usize = 64 << 10;
/// Bytes of a frame that is too large in which its number is found.
const BEGINNING: usize = 16;

/// What a child sent.
#[derive(Debug)]
pub enum Incoming {
    /// A request.
    Request(RequestFrame),
    /// A request that is too large; it was passed over.
    TooLarge {
        /// Its number, to be repeated in the reply; absent where it is no frame.
        id: Option<u64>,
        /// Why.
        error: FrameError,
    },
}

/// Reads frames. What was read of a frame is kept when a call is cancelled, so that the next call goes on with it.
#[derive(Debug)]
pub struct FrameReader {
    limit: usize,
    room: Option<Room>,
    taken: Option<OwnedSemaphorePermit>,
    head: Vec<u8>,
    body: Vec<u8>,
    /// Bytes of a frame that is too large that were passed over.
    passed: usize,
}

impl FrameReader {
    /// A reader of frames of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            room: None,
            taken: None,
            head: Vec::new(),
            body: Vec::new(),
            passed: 0,
        }
    }

    /// A reader that waits for room in shared memory before it reads a large frame. The room is given back when the next
    /// frame begins.
    pub fn within(limit: usize, room: Room) -> Self {
        Self {
            room: Some(room),
            ..Self::new(limit)
        }
    }

    /// Shared memory of so many bytes.
    pub fn room_for(bytes: usize) -> Room {
        Arc::new(Semaphore::new(bytes >> 10))
    }

    /// Reads the next request; `None` when the child closed its end. May be cancelled at any time.
    ///
    /// # Errors
    /// When the bytes are no frame.
    pub async fn next<R>(&mut self, reader: &mut R) -> Result<Option<Incoming>, FrameError>
    where
        R: AsyncRead + Unpin,
    {
        if self.head.is_empty() {
            self.taken = None;
        }
        while self.head.len() < 4 {
            let mut part = [0; 4];
            let wanted = 4 - self.head.len();
            match reader.read(&mut part[..wanted]).await {
                Ok(0) if self.head.is_empty() => return Ok(None),
                Ok(0) => return Err(FrameError::Broken(format!("{} of 4 bytes", self.head.len()))),
                Ok(got) => self.head.extend_from_slice(&part[..got]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        let found = self
            .head
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte));
        if found > self.limit {
            return self.pass_over(reader, found).await.map(Some);
        }
        if found > SMALL
            && self.taken.is_none()
            && let Some(room) = &self.room
        {
            let wanted = u32::try_from(found >> 10).unwrap_or(u32::MAX);
            // The semaphore is never closed.
            self.taken = Arc::clone(room).acquire_many_owned(wanted).await.ok();
        }
        // Read piece by piece: a length alone must not make us allocate.
        while self.body.len() < found {
            let left = found - self.body.len();
            self.piece(reader, left, found).await?;
        }
        self.head.clear();
        let frame = decode_request(&std::mem::take(&mut self.body))?;
        Ok(Some(Incoming::Request(frame)))
    }

    /// Reads a piece of at most `left` bytes of a frame.
    async fn piece<R>(&mut self, reader: &mut R, left: usize, found: usize) -> Result<(), FrameError>
    where
        R: AsyncRead + Unpin,
    {
        self.body.reserve(left.min(PIECE));
        let got = reader.take(left as u64).read_buf(&mut self.body).await?;
        if got == 0 {
            return Err(FrameError::Broken(format!("{} of {found} bytes", found - left)));
        }
        Ok(())
    }

    /// Reads a frame that is too large to its end, keeping its beginning only.
    async fn pass_over<R>(&mut self, reader: &mut R, found: usize) -> Result<Incoming, FrameError>
    where
        R: AsyncRead + Unpin,
    {
        while self.passed < found {
            let kept = self.body.len();
            self.piece(reader, found - self.passed, found).await?;
            self.passed += self.body.len() - kept;
            self.body.truncate(BEGINNING);
        }
        let id = self.body.split_first().and_then(|(_, mut rest)| {
            rmpv::decode::read_value(&mut rest)
                .ok()
                .and_then(|id| id.as_u64())
        });
        self.head.clear();
        self.body.clear();
        self.passed = 0;
        let limit = self.limit;
        Ok(Incoming::TooLarge {
            id,
            error: FrameError::TooLarge { found, limit },
        })
    }
}

/// Reads the next request; `None` when the child closed its end. Must not be cancelled in the middle of a frame.
///
/// # Errors
/// When the bytes are no frame, or too many.
pub async fn read_request<R>(reader: &mut R, limit: usize) -> Result<Option<RequestFrame>, FrameError>
where
    R: AsyncRead + Unpin,
{
    match FrameReader::new(limit).next(reader).await? {
        Some(Incoming::Request(frame)) => Ok(Some(frame)),
        Some(Incoming::TooLarge { error, .. }) => Err(error),
        None => Ok(None),
    }
}

fn decode_request(bytes: &[u8]) -> Result<RequestFrame, FrameError> {
    let broken = |why: &str| FrameError::Broken(why.to_owned());
    let mut rest = bytes;
    let value = rmpv::decode::read_value_with_max_depth(&mut rest, 200)
        .map_err(|error| FrameError::Broken(error.to_string()))?;
    let Packed::Array(parts) = value else {
        return Err(broken("it is not an array"));
    };
    let mut parts = parts.into_iter();
    let id = parts
        .next()
        .and_then(|id| id.as_u64())
        .ok_or_else(|| broken("it has no number"))?;
    let body = to_json(parts.next().unwrap_or(Packed::Nil));
    if body.get("type").and_then(Value::as_str).is_none() {
        return Err(broken("its body has no type"));
    }
    Ok(RequestFrame { id, body })
}

/// Sends a reply: a body, or an error, or neither for a plain acknowledgement.
///
/// # Errors
/// When the socket broke.
pub async fn write_reply<W>(
    writer: &mut W,
    id: u64,
    body: Option<&Value>,
    error: Option<&Value>,
) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin,
{
    writer.write_all(&reply_bytes(id, body, error)?).await?;
    Ok(())
}

/// Sends a reply with a file descriptor beside it, of which the child gets a copy.
///
/// # Errors
/// When the socket broke.
pub async fn write_reply_with(
    socket: &mut UnixStream,
    id: u64,
    body: &Value,
    descriptor: BorrowedFd<'_>,
) -> Result<(), FrameError> {
    let bytes = reply_bytes(id, Some(body), None)?;
    let numbers = [descriptor.as_raw_fd()];
    let sent = socket
        .async_io(Interest::WRITABLE, || {
            let sent = sendmsg::<()>(
                socket.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                &[ControlMessage::ScmRights(&numbers)],
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            sent.map_err(std::io::Error::from)
        })
        .await?;
    // The descriptor went with the first byte.
    socket.write_all(&bytes[sent..]).await?;
    Ok(())
}

fn reply_bytes(id: u64, body: Option<&Value>, error: Option<&Value>) -> Result<Vec<u8>, FrameError> {
    let packed = |value: Option<&Value>| value.map_or(Packed::Nil, from_json);
    let parts = Packed::Array(vec![Packed::from(id), packed(body), packed(error)]);
    let mut bytes = vec![0; 4];
    rmpv::encode::write_value(&mut bytes, &parts).map_err(|error| FrameError::Broken(error.to_string()))?;
    let length = u32::try_from(bytes.len() - 4).map_err(|_| FrameError::TooLarge {
        found: bytes.len(),
        limit: u32::MAX as usize,
    })?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

fn to_json(value: Packed) -> Value {
    match value {
        Packed::Nil => Value::Null,
        Packed::Boolean(yes) => Value::Bool(yes),
        Packed::Integer(n) => n
            .as_i64()
            .map(Value::from)
            .or_else(|| n.as_u64().map(Value::from))
            .unwrap_or(Value::Null),
        Packed::F32(n) => Number::from_f64(f64::from(n)).map_or(Value::Null, Value::Number),
        Packed::F64(n) => Number::from_f64(n).map_or(Value::Null, Value::Number),
        Packed::String(text) => json::text(String::from_utf8_lossy(text.as_bytes())),
        Packed::Binary(bytes) => Value::String(base64::engine::general_purpose::STANDARD.encode(bytes)),
        Packed::Array(items) => Value::Array(items.into_iter().map(to_json).collect()),
        Packed::Map(entries) => {
            let text = |key: Packed| match key.as_str() {
                Some(text) if text.starts_with(json::MARK) => format!("{}{text}", json::MARK),
                Some(text) => text.to_owned(),
                None => key.to_string(),
            };
            Value::Object(
                entries
                    .into_iter()
                    .map(|(key, value)| (text(key), to_json(value)))
                    .collect::<Map<_, _>>(),
            )
        }
        Packed::Ext(LARGE, digits) => std::str::from_utf8(&digits).map_or(Value::Null, json::integer),
        Packed::Ext(-1, bytes) => instant(&bytes).map_or(Value::Null, Value::String),
        Packed::Ext(..) => Value::Null,
    }
}

/// msgpack's timestamp extension as RFC 3339 text with microseconds.
fn instant(bytes: &[u8]) -> Option<String> {
    let (seconds, nanos) = match bytes.len() {
        4 => (i64::from(u32::from_be_bytes(bytes.try_into().ok()?)), 0),
        8 => {
            let word = u64::from_be_bytes(bytes.try_into().ok()?);
            (
                i64::try_from(word & 0x3_ffff_ffff).ok()?,
                u32::try_from(word >> 34).ok()?,
            )
        }
        12 => (
            i64::from_be_bytes(bytes[4..].try_into().ok()?),
            u32::from_be_bytes(bytes[..4].try_into().ok()?),
        ),
        _ => return None,
    };
    let at = chrono::DateTime::from_timestamp(seconds, nanos)?;
    Some(at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
}

fn from_json(value: &Value) -> Packed {
    match value {
        Value::Null => Packed::Nil,
        Value::Bool(yes) => Packed::Boolean(*yes),
        Value::Number(n) => n
            .as_i64()
            .map(Packed::from)
            .or_else(|| n.as_u64().map(Packed::from))
            .or_else(|| n.as_f64().map(Packed::from))
            .unwrap_or(Packed::Nil),
        Value::String(text) => match Text::of(text) {
            Text::Plain(text) => Packed::from(text),
            Text::Integer(digits) => Packed::Ext(LARGE, digits.as_bytes().to_vec()),
        },
        Value::Array(items) => Packed::Array(items.iter().map(from_json).collect()),
        Value::Object(entries) => Packed::Map(
            entries
                .iter()
                .map(|(key, value)| (Packed::from(json::key_text(key)), from_json(value)))
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn framed(value: &Packed) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        rmpv::encode::write_value(&mut bytes, value).unwrap();
        let length = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    #[tokio::test]
    async fn requests_are_read_and_instants_become_text() {
        let body = Packed::Map(vec![
            (Packed::from("type"), Packed::from("SucceedTask")),
            (
                Packed::from("end_date"),
                Packed::Ext(-1, 5u32.to_be_bytes().to_vec()),
            ),
            (Packed::from("n"), Packed::from(1.5)),
        ]);
        let bytes = framed(&Packed::Array(vec![Packed::from(7), body, Packed::Map(vec![])]));
        let frame = read_request(&mut &bytes[..], 1 << 20).await.unwrap().unwrap();
        assert_eq!(frame.id, 7);
        assert_eq!(
            frame.body,
            json!({"type": "SucceedTask", "end_date": "1970-01-01T00:00:05.000000Z", "n": 1.5})
        );
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error_and_never_a_large_allocation() {
        assert!(matches!(read_request(&mut &b""[..], 10).await, Ok(None)));
        let huge = [0xff, 0xff, 0xff, 0xff, 1, 2, 3];
        assert!(matches!(
            read_request(&mut &huge[..], 1 << 20).await,
            Err(FrameError::Broken(_))
        ));
        let short = [0, 0, 0, 9, 1];
        assert!(matches!(
            read_request(&mut &short[..], 1 << 20).await,
            Err(FrameError::Broken(_))
        ));
        for nonsense in [
            &[0, 0, 0, 1, 0xc1][..],
            &[0, 0, 0, 1, 0x90],
            &[0, 0, 0, 2, 0x91, 0x01],
        ] {
            assert!(matches!(
                read_request(&mut &nonsense[..], 1 << 20).await,
                Err(FrameError::Broken(_))
            ));
        }
    }

    fn said(id: u64, text: &str) -> Vec<u8> {
        let body = Packed::Map(vec![
            (Packed::from("type"), Packed::from("SetXCom")),
            (Packed::from("value"), Packed::from(text)),
        ]);
        framed(&Packed::Array(vec![Packed::from(id), body]))
    }

    #[tokio::test]
    async fn a_frame_that_is_too_large_is_passed_over_and_the_next_one_read() {
        let bytes = [said(300, &"x".repeat(100_000)), said(301, "y")].concat();
        let (mut reader, mut socket) = (FrameReader::new(50_000), &bytes[..]);
        let first = reader.next(&mut socket).await.unwrap().unwrap();
        assert!(
            matches!(first, Incoming::TooLarge { id: Some(300), error: FrameError::TooLarge { found, limit: 50_000 } } if found > 100_000)
        );
        let second = reader.next(&mut socket).await.unwrap().unwrap();
        assert!(matches!(second, Incoming::Request(frame) if frame.id == 301 && frame.body["value"] == "y"));
        assert!(reader.next(&mut socket).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_read_that_is_cancelled_loses_nothing() {
        let bytes = said(7, &"z".repeat(2_000));
        let (mut writer, mut socket) = tokio::io::duplex(1);
        let sending = async move { writer.write_all(&bytes).await };
        let mut reader = FrameReader::within(1 << 20, FrameReader::room_for(1 << 20));
        let mut cancelled = 0;
        let reading = async {
            loop {
                tokio::select! {
                    biased;
                    frame = reader.next(&mut socket) => break frame.unwrap().unwrap(),
                    () = tokio::task::yield_now() => cancelled += 1,
                }
            }
        };
        let (sent, frame) = tokio::join!(sending, reading);
        sent.unwrap();
        assert!(cancelled > 100, "cancelled {cancelled} times");
        assert!(
            matches!(frame, Incoming::Request(frame) if frame.body["value"].as_str().unwrap().len() == 2_000)
        );
    }

    #[test]
    fn values_pass_to_the_child_and_back_unchanged() {
        let text = format!(
            "{{\"a\":[-1,18446744073709551615,{large},-{large},1.0,1e+300,\"{large}\",\"\u{fdd0}1\"],\"\u{fdd0}{large}\":null}}",
            large = "7".repeat(400)
        );
        let value = json::read(&text).unwrap();
        assert!(json::has_large(&value));
        let back = to_json(from_json(&value));
        assert_eq!(json::write(&back), text);
    }

    #[tokio::test]
    async fn replies_have_three_parts() {
        let mut bytes = Vec::new();
        write_reply(
            &mut bytes,
            3,
            Some(&json!({"type": "OKResponse", "ok": true})),
            None,
        )
        .await
        .unwrap();
        let value = rmpv::decode::read_value(&mut &bytes[4..]).unwrap();
        assert_eq!(value[0].as_u64(), Some(3));
        assert_eq!(value[1]["ok"].as_bool(), Some(true));
        assert!(value[2].is_nil());
    }
}
