//! Processes of the node, from /proc.
//!
//! Invariant: a process of a container is none of the node's runtimes, and gets no signal.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use rustix::process::{Pid, Signal, kill_process};

use crate::root::Root;

/// A process of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub name: String,
    pub arguments: Vec<String>,
    /// In seconds since 1970; up to one too early.
    pub started: i64,
}

/// The node's processes of these names, as its own /proc tells; none when it cannot be seen below the root.
pub(crate) fn running(root: &Root, names: &[&str]) -> Option<Vec<Running>> {
    let read = |path: &str| root.read(path).ok().flatten();
    let stat = read("/proc/stat")?;
    let booted: i64 = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
    let process = |pid: String| {
        let file = |name: &str| read(&format!("/proc/{pid}/{name}"));
        let name = file("comm")?.trim_end().to_owned();
        if !names.contains(&&*name) || file("status").is_some_and(|status| is_nested(&status)) {
            return None;
        }
        let started = booted + started(&file("stat")?)?;
        let arguments = file("cmdline")?.split_terminator('\0').map(str::to_owned).collect();
        Some(Running {
            name,
            arguments,
            started,
        })
    };
    let pids = root.list("/proc").ok()?;
    let pids = pids
        .into_iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    Some(pids.filter_map(process).collect())
}

/// A process with a number in a namespace below is in a container, where another runtime may run.
fn is_nested(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_whitespace().count() > 1)
}

/// Seconds after boot. Source: proc_pid_stat(5), field 22; the name before it may have anything in it.
fn started(stat: &str) -> Option<i64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: i64 = rest.split_whitespace().nth(19)?.parse().ok()?;
    Some(ticks / TICKS_PER_SECOND)
}

/// The kernel's unit in /proc, whatever its own timer runs at.
const TICKS_PER_SECOND: i64 = 100;

/// Every process that can be seen, with its name.
pub(crate) fn all() -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    pids.filter_map(|pid| Some((pid, name(pid)?.trim_end().to_owned())))
        .collect()
}

/// Sends SIGHUP to the processes of this name; whether there was one.
///
/// Only to those at this root: a process of a container may have the same name.
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

#[cfg(test)]
mod tests {
    use std::{
        fs::{create_dir_all, write},
        time::{SystemTime, UNIX_EPOCH},
    };

    use super::*;

    #[test]
    fn this_very_process_was_started_a_while_ago() {
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        let found = running(&Root::open(Path::new("/")).unwrap(), &[name.trim_end()]).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let age = |process: &Running| i64::try_from(now).unwrap() - process.started;
        // It was the last of its name, if it is not the only one.
        let youngest = found.iter().map(age).min();
        assert!(youngest.is_some_and(|age| (0..=3600).contains(&age)), "{youngest:?}");
    }

    #[test]
    fn the_nodes_own_processes_are_told_with_their_start_and_those_of_containers_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(running(&root, &["containerd"]), None, "there is no /proc");
        let process = |pid: u32, name: &str, numbers: &str| {
            let folder = dir.path().join(format!("proc/{pid}"));
            create_dir_all(&folder).unwrap();
            let zeros = "0 ".repeat(18);
            write(folder.join("comm"), format!("{name}\n")).unwrap();
            write(folder.join("status"), format!("Name:\t{name}\nNSpid:\t{numbers}\n")).unwrap();
            write(folder.join("stat"), format!("{pid} (a) b) S {zeros}250 7")).unwrap();
            write(folder.join("cmdline"), format!("/bin/{name}\0-c\0/x\0")).unwrap();
        };
        process(7, "containerd", "7");
        process(8, "containerd", "8 1");
        process(9, "bash", "9");
        write(dir.path().join("proc/stat"), "cpu 1 2\nbtime 1000\n").unwrap();
        let found = Running {
            name: "containerd".to_owned(),
            arguments: ["/bin/containerd", "-c", "/x"].map(str::to_owned).into(),
            started: 1002,
        };
        assert_eq!(running(&root, &["containerd"]), Some(vec![found]));
    }
}
