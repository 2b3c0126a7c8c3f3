//! A containerd as the kubelet has it: by its CRI socket, with a `/etc/containerd` that is the node's own.
//!
//! Its configuration lies in a folder that stands for the node's root, where `piecemeal node --root` finds it. The process sees
//! that folder's `/etc/containerd` for its own, in a mount namespace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::{
    image::architecture,
    netns::Netns,
    outcome::CommandOutcome,
    process::Process,
    tools::{go_tool, run},
};

/// A running containerd with its CRI plugin, and `crictl` as its kubelet.
#[derive(Debug)]
pub struct CriNode {
    process: Process,
    netns: Netns,
    dir: PathBuf,
}

/// The build of containerd.
#[derive(Clone, Copy, Debug)]
pub enum CriVersion {
    /// 1.6 of Debian.
    Debian,
    /// The one of today, which pulls through its transfer service.
    Today,
}

impl CriNode {
    /// Starts it with everything below `dir`. `config_path`: whether it reads hosts.toml files.
    pub fn start(netns: &Netns, dir: &Path, version: CriVersion, config_path: bool) -> Self {
        let table = match version {
            CriVersion::Debian => "io.containerd.grpc.v1.cri",
            CriVersion::Today => "io.containerd.cri.v1.images",
        };
        let lines = format!("[plugins.\"{table}\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n");
        Self::start_with(netns, dir, version, if config_path { &lines } else { "" })
    }

    /// The same with these lines at the end of its configuration.
    pub fn start_with(netns: &Netns, dir: &Path, version: CriVersion, lines: &str) -> Self {
        let etc = dir.join("root/etc/containerd");
        for folder in [etc.clone(), dir.join("cni")] {
            fs::create_dir_all(folder).expect("creating the node's folders");
        }
        fs::create_dir_all("/etc/containerd").expect("creating a place to mount on");
        fs::write(etc.join("config.toml"), config(version, dir) + lines).expect("writing containerd's configuration");
        let program = match version {
            CriVersion::Debian => PathBuf::from("containerd"),
            CriVersion::Today => go_tool("containerd"),
        };
        // `ip netns exec` has made a mount namespace of the process's own. Without a resolver an unknown name fails at once.
        let script = format!(
            "mount --bind '{}' /etc/containerd && mount --bind /dev/null /etc/resolv.conf && exec '{}' --config /etc/containerd/config.toml",
            etc.display(),
            program.display()
        );
        let mut command = netns.command("sh");
        command.args(["-c", &script]);
        let node = Self {
            process: Process::start("containerd", command, &dir.join("containerd.log")),
            netns: netns.clone(),
            dir: dir.to_owned(),
        };
        node.wait_until_ready();
        node
    }

    /// What stands for the node's file system.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// A file of the node's.
    pub fn file(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// `piecemeal node …` for this node, where its peer is, too.
    pub fn piecemeal(&self, arguments: &[&str]) -> CommandOutcome {
        CommandOutcome::of(&mut self.piecemeal_command(arguments), Instant::now())
    }

    pub fn piecemeal_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.netns.command(env!("CARGO_BIN_EXE_piecemeal"));
        command.arg("node").args(arguments).arg("--root").arg(self.root());
        command
    }

    /// Pulls as the kubelet does for a pod without pull secrets.
    pub fn pull(&self, image: &str) -> CommandOutcome {
        self.crictl(&["pull", image])
    }

    /// Pulls as the kubelet does with a pod's pull secret: it does not say for which host that is.
    pub fn pull_as(&self, user_and_password: &str, image: &str) -> CommandOutcome {
        self.crictl(&["pull", "--creds", user_and_password, image])
    }

    /// Forgets an image and what only it needed.
    pub fn remove_image(&self, image: &str) {
        self.crictl(&["rmi", image]).expect_ok();
    }

    /// Starts it again after it has been told to end.
    pub fn start_again(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.process.is_running() {
            assert!(
                Instant::now() < deadline,
                "containerd does not end\n{}",
                self.log_tail()
            );
            thread::sleep(Duration::from_millis(50));
        }
        self.process.start_again();
        self.wait_until_ready();
    }

    /// The process id, which stays the same until a restart.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    fn crictl(&self, arguments: &[&str]) -> CommandOutcome {
        let socket = format!("unix://{}", self.dir.join("containerd.sock").display());
        let mut command = Command::new(go_tool("crictl"));
        command.args([
            "--runtime-endpoint",
            &socket,
            "--image-endpoint",
            &socket,
            "--timeout",
            "60s",
        ]);
        CommandOutcome::of(command.args(arguments), Instant::now())
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.crictl(&["images"]).ok {
            assert!(
                Instant::now() < deadline,
                "containerd's CRI does not answer\n{}",
                self.log_tail()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for CriNode {
    fn drop(&mut self) {
        self.process.kill();
        // The native snapshotter's mounts are gone with the namespace; what is left are folders.
        run(Command::new("rm").args(["-rf"]).arg(self.dir.join("containerd")));
    }
}

/// A configuration as a node has it, but for the places of its folders.
fn config(version: CriVersion, dir: &Path) -> String {
    let (number, more) = match version {
        CriVersion::Debian => (2, debian(dir)),
        CriVersion::Today => (3, today(dir)),
    };
    let (containerd, socket) = (dir.join("containerd"), dir.join("containerd.sock"));
    format!(
        "version = {number}\n\
         root = {:?}\n\
         state = {:?}\n\
         disabled_plugins = [{UNUSED_PLUGINS}]\n\
         [grpc]\n\
         address = {socket:?}\n\
         {more}",
        containerd.join("root"),
        containerd.join("state"),
    )
}

fn debian(dir: &Path) -> String {
    let cni = dir.join("cni");
    format!(
        "[plugins.\"io.containerd.grpc.v1.cri\"]\n\
         stream_server_port = \"0\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
         snapshotter = \"native\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = {cni:?}\n\
         conf_dir = {cni:?}\n"
    )
}

fn today(dir: &Path) -> String {
    let cni = dir.join("cni");
    format!(
        "[plugins.\"io.containerd.cri.v1.images\"]\n\
         snapshotter = \"native\"\n\
         [plugins.\"io.containerd.cri.v1.runtime\".cni]\n\
         bin_dirs = [{cni:?}]\n\
         conf_dir = {cni:?}\n\
         [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
         platform = \"linux/{}\"\n\
         snapshotter = \"native\"\n\
         differ = \"walking\"\n",
        architecture()
    )
}

/// `opt` creates /opt/containerd, and the others cost time at each start.
const UNUSED_PLUGINS: &str = r#""io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs""#;
