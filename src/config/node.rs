//! Settings of `piecemeal node`.
//!
//! Invariant: a root that is not a folder is a problem, so that nothing is written elsewhere.

use std::path::PathBuf;

use piecemeal_runtimes::{ControllerConfig, Names, RestartAt, RuntimeKind, Upstream};

use super::{
    DaemonSettings,
    field::{self, Texts},
    problems::Problems,
    raw::RawNode,
    upstream::upstreams,
    webhook::port,
};
use crate::runtime_restart::restart;

/// All that is set, the process's part included.
pub(crate) type NodeSettings = DaemonSettings<ControllerConfig>;

impl RawNode {
    /// Checks everything; `None` has left a problem.
    pub(crate) fn validate(self, problems: &mut Problems) -> Option<NodeSettings> {
        let upstreams = named_upstreams(problems, self.upstream.clone());
        self.rest(problems, upstreams)
    }

    /// The same for what works on files that are there already, and so needs no upstream.
    pub(crate) fn validate_without_upstreams(self, problems: &mut Problems) -> Option<NodeSettings> {
        let upstreams = match &self.upstream {
            Some(texts) if !texts.is_empty() => named_upstreams(problems, self.upstream.clone()),
            _ => Some(Vec::new()),
        };
        self.rest(problems, upstreams)
    }

    fn rest(self, problems: &mut Problems, upstreams: Option<Vec<Upstream>>) -> Option<NodeSettings> {
        let switch = [("true", true), ("false", false)];
        let peer_port = port(problems, "peer_port", self.peer_port);
        let without_peer = field::choice(problems, "without_peer", self.without_peer, &switch);
        let names = field::choice(problems, "names", self.names, &NAMES);
        let runtimes = runtimes(problems, self.runtime);
        let root = problems.require("root", self.root).map(PathBuf::from);
        if let Some(root) = root.as_ref().filter(|root| !root.is_dir()) {
            problems.add("root", format!("{} is not a folder", root.display()));
        }
        let allowed = field::choice(problems, "allow_runtime_restart", self.allow_runtime_restart, &switch);
        let interval = field::duration(problems, "interval", self.interval);
        let admin_listen = field::address(problems, "admin_listen", self.admin_listen);
        let log = field::log_filter(problems, "log", self.log);
        Some(DaemonSettings {
            config: ControllerConfig {
                root: root.filter(|root| root.is_dir())?,
                upstreams: upstreams?,
                hosts_file: self.hosts_file.map(PathBuf::from),
                peer_port: peer_port?,
                has_peer: !without_peer?,
                names: names?,
                runtimes: runtimes?,
                restart: allowed?.then_some(restart as RestartAt),
                interval: interval?,
            },
            admin_listen: admin_listen?,
            log: log?,
        })
    }
}

fn named_upstreams(problems: &mut Problems, texts: Texts) -> Option<Vec<Upstream>> {
    let upstreams = upstreams(problems, "upstream", texts)?;
    let upstream = |upstream: piecemeal_upstream::UpstreamConfig| Upstream {
        name: upstream.name,
        // A runtime has one place to fall back to: that which the peer prefers.
        url: upstream
            .urls
            .into_iter()
            .next()
            .expect("every upstream was read with a URL"),
    };
    Some(upstreams.into_iter().map(upstream).collect())
}

/// The runtimes by name; none when all that are found are meant.
fn runtimes(problems: &mut Problems, texts: Texts) -> Option<Vec<RuntimeKind>> {
    let texts = problems.require("runtime", texts)?;
    if texts.iter().any(|text| text == "auto") {
        if texts.len() > 1 {
            problems.add("runtime", "auto stands alone: it means every runtime that is found");
            return None;
        }
        return Some(Vec::new());
    }
    let read: Vec<Option<RuntimeKind>> = texts
        .iter()
        .map(|text| problems.check("runtime", text.parse()))
        .collect();
    read.into_iter().collect()
}

const NAMES: [(&str, Names); 3] = [
    ("accelerated", Names::Accelerated),
    ("original", Names::Original),
    ("both", Names::Both),
];
