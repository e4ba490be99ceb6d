//! How much is free on the server's disks, as `ardent status` and `ardent doctor` say it.

use ardent_api::control::{SafekeeperInfo, StatusReply};

use super::safekeepers::Concern;
use crate::duration::bytes_text;

/// A disk is nearly full with less than this free, or less than one part in [`LOW_SHARE`] of it, whichever is less.
const LOW_BYTES: u64 = 1 << 30;
const LOW_SHARE: u64 = 20;
/// Two looks at one disk see as much free, but for one part in so many of its size.
const SAME_SHARE: u64 = 1000;

/// A disk, and which folders are on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    whose: Vec<String>,
    free_bytes: u64,
    size_bytes: u64,
}

impl Disk {
    fn is_low(&self) -> bool {
        self.free_bytes < LOW_BYTES.min(self.size_bytes / LOW_SHARE)
    }

    /// Whether another look was most likely at the same disk.
    fn is(&self, free_bytes: u64, size_bytes: u64) -> bool {
        self.size_bytes == size_bytes && self.free_bytes.abs_diff(free_bytes) <= size_bytes / SAME_SHARE
    }

    /// `3.0 GB of 10.0 GB free (data directory, safekeeper 1)`.
    fn text(&self) -> String {
        format!("{} of {} free ({})", bytes_text(self.free_bytes), bytes_text(self.size_bytes), self.whose.join(", "))
    }
}

/// The disks that the server and the safekeepers tell of.
pub fn disks(status: &StatusReply, safekeepers: &[SafekeeperInfo]) -> Vec<Disk> {
    let own = ("data directory".to_owned(), status.disk_free_bytes, status.disk_size_bytes);
    let of_safekeepers =
        safekeepers.iter().map(|one| (format!("safekeeper {}", one.number), one.disk_free_bytes, one.disk_size_bytes));
    let mut disks: Vec<Disk> = Vec::new();
    for (whose, free, size) in std::iter::once(own).chain(of_safekeepers) {
        let (Some(free_bytes), Some(size_bytes)) = (free, size) else { continue };
        match disks.iter_mut().find(|disk| disk.is(free_bytes, size_bytes)) {
            Some(disk) => disk.whose.push(whose),
            None => disks.push(Disk { whose: vec![whose], free_bytes, size_bytes }),
        }
    }
    disks
}

/// How much is free on each; `None` where nobody tells.
pub fn text(disks: &[Disk]) -> Option<String> {
    let texts: Vec<String> = disks.iter().map(Disk::text).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// Those that are nearly full.
pub fn concerns(disks: &[Disk]) -> Vec<Concern> {
    let low = disks.iter().filter(|disk| disk.is_low());
    low.map(|disk| Concern {
        message: format!("a disk is nearly full: {}", disk.text()),
        fix: "make room on it or enlarge it: on a full disk nothing is committed, and no branch starts".to_owned(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    fn status(free: Option<u64>, size: Option<u64>) -> StatusReply {
        StatusReply {
            schema_version: 1,
            version: "0".to_owned(),
            started_at: "2026-01-01T00:00:00Z".to_owned(),
            data_dir: "/data".to_owned(),
            proxy_host: "localhost".to_owned(),
            proxy_port: 7432,
            proxy_wildcard: false,
            ca_file: "/data/ca.pem".to_owned(),
            connectors: 0,
            branches: 0,
            computes_running: 0,
            clock_problem: None,
            open_files_max: None,
            disk_free_bytes: free,
            disk_size_bytes: size,
            storage_problems: Vec::new(),
        }
    }

    fn safekeeper(number: u32, free: u64, size: u64) -> SafekeeperInfo {
        SafekeeperInfo {
            number,
            address: format!("unix:/run/{number}"),
            disk: None,
            is_up: true,
            error: None,
            disk_free_bytes: Some(free),
            disk_size_bytes: Some(size),
            kept_for_others_bytes: None,
            archives: None,
            archive_stalls: Vec::new(),
            archive_stalls_total: 0,
        }
    }

    #[test]
    fn a_disk_is_told_once_whoever_is_on_it() {
        let safekeepers = [safekeeper(1, 30 * GB - 4096, 100 * GB), safekeeper(2, 30 * GB, 50 * GB)];
        let disks = disks(&status(Some(30 * GB), Some(100 * GB)), &safekeepers);
        let expect = "30.0 GB of 100.0 GB free (data directory, safekeeper 1); 30.0 GB of 50.0 GB free (safekeeper 2)";
        assert_eq!(text(&disks).as_deref(), Some(expect));
        assert_eq!(concerns(&disks), []);
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_a_concern() {
        let is_low = |free, size| !concerns(&disks(&status(Some(free), Some(size)), &[])).is_empty();
        assert!(is_low(0, GB) && is_low(GB - 1, 1000 * GB), "by size");
        assert!(!is_low(GB, 1000 * GB) && !is_low(GB / 10, GB), "5 % of a small disk, 1 GB of a large one");
        let full = concerns(&disks(&status(None, None), &[safekeeper(2, 0, GB)]));
        assert_eq!(full.len(), 1);
        assert!(full[0].message.contains("0 B of 1.0 GB free (safekeeper 2)"), "{}", full[0].message);
    }

    #[test]
    fn an_older_server_that_does_not_tell_is_no_concern() {
        let disks = disks(&status(None, None), &[]);
        assert_eq!((text(&disks), concerns(&disks)), (None, Vec::new()));
    }
}
