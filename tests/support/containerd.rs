//! A containerd of a node's own, and `ctr` as its client.
//!
//! `ctr` downloads in its own process and hands the bytes to containerd, so it is what must run inside the node's
//! namespace, and its `--hosts-dir` is the mirror configuration that counts.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    image::{architecture, sha256},
    netns::Netns,
    outcome::CommandOutcome,
    process::Process,
    tools::{go_tool, run},
};

/// A running containerd without CRI.
#[derive(Debug)]
pub struct Containerd {
    process: Process,
    netns: Netns,
    dir: PathBuf,
    ctr: PathBuf,
}

/// How a containerd of today takes a layer apart into chunks, which it fetches side by side.
#[derive(Clone, Copy, Debug)]
pub struct Chunks {
    pub bytes: usize,
    /// Of all layers of an image together.
    pub at_once: usize,
}

impl Containerd {
    /// Starts Debian's, with root, state and socket in `dir`, whose path must leave room for a socket name (108 bytes).
    pub fn start(netns: &Netns, dir: &Path) -> Self {
        Self::start_as(
            netns,
            dir,
            ["containerd", "ctr"].map(PathBuf::from),
            &settings(2, dir, ""),
        )
    }

    /// Starts the one of today, which `cargo xtask test` builds. [`Self::pull`] goes through its transfer service, so that
    /// the daemon downloads and not `ctr`.
    pub fn start_chunked(netns: &Netns, dir: &Path, chunks: Chunks) -> Self {
        let more = format!(
            "[debug]\n\
             level = \"debug\"\n\
             [plugins.\"io.containerd.transfer.v1.local\"]\n\
             concurrent_layer_fetch_buffer = {}\n\
             max_concurrent_downloads = {}\n\
             [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
             platform = \"linux/{}\"\n\
             snapshotter = \"native\"\n\
             differ = \"walking\"\n",
            chunks.bytes,
            chunks.at_once,
            architecture()
        );
        Self::start_as(netns, dir, ["containerd", "ctr"].map(go_tool), &settings(3, dir, &more))
    }

    fn start_as(netns: &Netns, dir: &Path, [containerd, ctr]: [PathBuf; 2], settings: &str) -> Self {
        fs::create_dir_all(dir.join("certs.d")).expect("creating containerd's folder");
        let config_file = dir.join("config.toml");
        fs::write(&config_file, settings).expect("writing containerd's configuration");

        let mut command = netns.command(containerd.to_str().expect("the tools' path is text"));
        command.arg("--config").arg(config_file);
        let process = Process::start("containerd", command, &dir.join("containerd.log"));
        let containerd = Self {
            process,
            netns: netns.clone(),
            dir: dir.to_owned(),
            ctr,
        };
        containerd.wait_until_ready();
        containerd
    }

    /// Configures a registry host: `toml` is its hosts.toml.
    pub fn write_hosts(&self, host: &str, toml: &str) {
        let dir = self.dir.join("certs.d").join(host);
        fs::create_dir_all(&dir).expect("creating the host's folder");
        fs::write(dir.join("hosts.toml"), toml).expect("writing hosts.toml");
    }

    /// Downloads an image without unpacking it.
    pub fn fetch(&self, reference: &str) -> CommandOutcome {
        CommandOutcome::of(&mut self.fetch_command(reference), Instant::now())
    }

    /// Downloads an image and unpacks its layers. The snapshotter is the one that works on every file system.
    pub fn pull(&self, reference: &str) -> CommandOutcome {
        let mut command = self.ctr(&["images", "pull", "--snapshotter", "native", "--hosts-dir"]);
        CommandOutcome::of(command.arg(self.dir.join("certs.d")).arg(reference), Instant::now())
    }

    /// Starts a download and returns at once; its clock starts at `started`.
    pub fn spawn_fetch(&self, reference: &str, started: Instant) -> JoinHandle<CommandOutcome> {
        let mut command = self.fetch_command(reference);
        thread::spawn(move || CommandOutcome::of(&mut command, started))
    }

    /// Whether containerd has committed a blob.
    pub fn has_blob(&self, digest: &str) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Whether a blob is there and hashes to its name.
    pub fn content_digest_ok(&self, digest: &str) -> bool {
        fs::read(self.blob_path(digest)).is_ok_and(|bytes| sha256(&bytes) == digest)
    }

    /// Forgets every image and all content, so that the next fetch is cold.
    pub fn remove_all_content(&self) {
        for image in run(&mut self.ctr(&["images", "list", "--quiet"])).lines() {
            run(self.ctr(&["images", "remove", "--sync"]).arg(image));
        }
        // What an interrupted fetch left is held by its lease, not by an image.
        for lease in run(&mut self.ctr(&["leases", "list", "--quiet"])).lines() {
            run(self.ctr(&["leases", "delete", "--sync"]).arg(lease));
        }
        for digest in run(&mut self.ctr(&["content", "list", "--quiet"])).lines() {
            run(self.ctr(&["content", "remove"]).arg(digest));
        }
    }

    pub fn log_text(&self) -> String {
        self.process.log_text()
    }

    /// Like [`Self::fetch`] with a password for the image's registry.
    pub fn fetch_as(&self, user_and_password: &str, reference: &str) -> CommandOutcome {
        let mut command = self.ctr(&["content", "fetch", "--user", user_and_password, "--hosts-dir"]);
        CommandOutcome::of(command.arg(self.dir.join("certs.d")).arg(reference), Instant::now())
    }

    fn fetch_command(&self, reference: &str) -> Command {
        let mut command = self.ctr(&["content", "fetch", "--hosts-dir"]);
        command.arg(self.dir.join("certs.d")).arg(reference);
        command
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = self.netns.command(self.ctr.to_str().expect("the tools' path is text"));
        command.arg("--address").arg(socket(&self.dir)).args(arguments);
        command
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest
            .strip_prefix("sha256:")
            .expect("containerd names content by SHA-256");
        self.dir
            .join("root/io.containerd.content.v1.content/blobs/sha256")
            .join(hex)
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        // A connection is accepted before the services are up, and is then answered when they are.
        while UnixStream::connect(socket(&self.dir)).is_err() {
            assert!(
                Instant::now() < deadline,
                "containerd does not answer\n{}",
                self.process.log_tail()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A configuration file of this version, which ends with `more`.
fn settings(version: u32, dir: &Path, more: &str) -> String {
    let (root, state, socket) = (dir.join("root"), dir.join("state"), socket(dir));
    format!(
        "version = {version}\n\
         root = {root:?}\n\
         state = {state:?}\n\
         disabled_plugins = [{UNUSED_PLUGINS}]\n\
         [grpc]\n\
         address = {socket:?}\n\
         {more}"
    )
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("containerd.sock")
}

/// CRI wants a network configuration, `opt` creates /opt/containerd, and the others cost time at each start.
const UNUSED_PLUGINS: &str = r#""io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs""#;
