//! Kinds of container runtimes, and where each keeps its files.
//!
//! A kind's name is also the name of its systemd unit, and of its label in metrics.

use std::{fmt, str::FromStr};

use serde::Serialize;

/// A container runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    Containerd,
    K3s,
    Rke2,
    Crio,
    Podman,
    Docker,
}

impl RuntimeKind {
    pub const ALL: [Self; 6] = [
        Self::Containerd,
        Self::K3s,
        Self::Rke2,
        Self::Crio,
        Self::Podman,
        Self::Docker,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
            Self::Crio => "crio",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }

    /// Paths that each prove that the runtime is on the node. A container may see only some of them.
    pub(crate) fn traces(self) -> &'static [&'static str] {
        match self {
            Self::Containerd => &[
                "/etc/containerd",
                "/run/containerd/containerd.sock",
                "/usr/bin/containerd",
                "/usr/local/bin/containerd",
            ],
            Self::K3s => &["/var/lib/rancher/k3s/agent", "/etc/rancher/k3s", "/usr/local/bin/k3s"],
            Self::Rke2 => &[
                "/var/lib/rancher/rke2/agent",
                "/etc/rancher/rke2",
                "/usr/local/bin/rke2",
            ],
            Self::Crio => &[
                "/etc/crio",
                "/run/crio/crio.sock",
                "/usr/bin/crio",
                "/usr/local/bin/crio",
            ],
            Self::Podman => &["/usr/bin/podman", "/usr/local/bin/podman"],
            Self::Docker => &[
                "/usr/bin/dockerd",
                "/usr/local/bin/dockerd",
                "/run/docker.sock",
                "/etc/docker/daemon.json",
            ],
        }
    }

    /// The configuration of a containerd.
    pub(crate) fn config_file(self) -> Option<&'static str> {
        match self {
            Self::Containerd => Some("/etc/containerd/config.toml"),
            Self::K3s => Some("/var/lib/rancher/k3s/agent/etc/containerd/config.toml"),
            Self::Rke2 => Some("/var/lib/rancher/rke2/agent/etc/containerd/config.toml"),
            Self::Crio | Self::Podman | Self::Docker => None,
        }
    }

    /// The folder of a containerd's hosts.toml files unless its configuration says otherwise.
    pub(crate) fn certs_dir(self) -> Option<&'static str> {
        match self {
            Self::Containerd => Some("/etc/containerd/certs.d"),
            Self::K3s => Some("/var/lib/rancher/k3s/agent/etc/containerd/certs.d"),
            Self::Rke2 => Some("/var/lib/rancher/rke2/agent/etc/containerd/certs.d"),
            Self::Crio | Self::Podman | Self::Docker => None,
        }
    }

    /// Whether the two have the same files.
    pub(crate) fn shares_files_with(self, other: Self) -> bool {
        let has_drop_ins = |kind| matches!(kind, Self::Crio | Self::Podman);
        self == other || (has_drop_ins(self) && has_drop_ins(other))
    }

    /// The process that rereads its configuration at SIGHUP. Other runtimes read their files at every pull.
    pub(crate) fn process(self) -> Option<&'static str> {
        match self {
            Self::Crio => Some("crio"),
            Self::Docker => Some("dockerd"),
            Self::Containerd | Self::K3s | Self::Rke2 | Self::Podman => None,
        }
    }
}

impl fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RuntimeKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is no runtime; there are {names}, and auto for those that are found")
        })
    }
}
