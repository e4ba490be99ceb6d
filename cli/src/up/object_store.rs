//! The store that a page server keeps its layers and manifests in, as the user chose it.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use ardent_api::control::ApiErrorCode;
use ardent_object_store::probe::{ProbeError, probe};
use ardent_object_store::{
    CacheOptions, CachedStore, CountedStore, ErrorKind, ListRequest, LocalFolder, ObjectStore, StoreError, list_all,
};
use ardent_object_store_s3::{S3Location, S3Options, S3Store};

use super::metrics::StoreMetrics;
use crate::args::StoreArgs;
use crate::failure::Failure;

/// What the names of timelines' objects begin with.
const TIMELINES: &str = "timelines/";
/// What follows in the names of a timeline's manifests, without which it is none (`docs/formats/manifest.md`).
const MANIFESTS: &str = "manifest/";
/// Where a store is unfit.
const FITNESS: &str = "docs/s3.md says what a store must be able to do";

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// A folder.
    Folder(PathBuf),
    /// A bucket.
    S3(Box<S3Location>),
}

impl FromStr for StorePlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(folder) = text.strip_prefix("file:") {
            let folder = Path::new(folder.strip_prefix("//").unwrap_or(folder));
            return match folder.is_absolute() {
                true => Ok(StorePlace::Folder(folder.to_owned())),
                false => Err("write file: and an absolute path".to_owned()),
            };
        }
        if text.starts_with("s3:") {
            return S3Location::parse(text)
                .map(|location| StorePlace::S3(Box::new(location)))
                .map_err(|error| error.to_string());
        }
        Err("write file:DIR or s3://BUCKET/PREFIX?endpoint=URL&region=NAME".to_owned())
    }
}

impl StorePlace {
    /// What stays the same however the store is reached.
    fn identity(&self) -> String {
        match self {
            StorePlace::Folder(folder) => format!("file:{}", folder.display()),
            StorePlace::S3(location) => format!("s3://{}/{}", location.bucket, location.prefix),
        }
    }

    /// What is to be given for it: with how it is reached.
    pub fn url(&self) -> String {
        let StorePlace::S3(location) = self else { return self.identity() };
        let is_usual = location.path_style == location.endpoint.is_some();
        let path_style = (!is_usual).then(|| location.path_style.to_string());
        let parameters = [
            ("endpoint", location.endpoint.as_ref()),
            ("region", location.region.as_ref()),
            ("path-style", path_style.as_ref()),
            ("profile", location.profile.as_ref()),
        ];
        let escaped = |value: &String| value.replace('%', "%25").replace('&', "%26").replace('\'', "%27");
        let parameters = parameters.into_iter().filter_map(|(name, value)| Some((name, escaped(value?))));
        let query: Vec<String> = parameters.map(|(name, value)| format!("{name}={value}")).collect();
        match query.is_empty() {
            true => self.identity(),
            false => format!("{}?{}", self.identity(), query.join("&")),
        }
    }
}

/// A store that is ready to use.
pub struct OpenStore {
    /// The store, with its cache.
    pub store: Arc<dyn ObjectStore>,
    /// The same without one, for what is read once.
    pub uncached: Arc<dyn ObjectStore>,
    /// What it counts.
    pub metrics: StoreMetrics,
    /// Whether it is on another machine, as far as is known.
    pub is_far: bool,
}

/// Opens the store of the page server whose files are below `folder`. Blocks; asks an S3 server only at the first start.
pub fn open(folder: &Path, args: &StoreArgs) -> Result<OpenStore, Failure> {
    let own = folder.join("store");
    let place = args.store.clone().unwrap_or_else(|| StorePlace::Folder(own.clone()));
    let file = folder.join("store-location");
    let known = known_identity(&file, &own)?;
    if let Some(known) = known.as_ref().filter(|known| **known != place.identity()) {
        let message = format!("this page server's data is in {known}, not in {}", place.identity());
        let hint = if *known == StorePlace::Folder(own).identity() {
            "leave --store out, or start on another data directory".to_owned()
        } else {
            format!("give --store {known} with its endpoint and region, or start on another data directory")
        };
        return Err(Failure::usage(message).hint(hint));
    }
    let store = match &place {
        StorePlace::Folder(folder) => {
            let counted = count(Arc::new(LocalFolder::open(folder).map_err(|error| Failure::of(&error))?));
            OpenStore {
                store: counted.clone(),
                uncached: counted.clone(),
                metrics: StoreMetrics { counted, cache: None },
                is_far: false,
            }
        }
        StorePlace::S3(location) => {
            let far = count(open_s3(location, args)?);
            if known.is_none() {
                check(&*far, &place)?;
            }
            let options = CacheOptions { folder: folder.join("cache"), bytes_max: args.cache_size };
            let opened = CachedStore::open(far.clone(), options);
            let cache =
                opened.map_err(|error| Failure::local("the cache in front of the store cannot be used", &error))?;
            let cache = Arc::new(cache);
            OpenStore {
                store: cache.clone(),
                uncached: far.clone(),
                metrics: StoreMetrics { counted: far, cache: Some(cache) },
                is_far: true,
            }
        }
    };
    if known.is_none() {
        let write = || fs::create_dir_all(folder).and_then(|()| fs::write(&file, place.identity()));
        write().map_err(|error| Failure::local(format!("{} cannot be written", file.display()), &error))?;
    }
    Ok(store)
}

/// Whether the store that [`open`] would open has a timeline; leftovers of deleted ones are none. Makes nothing: a folder that is not there has
/// none. Blocks: asks for listings.
pub fn has_timelines(folder: &Path, args: &StoreArgs) -> Result<bool, Failure> {
    let place = args.store.clone().unwrap_or_else(|| StorePlace::Folder(folder.join("store")));
    let store: Arc<dyn ObjectStore> = match &place {
        StorePlace::Folder(folder) => Arc::new(LocalFolder::look_at(folder)),
        StorePlace::S3(location) => open_s3(location, args)?,
    };
    has_manifest(&*store).map_err(|error| {
        let is_away = error.kind() == ErrorKind::Retry;
        Failure::of(&error).code(ApiErrorCode::PreflightFailed).hint(unfit_hint(is_away, &place))
    })
}

fn has_manifest(store: &dyn ObjectStore) -> Result<bool, StoreError> {
    for tenant in list_all(store, TIMELINES, true)?.folders {
        for timeline in list_all(store, &tenant, true)?.folders {
            let prefix = format!("{timeline}{MANIFESTS}");
            let request = ListRequest { prefix, page_size: Some(1), ..ListRequest::default() };
            if !store.list(&request)?.objects.is_empty() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn count(store: Arc<dyn ObjectStore>) -> Arc<CountedStore> {
    Arc::new(CountedStore::new(store))
}

/// Which store was used so far; `None` at the first start.
fn known_identity(file: &Path, own: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(file) {
        Ok(known) => Ok(Some(known.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Before there was a choice, it was always this.
            Ok(own.exists().then(|| StorePlace::Folder(own.to_owned()).identity()))
        }
        Err(error) => Err(Failure::local(format!("{} cannot be read", file.display()), &error)),
    }
}

/// The store of the page server whose files are below `folder`, or the one that is named: to look into it beside the page server
/// that uses it, and to remove what nobody needs.
pub fn attach(
    folder: &Path,
    place: Option<&StorePlace>,
    ca_file: Option<&Path>,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let own = folder.join("store");
    let file = folder.join("store-location");
    let place = match place {
        Some(place) => place.clone(),
        None => match known_identity(&file, &own)? {
            Some(known) if known.starts_with("s3:") => {
                return Err(Failure::usage(format!("the pages of this installation are in {known}"))
                    .hint(format!("give --store {known} with its endpoint and region")));
            }
            Some(known) => known.parse().map_err(Failure::usage)?,
            None => return Err(no_store_in(folder)),
        },
    };
    match place {
        StorePlace::Folder(folder) => {
            let store = LocalFolder::attach(&folder).map_err(|error| match error.kind() {
                ErrorKind::NotFound => no_store_in(&folder),
                _ => Failure::of(&error).code(ApiErrorCode::StorageUnavailable),
            });
            Ok(Arc::new(store?))
        }
        StorePlace::S3(location) => {
            let options = S3Options { ca_file: ca_file.map(Path::to_owned), ..S3Options::default() };
            Ok(Arc::new(S3Store::open(&location, &options).map_err(|error| Failure::of(&error))?))
        }
    }
}

fn no_store_in(folder: &Path) -> Failure {
    Failure::usage(format!("there is no page server's store in {}", folder.display()))
        .code(ApiErrorCode::NotFound)
        .hint("say which installation with --data-dir, or which store with --store")
}

/// The store of a page server in another process, for WAL beside its pages. A folder need not be there yet.
pub fn open_archive(place: &StorePlace, ca_file: Option<&Path>) -> Result<Arc<dyn ObjectStore>, Failure> {
    match place {
        StorePlace::Folder(folder) if LocalFolder::attach(folder).is_err() => {
            Ok(Arc::new(LocalFolder::open(folder).map_err(|error| Failure::of(&error))?))
        }
        _ => attach(Path::new(""), Some(place), ca_file),
    }
}

fn open_s3(location: &S3Location, args: &StoreArgs) -> Result<Arc<dyn ObjectStore>, Failure> {
    let options = S3Options { ca_file: args.store_ca.clone(), ..S3Options::default() };
    let store = S3Store::open(location, &options).map_err(|error| Failure::of(&error))?;
    Ok(Arc::new(store))
}

/// Asks the store at `place` to do all that is needed of it.
fn check(store: &dyn ObjectStore, place: &StorePlace) -> Result<(), Failure> {
    let nonce = ardent_control::secrets::random_bytes::<8>().map_err(|error| Failure::of(&error))?;
    let nonce: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
    probe(store, &nonce).map_err(|error: ProbeError| {
        Failure::of(&error).code(ApiErrorCode::PreflightFailed).hint(unfit_hint(error.is_away(), place))
    })
}

/// What to look at where a store is not fit.
fn unfit_hint(is_away: bool, place: &StorePlace) -> String {
    match place {
        StorePlace::S3(location) if is_away => match &location.endpoint {
            Some(endpoint) => format!("is the server at {endpoint} running, and is that its address?"),
            None => "does this host reach AWS? For a server of your own give endpoint= in --store".to_owned(),
        },
        _ => FITNESS.to_owned(),
    }
}

/// For `ardent doctor`: what the store is, if it is fit.
pub fn examine(place: &StorePlace, args: &StoreArgs) -> Result<String, Failure> {
    match place {
        StorePlace::Folder(folder) => {
            let store = LocalFolder::open(folder).map_err(|error| Failure::of(&error))?;
            check(&store, place)?;
            Ok(format!("{} can be written, and conditional puts are honoured", folder.display()))
        }
        StorePlace::S3(location) => {
            check(&*open_s3(location, args)?, place)?;
            Ok(format!("{location}: writes, reads, lists, deletes, and honours conditional puts"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(store: Option<&str>) -> StoreArgs {
        StoreArgs { store: store.map(|text| text.parse().unwrap()), store_ca: None, cache_size: 1 << 20 }
    }

    #[test]
    fn places_are_read() {
        assert_eq!("file:/srv/x".parse(), Ok(StorePlace::Folder("/srv/x".into())));
        assert_eq!("file:///srv/x".parse(), Ok(StorePlace::Folder("/srv/x".into())));
        assert!(matches!("s3://bucket/p".parse(), Ok(StorePlace::S3(_))));
        for bad in ["file:x", "s3://x", "gs://bucket", "/srv/x", ""] {
            assert!(bad.parse::<StorePlace>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_given_for_a_store_names_the_same_one() {
        for text in [
            "file:/srv/x",
            "s3://bucket/p/",
            "s3://bucket/p/?region=x",
            "s3://bucket/p/?endpoint=http://127.0.0.1:9000",
            "s3://bucket/?endpoint=https://m.example.com&region=a%26b&path-style=false&profile=c%27d",
            "s3://bucket/p/?path-style=true",
        ] {
            let place: StorePlace = text.parse().expect("a store");
            assert_eq!(place.url(), text);
        }
    }

    #[test]
    fn who_finds_no_store_is_told_where_to_look() {
        let hint = |place: &str, kind| {
            let source = ardent_object_store::StoreError::new(kind, "put", "probe/a", "no connection");
            let error = ProbeError::Call { step: ardent_object_store::probe::ProbeStep::Write, source };
            unfit_hint(error.is_away(), &place.parse().expect("a store"))
        };
        let own = "s3://bucket/p?endpoint=http://127.0.0.1:9000";
        assert!(hint(own, ErrorKind::Retry).contains("is the server at http://127.0.0.1:9000 running"));
        assert!(hint("s3://bucket/p?region=eu-central-1", ErrorKind::Retry).contains("endpoint="));
        assert!(hint(own, ErrorKind::Denied).contains("docs/s3.md"));
        let place: StorePlace = "file:/nonexistent/x".parse().expect("a store");
        let failure = attach(Path::new("/nonexistent"), Some(&place), None).err().expect("it is not there");
        assert_eq!(failure.info.code, ApiErrorCode::NotFound);
        assert!(failure.info.message.contains("no page server's store in /nonexistent/x"), "{failure:?}");
        assert!(failure.info.hint.is_some_and(|hint| hint.contains("--store")));
    }

    #[test]
    fn the_store_of_the_first_start_stays() {
        let folder = tempfile::tempdir().unwrap();
        let other = format!("file:{}", folder.path().join("other").display());
        open(folder.path(), &args(None)).unwrap();
        open(folder.path(), &args(None)).unwrap();
        let failure = open(folder.path(), &args(Some(&other))).err().unwrap();
        assert!(failure.info.message.contains("not in file:"), "{}", failure.info.message);

        let folder = tempfile::tempdir().unwrap();
        open(folder.path(), &args(Some(&other))).unwrap();
        let failure = open(folder.path(), &args(None)).err().unwrap();
        assert!(failure.info.hint.is_some_and(|hint| hint.contains("give --store file:")));
    }

    #[test]
    fn an_installation_from_before_there_was_a_choice_keeps_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("store")).unwrap();
        open(folder.path(), &args(None)).unwrap();
        assert!(open(folder.path(), &args(Some("file:/nonexistent/x"))).is_err());
    }
}
