//! Embeds the library that computes load, for each major it was built for, compressed and with its hash.
//!
//! `ARDENT_COMPUTE_LIB_DIR` names the folder that `make extension` fills. Without it the program builds all the same, and
//! `ardent up` says what is missing.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

const MAJORS: [u32; 4] = [15, 16, 17, 18];

fn main() {
    println!("cargo::rerun-if-env-changed=ARDENT_COMPUTE_LIB_DIR");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let folder = env::var_os("ARDENT_COMPUTE_LIB_DIR").map(PathBuf::from);
    let mut entries = String::new();
    for major in MAJORS {
        if let Some(entry) = folder.as_deref().and_then(|folder| embed(folder, major, &out_dir)) {
            entries.push_str(&entry);
        }
    }
    let source = format!("pub(crate) const EMBEDDED: &[EmbeddedLibrary] = &[{entries}];\n");
    fs::write(out_dir.join("compute_libraries.rs"), source).expect("OUT_DIR is writable");
}

fn embed(folder: &Path, major: u32, out_dir: &Path) -> Option<String> {
    let name = format!("libardent_compute_{major}.so");
    let path = folder.join(&name);
    println!("cargo::rerun-if-changed={}", path.display());
    let bytes = fs::read(&path).ok()?;
    let compressed = zstd::encode_all(&bytes[..], 19).expect("zstd compresses memory");
    let target = out_dir.join(format!("{name}.zst"));
    fs::write(&target, compressed).expect("OUT_DIR is writable");
    let hash = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!(
        "EmbeddedLibrary {{ major: {major}, sha256: {hash:?}, zstd: include_bytes!({:?}) }},",
        target.display().to_string()
    ))
}
