//! Takes the libraries that computes load into the program, one for each major, compressed and with their hashes. They are built
//! before (see the Makefile's `extension`); without them everything builds as well, and `ardent up` says what to do.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const MAJORS: [u32; 4] = [15, 16, 17, 18];
const ZSTD_LEVEL: i32 = 12;

fn main() {
    println!("cargo:rerun-if-env-changed=ARDENT_COMPUTE_LIB_DIR");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let folder = env::var_os("ARDENT_COMPUTE_LIB_DIR").map(PathBuf::from);
    // The folder and not the files: a file that is not there would count as changed every time.
    if let Some(folder) = &folder {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    let mut table = String::from("&[\n");
    for major in MAJORS {
        let Some(folder) = &folder else { continue };
        let source = folder.join(format!("libardent_compute_{major}.so"));
        if let Some((packed, hash)) = pack(&source, &out, major) {
            writeln!(
                table,
                "    EmbeddedLibrary {{ major: {major}, hash: {hash:?}, zstd: include_bytes!({:?}) }},",
                packed.display().to_string()
            )
            .expect("writing into a string");
        }
    }
    table.push(']');
    fs::write(out.join("libraries.rs"), table).expect("the build folder is writable");
}

fn pack(source: &Path, out: &Path, major: u32) -> Option<(PathBuf, String)> {
    let bytes = fs::read(source).ok()?;
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let hash: String = digest.as_ref().iter().take(8).fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing into a string");
        text
    });
    let packed = out.join(format!("libardent_compute_{major}.so.zst"));
    let compressed = zstd::bulk::compress(&bytes, ZSTD_LEVEL).expect("compression into memory");
    fs::write(&packed, compressed).expect("the build folder is writable");
    Some((packed, hash))
}
