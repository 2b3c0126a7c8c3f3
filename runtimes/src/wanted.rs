//! Files that a node should have.
//!
//! Decided from the runtimes, the settings and what [`Disk`] says about single names; nothing is written here.

use std::collections::BTreeSet;

use piecemeal_proto::accelerated;

use crate::{
    addresses,
    containers::{self, Mirrored},
    disk::{Disk, HOSTS},
    docker,
    edit::Edit,
    hosts::{self, Hosts},
    kind::RuntimeKind,
    names::Registry,
    problem::Problem,
    runtime::Runtime,
    settings::Settings,
};

/// A file that a runtime should have, and its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub runtime: RuntimeKind,
    pub path: String,
    /// The name that it is about, if it is one.
    pub name: Option<String>,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Hosts {
        registry: Registry,
        is_accelerated: bool,
        trust: String,
    },
    /// The hosts that lead to the peer.
    Addresses(BTreeSet<String>),
    AcceleratedDropIn(Vec<(String, Mirrored)>),
    OriginalDropIn(Vec<Mirrored>),
    DockerMirror {
        /// The port that was put there last.
        before: Option<u16>,
    },
}

impl Wanted {
    /// The edit of the file whose present text is `current`.
    pub(crate) fn edit(&self, settings: &Settings, current: Option<&str>) -> Edit {
        let peer = settings.peer();
        match &self.what {
            What::Hosts {
                registry,
                is_accelerated,
                trust,
            } => Hosts {
                name: self.name.as_deref().unwrap_or(&registry.name),
                registry,
                is_accelerated: *is_accelerated,
                peer,
                trust,
            }
            .edit(current),
            What::Addresses(hosts) => addresses::edit(hosts, current),
            What::AcceleratedDropIn(names) => containers::edit_accelerated(names, settings.has_peer, current),
            What::OriginalDropIn(registries) => containers::edit_original(registries, settings.has_peer, current),
            What::DockerMirror { before } => docker::edit(settings.peer_port, *before, current),
        }
    }
}

/// The files of one runtime. Hints about them are added to its notes.
pub(crate) fn wanted(
    runtime: &mut Runtime,
    settings: &Settings,
    taken: &dyn Fn(&str) -> bool,
    disk: &Disk<'_>,
) -> Vec<Wanted> {
    if !runtime.is_wired {
        return Vec::new();
    }
    match (runtime.kind, runtime.certs_dir.clone()) {
        (RuntimeKind::Docker, _) => of_docker(runtime, settings, disk),
        (_, Some(dir)) => of_containerd(runtime, &dir, settings, disk),
        (_, None) => of_containers(runtime, settings, taken, disk),
    }
}

/// The list of hosts, for runtimes that look up the host of a mirror. It is written first: other files depend on where a name leads.
pub(crate) fn addresses(runtime: &Runtime, settings: &Settings) -> Option<Wanted> {
    let has_drop_ins = matches!(runtime.kind, RuntimeKind::Crio | RuntimeKind::Podman);
    let registries = if settings.has_peer { &*settings.registries } else { &[] };
    let host = |registry: &Registry| {
        let name = accelerated::name(&registry.name, settings.peer_port)?;
        name.rsplit_once(':').map(|(host, _)| host.to_owned())
    };
    let hosts: BTreeSet<String> = registries.iter().filter_map(host).collect();
    (runtime.is_wired && has_drop_ins && !hosts.is_empty()).then(|| Wanted {
        runtime: runtime.kind,
        path: addresses::FILE.to_owned(),
        name: None,
        what: What::Addresses(hosts),
    })
}

fn of_containerd(runtime: &mut Runtime, dir: &str, settings: &Settings, disk: &Disk<'_>) -> Vec<Wanted> {
    if settings.names.has_original() && settings.has_peer && disk.has_default(dir) {
        let about = format!(
            "{dir}/_default/{HOSTS} is yours, and no longer asked for registries that have a file of their own"
        );
        runtime.notes.push(about);
    }
    let runtime = runtime.kind;
    let hosts = |name: &str, registry: &Registry, is_accelerated| {
        let what = What::Hosts {
            registry: registry.clone(),
            is_accelerated,
            trust: disk.trust(dir, &registry.name),
        };
        Wanted {
            runtime,
            path: format!("{}/{}", disk.folder(dir, name), HOSTS),
            name: Some(name.to_owned()),
            what,
        }
    };
    let mut wanted = Vec::new();
    for registry in &settings.registries {
        let name = accelerated::name(&registry.name, settings.peer_port);
        if let Some(name) = name.filter(|_| settings.names.has_accelerated()) {
            wanted.push(hosts(&name, registry, true));
        }
        // Without a peer its own name leads to the registry without our help.
        if settings.names.has_original() && settings.has_peer {
            wanted.push(hosts(&registry.name, registry, false));
        }
    }
    wanted
}

fn of_containers(
    runtime: &mut Runtime,
    settings: &Settings,
    taken: &dyn Fn(&str) -> bool,
    disk: &Disk<'_>,
) -> Vec<Wanted> {
    let port = settings.peer_port;
    let mirrored = |registry: &Registry| {
        let name = accelerated::name(&registry.name, port);
        let leads_here = |name: &String| name.rsplit_once(':').is_some_and(|(host, _)| disk.leads_here(host));
        Mirrored {
            registry: registry.clone(),
            mirror: containers::mirror(&registry.name, port, name.filter(leads_here)),
        }
    };
    let mut original: Vec<Mirrored> = settings.registries.iter().map(mirrored).collect();
    let named = |at: &Mirrored| Some((accelerated::name(&at.registry.name, port)?, at.clone()));
    let mut accelerated: Vec<(String, Mirrored)> = original.iter().filter_map(named).collect();
    if !settings.names.has_accelerated() {
        accelerated.clear();
    }
    if !settings.names.has_original() {
        original.clear();
    }
    original.retain(|Mirrored { registry, mirror }| {
        if taken(&registry.name) {
            runtime.notes.push(format!(
                "{} has a [[registry]] of your own in {}*; add [[registry.mirror]] with location = \"{mirror}\" and insecure = true to it",
                registry.name,
                containers::MAIN
            ));
        }
        !taken(&registry.name)
    });
    let file = |name: &str, what| Wanted {
        runtime: runtime.kind,
        path: format!("{}/{name}", containers::DROP_INS),
        name: None,
        what,
    };
    vec![
        file(containers::ACCELERATED_FILE, What::AcceleratedDropIn(accelerated)),
        file(containers::ORIGINAL_FILE, What::OriginalDropIn(original)),
    ]
}

fn of_docker(runtime: &mut Runtime, settings: &Settings, disk: &Disk<'_>) -> Vec<Wanted> {
    if !settings.names.has_original() {
        return without_names(runtime);
    }
    if let Some(place) = &runtime.flag {
        runtime.problem = Some(Problem::because(format!(
            "{place} gives it --registry-mirror, and with a mirror in {} too it would not start; \
             put http://127.0.0.1:{} before the others there, or move them to the file",
            docker::FILE,
            settings.peer_port
        )));
        return Vec::new();
    }
    let has_hub = settings
        .registries
        .iter()
        .any(|registry| registry.name == docker::REGISTRY);
    if !has_hub || !settings.has_peer {
        runtime.notes.push(
            "it can send only docker.io through the peer: that takes a peer, and an upstream docker.io".to_owned(),
        );
        return Vec::new();
    }
    if settings.names.has_accelerated() {
        runtime
            .notes
            .push("it cannot pull accelerated names; it pulls docker.io through the peer by its own name".to_owned());
    }
    runtime
        .notes
        .push("it names no registry to its mirror: the peer needs --default-upstream docker.io".to_owned());
    vec![Wanted {
        runtime: runtime.kind,
        path: docker::FILE.to_owned(),
        name: Some(docker::REGISTRY.to_owned()),
        what: What::DockerMirror {
            before: disk.docker_port,
        },
    }]
}

/// Docker with accelerated names alone, which it cannot pull: left out beside a runtime that Kubernetes can use, else a problem.
fn without_names(runtime: &mut Runtime) -> Vec<Wanted> {
    let why =
        "it cannot pull accelerated names, and only docker.io through the peer: --names original or both".to_owned();
    if runtime.is_beside {
        runtime.aside = Some(why);
    } else {
        runtime.problem = Some(Problem::because(why));
    }
    Vec::new()
}

/// The edit that undoes one of our files, by its path.
///
/// `docker_ports`: of the mirrors that are ours in Docker's configuration.
pub(crate) fn take_back(path: &str, current: &str, docker_ports: &[u16], purge: bool) -> Edit {
    if path == docker::FILE {
        let port = docker_ports.iter().find(|port| docker::has_peer(&[**port], current));
        port.map_or(Edit::Nothing, |port| docker::take_back(*port, current))
    } else if path == addresses::FILE {
        addresses::take_back(current)
    } else if path.ends_with(HOSTS) {
        hosts::take_back(current, purge)
    } else {
        containers::take_back(current, purge)
    }
}
