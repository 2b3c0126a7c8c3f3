//! Node: its file system, on which node set-up is installed, removed and looked at.
//!
//! Facts are read once, the decision is pure, and a [`Run`] carries it out.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::Duration,
};

use crate::{
    addresses, containers, cri,
    disk::{Disk, HOSTS},
    docker,
    edit::Edit,
    facts::Facts,
    kind::RuntimeKind,
    listeners::listeners,
    lock::lock,
    mark::Mark,
    report::{FileCondition, Report, RuntimeReport, Status, StatusFile},
    restart::{self, Restart},
    root::Root,
    run::Run,
    runtime::{Runtime, runtimes},
    settings::Settings,
    state::{self, NodeState},
    wanted,
};

/// A node, by its file system.
#[derive(Debug)]
pub struct Node {
    pub(crate) root: Root,
}

/// Why a run did not begin or end. A failure of one file is in the [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("cannot open {path} as the node's root; give the folder where its file system is with --root")]
    Root {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot lock the node's /etc")]
    Lock(#[source] io::Error),
    #[error("another `piecemeal node` has been changing this node for {} seconds; wait for it, or end it", PATIENCE.as_secs())]
    Busy,
    #[error("cannot write {}, the list of files that belong to piecemeal node", state::FILE)]
    State(#[source] io::Error),
}

impl Node {
    /// # Errors
    /// The root cannot be opened.
    pub fn open(root: &Path) -> Result<Self, NodeError> {
        let opened = Root::open(root).map_err(|source| NodeError::Root {
            path: root.display().to_string(),
            source,
        });
        Ok(Self { root: opened? })
    }

    /// Brings every file to what `settings` ask for. A second time changes nothing.
    ///
    /// # Errors
    /// The run could not begin, or its state file could not be written.
    pub fn install(&self, settings: &Settings, restart: Option<Restart<'_>>) -> Result<Report, NodeError> {
        let mut run = self.begin(PATIENCE)?;
        let mut facts = self.facts();
        let mut found = runtimes(&facts, &settings.runtimes);
        if let Some(restart) = restart
            && restart::make_ready(&mut run, &found, restart)
        {
            facts = self.facts();
            found = runtimes(&facts, &settings.runtimes);
        }
        let configured = facts.configured_registries();
        let taken = |name: &str| configured.contains(name);
        let disk = self.disk(&run.state);
        let mut kept = BTreeSet::new();
        for runtime in &mut found {
            run.remember_certs_dir(runtime);
            if let Some(file) = wanted::addresses(runtime, settings)
                && kept.insert(file.path.clone())
            {
                run.write(&file, settings);
            }
            for file in wanted::wanted(runtime, settings, &taken, &disk) {
                if kept.insert(file.path.clone()) {
                    run.write(&file, settings);
                }
            }
            run.note_unwritten(runtime);
        }
        for (path, runtime) in self.ours(&facts, &run.state, settings.peer_port) {
            let is_wired = found
                .iter()
                .any(|found| found.kind.shares_files_with(runtime) && found.is_wired);
            // What Docker must not have does not depend on which hosts are known.
            let is_refusing = |found: &Runtime| found.kind == runtime && !found.is_ready();
            let is_refused = runtime == RuntimeKind::Docker && found.iter().any(is_refusing);
            let is_complete = settings.is_complete || is_refused;
            if is_complete && is_wired && !kept.contains(&path) {
                run.take_back(&path, runtime, settings.peer_port, false);
            }
        }
        run.report.runtimes = found.iter().map(RuntimeReport::of).collect();
        run.finish().map_err(NodeError::State)
    }

    /// Removes our files and our parts of shared ones. Without `purge` accelerated names still lead to their registries.
    ///
    /// # Errors
    /// The run could not begin, or its state file could not be written.
    pub fn remove(&self, settings: &Settings, purge: bool) -> Result<Report, NodeError> {
        let mut run = self.begin(PATIENCE)?;
        let facts = self.facts();
        let asked = &settings.runtimes;
        let is_asked = |kind: RuntimeKind| asked.is_empty() || asked.iter().any(|asked| asked.shares_files_with(kind));
        for (kind, config) in facts.configs.iter().filter(|(kind, _)| is_asked(*kind)) {
            let is_known = run.state.certs_dirs.contains_key(kind.name());
            if let (Some(why), false) = (config.broken(), is_known) {
                run.report.remains.push(format!(
                    "{why}; until then piecemeal node cannot tell whether {kind} has files of it in a folder other than {}",
                    kind.certs_dir().unwrap_or_default()
                ));
            }
        }
        for (path, runtime) in self.ours(&facts, &run.state, settings.peer_port) {
            if is_asked(runtime) {
                run.take_back(&path, runtime, settings.peer_port, purge);
            }
        }
        if purge {
            restart::take_back(&mut run);
        }
        // A file that is gone already needs no way back.
        run.state.files.retain(|path, _| self.root.exists(path));
        run.finish().map_err(NodeError::State)
    }

    /// The node's present status. Changes nothing.
    ///
    /// # Errors
    /// Nothing could be decided.
    pub fn status(&self, settings: &Settings) -> Result<Status, NodeError> {
        let facts = self.facts();
        let state = NodeState::load(&self.root);
        let mut found = runtimes(&facts, &settings.runtimes);
        let configured = facts.configured_registries();
        let taken = |name: &str| configured.contains(name);
        let mut paths: BTreeSet<String> = state.files.keys().cloned().collect();
        paths.extend(self.ours(&facts, &state, settings.peer_port).into_keys());
        for runtime in &mut found {
            let files = wanted::wanted(runtime, settings, &taken, &self.disk(&state));
            for file in wanted::addresses(runtime, settings).into_iter().chain(files) {
                let current = self.root.read(&file.path).ok().flatten();
                if !matches!(file.edit(settings, current.as_deref()), Edit::Nothing) || current.is_some() {
                    paths.insert(file.path);
                }
            }
        }
        let file = |path: String| StatusFile {
            standing: self.standing(&state, &path, settings.peer_port),
            path,
        };
        Ok(Status {
            files: paths.into_iter().map(file).collect(),
            runtimes: found.iter().map(RuntimeReport::of).collect(),
            peer_port: settings.peer_port,
            listeners: listeners(settings.peer_port),
        })
    }

    fn standing(&self, state: &NodeState, path: &str, peer_port: u16) -> FileCondition {
        let Ok(Some(text)) = self.root.read(path) else {
            return if self.root.exists(path) {
                FileCondition::Foreign
            } else {
                FileCondition::Missing
            };
        };
        let mark = Mark::of(&text);
        let ports = state.docker_ports(peer_port);
        if mark.is_none() && !(path == docker::FILE && docker::has_peer(&ports, &text)) {
            return FileCondition::Foreign;
        }
        let is_shared = matches!(mark, None | Some(Mark::Shared));
        let is_whole = is_shared && !matches!(wanted::take_back(path, &text, &ports, false), Edit::Leave(_));
        // Without a note of it, its own word counts.
        if is_whole || state.is_as_written(path, &text) || !(is_shared || state.files.contains_key(path)) {
            FileCondition::Ours
        } else {
            FileCondition::Drifted
        }
    }

    /// Waits until a containerd that was restarted answers the kubelet's calls.
    ///
    /// # Errors
    /// Says that it does not.
    pub fn wait_for(&self, runtime: RuntimeKind) -> Result<(), String> {
        let configs = self.facts().configs;
        let Some((_, config)) = configs.iter().find(|(kind, _)| *kind == runtime) else {
            return Ok(());
        };
        let socket = config.socket();
        self.root
            .with_path(&socket, |socket| cri::wait(socket, RESTART_PATIENCE))
            .unwrap_or_else(|error| Err(format!("there is no {socket} ({error})")))
    }

    /// Waits for runs that others have begun.
    pub(crate) fn begin(&self, patience: Duration) -> Result<Run<'_>, NodeError> {
        let lock = lock(&self.root, patience).map_err(NodeError::Lock)?;
        Ok(Run::new(&self.root, lock.ok_or(NodeError::Busy)?))
    }

    fn facts(&self) -> Facts {
        Facts::gather(&self.root)
    }

    fn disk(&self, state: &NodeState) -> Disk<'_> {
        Disk {
            root: &self.root,
            docker_port: state.docker_port,
        }
    }

    /// Every file on the node with our mark, or with our mirror.
    fn ours(&self, facts: &Facts, state: &NodeState, peer_port: u16) -> BTreeMap<String, RuntimeKind> {
        let mut ours = BTreeMap::new();
        for (dir, runtime) in certs_dirs(facts, state) {
            for name in self.root.list(&dir).unwrap_or_default() {
                ours.insert(format!("{dir}/{name}/{HOSTS}"), runtime);
            }
        }
        let crio_or_podman = if facts.detected.contains(&RuntimeKind::Crio) {
            RuntimeKind::Crio
        } else {
            RuntimeKind::Podman
        };
        for name in [containers::ACCELERATED_FILE, containers::ORIGINAL_FILE] {
            ours.insert(format!("{}/{name}", containers::DROP_INS), crio_or_podman);
        }
        ours.insert(addresses::FILE.to_owned(), crio_or_podman);
        ours.insert(docker::FILE.to_owned(), RuntimeKind::Docker);
        ours.retain(|path, _| {
            let text = self.root.read(path).ok().flatten();
            text.is_some_and(|text| {
                let ports = state.docker_ports(peer_port);
                Mark::of(&text).is_some() || (path == docker::FILE && docker::has_peer(&ports, &text))
            })
        });
        ours
    }
}

/// The folders that our hosts.toml files may be in: those that the runtimes read now, and those that they read when the files were
/// written.
fn certs_dirs(facts: &Facts, state: &NodeState) -> BTreeMap<String, RuntimeKind> {
    let mut dirs = BTreeMap::new();
    for runtime in runtimes(facts, &RuntimeKind::ALL) {
        let default = runtime.kind.certs_dir().map(str::to_owned);
        for dir in [runtime.certs_dir, default].into_iter().flatten() {
            dirs.entry(dir).or_insert(runtime.kind);
        }
    }
    for (runtime, known) in &state.certs_dirs {
        for dir in known {
            let kind = runtime.parse().unwrap_or(RuntimeKind::Containerd);
            dirs.entry(dir.clone()).or_insert(kind);
        }
    }
    for path in state.files.keys() {
        let dir = path
            .strip_suffix(HOSTS)
            .and_then(|folder| folder.trim_end_matches('/').rsplit_once('/'));
        if let Some((dir, _)) = dir {
            dirs.entry(dir.to_owned()).or_insert(RuntimeKind::Containerd);
        }
    }
    dirs
}

/// The longest wait for another run: it may be one that restarts a runtime.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest time for a runtime to answer.
const RESTART_PATIENCE: Duration = Duration::from_secs(60);
