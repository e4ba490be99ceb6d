//! The first packet of a Postgres connection, parsed without I/O.
//!
//! Source: PostgreSQL documentation, "Message Formats" (StartupMessage, SSLRequest, GSSENCRequest, CancelRequest).

use std::net::SocketAddr;

use ardent_api::compute::CLIENT_ADDRESS_SETTING;
use bytes::{BufMut, Bytes, BytesMut};

const CANCEL_REQUEST_CODE: u32 = 80_877_102;
const SSL_REQUEST_CODE: u32 = 80_877_103;
const GSSENC_REQUEST_CODE: u32 = 80_877_104;
const PROTOCOL_MAJOR: u32 = 3;

/// A first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPacket {
    /// The client asks for TLS.
    SslRequest,
    /// The client asks for GSSAPI encryption, which is not offered.
    GssEncRequest,
    /// The client wants a running query cancelled.
    Cancel(CancelKey),
    /// A session begins.
    Startup(StartupParameters),
}

/// What a client needs to cancel a query: process id and secret of `BackendKeyData`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CancelKey {
    /// Process id.
    pub process_id: u32,
    /// Secret.
    pub secret: u32,
}

impl CancelKey {
    /// The 16 bytes of a `CancelRequest` with this key.
    pub fn to_request(self) -> [u8; 16] {
        let mut packet = [0; 16];
        for (slot, word) in packet.chunks_exact_mut(4).zip([16, CANCEL_REQUEST_CODE, self.process_id, self.secret]) {
            slot.copy_from_slice(&word.to_be_bytes());
        }
        packet
    }
}

/// The parameters of a `StartupMessage`, in the client's order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StartupParameters {
    /// Minor protocol version that the client asked for; Postgres up to 17 knows 0 only.
    pub minor_version: u16,
    /// Name and value.
    pub parameters: Vec<(String, String)>,
}

/// What is wrong with a first packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// The length does not fit the kind of packet.
    #[error("invalid length of startup packet")]
    Length,
    /// Neither a known request nor protocol 3.
    #[error("unsupported frontend protocol {0}.{1}: the server supports 3.0")]
    Protocol(u32, u32),
    /// The parameters are not pairs of zero-terminated UTF-8 strings.
    #[error("invalid startup packet layout: expected pairs of terminated strings")]
    Layout,
}

impl FirstPacket {
    /// Parses the packet's bytes after its length field.
    pub fn parse(body: &[u8]) -> Result<FirstPacket, StartupError> {
        let (code, rest) = body.split_first_chunk::<4>().ok_or(StartupError::Length)?;
        match (u32::from_be_bytes(*code), rest.len()) {
            (SSL_REQUEST_CODE, 0) => Ok(FirstPacket::SslRequest),
            (GSSENC_REQUEST_CODE, 0) => Ok(FirstPacket::GssEncRequest),
            (CANCEL_REQUEST_CODE, 8) => {
                let word = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().expect("4 bytes"));
                Ok(FirstPacket::Cancel(CancelKey { process_id: word(0), secret: word(4) }))
            }
            (SSL_REQUEST_CODE | GSSENC_REQUEST_CODE | CANCEL_REQUEST_CODE, _) => Err(StartupError::Length),
            (version, _) if version >> 16 == PROTOCOL_MAJOR => {
                StartupParameters::parse((version & 0xFFFF) as u16, rest).map(FirstPacket::Startup)
            }
            (version, _) => Err(StartupError::Protocol(version >> 16, version & 0xFFFF)),
        }
    }
}

impl StartupParameters {
    fn parse(minor_version: u16, mut rest: &[u8]) -> Result<Self, StartupError> {
        let mut parameters = Vec::new();
        loop {
            let name = take_string(&mut rest)?;
            if name.is_empty() {
                break;
            }
            parameters.push((name, take_string(&mut rest)?));
        }
        if rest.is_empty() { Ok(StartupParameters { minor_version, parameters }) } else { Err(StartupError::Layout) }
    }

    /// The value of a parameter, the last one if it was given twice (as Postgres does).
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Sets a parameter once, or removes it.
    pub fn set(&mut self, name: &str, value: Option<String>) {
        self.parameters.retain(|(key, _)| key != name);
        if let Some(value) = value {
            self.parameters.push((name.to_owned(), value));
        }
    }

    /// Says to the compute where the client is, in place of whatever the client said of that itself: the compute's library takes this
    /// parameter for the branch's log. It stands last, and counts for more than `options`.
    pub fn set_client_address(&mut self, peer: SocketAddr) {
        self.parameters.retain(|(key, _)| !key.eq_ignore_ascii_case(CLIENT_ADDRESS_SETTING));
        let address = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        self.parameters.push((CLIENT_ADDRESS_SETTING.to_owned(), address.to_string()));
    }

    /// The protocol extensions that the client asked for, by name. None is supported.
    pub fn protocol_extensions(&self) -> impl Iterator<Item = &str> {
        self.parameters.iter().map(|(name, _)| name.as_str()).filter(|name| name.starts_with("_pq_."))
    }

    /// The packet to send to a server, protocol 3.0, without protocol extensions.
    pub fn to_packet(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u32(0);
        out.put_u32(PROTOCOL_MAJOR << 16);
        for (name, value) in self.parameters.iter().filter(|(name, _)| !name.starts_with("_pq_.")) {
            for text in [name, value] {
                out.put_slice(text.as_bytes());
                out.put_u8(0);
            }
        }
        out.put_u8(0);
        let length = u32::try_from(out.len()).expect("a startup packet is small");
        out[..4].copy_from_slice(&length.to_be_bytes());
        out.freeze()
    }
}

fn take_string(rest: &mut &[u8]) -> Result<String, StartupError> {
    let end = rest.iter().position(|byte| *byte == 0).ok_or(StartupError::Layout)?;
    let text = std::str::from_utf8(&rest[..end]).map_err(|_| StartupError::Layout)?.to_owned();
    *rest = &rest[end + 1..];
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> StartupParameters {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        StartupParameters { minor_version: 0, parameters: vec![pair("user", "app"), pair("database", "shop")] }
    }

    #[test]
    fn startup_packets_round_trip() {
        let packet = sample().to_packet();
        assert_eq!(FirstPacket::parse(&packet[4..]), Ok(FirstPacket::Startup(sample())));
    }

    #[test]
    fn cancel_requests_round_trip() {
        let key = CancelKey { process_id: 7, secret: 0xDEAD_BEEF };
        assert_eq!(FirstPacket::parse(&key.to_request()[4..]), Ok(FirstPacket::Cancel(key)));
    }

    #[test]
    fn bad_packets_are_named() {
        let check = |body: &[u8], expect: StartupError| assert_eq!(FirstPacket::parse(body), Err(expect));
        check(&[], StartupError::Length);
        check(&[0, 2, 0, 0, 0], StartupError::Protocol(2, 0));
        check(&[0, 3, 0, 0, b'u', 0], StartupError::Layout);
        check(&[0, 3, 0, 0, b'u', 0, 0xFF, 0, 0], StartupError::Layout);
        check(&[0, 3, 0, 0, 0, 1], StartupError::Layout);
        check(&[4, 0xD2, 0x16, 0x2F, 0], StartupError::Length);
    }

    #[test]
    fn what_a_client_says_of_its_address_is_replaced() {
        let check = |peer: &str, expect: &str| {
            let mut startup = sample();
            for name in ["ardent.client_address", "Ardent.CLIENT_address"] {
                startup.parameters.push((name.to_owned(), "203.0.113.9:1".to_owned()));
            }
            startup.set_client_address(peer.parse().expect("an address"));
            let expect = [sample().parameters, vec![("ardent.client_address".to_owned(), expect.to_owned())]].concat();
            assert_eq!(startup.parameters, expect);
        };
        check("192.0.2.1:50000", "192.0.2.1:50000");
        check("[2001:db8::1]:50000", "[2001:db8::1]:50000");
        check("[::ffff:192.0.2.1]:50000", "192.0.2.1:50000");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = FirstPacket::parse(&body);
            let mut startup = vec![0, 3, 0, 0];
            startup.extend(body);
            let _ = FirstPacket::parse(&startup);
        }
    }
}
