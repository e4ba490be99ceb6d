//! Flags of `ardent inspect`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use ardent_redo_oracle::ExpectedTypes;
use ardent_types::{Lsn, TimelineId};

use crate::duration::parse_seconds;
use crate::up::object_store::StorePlace;

/// `ardent inspect ...`.
#[derive(Debug, Subcommand)]
pub enum InspectCommand {
    /// Look through a page server's store: timelines, leftovers, what is missing or damaged
    #[command(after_help = "Examples:
  ardent inspect store
  ardent inspect store --data-dir /srv/ardent --verify
  ardent inspect store --store 's3://bucket/ardent?endpoint=https://minio.example.com' --json
  ardent inspect store --delete --grace 2d

It works beside a running server. Exits with 1 if something is missing or damaged.")]
    Store(StoreInspectArgs),
    /// Show a manifest: what a timeline consists of
    #[command(after_help = "Examples:
  ardent inspect manifest 6b1f0c5e8a2d4e7fb3a9d1c2e4f60718
  ardent inspect manifest /srv/ardent/pageserver/store/timelines/TENANT/TIMELINE/manifest/0000000000000007 --json")]
    Manifest(ManifestInspectArgs),
    /// Read and check a layer file, and show what is in it
    #[command(after_help = "Examples:
  ardent inspect layer /srv/ardent/pageserver/store/timelines/TENANT/TIMELINE/layers/FILE
  ardent inspect layer timelines/TENANT/TIMELINE/layers/FILE --store s3://bucket/ardent --versions 20

A damaged file is shown with the offset and the keys that it speaks for; the exit code is 1.")]
    Layer(LayerInspectArgs),
    /// Show which versions of a page are stored, and what a read makes of them
    #[command(after_help = "Examples:
  ardent inspect page 6b1f0c5e8a2d4e7fb3a9d1c2e4f60718 1663/5/16384 0
  ardent inspect page 6b1f0c5e8a2d4e7fb3a9d1c2e4f60718 1663/5/16384_vm 0 --lsn 0/16B3748 --json

A relation is TABLESPACE/DATABASE/FILE, with 1663 for pg_default and 1664 for pg_global; pg_relation_filepath() shows the others.")]
    Page(PageInspectArgs),
    /// Show the records of WAL segments
    #[command(after_help = "Examples:
  ardent inspect wal /srv/ardent/safekeeper/TENANT/TIMELINE/wal --start 0/16B3748
  ardent inspect wal /srv/pg/pg_wal --stats --json

With --json, one object a line.")]
    Wal(WalInspectArgs),
    /// Compare our redo with the pages that Postgres logged (wal_consistency_checking = all)
    #[command(
        after_help = "Examples:\n  ardent inspect verify-redo --wal /srv/pg/pg_wal\n  ardent inspect verify-redo --wal DIR --expect FILE --json\n  ardent inspect verify-redo --wal data/pg_wal --base copy --data data"
    )]
    VerifyRedo(VerifyRedoArgs),
    /// Find files of a branch that no catalog names: what a killed CREATE or REINDEX left
    #[command(
        after_help = "Examples:\n  ardent inspect unnamed-files feature-x\n  ardent inspect unnamed-files main --json\n\nNothing reads such files; they only take space. On a connector's root branch, files of production's running\ntransactions are among them. A database that is left over as a whole is listed by its number."
    )]
    UnnamedFiles(UnnamedFilesArgs),
}

/// `ardent inspect unnamed-files`.
#[derive(Debug, Args)]
pub struct UnnamedFilesArgs {
    /// The branch
    pub branch: String,
}

/// Which store to look into.
#[derive(Debug, Args)]
pub struct StoreChoiceArgs {
    /// The installation's folder, whose store is meant [default: as for ardent up]
    #[arg(long, value_name = "DIR", env = "ARDENT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// The store: file:DIR, or s3://BUCKET/PREFIX?endpoint=URL [default: the one in the installation's folder]
    #[arg(long, value_name = "URL", env = "ARDENT_STORE")]
    pub store: Option<StorePlace>,
    /// Certificates (PEM) to trust for the store, instead of this host's
    #[arg(long, value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
}

/// `ardent inspect store`.
#[derive(Debug, Args)]
pub struct StoreInspectArgs {
    /// Which store.
    #[command(flatten)]
    pub choice: StoreChoiceArgs,
    /// Read and check every layer file
    #[arg(long)]
    pub verify: bool,
    /// Remove leftovers that are older than --grace
    #[arg(long)]
    pub delete: bool,
    /// A leftover may be something that is just being made: younger ones stay
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_seconds)]
    pub grace: u64,
}

/// `ardent inspect manifest`.
#[derive(Debug, Args)]
pub struct ManifestInspectArgs {
    /// A timeline's id (its newest manifest), an object's name, or a file
    #[arg(value_name = "TIMELINE|OBJECT|FILE")]
    pub what: String,
    /// Which store.
    #[command(flatten)]
    pub choice: StoreChoiceArgs,
}

/// `ardent inspect layer`.
#[derive(Debug, Args)]
pub struct LayerInspectArgs {
    /// An object's name, or a file
    #[arg(value_name = "OBJECT|FILE")]
    pub what: String,
    /// Which store.
    #[command(flatten)]
    pub choice: StoreChoiceArgs,
    /// Show so many of its versions
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub versions: usize,
}

/// `ardent inspect page`.
#[derive(Debug, Args)]
pub struct PageInspectArgs {
    /// The timeline's id: ardent branch info --json shows a branch's
    pub timeline: TimelineId,
    /// The relation
    #[arg(value_name = "TABLESPACE/DATABASE/FILE", value_parser = parse_rel)]
    pub relation: ardent_types::RelTag,
    /// The block; left out, the relation's size is looked at
    pub block: Option<u32>,
    /// At this LSN [default: the last record that is stored]
    #[arg(long, value_name = "LSN")]
    pub lsn: Option<Lsn>,
    /// Which store.
    #[command(flatten)]
    pub choice: StoreChoiceArgs,
}

/// `ardent inspect wal`.
#[derive(Debug, Args)]
pub struct WalInspectArgs {
    /// Folder of WAL segments
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Start at this record [default: the first whole one]
    #[arg(long, value_name = "LSN")]
    pub start: Option<Lsn>,
    /// Stop at this LSN [default: the end of the WAL]
    #[arg(long, value_name = "LSN")]
    pub end: Option<Lsn>,
    /// Show so many records at most
    #[arg(long, short = 'n', value_name = "N")]
    pub limit: Option<u64>,
    /// Count records and bytes by type
    #[arg(long)]
    pub stats: bool,
}

/// `ardent inspect verify-redo`.
#[derive(Debug, Args)]
pub struct VerifyRedoArgs {
    /// Folder of WAL segments
    #[arg(long, value_name = "DIR")]
    pub wal: PathBuf,
    /// Start at this record [default: the first whole one]
    #[arg(long, value_name = "LSN")]
    pub start: Option<Lsn>,
    /// Stop at this LSN [default: the end of the WAL]
    #[arg(long, value_name = "LSN")]
    pub end: Option<Lsn>,
    /// Record types that must be checked, and refusals that are allowed: a list in a file, or "major" for the built-in list of every
    /// record type of the WAL's major [default: what the WAL has is compared, and nothing is asked of what it lacks]
    #[arg(long, value_name = "major|FILE", value_hint = ValueHint::FilePath)]
    pub expect: Option<ExpectedTypes>,
    /// The cluster logs hint bits (data checksums or wal_log_hints)
    #[arg(long)]
    pub hint_bits: bool,
    /// Also ingest the WAL on top of this data directory, a copy from before it was written, and compare with --data
    #[arg(long, value_name = "DIR", requires = "data")]
    pub base: Option<PathBuf>,
    /// The data directory of the server that wrote the WAL, shut down
    #[arg(long, value_name = "DIR", requires = "base")]
    pub data: Option<PathBuf>,
}

/// `1663/5/16384`, `1663/5/16384_vm`.
fn parse_rel(text: &str) -> Result<ardent_types::RelTag, String> {
    use ardent_types::{ForkNumber, RelTag};
    let parsed = || {
        let mut parts = text.split('/');
        let (spcnode, dbnode, file) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        let digits = file.trim_end_matches(|c: char| !c.is_ascii_digit());
        let fork = ForkNumber::ALL.into_iter().find(|fork| fork.file_suffix() == &file[digits.len()..])?;
        let relnode = digits.parse().ok()?;
        parts.next().is_none().then_some(RelTag { spcnode, dbnode, relnode, fork })
    };
    parsed().ok_or_else(|| format!("{text:?} is not TABLESPACE/DATABASE/FILE, such as 1663/5/16384 or 1663/5/16384_vm"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn expected_record_types_are_a_majors_own_or_in_a_file_and_by_default_none() {
        let check = |words: &[&str], expect: Option<ExpectedTypes>| {
            let words = [&["ardent", "inspect", "verify-redo", "--wal", "pg_wal"][..], words].concat();
            let cli = Cli::try_parse_from(words).expect("the command line is right");
            let Command::Inspect(InspectCommand::VerifyRedo(args)) = cli.command else { panic!("another command") };
            assert_eq!(args.expect, expect);
        };
        check(&[], None);
        check(&["--expect", "major"], Some(ExpectedTypes::OfMajor));
        check(&["--expect", "./major"], Some(ExpectedTypes::File("./major".into())));
        check(&["--expect", "expected-15.txt"], Some(ExpectedTypes::File("expected-15.txt".into())));
    }

    #[test]
    fn relations_are_read_as_they_are_shown() {
        for text in ["1663/5/16384", "1664/0/1260", "1663/5/16384_vm", "1663/5/16384_init"] {
            assert_eq!(parse_rel(text).expect(text).to_string(), text);
        }
        for bad in ["", "1663/5", "1663/5/x", "1663/5/16384_no", "1663/5/16384/1", "a/b/c"] {
            assert!(parse_rel(bad).is_err(), "{bad:?} parsed");
        }
    }
}
