//! The server's HTTP API, as commands use it.

use std::io::{self, BufRead as _, BufReader};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use ardent_api::control::{ApiErrorCode, ErrorInfo, ErrorReply};

use crate::config::Session;
use crate::failure::Failure;

/// Longest wait for an answer: the server's own deadlines are shorter.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest answer, in bytes, that is held in memory.
const ANSWER_LEN_MAX: u64 = 64 << 20;
/// Bytes of a long answer that are read at once.
const READ_LEN: usize = 128 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of the API.
pub struct Api {
    /// For what changes nothing: keeps its connections.
    reading: ureq::Agent,
    /// For all else: makes a connection for each request. One that was kept may be closed by the server just when a request is on its way, and
    /// whether that was done would not be known.
    agent: ureq::Agent,
    session: Session,
    /// Longest wait for an answer that is no long one.
    patience: Duration,
}

impl Api {
    /// A client with the settings that apply here.
    pub fn new(url_flag: Option<&str>) -> Result<Self, Failure> {
        Ok(Self::with_session(Session::resolve(url_flag)?))
    }

    /// The same, which waits for an answer no longer than this.
    pub fn impatient(url_flag: Option<&str>, patience: Duration) -> Result<Self, Failure> {
        Ok(Api { patience, ..Self::new(url_flag)? })
    }

    /// A client for the same, which waits for an answer no longer than this.
    pub fn with_patience(&self, patience: Duration) -> Self {
        let Api { reading, agent, session, .. } = self;
        Api { reading: reading.clone(), agent: agent.clone(), session: session.clone(), patience }
    }

    /// A client for this server and token.
    pub fn with_session(session: Session) -> Self {
        let config = || {
            ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_connect(Some(CONNECT_TIMEOUT))
                // The server is this host's or a private one: a proxy for the web has no part in it, and must not see the token.
                .proxy(None)
        };
        Api {
            reading: config().build().into(),
            agent: config().max_idle_connections(0).build().into(),
            session,
            patience: ANSWER_TIMEOUT,
        }
    }

    /// The server's address.
    pub fn url(&self) -> &str {
        &self.session.url
    }

    /// `GET`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let ask = |agent: &ureq::Agent| self.prepare(agent.get(self.address(path))).call();
        let answer = match ask(&self.reading) {
            // Over a connection of its own it meets no earlier end.
            Err(ureq::Error::Io(error)) if is_closed(&error) => ask(&self.agent),
            answer => answer,
        };
        self.answer(answer)
    }

    /// `DELETE`.
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(self.prepare(self.agent.delete(self.address(path))).call())
    }

    /// `POST` with a body.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        self.answer(self.prepare(self.agent.post(self.address(path))).send_json(body))
    }

    /// `POST` with a body, answered by something that may be longer than memory holds, after any time. It is read as it comes.
    pub fn post_long<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let mut request = self.agent.post(self.address(path));
        if let Some(token) = &self.session.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.send_json(body).map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(response));
        }
        let body = BufReader::with_capacity(READ_LEN, response.into_body().into_reader());
        serde_json::from_reader(body).map_err(|error| {
            if error.is_io() || error.is_eof() {
                let message = "the server's answer ends in the middle";
                return Failure::local(message, &error).hint("its log says why; give the command again");
            }
            self.not_ours(&error)
        })
    }

    /// `POST` with a body; the answer is read as it comes.
    pub fn post_stream(&self, path: &str, body: &impl Serialize) -> Result<Box<dyn std::io::Read>, Failure> {
        let mut request = self.agent.post(self.address(path));
        if let Some(token) = &self.session.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.send_json(body).map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(response));
        }
        Ok(Box::new(response.into_body().into_reader()))
    }

    /// `POST` of a file, or of nothing, answered by JSON values one after the other, each read as it comes and given to `each`.
    pub fn post_file<T: DeserializeOwned>(
        &self,
        path: &str,
        file: Option<std::fs::File>,
        mut each: impl FnMut(T) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut request = self.agent.post(self.address(path));
        if let Some(token) = &self.session.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let sent = match file {
            Some(file) => request.header("content-type", "application/octet-stream").send(file),
            None => request.send_empty(),
        };
        let response = sent.map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(response));
        }
        let body = BufReader::with_capacity(READ_LEN, response.into_body().into_reader());
        for value in serde_json::Deserializer::from_reader(body).into_iter() {
            each(value.map_err(|error: serde_json::Error| {
                if error.is_io() || error.is_eof() {
                    return Failure::local("the server's answer ends in the middle", &error).hint("its log says why");
                }
                self.not_ours(&error)
            })?)?;
        }
        Ok(())
    }

    /// `PATCH` with a body.
    pub fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        self.answer(self.prepare(self.agent.patch(self.address(path))).send_json(body))
    }

    /// `POST` answered by JSON lines, each given to `each` as it comes.
    pub fn post_lines<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        mut each: impl FnMut(T) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut request = self.agent.post(self.address(path));
        if let Some(token) = &self.session.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.send_json(body).map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(response));
        }
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.map_err(|error| Failure::local("the connection to the server was lost", &error))?;
            each(serde_json::from_str(&line).map_err(|error| self.not_ours(&error))?)?;
        }
        Ok(())
    }

    fn address(&self, path: &str) -> String {
        format!("{}{path}", self.session.url)
    }

    fn prepare<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        let request = request.config().timeout_global(Some(self.patience)).build();
        match &self.session.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn answer<T: DeserializeOwned>(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, Failure> {
        let mut response = answer.map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(response));
        }
        let body = response.body_mut().with_config().limit(ANSWER_LEN_MAX).read_to_string();
        let text = body.map_err(|error| self.unreachable(&error))?;
        serde_json::from_str(&text).map_err(|error| self.not_ours(&error))
    }

    fn refused(&self, mut response: ureq::http::Response<ureq::Body>) -> Failure {
        let status = response.status();
        let text = response.body_mut().read_to_string().unwrap_or_default();
        match serde_json::from_str::<ErrorReply>(&text) {
            Ok(reply) => reply.error.into(),
            Err(_) => ErrorInfo::new(
                ApiErrorCode::StorageUnavailable,
                format!("{} answered {status}, not as an ardent server does", self.session.url),
            )
            .with_hint("see whether the address is right: ardent status --url http://HOST:PORT")
            .into(),
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        if matches!(error, ureq::Error::Timeout(_)) {
            let message = format!("the server at {} did not answer in time", self.session.url);
            return ErrorInfo::new(ApiErrorCode::Timeout, message).with_hint("see its log, or try again").into();
        }
        let message = format!("no ardent server answers at {}: {error}", self.session.url);
        ErrorInfo::new(ApiErrorCode::StorageUnavailable, message)
            .with_hint("start one with ardent up, or say where it is with --url")
            .into()
    }

    fn not_ours(&self, error: &serde_json::Error) -> Failure {
        Failure::local(
            format!("the server at {} sent an answer that this program does not know", self.session.url),
            error,
        )
        .hint("see whether server and client have the same version: ardent status, ardent --version")
    }
}

/// Whether a connection has ended before the answer came.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// The first line of the next request on a connection.
    fn next_request(connection: &TcpStream) -> String {
        let mut reader = BufReader::new(connection);
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a connection can be read");
            line.trim_end().to_owned()
        };
        let first = line();
        let mut body = Vec::new();
        loop {
            let header = line().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(length) = header.strip_prefix("content-length:") {
                body.resize(length.trim().parse().expect("a number"), 0);
            }
        }
        reader.read_exact(&mut body).expect("the body comes");
        first
    }

    fn answer(mut connection: &TcpStream, number: u32) {
        write!(connection, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}")
            .expect("a connection can be written");
    }

    #[test]
    fn what_changes_nothing_goes_over_kept_connections_and_again_where_one_has_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = std::thread::spawn(move || {
            let accept = || listener.accept().expect("a connection").0;
            let first = accept();
            for (path, number) in [("/a", 1), ("/b", 2)] {
                assert_eq!(next_request(&first), format!("GET {path} HTTP/1.1"));
                answer(&first, number);
            }
            // Closed with the request on its way.
            assert_eq!(next_request(&first), "GET /c HTTP/1.1");
            drop(first);
            let second = accept();
            assert_eq!(next_request(&second), "GET /c HTTP/1.1");
            answer(&second, 3);
            let kept = accept();
            assert_eq!(next_request(&kept), "GET /d HTTP/1.1");
            answer(&kept, 4);
            for (request, number) in [("POST /e HTTP/1.1", 5), ("DELETE /f HTTP/1.1", 6)] {
                let own = accept();
                assert_eq!(next_request(&own), request);
                answer(&own, number);
            }
            let refused = accept();
            assert_eq!(next_request(&refused), "POST /g HTTP/1.1");
        });
        let api = Api::with_session(Session { url: format!("http://{address}"), token: None });
        for (path, number) in [("/a", 1), ("/b", 2), ("/c", 3), ("/d", 4)] {
            assert_eq!(api.get::<u32>(path).expect("answered"), number);
        }
        assert_eq!(api.post::<u32>("/e", &()).expect("answered"), 5);
        assert_eq!(api.delete::<u32>("/f").expect("answered"), 6);
        // Whether it was done is not known: it is not sent again.
        let failure = api.post::<u32>("/g", &()).expect_err("the connection was closed");
        assert_eq!(failure.info.code, ApiErrorCode::StorageUnavailable);
        server.join().expect("each request came as expected");
    }
}
