//! Rows of a table as the server writes them for `COPY ... TO STDOUT`, taken out of their messages in bulk.

use bytes::BytesMut;

use crate::connection::Connection;
use crate::error::WireError;
use crate::handshake::unexpected;
use crate::message::heard;

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

    /// The error, once the server takes commands again.
    async fn refused(&mut self, error: WireError) -> WireError {
        match error {
            WireError::Server(_) => self.read_ready().await.err().unwrap_or(error),
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
                messages.receive().await?;
                continue;
            }
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
