//! Messages on the wire: a tag byte, a length, a body.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::{ServerError, WireError};
use crate::stream::WireStream;

/// Longest message that is read, in bytes, where nothing else is said. WAL comes in pieces of 128 KiB; rows of our own queries are small.
pub const MESSAGE_LEN_MAX: usize = 64 << 20;
/// The same of a logical stream: a change of a row is one message, however long its values are, and Postgres writes none that is longer, as its own
/// buffers end there. Memory is taken as it comes.
pub const CHANGE_LEN_MAX: usize = 1 << 30;
/// Room that is made for a message whose beginning says that it is long.
const AHEAD_LEN: usize = 16 << 20;
const READ_BUFFER_LEN: usize = 256 << 10;
/// What comes in bulk is waited for in pieces of this many bytes: a server sends 8 KiB at a time, and each would wake two processes.
const GATHERED_LEN: usize = 64 << 10;
/// ... once so many bytes have come without a pause.
const BULK_LEN: usize = 1 << 20;
/// What lasts this long is a pause.
const PAUSE: Duration = Duration::from_millis(2);
/// The tag and the length before copied data.
pub(crate) const COPY_HEADER_LEN: usize = 5;

/// A message's tag and body.
#[derive(Debug)]
pub(crate) struct Message {
    pub tag: u8,
    pub body: Bytes,
}

/// Reads and writes messages.
pub(crate) struct MessageStream {
    stream: WireStream,
    received: BytesMut,
    /// Longest message that is read.
    len_max: usize,
    /// Bytes of bulk that have come since the last pause.
    unpaused: usize,
    /// Whether the kernel tells only of pieces of [`GATHERED_LEN`].
    is_gathering: bool,
}

impl MessageStream {
    pub(crate) fn new(stream: WireStream) -> MessageStream {
        let received = BytesMut::with_capacity(READ_BUFFER_LEN);
        MessageStream { stream, received, len_max: MESSAGE_LEN_MAX, unpaused: 0, is_gathering: false }
    }

    /// From here on, messages may be as long as [`CHANGE_LEN_MAX`].
    pub(crate) fn allow_long_changes(&mut self) {
        self.len_max = CHANGE_LEN_MAX;
    }

    /// The next message, whatever it is. Cancel-safe: what was read stays.
    pub(crate) async fn read(&mut self) -> Result<Message, WireError> {
        loop {
            if let Some(message) = self.parse()? {
                return Ok(message);
            }
            self.receive().await?;
        }
    }

    /// Waits for more bytes, and keeps them. Cancel-safe.
    pub(crate) async fn receive(&mut self) -> Result<(), WireError> {
        if self.received.capacity() - self.received.len() < READ_BUFFER_LEN / 4 {
            self.received.reserve(READ_BUFFER_LEN);
        }
        is_open(self.stream.read_buf(&mut self.received).await)
    }

    /// Waits for more bytes of bulk, and keeps them: for many at once while they come without pauses. Cancel-safe.
    pub(crate) async fn receive_bulk(&mut self) -> Result<(), WireError> {
        let before = self.received.len();
        self.gather(self.unpaused >= BULK_LEN);
        if self.is_gathering {
            match tokio::time::timeout(PAUSE, self.receive()).await {
                Ok(received) => received?,
                Err(_) => {
                    self.end_bulk();
                    self.receive().await?;
                }
            }
        } else {
            self.receive().await?;
        }
        self.unpaused += self.received.len() - before;
        Ok(())
    }

    /// From here on, everything is told of as it comes.
    pub(crate) fn end_bulk(&mut self) {
        self.unpaused = 0;
        self.gather(false);
    }

    fn gather(&mut self, is_gathering: bool) {
        if self.is_gathering != is_gathering {
            self.is_gathering = is_gathering;
            self.stream.tell_from(if is_gathering { GATHERED_LEN as libc::c_int } else { 1 });
        }
    }

    /// Moves what has come of copied data to `piece`, up to another message or until `piece` holds `enough` bytes. `left`: bytes of a
    /// message that are still to come when its beginning was moved before, and afterwards.
    pub(crate) fn take_copy_data(
        &mut self,
        piece: &mut BytesMut,
        left: &mut usize,
        enough: usize,
    ) -> Result<(), WireError> {
        let received = &self.received[..];
        let mut at = 0;
        loop {
            let taken = (received.len() - at).min(*left).min(enough.saturating_sub(piece.len()));
            piece.extend_from_slice(&received[at..at + taken]);
            at += taken;
            *left -= taken;
            let Some(header) = received.get(at..at + COPY_HEADER_LEN).filter(|header| *left == 0 && header[0] == b'd')
            else {
                break;
            };
            let length = u32::from_be_bytes(header[1..].try_into().expect("4 bytes")) as usize;
            *left = length.checked_sub(4).ok_or_else(|| WireError::protocol(format!("a message of {length} bytes")))?;
            at += COPY_HEADER_LEN;
        }
        self.received.advance(at);
        Ok(())
    }

    /// Whether the next message is copied data, as far as anything has come of it.
    pub(crate) fn is_copy_data_next(&self) -> bool {
        self.received.first().is_none_or(|tag| *tag == b'd')
    }

    fn parse(&mut self) -> Result<Option<Message>, WireError> {
        if self.received.len() < 5 {
            return Ok(None);
        }
        let length = u32::from_be_bytes(self.received[1..5].try_into().expect("4 bytes")) as usize;
        if !(4..=self.len_max).contains(&length) {
            let most = self.len_max;
            return Err(WireError::protocol(format!("a message of {length} bytes, where {most} are the most")));
        }
        if self.received.len() < length + 1 {
            self.received.reserve((length + 1 - self.received.len()).min(AHEAD_LEN));
            return Ok(None);
        }
        let mut message = self.received.split_to(length + 1).freeze();
        let tag = message[0];
        message.advance(5);
        Ok(Some(Message { tag, body: message }))
    }

    /// The next message that isn't a notice, a parameter or a notification; an error that the server reports is an error.
    pub(crate) async fn expect(&mut self) -> Result<Message, WireError> {
        loop {
            if let Some(message) = heard(self.read().await?)? {
                return Ok(message);
            }
        }
    }

    /// Writes a part of `out`, unless something comes first: then `true`. That is kept, as is what was not written. Cancel-safe.
    pub(crate) async fn write_or_hear(&mut self, out: &mut impl Buf) -> Result<bool, WireError> {
        if !self.received.is_empty() {
            return Ok(true);
        }
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        tokio::select! {
            biased;
            read = reader.read_buf(&mut self.received) => is_open(read).map(|()| true),
            written = writer.write_buf(out) => match written? {
                0 => Err(WireError::Closed),
                _ => Ok(false),
            },
        }
    }

    /// Writes all of `out`.
    pub(crate) async fn write_all_of(&mut self, out: &mut impl Buf) -> Result<(), WireError> {
        self.stream.write_all_buf(out).await?;
        Ok(())
    }

    /// Writes bytes that hold whole messages.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }
}

/// What a read says of the connection. A server that is ended says no farewell, which TLS has a word of its own for.
fn is_open(read: io::Result<usize>) -> Result<(), WireError> {
    match read {
        Ok(0) => Err(WireError::Closed),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(WireError::Closed),
        read => Ok(read.map(drop)?),
    }
}

/// The message, unless it is a notice, a parameter or a notification; an error that the server reports is an error.
pub(crate) fn heard(message: Message) -> Result<Option<Message>, WireError> {
    match message.tag {
        b'E' => Err(WireError::Server(Box::new(parse_error(&message.body)))),
        b'N' => {
            let notice = parse_error(&message.body);
            tracing::debug!(%notice, "notice from the server");
            Ok(None)
        }
        b'S' | b'A' => Ok(None),
        _ => Ok(Some(message)),
    }
}

/// The fields of an error or a notice.
pub(crate) fn parse_error(body: &[u8]) -> ServerError {
    let mut error = ServerError::default();
    for field in body.split(|&byte| byte == 0).filter(|field| !field.is_empty()) {
        let text = String::from_utf8_lossy(&field[1..]).into_owned();
        match field[0] {
            // The plain severity comes as well; this one is never translated.
            b'V' => error.severity = text,
            b'S' if error.severity.is_empty() => error.severity = text,
            b'C' => error.code = text,
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            b'P' => error.position = text.parse().ok(),
            b'W' => error.context = Some(text),
            _ => {}
        }
    }
    error
}

/// Reads a message's body from front to back.
pub(crate) struct Fields {
    body: Bytes,
}

impl Fields {
    pub(crate) fn new(body: Bytes) -> Fields {
        Fields { body }
    }

    fn need(&self, length: usize) -> Result<(), WireError> {
        if self.body.len() < length { Err(WireError::protocol("a message is too short")) } else { Ok(()) }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        self.need(1).map(|()| self.body.get_u8())
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        self.need(2).map(|()| self.body.get_u16())
    }

    pub(crate) fn i32(&mut self) -> Result<i32, WireError> {
        self.need(4).map(|()| self.body.get_i32())
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.need(8).map(|()| self.body.get_u64())
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Result<Bytes, WireError> {
        self.need(length).map(|()| self.body.split_to(length))
    }

    /// Text up to a zero byte.
    pub(crate) fn text(&mut self) -> Result<String, WireError> {
        let end = self.body.iter().position(|&byte| byte == 0);
        let end = end.ok_or_else(|| WireError::protocol("a text without an end"))?;
        let text = self.body.split_to(end);
        self.body.advance(1);
        String::from_utf8(text.to_vec()).map_err(|_| WireError::protocol("a text that is not UTF-8"))
    }

    pub(crate) fn rest(self) -> Bytes {
        self.body
    }
}
