//! A child process that is killed when dropped, with its output in a log file.
//!
//! When a test fails, the end of the log goes to standard error, where the test's report shows it.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// A running program, which can be stopped, killed and started again with the same arguments.
#[derive(Debug)]
pub struct Process {
    name: String,
    command: Command,
    child: Option<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; its output is appended to `log`. `name` is for messages.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        command.stdout(append_to(log));
        Self::start_with_stdout(name, command, log)
    }

    /// Like [`Self::start`] for a command whose standard output goes elsewhere.
    pub fn start_with_stdout(name: &str, mut command: Command, log: &Path) -> Self {
        command.stdin(Stdio::null()).stderr(append_to(log));
        let mut process = Self {
            name: name.to_owned(),
            command,
            child: None,
            log: log.to_owned(),
        };
        process.start_again();
        process
    }

    /// Starts the same command once more.
    ///
    /// # Panics
    /// When it still runs.
    pub fn start_again(&mut self) {
        assert!(!self.is_running(), "{} is running already", self.name);
        let child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("starting {}: {error}", self.name));
        self.child = Some(child);
    }

    /// SIGTERM, and the same command beside it as soon as the log says that it is `ending`. Yields the process that ends.
    pub fn hand_over(&mut self, ending: &str) -> Self {
        let said = |log: &str| log.matches(ending).count();
        let before = said(&self.log_text());
        self.signal(Signal::TERM);
        let deadline = Instant::now() + TERMINATE_TIME_MAX;
        while said(&self.log_text()) == before {
            assert!(Instant::now() < deadline, "{} does not say {ending:?}", self.name);
            thread::sleep(Duration::from_millis(5));
        }
        let ending = Self {
            name: self.name.clone(),
            command: Command::new("true"),
            child: self.child.take(),
            log: self.log.clone(),
        };
        self.start_again();
        ending
    }

    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| child.try_wait().expect("asking for a child's status").is_none())
    }

    /// The process id of the running program.
    pub fn pid(&self) -> u32 {
        self.child
            .as_ref()
            .unwrap_or_else(|| panic!("{} was not started", self.name))
            .id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(Pid::from_raw)
            .expect("process ids are positive");
        kill_process(pid, signal).unwrap_or_else(|error| panic!("sending {signal:?} to {}: {error}", self.name));
    }

    /// SIGKILL: the process has no chance to tidy up.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killing a child");
            child.wait().expect("waiting for a killed child");
        }
    }

    /// SIGSTOP: the process lives, keeps its sockets and does nothing.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT, after [`Self::stop`].
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGTERM, then waits until the process has ended in good order.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + TERMINATE_TIME_MAX;
        let mut child = self.child.take().expect("a process that takes a signal has a child");
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().expect("asking for a child's status") {
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.child = Some(child);
        panic!("{} still runs {TERMINATE_TIME_MAX:?} after SIGTERM", self.name);
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The log's last lines, headed by the file's name.
    pub fn log_tail(&self) -> String {
        log_tail(&self.name, &self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        if let Some(mut child) = self.child.take() {
            // SIGKILL ends a stopped process too; an error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The last lines of a log, headed by its name.
pub fn log_tail(name: &str, log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
    format!("--- {name} (the end of {})\n{}\n", log.display(), tail.join("\n"))
}

/// Opens a file to which several processes, or several runs of one, may write in turn.
pub fn append_to(path: &Path) -> File {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.unwrap_or_else(|error| panic!("opening {}: {error}", path.display()))
}

const TERMINATE_TIME_MAX: Duration = Duration::from_secs(30);
const LOG_TAIL_LINES: usize = 100;
