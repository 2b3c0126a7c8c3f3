//! State file of node set-up: `/etc/piecemeal/node-state.json`.
//!
//! It tells drift from a change of settings and records the folders that were made. Each of our files bears its own mark: without
//! the state file, or with one that cannot be read, the files can still be taken back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use piecemeal_proto::Digest;
use serde::{Deserialize, Serialize};

use crate::{replace::write, root::Root};

pub(crate) const FILE: &str = "/etc/piecemeal/node-state.json";
const FOLDER: &str = "/etc/piecemeal";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NodeState {
    version: u32,
    /// Digest of each written text, by path.
    pub files: BTreeMap<String, String>,
    /// Folders that were made for them.
    pub folders: BTreeSet<String>,
    /// Runtimes that were restarted once, and are not again.
    pub restarted: BTreeSet<String>,
    /// The folders into which hosts.toml files were written, by runtime: its configuration may not tell any more.
    pub certs_dirs: BTreeMap<String, BTreeSet<String>>,
    /// The port of the mirror that was put into Docker's configuration, which has no comments to tell it by.
    pub docker_port: Option<u16>,
}

impl NodeState {
    /// The state on disk; an empty one where no file is readable.
    pub(crate) fn load(root: &Root) -> Self {
        let text = root.read(FILE).ok().flatten();
        let state: Option<Self> = text.and_then(|text| serde_json::from_str(&text).ok());
        state.filter(|state| state.version <= VERSION).unwrap_or_default()
    }

    /// Writes the file if the state has changed, and deletes it if the state is empty.
    pub(crate) fn save(mut self, root: &Root) -> io::Result<()> {
        if self.files.is_empty() {
            self.certs_dirs.clear();
        }
        if self.files.is_empty() && self.restarted.is_empty() && self.docker_port.is_none() {
            // A system that is read-only is not asked to remove what is not there.
            if root.exists(FILE) {
                root.remove(FILE)?;
            }
            self.remove_folders(root);
            return Ok(());
        }
        if self == Self::load(root) {
            return Ok(());
        }
        self.version = VERSION;
        let mut made = Vec::new();
        root.make_folder(FOLDER, &mut made)?;
        self.folders.extend(made);
        let text = serde_json::to_string_pretty(&self).map_err(io::Error::other)?;
        write(root, FILE, &format!("{text}\n"), &mut Vec::new())
    }

    pub(crate) fn wrote(&mut self, path: &str, text: &str) {
        self.files.insert(path.to_owned(), digest(text));
    }

    pub(crate) fn is_as_written(&self, path: &str, text: &str) -> bool {
        self.files.get(path).is_some_and(|written| *written == digest(text))
    }

    /// Ports by which our mirror in Docker's configuration is known: the written one, and today's.
    pub(crate) fn docker_ports(&self, peer_port: u16) -> Vec<u16> {
        self.docker_port.into_iter().chain([peer_port]).collect()
    }

    /// Removes the folders that were made and are empty, the innermost first.
    pub(crate) fn remove_folders(&mut self, root: &Root) {
        let folders: Vec<String> = self.folders.iter().rev().cloned().collect();
        for folder in folders {
            if root.remove_folder(&folder) {
                self.folders.remove(&folder);
            }
        }
    }
}

pub(crate) fn digest(text: &str) -> String {
    Digest::of(text.as_bytes()).to_string()
}

const VERSION: u32 = 1;
