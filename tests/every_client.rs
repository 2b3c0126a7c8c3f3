//! Each client of the field pulls public and private images through its node's peer in p2p, with TLS between the daemons. The registry's
//! access log is the judge: a client that went around the peer is in it.

mod support;

use std::{fs, path::Path, sync::OnceLock};

use support::{
    Chunks, Cluster, ClusterOptions, Containerd, CriNode, CriVersion, Docker, DockerRegistry, HOST, Home, Image,
    NameServer, PASSWORD, REGISTRY, RegistryAuth, Site, USER, basic, hosts_toml, mirror_url, scheduler_url, sha256,
};

const MIB: usize = 1 << 20;
/// The peer's registry port, as its node reaches it.
const PEER: &str = "127.0.0.1:65001";

/// One node whose daemons speak TLS; clients that know mirrors of Docker Hub only pull from the same registry.
fn cluster() -> Cluster {
    Cluster::cold_with(
        Site::builder()
            .nodes(1)
            .wan_mbit(200)
            .lan_mbit(400)
            .nodes_reach_upstream(true),
        |options| {
            over_tls(options);
            let upstreams = [HOST, "docker.io"]
                .map(|name| format!("{name}=http://{REGISTRY}"))
                .to_vec();
            let default = ["--default-upstream", "docker.io"].map(str::to_owned);
            options.mirror.upstreams.clone_from(&upstreams);
            options.mirror.extra_args.extend(default.clone());
            options.peer.upstreams = upstreams;
            options.peer.extra_args.extend(default);
        },
    )
}

fn over_tls(options: &mut ClusterOptions) {
    options.mirror.scheduler_url = scheduler_url("https");
    options.peer.mirror_url = mirror_url("https");
    options.peer.scheduler_url = scheduler_url("https");
}

/// An image that a runtime can unpack.
fn image(client: &str) -> Image {
    Image::new(&format!("library/{client}"), "v1")
        .layer_bytes(&[5 * MIB, 300_000, 70_000])
        .in_index()
}

/// By the registry's own access log.
fn assert_pulled_once_and_by_the_mirror_alone(registry: &DockerRegistry, client: &str, image: &Image) {
    for blob in image.blobs() {
        let served = registry.blob_bytes_served(&blob.digest);
        assert_eq!(served, blob.size, "{client}: bytes of {}", blob.digest);
    }
    let repository = format!("/v2/{}/", image.repository());
    let log = registry.log_text();
    let around = |line: &&str| line.contains("\"GET ") && line.contains(&repository) && !line.contains("\"piecemeal/");
    let around: Vec<&str> = log.lines().filter(around).collect();
    assert_eq!(around, [""; 0], "{client} went around its peer");
}

/// The clients that run from a home folder, and the way of each to pull an image.
type Pull = fn(&Home, &Image);

const HOME_CLIENTS: [(&str, Pull); 6] = [
    ("skopeo", |home, image| {
        home.skopeo_copy(&[], &image.reference(HOST), "skopeo").expect_ok();
        for blob in image.blobs() {
            let file = home.join("skopeo").join(blob.digest.trim_start_matches("sha256:"));
            assert!(read(&file) == blob.bytes, "{} is damaged", blob.digest);
        }
    }),
    ("podman", |home, image| {
        home.podman(&["pull", &image.reference(HOST)]).expect_ok();
    }),
    ("buildah", |home, image| {
        home.buildah(&["pull", &image.reference(HOST)]).expect_ok();
    }),
    ("crane", |home, image| {
        home.crane(&["pull", "--format=oci", &by_path(image), "crane"])
            .expect_ok();
        assert_layout_has(&home.join("crane"), image);
    }),
    ("oras", |home, image| {
        let copy = [
            "copy",
            "--from-plain-http",
            &by_path(image),
            "--to-oci-layout",
            "oras:v1",
        ];
        home.oras(&copy).expect_ok();
        assert_layout_has(&home.join("oras"), image);
    }),
    ("regctl", |home, image| {
        home.regctl(&["registry", "set", "--tls=disabled", PEER]).expect_ok();
        home.regctl(&["image", "copy", &by_path(image), "ocidir://regctl:v1"])
            .expect_ok();
        assert_layout_has(&home.join("regctl"), image);
    }),
];

/// How a client names an image.
type Name = fn(&Image) -> String;

/// The name of an image for clients that know no mirrors.
fn by_path(image: &Image) -> String {
    format!("{PEER}/{}", image.reference(HOST))
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Everything of the image is in the blobs of an OCI image layout.
fn assert_layout_has(layout: &Path, image: &Image) {
    for blob in image.blobs().chain(image.manifests()) {
        let file = layout.join("blobs").join(blob.digest.replace(':', "/"));
        assert!(read(&file) == blob.bytes, "{} is damaged", blob.digest);
    }
}

#[test]
fn each_program_that_pulls_by_itself_takes_one_wan_copy_and_does_not_go_around_its_peer() {
    let cluster = cluster();
    for (client, pull) in HOME_CLIENTS {
        let home = Home::new(cluster.site.node(0), &cluster.site.dir().join(client));
        home.write_registries_conf(HOST, &format!("{PEER}/{HOST}"));
        let image = image(client);
        cluster.registry.push(&image);
        pull(&home, &image);
        assert_pulled_once_and_by_the_mirror_alone(&cluster.registry, client, &image);
    }
}

#[test]
fn each_containerd_takes_one_wan_copy_and_does_not_go_around_its_peer() {
    let cluster = cluster();
    let chunks = Chunks { bytes: MIB, at_once: 3 };
    let parallel = Containerd::start_chunked(cluster.site.node(0), &cluster.site.dir().join("parallel"), chunks);
    parallel.write_hosts(HOST, &hosts_toml(&format!("http://{PEER}")));
    for (client, containerd) in [("ctr-1.6", &cluster.containerds[0]), ("ctr-2", &parallel)] {
        let image = image(client);
        cluster.registry.push(&image);
        containerd.pull(&image.reference(HOST)).expect_ok();
        assert_pulled_once_and_by_the_mirror_alone(&cluster.registry, client, &image);
    }
    for (client, version) in [("cri-1.6", CriVersion::Debian), ("cri-2", CriVersion::Today)] {
        let node = CriNode::start(cluster.site.node(0), &cluster.site.dir().join(client), version, true);
        let folder = node.file("/etc/containerd/certs.d").join(HOST);
        fs::create_dir_all(&folder).expect("creating the host's folder");
        fs::write(folder.join("hosts.toml"), hosts_toml(&format!("http://{PEER}"))).expect("writing hosts.toml");
        let image = image(client);
        cluster.registry.push(&image);
        node.pull(&image.reference(HOST)).expect_ok();
        assert_pulled_once_and_by_the_mirror_alone(&cluster.registry, client, &image);
    }
}

#[test]
fn a_docker_daemon_takes_one_wan_copy_and_does_not_go_around_its_peer() {
    let cluster = cluster();
    let docker = Docker::start(
        cluster.site.node(0),
        &cluster.site.dir().join("docker"),
        &format!("http://{PEER}"),
        &[PEER],
    );
    let names: [(&str, Name); 2] = [
        ("docker-by-mirror", |image| image.reference("docker.io")),
        ("docker-by-name", by_path),
    ];
    for (client, name) in names {
        let image = image(client);
        cluster.registry.push(&image);
        docker.pull(&name(&image)).expect_ok();
        assert_pulled_once_and_by_the_mirror_alone(&cluster.registry, client, &image);
    }
}

#[test]
fn helm_takes_one_wan_copy_of_a_chart_and_does_not_go_around_its_peer() {
    let cluster = cluster();
    let home = Home::new(cluster.site.node(0), &cluster.site.dir().join("helm"));
    let publisher = Home::new(cluster.site.origin(), &cluster.site.dir().join("publisher"));
    publisher.helm(&["create", "web"]).expect_ok();
    publisher.helm(&["package", "web"]).expect_ok();
    let chart = read(&publisher.join("web-0.1.0.tgz"));
    let registry = format!("oci://{REGISTRY}/charts");
    publisher
        .helm(&["push", "--plain-http", "web-0.1.0.tgz", &registry])
        .expect_ok();

    let name = format!("oci://{PEER}/{HOST}/charts/web");
    home.helm(&["pull", "--plain-http", "--version=0.1.0", &name])
        .expect_ok();
    assert!(read(&home.join("web-0.1.0.tgz")) == chart);
    assert_eq!(cluster.registry.blob_bytes_served(&sha256(&chart)), chart.len() as u64);
}

/// The registry's accelerated name, by which clients that show a login to a host name the peer.
const PRIVATE: &str = "origin.test.piecemeal.internal:65001";

/// The same node with a registry that asks for a password, whose accelerated name is the node itself.
fn private_cluster() -> (Cluster, NameServer) {
    let site = Site::builder()
        .nodes(1)
        .wan_mbit(200)
        .lan_mbit(400)
        .nodes_reach_upstream(true);
    let cluster = Cluster::guarded(
        site,
        |_| RegistryAuth::Htpasswd,
        |options| {
            over_tls(options);
            // The test networks have no TLS to registries and clients.
            for arguments in [&mut options.mirror.extra_args, &mut options.peer.extra_args] {
                arguments.extend(["--allow-plain-credentials", "true"].map(str::to_owned));
            }
        },
    );
    let names = NameServer::start(cluster.site.node(0));
    names.set("origin.test.piecemeal.internal", &["127.0.0.1"]);
    (cluster, names)
}

fn by_private_host(image: &Image) -> String {
    image.reference(PRIVATE)
}

/// The same clients, with a login for the accelerated name in the home.
const HOME_CLIENTS_WITH_A_LOGIN: [(&str, Pull); 6] = [
    ("skopeo", |home, image| {
        home.skopeo_copy(&[], &image.reference(HOST), "skopeo").expect_ok();
    }),
    ("podman", |home, image| {
        home.podman(&["pull", &image.reference(HOST)]).expect_ok();
    }),
    ("buildah", |home, image| {
        home.buildah(&["pull", "--tls-verify=false", &by_private_host(image)])
            .expect_ok();
    }),
    ("crane", |home, image| {
        home.crane(&["pull", "--insecure", "--format=oci", &by_private_host(image), "crane"])
            .expect_ok();
        assert_layout_has(&home.join("crane"), image);
    }),
    ("oras", |home, image| {
        let copy = [
            "copy",
            "--from-plain-http",
            &by_private_host(image),
            "--to-oci-layout",
            "oras:v1",
        ];
        home.oras(&copy).expect_ok();
        assert_layout_has(&home.join("oras"), image);
    }),
    ("regctl", |home, image| {
        home.regctl(&["registry", "set", "--tls=disabled", PRIVATE]).expect_ok();
        home.regctl(&["image", "copy", &by_private_host(image), "ocidir://regctl:v1"])
            .expect_ok();
        assert_layout_has(&home.join("regctl"), image);
    }),
];

#[test]
fn each_program_pulls_a_private_image_with_a_login_for_the_accelerated_name_and_does_not_go_around_its_peer() {
    let (cluster, _names) = private_cluster();
    for (client, pull) in HOME_CLIENTS_WITH_A_LOGIN {
        let home = Home::new(cluster.site.node(0), &cluster.site.dir().join(client));
        home.log_in(&[(PRIVATE, login())]);
        home.write_registries_conf(HOST, PRIVATE);
        let image = image(client);
        cluster.registry.push(&image);
        pull(&home, &image);
        assert_pulled_once_and_by_the_mirror_alone(&cluster.registry, client, &image);
    }
}

/// User and password as the file has them that `docker login` writes.
fn login() -> &'static str {
    static LOGIN: OnceLock<String> = OnceLock::new();
    LOGIN.get_or_init(|| basic(USER, PASSWORD).trim_start_matches("Basic ").to_owned())
}

#[test]
fn each_containerd_pulls_a_private_image_and_does_not_go_around_its_peer() {
    let (cluster, _names) = private_cluster();
    let user = format!("{USER}:{PASSWORD}");
    let chunks = Chunks { bytes: MIB, at_once: 3 };
    let parallel = Containerd::start_chunked(cluster.site.node(0), &cluster.site.dir().join("parallel"), chunks);
    parallel.write_hosts(HOST, &hosts_toml(&format!("http://{PEER}")));
    for (client, containerd) in [("ctr-1.6", &cluster.containerds[0]), ("ctr-2", &parallel)] {
        let image = image(client);
        cluster.registry.push(&image);
        containerd.fetch_as(&user, &image.reference(HOST)).expect_ok();
        assert_pulled_once_and_by_the_mirror_alone(&cluster.registry, client, &image);
    }
    for (client, version) in [("cri-1.6", CriVersion::Debian), ("cri-2", CriVersion::Today)] {
        let node = CriNode::start(cluster.site.node(0), &cluster.site.dir().join(client), version, true);
        let folder = node.file("/etc/containerd/certs.d").join(HOST);
        fs::create_dir_all(&folder).expect("creating the host's folder");
        fs::write(folder.join("hosts.toml"), hosts_toml(&format!("http://{PEER}"))).expect("writing hosts.toml");
        let image = image(client);
        cluster.registry.push(&image);
        node.pull_as(&user, &image.reference(HOST)).expect_ok();
        assert_pulled_once_and_by_the_mirror_alone(&cluster.registry, client, &image);
    }
}

#[test]
fn a_docker_daemon_logs_in_by_the_accelerated_name_with_the_right_password_only_and_pulls_a_private_image() {
    let (cluster, _names) = private_cluster();
    let docker = Docker::start(
        cluster.site.node(0),
        &cluster.site.dir().join("docker"),
        &format!("http://{PEER}"),
        &[PRIVATE],
    );
    let image = image("docker");
    cluster.registry.push(&image);
    assert!(!docker.pull(&by_private_host(&image)).ok, "it has no login");
    assert!(
        !docker.log_in(PRIVATE, USER, "wrong").ok,
        "a wrong password was accepted"
    );
    docker.log_in(PRIVATE, USER, PASSWORD).expect_ok();
    docker.pull(&by_private_host(&image)).expect_ok();
    assert_pulled_once_and_by_the_mirror_alone(&cluster.registry, "docker", &image);
}

#[test]
fn helm_pulls_a_private_chart_with_a_login_for_the_accelerated_name() {
    let (cluster, _names) = private_cluster();
    let home = Home::new(cluster.site.node(0), &cluster.site.dir().join("helm"));
    let publisher = Home::new(cluster.site.origin(), &cluster.site.dir().join("publisher"));
    publisher.helm(&["create", "web"]).expect_ok();
    publisher.helm(&["package", "web"]).expect_ok();
    let chart = read(&publisher.join("web-0.1.0.tgz"));
    let password = ["--plain-http", "--username", USER, "--password", PASSWORD];
    let registry = format!("oci://{REGISTRY}/charts");
    publisher
        .helm(&[&["push"], &password[..], &["web-0.1.0.tgz", &registry]].concat())
        .expect_ok();

    let name = format!("oci://{PRIVATE}/charts/web");
    home.helm(&[&["pull", "--version=0.1.0"], &password[..], &[&name]].concat())
        .expect_ok();
    assert!(read(&home.join("web-0.1.0.tgz")) == chart);
    assert_eq!(cluster.registry.blob_bytes_served(&sha256(&chart)), chart.len() as u64);
}
