//! A page server whose pages are a stopped server's files, and the agent's socket in front of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{File, Permissions, set_permissions};
use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use ardent_api::frame::{FRAME_HEADER_LEN, Frame};
use ardent_api::page_service::{BlockRange, ErrorCode, Request, Response};
use ardent_types::{BLCKSZ, Lsn, RelTag};
use bytes::{Bytes, BytesMut};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

/// Blocks in one segment file of Postgres.
const SEGMENT_BLOCKS: u32 = 131_072;

/// What goes wrong on purpose.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Requests are taken and not answered until this is false again.
    pub hang: bool,
    /// Connections are cut at their next request, and new ones are refused with this reason.
    pub down: Option<String>,
    /// Each connection is cut after so many answers.
    pub cut_after: Option<u64>,
    /// Requests that include this block are refused as unreadable.
    pub unreadable: Option<(RelTag, u32)>,
    /// Pages of this relation fork come with an LSN past the one asked for.
    pub future_lsn: Option<RelTag>,
}

struct Shared {
    files: BTreeMap<RelTag, PathBuf>,
    base_lsn: Lsn,
    faults: Mutex<Faults>,
    changed: Condvar,
    requests: AtomicU64,
    pages: AtomicU64,
    closing: AtomicBool,
}

/// Serves until dropped. Its threads end with their connections.
pub struct FilePageServer {
    shared: Arc<Shared>,
    socket: PathBuf,
}

impl FilePageServer {
    /// Listens on `socket` and serves the relation forks in `files` (first segment files) at `base_lsn`.
    pub fn start(socket: &Path, files: BTreeMap<RelTag, PathBuf>, base_lsn: Lsn) -> Self {
        let listener = UnixListener::bind(socket).expect("the agent's socket can be bound");
        set_permissions(socket, Permissions::from_mode(0o777)).expect("a socket's mode can be set");
        let shared = Arc::new(Shared {
            files,
            base_lsn,
            faults: Mutex::default(),
            changed: Condvar::new(),
            requests: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            closing: AtomicBool::new(false),
        });
        let served = Arc::clone(&shared);
        thread::spawn(move || {
            for backend in listener.incoming().map_while(Result::ok) {
                if served.closing.load(Ordering::SeqCst) {
                    break;
                }
                hand_over(&served, &backend);
            }
        });
        FilePageServer { shared, socket: socket.to_owned() }
    }

    /// Changes the faults.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.faults());
        self.shared.changed.notify_all();
    }

    /// Requests received so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Pages sent so far.
    pub fn pages(&self) -> u64 {
        self.shared.pages.load(Ordering::SeqCst)
    }
}

impl Drop for FilePageServer {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.set_faults(|faults| *faults = Faults { down: Some("closing".into()), ..Faults::default() });
        // Wakes the listener, which then ends.
        let _ = UnixStream::connect(&self.socket);
    }
}

impl Shared {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().expect("no holder panics")
    }
}

/// What the agent does: one byte and a connection, or a 0 byte and the reason why not.
fn hand_over(shared: &Arc<Shared>, backend: &UnixStream) {
    if let Some(reason) = shared.faults().down.clone() {
        let mut backend = backend;
        // A backend that is gone needs no reason.
        let _ = backend.write_all(&[&[0], reason.as_bytes()].concat());
        return;
    }
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets can be made");
    let descriptors = [theirs.as_raw_fd()];
    let sent = sendmsg::<UnixAddr>(
        backend.as_raw_fd(),
        &[IoSlice::new(&[1])],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    if sent.is_ok() {
        let shared = Arc::clone(shared);
        thread::spawn(move || serve(&shared, ours));
    }
}

fn serve(shared: &Shared, mut backend: UnixStream) {
    let mut answers = 0;
    let mut segments = Segments::default();
    while let Some(request) = receive(&mut backend) {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let mut faults = shared.faults();
        while faults.hang && faults.down.is_none() {
            faults = shared.changed.wait(faults).expect("no holder panics");
        }
        let faults_now = faults.clone();
        drop(faults);
        if faults_now.down.is_some() || faults_now.cut_after.is_some_and(|limit| answers >= limit) {
            return;
        }
        let mut out = BytesMut::new();
        answer(shared, &mut segments, &faults_now, request).encode(&mut out);
        if backend.write_all(&out).is_err() {
            return;
        }
        answers += 1;
    }
}

fn receive(backend: &mut UnixStream) -> Option<Request> {
    let mut header = [0; FRAME_HEADER_LEN];
    backend.read_exact(&mut header).ok()?;
    let (kind, length) = Frame::parse_header(header).expect("the library sends valid frames");
    let mut payload = vec![0; length];
    backend.read_exact(&mut payload).ok()?;
    Some(Request::decode(Frame { kind, payload: Bytes::from(payload) }).expect("the library sends valid requests"))
}

/// Segment files that one connection has open.
#[derive(Default)]
struct Segments {
    open: BTreeMap<(RelTag, u32), File>,
}

impl Segments {
    /// Reads as many of the wanted pages as one segment holds; None: they don't exist.
    fn read(&mut self, files: &BTreeMap<RelTag, PathBuf>, rel: RelTag, range: BlockRange) -> Option<Vec<u8>> {
        let (segment, block) = (range.start / SEGMENT_BLOCKS, range.start % SEGMENT_BLOCKS);
        let file = match self.open.entry((rel, segment)) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(closed) => {
                let first = files.get(&rel)?;
                let path = if segment == 0 { first.clone() } else { format!("{}.{segment}", first.display()).into() };
                closed.insert(File::open(path).ok()?)
            }
        };
        let mut pages = vec![0; range.count.min(SEGMENT_BLOCKS - block) as usize * BLCKSZ];
        file.read_exact_at(&mut pages, u64::from(block) * BLCKSZ as u64).ok()?;
        Some(pages)
    }
}

fn answer(shared: &Shared, segments: &mut Segments, faults: &Faults, request: Request) -> Response {
    let Request::GetPages { id, lsn, rel, ranges } = request else { panic!("the library asks for pages only") };
    assert_eq!(lsn, shared.base_lsn, "absent pages are read at the base LSN");
    let mut pages = Vec::new();
    for mut range in ranges {
        if let Some((bad, block)) = faults.unreadable
            && bad == rel
            && (range.start..range.start + range.count).contains(&block)
        {
            let message = format!("record 0/1234 of {rel} block {block} cannot be applied");
            return Response::Error { id, code: ErrorCode::Unreadable, message };
        }
        while range.count > 0 {
            let Some(read) = segments.read(&shared.files, rel, range) else {
                let message = format!("{rel} does not have the blocks {range:?}");
                return Response::Error { id, code: ErrorCode::NotFound, message };
            };
            let count = (read.len() / BLCKSZ) as u32;
            range = BlockRange { start: range.start + count, count: range.count - count };
            pages.extend(read);
        }
    }
    if faults.future_lsn == Some(rel) {
        pages[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    }
    shared.pages.fetch_add((pages.len() / BLCKSZ) as u64, Ordering::SeqCst);
    Response::Pages { id, pages: Bytes::from(pages) }
}
