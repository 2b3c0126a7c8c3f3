//! Carries out what is decided: reads the node's files, writes those that should be otherwise, and takes them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    path::Path,
};

use crate::{
    containerd::{self, Remedy},
    containers, docker,
    edit::Edit,
    facts::Facts,
    hosts,
    listeners::listeners,
    mark::Mark,
    names::{Names, Registry},
    processes,
    report::{FileReport, Outcome, Report, RuntimeReport, Standing, Status, StatusFile},
    root::Root,
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

/// Restarts a runtime, when somebody has allowed it.
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
    /// A configuration is there and cannot be read: to go on would be to guess.
    #[error("cannot read the node's configuration")]
    Facts(#[source] io::Error),
    #[error("cannot write {}, which tells what is ours", state::FILE)]
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
        let mut facts = self.facts()?;
        let mut work = Work::new(self);
        let mut found = runtimes(&facts, &settings.runtimes);
        if let Some(restart) = restart
            && work.make_ready(&found, restart)
        {
            facts = self.facts()?;
            found = runtimes(&facts, &settings.runtimes);
        }
        let configured = facts.configured_registries();
        let taken = |name: &str| configured.contains(name);
        let mut kept = BTreeSet::new();
        for runtime in &mut found {
            for file in wanted::wanted(runtime, settings, &taken, &Disk(&self.root)) {
                if kept.insert(file.path.clone()) {
                    work.write(&file, settings);
                }
            }
            work.note_unwritten(runtime);
        }
        for (path, runtime) in self.ours(&facts, &work.state, settings.peer_port) {
            let is_wired = found.iter().any(|found| found.kind == runtime && found.is_wired);
            if settings.is_complete && is_wired && !kept.contains(&path) {
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
        let facts = self.facts()?;
        let mut work = Work::new(self);
        for (path, runtime) in self.ours(&facts, &work.state, settings.peer_port) {
            if settings.runtimes.is_empty() || settings.runtimes.contains(&runtime) {
                work.take_back(&path, runtime, settings.peer_port, purge);
            }
        }
        if purge {
            work.take_back_remedies();
        }
        work.finish()
    }

    /// What is there now. Nothing is changed.
    ///
    /// # Errors
    /// Nothing could be decided.
    pub fn status(&self, settings: &Settings) -> Result<Status, NodeError> {
        let facts = self.facts()?;
        let state = State::load(&self.root);
        let mut found = runtimes(&facts, &settings.runtimes);
        let configured = facts.configured_registries();
        let taken = |name: &str| configured.contains(name);
        let mut paths: BTreeSet<String> = state.files.keys().cloned().collect();
        paths.extend(self.ours(&facts, &state, settings.peer_port).into_keys());
        for runtime in &mut found {
            for file in wanted::wanted(runtime, settings, &taken, &Disk(&self.root)) {
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
        if mark.is_none() && !(path == docker::FILE && text.contains(&hosts::peer_url(peer_port))) {
            return Standing::Foreign;
        }
        let is_shared = matches!(mark, None | Some(Mark::Shared));
        let is_whole = is_shared && !matches!(wanted::take_back(path, &text, peer_port, false), Edit::Leave(_));
        // Without a note of it, its own word counts.
        if is_whole || state.is_as_written(path, &text) || !(is_shared || state.files.contains_key(path)) {
            Standing::Ours
        } else {
            Standing::Drifted
        }
    }

    fn facts(&self) -> Result<Facts, NodeError> {
        Facts::gather(&self.root).map_err(NodeError::Facts)
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
                Mark::of(&text).is_some() || (path == docker::FILE && text.contains(&hosts::peer_url(peer_port)))
            })
        });
        ours
    }
}

/// Where hosts.toml files of ours may be: where the runtimes read them, and where they did when they were written.
fn certs_dirs(facts: &Facts, state: &State) -> BTreeMap<String, RuntimeKind> {
    let mut dirs = BTreeMap::new();
    for runtime in runtimes(facts, &RuntimeKind::ALL) {
        let default = runtime.kind.certs_dir().map(str::to_owned);
        for dir in [runtime.certs_dir, default].into_iter().flatten() {
            dirs.entry(dir).or_insert(runtime.kind);
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

struct Disk<'a>(&'a Root);

impl Look for Disk<'_> {
    fn folder(&self, certs_dir: &str, name: &str) -> String {
        let other = name
            .rsplit_once(':')
            .map(|(host, port)| format!("{certs_dir}/{host}_{port}_"));
        other
            .filter(|other| self.0.exists(other))
            .unwrap_or_else(|| format!("{certs_dir}/{name}"))
    }

    fn has_default(&self, certs_dir: &str) -> bool {
        self.0.exists(&format!("{certs_dir}/_default/{HOSTS}"))
    }

    fn trust(&self, certs_dir: &str, name: &str) -> String {
        let folder = self.folder(certs_dir, name);
        let hosts = self.0.read(&format!("{folder}/{HOSTS}")).ok().flatten();
        let theirs = hosts.filter(|text| matches!(Mark::of(text), None | Some(Mark::Shared)));
        hosts::trust(&folder, theirs.as_deref(), &self.0.list(&folder).unwrap_or_default())
    }
}

/// One run over the node's files.
struct Work<'a> {
    root: &'a Root,
    state: State,
    report: Report,
    /// Runtimes whose files have changed.
    changed: BTreeSet<RuntimeKind>,
}

impl<'a> Work<'a> {
    fn new(node: &'a Node) -> Self {
        Self {
            root: &node.root,
            state: State::load(&node.root),
            report: Report::default(),
            changed: BTreeSet::new(),
        }
    }

    fn write(&mut self, file: &Wanted, settings: &Settings) {
        let current = self.root.read(&file.path);
        let edit = match &current {
            Ok(current) => file.edit(settings, current.as_deref()),
            Err(error) => Edit::Leave(format!("cannot be read: {error}")),
        };
        let current = current.ok().flatten();
        if edit == Edit::Nothing && current.is_none() {
            return;
        }
        let is_as_left = current
            .as_ref()
            .is_some_and(|text| self.state.is_as_written(&file.path, text));
        let was_changed = self.state.files.contains_key(&file.path) && !is_as_left;
        let (outcome, why) = match edit {
            Edit::Nothing => {
                self.state.wrote(&file.path, &current.unwrap_or_default());
                (Outcome::Unchanged, None)
            }
            Edit::Write(text) => self.put(&file.path, &text, Outcome::Written),
            Edit::Delete => self.delete(&file.path),
            Edit::Leave(why) => (Outcome::Left, Some(why)),
        };
        if outcome == Outcome::Written && was_changed {
            self.report.repairs += 1;
        }
        self.tell(&file.path, file.runtime, file.name.clone(), outcome, why);
    }

    fn take_back(&mut self, path: &str, runtime: RuntimeKind, peer_port: u16, purge: bool) {
        let Ok(Some(current)) = self.root.read(path) else {
            return;
        };
        let (outcome, why) = match wanted::take_back(path, &current, peer_port, purge) {
            Edit::Nothing => return,
            Edit::Write(text) => {
                let told = self.put(path, &text, Outcome::Restored);
                if Mark::of(&text).is_none() {
                    self.state.files.remove(path);
                }
                told
            }
            Edit::Delete => self.delete(path),
            Edit::Leave(why) => (Outcome::Left, Some(why)),
        };
        self.tell(path, runtime, None, outcome, why);
    }

    fn put(&mut self, path: &str, text: &str, outcome: Outcome) -> (Outcome, Option<String>) {
        if self.root.is_link(path) {
            return (
                Outcome::Left,
                Some("is a symbolic link, and what it leads to is not ours".to_owned()),
            );
        }
        let mut made = Vec::new();
        let written = self.root.write(path, text, &mut made);
        self.state.folders.extend(made);
        match written {
            Ok(()) => {
                self.state.wrote(path, text);
                (outcome, None)
            }
            Err(error) => failed(&error),
        }
    }

    fn delete(&mut self, path: &str) -> (Outcome, Option<String>) {
        match self.root.remove(path) {
            Ok(()) => {
                self.state.files.remove(path);
                (Outcome::Deleted, None)
            }
            Err(error) => failed(&error),
        }
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

    /// A runtime whose files cannot be written is not ready, whatever it reads.
    fn note_unwritten(&self, runtime: &mut Runtime) {
        let unwritten = |file: &&FileReport| {
            file.runtime == runtime.kind && (file.outcome == Outcome::Failed || file.why.as_deref() == Some(READ_ONLY))
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
                self.report
                    .remains
                    .push(format!("{} was restarted once already, and is not again", runtime.kind));
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
        let current = self
            .root
            .read(path)
            .map_err(|error| format!("{path} cannot be read: {error}"))?;
        let text = containerd::with_remedy(current.as_deref(), remedy)?;
        // Before anything else: a restart that ends this process too must not be the first of many.
        self.state.restarted.insert(runtime.name().to_owned());
        self.state
            .clone()
            .save(self.root)
            .map_err(|error| format!("{} cannot be written: {error}", state::FILE))?;
        if let (Outcome::Failed | Outcome::Left, why) = self.put(path, &text, Outcome::Written) {
            return Err(format!("{path} {}", why.unwrap_or_default()));
        }
        self.state.files.remove(path);
        restart(runtime).map_err(|why| {
            let back = match &current {
                Some(text) => self.put(path, text, Outcome::Restored),
                None => self.delete(path),
            };
            self.state.files.remove(path);
            let back = if back.0 == Outcome::Failed {
                "and could not be restored"
            } else {
                "and was restored"
            };
            format!("{runtime} could not be restarted ({why}); {path} had the line for a moment {back}")
        })
    }

    /// Takes the line out again. It takes effect at the next restart, which is not ours to make.
    fn take_back_remedies(&mut self) {
        for runtime in RuntimeKind::ALL {
            let Some(path) = runtime.config_file() else { continue };
            let Ok(Some(current)) = self.root.read(path) else {
                continue;
            };
            if let Some(text) = containerd::without_remedy(&current) {
                let (outcome, why) = if text.is_empty() {
                    self.delete(path)
                } else {
                    self.put(path, &text, Outcome::Restored)
                };
                self.state.files.remove(path);
                self.tell(path, runtime, None, outcome, why);
            }
        }
        self.state.restarted.clear();
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
        self.state.remove_folders(self.root);
        self.state.save(self.root).map_err(NodeError::State)?;
        Ok(self.report)
    }
}

/// A system that is meant to be as it is has not failed.
fn failed(error: &io::Error) -> (Outcome, Option<String>) {
    if error.kind() == ErrorKind::ReadOnlyFilesystem {
        (Outcome::Left, Some(READ_ONLY.to_owned()))
    } else {
        (Outcome::Failed, Some(format!("cannot be written: {error}")))
    }
}

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
                .contains("\"registry-mirrors\": [\"http://127.0.0.1:65001\"]")
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
