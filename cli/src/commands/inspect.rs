//! `ardent inspect ...`: what is in a store's files, and in WAL.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use ardent_api::control::{ApiErrorCode, ErrorInfo, SCHEMA_VERSION, UnnamedFilesReply};
use ardent_control::store::timelines_in;
use ardent_object_store::{LocalFolder, ObjectName, ObjectStore};
use ardent_pg_format::rmgr;
use ardent_pg_redo::HintBits;
use ardent_redo_oracle::{EndStateArgs, FilesError, Report, VerifyRedoArgs, WalFolder};
use ardent_storage::{
    CorruptFile, InspectError, LayerInfo, ManifestInfo, OrphanKind, PageInfo, RemovedOrphans, Survey, VersionInfo,
    find_timeline, inspect_layer, inspect_manifest, inspect_manifest_object, inspect_page, remove_orphans, survey,
};
use ardent_types::{Key, Lsn, TimelineId};

use super::inspect_verify::verify_layers;
use super::path_name;
use crate::api::Api;
use crate::args::{
    InspectCommand, LayerInspectArgs, ManifestInspectArgs, PageInspectArgs, StoreChoiceArgs, StoreInspectArgs,
    UnnamedFilesArgs, VerifyRedoArgs as VerifyRedoFlags, WalInspectArgs,
};
use crate::duration::bytes_text;
use crate::failure::Failure;
use crate::output::{Output, pairs, table};
use crate::up::{self, object_store};

/// Runs one of the commands.
pub fn run(output: &Output, url: Option<&str>, command: &InspectCommand) -> Result<(), Failure> {
    match command {
        InspectCommand::Store(args) => store(output, args),
        InspectCommand::Manifest(args) => manifest(output, args),
        InspectCommand::Layer(args) => layer(output, args),
        InspectCommand::Page(args) => page(output, args),
        InspectCommand::Wal(args) => wal(output, args),
        InspectCommand::VerifyRedo(flags) => verify_redo(output, flags),
        InspectCommand::UnnamedFiles(args) => unnamed_files(output, &Api::new(url)?, args),
    }
}

/// What is printed, with the version of its schema.
#[derive(Serialize)]
struct Versioned<T: Serialize> {
    schema_version: u32,
    #[serde(flatten)]
    found: T,
}

fn versioned<T: Serialize>(found: T) -> Versioned<T> {
    Versioned { schema_version: SCHEMA_VERSION, found }
}

/// A damaged file.
#[derive(Debug, Serialize)]
struct Damage {
    file: String,
    offset: u64,
    expected: String,
    keys: String,
}

impl From<&CorruptFile> for Damage {
    fn from(corrupt: &CorruptFile) -> Self {
        Damage {
            file: corrupt.file.clone(),
            offset: corrupt.offset,
            expected: corrupt.expected.clone(),
            keys: corrupt.keys.clone(),
        }
    }
}

/// One damaged file, where that is all that there is to show.
#[derive(Serialize)]
struct Damaged {
    damaged: bool,
    #[serde(flatten)]
    damage: Damage,
}

const NOT_FOUND_HINT: &str =
    "ardent inspect store lists the timelines of a store, and ardent inspect manifest TIMELINE the layers of one";

/// Says what is damaged, as data and as the failure that it is.
fn failed(output: &Output, error: &InspectError) -> Failure {
    match error {
        InspectError::NotFound { .. } => Failure::of(error).code(ApiErrorCode::NotFound).hint(NOT_FOUND_HINT),
        InspectError::Store(_) => Failure::of(error).code(ApiErrorCode::StorageUnavailable),
        InspectError::Corrupt(corrupt) => {
            if output.json
                && let Err(failure) =
                    output.data(&versioned(Damaged { damaged: true, damage: corrupt.into() }), |_| String::new())
            {
                return failure;
            }
            Failure::of(error)
        }
    }
}

/// The installation's store, or the one that was named.
fn open(choice: &StoreChoiceArgs) -> Result<Arc<dyn ObjectStore>, Failure> {
    let folder = up::data_dir(choice.data_dir.as_ref())?.join("pageserver");
    object_store::attach(&folder, choice.store.as_ref(), choice.store_ca.as_deref())
}

/// A store and an object in it, from an object's name or a file's path.
fn find(what: &str, choice: &StoreChoiceArgs) -> Result<(Arc<dyn ObjectStore>, ObjectName), Failure> {
    let name = |text: &str| {
        ObjectName::new(text.to_owned()).map_err(|error| Failure::usage(format!("{what:?} is no object: {error}")))
    };
    let path = Path::new(what);
    if choice.store.is_some() || !path.is_file() {
        return Ok((open(choice)?, name(what)?));
    }
    let path = std::path::absolute(path).map_err(|error| Failure::local(format!("{what} is no path"), &error))?;
    // In a store's folder, messages name the object as the page server does; a copy elsewhere is looked at where it is.
    let (root, object) = split_at_store(&path)
        .unwrap_or_else(|| (path.parent().unwrap_or(Path::new("/")).to_owned(), file_name(&path).to_owned()));
    let store = LocalFolder::look_at(&root);
    Ok((Arc::new(store), name(&object)?))
}

/// `ROOT` and `timelines/...` of a path.
fn split_at_store(path: &Path) -> Option<(PathBuf, String)> {
    let text = path.to_str()?;
    let at = text.rfind("/timelines/")?;
    Some((PathBuf::from(&text[..at]), text[at + 1..].to_owned()))
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// What `ardent inspect store` found.
#[derive(Serialize)]
struct StoreReport {
    #[serde(flatten)]
    survey: Survey,
    /// Timelines that the installation's database does not know; null: there is no database here to ask.
    unowned: Option<Vec<TimelineId>>,
    /// Layer files that were read whole; null: none was to be.
    verified_layers: Option<usize>,
    /// Of these, damaged ones.
    damaged: Vec<Damage>,
    /// What was removed; null: nothing was to be.
    removed: Option<RemovedOrphans>,
}

fn store(output: &Output, args: &StoreInspectArgs) -> Result<(), Failure> {
    let store = open(&args.choice)?;
    let unavailable = |error| Failure::of(&error).code(ApiErrorCode::StorageUnavailable);
    let found = survey(&*store).map_err(unavailable)?;
    let (mut verified_layers, mut damaged) = (None, Vec::new());
    if args.verify {
        let verified = verify_layers(output, &store, &found.timelines).map_err(|error| failed(output, &error))?;
        verified_layers = Some(verified.layers);
        damaged.extend(verified.damaged.iter().map(Damage::from));
    }
    let removed = if args.delete {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = now.saturating_sub(Duration::from_secs(args.grace));
        Some(remove_orphans(&*store, &found, before.as_secs()).map_err(unavailable)?)
    } else {
        None
    };
    let unowned = unowned(&args.choice, &found)?;
    let is_whole = found.problems.is_empty() && damaged.is_empty();
    let report = versioned(StoreReport { survey: found, unowned, verified_layers, damaged, removed });
    output.data(&report, |report| store_text(&report.found))?;
    if is_whole {
        return Ok(());
    }
    Err(Failure::from(ErrorInfo::new(ApiErrorCode::Internal, "something in the store is missing or damaged"))
        .hint("the report names files and keys; restore the files from a copy of the store"))
}

/// Timelines that the database of the installation does not know. What is in a store that was named by itself is not asked about
/// unless the folder was named too.
fn unowned(choice: &StoreChoiceArgs, found: &Survey) -> Result<Option<Vec<TimelineId>>, Failure> {
    if choice.store.is_some() && choice.data_dir.is_none() {
        return Ok(None);
    }
    let database = up::data_dir(choice.data_dir.as_ref())?.join("control.db");
    if !database.exists() {
        return Ok(None);
    }
    let known = timelines_in(&database).map_err(|error| Failure::of(&error))?;
    let unowned = found.timelines.iter().map(|timeline| timeline.timeline).filter(|timeline| !known.contains(timeline));
    Ok(Some(unowned.collect()))
}

fn store_text(report: &StoreReport) -> String {
    let survey = &report.survey;
    let mut out = String::new();
    let rows: Vec<Vec<String>> = survey
        .timelines
        .iter()
        .map(|timeline| {
            vec![
                timeline.timeline.to_string(),
                timeline.ancestor.map_or_else(|| "-".to_owned(), |ancestor| ancestor.to_string()),
                timeline.last_record_lsn.to_string(),
                match timeline.retained_from {
                    Lsn::MAX => "what hangs on it".to_owned(),
                    from => from.to_string(),
                },
                timeline.layers.to_string(),
                bytes_text(timeline.stored_bytes),
                timeline.children.to_string(),
            ]
        })
        .collect();
    out.push_str(&table(
        &["TIMELINE", "HANGS ON", "DURABLE TO", "RETAINED FROM", "LAYERS", "STORED", "BRANCHES"],
        &rows,
    ));
    let mut kinds: BTreeMap<OrphanKind, (usize, u64)> = BTreeMap::new();
    for orphan in &survey.orphans {
        let (count, bytes) = kinds.entry(orphan.kind).or_default();
        *count += 1;
        *bytes += orphan.bytes;
    }
    out.push_str(&format!("\nleftovers: {}\n", if kinds.is_empty() { "none" } else { "" }));
    for (kind, (count, bytes)) in kinds {
        out.push_str(&format!("  {count} x {} ({})\n", kind.as_str(), bytes_text(bytes)));
    }
    for orphan in &survey.orphans {
        let upload = orphan.upload.as_ref().map_or_else(String::new, |id| format!(" (upload {id})"));
        out.push_str(&format!("    {}{upload}\n", orphan.object));
    }
    if let Some(why) = &survey.uploads_refused {
        out.push_str(&format!("uploads that were cut off could not be looked for: {why}\n"));
    }
    let list = |out: &mut String, heading: &str, lines: &mut dyn Iterator<Item = String>| {
        let lines: Vec<String> = lines.collect();
        if !lines.is_empty() {
            out.push_str(&format!("{heading}:\n"));
            lines.iter().for_each(|line| out.push_str(&format!("  {line}\n")));
        }
    };
    list(&mut out, "missing or damaged", &mut survey.problems.iter().cloned());
    let damage = |damage: &Damage| {
        format!("{} at offset {}: expected {}; keys {}", damage.file, damage.offset, damage.expected, damage.keys)
    };
    list(&mut out, "damaged layers", &mut report.damaged.iter().map(damage));
    list(&mut out, "of no branch of this installation", &mut report.unowned.iter().flatten().map(ToString::to_string));
    list(&mut out, "names that say nothing to this version", &mut survey.unknown.iter().cloned());
    if let Some(verified) = report.verified_layers {
        out.push_str(&format!("{verified} layer files are whole\n"));
    }
    match &report.removed {
        Some(removed) => out.push_str(&format!(
            "removed {} leftovers ({}); {} are too young\n",
            removed.objects,
            bytes_text(removed.bytes),
            removed.too_young
        )),
        None if !survey.orphans.is_empty() => out.push_str("remove them with --delete\n"),
        None => {}
    }
    out
}

fn manifest(output: &Output, args: &ManifestInspectArgs) -> Result<(), Failure> {
    let inspected = match args.what.parse::<TimelineId>() {
        Ok(timeline) => {
            let store = open(&args.choice)?;
            find_timeline(&*store, timeline).and_then(|tenant| inspect_manifest(&*store, tenant, timeline))
        }
        Err(_) => {
            let (store, object) = find(&args.what, &args.choice)?;
            inspect_manifest_object(&*store, &object)
        }
    };
    let info = inspected.map_err(|error| failed(output, &error))?;
    output.data(&versioned(info), |info| manifest_text(&info.found))
}

fn manifest_text(info: &ManifestInfo) -> String {
    let manifest = serde_json::to_string_pretty(&info.manifest).unwrap_or_default();
    let head = [("object", info.object.clone()), ("bytes", info.bytes.to_string())];
    format!("{}{manifest}\n", pairs(&head))
}

fn layer(output: &Output, args: &LayerInspectArgs) -> Result<(), Failure> {
    let (store, object) = find(&args.what, &args.choice)?;
    let info = inspect_layer(&store, &object, args.versions).map_err(|error| failed(output, &error))?;
    output.data(&versioned(info), |info| layer_text(&info.found))
}

fn layer_text(info: &LayerInfo) -> String {
    let lsns = if info.kind == "image" { info.upto.to_string() } else { format!("({}, {}]", info.after, info.upto) };
    let head = pairs(&[
        ("object", info.object.clone()),
        ("kind", info.kind.to_owned()),
        ("keys", format!("{} to {}", info.first_key, info.last_key)),
        ("lsn", lsns),
        ("bytes", info.bytes.to_string()),
        ("versions", format!("{}, all read and checked", info.versions_checked)),
        ("value bytes", info.value_bytes.to_string()),
        ("record ends", info.record_positions.to_string()),
    ]);
    if info.versions.is_empty() { head } else { format!("{head}{}", versions_text(&info.versions)) }
}

fn versions_text(versions: &[VersionInfo]) -> String {
    let rows: Vec<Vec<String>> = versions
        .iter()
        .map(|version| {
            vec![
                version.key.clone(),
                version.lsn.to_string(),
                version.kind.to_owned(),
                version.bytes.to_string(),
                version.file.clone(),
            ]
        })
        .collect();
    table(&["KEY", "LSN", "KIND", "BYTES", "FILE"], &rows)
}

fn page(output: &Output, args: &PageInspectArgs) -> Result<(), Failure> {
    let store = open(&args.choice)?;
    let key = match args.block {
        Some(block) => Key::RelBlock(args.relation, block),
        None => Key::RelSize(args.relation),
    };
    let tenant = find_timeline(&*store, args.timeline).map_err(|error| failed(output, &error))?;
    let inspected = inspect_page(&store, tenant, args.timeline, &key, args.lsn);
    let info = inspected.map_err(|error| failed(output, &error))?;
    output.data(&versioned(&info), |info| page_text(info.found))?;
    match &info.problem {
        None => Ok(()),
        Some(problem) => Err(Failure::from(ErrorInfo::new(
            ApiErrorCode::Internal,
            format!("{key} cannot be rebuilt at {}: {problem}", info.lsn),
        ))),
    }
}

fn page_text(info: &PageInfo) -> String {
    let content = match (&info.content_bytes, &info.content_crc32) {
        (Some(bytes), Some(crc)) => format!("{bytes} bytes, CRC-32 {crc}"),
        _ if info.problem.is_some() => "cannot be rebuilt".to_owned(),
        _ => "absent".to_owned(),
    };
    let head = pairs(&[
        ("key", info.key.clone()),
        ("lsn", info.lsn.to_string()),
        ("content", content),
        ("files visited", info.files_visited.to_string()),
    ]);
    format!("{head}{}", versions_text(&info.versions))
}

/// A WAL record.
#[derive(Serialize)]
struct RecordLine<'a> {
    schema_version: u32,
    lsn: Lsn,
    end_lsn: Lsn,
    prev_lsn: Lsn,
    resource_manager: &'a str,
    kind: Option<&'a str>,
    xid: u32,
    bytes: u32,
    blocks: Vec<BlockLine>,
}

/// A block that a record refers to.
#[derive(Serialize)]
struct BlockLine {
    relation: String,
    block: u32,
    has_image: bool,
}

/// How much of a type of records there is.
#[derive(Default, Serialize)]
struct TypeCount {
    records: u64,
    bytes: u64,
    images: u64,
}

#[derive(Serialize)]
struct WalCounts {
    schema_version: u32,
    from: Option<Lsn>,
    to: Option<Lsn>,
    types: BTreeMap<String, TypeCount>,
}

fn wal(output: &Output, args: &WalInspectArgs) -> Result<(), Failure> {
    let unreadable = |error: FilesError| Failure::of(&error);
    let mut folder = WalFolder::open(&args.folder, args.start, args.end).map_err(unreadable)?;
    let mut counts = WalCounts { schema_version: SCHEMA_VERSION, from: None, to: None, types: BTreeMap::new() };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let major = folder.major();
    let mut shown = 0;
    while args.limit.is_none_or(|limit| shown < limit) {
        let Some(record) = folder.next_record().map_err(unreadable)? else { break };
        shown += 1;
        let manager = rmgr::name(record.header.rmid);
        let kind = rmgr::identify(record.header.rmid, record.header.info, major);
        if args.stats {
            let count = counts.types.entry(format!("{manager}/{}", kind.unwrap_or("?"))).or_default();
            count.records += 1;
            count.bytes += u64::from(record.header.tot_len);
            count.images += record.blocks.iter().filter(|block| block.image.is_some()).count() as u64;
            continue;
        }
        let blocks = record.blocks.iter().map(|block| BlockLine {
            relation: block.rel.to_string(),
            block: block.blkno,
            has_image: block.image.is_some(),
        });
        let line = RecordLine {
            schema_version: SCHEMA_VERSION,
            lsn: record.start_lsn,
            end_lsn: record.end_lsn,
            prev_lsn: record.header.prev,
            resource_manager: &manager,
            kind,
            xid: record.header.xid,
            bytes: record.header.tot_len,
            blocks: blocks.collect(),
        };
        let text = if output.json {
            serde_json::to_string(&line).map_err(|error| Failure::of(&error))?
        } else {
            record_text(&line)
        };
        match writeln!(out, "{text}") {
            // Whoever read us has what it wanted.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|error| Failure::local("standard output cannot be written", &error))?,
        }
    }
    match out.flush() {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
        flushed => flushed.map_err(|error| Failure::local("standard output cannot be written", &error))?,
    }
    drop(out);
    if args.stats {
        (counts.from, counts.to) = (folder.range().map(|range| range.0), folder.range().map(|range| range.1));
        return output.data(&counts, counts_text);
    }
    Ok(())
}

fn record_text(line: &RecordLine<'_>) -> String {
    let mut text = format!(
        "{} {:<10} {:<20} xid {:>10} {:>6} bytes, prev {}",
        line.lsn,
        line.resource_manager,
        line.kind.unwrap_or("?"),
        line.xid,
        line.bytes,
        line.prev_lsn
    );
    for block in &line.blocks {
        let image = if block.has_image { " image" } else { "" };
        text.push_str(&format!(", {} block {}{image}", block.relation, block.block));
    }
    text
}

fn counts_text(counts: &WalCounts) -> String {
    let rows: Vec<Vec<String>> = counts
        .types
        .iter()
        .map(|(name, count)| {
            vec![name.clone(), count.records.to_string(), count.bytes.to_string(), count.images.to_string()]
        })
        .collect();
    let lsn = |lsn: Option<Lsn>| lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
    let head = pairs(&[("from", lsn(counts.from)), ("to", lsn(counts.to))]);
    format!("{head}{}", table(&["TYPE", "RECORDS", "BYTES", "IMAGES"], &rows))
}

#[derive(Serialize)]
struct Verdict<'a> {
    schema_version: u32,
    passed: bool,
    #[serde(flatten)]
    report: &'a Report,
}

fn verify_redo(output: &Output, flags: &VerifyRedoFlags) -> Result<(), Failure> {
    let end_state = flags.base.clone().zip(flags.data.clone()).map(|(base, data)| EndStateArgs { base, data });
    let args = VerifyRedoArgs {
        wal: flags.wal.clone(),
        start: flags.start,
        end: flags.end,
        expect: flags.expect.clone(),
        hint_bits: if flags.hint_bits { HintBits::Logged } else { HintBits::NotLogged },
        end_state,
    };
    let report = ardent_redo_oracle::run(&args).map_err(|error| Failure::of(&error))?;
    let verdict = Verdict { schema_version: SCHEMA_VERSION, passed: report.passed(), report: &report };
    output.data(&verdict, |verdict| verdict.report.to_string())?;
    if report.passed() {
        return Ok(());
    }
    let message = "redo does not produce what Postgres logged or has on disk, or something expected was not checked";
    Err(Failure::from(ErrorInfo::new(ApiErrorCode::Internal, message))
        .hint("the report names the record types and blocks"))
}

fn unnamed_files(output: &Output, api: &Api, args: &UnnamedFilesArgs) -> Result<(), Failure> {
    let reply: UnnamedFilesReply = api.get(&format!("/v1/branches/{}/unnamed-files", path_name(&args.branch)?))?;
    output.data(&reply, |reply| {
        let files = &reply.files;
        if files.found == 0 {
            return format!("at {} a catalog names every file of branch {}", files.lsn, reply.name);
        }
        let rows: Vec<Vec<String>> = files
            .relations
            .iter()
            .map(|relation| {
                let why = if relation.database_exists { "no relation" } else { "no such database" };
                vec![
                    relation.tablespace.to_string(),
                    relation.database.to_string(),
                    relation.file.to_string(),
                    bytes_text(relation.bytes),
                    why.to_owned(),
                ]
            })
            .collect();
        let listed = table(&["TABLESPACE", "DATABASE", "FILE", "SIZE", "WHY"], &rows);
        let more = files.found - files.relations.len() as u64;
        let more = if more > 0 { format!("and {more} more; ") } else { String::new() };
        format!("{listed}{more}{} relations, {} at {}", files.found, bytes_text(files.bytes), files.lsn)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_found_comes_with_how_to_find_it() {
        let plain = Output { json: false, color: false, colors_allowed: false, interactive: false };
        let failure = failed(&plain, &InspectError::NotFound { what: "x".to_owned() });
        assert_eq!(failure.info.code, ApiErrorCode::NotFound);
        assert!(failure.info.hint.is_some_and(|hint| hint.contains("ardent inspect store")));
    }

    #[test]
    fn a_file_in_a_store_is_its_object_and_a_copy_is_a_file() {
        let split = |path: &str| split_at_store(Path::new(path));
        let expect = Some((PathBuf::from("/srv/store"), "timelines/a/b/layers/c".to_owned()));
        assert_eq!(split("/srv/store/timelines/a/b/layers/c"), expect);
        assert_eq!(split("/tmp/copy"), None);
    }
}
