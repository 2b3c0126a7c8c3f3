//! A Docker daemon of a node's own, with its classic image store, and `docker` as its client.
//!
//! It has no bridge and changes no firewall, so that several run on one machine.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::{netns::Netns, outcome::CommandOutcome, process::Process};

/// Debian's client: another one may come first on the PATH.
const CLIENT: &str = "/usr/bin/docker";

/// A running dockerd.
#[derive(Debug)]
pub struct Docker {
    process: Process,
    dir: PathBuf,
}

impl Docker {
    /// Starts one that asks `mirror` for images of Docker Hub, and speaks plain HTTP to `insecure` registries. Everything of it is in `dir`.
    pub fn start(netns: &Netns, dir: &Path, mirror: &str, insecure: &[&str]) -> Self {
        fs::create_dir_all(dir.join("home")).expect("creating Docker's folders");
        // Not by `ip netns exec`: that hides the cgroups, without which dockerd does not start.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", netns.path().display()));
        // Names are those of the namespace.
        command.args(["unshare", "--mount", "sh", "-c", MOUNT_AND_RUN, "sh"]);
        command.arg(Path::new("/etc/netns").join(netns.name()));
        command.args([
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--storage-driver=vfs",
        ]);
        for (flag, file) in [("data-root", "data"), ("exec-root", "exec"), ("pidfile", "pid")] {
            command.arg(format!("--{flag}={}", dir.join(file).display()));
        }
        command.arg(format!("--host=unix://{}", socket(dir).display()));
        command.arg(format!("--registry-mirror={mirror}"));
        command.args(
            insecure
                .iter()
                .map(|registry| format!("--insecure-registry={registry}")),
        );
        let docker = Self {
            process: Process::start("dockerd", command, &dir.join("dockerd.log")),
            dir: dir.to_owned(),
        };
        docker.wait_until_ready();
        docker
    }

    pub fn pull(&self, image: &str) -> CommandOutcome {
        self.client(&["pull", image])
    }

    /// Logs the user in, as `docker login` does: the registry has to accept the password.
    pub fn log_in(&self, registry: &str, user: &str, password: &str) -> CommandOutcome {
        self.client(&["login", "--username", user, "--password", password, registry])
    }

    /// The digests of the uncompressed layers that it has of an image.
    pub fn layers(&self, image: &str) -> CommandOutcome {
        self.client(&["inspect", "--format", "{{json .RootFS.Layers}}", image])
    }

    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    fn client(&self, arguments: &[&str]) -> CommandOutcome {
        let mut command = Command::new(CLIENT);
        command.arg(format!("--host=unix://{}", socket(&self.dir).display()));
        command.arg(format!("--config={}", self.dir.join("home").display()));
        CommandOutcome::of(command.args(arguments), Instant::now())
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(socket(&self.dir)).is_err() {
            assert!(
                Instant::now() < deadline,
                "dockerd does not answer\n{}",
                self.process.log_tail()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Files of the namespace's `/etc`, its first argument, take the place of the machine's.
const MOUNT_AND_RUN: &str = r#"for file in "$1"/*; do [ -f "$file" ] && mount --bind "$file" /etc/"${file##*/}"; done; shift; exec dockerd "$@""#;

fn socket(dir: &Path) -> PathBuf {
    dir.join("docker.sock")
}
