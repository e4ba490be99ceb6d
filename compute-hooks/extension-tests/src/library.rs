//! Finds the library, or builds it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const FILE_NAME: &str = "libardent_compute_15.so";

/// The library for the tests' Postgres: from `$ARDENT_COMPUTE_LIB_DIR`, where the Makefile puts it, else built now.
pub fn compute_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        if let Some(dir) = std::env::var_os("ARDENT_COMPUTE_LIB_DIR") {
            let given = PathBuf::from(dir).join(FILE_NAME);
            assert!(given.exists(), "{} is missing: run `make extension`", given.display());
            return given;
        }
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| here.join("../../target"), PathBuf::from);
        let out = target.join("compute-lib");
        let built = Command::new(here.join("../extension/build.sh")).arg(&out).status();
        assert!(built.is_ok_and(|status| status.success()), "the library cannot be built: see above");
        out.join(FILE_NAME)
    })
}
