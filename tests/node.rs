//! `piecemeal node` against real runtimes: containerd of two generations through its CRI socket, and skopeo for what CRI-O and
//! podman read.

mod support;

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    os::unix::fs::PermissionsExt,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{
    Cluster, ClusterOptions, CommandOutcome, CriNode, CriVersion, HOST, Home, Image, Netns, ORIGIN_IP, PASSWORD,
    Process, REGISTRY, RegistryAuth, Request, ScratchDir, Site, SiteBuilder, TokenServer, USER, basic,
};

const VERSIONS: [CriVersion; 2] = [CriVersion::Debian, CriVersion::Today];
const ACCELERATED: &str = "origin.test.piecemeal.internal:65001";
const HOSTS_FILE: &str = "/etc/containerd/certs.d/origin.test.piecemeal.internal:65001/hosts.toml";
const ORIGINAL_FILE: &str = "/etc/containerd/certs.d/origin.test/hosts.toml";
const TOKENS: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5002);
const ADMIN: &str = "127.0.0.1:65017";

/// Nodes may go to the registry themselves: that is what they do when their peer is down.
fn site() -> SiteBuilder {
    Site::builder()
        .nodes(1)
        .wan_mbit(200)
        .lan_mbit(400)
        .nodes_reach_upstream(true)
}

fn image(name: &str) -> Image {
    Image::new(&format!("library/{name}"), "v1")
        .layer_bytes(&[2 << 20, 300_000])
        .in_index()
}

fn start(cluster: &Cluster, version: CriVersion, config_path: bool) -> CriNode {
    let dir = cluster.site.dir().join(format!("{version:?}{config_path}"));
    CriNode::start(cluster.site.node(0), &dir, version, config_path)
}

fn upstream() -> String {
    format!("{HOST}=http://{REGISTRY}")
}

fn install(node: &CriNode, more: &[&str]) -> CommandOutcome {
    node.piecemeal(&[&["install", "--runtime", "containerd", "--upstream", &upstream()], more].concat())
}

/// Bytes of the image's blobs that the registry has sent, to any client.
fn served(cluster: &Cluster, image: &Image) -> u64 {
    image
        .blobs()
        .map(|blob| cluster.registry.blob_bytes_served(&blob.digest))
        .sum()
}

/// Bytes of blobs that the node's peer has handed out.
fn from_peer(cluster: &Cluster) -> f64 {
    let of = |from: &str| {
        let name = format!("piecemeal_blob_bytes_total{{from=\"{from}\",to=\"client\"}} ");
        let metrics = cluster.peers[0].metrics();
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(&name)?.parse().ok())
            .unwrap_or(0.0)
    };
    of("local") + of("transfer")
}

#[test]
fn an_accelerated_name_is_installed_and_removed_without_a_restart() {
    let mut cluster = Cluster::cold(site());
    for version in VERSIONS {
        let node = start(&cluster, version, true);
        let image = image(&format!("app-{version:?}").to_lowercase());
        cluster.registry.push(&image);
        let (name, pid) = (image.reference(ACCELERATED), node.pid());
        assert!(!node.pull(&name).ok, "{version:?}: the name is not known yet");

        let said = install(&node, &[]).expect_ok().output;
        assert!(
            said.contains("containerd: ready") && said.contains(&format!("wrote {HOSTS_FILE}")),
            "{said}"
        );
        let before = from_peer(&cluster);
        node.pull(&name).expect_ok();
        assert!(
            from_peer(&cluster) - before >= image.total_bytes() as f64 * 0.9,
            "{version:?}: not through the peer"
        );
        assert_eq!(
            served(&cluster, &image),
            image.blobs().map(|blob| blob.size).sum::<u64>(),
            "{version:?}"
        );
        node.remove_image(&name);
        assert!(
            install(&node, &[])
                .expect_ok()
                .output
                .contains(&format!("unchanged {HOSTS_FILE}"))
        );

        // While the peer is down, the registry itself is asked.
        cluster.peers[0].kill();
        node.pull(&name).expect_ok();
        assert!(
            served(&cluster, &image) > image.total_bytes(),
            "{version:?}: from the registry"
        );
        node.remove_image(&name);
        let status: Value = status(&node);
        assert_eq!(
            (&status["files"][0]["standing"], &status["listeners"]),
            (&"ours".into(), &Value::Array(Vec::new()))
        );

        // Taken back, the name still leads there: pods may still have it.
        node.piecemeal(&["remove"]).expect_ok();
        node.pull(&name).expect_ok();
        node.remove_image(&name);
        node.piecemeal(&["remove", "--purge"]).expect_ok();
        assert!(!node.pull(&name).ok, "{version:?}: the name is not known any more");
        for gone in ["/etc/containerd/certs.d", "/etc/piecemeal"] {
            assert!(!node.file(gone).exists(), "{version:?}: {gone}");
        }
        assert_eq!(node.pid(), pid, "nothing was restarted");
        cluster.peers[0].restart();
    }
}

fn status(node: &CriNode) -> Value {
    let said = node.piecemeal(&["status", "--output", "json"]).expect_ok().output;
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[test]
fn a_pod_pulls_with_its_own_secret_and_a_wrong_one_is_refused() {
    let mut tokens = None;
    let plain = |options: &mut ClusterOptions| {
        for args in [&mut options.mirror.extra_args, &mut options.peer.extra_args] {
            args.extend(["--allow-plain-credentials", "true"].map(str::to_owned));
        }
    };
    let cluster = Cluster::guarded(
        site(),
        |site| RegistryAuth::Token(tokens.insert(TokenServer::start(site.origin(), TOKENS))),
        plain,
    );
    let image = image("app");
    cluster.registry.push(&image);
    let tokens = tokens.expect("it was started");
    tokens.grant(USER, PASSWORD, image.repository());
    let name = image.reference(ACCELERATED);
    for version in VERSIONS {
        let node = start(&cluster, version, true);
        install(&node, &[]).expect_ok();
        assert!(!node.pull(&name).ok, "{version:?}: without a secret");
        assert!(
            !node.pull_as("mallory:guess", &name).ok,
            "{version:?}: with a wrong one"
        );
        let before = (from_peer(&cluster), tokens.granted(Some(&basic(USER, PASSWORD))));
        node.pull_as(&format!("{USER}:{PASSWORD}"), &name).expect_ok();
        assert!(from_peer(&cluster) > before.0, "{version:?}: not through the peer");
        assert!(
            tokens.granted(Some(&basic(USER, PASSWORD))) > before.1,
            "{version:?}: with the pod's own secret"
        );
    }
    // Once over the WAN, for both.
    assert_eq!(
        served(&cluster, &image),
        image.blobs().map(|blob| blob.size).sum::<u64>()
    );
}

#[test]
fn an_image_that_is_there_by_its_own_name_costs_one_manifest_and_no_blob() {
    for version in VERSIONS {
        let cluster = Cluster::cold(site());
        let node = start(&cluster, version, true);
        let image = image("pulled");
        cluster.registry.push(&image);
        install(&node, &["--names", "both"]).expect_ok();
        node.pull(&image.reference(HOST)).expect_ok();
        let (blobs, heads) = (
            served(&cluster, &image),
            cluster.registry.requests("HEAD", "/manifests/v1", 200),
        );
        let before = from_peer(&cluster);
        // Without a peer, so that the registry's own log tells what the runtime asks.
        install(&node, &["--without-peer"]).expect_ok();
        node.pull(&image.reference(ACCELERATED)).expect_ok();
        assert_eq!(served(&cluster, &image), blobs, "{version:?}");
        assert_eq!(from_peer(&cluster), before, "{version:?}");
        assert_eq!(
            cluster.registry.requests("HEAD", "/manifests/v1", 200) - heads,
            1,
            "{version:?}"
        );
    }
}

#[test]
fn on_a_node_without_a_peer_an_accelerated_name_leads_to_the_registry_alone() {
    let cluster = Cluster::cold(site());
    for version in VERSIONS {
        let node = start(&cluster, version, true);
        let image = image(&format!("alone-{version:?}").to_lowercase());
        cluster.registry.push(&image);
        install(&node, &["--without-peer"]).expect_ok();
        node.pull(&image.reference(ACCELERATED)).expect_ok();
        assert_eq!(
            served(&cluster, &image),
            image.blobs().map(|blob| blob.size).sum::<u64>(),
            "{version:?}"
        );
        assert_eq!(from_peer(&cluster), 0.0, "{version:?}");
        // What is not there is asked for once, and not of the registry by two names.
        let missing = format!("{ACCELERATED}/library/none-{version:?}:v1").to_lowercase();
        assert!(!node.pull(&missing).ok);
        let end = format!("/library/none-{version:?}/manifests/v1").to_lowercase();
        assert_eq!(
            cluster.registry.requests("HEAD", &end, 404),
            1,
            "{version:?}\n{}",
            node.log_tail()
        );
    }
}

#[test]
fn the_administrators_own_hosts_file_works_on_beside_ours_and_is_given_back() {
    let mut cluster = Cluster::cold(site());
    for version in VERSIONS {
        let node = start(&cluster, version, true);
        let image = image(&format!("own-{version:?}").to_lowercase());
        cluster.registry.push(&image);
        // No server listens at `server`: only the administrator's host has the image.
        let theirs = format!(
            "# by hand\r\nserver = \"http://10.99.0.2:9\"\n\n[host.\"http://{REGISTRY}\"]\n  capabilities = [\"pull\", \"resolve\"] # mine"
        );
        let file = node.file(ORIGINAL_FILE);
        fs::create_dir_all(file.parent().expect("a folder")).expect("making the folder");
        fs::write(&file, &theirs).expect("writing the file");

        install(&node, &["--names", "original"]).expect_ok();
        let before = from_peer(&cluster);
        node.pull(&image.reference(HOST)).expect_ok();
        assert!(from_peer(&cluster) > before, "{version:?}: ours comes first");
        node.remove_image(&image.reference(HOST));
        cluster.peers[0].kill();
        node.pull(&image.reference(HOST)).expect_ok();
        cluster.peers[0].restart();

        node.piecemeal(&["remove", "--purge"]).expect_ok();
        assert_eq!(fs::read_to_string(&file).expect("the file"), theirs);
    }
}

#[test]
fn a_containerd_that_reads_no_hosts_files_is_told_the_one_line_and_left_alone() {
    let cluster = Cluster::cold(site());
    for version in VERSIONS {
        let node = start(&cluster, version, false);
        let image = image("app");
        cluster.registry.push(&image);
        let config = fs::read_to_string(node.file("/etc/containerd/config.toml")).expect("the configuration");
        let said = install(&node, &[]).expect_ok().output;
        assert!(said.contains("containerd: not ready: config_path is not set"), "{said}");
        assert!(!node.pull(&image.reference(ACCELERATED)).ok, "{version:?}");
        assert_eq!(
            fs::read_to_string(node.file("/etc/containerd/config.toml")).expect("it"),
            config
        );

        // The lines as they are told make it ready.
        let lines: String = said
            .lines()
            .skip_while(|line| !line.trim_start().starts_with("[plugins"))
            .take(2)
            .map(|line| format!("{line}\n"))
            .collect();
        drop(node);
        let dir = cluster.site.dir().join(format!("{version:?}told"));
        fs::create_dir_all(&dir).expect("a folder");
        let node = CriNode::start_with(cluster.site.node(0), &dir, version, &lines);
        assert!(install(&node, &[]).expect_ok().output.contains("containerd: ready"));
        node.pull(&image.reference(ACCELERATED)).expect_ok();
    }
}

#[test]
fn drift_is_undone_and_new_hosts_get_their_files_while_it_runs() {
    let cluster = Cluster::cold(site());
    let node = start(&cluster, CriVersion::Debian, true);
    let hosts = cluster.site.dir().join("hosts");
    fs::write(&hosts, "").expect("writing the hosts");
    let mut command = node.piecemeal_command(&[
        "run",
        "--runtime",
        "containerd",
        "--admin-listen",
        ADMIN,
        "--interval",
        "1s",
    ]);
    command.args([
        "--upstream",
        &upstream(),
        "--upstream",
        &format!("*.origin.test=http://{REGISTRY}"),
    ]);
    command.arg("--hosts-file").arg(&hosts);
    let mut node_run = Process::start("node run", command, &cluster.site.dir().join("node-run.log"));
    let ask = |target: &str| {
        let address: SocketAddr = ADMIN.parse().expect("an address");
        Request::get(address, target)
            .send_from(cluster.site.node(0))
            .map(|answer| (answer.status, answer.text()))
    };
    wait("it is ready", &node_run, || {
        ask("/readyz").is_ok_and(|(status, _)| status == 200)
    });
    let image = image("kept");
    cluster.registry.push(&image);
    node.pull(&image.reference(ACCELERATED)).expect_ok();

    let good = fs::read_to_string(node.file(HOSTS_FILE)).expect("our file");
    fs::write(node.file(HOSTS_FILE), "server = \"http://10.99.0.2:9\"\n").expect("spoiling it");
    let is_good =
        || fs::read_to_string(node.file(HOSTS_FILE)).is_ok_and(|text| text == good || text.contains("127.0.0.1:65001"));
    wait("a spoilt file is good again", &node_run, is_good);
    fs::remove_dir_all(node.file("/etc/containerd/certs.d")).expect("wiping, as K3s did");
    wait("a wiped folder is filled", &node_run, is_good);
    fs::write(&hosts, "eu.origin.test\nstranger.test\n").expect("another host");
    let new = node.file("/etc/containerd/certs.d/eu.origin.test.piecemeal.internal:65001/hosts.toml");
    wait("a new host has its file", &node_run, || new.exists());
    assert!(
        !node
            .file("/etc/containerd/certs.d/stranger.test.piecemeal.internal:65001")
            .exists()
    );

    let metrics = ask("/metrics").expect("metrics").1;
    for sample in [
        "piecemeal_node_runtime_ready{runtime=\"containerd\"} 1",
        "piecemeal_node_files 2",
        "piecemeal_node_errors_total 0",
    ] {
        assert!(metrics.contains(sample), "{sample}\n{metrics}");
    }
    let repairs = metrics
        .lines()
        .find_map(|line| line.strip_prefix("piecemeal_node_repairs_total ")?.parse::<u64>().ok());
    assert!(repairs.is_some_and(|repairs| repairs >= 1), "{metrics}");
    let status: Value = serde_json::from_str(&ask("/status").expect("a status").1).expect("JSON");
    assert_eq!(status["files"].as_array().map(Vec::len), Some(2), "{status}");

    // A file of hosts that is gone, or cannot be read, takes nothing back.
    fs::remove_file(&hosts).expect("removing it");
    fs::create_dir(&hosts).expect("something that is no file");
    wait("it is told", &node_run, || {
        ask("/readyz").is_ok_and(|(status, text)| status == 503 && text.contains("file of hosts"))
    });
    fs::remove_dir(&hosts).expect("removing that");
    wait("it is well again", &node_run, || {
        ask("/readyz").is_ok_and(|(status, _)| status == 200)
    });
    let text = fs::read_to_string(&new).expect("the file is there");
    assert!(text.contains("127.0.0.1:65001"), "{text}");
    assert!(node_run.terminate().success());
    assert!(new.exists() && node.file(HOSTS_FILE).exists(), "the files stay");
}

fn wait(what: &str, process: &Process, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "not so: {what}\n{}", process.log_tail());
        thread::sleep(Duration::from_millis(100));
    }
}

/// What CRI-O and podman do too: they have the same library and the same files.
#[test]
fn skopeo_is_sent_to_the_peer_by_the_drop_ins_and_falls_back_to_the_registry() {
    let mut cluster = Cluster::cold(site());
    let (image, later) = (image("skopeo"), image("later"));
    for image in [&image, &later] {
        cluster.registry.push(image);
    }
    let root = cluster.site.dir().join("podman");
    fs::create_dir_all(root.join("etc/containers")).expect("a node's root");
    let netns = cluster.site.node(0).clone();
    let home = Home::new(&netns, &cluster.site.dir().join("home"));
    let run = |arguments: &[&str]| {
        let mut command = netns.command(env!("CARGO_BIN_EXE_piecemeal"));
        command.arg("node").args(arguments).arg("--root").arg(&root);
        CommandOutcome::of(&mut command, Instant::now()).expect_ok();
        home.take_drop_ins(&root.join("etc/containers/registries.conf.d"));
    };
    run(&[
        "install",
        "--runtime",
        "podman",
        "--names",
        "both",
        "--upstream",
        &upstream(),
    ]);
    for (name, folder) in [(ACCELERATED, "accelerated"), (HOST, "original")] {
        let before = from_peer(&cluster);
        home.skopeo_copy(&[], &image.reference(name), folder).expect_ok();
        assert!(
            from_peer(&cluster) - before >= image.total_bytes() as f64 * 0.9,
            "{name}: not through the peer"
        );
    }
    assert_eq!(
        served(&cluster, &image),
        image.blobs().map(|blob| blob.size).sum::<u64>()
    );
    cluster.peers[0].kill();
    home.skopeo_copy(&[], &later.reference(ACCELERATED), "peer-down")
        .expect_ok();
    run(&["remove"]);
    home.skopeo_copy(&[], &later.reference(ACCELERATED), "taken-back")
        .expect_ok();
    run(&["remove", "--purge"]);
    assert!(fs::read_dir(root.join("etc/containers")).is_ok_and(|mut left| left.next().is_none()));
}

/// The registry's own log is the judge of who went around the peer.
#[test]
fn skopeo_shows_its_login_to_the_peer_and_a_private_image_crosses_the_wan_once() {
    let plain = |options: &mut ClusterOptions| {
        for all in [&mut options.mirror.extra_args, &mut options.peer.extra_args] {
            all.extend(["--allow-plain-credentials", "true"].map(str::to_owned));
        }
    };
    let cluster = Cluster::guarded(site(), |_| RegistryAuth::Htpasswd, plain);
    let root = cluster.site.dir().join("podman");
    fs::create_dir_all(root.join("etc/containers")).expect("a node's root");
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n").expect("a node's hosts");
    let netns = cluster.site.node(0).clone();
    let home = Home::new(&netns, &cluster.site.dir().join("home"));
    let mut command = netns.command(env!("CARGO_BIN_EXE_piecemeal"));
    command.args([
        "node",
        "install",
        "--runtime",
        "podman",
        "--names",
        "both",
        "--upstream",
    ]);
    command.arg(upstream()).arg("--root").arg(&root);
    CommandOutcome::of(&mut command, Instant::now()).expect_ok();
    home.take_drop_ins(&root.join("etc/containers/registries.conf.d"));
    home.take_hosts(&root.join("etc/hosts"));

    // Without a login there is nothing, here or at the registry.
    let image = image("private");
    cluster.registry.push(&image);
    assert!(!home.skopeo_copy(&[], &image.reference(ACCELERATED), "none").ok);
    let login = format!("{USER}:{PASSWORD}");
    let by_flag = ["--src-creds", &*login];
    home.skopeo_copy(&by_flag, &image.reference(ACCELERATED), "accelerated")
        .expect_ok();
    home.log_in(&[(ACCELERATED, basic(USER, PASSWORD).trim_start_matches("Basic "))]);
    home.skopeo_copy(&[], &image.reference(HOST), "original").expect_ok();
    let blobs = image.blobs().map(|blob| blob.size).sum::<u64>();
    assert_eq!(served(&cluster, &image), blobs);
    assert!(from_peer(&cluster) >= 2.0 * blobs as f64 * 0.9);
}

#[test]
fn a_node_that_cannot_be_written_to_is_told_and_left_as_it_is() {
    let (netns, dir) = (Netns::create("read-only"), ScratchDir::new());
    let root = dir.folder("root");
    fs::create_dir_all(root.join("etc/containerd")).expect("a node's root");
    let script = format!(
        "mount --bind '{0}' '{0}' && mount -o remount,ro,bind '{0}' && exec \"$@\" --root '{0}'",
        root.display()
    );
    let mut command = netns.command("sh");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_piecemeal"), "node", "install"]);
    let said = CommandOutcome::of(command.args(["--upstream", &upstream()]), Instant::now())
        .expect_ok()
        .output;
    assert!(
        said.contains(&format!("left alone {HOSTS_FILE}")) && said.contains("read-only"),
        "{said}"
    );
    assert!(said.contains("containerd: not ready"), "{said}");
    assert!(
        said.contains("node.extraHostPaths"),
        "it is the mount that is read-only: {said}"
    );
}

/// With the line beside either of these, containerd would load no CRI plugin: the node would be lost.
#[test]
fn a_containerd_with_mirrors_of_the_old_kind_is_never_given_the_line() {
    let cluster = Cluster::cold(site());
    for (version, table) in [
        (CriVersion::Debian, "io.containerd.grpc.v1.cri"),
        (CriVersion::Today, "io.containerd.cri.v1.images"),
    ] {
        for (key, lines) in [
            (
                "mirrors",
                "mirrors.\"docker.io\"]\nendpoint = [\"http://10.99.0.2:9\"]\n",
            ),
            (
                "configs.\"docker.io\".tls",
                "configs.\"docker.io\".tls]\ninsecure_skip_verify = true\n",
            ),
        ] {
            let dir = cluster.site.dir().join(format!("{version:?}{}", &key[..3]));
            let lines = format!("[plugins.\"{table}\".registry.{lines}");
            let node = CriNode::start_with(cluster.site.node(0), &dir, version, &lines);
            let config = fs::read_to_string(node.file("/etc/containerd/config.toml")).expect("the configuration");
            let said = install(&node, &["--allow-runtime-restart"]).expect_ok().output;
            assert!(
                said.contains("must not be added") && said.contains(key) && !said.contains("restarted"),
                "{version:?}: {said}"
            );
            assert_eq!(
                fs::read_to_string(node.file("/etc/containerd/config.toml")).expect("it"),
                config
            );
        }
    }
}

/// The stand-in for systemd ends the process; the harness starts it again, as systemd would.
#[test]
fn where_it_is_allowed_containerd_gets_its_line_and_is_restarted_once() {
    let cluster = Cluster::cold(site());
    let mut node = start(&cluster, CriVersion::Debian, false);
    let image = image("app");
    cluster.registry.push(&image);
    let systemctl = node.file("/tools/systemctl");
    fs::create_dir_all(systemctl.parent().expect("a folder")).expect("a folder");
    fs::write(&systemctl, format!("#!/bin/sh\nkill {}\n", node.pid())).expect("writing a program");
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).expect("making it a program");

    // As from a container: the node's root has programs, and they are run there. The mounts end with the process.
    let script = "for dir in bin lib lib64 usr; do
                      if [ -d /$dir ]; then mkdir -p \"$1/$dir\" && mount --bind /$dir \"$1/$dir\" || exit; fi
                  done
                  mkdir -p \"$1$2\" && mount --bind \"$2\" \"$1$2\" || exit
                  root=$1; shift 2; PATH=/tools:$PATH exec \"$@\" --root \"$root\"";
    let mut command = cluster.site.node(0).command("sh");
    // Where its socket is has the same path at that root.
    let root = node.root();
    command
        .args(["-c", script, "sh"])
        .args([&*root, root.parent().expect("a folder")]);
    command.args([
        env!("CARGO_BIN_EXE_piecemeal"),
        "node",
        "install",
        "--runtime",
        "containerd",
    ]);
    command.args(["--allow-runtime-restart", "--upstream", &upstream()]);
    // It is started again while the command waits until the CRI answers.
    let said = thread::scope(|threads| {
        let installing = threads.spawn(|| CommandOutcome::of(&mut command, Instant::now()));
        node.start_again();
        installing.join().expect("it ends").expect_ok().output
    });
    assert!(
        said.contains("added config_path") && said.contains("restarted containerd"),
        "{said}"
    );
    assert!(said.contains("containerd: ready"), "{said}");
    node.pull(&image.reference(ACCELERATED)).expect_ok();
}

/// What `status` says of two folders is so: 1.6 reads the first, and today's transfer service neither.
#[test]
fn two_folders_are_read_by_an_old_containerd_and_by_none_of_today() {
    let cluster = Cluster::cold(site());
    let image = image("app");
    cluster.registry.push(&image);
    let more = "config_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n";
    for (version, table, reads) in [
        (CriVersion::Debian, "io.containerd.grpc.v1.cri", true),
        (CriVersion::Today, "io.containerd.cri.v1.images", false),
    ] {
        let dir = cluster.site.dir().join(format!("{version:?}two"));
        let lines = format!("[plugins.\"{table}\".registry]\n{more}");
        let node = CriNode::start_with(cluster.site.node(0), &dir, version, &lines);
        let said = install(&node, &[]).expect_ok().output;
        assert_eq!(said.contains("containerd: ready"), reads, "{said}");
        assert!(said.contains("names 2 folders"), "{said}");
        assert_eq!(node.pull(&image.reference(ACCELERATED)).ok, reads, "{version:?}");
    }
}
