//! The names of relations' files.

use ardent_types::{ForkNumber, RelTag};

/// A file of a relation fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelationFile {
    pub(crate) rel: RelTag,
    /// Which file of the fork; each but the last has 1 GiB.
    pub(crate) segment: u32,
}

/// A folder of relations' files: tablespace and database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelationFolder {
    pub(crate) spcnode: u32,
    pub(crate) dbnode: u32,
}

impl RelationFolder {
    /// The file with this name in it, if it is a relation's: `16384`, `16384.1`, `16384_fsm`.
    pub(crate) fn file(self, name: &str) -> Option<RelationFile> {
        let (name, segment) = match name.split_once('.') {
            Some((name, segment)) => (name, number(segment).filter(|segment| *segment > 0)?),
            None => (name, 0),
        };
        let (relnode, fork) = match name.split_once('_') {
            None => (name, ForkNumber::Main),
            Some((relnode, suffix)) => {
                let fork =
                    ForkNumber::ALL.into_iter().find(|fork| fork.file_suffix().strip_prefix('_') == Some(suffix));
                (relnode, fork?)
            }
        };
        let RelationFolder { spcnode, dbnode } = self;
        let relnode = number(relnode).filter(|relnode| *relnode > 0)?;
        Some(RelationFile { rel: RelTag { spcnode, dbnode, relnode, fork }, segment })
    }
}

impl RelationFile {
    /// Its path below the data directory.
    pub(crate) fn path(self, version_directory: &str) -> String {
        let first = self.rel.path(version_directory);
        if self.segment == 0 { first } else { format!("{first}.{}", self.segment) }
    }
}

/// A number as Postgres writes it in names: digits alone, without zeros before them.
pub(crate) fn number(text: &str) -> Option<u32> {
    let plain =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_relations_files_and_of_others() {
        let folder = RelationFolder { spcnode: 1663, dbnode: 5 };
        let names = ["16384", "16384.1", "16384_fsm", "16384_vm.12", "16384_init"];
        for name in names {
            let file = folder.file(name).expect(name);
            assert_eq!(file.path("PG_15_202209061"), format!("base/5/{name}"));
        }
        let others = [
            "",
            "0",
            "016384",
            "+5",
            "16384.0",
            "16384.",
            "16384_",
            "16384_x",
            "t3_16384",
            "PG_VERSION",
            "pg_filenode.map",
            "99999999999",
        ];
        for name in others {
            assert_eq!(folder.file(name), None, "{name}");
        }
    }
}
