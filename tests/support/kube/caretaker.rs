//! A shell that outlives the test process by a moment, to end what that has left.
//!
//! A server that all tests of a binary share is kept in a static, which is never dropped; and a killed process drops nothing.
//! The end of a process closes its end of a pipe, however it comes.

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

/// Kills a process group and removes a folder when this process ends. Dropped, it does neither.
#[derive(Debug)]
pub(super) struct Caretaker {
    shell: Child,
    /// Nothing is written; that it closes is the message.
    _alive: ChildStdin,
}

impl Caretaker {
    pub(super) fn watch(group: i32, folder: &Path) -> Self {
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "caretaker", &group.to_string()])
            .arg(folder);
        let mut shell = command
            // Ctrl-C at the terminal is not for it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starting a shell");
        let alive = shell.stdin.take().expect("standard input is piped");
        Self { shell, _alive: alive }
    }
}

impl Drop for Caretaker {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A killed process may still be writing when the folder is removed first.
const SCRIPT: &str = r#"read -r _; kill -s KILL -- "-$1"; rm -rf -- "$2" || { sleep 1; rm -rf -- "$2"; }"#;
