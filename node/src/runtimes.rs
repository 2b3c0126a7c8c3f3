//! The runtimes that can be wired, where each keeps what, and what each has to say for itself.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::Serialize;

use crate::{
    containerd::{Problem, Remedy},
    containers,
    facts::Facts,
};

/// A container runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    Containerd,
    K3s,
    Rke2,
    Crio,
    Podman,
    Docker,
}

impl RuntimeKind {
    pub const ALL: [Self; 6] = [
        Self::Containerd,
        Self::K3s,
        Self::Rke2,
        Self::Crio,
        Self::Podman,
        Self::Docker,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
            Self::Crio => "crio",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }

    /// Any of these says that it is on the node. A container may see only some of them.
    pub(crate) fn traces(self) -> &'static [&'static str] {
        match self {
            Self::Containerd => &[
                "/etc/containerd",
                "/run/containerd/containerd.sock",
                "/usr/bin/containerd",
                "/usr/local/bin/containerd",
            ],
            Self::K3s => &["/var/lib/rancher/k3s/agent", "/etc/rancher/k3s", "/usr/local/bin/k3s"],
            Self::Rke2 => &[
                "/var/lib/rancher/rke2/agent",
                "/etc/rancher/rke2",
                "/usr/local/bin/rke2",
            ],
            Self::Crio => &[
                "/etc/crio",
                "/run/crio/crio.sock",
                "/usr/bin/crio",
                "/usr/local/bin/crio",
            ],
            Self::Podman => &["/usr/bin/podman", "/usr/local/bin/podman"],
            Self::Docker => &[
                "/usr/bin/dockerd",
                "/usr/local/bin/dockerd",
                "/run/docker.sock",
                "/etc/docker/daemon.json",
            ],
        }
    }

    /// The configuration of a containerd.
    pub(crate) fn config_file(self) -> Option<&'static str> {
        match self {
            Self::Containerd => Some("/etc/containerd/config.toml"),
            Self::K3s => Some("/var/lib/rancher/k3s/agent/etc/containerd/config.toml"),
            Self::Rke2 => Some("/var/lib/rancher/rke2/agent/etc/containerd/config.toml"),
            Self::Crio | Self::Podman | Self::Docker => None,
        }
    }

    /// Where a containerd's hosts.toml files belong unless its configuration says otherwise.
    pub(crate) fn certs_dir(self) -> Option<&'static str> {
        match self {
            Self::Containerd => Some("/etc/containerd/certs.d"),
            Self::K3s => Some("/var/lib/rancher/k3s/agent/etc/containerd/certs.d"),
            Self::Rke2 => Some("/var/lib/rancher/rke2/agent/etc/containerd/certs.d"),
            Self::Crio | Self::Podman | Self::Docker => None,
        }
    }

    /// What it reads, and what it has to be told after a change; its process, too.
    pub(crate) fn process(self) -> Option<&'static str> {
        match self {
            Self::Crio => Some("crio"),
            Self::Docker => Some("dockerd"),
            // These read their files at every pull.
            Self::Containerd | Self::K3s | Self::Rke2 | Self::Podman => None,
        }
    }
}

impl fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RuntimeKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is no runtime; there are {names}, and auto for those that are found")
        })
    }
}

/// What one runtime on the node is like.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    pub kind: RuntimeKind,
    pub detected: bool,
    /// Where hosts.toml files go.
    pub certs_dir: Option<String>,
    /// Why it does not read what is written, or why nothing is.
    pub problem: Option<Problem>,
    pub notes: Vec<String>,
    /// Whether files are written for it at all.
    pub is_wired: bool,
}

impl Runtime {
    /// Whether it reads what is written for it.
    pub(crate) fn is_ready(&self) -> bool {
        self.problem.is_none()
    }
}

/// The runtimes to wire: those that are asked for, or all that are found.
pub(crate) fn runtimes(facts: &Facts, asked: &[RuntimeKind]) -> Vec<Runtime> {
    let chosen: BTreeSet<RuntimeKind> = if asked.is_empty() { &facts.detected[..] } else { asked }
        .iter()
        .copied()
        .collect();
    chosen.into_iter().map(|kind| runtime(facts, kind)).collect()
}

fn runtime(facts: &Facts, kind: RuntimeKind) -> Runtime {
    let mut runtime = Runtime {
        kind,
        detected: facts.detected.contains(&kind),
        certs_dir: None,
        problem: None,
        notes: Vec::new(),
        is_wired: true,
    };
    if let Some(why) = immutable(&facts.os) {
        runtime.problem = Some(Problem::because(why.to_owned()));
        runtime.is_wired = false;
        return runtime;
    }
    match kind {
        RuntimeKind::Containerd | RuntimeKind::K3s | RuntimeKind::Rke2 => of_containerd(facts, &mut runtime),
        RuntimeKind::Crio | RuntimeKind::Podman => {
            let main = facts.containers.iter().find(|(path, _)| path == containers::MAIN);
            if main.is_some_and(|(_, text)| containers::is_first_version(text)) {
                let why = format!(
                    "{} is of the format's first version ([registries.…]), beside which no drop-in may stand; write it as [[registry]] tables",
                    containers::MAIN
                );
                runtime.problem = Some(Problem::because(why));
                runtime.is_wired = false;
            }
        }
        RuntimeKind::Docker => {}
    }
    runtime
}

fn of_containerd(facts: &Facts, runtime: &mut Runtime) {
    let kind = runtime.kind;
    let config = facts.configs.iter().find(|(of, _)| *of == kind);
    let (Some((_, config)), Some(main), Some(default_dir)) = (config, kind.config_file(), kind.certs_dir()) else {
        return;
    };
    let mut verdict = config.verdict(main, default_dir);
    if kind != RuntimeKind::Containerd
        && let Some(problem) = &mut verdict.problem
        && let Some(Remedy { table, line, .. }) = problem.remedy.take()
    {
        // The file is written anew at every start of the service.
        problem.why = if config.files.is_empty() {
            format!("{main} is not there: {kind} makes it at its first start; until then nobody can say")
        } else {
            format!(
                "{}; {kind} writes {main} at its start: upgrade it, since today's sets this by itself, \
                 or put {line} under [{table}] into config.toml.tmpl beside it (config-v3.toml.tmpl with containerd 2), and restart {kind}",
                problem.why
            )
        };
    }
    runtime.certs_dir = Some(verdict.dir);
    runtime.problem = verdict.problem;
    runtime.notes = verdict.notes;
}

/// Systems whose configuration is no files.
fn immutable(os: &str) -> Option<&'static str> {
    match os {
        "talos" => Some(
            "Talos keeps its settings in the machine configuration; add the registries under machine.registries.mirrors",
        ),
        "bottlerocket" => Some(
            "Bottlerocket keeps its settings behind its API; add the registries under settings.container-registry.mirrors",
        ),
        _ => None,
    }
}

impl Problem {
    pub(crate) fn because(why: String) -> Self {
        Self { why, remedy: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::Config;

    fn facts(os: &str, detected: &[RuntimeKind]) -> Facts {
        Facts {
            os: os.to_owned(),
            detected: detected.to_vec(),
            configs: RuntimeKind::ALL
                .into_iter()
                .filter(|kind| kind.config_file().is_some())
                .map(|kind| (kind, Config::default()))
                .collect(),
            containers: Vec::new(),
        }
    }

    #[test]
    fn all_that_are_found_are_wired_unless_some_are_named() {
        let facts = facts("debian", &[RuntimeKind::Docker, RuntimeKind::Containerd]);
        let kinds = |asked: &[RuntimeKind]| -> Vec<(RuntimeKind, bool)> {
            runtimes(&facts, asked)
                .into_iter()
                .map(|runtime| (runtime.kind, runtime.detected))
                .collect()
        };
        assert_eq!(
            kinds(&[]),
            [(RuntimeKind::Containerd, true), (RuntimeKind::Docker, true)]
        );
        assert_eq!(
            kinds(&[RuntimeKind::Crio, RuntimeKind::Crio]),
            [(RuntimeKind::Crio, false)]
        );
        for kind in RuntimeKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("lxc".parse::<RuntimeKind>().unwrap_err().contains("auto"));
    }

    #[test]
    fn systems_without_files_are_told_and_left_alone() {
        for os in ["talos", "bottlerocket"] {
            let found = runtimes(&facts(os, &[RuntimeKind::Containerd]), &[]);
            assert!(!found[0].is_wired && !found[0].is_ready(), "{os}");
        }
    }

    #[test]
    fn k3s_is_told_what_it_takes_and_not_to_edit_what_it_writes_itself() {
        let mut facts = facts("debian", &[RuntimeKind::K3s]);
        let text = "version = 2\n".to_owned();
        facts.configs[1].1.files = vec![(RuntimeKind::K3s.config_file().unwrap().to_owned(), text)];
        let found = &runtimes(&facts, &[])[0];
        let problem = found.problem.as_ref().unwrap();
        assert!(
            problem.why.contains("config.toml.tmpl") && problem.remedy.is_none(),
            "{}",
            problem.why
        );
        assert_eq!(found.certs_dir.as_deref(), RuntimeKind::K3s.certs_dir());
    }

    #[test]
    fn a_first_version_registries_conf_is_left_alone() {
        let mut facts = facts("debian", &[RuntimeKind::Crio]);
        facts.containers = vec![(
            containers::MAIN.to_owned(),
            "[registries.search]\nregistries = []\n".to_owned(),
        )];
        assert!(!runtimes(&facts, &[])[0].is_wired);
    }
}
