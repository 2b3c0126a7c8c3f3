//! Installer of a node's files: reads them, writes those that differ from the decision, and takes them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    path::Path,
    time::Duration,
};

use crate::{
    containerd::{self, Remedy},
    containers, cri, docker,
    edit::Edit,
    facts::Facts,
    hosts,
    listeners::listeners,
    mark::Mark,
    names::{Names, Registry},
    processes,
    report::{FileReport, Outcome, Report, RuntimeReport, Standing, Status, StatusFile},
    root::{Lock, Root, Seen, Stamp},
    runtimes::{Runtime, RuntimeKind, runtimes},
    state::{self, State},
    wanted::{self, HOSTS, Look, Wanted},
};

/// What a node should be like.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of [`crate::registries`].
    pub registries: Vec<Registry>,
    pub peer_port: u16,
    /// Whether there is a peer here, or will be.
    pub has_peer: bool,
    pub names: Names,
    /// Empty: those that are found.
    pub runtimes: Vec<RuntimeKind>,
    /// Whether these are all registries that there are. If not, files for others are left as they are.
    pub is_complete: bool,
}

impl Settings {
    pub(crate) fn peer(&self) -> Option<u16> {
        self.has_peer.then_some(self.peer_port)
    }
}

/// Restarts a runtime, where the administrator has allowed it, and waits until it answers; an error says that it does not.
pub type Restart<'a> = &'a dyn Fn(RuntimeKind) -> Result<(), String>;

/// A node, by its file system.
#[derive(Debug)]
pub struct Node {
    root: Root,
}

/// Why nothing was decided. What goes wrong with one file is told in the [`Report`].
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
    /// Nothing could be decided, or what was written could not be noted.
    pub fn install(&self, settings: &Settings, restart: Option<Restart<'_>>) -> Result<Report, NodeError> {
        let mut work = Work::new(self, PATIENCE)?;
        let mut facts = self.facts();
        let mut found = runtimes(&facts, &settings.runtimes);
        if let Some(restart) = restart
            && work.make_ready(&found, restart)
        {
            facts = self.facts();
            found = runtimes(&facts, &settings.runtimes);
        }
        let configured = facts.configured_registries();
        let taken = |name: &str| configured.contains(name);
        let disk = self.disk(&work.state);
        let mut kept = BTreeSet::new();
        for runtime in &mut found {
            work.remember_certs_dir(runtime);
            for file in wanted::wanted(runtime, settings, &taken, &disk) {
                if kept.insert(file.path.clone()) {
                    work.write(&file, settings);
                }
            }
            work.note_unwritten(runtime);
        }
        for (path, runtime) in self.ours(&facts, &work.state, settings.peer_port) {
            let is_wired = found
                .iter()
                .any(|found| found.kind.shares_files_with(runtime) && found.is_wired);
            // What Docker must not have does not depend on which hosts are known.
            let is_refusing = |found: &Runtime| found.kind == runtime && !found.is_ready();
            let is_refused = runtime == RuntimeKind::Docker && found.iter().any(is_refusing);
            let is_complete = settings.is_complete || is_refused;
            if is_complete && is_wired && !kept.contains(&path) {
                work.take_back(&path, runtime, settings.peer_port, false);
            }
        }
        work.report.runtimes = found.iter().map(RuntimeReport::of).collect();
        work.finish()
    }

    /// Takes back what is ours. Accelerated names go on leading to their registries unless `purge` says otherwise.
    ///
    /// # Errors
    /// Nothing could be decided, or what is left could not be noted.
    pub fn remove(&self, settings: &Settings, purge: bool) -> Result<Report, NodeError> {
        let mut work = Work::new(self, PATIENCE)?;
        let facts = self.facts();
        let asked = &settings.runtimes;
        let is_asked = |kind: RuntimeKind| asked.is_empty() || asked.iter().any(|asked| asked.shares_files_with(kind));
        for (kind, config) in facts.configs.iter().filter(|(kind, _)| is_asked(*kind)) {
            let is_known = work.state.certs_dirs.contains_key(kind.name());
            if let (Some(why), false) = (config.broken(), is_known) {
                work.report.remains.push(format!(
                    "{why}; until then piecemeal node cannot tell whether {kind} has files of it in a folder other than {}",
                    kind.certs_dir().unwrap_or_default()
                ));
            }
        }
        for (path, runtime) in self.ours(&facts, &work.state, settings.peer_port) {
            if is_asked(runtime) {
                work.take_back(&path, runtime, settings.peer_port, purge);
            }
        }
        if purge {
            work.take_back_remedies();
        }
        // A file that is gone already needs no way back.
        work.state.files.retain(|path, _| self.root.exists(path));
        work.finish()
    }

    /// What is there now. Nothing is changed.
    ///
    /// # Errors
    /// Nothing could be decided.
    pub fn status(&self, settings: &Settings) -> Result<Status, NodeError> {
        let facts = self.facts();
        let state = State::load(&self.root);
        let mut found = runtimes(&facts, &settings.runtimes);
        let configured = facts.configured_registries();
        let taken = |name: &str| configured.contains(name);
        let mut paths: BTreeSet<String> = state.files.keys().cloned().collect();
        paths.extend(self.ours(&facts, &state, settings.peer_port).into_keys());
        for runtime in &mut found {
            for file in wanted::wanted(runtime, settings, &taken, &self.disk(&state)) {
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

    fn standing(&self, state: &State, path: &str, peer_port: u16) -> Standing {
        let Ok(Some(text)) = self.root.read(path) else {
            return if self.root.exists(path) {
                Standing::Foreign
            } else {
                Standing::Missing
            };
        };
        let mark = Mark::of(&text);
        let ports = docker_ports(state, peer_port);
        if mark.is_none() && !(path == docker::FILE && docker::has_peer(&ports, &text)) {
            return Standing::Foreign;
        }
        let is_shared = matches!(mark, None | Some(Mark::Shared));
        let is_whole = is_shared && !matches!(wanted::take_back(path, &text, &ports, false), Edit::Leave(_));
        // Without a note of it, its own word counts.
        if is_whole || state.is_as_written(path, &text) || !(is_shared || state.files.contains_key(path)) {
            Standing::Ours
        } else {
            Standing::Drifted
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

    fn facts(&self) -> Facts {
        Facts::gather(&self.root)
    }

    fn disk(&self, state: &State) -> Disk<'_> {
        Disk {
            root: &self.root,
            docker_port: state.docker_port,
        }
    }

    /// Every file on the node that says that it is ours, or that a part of it is.
    fn ours(&self, facts: &Facts, state: &State, peer_port: u16) -> BTreeMap<String, RuntimeKind> {
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
        ours.insert(docker::FILE.to_owned(), RuntimeKind::Docker);
        ours.retain(|path, _| {
            let text = self.root.read(path).ok().flatten();
            text.is_some_and(|text| {
                let ports = docker_ports(state, peer_port);
                Mark::of(&text).is_some() || (path == docker::FILE && docker::has_peer(&ports, &text))
            })
        });
        ours
    }
}

/// Where our hosts.toml files may be: where the runtimes read them now, and where they did when the files were written.
fn certs_dirs(facts: &Facts, state: &State) -> BTreeMap<String, RuntimeKind> {
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

/// The ports of mirrors in Docker's configuration that are ours: the one that was written there, and the one of today.
fn docker_ports(state: &State, peer_port: u16) -> Vec<u16> {
    state.docker_port.into_iter().chain([peer_port]).collect()
}

struct Disk<'a> {
    root: &'a Root,
    docker_port: Option<u16>,
}

impl Look for Disk<'_> {
    fn folder(&self, certs_dir: &str, name: &str) -> String {
        let other = name
            .rsplit_once(':')
            .map(|(host, port)| format!("{certs_dir}/{host}_{port}_"));
        other
            .filter(|other| self.root.exists(other))
            .unwrap_or_else(|| format!("{certs_dir}/{name}"))
    }

    fn has_default(&self, certs_dir: &str) -> bool {
        self.root.exists(&format!("{certs_dir}/_default/{HOSTS}"))
    }

    fn trust(&self, certs_dir: &str, name: &str) -> String {
        let folder = self.folder(certs_dir, name);
        let hosts = self.root.read(&format!("{folder}/{HOSTS}")).ok().flatten();
        let theirs = hosts.filter(|text| matches!(Mark::of(text), None | Some(Mark::Shared)));
        hosts::trust(&folder, theirs.as_deref(), &self.root.list(&folder).unwrap_or_default())
    }

    fn docker_port(&self) -> Option<u16> {
        self.docker_port
    }
}

/// One run over the node's files.
struct Work<'a> {
    root: &'a Root,
    _lock: Lock,
    state: State,
    report: Report,
    /// Runtimes whose files have changed.
    changed: BTreeSet<RuntimeKind>,
}

impl<'a> Work<'a> {
    /// Waits for runs that others have begun.
    fn new(node: &'a Node, patience: Duration) -> Result<Self, NodeError> {
        let lock = node.root.lock(patience).map_err(NodeError::Lock)?;
        Ok(Self {
            root: &node.root,
            _lock: lock.ok_or(NodeError::Busy)?,
            state: State::load(&node.root),
            report: Report::default(),
            changed: BTreeSet::new(),
        })
    }

    fn remember_certs_dir(&mut self, runtime: &Runtime) {
        if let Some(dir) = &runtime.certs_dir {
            let dirs = self.state.certs_dirs.entry(runtime.kind.name().to_owned());
            dirs.or_default().insert(dir.clone());
        }
    }

    fn write(&mut self, file: &Wanted, settings: &Settings) {
        let before = self.state.files.get(&file.path).cloned();
        let decide = |current: Option<&str>| file.edit(settings, current);
        let (current, edit, (outcome, why)) = self.change(&file.path, Outcome::Written, &decide);
        if edit == Edit::Nothing && current.is_none() {
            return;
        }
        let is_as_left = |written: &String| current.as_ref().is_some_and(|text| *written == state::digest(text));
        let was_changed = before.is_some_and(|written| !is_as_left(&written));
        if edit == Edit::Nothing {
            self.state.wrote(&file.path, current.as_deref().unwrap_or_default());
        }
        let is_in_place = matches!(outcome, Outcome::Unchanged | Outcome::Written);
        if file.path == docker::FILE && is_in_place && (edit != Edit::Nothing || self.state.docker_port.is_some()) {
            self.state.docker_port = Some(settings.peer_port);
        }
        if outcome == Outcome::Written && was_changed {
            self.report.repairs += 1;
        }
        self.tell(&file.path, file.runtime, file.name.clone(), outcome, why);
    }

    fn take_back(&mut self, path: &str, runtime: RuntimeKind, peer_port: u16, purge: bool) {
        let ports = docker_ports(&self.state, peer_port);
        let decide =
            |current: Option<&str>| current.map_or(Edit::Nothing, |text| wanted::take_back(path, text, &ports, purge));
        let (current, edit, (outcome, why)) = self.change(path, Outcome::Restored, &decide);
        if edit == Edit::Nothing || current.is_none() {
            return;
        }
        let is_theirs = matches!(&edit, Edit::Write(text) if Mark::of(text).is_none());
        if is_theirs && outcome == Outcome::Restored {
            self.state.files.remove(path);
        }
        self.tell(path, runtime, None, outcome, why);
    }

    /// Decides on a file's text and carries the decision out, and does both again where the file changes in between. Returns
    /// what the file said, what was decided, and the outcome.
    fn change(
        &mut self,
        path: &str,
        written: Outcome,
        decide: &dyn Fn(Option<&str>) -> Edit,
    ) -> (Option<String>, Edit, Told) {
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let (seen, edit) = match self.root.see(path) {
                Ok(seen) => {
                    let edit = decide(seen.text.as_deref());
                    (seen, edit)
                }
                Err(error) => (Seen::default(), Edit::Leave(format!("cannot be read: {error}"))),
            };
            let told = match &edit {
                Edit::Nothing => Ok((Outcome::Unchanged, None)),
                Edit::Write(text) => self.put(path, text, written, seen.stamp),
                Edit::Delete => self.delete(path, seen.stamp),
                Edit::Leave(why) => Ok((Outcome::Left, Some(why.clone()))),
            };
            match told {
                Ok(told) => return (seen.text, edit, told),
                Err(Changed) if tries > 0 => {}
                Err(changed) => return (seen.text, edit, changed.told()),
            }
        }
    }

    fn put(&mut self, path: &str, text: &str, outcome: Outcome, seen: Option<Stamp>) -> Result<Told, Changed> {
        if self.root.is_link(path) {
            return Ok((Outcome::Left, Some(LINK.to_owned())));
        }
        let mut made = Vec::new();
        let written = self.root.replace(path, text, seen, &mut made);
        self.state.folders.extend(made);
        match written {
            Ok(note) => {
                self.state.wrote(path, text);
                Ok((outcome, note))
            }
            Err(error) if error.kind() == ErrorKind::ResourceBusy => Err(Changed),
            Err(error) => Ok(self.failed(path, &error)),
        }
    }

    fn delete(&mut self, path: &str, seen: Option<Stamp>) -> Result<Told, Changed> {
        if self.root.is_link(path) {
            return Ok((Outcome::Left, Some(LINK.to_owned())));
        }
        if self.root.stamp(path) != seen {
            return Err(Changed);
        }
        match self.root.remove(path) {
            Ok(()) => {
                self.state.files.remove(path);
                Ok((Outcome::Deleted, None))
            }
            Err(error) => Ok(self.failed(path, &error)),
        }
    }

    /// A read-only file system is no failure: the system is meant to be so.
    fn failed(&self, path: &str, error: &io::Error) -> Told {
        if error.kind() != ErrorKind::ReadOnlyFilesystem {
            return (Outcome::Failed, Some(format!("cannot be written: {error}")));
        }
        let why = if self.root.is_read_only_by_mount(path) {
            READ_ONLY_MOUNT
        } else {
            READ_ONLY
        };
        (Outcome::Left, Some(why.to_owned()))
    }

    fn tell(&mut self, path: &str, runtime: RuntimeKind, name: Option<String>, outcome: Outcome, why: Option<String>) {
        if matches!(outcome, Outcome::Written | Outcome::Restored | Outcome::Deleted) {
            self.changed.insert(runtime);
        }
        let path = path.to_owned();
        self.report.files.push(FileReport {
            path,
            runtime,
            name,
            outcome,
            why,
        });
    }

    /// A runtime whose files cannot be written is not ready, even if it reads the right folder.
    fn note_unwritten(&self, runtime: &mut Runtime) {
        let unwritten = |file: &&FileReport| {
            file.runtime == runtime.kind
                && (file.outcome == Outcome::Failed || matches!(file.why.as_deref(), Some(READ_ONLY | READ_ONLY_MOUNT)))
        };
        if let Some(file) = self.report.files.iter().find(unwritten)
            && runtime.problem.is_none()
        {
            let why = file.why.as_deref().unwrap_or_default();
            runtime.problem = Some(containerd::Problem::because(format!("{} {why}", file.path)));
        }
    }

    /// Adds the missing line to a containerd's configuration and restarts it, once on a node; whether anything has changed.
    fn make_ready(&mut self, found: &[Runtime], restart: Restart<'_>) -> bool {
        let mut has_changed = false;
        for runtime in found {
            let Some(remedy) = runtime.problem.as_ref().and_then(|problem| problem.remedy.as_ref()) else {
                continue;
            };
            if self.state.restarted.contains(runtime.kind.name()) {
                self.report.remains.push(format!(
                    "{} was restarted once already, and is not restarted again",
                    runtime.kind
                ));
                continue;
            }
            match self.apply_remedy(runtime.kind, remedy, restart) {
                Ok(()) => {
                    has_changed = true;
                    let (kind, Remedy { file, line, .. }) = (runtime.kind, remedy);
                    self.report
                        .done
                        .push(format!("added {line} to {file} and restarted {kind}"));
                }
                Err(why) => self.report.remains.push(why),
            }
        }
        has_changed
    }

    fn apply_remedy(&mut self, runtime: RuntimeKind, remedy: &Remedy, restart: Restart<'_>) -> Result<(), String> {
        let path = &remedy.file;
        let seen = self
            .root
            .see(path)
            .map_err(|error| format!("{path} cannot be read: {error}"))?;
        let text = containerd::with_remedy(seen.text.as_deref(), remedy)?;
        // Before anything else: a restart that ends this process too must not be the first of many.
        self.state.restarted.insert(runtime.name().to_owned());
        self.state
            .clone()
            .save(self.root)
            .map_err(|error| format!("{} cannot be written: {error}", state::FILE))?;
        let put = self.put(path, &text, Outcome::Written, seen.stamp);
        if let (Outcome::Failed | Outcome::Left, why) = put.unwrap_or_else(Changed::told) {
            return Err(format!("{path} {}", why.unwrap_or_default()));
        }
        self.state.files.remove(path);
        restart(runtime).map_err(|why| {
            let stamp = self.root.stamp(path);
            let back = match &seen.text {
                Some(text) => self.put(path, text, Outcome::Restored, stamp),
                None => self.delete(path, stamp),
            };
            self.state.files.remove(path);
            let failed = format!("{runtime} did not restart correctly ({why}); {path} had the line for a moment");
            if !matches!(back, Ok((Outcome::Restored | Outcome::Deleted, _))) {
                return format!(
                    "{failed}, and could not be restored: take out what is marked there and restart {runtime}"
                );
            }
            // It may be down, or up without its CRI. With the former file it runs as before.
            match restart(runtime) {
                Ok(()) => format!("{failed}, was restored, and {runtime} was restarted with that"),
                Err(why) => {
                    format!("{failed} and was restored; restart {runtime}, since that failed once more ({why})")
                }
            }
        })
    }

    /// Takes the line out again. It takes effect at the next restart, which is not ours to make.
    fn take_back_remedies(&mut self) {
        for runtime in RuntimeKind::ALL {
            let Some(path) = runtime.config_file() else { continue };
            let Ok(Some(current)) = self.root.read(path) else {
                continue;
            };
            if containerd::without_remedy(&current).is_some() {
                let decide = |current: Option<&str>| match current.and_then(containerd::without_remedy) {
                    None => Edit::Nothing,
                    Some(text) if text.is_empty() => Edit::Delete,
                    Some(text) => Edit::Write(text),
                };
                let (_, _, (outcome, why)) = self.change(path, Outcome::Restored, &decide);
                self.state.files.remove(path);
                self.tell(path, runtime, None, outcome, why);
            }
        }
        self.state.restarted.clear();
    }

    /// Forgets the port once Docker's configuration no longer has our mirror: an administrator took it out, and one that comes
    /// back is not ours to take out.
    fn forget_docker_port(&mut self) {
        if let (Some(port), Ok(text)) = (self.state.docker_port, self.root.read(docker::FILE))
            && !text.is_some_and(|text| docker::has_peer(&[port], &text))
        {
            self.state.docker_port = None;
        }
    }

    fn finish(mut self) -> Result<Report, NodeError> {
        for runtime in &self.changed {
            let Some(process) = runtime.process() else { continue };
            if processes::hang_up(process, self.root.path()) {
                self.report
                    .done
                    .push(format!("told {process} to read its files again (SIGHUP)"));
            } else {
                let unit = if process == "dockerd" { "docker" } else { process };
                self.report.remains.push(format!(
                    "if {process} runs, let it read its files again: systemctl reload {unit}"
                ));
            }
        }
        self.forget_docker_port();
        self.state.remove_folders(self.root);
        self.state.save(self.root).map_err(NodeError::State)?;
        Ok(self.report)
    }
}

/// What has become of a file, and why.
type Told = (Outcome, Option<String>);

/// A file was changed between its being read and its being replaced.
#[derive(Debug)]
struct Changed;

impl Changed {
    fn told(self) -> Told {
        let why = "is being changed by another program at the same time; run this again";
        (Outcome::Failed, Some(why.to_owned()))
    }
}

const LINK: &str = "is a symbolic link to a file that does not belong to piecemeal node";
/// How often a file is read again because it changed while it was written.
const TRIES: usize = 3;
/// How long another run is waited for: it may be one that restarts a runtime.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a runtime may take until it answers.
const RESTART_PATIENCE: Duration = Duration::from_secs(60);
const READ_ONLY_MOUNT: &str = "is on a mount that is read-only, though its file system is not: in the chart, name its folder in node.extraHostPaths; on the node itself, write it by the system's own means";
const READ_ONLY: &str = "is on a file system that is read-only; write it by the system's own means";

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::PathBuf};

    use tempfile::TempDir;

    use super::*;
    use crate::names::{Upstream, registries};

    /// A node whose file system is a temporary folder.
    struct Machine {
        dir: TempDir,
        node: Node,
    }

    impl Machine {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let file = dir.path().join(path.trim_start_matches('/'));
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            let node = Node::open(dir.path()).unwrap();
            Self { dir, node }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.dir.path().join(path.trim_start_matches('/'))
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
        }

        fn write(&self, path: &str, text: &str) {
            fs::write(self.path(path), text).unwrap();
        }

        fn install(&self, settings: &Settings) -> Report {
            self.node.install(settings, None).unwrap()
        }

        fn standing(&self, settings: &Settings, path: &str) -> Option<Standing> {
            let status = self.node.status(settings).unwrap();
            status
                .files
                .iter()
                .find(|file| file.path == path)
                .map(|file| file.standing)
        }

        /// Every file and folder with its text.
        fn everything(&self) -> BTreeMap<PathBuf, Option<String>> {
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

    fn settings(names: Names) -> Settings {
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

    const READY: &str =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
    const CONFIG: &str = "/etc/containerd/config.toml";
    const ACCELERATED: &str = "/etc/containerd/certs.d/docker.io.piecemeal.internal:65001/hosts.toml";
    const ORIGINAL: &str = "/etc/containerd/certs.d/docker.io/hosts.toml";

    #[test]
    fn a_second_install_changes_nothing_and_a_purge_leaves_no_trace() {
        let machine = Machine::new(&[(CONFIG, READY)]);
        let before = machine.everything();
        let first = machine.install(&settings(Names::Both));
        assert_eq!((first.changes(), first.repairs), (4, 0), "{}", first.render());
        assert!(first.runtimes.iter().all(|runtime| runtime.ready), "{}", first.render());
        let installed = machine.everything();
        let second = machine.install(&settings(Names::Both));
        assert_eq!((second.changes(), second.repairs), (0, 0), "{}", second.render());
        assert_eq!(machine.everything(), installed);

        let removed = machine.node.remove(&settings(Names::Both), false).unwrap();
        assert_eq!(removed.changes(), 4, "{}", removed.render());
        assert!(!machine.path(ORIGINAL).exists());
        let left = machine.read(ACCELERATED);
        assert!(
            left.contains("https://registry-1.docker.io") && !left.contains("127.0.0.1"),
            "{left}"
        );
        assert_eq!(machine.node.remove(&settings(Names::Both), false).unwrap().changes(), 0);
        machine.node.remove(&settings(Names::Both), true).unwrap();
        assert_eq!(machine.everything(), before);
    }

    #[test]
    fn without_the_state_everything_is_found_by_what_the_files_say() {
        for state in [
            None,
            Some("{"),
            Some("{\"version\": 99, \"files\": {\"/etc/passwd\": \"x\"}}"),
        ] {
            let machine = Machine::new(&[(CONFIG, READY)]);
            machine.install(&settings(Names::Both));
            match state {
                None => fs::remove_file(machine.path(state::FILE)).unwrap(),
                Some(text) => machine.write(state::FILE, text),
            }
            assert_eq!(machine.standing(&settings(Names::Both), ORIGINAL), Some(Standing::Ours));
            machine.node.remove(&settings(Names::Both), true).unwrap();
            assert!(
                !machine.path(ACCELERATED).exists()
                    && !machine.path(ORIGINAL).exists()
                    && !machine.path(state::FILE).exists()
            );
        }
    }

    #[test]
    fn drift_is_told_and_undone_and_counted() {
        let machine = Machine::new(&[(CONFIG, READY)]);
        let settings = settings(Names::Both);
        machine.install(&settings);
        let good = machine.read(ACCELERATED);
        machine.write(ACCELERATED, &format!("{good}skip_verify = true\n"));
        fs::remove_file(machine.path(ORIGINAL)).unwrap();
        assert_eq!(machine.standing(&settings, ACCELERATED), Some(Standing::Drifted));
        assert_eq!(machine.standing(&settings, ORIGINAL), Some(Standing::Missing));
        let report = machine.install(&settings);
        assert_eq!((report.changes(), report.repairs), (2, 2), "{}", report.render());
        assert_eq!(machine.read(ACCELERATED), good);
        // Another setting is no drift.
        let report = machine.install(&Settings {
            has_peer: false,
            ..settings
        });
        assert_eq!((report.changes(), report.repairs), (4, 0), "{}", report.render());
    }

    #[test]
    fn the_administrators_own_file_is_shared_and_given_back() {
        let theirs = "server = \"https://mine\" # why\n[host.\"https://mine\"]\n  ca = \"ca.pem\"\n";
        let machine = Machine::new(&[(CONFIG, READY), (ORIGINAL, theirs)]);
        assert_eq!(
            machine.standing(&settings(Names::Original), ORIGINAL),
            Some(Standing::Foreign)
        );
        machine.install(&settings(Names::Accelerated));
        assert_eq!(machine.read(ORIGINAL), theirs, "its own name is not ours to wire");
        machine.install(&settings(Names::Original));
        let shared = machine.read(ORIGINAL);
        assert!(shared.find("127.0.0.1").unwrap() < shared.find("[host.\"https://mine\"]").unwrap());
        assert!(
            machine.read(ACCELERATED).contains("[host]"),
            "a name that is no longer wanted leads to the registry"
        );
        machine.write(ORIGINAL, &shared.replace("# why", "# because"));
        assert_eq!(
            machine.standing(&settings(Names::Original), ORIGINAL),
            Some(Standing::Ours)
        );
        machine.install(&settings(Names::Accelerated));
        assert_eq!(machine.read(ORIGINAL), theirs.replace("# why", "# because"));
        machine.node.remove(&settings(Names::Original), true).unwrap();
        assert!(machine.path(ORIGINAL).exists() && !machine.path(state::FILE).exists());
    }

    #[test]
    fn what_a_registry_is_trusted_by_goes_for_its_accelerated_name() {
        let machine = Machine::new(&[(CONFIG, READY), ("/etc/containerd/certs.d/docker.io/ca.crt", "pem")]);
        machine.install(&settings(Names::Both));
        let ca = "ca = [\"/etc/containerd/certs.d/docker.io/ca.crt\"]\n";
        assert!(machine.read(ACCELERATED).contains(ca) && machine.read(ORIGINAL).contains(ca));
        assert_eq!(machine.install(&settings(Names::Both)).changes(), 0);
        machine.node.remove(&settings(Names::Both), true).unwrap();
        assert!(machine.path("/etc/containerd/certs.d/docker.io/ca.crt").exists());
    }

    #[test]
    fn the_folder_that_containerd_looks_at_first_is_the_one() {
        let theirs = "/etc/containerd/certs.d/reg.test_5000_/hosts.toml";
        let machine = Machine::new(&[(CONFIG, READY), (theirs, "server = \"https://mine\"\n")]);
        machine.install(&settings(Names::Original));
        assert!(machine.read(theirs).contains("127.0.0.1:65001"));
        assert!(!machine.path("/etc/containerd/certs.d/reg.test:5000").exists());
    }

    #[test]
    fn while_not_every_host_is_known_nothing_is_taken_back() {
        let machine = Machine::new(&[(CONFIG, READY)]);
        machine.install(&settings(Names::Both));
        let mut fewer = settings(Names::Both);
        fewer.registries.retain(|registry| registry.name == "docker.io");
        fewer.is_complete = false;
        assert_eq!(machine.install(&fewer).changes(), 0);
        fewer.is_complete = true;
        assert_eq!(machine.install(&fewer).changes(), 2);
    }

    #[test]
    fn hosts_for_every_name_are_never_touched_and_their_end_is_told() {
        let default = "/etc/containerd/certs.d/_default/hosts.toml";
        let machine = Machine::new(&[(CONFIG, READY), (default, "[host.\"https://m\"]\n")]);
        let note = |names| machine.install(&settings(names)).render().contains("_default");
        assert!(!note(Names::Accelerated) && note(Names::Both));
        assert_eq!(machine.read(default), "[host.\"https://m\"]\n");
    }

    #[test]
    fn links_and_folders_in_the_way_are_left_alone() {
        let machine = Machine::new(&[
            (CONFIG, READY),
            ("/etc/store/hosts.toml", "server = \"https://mine\"\n"),
        ]);
        fs::create_dir_all(machine.path(ORIGINAL).parent().unwrap()).unwrap();
        symlink("/etc/store/hosts.toml", machine.path(ORIGINAL)).unwrap();
        fs::create_dir_all(machine.path(ACCELERATED)).unwrap();
        let report = machine.install(&settings(Names::Both));
        assert_eq!(machine.read("/etc/store/hosts.toml"), "server = \"https://mine\"\n");
        let left = report.files.iter().filter(|file| file.outcome == Outcome::Left).count();
        assert_eq!(left, 2, "{}", report.render());
    }

    #[test]
    fn a_containerd_without_config_path_is_told_the_line_and_nothing_of_it_is_touched() {
        let machine = Machine::new(&[(CONFIG, "version = 2\n")]);
        let report = machine.install(&settings(Names::Accelerated));
        assert_eq!(machine.read(CONFIG), "version = 2\n");
        assert!(!report.runtimes[0].ready && machine.path(ACCELERATED).exists());
        let said = report.render();
        let line =
            "[plugins.\"io.containerd.grpc.v1.cri\".registry]\n      config_path = \"/etc/containerd/certs.d\"\n";
        assert!(said.contains(line), "{said}");
    }

    const MIRRORS: &str =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = []\n";

    #[test]
    fn where_the_line_would_break_containerd_none_is_added_and_nothing_is_restarted() {
        for files in [
            &[(CONFIG, MIRRORS)][..],
            &[
                (CONFIG, "version = 2\nimports = [\"conf.d/*.toml\"]\n"),
                ("/etc/containerd/conf.d/a.toml", MIRRORS),
            ],
        ] {
            let machine = Machine::new(files);
            let allowed = machine.node.install(&settings(Names::Both), Some(&|_| panic!("never")));
            let said = allowed.unwrap().render();
            assert!(said.contains("must not be added") && !said.contains("add to"), "{said}");
            assert_eq!(machine.read(files[0].0), files[0].1);
        }
    }

    #[test]
    fn a_containerd_that_does_not_answer_after_its_restart_has_its_old_file_and_is_restarted_again() {
        let machine = Machine::new(&[(CONFIG, "version = 2\n")]);
        let texts = std::cell::RefCell::new(Vec::new());
        let restart = |_: RuntimeKind| {
            texts.borrow_mut().push(machine.read(CONFIG));
            if texts.borrow().len() == 1 {
                Err("its CRI does not answer".to_owned())
            } else {
                Ok(())
            }
        };
        let report = machine.node.install(&settings(Names::Both), Some(&restart)).unwrap();
        let texts = texts.take();
        assert!(
            texts[0].contains("config_path") && texts[1..] == ["version = 2\n"],
            "{texts:?}"
        );
        let said = report.render();
        assert!(
            said.contains("CRI does not answer") && said.contains("restarted with that"),
            "{said}"
        );
    }

    #[test]
    fn what_cannot_be_read_stops_neither_other_runtimes_nor_the_way_back() {
        let machine = Machine::new(&[(CONFIG, READY), ("/etc/crio/crio.conf", "")]);
        fs::create_dir_all(machine.path("/etc/containers/registries.conf.d/x.conf")).unwrap();
        assert!(
            machine
                .install(&settings(Names::Both))
                .runtimes
                .iter()
                .all(|of| of.ready),
            "a folder is passed over"
        );
        fs::write(machine.path(containers::MAIN), [0xff]).unwrap();
        let report = machine.install(&settings(Names::Both));
        let ready: Vec<bool> = report.runtimes.iter().map(|runtime| runtime.ready).collect();
        assert_eq!(ready, [true, false], "{}", report.render());
        // The state tells where the files are that containerd's configuration does not tell any more.
        let other = READY.replace("/etc/containerd/certs.d", "/opt/certs");
        machine.write(CONFIG, &other);
        machine.install(&settings(Names::Both));
        assert!(machine.path("/opt/certs/docker.io/hosts.toml").exists());
        fs::write(machine.path(CONFIG), [0xff]).unwrap();
        let report = machine.install(&settings(Names::Both));
        assert!(
            !report.runtimes[0].ready && report.changes() == 0,
            "{}",
            report.render()
        );
        machine.node.remove(&settings(Names::Both), true).unwrap();
        assert!(!machine.path("/opt/certs").exists() && !machine.path(ORIGINAL).exists());
        // Without the state it cannot know of other folders, and says so.
        let said = machine.node.remove(&settings(Names::Both), true).unwrap().render();
        assert!(said.contains("a folder other than /etc/containerd/certs.d"), "{said}");
    }

    #[test]
    fn podman_s_drop_ins_are_found_where_crio_is_too() {
        let machine = Machine::new(&[("/etc/crio/crio.conf", ""), ("/usr/bin/podman", "")]);
        let before = machine.everything();
        let settings = Settings {
            runtimes: vec![RuntimeKind::Podman],
            ..settings(Names::Both)
        };
        assert_eq!(machine.install(&settings).changes(), 2);
        machine.node.remove(&settings, true).unwrap();
        assert_eq!(machine.everything(), before);
    }

    #[test]
    fn docker_is_not_ready_for_accelerated_names_and_left_aside_where_another_is() {
        let alone = Machine::new(&[(docker::FILE, "{}")]);
        let report = alone.install(&settings(Names::Accelerated));
        assert!(
            !report.runtimes[0].ready && report.runtimes[0].why.is_some(),
            "{}",
            report.render()
        );
        let beside = Machine::new(&[(docker::FILE, "{}"), (CONFIG, READY)]);
        let docker = beside.install(&settings(Names::Accelerated)).runtimes.remove(1);
        assert!(
            !docker.ready && docker.why.is_none() && docker.aside.is_some(),
            "{docker}"
        );
        // Docker's own containerd does not count as another.
        let own = "disabled_plugins = [\"cri\"]\n";
        let dockers = Machine::new(&[(docker::FILE, "{}"), (CONFIG, own)]);
        let report = dockers.install(&settings(Names::Accelerated));
        assert!(
            report.runtimes[0].aside.is_some() && report.runtimes[1].why.is_some(),
            "{}",
            report.render()
        );
        assert!(report.files.is_empty());
    }

    #[test]
    fn dockers_mirror_follows_the_port_and_goes_with_the_state() {
        let theirs = "{\"debug\": true}";
        let machine = Machine::new(&[(docker::FILE, theirs)]);
        let before = machine.everything();
        let at = |peer_port| Settings {
            peer_port,
            ..settings(Names::Original)
        };
        machine.install(&at(7000));
        machine.install(&at(7001));
        let text = machine.read(docker::FILE);
        assert!(text.contains(":7001") && !text.contains(":7000"), "{text}");
        // `remove` does not say which port it was.
        machine.node.remove(&at(65001), true).unwrap();
        assert_eq!(machine.everything(), before);
    }

    #[test]
    fn dockers_mirror_stays_while_not_every_host_is_known() {
        let machine = Machine::new(&[(docker::FILE, "{}")]);
        machine.install(&settings(Names::Both));
        let text = machine.read(docker::FILE);
        let unknown = |names| Settings {
            registries: Vec::new(),
            is_complete: false,
            ..settings(names)
        };
        machine.install(&unknown(Names::Both));
        assert_eq!(machine.read(docker::FILE), text);
        machine.install(&unknown(Names::Accelerated));
        assert_eq!(machine.read(docker::FILE), "{}", "that it is not wanted is known");
    }

    #[test]
    fn beside_a_mirror_that_is_a_flag_dockers_file_has_none() {
        let drop_in = "/etc/systemd/system/docker.service.d/10.conf";
        let machine = Machine::new(&[(docker::FILE, "{}")]);
        machine.install(&settings(Names::Both));
        assert!(machine.read(docker::FILE).contains("127.0.0.1"));
        fs::create_dir_all(machine.path(drop_in).parent().unwrap()).unwrap();
        machine.write(drop_in, "# --registry-mirror=no\n");
        assert!(machine.install(&settings(Names::Both)).runtimes[0].ready);
        machine.write(
            drop_in,
            "[Service]\nExecStart=/usr/bin/dockerd --registry-mirror https://m\n",
        );
        let report = machine.install(&settings(Names::Both));
        assert!(
            !report.runtimes[0].ready && report.render().contains(drop_in),
            "{}",
            report.render()
        );
        assert_eq!(
            machine.read(docker::FILE),
            "{}",
            "what was put there before would stop dockerd, too"
        );
    }

    #[test]
    fn a_second_run_at_the_same_time_is_refused_after_a_while() {
        let machine = Machine::new(&[(CONFIG, READY)]);
        let lock = machine.node.root.lock(Duration::ZERO).unwrap().expect("it is free");
        assert!(Work::new(&machine.node, Duration::ZERO).is_err_and(|error| matches!(error, NodeError::Busy)));
        drop(lock);
        assert!(Work::new(&machine.node, Duration::ZERO).is_ok());
    }

    #[test]
    fn an_edit_at_the_same_time_is_read_and_kept() {
        let machine = Machine::new(&[("/etc/x", "one")]);
        let mut work = Work::new(&machine.node, PATIENCE).unwrap();
        let looks = std::cell::Cell::new(0);
        let decide = |current: Option<&str>| {
            looks.set(looks.get() + 1);
            if looks.get() == 1 {
                machine.write("/etc/x", "another");
            }
            Edit::Write(format!("{}!", current.unwrap_or_default()))
        };
        let (_, _, (outcome, _)) = work.change("/etc/x", Outcome::Written, &decide);
        assert_eq!(
            (outcome, machine.read("/etc/x").as_str()),
            (Outcome::Written, "another!")
        );
    }

    #[test]
    fn an_allowed_restart_happens_once_and_a_failed_one_is_undone() {
        let machine = Machine::new(&[(CONFIG, "version = 2\n")]);
        let settings = settings(Names::Accelerated);
        let refused = machine
            .node
            .install(&settings, Some(&|_| Err("no systemd".to_owned())))
            .unwrap();
        assert!(
            refused.render().contains("no systemd") && !refused.runtimes[0].ready,
            "{}",
            refused.render()
        );
        assert_eq!(machine.read(CONFIG), "version = 2\n");
        let again = machine.node.install(&settings, Some(&|_| panic!("once"))).unwrap();
        assert!(again.render().contains("once already"), "{}", again.render());

        let machine = Machine::new(&[(CONFIG, "version = 2\n")]);
        let report = machine.node.install(&settings, Some(&|_| Ok(()))).unwrap();
        assert!(report.runtimes[0].ready, "{}", report.render());
        assert_eq!(
            machine
                .node
                .install(&settings, Some(&|_| panic!("once")))
                .unwrap()
                .changes(),
            0
        );
        machine.node.remove(&settings, false).unwrap();
        assert!(
            machine.read(CONFIG).contains("config_path"),
            "the fallback files need it"
        );
        machine.node.remove(&settings, true).unwrap();
        assert_eq!(machine.read(CONFIG), "version = 2\n");
    }

    #[test]
    fn k3s_and_rke2_have_their_own_folders_and_a_wiped_one_is_filled_again() {
        for kind in [RuntimeKind::K3s, RuntimeKind::Rke2] {
            let dir = kind.certs_dir().unwrap();
            let config = READY.replace("/etc/containerd/certs.d", dir);
            let k3s = "# File generated by k3s. DO NOT EDIT.\nserver = \"https://registry-1.docker.io/v2\"\ncapabilities = [\"pull\"]\n\n\
                       [host]\n[host.\"https://m/v2\"]\n  capabilities = [\"pull\"]\n";
            let theirs = format!("{dir}/docker.io/hosts.toml");
            let machine = Machine::new(&[(kind.config_file().unwrap(), &config), (&theirs, k3s)]);
            let settings = settings(Names::Both);
            let report = machine.install(&settings);
            assert!(
                report.runtimes.len() == 1 && report.runtimes[0].ready,
                "{}",
                report.render()
            );
            let shared = machine.read(&theirs);
            assert!(
                shared.contains("[host]\n# piecemeal node begins\n[host.\"http://127.0.0.1:65001\"]"),
                "{shared}"
            );
            fs::remove_dir_all(machine.path(dir)).unwrap();
            let report = machine.install(&settings);
            assert_eq!(report.repairs, 4, "{}", report.render());
        }
    }

    #[test]
    fn crio_and_podman_share_their_drop_ins() {
        let own = "[[registry]]\nlocation = \"reg.test:5000\"\n";
        let machine = Machine::new(&[
            ("/etc/crio/crio.conf", ""),
            ("/usr/bin/podman", ""),
            (containers::MAIN, own),
        ]);
        let before = machine.everything();
        let report = machine.install(&settings(Names::Both));
        assert_eq!(report.changes(), 2, "{}", report.render());
        assert!(
            report
                .remains
                .iter()
                .any(|remains| remains.contains("systemctl reload crio"))
        );
        let said = report.render();
        assert!(
            said.contains("add [[registry.mirror]] with location = \"127.0.0.1:65001/reg.test__5000\""),
            "{said}"
        );
        let original = machine.read("/etc/containers/registries.conf.d/50-piecemeal-mirror.conf");
        assert!(
            original.contains("docker.io") && !original.contains("reg.test"),
            "{original}"
        );
        assert_eq!(machine.install(&settings(Names::Both)).changes(), 0);
        machine.node.remove(&settings(Names::Both), true).unwrap();
        assert_eq!(machine.everything(), before);
    }

    #[test]
    fn docker_is_given_its_one_mirror_and_keeps_every_key() {
        let theirs = "{\n  \"log-driver\": \"journald\"\n}\n";
        let machine = Machine::new(&[(docker::FILE, theirs)]);
        let report = machine.install(&settings(Names::Accelerated));
        assert_eq!(machine.read(docker::FILE), theirs);
        assert!(report.render().contains("only docker.io"), "{}", report.render());
        machine.install(&settings(Names::Both));
        assert!(
            machine
                .read(docker::FILE)
                .contains("\"registry-mirrors\": [ \"http://127.0.0.1:65001\"]")
        );
        assert_eq!(
            machine.standing(&settings(Names::Both), docker::FILE),
            Some(Standing::Ours)
        );
        machine.node.remove(&settings(Names::Both), false).unwrap();
        assert_eq!(machine.read(docker::FILE), theirs);
    }

    #[test]
    fn a_node_without_a_peer_has_accelerated_names_that_lead_to_the_registry() {
        let machine = Machine::new(&[(CONFIG, READY)]);
        machine.install(&Settings {
            has_peer: false,
            ..settings(Names::Both)
        });
        assert!(
            machine
                .read(ACCELERATED)
                .ends_with("server = \"https://registry-1.docker.io\"\n\n[host]\n")
        );
        assert!(!machine.path(ORIGINAL).exists());
    }

    #[test]
    fn imports_are_followed_to_their_end() {
        let main = "version = 2\nimports = [\"conf.d/*.toml\", \"/etc/containerd/config.toml\", \"/none.toml\"]\n";
        let machine = Machine::new(&[
            (CONFIG, main),
            ("/etc/containerd/conf.d/a.toml", READY),
            ("/etc/containerd/conf.d/b.txt", "="),
        ]);
        assert!(machine.install(&settings(Names::Accelerated)).runtimes[0].ready);
    }

    #[test]
    fn a_node_of_another_kind_is_told_and_left_alone() {
        let machine = Machine::new(&[(CONFIG, READY), ("/etc/os-release", "NAME=Talos\nID=talos\n")]);
        let report = machine.install(&settings(Names::Both));
        assert!(
            report.files.is_empty() && report.render().contains("machine.registries.mirrors"),
            "{}",
            report.render()
        );
        let empty = Machine::new(&[]);
        assert!(empty.install(&settings(Names::Both)).runtimes.is_empty());
    }
}
