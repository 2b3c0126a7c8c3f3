//! A node: kubelet, containerd and proxy, in namespaces of its own for network, mounts, processes and cgroups.
//!
//! To its programs it is a machine with the files of this one: what they write below /etc, /var and /run is the node's own.
//! Nothing of it is left when it is dropped or when this process ends, however that comes: see node.sh.

use std::{
    env, fs,
    net::Ipv4Addr,
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Instant,
};

use serde_json::{Value, json};

use super::{
    super::{
        netns::Netns,
        outcome::CommandOutcome,
        process::{append_to, log_tail},
        scratch::owned_name,
    },
    assets::program,
    client::wait_until,
    server::KubeApi,
};

/// A running node.
#[derive(Debug)]
pub struct Node {
    name: String,
    folder: PathBuf,
    /// Which outlives the node.
    logs: PathBuf,
    machine: Child,
}

/// What a node is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeOptions<'a> {
    pub(super) name: &'a str,
    pub(super) netns: &'a Netns,
    pub(super) ip: Ipv4Addr,
    /// The network of its pods.
    pub(super) pods: &'a str,
    /// The network of all pods.
    pub(super) all_pods: &'a str,
    pub(super) dns: Ipv4Addr,
    /// Archives of the images that it has before anything is pulled.
    pub(super) images: &'a [PathBuf],
    /// Which of them a pod's namespaces are held by.
    pub(super) pause: &'a str,
    /// hosts.toml by registry.
    pub(super) hosts: &'a [(&'a str, &'a str)],
}

impl Node {
    /// Starts it, and does not wait until it is ready.
    pub(super) fn start(api: &KubeApi, options: &NodeOptions<'_>) -> Self {
        let folder = env::temp_dir().join(owned_name(options.name));
        write_files(&folder, api, options);
        let logs = api.folder(&format!("{}-logs", options.name));
        symlink(&logs, folder.join("logs")).expect("linking the logs");
        let log = append_to(&logs.join("machine.log"));
        let machine = Command::new("sh")
            .arg(folder.join("node.sh"))
            .arg(options.name)
            .arg(options.netns.path())
            .arg(&folder)
            // Ctrl-C at the terminal is not for it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("sharing a log"))
            .stderr(log)
            .spawn()
            .expect("starting a shell");
        let node = Self {
            name: options.name.to_owned(),
            folder,
            logs,
            machine,
        };
        wait_until(&format!("{} is a machine", options.name), || {
            fs::read_to_string(node.folder.join("machine.pid")).ok()
        });
        node
    }

    /// # Panics
    /// With what was said, when it has ended by itself.
    pub(super) fn expect_running(&mut self) {
        let ended = self.machine.try_wait().expect("asking for a child's status");
        assert!(ended.is_none(), "{} has ended\n{}", self.name, self.log_tail());
    }

    /// The content of a file below the node's /etc that is not this machine's.
    pub fn etc(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.folder.join("host/etc").join(path)).ok()
    }

    /// What the node's containerd says.
    pub fn crictl(&self, arguments: &[&str]) -> CommandOutcome {
        let crictl = program("crictl");
        let crictl = crictl.to_str().expect("the tools' path is text");
        self.run(&[&[crictl, "--runtime-endpoint", SOCKET], arguments].concat())
    }

    /// Runs a program on the node to its end.
    pub fn run(&self, words: &[&str]) -> CommandOutcome {
        let pid = fs::read_to_string(self.folder.join("machine.pid")).expect("the node runs");
        let pid = pid.trim();
        let mut command = Command::new("nsenter");
        command
            .args(["--target", pid, "--mount", "--uts", "--ipc", "--net", "--cgroup"])
            .arg(format!("--pid=/proc/{pid}/ns/pid_for_children"))
            .args(words);
        CommandOutcome::of(&mut command, Instant::now())
    }

    /// The end of what its programs said.
    pub fn log_tail(&self) -> String {
        let logs = ["machine", "import", "containerd", "kubelet", "proxy"];
        let tails = logs.map(|log| {
            let file = self.logs.join(format!("{log}.log"));
            log_tail(&format!("{log} of {}", self.name), &file)
        });
        tails.concat()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        drop(self.machine.stdin.take());
        // An error means that it has ended already.
        let _ = self.machine.wait();
    }
}

fn write_files(folder: &Path, api: &KubeApi, options: &NodeOptions<'_>) {
    let write = |path: &str, text: &str| {
        let file = folder.join(path);
        fs::create_dir_all(file.parent().expect("a file lies in a folder")).expect("creating a node's folder");
        fs::write(file, text).expect("writing a node's file");
    };
    write("node.sh", include_str!("node.sh"));
    write("etc/resolv.conf", &format!("nameserver {}\n", options.dns));
    write("etc/containerd/config.toml", &containerd(folder, options.pause));
    write("etc/cni/net.d/10-pods.conflist", &network(options.pods).to_string());
    for (registry, toml) in options.hosts {
        write(&format!("etc/containerd/certs.d/{registry}/hosts.toml"), toml);
    }
    write("ca.crt", api.ca_pem());
    write("kubelet.json", &kubelet(folder, options).to_string());
    write("proxy.json", &proxy(api, options).to_string());
    for (link, target) in [
        (
            "kubelet.kubeconfig",
            api.component(options.name).kubeconfig().to_owned(),
        ),
        ("bin/kubelet", program("kubelet")),
        ("bin/kube-proxy", program("kube-proxy")),
    ] {
        link_to(&folder.join(link), &target);
    }
    for image in options.images {
        let name = image.file_name().expect("an archive has a name");
        link_to(&folder.join("images").join(name), image);
    }
}

fn link_to(link: &Path, target: &Path) {
    fs::create_dir_all(link.parent().expect("a link lies in a folder")).expect("creating a node's folder");
    symlink(target, link).expect("linking a node's file");
}

fn containerd(folder: &Path, pause: &str) -> String {
    let (root, state) = (folder.join("containerd"), "/run/containerd");
    format!(
        "version = 2\n\
         root = {root:?}\n\
         state = {state:?}\n\
         disabled_plugins = [\"io.containerd.internal.v1.opt\"]\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = {pause:?}\n\
         # Root in a sandbox may not have the right to be killed later than others.\n\
         restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\n\
         config_path = \"/etc/containerd/certs.d\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"/usr/lib/cni\"\n\
         conf_dir = \"/etc/cni/net.d\"\n"
    )
}

/// A bridge, and no address translation: all machines have routes to all pods.
fn network(pods: &str) -> Value {
    let addresses =
        json!({ "type": "host-local", "ranges": [[{ "subnet": pods }]], "routes": [{ "dst": "0.0.0.0/0" }] });
    let bridge =
        json!({ "type": "bridge", "bridge": "pods", "isGateway": true, "hairpinMode": true, "ipam": addresses });
    json!({ "cniVersion": "0.4.0", "name": "pods", "plugins": [bridge] })
}

fn kubelet(folder: &Path, options: &NodeOptions<'_>) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": { "x509": { "clientCAFile": folder.join("ca.crt") }, "anonymous": { "enabled": false } },
        "address": options.ip.to_string(),
        "healthzPort": 0,
        "containerRuntimeEndpoint": SOCKET,
        "clusterDomain": "cluster.local",
        "clusterDNS": [options.dns.to_string()],
        "volumePluginDir": folder.join("plugins"),
        "serializeImagePulls": false,
        // ConfigMaps that changed are seen by pods at the next of these.
        "syncFrequency": "5s",
        // This machine is shared, and of any kind.
        "failSwapOn": false,
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "evictionHard": { "memory.available": "1Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "imageGCHighThresholdPercent": 100,
    })
}

fn proxy(api: &KubeApi, options: &NodeOptions<'_>) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "hostnameOverride": options.name,
        "clientConnection": { "kubeconfig": api.component("proxy").kubeconfig() },
        "mode": "nftables",
        "clusterCIDR": options.all_pods,
        // Else the answer of a pod on the same bridge goes past the translation, unless the kernel sends bridged packets there.
        "nftables": { "masqueradeAll": true },
        // These are the whole machine's.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    })
}

const SOCKET: &str = "unix:///run/containerd/containerd.sock";
