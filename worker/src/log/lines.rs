//! Bytes put together to lines.

/// Bytes of the end of an overlong line that are kept beside its beginning.
const TAIL: usize = 16 << 10;
/// Bytes of one line that are kept: as much as a task may send as an XCom where `[updraft] max_message_mb` is not set.
pub(crate) const LINE: usize = 64 << 20;

/// One line of output, without its line end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    /// The line, or as much of its beginning as is kept.
    pub(crate) bytes: Vec<u8>,
    /// Bytes that follow and are not kept; 0 for all but overlong lines.
    pub(crate) left_out: u64,
    /// The end of an overlong line; it is not part of `bytes`.
    pub(crate) tail: Vec<u8>,
}

impl Line {
    /// The line as text; bytes that are no UTF-8 are replaced.
    pub(crate) fn into_text(self) -> String {
        String::from_utf8(self.bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    fn add(&mut self, bytes: &[u8]) {
        // Once something is left out, all that follows is.
        let room = if self.left_out > 0 {
            0
        } else {
            LINE.saturating_sub(self.bytes.len())
        };
        let (kept, rest) = bytes.split_at(bytes.len().min(room));
        self.bytes.extend_from_slice(kept);
        if rest.is_empty() {
            return;
        }
        if self.left_out == 0 {
            // Nothing is cut within a character.
            let end = self.bytes.len();
            let start = (end.saturating_sub(4)..end)
                .rev()
                .find(|at| self.bytes[*at] & 0xc0 != 0x80)
                .unwrap_or(end);
            if std::str::from_utf8(&self.bytes[start..]).is_err() {
                self.tail = self.bytes.split_off(start);
                self.left_out = self.tail.len() as u64;
            }
        }
        self.left_out += rest.len() as u64;
        self.tail
            .extend_from_slice(&rest[rest.len().saturating_sub(TAIL)..]);
        if self.tail.len() > 2 * TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
    }
}

/// Splits bytes into lines as they come.
#[derive(Default)]
pub(crate) struct Lines {
    partial: Line,
    is_open: bool,
}

impl Lines {
    /// Adds bytes, and returns the lines that they complete.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.partial.add(&bytes[..end]);
            bytes = &bytes[end + 1..];
            lines.push(self.take());
        }
        self.is_open |= !bytes.is_empty();
        self.partial.add(bytes);
        lines
    }

    /// What is left at the end.
    pub(crate) fn finish(&mut self) -> Option<Line> {
        self.is_open.then(|| self.take())
    }

    fn take(&mut self) -> Line {
        self.is_open = false;
        std::mem::take(&mut self.partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: Vec<Line>) -> Vec<String> {
        lines.into_iter().map(Line::into_text).collect()
    }

    #[test]
    fn lines_are_put_together_over_pieces() {
        let mut lines = Lines::default();
        assert_eq!(texts(lines.push(b"a\nb")), ["a"]);
        assert_eq!(texts(lines.push(b"c\n\n")), ["bc", ""]);
        assert_eq!(lines.finish(), None);
        let long = "ü".repeat(100_000);
        for piece in long.as_bytes().chunks(1001) {
            assert!(lines.push(piece).is_empty());
        }
        assert_eq!(texts(lines.finish().into_iter().collect()), [long]);
    }

    #[test]
    fn an_endless_line_keeps_its_beginning_and_its_end() {
        let mut lines = Lines::default();
        lines.push(b"x");
        // Two bytes each, so that the limit falls within a character.
        let piece = "ü".repeat(1 << 20);
        let pieces = LINE / piece.len() + 1;
        for _ in 0..pieces {
            lines.push(piece.as_bytes());
        }
        let line = lines.push(b"end\n").pop().unwrap();
        let sent = 1 + pieces * piece.len() + 3;
        assert_eq!(line.bytes.len() as u64 + line.left_out, sent as u64);
        assert!(line.bytes.len() <= LINE && line.tail.ends_with("üend".as_bytes()));
        assert!(std::str::from_utf8(&line.bytes).is_ok());
        assert_eq!(texts(lines.push(b"next\n")), ["next"]);
    }
}
