//! Lookups on a node's disk that depend on the names that are wanted; all other facts are read at once, as [`Facts`](crate::facts::Facts).

use crate::{addresses, mark::Mark, root::Root, trust::trust};

/// A node's disk, read for the names that are wanted.
pub(crate) struct Disk<'a> {
    pub root: &'a Root,
    /// The port of the mirror in Docker's configuration that is ours.
    pub docker_port: Option<u16>,
}

impl Disk<'_> {
    /// The folder of a name: `host:port`, or `host_port_` where that is there, which containerd looks at first.
    pub(crate) fn folder(&self, certs_dir: &str, name: &str) -> String {
        let other = name
            .rsplit_once(':')
            .map(|(host, port)| format!("{certs_dir}/{host}_{port}_"));
        other
            .filter(|other| self.root.exists(other))
            .unwrap_or_else(|| format!("{certs_dir}/{name}"))
    }

    /// Whether a host leads to this machine, by the node's own list of hosts.
    pub(crate) fn leads_here(&self, host: &str) -> bool {
        let text = self.root.read(addresses::FILE).ok().flatten();
        text.is_some_and(|text| addresses::leads_here(&text, host))
    }

    /// Whether there are hosts for every name that has none of its own.
    pub(crate) fn has_default(&self, certs_dir: &str) -> bool {
        self.root.exists(&format!("{certs_dir}/_default/{HOSTS}"))
    }

    /// The lines by which a registry's own name is trusted.
    pub(crate) fn trust(&self, certs_dir: &str, name: &str) -> String {
        let folder = self.folder(certs_dir, name);
        let hosts = self.root.read(&format!("{folder}/{HOSTS}")).ok().flatten();
        let theirs = hosts.filter(|text| matches!(Mark::of(text), None | Some(Mark::Shared)));
        trust(&folder, theirs.as_deref(), &self.root.list(&folder).unwrap_or_default())
    }
}

pub(crate) const HOSTS: &str = "hosts.toml";
