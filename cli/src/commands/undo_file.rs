//! The file with the change set that undoes an apply: whole and durable before the target commits.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ardent_change_set::{ChangeSetFile, FileError, write, write_file};

use crate::failure::Failure;

/// Where what undoes an apply goes. It is [written](UndoFile::write) before the target commits; then it is kept, or, if the target was not
/// changed, taken back.
#[derive(Debug)]
pub struct UndoFile {
    /// As it was named.
    path: PathBuf,
    place: Place,
    is_written: bool,
}

#[derive(Debug)]
enum Place {
    /// A file, by the path that no symbolic link is in.
    File {
        path: PathBuf,
        /// A copy of what was in it, beside it.
        before: Option<PathBuf>,
    },
    /// A pipe or a device: it takes it once, and gives nothing back.
    Stream(File),
}

impl UndoFile {
    /// Sees whether it can be written there. Nothing is there afterwards that was not.
    pub fn at(path: PathBuf) -> Result<UndoFile, Failure> {
        let place = Place::at(&path)
            .map_err(|error| Failure::local(format!("{} cannot be written", path.display()), &error))?;
        Ok(UndoFile { path, place, is_written: false })
    }

    /// Where it is, as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes it. What was there under this name is kept until the target has committed.
    pub fn write(&mut self, inverse: &ChangeSetFile) -> Result<(), Failure> {
        let written = match &mut self.place {
            Place::File { path, before } => write_beside(path, before, &mut self.is_written, inverse),
            Place::Stream(stream) => pour(stream, inverse).map(|()| self.is_written = true),
        };
        written.map_err(|error| {
            let message = format!("what undoes it cannot be kept: {} cannot be written", self.path.display());
            Failure::local(message, &error).hint("nothing was changed; see whether there is room, and apply it again")
        })
    }

    /// The target has committed: what was there before is not needed any more. Gives the path of what undoes it, if there is any.
    pub fn keep(self) -> Option<PathBuf> {
        if let Place::File { before: Some(before), .. } = &self.place {
            // It would be one file too many.
            let _ = fs::remove_file(before);
        }
        self.is_written.then_some(self.path)
    }

    /// Nobody knows whether the target has committed: what was there before stays beside it.
    pub fn leave(self) -> Option<PathBuf> {
        self.is_written.then_some(self.path)
    }

    /// The target was not changed: what was there before is there again.
    pub fn take_back(self) -> io::Result<()> {
        let Place::File { path, before } = &self.place else { return Ok(()) };
        match (before, self.is_written) {
            (Some(before), true) => fs::rename(before, path),
            (Some(before), false) => fs::remove_file(before),
            (None, true) => fs::remove_file(path),
            (None, false) => Ok(()),
        }
    }
}

impl Place {
    fn at(path: &Path) -> io::Result<Place> {
        let known = fs::metadata(path);
        if known.as_ref().is_ok_and(|metadata| !metadata.is_file()) {
            return Ok(Place::Stream(OpenOptions::new().write(true).open(path)?));
        }
        OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let path = fs::canonicalize(path)?;
        if known.is_err() {
            fs::remove_file(&path)?;
        }
        Ok(Place::File { path, before: None })
    }
}

fn write_beside(
    path: &Path,
    before: &mut Option<PathBuf>,
    is_written: &mut bool,
    inverse: &ChangeSetFile,
) -> Result<(), FileError> {
    *before = copy_of(path)?;
    write_file(path, inverse)?;
    *is_written = true;
    // The name too: else the file is there after a crash, and nobody finds it.
    let folder = path.parent().unwrap_or(Path::new("/"));
    Ok(File::open(folder)?.sync_all()?)
}

/// Gives what is in a file another name, `NAME.PROCESS.before`, if there is something.
fn copy_of(path: &Path) -> io::Result<Option<PathBuf>> {
    if !fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0) {
        return Ok(None);
    }
    let mut name = path.file_name().map(OsStr::to_owned).unwrap_or_default();
    name.push(format!(".{}.before", std::process::id()));
    let copy = path.with_file_name(name);
    // Some file systems give a file one name only.
    fs::hard_link(path, &copy).or_else(|_| fs::copy(path, &copy).map(drop))?;
    Ok(Some(copy))
}

/// Writes into what cannot go back, as the writing of a change set does.
fn pour(stream: &mut File, inverse: &ChangeSetFile) -> Result<(), FileError> {
    let mut whole = tempfile::tempfile()?;
    write(&mut whole, inverse)?;
    whole.rewind()?;
    io::copy(&mut whole, stream)?;
    Ok(())
}

/// What it is called where nobody says.
pub fn undo_file_name(source: &str) -> PathBuf {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    PathBuf::from(format!("{source}-undo-{seconds}.changes"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use ardent_change_set::read_file;
    use ardent_types::Lsn;

    use super::*;

    fn inverse() -> ChangeSetFile {
        ChangeSetFile { branch: "b".into(), from_lsn: Lsn::new(16), to_lsn: Lsn::new(32), databases: vec![] }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("listed");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn it_is_there_once_written_and_at_no_other_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("undo");
        let mut undo = UndoFile::at(path.clone()).expect("it can be written");
        assert_eq!(names(folder.path()), Vec::<String>::new(), "an empty one is no change set");
        undo.write(&inverse()).expect("written");
        assert_eq!(read_file(&path).expect("it is whole"), inverse());
        undo.take_back().expect("removed");
        assert_eq!(names(folder.path()), Vec::<String>::new());

        let mut undo = UndoFile::at(path.clone()).expect("it can be written");
        undo.write(&inverse()).expect("written");
        assert_eq!(undo.keep(), Some(path.clone()));
        assert_eq!(names(folder.path()), ["undo"]);
        let unused = UndoFile::at(path.clone()).expect("it can be written");
        assert_eq!(unused.keep(), None, "nothing was undone by it");
        assert_eq!(read_file(&path).expect("the older one stays"), inverse());
    }

    #[test]
    fn what_was_there_before_is_there_again_if_nothing_was_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, link) = (folder.path().join("undo"), folder.path().join("link"));
        fs::write(&path, "older").expect("written");
        symlink(&path, &link).expect("linked");
        let written = || {
            let mut undo = UndoFile::at(link.clone()).expect("it can be written");
            undo.write(&inverse()).expect("written");
            assert_eq!(names(folder.path()).len(), 3, "both are there until it is known which is needed");
            undo
        };
        written().take_back().expect("put back");
        assert_eq!(fs::read_to_string(&path).expect("read"), "older");
        assert_eq!(names(folder.path()), ["link", "undo"]);
        UndoFile::at(link.clone()).expect("it can be written").take_back().expect("nothing to do");
        assert_eq!(fs::read_to_string(&path).expect("read"), "older");
        assert_eq!(written().leave(), Some(link.clone()));
        assert_eq!(names(folder.path()).len(), 3, "either may be needed");
        UndoFile::at(link.clone()).expect("it can be written").take_back().expect("nothing to do");
        assert_eq!(written().keep(), Some(link.clone()));
        assert_eq!(read_file(&path).expect("it is whole"), inverse());
        assert_eq!(names(folder.path()), ["link", "undo"]);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_known_before() {
        let folder = tempfile::tempdir().expect("a folder");
        for path in [folder.path().to_owned(), folder.path().join("none/undo")] {
            let failure = UndoFile::at(path).expect_err("no place for a file");
            assert!(failure.info.message.contains("cannot be written"), "{failure:?}");
        }
    }

    #[test]
    fn a_pipe_is_written_into() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
        let read = pipe.clone();
        let reader = std::thread::spawn(move || fs::read(read).expect("read"));
        let mut undo = UndoFile::at(pipe.clone()).expect("somebody reads it");
        undo.write(&inverse()).expect("written");
        assert_eq!(undo.keep(), Some(pipe));
        let copy = folder.path().join("copy");
        fs::write(&copy, reader.join().expect("joined")).expect("written");
        assert_eq!(read_file(&copy).expect("it is whole"), inverse());
    }
}
