//! Whether computes can be confined here.

use std::process::{Command, Stdio};

/// Makes a sandbox like a compute's and runs nothing in it.
pub fn probe() -> Result<(), String> {
    let tried = Command::new("bwrap")
        .args(["--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(if text.is_empty() { format!("it ended with {}", output.status) } else { text })
        }
        Err(error) => Err(format!("bwrap cannot be started: {error}")),
    }
}
