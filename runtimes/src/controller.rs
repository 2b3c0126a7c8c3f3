//! Controller of `piecemeal node run`: reconciles the files at every interval, and when the recorded hosts change.
//!
//! Its end leaves the files: pods go on pulling. Only `remove` takes the files back.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    kind::RuntimeKind,
    metrics::Metrics,
    names::{Names, Upstream, registries},
    node::{Node, NodeError},
    report::{FileOutcome, FileReport, Report, RuntimeReport},
    settings::Settings,
};

/// Configuration of `piecemeal node`.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// The root of the node's file system.
    pub root: PathBuf,
    pub upstreams: Vec<Upstream>,
    /// Hosts that the webhook has met, a line each.
    pub hosts_file: Option<PathBuf>,
    pub peer_port: u16,
    pub has_peer: bool,
    pub names: Names,
    /// Empty: those that are found.
    pub runtimes: Vec<RuntimeKind>,
    /// Restarts a runtime of the node at this root; none: nothing is ever restarted.
    pub restart: Option<RestartAt>,
    /// The interval at which everything is looked at again.
    pub interval: Duration,
}

/// Restarts a runtime of the node whose file system is at this path; an error says why not.
pub type RestartAt = fn(&Path, RuntimeKind) -> Result<(), String>;

impl ControllerConfig {
    /// Settings of the node, with the hosts that the webhook has recorded by now.
    ///
    /// # Errors
    /// The file of hosts cannot be read.
    pub fn settings(&self) -> io::Result<Settings> {
        Ok(self.settings_for(Some(&self.hosts()?)))
    }

    /// `met`: the hosts that the webhook has recorded; none while there is no record.
    fn settings_for(&self, met: Option<&str>) -> Settings {
        Settings {
            registries: registries(&self.upstreams, met.unwrap_or_default().lines()),
            is_complete: met.is_some(),
            peer_port: self.peer_port,
            has_peer: self.has_peer,
            names: self.names,
            runtimes: self.runtimes.clone(),
        }
    }

    /// Opens the node and installs.
    ///
    /// # Errors
    /// As [`Node::install`].
    pub fn install(&self, settings: &Settings) -> Result<Report, NodeError> {
        let node = Node::open(&self.root)?;
        let restart = self.restart.map(|restart| {
            let node = &node;
            move |runtime| restart(&self.root, runtime).and_then(|()| node.wait_for(runtime))
        });
        node.install(settings, restart.as_ref().map(|restart| restart as _))
    }

    fn hosts(&self) -> io::Result<String> {
        self.hosts_file.as_ref().map_or(Ok(String::new()), fs::read_to_string)
    }

    /// The hosts that are met by now. The webhook may not have met any, and then there is no file.
    fn hosts_by_now(&self) -> io::Result<Option<String>> {
        match self.hosts() {
            Ok(hosts) => Ok(Some(hosts)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Controller of one node's files.
#[derive(Debug)]
pub struct Controller {
    config: ControllerConfig,
    metrics: Metrics,
    last: Arc<Mutex<Last>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Findings of the last reconciliation.
#[derive(Debug, Default)]
struct Last {
    runtimes: Vec<RuntimeReport>,
    problem: Option<String>,
}

impl Controller {
    /// Installs once, and starts the loop.
    ///
    /// # Errors
    /// The node's file system cannot be opened at all. Everything else may pass, and is tried again.
    pub async fn start(config: ControllerConfig) -> Result<Self, NodeError> {
        Node::open(&config.root)?;
        let (metrics, last) = (Metrics::default(), Arc::new(Mutex::new(Last::default())));
        let mut reconciler = Reconciler {
            config: config.clone(),
            metrics: metrics.clone(),
            last: Arc::clone(&last),
            hosts: None,
        };
        reconciler = reconciler.reconcile().await;
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move {
                tokio::select! {
                    () = reconciler.run() => {}
                    () = stop.cancelled() => {}
                }
            }
        });
        Ok(Self {
            config,
            metrics,
            last,
            stop,
            task,
        })
    }

    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.clone().register(registry);
    }

    /// Each runtime with its problem if it has one.
    pub async fn readiness(&self) -> Vec<(String, Option<String>)> {
        let last = self.last.lock();
        let mut readiness: Vec<_> = last
            .runtimes
            .iter()
            .map(|runtime| (runtime.runtime.to_string(), runtime.why.clone()))
            .collect();
        if last.runtimes.is_empty() {
            readiness.push(("runtime".to_owned(), Some(NO_RUNTIME.to_owned())));
        }
        readiness.push(("files".to_owned(), last.problem.clone()));
        readiness
    }

    /// The same as `piecemeal node status --output json`.
    pub async fn status(&self) -> Value {
        let config = self.config.clone();
        let status = spawn_blocking(move || {
            let met = config.hosts_by_now().unwrap_or_default();
            let settings = config.settings_for(met.as_deref());
            let node = Node::open(&config.root).map_err(|error| error.to_string())?;
            node.status(&settings).map_err(|error| error.to_string())
        });
        match status.await {
            Ok(Ok(status)) => json!(status),
            Ok(Err(error)) => json!({ "error": error }),
            Err(error) => json!({ "error": error.to_string() }),
        }
    }

    /// Ends the loop, and leaves the files.
    pub async fn shutdown(self) {
        self.stop.cancel();
        // A write that is under way is not cancelled.
        let _ = self.task.await;
    }
}

/// Control loop and its state.
struct Reconciler {
    config: ControllerConfig,
    metrics: Metrics,
    last: Arc<Mutex<Last>>,
    /// The hosts by which files were written last.
    hosts: Option<String>,
}

impl Reconciler {
    async fn run(mut self) {
        loop {
            let next = Instant::now() + self.config.interval;
            while Instant::now() < next && !self.has_other_hosts() {
                sleep_until(next.min(Instant::now() + HOSTS_INTERVAL)).await;
            }
            self = self.reconcile().await;
        }
    }

    fn has_other_hosts(&self) -> bool {
        // One that cannot be read is looked at with everything else.
        self.config.hosts_by_now().is_ok_and(|hosts| self.hosts != hosts)
    }

    /// One reconciliation, on a thread for blocking work.
    async fn reconcile(self) -> Self {
        let task = spawn_blocking(move || {
            let mut reconciler = self;
            reconciler.reconcile_now();
            reconciler
        });
        task.await.expect("a reconciliation does not panic")
    }

    fn reconcile_now(&mut self) {
        let hosts = self.config.hosts_by_now();
        let looked = match &hosts {
            Ok(hosts) => {
                let settings = self.config.settings_for(hosts.as_deref());
                self.config.install(&settings).map_err(|error| describe(&error))
            }
            // Not treated as empty: the files of recorded hosts would be taken back.
            Err(error) => Err(format!("cannot read the file of hosts: {error}")),
        };
        let mut last = self.last.lock();
        let problem = match looked {
            Ok(report) => {
                self.hosts = hosts.unwrap_or_default();
                self.metrics.take(&report);
                tell(&report, &last.runtimes);
                last.runtimes.clone_from(&report.runtimes);
                problem(&report)
            }
            Err(error) => Some(error),
        };
        if let Some(problem) = &problem {
            self.metrics.errors.inc();
            if last.problem.as_ref() != Some(problem) {
                error!("{problem}");
            }
        }
        last.problem = problem;
    }
}

fn problem(report: &Report) -> Option<String> {
    let failed = report.files.iter().find(|file| file.outcome == FileOutcome::Failed)?;
    Some(format!("{} {}", failed.path, failed.why.as_deref().unwrap_or_default()))
}

/// Logs each change once.
fn tell(report: &Report, before: &[RuntimeReport]) {
    let changed = |file: &&FileReport| {
        matches!(
            file.outcome,
            FileOutcome::Written | FileOutcome::Restored | FileOutcome::Deleted
        )
    };
    for file in report.files.iter().filter(changed) {
        info!(file.path = %file.path, "{:?}: {}", file.outcome, file.path);
    }
    if report.repairs > 0 {
        warn!(
            "repaired {} files that another program had changed or removed",
            report.repairs
        );
    }
    for done in &report.done {
        info!("{done}");
    }
    for remains in &report.remains {
        warn!("to do: {remains}");
    }
    let was = |runtime: &RuntimeReport| {
        before
            .iter()
            .find(|before| before.runtime == runtime.runtime)
            .map(|before| before.ready)
    };
    for runtime in report
        .runtimes
        .iter()
        .filter(|runtime| was(runtime) != Some(runtime.ready))
    {
        match &runtime.why {
            None => info!("{}", runtime.to_string().trim_end()),
            Some(_) => warn!("{}", runtime.to_string().trim_end()),
        }
    }
    if report.runtimes.is_empty() {
        warn!("{NO_RUNTIME}");
    }
}

fn describe(error: &NodeError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

const NO_RUNTIME: &str =
    "no container runtime was found; name it with --runtime, or give the node's file system with --root";
/// The longest wait of a new host for its files.
const HOSTS_INTERVAL: Duration = Duration::from_secs(1);
