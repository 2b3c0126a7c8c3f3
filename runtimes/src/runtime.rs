//! Container runtimes of a node: which are to be wired, and whether each reads the files that are written for it.
//!
//! Pure: decided from the [`Facts`] alone.

use std::collections::BTreeSet;

use crate::{
    containerd::{self, Config},
    containers,
    facts::Facts,
    kind::RuntimeKind,
    problem::{Problem, Remedy},
    processes::Running,
};

/// One runtime of the node, and whether it is ready.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    pub kind: RuntimeKind,
    pub detected: bool,
    /// The folder of its hosts.toml files.
    pub certs_dir: Option<String>,
    /// Reason why it does not read our files, or why none are written.
    pub problem: Option<Problem>,
    /// Reason to leave it out on purpose, although it is not ready.
    pub aside: Option<String>,
    /// Whether it was found and not asked for, and another that Kubernetes can use was, too.
    pub is_beside: bool,
    /// Docker: where it is given mirrors by a flag.
    pub flag: Option<String>,
    pub notes: Vec<String>,
    /// Whether files are written for it at all.
    pub is_wired: bool,
}

impl Runtime {
    /// Whether it reads the files that are written for it.
    pub(crate) fn is_ready(&self) -> bool {
        self.problem.is_none() && self.aside.is_none()
    }
}

/// The runtimes to wire: those that are asked for, or all that are found.
pub(crate) fn runtimes(facts: &Facts, asked: &[RuntimeKind]) -> Vec<Runtime> {
    let chosen: BTreeSet<RuntimeKind> = if asked.is_empty() { &facts.detected[..] } else { asked }
        .iter()
        .copied()
        .collect();
    let mut found: Vec<Runtime> = chosen.into_iter().map(|kind| runtime(facts, kind)).collect();
    let has_other = found
        .iter()
        .any(|of| of.aside.is_none() && !matches!(of.kind, RuntimeKind::Docker | RuntimeKind::Podman));
    for runtime in &mut found {
        runtime.is_beside = asked.is_empty() && has_other;
    }
    found
}

fn runtime(facts: &Facts, kind: RuntimeKind) -> Runtime {
    let mut runtime = Runtime {
        kind,
        detected: facts.detected.contains(&kind),
        certs_dir: None,
        problem: None,
        aside: None,
        flag: None,
        is_beside: false,
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
            if let Some(why) = &facts.containers_problem {
                runtime.problem = Some(Problem::because(why.clone()));
                runtime.is_wired = false;
            } else if main.is_some_and(|(_, text)| containers::is_first_version(text)) {
                let why = format!(
                    "{} is of the format's first version ([registries.…]), beside which no drop-in may stand; write it as [[registry]] tables",
                    containers::MAIN
                );
                runtime.problem = Some(Problem::because(why));
                runtime.is_wired = false;
            }
        }
        RuntimeKind::Docker => runtime.flag.clone_from(&facts.docker_flag),
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
        && let Some(problem) = verdict.problem.as_mut().filter(|_| verdict.is_known)
    {
        of_generated(problem, kind, main, config);
    }
    runtime.is_wired = verdict.is_known && verdict.aside.is_none();
    runtime.certs_dir = Some(verdict.dir).filter(|_| runtime.is_wired);
    runtime.problem = verdict.problem;
    runtime.aside = verdict.aside;
    runtime.notes = verdict.notes;
    if runtime.is_ready() {
        match unread(facts, kind, main, config) {
            Read::Now => {}
            Read::Perhaps(note) => runtime.notes.push(note),
            Read::Not(why) => runtime.problem = Some(Problem::because(why)),
        }
    }
}

/// K3s and RKE2 overwrite the file at each of their starts: nothing is to be added to it.
fn of_generated(problem: &mut Problem, kind: RuntimeKind, main: &str, config: &Config) {
    problem.why = match problem.remedy.take() {
        Some(_) if config.files.is_empty() => {
            format!("{main} is missing: {kind} writes it at its first start; until then its settings are unknown")
        }
        Some(Remedy { table, line, .. }) => format!(
            "{}; {kind} writes {main} at its start: upgrade it, since today's sets this by itself, \
             or put {line} under [{table}] into config.toml.tmpl beside it (config-v3.toml.tmpl with containerd 2), and restart {kind}",
            problem.why
        ),
        None => format!(
            "{} ({kind} writes {main} at its start: change registries.yaml or config.toml.tmpl, and restart {kind})",
            problem.why
        ),
    };
}

/// Whether a running containerd uses the configuration that the file has.
enum Read {
    Now,
    Perhaps(String),
    Not(String),
}

fn unread(facts: &Facts, kind: RuntimeKind, main: &str, config: &Config) -> Read {
    let by_the_file = |why: &str| {
        if kind == RuntimeKind::Containerd && facts.os == "flatcar" {
            Read::Not(format!(
                "Flatcar's containerd reads /usr/share/containerd/config.toml, and not {main}; \
                 set CONTAINERD_CONFIG={main} in a drop-in of its unit, and restart it"
            ))
        } else {
            Read::Perhaps(format!("taken from {main}: {why}"))
        }
    };
    let Some(running) = &facts.running else {
        return by_the_file("the node's processes cannot be seen from here");
    };
    let (reading, others): (Vec<&Running>, Vec<&Running>) = running
        .iter()
        .filter(|process| process.name == "containerd")
        .partition(|process| containerd::config_of(&process.arguments) == main);
    // Short commands have the same name; the service is the one that is there longest.
    let eldest = |of: Vec<&Running>| of.into_iter().min_by_key(|process| process.started).cloned();
    if let Some(service) = eldest(reading) {
        return match &config.newest {
            Some((path, at)) if *at > service.started + CLOCK_SLACK => Read::Not(format!(
                "{path} was changed after its containerd started, which reads it only then; restart {kind} once"
            )),
            _ => Read::Now,
        };
    }
    let is_anothers =
        |file: &str| file.contains("docker/") || RuntimeKind::ALL.iter().any(|kind| kind.config_file() == Some(file));
    let own = others
        .into_iter()
        .filter(|process| !is_anothers(containerd::config_of(&process.arguments)));
    match eldest(own.collect()).filter(|_| kind == RuntimeKind::Containerd) {
        Some(service) => Read::Not(format!(
            "its containerd was started with the configuration {}, and does not read {main}; start it with --config {main}",
            containerd::config_of(&service.arguments)
        )),
        None => by_the_file("its containerd does not run now"),
    }
}

/// The start of a process is known to a second.
const CLOCK_SLACK: i64 = 1;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(os: &str, detected: &[RuntimeKind]) -> Facts {
        Facts {
            os: os.to_owned(),
            detected: detected.to_vec(),
            configs: RuntimeKind::ALL
                .into_iter()
                .filter(|kind| kind.config_file().is_some())
                .map(|kind| (kind, Config::default()))
                .collect(),
            ..Facts::default()
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

    const MAIN: &str = "/etc/containerd/config.toml";

    /// A containerd whose configuration is as it should be, and was changed at second 100.
    fn ready_by_its_file(os: &str) -> Facts {
        let mut facts = facts(os, &[RuntimeKind::Containerd]);
        let text = "[plugins.cri.registry]\nconfig_path = \"/x\"\n".to_owned();
        facts.configs[0].1.files = vec![(MAIN.to_owned(), text)];
        facts.configs[0].1.newest = Some((MAIN.to_owned(), 100));
        facts
    }

    fn service(arguments: &[&str], started: i64) -> Running {
        Running {
            name: "containerd".to_owned(),
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            started,
        }
    }

    #[test]
    fn a_containerd_that_was_started_before_its_file_was_changed_is_not_ready() {
        let mut facts = ready_by_its_file("debian");
        let mut look = |running: Option<Vec<Running>>| {
            facts.running = running;
            runtimes(&facts, &[]).remove(0)
        };
        let unseen = look(None);
        assert!(unseen.is_ready() && unseen.notes[0].contains("cannot be seen"));
        assert!(look(Some(vec![])).notes[0].contains("does not run"));
        let now = look(Some(vec![service(&["containerd"], 99)]));
        assert!(now.is_ready() && now.notes.is_empty(), "within the second");
        // What is started later is a command, and not the service.
        let old = look(Some(vec![
            service(&["containerd"], 98),
            service(&["containerd", "publish"], 200),
        ]));
        assert!(
            old.problem
                .is_some_and(|problem| problem.why.contains("restart containerd once"))
        );
        let k3s = RuntimeKind::K3s.config_file().unwrap();
        let elsewhere = [
            service(&["containerd", "-c", k3s], 1),
            service(&["containerd", "-c", "/y.toml"], 2),
        ];
        let other = look(Some(elsewhere.to_vec())).problem.expect("a problem").why;
        assert!(other.contains("/y.toml"), "{other}");
        assert!(look(Some(elsewhere[..1].to_vec())).is_ready());
    }

    #[test]
    fn flatcars_containerd_reads_another_file_unless_it_is_seen_to_read_this_one() {
        let mut facts = ready_by_its_file("flatcar");
        let problem = runtimes(&facts, &[]).remove(0).problem.expect("a problem");
        assert!(problem.why.contains("/usr/share/containerd") && problem.remedy.is_none());
        facts.running = Some(vec![service(&["containerd", "--config", MAIN], 200)]);
        assert!(runtimes(&facts, &[])[0].is_ready());
    }

    #[test]
    fn what_cannot_be_read_concerns_its_own_runtime_alone() {
        let mut facts = ready_by_its_file("debian");
        facts.detected = vec![RuntimeKind::Containerd, RuntimeKind::K3s, RuntimeKind::Crio];
        facts.containers_problem = Some("registries.conf cannot be read".to_owned());
        facts.configs[1].1.unreadable = Some("config.toml cannot be read".to_owned());
        let found: Vec<(bool, bool)> = runtimes(&facts, &[])
            .iter()
            .map(|of| (of.is_wired, of.is_ready()))
            .collect();
        assert_eq!(found, [(true, true), (false, false), (false, false)]);
    }

    #[test]
    fn a_containerd_of_dockers_is_left_aside() {
        let mut facts = ready_by_its_file("debian");
        facts.configs[0].1.files[0].1 = "disabled_plugins = [\"cri\"]\n".to_owned();
        let found = runtimes(&facts, &[]).remove(0);
        assert!(found.aside.is_some() && found.problem.is_none() && !found.is_wired && !found.is_ready());
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
