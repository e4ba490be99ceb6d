//! Finds the library, or builds it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ardent_test_pg::test_major;

/// The library for the tests' Postgres: from `$ARDENT_COMPUTE_LIB_DIR`, where the Makefile puts it, else built now.
pub fn compute_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let major = test_major().to_string();
        let file_name = format!("libardent_compute_{major}.so");
        if let Some(dir) = std::env::var_os("ARDENT_COMPUTE_LIB_DIR") {
            let given = PathBuf::from(dir).join(&file_name);
            assert!(given.exists(), "{} is missing: run `make extension`", given.display());
            return given;
        }
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| here.join("../../target"), PathBuf::from);
        let out = target.join("compute-lib");
        let built = Command::new(here.join("../extension/build.sh")).arg(&out).arg(&major).status();
        assert!(built.is_ok_and(|status| status.success()), "the library cannot be built: see above");
        out.join(&file_name)
    })
}
