//! Facts about the node that decisions depend on, read from disk and /proc.
//!
//! Invariant: they are read once; a file that cannot be read is a fact too, and concerns its own runtime alone.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
};

use crate::{
    containerd::{self, Config},
    containers, docker,
    kind::RuntimeKind,
    processes::{self, Running},
    root::Root,
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
    /// One of those is there and cannot be read, and why.
    pub containers_problem: Option<String>,
    /// Runtimes that run; none: the node's processes cannot be seen from here.
    pub running: Option<Vec<Running>>,
    /// The command line or unit file that gives dockerd mirrors by a flag.
    pub docker_flag: Option<String>,
}

impl Facts {
    /// A file that cannot be read is a fact, too: it concerns its own runtime and no other.
    pub(crate) fn gather(root: &Root) -> Self {
        let os = root.read("/etc/os-release").ok().flatten();
        let os = os
            .or_else(|| root.read("/usr/lib/os-release").ok().flatten())
            .unwrap_or_default();
        let is_there = |kind: &RuntimeKind| kind.traces().iter().any(|path| root.exists(path));
        let config = |kind: RuntimeKind| Some((kind, config(root, kind.config_file()?)));
        let (containers, containers_problem) = containers(root);
        let running = processes::running(root, &["containerd", "dockerd"]);
        Self {
            os: os_id(&os),
            detected: RuntimeKind::ALL.into_iter().filter(is_there).collect(),
            configs: RuntimeKind::ALL.into_iter().filter_map(config).collect(),
            containers,
            containers_problem,
            docker_flag: docker_flag(root, running.as_deref().unwrap_or_default()),
            running,
        }
    }

    /// The registries that the administrator's own registries.conf and drop-ins are about.
    pub(crate) fn configured_registries(&self) -> BTreeSet<String> {
        containers::configured(self.containers.iter().map(|(_, text)| &**text))
    }
}

/// registries.conf and the drop-ins that can be read, and why one cannot.
fn containers(root: &Root) -> (Vec<(String, String)>, Option<String>) {
    let (mut files, mut problem) = (Vec::new(), None);
    let drop_ins = root.list(containers::DROP_INS).unwrap_or_else(|error| {
        problem = Some(unreadable(containers::DROP_INS, &error));
        Vec::new()
    });
    let drop_ins = drop_ins
        .into_iter()
        .filter(|name| name.ends_with(".conf"))
        .map(|name| format!("{}/{name}", containers::DROP_INS));
    for path in [containers::MAIN.to_owned()].into_iter().chain(drop_ins) {
        match root.read(&path) {
            Ok(text) => files.extend(text.map(|text| (path, text))),
            // The runtimes pass over a folder, too.
            Err(error) if error.kind() == ErrorKind::IsADirectory => {}
            Err(error) => problem = Some(unreadable(&path, &error)),
        }
    }
    (files, problem)
}

fn unreadable(path: &str, error: &io::Error) -> String {
    format!("{path} cannot be read ({error}); make it readable, or take it away")
}

/// The command line or unit file that gives dockerd `--registry-mirror`.
fn docker_flag(root: &Root, running: &[Running]) -> Option<String> {
    let mut runs = running.iter().filter(|process| process.name == "dockerd");
    if runs.any(|process| {
        process
            .arguments
            .iter()
            .any(|argument| docker::is_mirror_flag(argument))
    }) {
        return Some("the command line of the dockerd that runs".to_owned());
    }
    let of_folder = |folder: &str| {
        let names = root.list(folder).unwrap_or_default().into_iter();
        names
            .filter(|name| name.ends_with(".conf"))
            .map(|name| format!("{folder}/{name}"))
            .collect::<Vec<_>>()
    };
    let mut files: Vec<String> = docker::STARTED_BY.map(str::to_owned).into();
    files.extend(docker::DROP_INS.iter().flat_map(|folder| of_folder(folder)));
    files.into_iter().find(|path| {
        let text = root.read(path).ok().flatten().unwrap_or_default();
        let lines = text
            .lines()
            .map(str::trim_start)
            .filter(|line| !line.starts_with(['#', ';']));
        lines
            .flat_map(|line| line.split([' ', '\t', '=', '"', '\'']))
            .any(docker::is_mirror_flag)
    })
}

/// A containerd's configuration with its imports, each file once, as far as the files are readable.
fn config(root: &Root, main: &str) -> Config {
    let mut config = Config::default();
    if let Err((path, error)) = read_config(root, main, &mut config) {
        config.unreadable = Some(unreadable(&path, &error));
    }
    let modified = |(path, _): &(String, String)| Some((path.clone(), root.modified(path)?));
    config.newest = config.files.iter().filter_map(modified).max_by_key(|(_, at)| *at);
    config
}

fn read_config(root: &Root, main: &str, config: &mut Config) -> Result<(), (String, io::Error)> {
    let mut todo = vec![main.to_owned()];
    while let Some(path) = todo.pop() {
        if config.files.iter().any(|(known, _)| *known == path) || config.files.len() == FILES_MAX {
            continue;
        }
        let text = root.read(&path).map_err(|error| (path.clone(), error))?;
        let Some(text) = text else { continue };
        let mut found = Vec::new();
        for import in containerd::imports(&text) {
            found.extend(expand(root, &path, &import).map_err(|error| (import, error))?);
        }
        // The last of them is looked at last.
        todo.extend(found.into_iter().rev());
        config.files.push((path, text));
    }
    Ok(())
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

/// The most files of one configuration. No real one has more, and the limit ends a cycle of imports.
const FILES_MAX: usize = 64;
