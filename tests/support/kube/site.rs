//! A whole Kubernetes on a [`Site`]: the API server and what belongs to it on the mirror's machine, and a kubelet on every
//! node.
//!
//! What differs from a usual cluster: a node is no virtual machine but some namespaces; pods reach each other by routes and
//! not through an overlay; the proxy and the cluster's DNS are programs and not pods, and the DNS knows no names of others;
//! the API server asks webhooks at their pods and not at their Service; images that a cluster has from a public registry
//! (the pause image, the product's) are imported; pods have no cgroups by their quality of service.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    super::{
        image::Image,
        process::Process,
        site::{MIRROR_IP, MIRROR_WAN_IP, ORIGIN_IP, Site, node_ip},
    },
    assets::program,
    client::wait_within,
    node::{Node, NodeOptions},
    programs::{pause, product},
    server::{KubeApi, KubeOptions},
};

/// A running Kubernetes. Fields are dropped in order.
#[derive(Debug)]
pub struct KubeSite<'a> {
    nodes: Vec<Node>,
    _scheduler: Process,
    _dns: Process,
    api: KubeApi,
    site: &'a Site,
}

impl<'a> KubeSite<'a> {
    /// Starts a site and runs `test` on the API server's machine. `registry` is the name that resolves to the origin on every
    /// machine, on port 80.
    ///
    /// Once in a process: clients keep threads on that machine.
    pub fn run(site: &'a Site, registry: &str, test: impl FnOnce(&Self) + Send) {
        assert!(
            Path::new(PLUGIN).is_file(),
            "nodes need {PLUGIN} (apt-get install containernetworking-plugins)"
        );
        site.mirror().enter(|| {
            let cluster = Self::start(site, registry);
            test(&cluster);
        });
    }

    pub fn api(&self) -> &KubeApi {
        &self.api
    }

    pub fn site(&self) -> &Site {
        self.site
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    fn start(site: &'a Site, registry: &str) -> Self {
        route(site);
        let options = KubeOptions {
            address: Some(MIRROR_IP),
            ..KubeOptions::default()
        };
        let api = KubeApi::start(&options);
        let scheduler = scheduler(&api);
        let dns = dns(&api, registry);

        let folder = site.dir();
        let images: [(Image, PathBuf); 2] = [("pause", pause()), ("product", product(folder))]
            .map(|(name, image)| (image, folder.join(format!("{name}.tar"))));
        for (image, file) in &images {
            image.save_archive(IMAGES_HOST, file);
        }
        let plain = format!(
            "server = \"http://{registry}\"\n\n[host.\"http://{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        );
        let files = images.each_ref().map(|(_, file)| file.clone());
        let pause = images[0].0.reference(IMAGES_HOST);
        let nodes = site.nodes().iter().enumerate().map(|(index, netns)| {
            Node::start(
                &api,
                &NodeOptions {
                    name: &format!("node{}", index + 1),
                    netns,
                    ip: node_ip(index),
                    pods: &pods_of(index),
                    all_pods: PODS,
                    dns: MIRROR_IP,
                    images: &files,
                    pause: &pause,
                    hosts: &[(registry, &plain)],
                },
            )
        });
        let mut cluster = Self {
            nodes: nodes.collect(),
            _scheduler: scheduler,
            _dns: dns,
            api,
            site,
        };
        cluster.wait_until_ready();
        cluster
    }

    fn wait_until_ready(&mut self) {
        wait_within(START_TIME_MAX, "all nodes are ready", || {
            self.nodes.iter_mut().for_each(Node::expect_running);
            let nodes = self.api.client().list("Node", "");
            let is_ready = |node: &&serde_json::Value| {
                let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
                conditions
                    .into_iter()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            };
            (nodes.iter().filter(is_ready).count() == self.nodes.len()).then_some(())
        });
    }
}

/// Lets every machine reach every pod.
fn route(site: &Site) {
    site.origin().ip(&format!("route add {PODS} via {MIRROR_WAN_IP}"));
    for index in 0..site.nodes().len() {
        let route = format!("route add {} via {}", pods_of(index), node_ip(index));
        let others = site.nodes().iter().enumerate().filter(|(other, _)| *other != index);
        for machine in others.map(|(_, node)| node).chain([site.mirror()]) {
            machine.ip(&route);
        }
    }
}

fn pods_of(index: usize) -> String {
    format!("10.55.{}.0/24", index + 1)
}

fn scheduler(api: &KubeApi) -> Process {
    let mut command = Command::new(program("kube-scheduler"));
    command
        .arg(format!(
            "--kubeconfig={}",
            api.component("scheduler").kubeconfig().display()
        ))
        .args(["--leader-elect=false", "--secure-port=0"]);
    api.look_after(&mut command);
    Process::start(
        "kube-scheduler",
        command,
        &api.folder("kube").join("kube-scheduler.log"),
    )
}

/// Names of Services, and the registry's; there are no others.
fn dns(api: &KubeApi, registry: &str) -> Process {
    let file = api.folder("kube").join("Corefile");
    let kubeconfig = api.admin().kubeconfig().display();
    let text = format!(
        "cluster.local {{
  bind {MIRROR_IP}
  errors
  kubernetes {{
    kubeconfig {kubeconfig}
  }}
}}
\
         {registry} {{
  bind {MIRROR_IP}
  hosts {{
    {ORIGIN_IP} {registry}
  }}
}}
\
         . {{
  bind {MIRROR_IP}
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"
    );
    fs::write(&file, text).expect("writing CoreDNS' configuration");
    let mut command = Command::new(program("coredns"));
    command.arg("-conf").arg(&file);
    api.look_after(&mut command);
    Process::start("coredns", command, &api.folder("kube").join("coredns.log"))
}

const PLUGIN: &str = "/usr/lib/cni/bridge";
const PODS: &str = "10.55.0.0/16";
/// As the chart has it.
const IMAGES_HOST: &str = "localhost";
const START_TIME_MAX: Duration = Duration::from_secs(180);
