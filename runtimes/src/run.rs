//! One run over a node's files: writes, restores and deletes them, and reports each.
//!
//! It holds the node's lock. A file is replaced only while it still is the one that was decided on, and a symbolic link never.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
};

use crate::{
    docker,
    edit::Edit,
    kind::RuntimeKind,
    lock::Lock,
    mark::Mark,
    mounts::is_read_only_by_mount,
    problem::Problem,
    processes,
    replace::replace,
    report::{FileOutcome, FileReport, Report},
    root::{Root, Seen, Stamp},
    runtime::Runtime,
    settings::Settings,
    state::{self, NodeState},
    wanted::{self, Wanted},
};

/// One run over the node's files.
pub(crate) struct Run<'a> {
    pub root: &'a Root,
    _lock: Lock,
    pub state: NodeState,
    pub report: Report,
    /// Runtimes whose files have changed.
    changed: BTreeSet<RuntimeKind>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(root: &'a Root, lock: Lock) -> Self {
        Self {
            root,
            _lock: lock,
            state: NodeState::load(root),
            report: Report::default(),
            changed: BTreeSet::new(),
        }
    }

    pub(crate) fn remember_certs_dir(&mut self, runtime: &Runtime) {
        if let Some(dir) = &runtime.certs_dir {
            let dirs = self.state.certs_dirs.entry(runtime.kind.name().to_owned());
            dirs.or_default().insert(dir.clone());
        }
    }

    pub(crate) fn write(&mut self, file: &Wanted, settings: &Settings) {
        let before = self.state.files.get(&file.path).cloned();
        let decide = |current: Option<&str>| file.edit(settings, current);
        let (current, edit, (outcome, why)) = self.change(&file.path, FileOutcome::Written, &decide);
        if edit == Edit::Nothing && current.is_none() {
            return;
        }
        let is_as_left = |written: &String| current.as_ref().is_some_and(|text| *written == state::digest(text));
        let was_changed = before.is_some_and(|written| !is_as_left(&written));
        if edit == Edit::Nothing {
            self.state.wrote(&file.path, current.as_deref().unwrap_or_default());
        }
        let is_in_place = matches!(outcome, FileOutcome::Unchanged | FileOutcome::Written);
        if file.path == docker::FILE && is_in_place && (edit != Edit::Nothing || self.state.docker_port.is_some()) {
            self.state.docker_port = Some(settings.peer_port);
        }
        if outcome == FileOutcome::Written && was_changed {
            self.report.repairs += 1;
        }
        self.tell(&file.path, file.runtime, file.name.clone(), outcome, why);
    }

    pub(crate) fn take_back(&mut self, path: &str, runtime: RuntimeKind, peer_port: u16, purge: bool) {
        let ports = self.state.docker_ports(peer_port);
        let decide =
            |current: Option<&str>| current.map_or(Edit::Nothing, |text| wanted::take_back(path, text, &ports, purge));
        let (current, edit, (outcome, why)) = self.change(path, FileOutcome::Restored, &decide);
        if edit == Edit::Nothing || current.is_none() {
            return;
        }
        let is_theirs = matches!(&edit, Edit::Write(text) if Mark::of(text).is_none());
        if is_theirs && outcome == FileOutcome::Restored {
            self.state.files.remove(path);
        }
        self.tell(path, runtime, None, outcome, why);
    }

    /// Decides on a file's text and carries the decision out, and does both again where the file changes in between. Returns
    /// the file's text, the decision and the outcome.
    pub(crate) fn change(
        &mut self,
        path: &str,
        written: FileOutcome,
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
                Edit::Nothing => Ok((FileOutcome::Unchanged, None)),
                Edit::Write(text) => self.put(path, text, written, seen.stamp),
                Edit::Delete => self.delete(path, seen.stamp),
                Edit::Leave(why) => Ok((FileOutcome::Left, Some(why.clone()))),
            };
            match told {
                Ok(told) => return (seen.text, edit, told),
                Err(Changed) if tries > 0 => {}
                Err(changed) => return (seen.text, edit, changed.told()),
            }
        }
    }

    pub(crate) fn put(
        &mut self,
        path: &str,
        text: &str,
        outcome: FileOutcome,
        seen: Option<Stamp>,
    ) -> Result<Told, Changed> {
        if self.root.is_link(path) {
            return Ok((FileOutcome::Left, Some(LINK.to_owned())));
        }
        let mut made = Vec::new();
        let written = replace(self.root, path, text, seen, &mut made);
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

    pub(crate) fn delete(&mut self, path: &str, seen: Option<Stamp>) -> Result<Told, Changed> {
        if self.root.is_link(path) {
            return Ok((FileOutcome::Left, Some(LINK.to_owned())));
        }
        if self.root.stamp(path) != seen {
            return Err(Changed);
        }
        match self.root.remove(path) {
            Ok(()) => {
                self.state.files.remove(path);
                Ok((FileOutcome::Deleted, None))
            }
            Err(error) => Ok(self.failed(path, &error)),
        }
    }

    /// A read-only file system is no failure: the system is meant to be so.
    fn failed(&self, path: &str, error: &io::Error) -> Told {
        if error.kind() != ErrorKind::ReadOnlyFilesystem {
            return (FileOutcome::Failed, Some(format!("cannot be written: {error}")));
        }
        let why = if is_read_only_by_mount(self.root.path(), path) {
            READ_ONLY_MOUNT
        } else {
            READ_ONLY
        };
        (FileOutcome::Left, Some(why.to_owned()))
    }

    pub(crate) fn tell(
        &mut self,
        path: &str,
        runtime: RuntimeKind,
        name: Option<String>,
        outcome: FileOutcome,
        why: Option<String>,
    ) {
        if matches!(
            outcome,
            FileOutcome::Written | FileOutcome::Restored | FileOutcome::Deleted
        ) {
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
    pub(crate) fn note_unwritten(&self, runtime: &mut Runtime) {
        let unwritten = |file: &&FileReport| {
            file.runtime == runtime.kind
                && (file.outcome == FileOutcome::Failed
                    || matches!(file.why.as_deref(), Some(READ_ONLY | READ_ONLY_MOUNT)))
        };
        if let Some(file) = self.report.files.iter().find(unwritten)
            && runtime.problem.is_none()
        {
            let why = file.why.as_deref().unwrap_or_default();
            runtime.problem = Some(Problem::because(format!("{} {why}", file.path)));
        }
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

    pub(crate) fn finish(mut self) -> io::Result<Report> {
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
        self.state.save(self.root)?;
        Ok(self.report)
    }
}

/// Outcome for a file, and its reason.
pub(crate) type Told = (FileOutcome, Option<String>);

/// A file was changed between its being read and its being replaced.
#[derive(Debug)]
pub(crate) struct Changed;

impl Changed {
    pub(crate) fn told(self) -> Told {
        let why = "is being changed by another program at the same time; run this again";
        (FileOutcome::Failed, Some(why.to_owned()))
    }
}

const LINK: &str = "is a symbolic link to a file that does not belong to piecemeal node";
/// The most tries to read a file that changes while it is written.
const TRIES: usize = 3;
const READ_ONLY_MOUNT: &str = "is on a mount that is read-only, though its file system is not: in the chart, name its folder in node.extraHostPaths; on the node itself, write it by the system's own means";
const READ_ONLY: &str = "is on a file system that is read-only; write it by the system's own means";
