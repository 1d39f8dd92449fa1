//! Frames: four bytes of length (big endian), then a msgpack array. From the child `[id, body, trace context?]`, to the
//! child `[id, body, error?]`. Bodies are handled as JSON here; instants (msgpack extension -1) become RFC 3339 text.

use base64::Engine;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rmpv::Value as Packed;
use serde_json::{Map, Number, Value};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

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

/// Reads the next request; `None` when the child closed its end.
///
/// # Errors
/// When the bytes are no frame, or too many.
pub async fn read_request<R>(reader: &mut R, limit: usize) -> Result<Option<RequestFrame>, FrameError>
where
    R: AsyncRead + Unpin,
{
    let mut head = [0; 4];
    match reader.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    }
    let found = u32::from_be_bytes(head) as usize;
    if found > limit {
        return Err(FrameError::TooLarge { found, limit });
    }
    // Read piece by piece: a length alone must not make us allocate.
    let mut bytes = Vec::with_capacity(found.min(64 << 10));
    let got = reader.take(found as u64).read_to_end(&mut bytes).await?;
    if got < found {
        return Err(FrameError::Broken(format!("{got} of {found} bytes")));
    }
    decode_request(&bytes).map(Some)
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
        Packed::String(text) => Value::String(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        Packed::Binary(bytes) => Value::String(base64::engine::general_purpose::STANDARD.encode(bytes)),
        Packed::Array(items) => Value::Array(items.into_iter().map(to_json).collect()),
        Packed::Map(entries) => {
            let text = |key: Packed| key.as_str().map_or_else(|| key.to_string(), str::to_owned);
            Value::Object(
                entries
                    .into_iter()
                    .map(|(key, value)| (text(key), to_json(value)))
                    .collect::<Map<_, _>>(),
            )
        }
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
        Value::String(text) => Packed::from(text.as_str()),
        Value::Array(items) => Packed::Array(items.iter().map(from_json).collect()),
        Value::Object(entries) => Packed::Map(
            entries
                .iter()
                .map(|(key, value)| (Packed::from(key.as_str()), from_json(value)))
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
            Err(FrameError::TooLarge { .. })
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
