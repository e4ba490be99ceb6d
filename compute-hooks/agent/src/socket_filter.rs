//! A filter of system calls that leaves a sandbox its sockets of Unix and of its own, empty, network, and none besides.
//!
//! A network namespace does not confine every family: through `AF_VSOCK` a program reaches the host of a virtual machine, and
//! other programs of the same one. `io_uring` makes and connects sockets without the calls for it, past any filter, so there is none.
//! The filter is classic BPF, as `seccomp(2)` describes it; bubblewrap installs it.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::FromRawFd as _;

/// Families that Postgres and what runs beside it need: Unix, IPv4, IPv6, and netlink, which lists interfaces.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// `AUDIT_ARCH_*`: the machine whose numbers of system calls are meant.
#[cfg(target_arch = "x86_64")]
const MACHINE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const MACHINE: u32 = 0xC000_00B7;
/// From here on numbers are another interface's (`__X32_SYSCALL_BIT`), with the same calls.
const OTHER_INTERFACE: u32 = 0x4000_0000;

// Offsets in `seccomp_data`.
const NUMBER_AT: u32 = 0;
const MACHINE_AT: u32 = 4;
/// The lower half of the first argument, on machines that store it first.
const FIRST_ARGUMENT_AT: u32 = 16;

// Operations: load a word; jump if equal, or greater or equal; return.
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
// `SECCOMP_RET_*`.
const ALLOW: u32 = 0x7FFF_0000;
const FAIL_WITH: u32 = 0x0005_0000;

/// One instruction (`struct sock_filter`): operation, how many to skip if it holds and if not, and its constant.
type Instruction = (u16, u8, u8, u32);

fn program() -> Vec<Instruction> {
    let refuse = |errno: i32| FAIL_WITH | errno.unsigned_abs();
    let number = |call: libc::c_long| u32::try_from(call).expect("numbers of system calls are small");
    let (socket, ring) = (number(libc::SYS_socket), number(libc::SYS_io_uring_setup));
    let mut program = vec![
        (LOAD, 0, 0, MACHINE_AT),
        (IF_EQUAL, 1, 0, MACHINE),
        // Another machine's calls have other numbers: nothing that runs here needs them.
        (RETURN, 0, 0, refuse(libc::ENOSYS)),
        (LOAD, 0, 0, NUMBER_AT),
        (IF_AT_LEAST, 0, 1, OTHER_INTERFACE),
        (RETURN, 0, 0, refuse(libc::ENOSYS)),
        (IF_EQUAL, 0, 1, ring),
        (RETURN, 0, 0, refuse(libc::EPERM)),
        (IF_EQUAL, 1, 0, socket),
        (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, FIRST_ARGUMENT_AT),
    ];
    for family in FAMILIES {
        program.push((IF_EQUAL, 0, 1, family.unsigned_abs()));
        program.push((RETURN, 0, 0, ALLOW));
    }
    program.push((RETURN, 0, 0, refuse(libc::EAFNOSUPPORT)));
    program
}

/// The filter as bubblewrap reads it, in a file that is in memory alone.
pub(crate) fn file() -> io::Result<File> {
    let mut bytes = Vec::new();
    for (operation, if_so, if_not, constant) in program() {
        bytes.extend_from_slice(&operation.to_ne_bytes());
        bytes.extend_from_slice(&[if_so, if_not]);
        bytes.extend_from_slice(&constant.to_ne_bytes());
    }
    // SAFETY: the name is a C string; what comes back is a descriptor of ours, or negative.
    let fd = unsafe { libc::memfd_create(c"socket-filter".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made, and nothing else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(&bytes)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter says of a call.
    fn run(machine: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        let program = program();
        loop {
            let (operation, if_so, if_not, constant) = program[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { if_so } else { if_not });
            match operation {
                LOAD => {
                    loaded = match constant {
                        NUMBER_AT => number,
                        MACHINE_AT => machine,
                        FIRST_ARGUMENT_AT => argument,
                        other => panic!("nothing is at {other}"),
                    }
                }
                IF_EQUAL => at += jump(loaded == constant),
                IF_AT_LEAST => at += jump(loaded >= constant),
                RETURN => return constant,
                other => panic!("no operation {other}"),
            }
        }
    }

    #[test]
    fn sockets_of_known_families_and_all_other_calls_are_allowed() {
        let socket = u32::try_from(libc::SYS_socket).expect("small");
        for family in FAMILIES {
            assert_eq!(run(MACHINE, socket, family.unsigned_abs()), ALLOW);
        }
        for family in [libc::AF_VSOCK, libc::AF_PACKET, libc::AF_ALG, 0, 255] {
            assert_eq!(run(MACHINE, socket, family.unsigned_abs()), FAIL_WITH | libc::EAFNOSUPPORT.unsigned_abs());
        }
        assert_eq!(run(MACHINE, socket + 1, libc::AF_VSOCK.unsigned_abs()), ALLOW);
        let ring = u32::try_from(libc::SYS_io_uring_setup).expect("small");
        assert_eq!(run(MACHINE, ring, 1), FAIL_WITH | libc::EPERM.unsigned_abs());
        for (machine, number) in [(0x4000_0003, 359), (MACHINE, OTHER_INTERFACE + socket)] {
            assert_eq!(run(machine, number, 1), FAIL_WITH | libc::ENOSYS.unsigned_abs());
        }
    }
}
