//! Sending a base backup of production to a page server.

use ardent_api::page_service::{ImportSpec, ManageReply, ManageRequest, Request, Response};
use ardent_types::Lsn;
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::PageClient;
use crate::error::PageError;

/// Most bytes that one data message carries.
const IMPORT_DATA_LEN_MAX: usize = 1 << 20;

/// An import that has begun. Files follow one after the other; the server speaks up in between only to refuse.
#[derive(Debug)]
pub struct Import<'a> {
    client: &'a mut PageClient,
}

impl PageClient {
    /// Begins an import into the connection's timeline.
    pub async fn import(&mut self, spec: ImportSpec) -> Result<Import<'_>, PageError> {
        self.manage(ManageRequest::ImportBegin { spec }).await?;
        Ok(Import { client: self })
    }
}

impl Import<'_> {
    /// Announces the next file and its length in bytes; [`Self::data`] must add up to it.
    pub async fn file(&mut self, path: &str, length: u64) -> Result<(), PageError> {
        let mut out = BytesMut::new();
        Request::ImportFile { path: path.to_owned(), length }.encode(&mut out);
        self.post(out).await
    }

    /// The next bytes of the file.
    pub async fn data(&mut self, data: Bytes) -> Result<(), PageError> {
        let mut rest = data;
        while !rest.is_empty() {
            let chunk = rest.split_to(rest.len().min(IMPORT_DATA_LEN_MAX));
            let header = Request::import_data_header(chunk.len());
            self.post(Buf::chain(&header[..], chunk)).await?;
        }
        Ok(())
    }

    /// All files have been sent. Returns when they are durable.
    pub async fn finish(self, end_lsn: Lsn) -> Result<(), PageError> {
        match self.client.manage(ManageRequest::ImportFinish { end_lsn }).await? {
            ManageReply::Done => Ok(()),
            reply => Err(self.client.unexpected("the end of an import", &Response::Manage { id: 0, reply })),
        }
    }

    /// Sends a message that has no answer, and notices at once when the server refuses the import meanwhile: a server that
    /// has stopped reading would otherwise leave us writing into a full socket for ever.
    async fn post(&mut self, mut out: impl Buf) -> Result<(), PageError> {
        self.client.step_out()?;
        let addr = self.client.addr().clone();
        let (stream, received) = self.client.stream_mut();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let written = tokio::select! {
            biased;
            read = reader.read_buf(received) => match read {
                Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => Ok(false),
                Err(error) => Err(error),
            },
            written = writer.write_all_buf(&mut out) => written.map(|()| true),
        };
        match written {
            Ok(true) => self.client.finish(()),
            // Something was said, or the connection broke: the reason is (or may be) among what was received.
            Ok(false) => Err(self.refusal(None).await),
            Err(source) => Err(self.refusal(Some(PageError::Lost { addr, source })).await),
        }
    }

    async fn refusal(&mut self, otherwise: Option<PageError>) -> PageError {
        match self.client.receive().await {
            Ok(Response::Error { code, message, .. }) => PageError::Server { code, message },
            Ok(answer) => self.client.unexpected("a file of an import", &answer),
            Err(error) => otherwise.unwrap_or(error),
        }
    }
}
