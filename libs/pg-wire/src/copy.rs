//! Rows of a table in bulk: as the server writes them for `COPY ... TO STDOUT`, taken out of their messages, and as it reads them for
//! `COPY ... FROM STDIN`.

use bytes::{Buf, Bytes, BytesMut};

use crate::connection::Connection;
use crate::error::WireError;
use crate::handshake::unexpected;
use crate::message::{COPY_HEADER_LEN, MESSAGE_LEN_MAX, heard};

/// A copy that is under way. The connection can be used for other things once all rows have come, or the server has refused; where this
/// is dropped before, it cannot.
#[derive(Debug)]
pub struct CopyOut<'a> {
    connection: &'a mut Connection,
    /// Bytes that are still to come of a row whose beginning was taken.
    left: usize,
    ended: bool,
}

impl Connection {
    /// Begins a `COPY ... TO STDOUT`, in either format.
    pub async fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>, WireError> {
        self.send_query(sql).await?;
        match self.messages.expect().await {
            Ok(message) if message.tag == b'H' => Ok(CopyOut { connection: self, left: 0, ended: false }),
            Ok(message) => Err(unexpected(message.tag, "the start of a copy")),
            Err(error) => Err(self.refused(error).await),
        }
    }

    /// Begins a `COPY ... FROM STDIN`, in either format.
    pub async fn copy_in(&mut self, sql: &str) -> Result<CopyIn<'_>, WireError> {
        self.send_query(sql).await?;
        match self.messages.expect().await {
            Ok(message) if message.tag == b'G' => Ok(CopyIn { connection: self }),
            Ok(message) => Err(unexpected(message.tag, "the start of a copy")),
            Err(error) => Err(self.refused(error).await),
        }
    }

    /// The error, once the server takes commands again, or has closed the connection: what it said before tells why.
    async fn refused(&mut self, error: WireError) -> WireError {
        match error {
            WireError::Server(_) => match self.read_ready().await {
                Err(later @ WireError::Server(_)) => later,
                _ => error,
            },
            error => error,
        }
    }
}

impl CopyOut<'_> {
    /// Appends rows to `piece` until it holds `enough` bytes, or all have come: then `false`. A piece ends anywhere; one after the other
    /// they are the whole, however long a row is. Cancel-safe: what has come is in `piece`, or comes with the next call.
    pub async fn fill(&mut self, piece: &mut BytesMut, enough: usize) -> Result<bool, WireError> {
        while !self.ended && piece.len() < enough {
            let messages = &mut self.connection.messages;
            messages.take_copy_data(piece, &mut self.left, enough)?;
            if piece.len() >= enough {
                break;
            }
            if self.left > 0 || messages.is_copy_data_next() {
                messages.receive_bulk().await?;
                continue;
            }
            messages.end_bulk();
            match heard(messages.read().await?) {
                Ok(None) => {}
                Ok(Some(message)) => match message.tag {
                    b'c' | b'C' => {}
                    b'Z' => self.ended = true,
                    tag => return Err(unexpected(tag, "a copy")),
                },
                Err(error) => {
                    self.ended = true;
                    return Err(self.connection.refused(error).await);
                }
            }
        }
        Ok(!self.ended)
    }
}

/// A copy to the server that is under way. The connection can be used for other things after [`CopyIn::finish`], and once the server has refused;
/// where this is dropped before, it cannot.
#[derive(Debug)]
pub struct CopyIn<'a> {
    connection: &'a mut Connection,
}

impl CopyIn<'_> {
    /// Sends rows, of which a piece may end anywhere. A server that has refused what came before would let any number of others pass: that is
    /// noticed with the next piece.
    pub async fn send(&mut self, piece: Bytes) -> Result<(), WireError> {
        let length = u32::try_from(piece.len() + 4).ok().filter(|length| *length as usize <= MESSAGE_LEN_MAX);
        let length = length.ok_or_else(|| WireError::protocol(format!("a piece of {} bytes", piece.len())))?;
        let mut header = [b'd'; COPY_HEADER_LEN];
        header[1..].copy_from_slice(&length.to_be_bytes());
        let mut out = Buf::chain(&header[..], piece);
        while out.has_remaining() {
            if self.connection.messages.write_or_hear(&mut out).await? {
                match heard(self.connection.messages.read().await?) {
                    Ok(None) => {}
                    Ok(Some(message)) => return Err(unexpected(message.tag, "a copy")),
                    Err(error) => {
                        // The rest of the message: what follows would be taken for it. A connection that ends as well says no more than the
                        // server did.
                        if self.connection.messages.write_all_of(&mut out).await.is_err() {
                            return Err(error);
                        }
                        return Err(self.connection.refused(error).await);
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends the copy. When this returns, the server has all rows.
    pub async fn finish(self) -> Result<(), WireError> {
        const DONE: [u8; COPY_HEADER_LEN] = [b'c', 0, 0, 0, 4];
        self.connection.messages.write(&DONE).await?;
        match self.connection.read_ready().await {
            Err(error @ WireError::Server(_)) => Err(self.connection.refused(error).await),
            ended => ended,
        }
    }
}
