//! Reports of `install`, `remove` and `status`: as text for people, and as JSON for programs.

use std::fmt::{self, Write};

use serde::Serialize;

use crate::{kind::RuntimeKind, listeners::Listener, problem::Remedy, runtime::Runtime};

/// Result of `install` or `remove`, and the steps that remain.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub runtimes: Vec<RuntimeReport>,
    pub files: Vec<FileReport>,
    /// Number of our files that another program had changed or removed, and that were repaired.
    pub repairs: u64,
    /// Other actions, one sentence each.
    pub done: Vec<String>,
    /// Steps that the administrator still has to take, one sentence each.
    pub remains: Vec<String>,
}

/// Result of `status`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub runtimes: Vec<RuntimeReport>,
    pub files: Vec<StatusFile>,
    pub peer_port: u16,
    /// Sockets that listen on that port.
    pub listeners: Vec<Listener>,
}

/// One runtime of the node.
#[derive(Clone, Debug, Serialize)]
pub struct RuntimeReport {
    pub runtime: RuntimeKind,
    pub detected: bool,
    /// Whether it reads the files that are written for it.
    pub ready: bool,
    /// The folder of its hosts.toml files, for a runtime that has them.
    pub dir: Option<String>,
    /// Why it is not ready.
    pub why: Option<String>,
    /// Reason to leave it out on purpose, although it is not ready.
    pub aside: Option<String>,
    /// The one line that makes it ready, if that is all.
    pub add: Option<Remedy>,
    pub notes: Vec<String>,
}

/// Outcome for one file.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    pub path: String,
    pub runtime: RuntimeKind,
    /// The name of a registry that it is about, if it is one.
    pub name: Option<String>,
    pub outcome: FileOutcome,
    pub why: Option<String>,
}

/// Outcome for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileOutcome {
    Unchanged,
    Written,
    /// Our part was taken out: the rest is as before, or leads to the registry alone.
    Restored,
    Deleted,
    /// The file stays as it is, for the reason given.
    Left,
    /// It could not be written.
    Failed,
}

/// One file as `status` finds it.
#[derive(Clone, Debug, Serialize)]
pub struct StatusFile {
    pub path: String,
    pub standing: FileCondition,
}

/// Relation of a file to node set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileCondition {
    /// As it was written.
    Ours,
    /// Ours, and edited since.
    Drifted,
    /// It was written, and is gone.
    Missing,
    /// Another program wrote a file at one of our paths.
    Foreign,
}

impl RuntimeReport {
    pub(crate) fn of(runtime: &Runtime) -> Self {
        let problem = runtime.problem.as_ref();
        Self {
            runtime: runtime.kind,
            detected: runtime.detected,
            ready: runtime.is_ready(),
            dir: runtime.certs_dir.clone(),
            why: problem.map(|problem| problem.why.clone()),
            aside: runtime.aside.clone(),
            add: problem.and_then(|problem| problem.remedy.clone()),
            notes: runtime.notes.clone(),
        }
    }

    fn render(&self, text: &mut impl Write) {
        let found = if self.detected { "" } else { " (not found here)" };
        let dir = self
            .dir
            .as_ref()
            .map(|dir| format!(", files in {dir}"))
            .unwrap_or_default();
        match &self.why {
            None if self.aside.is_some() => {
                let why = self.aside.as_deref().unwrap_or_default();
                _ = writeln!(text, "{}{found}: left aside: {why}", self.runtime);
            }
            None => _ = writeln!(text, "{}{found}: ready{dir}", self.runtime),
            Some(why) => _ = writeln!(text, "{}{found}: not ready: {why}", self.runtime),
        }
        if let Some(Remedy { file, table, line }) = &self.add {
            _ = writeln!(
                text,
                "  add to {file}, and restart {} once:\n    [{table}]\n      {line}",
                self.runtime
            );
        }
        for note in &self.notes {
            _ = writeln!(text, "  note: {note}");
        }
    }
}

impl fmt::Display for RuntimeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.render(f);
        Ok(())
    }
}

impl Report {
    /// Whether something was to be written and could not be.
    pub fn has_failed(&self) -> bool {
        self.files.iter().any(|file| file.outcome == FileOutcome::Failed)
    }

    /// The number of files that were brought to what they should be.
    pub fn changes(&self) -> usize {
        let changed = |file: &&FileReport| {
            matches!(
                file.outcome,
                FileOutcome::Written | FileOutcome::Restored | FileOutcome::Deleted
            )
        };
        self.files.iter().filter(changed).count()
    }

    /// For people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for runtime in &self.runtimes {
            runtime.render(&mut text);
        }
        for file in &self.files {
            let verb = match file.outcome {
                FileOutcome::Unchanged => "unchanged",
                FileOutcome::Written => "wrote",
                FileOutcome::Restored => "restored",
                FileOutcome::Deleted => "deleted",
                FileOutcome::Left => "left alone",
                FileOutcome::Failed => "could not write",
            };
            let about = file.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            let why = file.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            _ = writeln!(text, "{verb} {}{about}{why}", file.path);
        }
        for done in &self.done {
            _ = writeln!(text, "{done}");
        }
        for remains in &self.remains {
            _ = writeln!(text, "to do: {remains}");
        }
        if text.is_empty() {
            text.push_str("nothing to do\n");
        }
        text
    }
}

impl Status {
    /// For people.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for runtime in &self.runtimes {
            runtime.render(&mut text);
        }
        if self.runtimes.is_empty() {
            text.push_str("no container runtime found\n");
        }
        for StatusFile { path, standing } in &self.files {
            let said = match standing {
                FileCondition::Ours => "written by piecemeal node",
                FileCondition::Drifted => {
                    "written by piecemeal node, edited since; `piecemeal node install` undoes the edit"
                }
                FileCondition::Missing => "missing; `piecemeal node install` writes it again",
                FileCondition::Foreign => "written by another program",
            };
            _ = writeln!(text, "{path}: {said}");
        }
        if self.files.is_empty() {
            text.push_str("no files of piecemeal node\n");
        }
        match &self.listeners[..] {
            [] => {
                _ = writeln!(
                    text,
                    "port {}: no process listens; pulls go to the registries themselves",
                    self.peer_port
                )
            }
            listeners => {
                for listener in listeners {
                    _ = writeln!(text, "port {}: {listener}", self.peer_port);
                }
            }
        }
        text
    }
}
