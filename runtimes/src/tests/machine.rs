//! Test machine: a node whose file system is a temporary folder.

use std::{collections::BTreeMap, fs, path::PathBuf};

use tempfile::TempDir;

use crate::{
    names::{Names, Upstream, registries},
    node::Node,
    report::{FileCondition, Report},
    settings::Settings,
};

/// A node whose file system is a temporary folder.
pub(super) struct Machine {
    pub dir: TempDir,
    pub node: Node,
}

impl Machine {
    pub(super) fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let file = dir.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let node = Node::open(dir.path()).unwrap();
        Self { dir, node }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    pub(super) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    pub(super) fn install(&self, settings: &Settings) -> Report {
        self.node.install(settings, None).unwrap()
    }

    pub(super) fn standing(&self, settings: &Settings, path: &str) -> Option<FileCondition> {
        let status = self.node.status(settings).unwrap();
        status
            .files
            .iter()
            .find(|file| file.path == path)
            .map(|file| file.standing)
    }

    /// Every file and folder with its text.
    pub(super) fn everything(&self) -> BTreeMap<PathBuf, Option<String>> {
        let mut all = BTreeMap::new();
        let mut todo = vec![self.dir.path().to_owned()];
        while let Some(path) = todo.pop() {
            if path.is_dir() {
                todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                all.insert(path, None);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                all.insert(path, Some(text));
            }
        }
        all
    }
}

pub(super) fn settings(names: Names) -> Settings {
    let upstream = |name: &str, url: &str| Upstream {
        name: name.to_owned(),
        url: url.parse().unwrap(),
    };
    let upstreams = [
        upstream("docker.io", "https://registry-1.docker.io"),
        upstream("reg.test:5000", "http://10.99.0.2:5000"),
    ];
    Settings {
        registries: registries(&upstreams, [].into_iter()),
        peer_port: 65001,
        has_peer: true,
        names,
        runtimes: Vec::new(),
        is_complete: true,
    }
}

pub(super) const READY: &str =
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
pub(super) const CONFIG: &str = "/etc/containerd/config.toml";
pub(super) const ACCELERATED: &str = "/etc/containerd/certs.d/docker.io.piecemeal.internal:65001/hosts.toml";
pub(super) const ORIGINAL: &str = "/etc/containerd/certs.d/docker.io/hosts.toml";
