//! Whether branches can have hostnames on this machine.

use std::net::ToSocketAddrs as _;

use ardent_control::PublicAddress;

use crate::args::FrontArgs;

/// Asks the resolver, as any client here would. `*.localhost` is for resolvers to answer by themselves, and many don't.
pub fn localhost_names_resolve() -> bool {
    const PROBE: (&str, u16) = ("ardent-probe.localhost", 0);
    PROBE.to_socket_addrs().is_ok_and(|mut addresses| addresses.next().is_some())
}

/// How clients reach branches, and the address behind it.
pub fn public_address(front: &FrontArgs) -> (PublicAddress, String) {
    let port = front.listen.port();
    let listen = front.listen.ip();
    let address = if listen.is_unspecified() { "127.0.0.1".to_owned() } else { listen.to_string() };
    let public = match &front.host {
        Some(domain) => PublicAddress { host: domain.trim_start_matches("*.").to_owned(), port, wildcard: true },
        None if (listen.is_loopback() || listen.is_unspecified()) && localhost_names_resolve() => {
            PublicAddress { host: "localhost".to_owned(), port, wildcard: true }
        }
        None => PublicAddress { host: address.clone(), port, wildcard: false },
    };
    (public, address)
}
