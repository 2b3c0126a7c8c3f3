//! Restart of a containerd whose configuration lacks one line, where the administrator has allowed it.
//!
//! At most once on a node: the state on disk says so before the restart, which may end this process too. A containerd whose CRI does
//! not answer afterwards gets its former file and a second restart, since the node would be lost otherwise.
//!
//! Kept, and off by default: node groups that are replaced at will (GKE, DigitalOcean) come without the line, and there is no
//! administrator at each new node to add it. The documentation and the chart's `node.allowRuntimeRestart` promise it.

use crate::{
    edit::Edit,
    kind::RuntimeKind,
    problem::Remedy,
    remedy,
    report::FileOutcome,
    run::{Changed, Run},
    runtime::Runtime,
    state,
};

/// Restarts a runtime, where the administrator has allowed it, and waits until it answers; an error says that it does not.
pub type Restart<'a> = &'a dyn Fn(RuntimeKind) -> Result<(), String>;

/// Adds the missing line to each containerd's configuration and restarts it; whether anything has changed.
pub(crate) fn make_ready(run: &mut Run<'_>, found: &[Runtime], restart: Restart<'_>) -> bool {
    let before = run.report.done.len();
    for runtime in found {
        let Some(remedy) = runtime.problem.as_ref().and_then(|problem| problem.remedy.as_ref()) else {
            continue;
        };
        let (kind, Remedy { file, line, .. }) = (runtime.kind, remedy);
        match apply(run, kind, remedy, restart) {
            Ok(()) => run
                .report
                .done
                .push(format!("added {line} to {file} and restarted {kind}")),
            Err(why) => run.report.remains.push(why),
        }
    }
    run.report.done.len() > before
}

fn apply(run: &mut Run<'_>, kind: RuntimeKind, remedy: &Remedy, restart: Restart<'_>) -> Result<(), String> {
    if run.state.restarted.contains(kind.name()) {
        return Err(format!("{kind} was restarted once already, and is not restarted again"));
    }
    let path = &remedy.file;
    let seen = run
        .root
        .see(path)
        .map_err(|error| format!("{path} cannot be read: {error}"))?;
    let text = remedy::with_remedy(seen.text.as_deref(), remedy)?;
    // Before anything else: a restart that ends this process too must not be the first of many.
    run.state.restarted.insert(kind.name().to_owned());
    let saved = run.state.clone().save(run.root);
    saved.map_err(|error| format!("{} cannot be written: {error}", state::FILE))?;
    let put = run
        .put(path, &text, FileOutcome::Written, seen.stamp)
        .unwrap_or_else(Changed::told);
    run.state.files.remove(path);
    if let (FileOutcome::Failed | FileOutcome::Left, why) = put {
        return Err(format!("{path} {}", why.unwrap_or_default()));
    }
    restart(kind).map_err(|why| undo(run, kind, path, seen.text.as_deref(), &why, restart))
}

/// Restores the configuration after a restart that failed, and restarts again: the runtime may be down, or up without its CRI. Returns
/// what has happened.
fn undo(
    run: &mut Run<'_>,
    kind: RuntimeKind,
    path: &str,
    former: Option<&str>,
    why: &str,
    restart: Restart<'_>,
) -> String {
    let stamp = run.root.stamp(path);
    let back = match former {
        Some(text) => run.put(path, text, FileOutcome::Restored, stamp),
        None => run.delete(path, stamp),
    };
    run.state.files.remove(path);
    let failed = format!("{kind} did not restart correctly ({why}); {path} had the line for a moment");
    if !matches!(back, Ok((FileOutcome::Restored | FileOutcome::Deleted, _))) {
        return format!("{failed}, and could not be restored: take out what is marked there and restart {kind}");
    }
    match restart(kind) {
        Ok(()) => format!("{failed}, was restored, and {kind} was restarted with that"),
        Err(why) => format!("{failed} and was restored; restart {kind}, since that failed once more ({why})"),
    }
}

/// Takes the line out again. That takes effect at the next restart, which the administrator makes.
pub(crate) fn take_back(run: &mut Run<'_>) {
    let decide = |current: Option<&str>| match current.and_then(remedy::without_remedy) {
        None => Edit::Nothing,
        Some(text) if text.is_empty() => Edit::Delete,
        Some(text) => Edit::Write(text),
    };
    for kind in RuntimeKind::ALL {
        let Some(path) = kind.config_file() else { continue };
        let (_, edit, (outcome, why)) = run.change(path, FileOutcome::Restored, &decide);
        if matches!(edit, Edit::Write(_) | Edit::Delete) {
            run.state.files.remove(path);
            run.tell(path, kind, None, outcome, why);
        }
    }
    run.state.restarted.clear();
}
