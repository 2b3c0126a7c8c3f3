//! What is on the node, as far as a decision is made of it.

use std::{collections::BTreeSet, io};

use crate::{
    containerd::{self, Config},
    containers,
    root::Root,
    runtimes::RuntimeKind,
};

/// Read from disk at once; everything after that is decided without looking again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// `ID` of os-release.
    pub os: String,
    pub detected: Vec<RuntimeKind>,
    /// Of those that are containerd, whether detected or not.
    pub configs: Vec<(RuntimeKind, Config)>,
    /// The administrator's registries.conf and drop-ins, main file first.
    pub containers: Vec<(String, String)>,
}

impl Facts {
    pub(crate) fn gather(root: &Root) -> io::Result<Self> {
        let os = root.read("/etc/os-release").ok().flatten();
        let os = os
            .or_else(|| root.read("/usr/lib/os-release").ok().flatten())
            .unwrap_or_default();
        let is_there = |kind: &RuntimeKind| kind.traces().iter().any(|path| root.exists(path));
        let mut configs = Vec::new();
        for kind in RuntimeKind::ALL {
            if let Some(main) = kind.config_file() {
                configs.push((kind, config(root, main)?));
            }
        }
        let drop_ins = root.list(containers::DROP_INS)?.into_iter();
        let drop_ins = drop_ins
            .filter(|name| name.ends_with(".conf"))
            .map(|name| format!("{}/{name}", containers::DROP_INS));
        let mut containers = Vec::new();
        for path in [containers::MAIN.to_owned()].into_iter().chain(drop_ins) {
            if let Some(text) = root.read(&path)? {
                containers.push((path, text));
            }
        }
        Ok(Self {
            os: os_id(&os),
            detected: RuntimeKind::ALL.into_iter().filter(is_there).collect(),
            configs,
            containers,
        })
    }
}

impl Facts {
    /// The registries that the administrator's own registries.conf and drop-ins are about.
    pub(crate) fn configured_registries(&self) -> BTreeSet<String> {
        containers::configured(self.containers.iter().map(|(_, text)| &**text))
    }
}

/// A containerd's configuration with what it imports, each file once.
fn config(root: &Root, main: &str) -> io::Result<Config> {
    let mut config = Config::default();
    let mut todo = vec![main.to_owned()];
    while let Some(path) = todo.pop() {
        if config.files.iter().any(|(known, _)| *known == path) || config.files.len() == FILES_MAX {
            continue;
        }
        let Some(text) = root.read(&path)? else { continue };
        let mut found = Vec::new();
        for import in containerd::imports(&text) {
            found.extend(expand(root, &path, &import)?);
        }
        // The last of them is looked at last.
        todo.extend(found.into_iter().rev());
        config.files.push((path, text));
    }
    Ok(config)
}

/// The files of one entry of `imports`: a path, or one whose last part is a pattern.
fn expand(root: &Root, importing: &str, import: &str) -> io::Result<Vec<String>> {
    let folder_of = |path: &str| {
        path.rsplit_once('/')
            .map(|(folder, _)| folder.to_owned())
            .unwrap_or_default()
    };
    let path = if import.starts_with('/') {
        import.to_owned()
    } else {
        format!("{}/{import}", folder_of(importing))
    };
    if !path.contains('*') {
        return Ok(vec![path]);
    }
    let folder = folder_of(&path);
    let pattern = &path[folder.len() + 1..];
    let names = root
        .list(&folder)?
        .into_iter()
        .filter(|name| containerd::fits(pattern, name));
    Ok(names.map(|name| format!("{folder}/{name}")).collect())
}

fn os_id(os_release: &str) -> String {
    let id = os_release.lines().find_map(|line| line.strip_prefix("ID="));
    id.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
}

/// Of a configuration's files: nobody has more, and files that import each other come to an end.
const FILES_MAX: usize = 64;
