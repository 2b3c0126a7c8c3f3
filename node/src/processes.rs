//! Processes of the node, by /proc.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use rustix::process::{Pid, Signal, kill_process};

/// Every process that can be seen, with its name.
pub(crate) fn all() -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        Some((
            pid,
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .ok()?
                .trim_end()
                .to_owned(),
        ))
    })
    .collect()
}

/// Tells the processes of this name to read their files again; whether there was one.
///
/// Only those that have this root for theirs: another's may have the same name, in a container or beside one.
pub(crate) fn hang_up(name: &str, root: &Path) -> bool {
    let place = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let Some(here) = place(root) else { return false };
    let is_ours = |pid: u32| place(Path::new(&format!("/proc/{pid}/root"))) == Some(here);
    let told = all()
        .into_iter()
        .filter(|(pid, of)| of == name && is_ours(*pid))
        .filter(|(pid, _)| {
            let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            pid.is_some_and(|pid| kill_process(pid, Signal::HUP).is_ok())
        });
    told.count() > 0
}
