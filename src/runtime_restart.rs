//! Restart of a container runtime of the node, which only happens where the administrator has allowed it.
//!
//! Invariant: systemctl runs at the node's root, in a process that does nothing else.

use std::{os::unix::process::CommandExt, path::Path, process::Command};

use piecemeal_runtimes::RuntimeKind;

/// Restarts the runtime's service. From a container it is done at the node's root, by another process of this program.
///
/// # Errors
/// Says what systemd says.
pub(crate) fn restart(root: &Path, runtime: RuntimeKind) -> Result<(), String> {
    let unit = runtime.name();
    let mut command = if root == Path::new("/") {
        systemctl(unit)
    } else {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.args(["node", COMMAND, "--root"]).arg(root).arg(unit);
        command
    };
    let output = command
        .output()
        .map_err(|error| format!("cannot run systemctl: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Becomes systemctl at the node's root. Returns only what went wrong.
pub(crate) fn become_systemctl(root: &Path, unit: &str) -> std::io::Error {
    let entered = rustix::process::chroot(root).and_then(|()| rustix::process::chdir("/"));
    match entered {
        Ok(()) => systemctl(unit).exec(),
        Err(error) => error.into(),
    }
}

fn systemctl(unit: &str) -> Command {
    let mut command = Command::new("systemctl");
    // Or it would ignore what is asked of it at another root than its own.
    command.args(["restart", unit]).env("SYSTEMD_IGNORE_CHROOT", "1");
    command
}

/// The hidden subcommand of `piecemeal node` that calls [`become_systemctl`].
pub(crate) const COMMAND: &str = "restart-runtime";
