//! Network namespaces, each a machine of the emulated site.
//!
//! A namespace lives as long as the last clone of its [`Netns`]; what still runs in it is killed then. Namespaces of test
//! processes that died without cleaning up are removed when the first one is created.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::AsFd,
    panic,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{
    scratch::{is_orphan, owned_name},
    tools::run,
};

/// A handle on a network namespace.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Namespace>);

impl Netns {
    /// Creates a namespace with its loopback up; `label` ends its name.
    pub fn create(label: &str) -> Self {
        static STALE_REMOVED: Once = Once::new();
        static CREATED: AtomicU32 = AtomicU32::new(0);
        STALE_REMOVED.call_once(Self::remove_stale);
        let name = owned_name(&format!("{}-{label}", CREATED.fetch_add(1, Ordering::Relaxed)));
        run(Command::new("ip").args(["netns", "add", &name]));
        let netns = Self(Arc::new(Namespace { name }));
        netns.ip("link set lo up");
        netns
    }

    /// Removes the namespaces of test processes that are dead, with what runs in them.
    pub fn remove_stale() {
        // Absent until the first `ip netns add` on this machine.
        let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
        for name in entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
        {
            if is_orphan(&name) {
                remove(&name);
            }
        }
    }

    /// As known to `ip netns`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(self.name())
    }

    /// Runs `work` on a thread of its own inside the namespace. What it opens there (sockets, devices) stays there when it
    /// is handed out.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("opening the namespace");
        let entered = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("moving a thread into the namespace");
            work()
        };
        let outcome = thread::scope(|scope| scope.spawn(entered).join());
        outcome.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    }

    /// A command that will run inside the namespace. `ip netns exec` replaces itself with the program, so the child's
    /// process id is the program's.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(), program]);
        command
    }

    /// Runs lines of `ip` in the namespace.
    pub fn ip(&self, lines: &str) {
        feed(Command::new("ip").args(["-n", self.name(), "-batch", "-"]), lines);
    }

    /// Runs lines of `tc` in the namespace.
    pub fn tc(&self, lines: &str) {
        feed(Command::new("tc").args(["-n", self.name(), "-batch", "-"]), lines);
    }

    /// Loads a ruleset of `nft` in the namespace.
    pub fn nft(&self, ruleset: &str) {
        feed(self.command("nft").args(["-f", "-"]), ruleset);
    }

    /// Sets a value below `/proc/sys/net`, which shows each thread its own namespace.
    pub fn sysctl(&self, key: &str, value: &str) {
        let file = Path::new("/proc/sys/net").join(key);
        self.enter(|| fs::write(&file, value))
            .unwrap_or_else(|error| panic!("setting {key}: {error}"));
    }

    /// Bytes that a network interface of the namespace has received, headers included.
    pub fn bytes_received(&self, interface: &str) -> u64 {
        self.interface_bytes(interface, "rx")
    }

    /// Bytes that a network interface of the namespace has sent, headers included.
    pub fn bytes_sent(&self, interface: &str) -> u64 {
        self.interface_bytes(interface, "tx")
    }

    fn interface_bytes(&self, interface: &str, direction: &str) -> u64 {
        let json = run(Command::new("ip").args(["-n", self.name(), "-s", "-j", "link", "show", "dev", interface]));
        let links: serde_json::Value = serde_json::from_str(&json).expect("ip prints JSON");
        links[0]["stats64"][direction]["bytes"]
            .as_u64()
            .expect("ip prints the interface's counters")
    }
}

#[derive(Debug)]
struct Namespace {
    name: String,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Kills what runs in a namespace and deletes it. It says what fails and goes on, since it also runs while unwinding.
fn remove(name: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !kill_all_in(name) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    match Command::new("ip").args(["netns", "delete", name]).output() {
        Ok(output) if output.status.success() => {}
        other => eprintln!("could not delete the namespace {name}: {other:?}"),
    }
}

/// Sends SIGKILL to every process of the namespace; true when there was none.
fn kill_all_in(name: &str) -> bool {
    let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() else {
        return true;
    };
    let listing = String::from_utf8_lossy(&output.stdout);
    let pids: Vec<Pid> = listing
        .lines()
        .filter_map(|line| Pid::from_raw(line.parse().ok()?))
        .collect();
    for pid in &pids {
        // It may have ended by itself meanwhile.
        let _ = kill_process(*pid, Signal::KILL);
    }
    pids.is_empty()
}

fn feed(command: &mut Command, input: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("standard input is piped");
    // A program that gives up early closes its end; its exit status tells why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("waiting for the program");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {complaint}\nits input:\n{input}",
        output.status
    );
}

const NAMESPACES: &str = "/run/netns";
