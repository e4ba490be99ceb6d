//! What a TCP connection between hosts needs: its peer can vanish without a word.

use std::io;
use std::mem::size_of_val;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use libc::c_int;
use tokio::net::TcpStream;

/// A peer that has said nothing for this long is asked whether it is there.
const IDLE: Duration = Duration::from_secs(10);
/// How often it is asked again, and how many times.
const ASK_AGAIN: Duration = Duration::from_secs(5);
const ASK_TIMES: c_int = 3;
/// How long what was sent may stay unacknowledged. Longer than a reader that falls behind halts its sender.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

/// Sends what is small at once, and notices a host that is gone: after 25 s of silence, 60 s where something is on its way to it.
/// Without this, who waits for something to come from it waits for ever.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    set(stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set(stream, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, IDLE.as_secs() as c_int)?;
    set(stream, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, ASK_AGAIN.as_secs() as c_int)?;
    set(stream, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, ASK_TIMES)?;
    set(stream, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, UNACKNOWLEDGED_MAX.as_millis() as c_int)
}

fn set(stream: &TcpStream, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the descriptor is open as long as the stream lives, and the value is as long as is said.
    let done = unsafe { libc::setsockopt(stream.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
