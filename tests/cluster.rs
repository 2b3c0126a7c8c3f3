//! A whole cluster: the chart is installed, a pod is labelled, and its image comes through the swarm.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::SocketAddrV4,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use support::{
    CommandOutcome, DockerRegistry, Image, KubeClient, KubeSite, LABEL, Netns, Node, ORIGIN_IP, PASSWORD, RegistryAuth,
    Site, TokenServer, USER, wait_within, waiting_program,
};

/// One story, since a cluster takes its time to start and each chapter needs what the one before it has left.
#[test]
fn a_labelled_pod_pulls_through_the_swarm_from_the_installation_to_the_uninstallation() {
    let _turn = turn();
    let site = Site::builder().nodes(2).nodes_reach_upstream(true).build();
    let tokens = TokenServer::start(site.origin(), SocketAddrV4::new(ORIGIN_IP, 5001)).named(REGISTRY);
    tokens.grant(USER, PASSWORD, REPOSITORY);
    let address = SocketAddrV4::new(ORIGIN_IP, 80);
    let registry = DockerRegistry::start_guarded(site.origin(), address, &RegistryAuth::Token(&tokens));
    for tag in TAGS {
        registry.push(&app(tag));
    }
    KubeSite::run(&site, REGISTRY, |cluster| {
        let story = Story {
            cluster,
            registry: &registry,
        };
        story.tell();
    });
}

/// A cluster of which nothing is taken down in order.
#[test]
fn nothing_is_left_of_a_cluster_that_was_killed() {
    let _turn = turn();
    let story = "a_labelled_pod_pulls_through_the_swarm_from_the_installation_to_the_uninstallation";
    let mut test = Command::new(env::current_exe().unwrap())
        .args(["--exact", story])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mark = format!("pm{}-node", test.id());
    let limit = Duration::from_secs(120);
    wait_within(limit, "a container runs on both nodes", || {
        let cgroups = cgroups_of(&mark);
        let has_container = |node: &str| {
            cgroups
                .iter()
                .any(|path| path.contains(&format!("{mark}{node}/k8s.io/")))
        };
        (has_container("1") && has_container("2")).then_some(())
    });

    test.kill().unwrap();
    test.wait().unwrap();

    wait_within(limit, "its containers and their cgroups are gone", || {
        cgroups_of(&mark).is_empty().then_some(())
    });
    wait_within(limit, "its nodes' files are gone", || {
        let mut files = fs::read_dir(env::temp_dir()).unwrap().flatten();
        let left = files.any(|file| file.file_name().to_string_lossy().starts_with(&mark));
        (!left).then_some(())
    });
    Netns::remove_stale();
}

/// Two clusters at once are too much for a small machine.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folders of a node's cgroups, in all hierarchies.
fn cgroups_of(mark: &str) -> Vec<String> {
    let listed = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-path", &format!("*/{mark}*")])
        .output();
    let listed = String::from_utf8(listed.expect("listing cgroups").stdout).expect("cgroups have plain names");
    listed.lines().map(str::to_owned).collect()
}

/// A title, and the steps.
type Chapter<Story> = (&'static str, fn(&Story));

struct Story<'a> {
    cluster: &'a KubeSite<'a>,
    registry: &'a DockerRegistry,
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.describe());
        }
    }
}

impl Story<'_> {
    fn tell(&self) {
        let chapters: [Chapter<Self>; 14] = [
            ("it is installed", Self::it_is_installed),
            ("a deployment is labelled", Self::a_deployment_is_labelled),
            ("a namespace is labelled", Self::a_namespace_is_labelled),
            ("nothing is labelled", Self::nothing_is_labelled),
            ("the password is wrong", Self::the_password_is_wrong),
            ("kubectl tells how it is", Self::kubectl_tells_how_it_is),
            ("helm test is content", Self::helm_test_is_content),
            ("it is upgraded", Self::it_is_upgraded),
            ("no node has a peer", Self::no_node_has_a_peer),
            ("the mirror is deleted", Self::the_mirror_is_deleted),
            ("it is uninstalled", Self::it_is_uninstalled),
            ("pods pull without it", Self::pods_pull_without_it),
            ("it comes back and is purged", Self::it_comes_back_and_is_purged),
            ("nothing of it is left", Self::nothing_of_it_is_left),
        ];
        for (title, chapter) in chapters {
            let started = Instant::now();
            chapter(self);
            println!("{:5.1} s  {title}", started.elapsed().as_secs_f32());
        }
    }

    fn it_is_installed(&self) {
        for namespace in [SYSTEM, SHOP] {
            self.create(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } }));
        }
        self.create(&pull_secret("registry", PASSWORD));
        self.create(&pull_secret("forged", "wrong"));
        let values = json!({
            "p2p": { "registryInstances": REGISTRY },
            "upstreams": [{ "name": REGISTRY, "urls": [format!("http://{REGISTRY}")] }],
            // The registry has no TLS.
            "mirror": { "extraArgs": ["--allow-plain-credentials=true"] },
            "peer": { "extraArgs": ["--allow-plain-credentials=true"] },
        });
        fs::write(self.values(), values.to_string()).expect("writing values");
        self.install(&[]);

        let webhook = self.get("MutatingWebhookConfiguration", "", "piecemeal-webhook");
        for entry in webhook["webhooks"].as_array().into_iter().flatten() {
            let config = &entry["clientConfig"];
            assert!(
                config["service"]["name"] == "piecemeal-webhook" && config["caBundle"].is_string(),
                "{entry}"
            );
        }
        for node in self.cluster.nodes() {
            let file = hosts_toml(node, ACCELERATED).expect("node set-up has written it");
            assert!(
                file.contains("127.0.0.1:65001") && file.contains(&format!("server = \"http://{REGISTRY}\"")),
                "{file}"
            );
            let status = node
                .run(&[env!("CARGO_BIN_EXE_piecemeal"), "node", "status"])
                .expect_ok()
                .output;
            for part in [
                "containerd: ready",
                "hosts.toml: written by piecemeal node",
                "127.0.0.1:65001 by piecemeal",
            ] {
                assert!(status.contains(part), "{part:?} in {status}");
            }
        }
    }

    fn a_deployment_is_labelled(&self) {
        let image = app("v1");
        let wan = self.cluster.site().wan_bytes_received();
        let labels = json!({ "app": "web", LABEL: "p2p" });
        let mut template = json!({ "metadata": { "labels": labels }, "spec": spec("v1", "registry") });
        template["spec"]["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "app": "web" } },
        }]);
        self.create(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web", "namespace": SHOP },
            "spec": { "replicas": 3, "selector": { "matchLabels": { "app": "web" } }, "template": template },
        }));
        let pods = wait_within(PULL_TIME_MAX, "three pods run", || {
            let pods = self.client().list("Pod", SHOP);
            (pods.len() == 3 && pods.iter().all(is_running)).then_some(pods)
        });

        let nodes: BTreeSet<&str> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        assert_eq!(nodes.len(), 2, "both nodes pulled it");
        for node in self.cluster.nodes() {
            let images = node.crictl(&["images"]).expect_ok().output;
            assert!(images.contains(&format!("{ACCELERATED}/{REPOSITORY}")), "{images}");
        }
        for pod in &pods {
            let accelerated = image.reference(ACCELERATED);
            assert_eq!(pod["spec"]["containers"][0]["image"], *accelerated, "{pod:#}");
            assert_eq!(pod["status"]["containerStatuses"][0]["image"], *accelerated);
            assert!(secrets_of(pod).contains(&COPY), "{pod:#}");
            let annotations = &pod["metadata"]["annotations"];
            assert_eq!(annotations[LABEL], "p2p", "{annotations}");
            let config = annotations["k8s.aliyun.com/p2p-config"]
                .as_str()
                .expect("what was done is recorded");
            assert!(config.contains(&image.reference(REGISTRY)), "{config}");
        }
        let copy = self.get("Secret", SHOP, COPY);
        let content = copy["data"][".dockerconfigjson"].as_str().unwrap_or_default();
        let content = BASE64_STANDARD.decode(content).expect("a Secret's content is base64");
        assert!(String::from_utf8_lossy(&content).contains(ACCELERATED), "{copy}");

        for blob in image.blobs() {
            assert_eq!(
                self.registry.blob_bytes_served(&blob.digest),
                blob.size,
                "{} came once",
                blob.digest
            );
        }
        let wan = self.cluster.site().wan_bytes_received() - wan;
        assert!(
            wan < image.total_bytes() * 3 / 2,
            "{wan} bytes came over the WAN for {}",
            image.total_bytes()
        );
    }

    fn a_namespace_is_labelled(&self) {
        for (mode, host) in [(json!("p2p"), ACCELERATED), (Value::Null, REGISTRY)] {
            let labels = json!({ "metadata": { "labels": { "piecemeal.dev/mode": mode } } });
            self.patch("Namespace", "", SHOP, &labels);
            // The API server hears of a namespace's labels a moment later.
            wait_within(PULL_TIME_MAX, &format!("new pods name {host}"), || {
                let rehearsed = self.client().dry_run_create(&pod("any", "v2", "registry", false));
                let image = rehearsed.expect("pods may be created")["spec"]["containers"][0]["image"].clone();
                (image == *app("v2").reference(host)).then_some(())
            });
        }
    }

    fn nothing_is_labelled(&self) {
        self.create(&pod("plain", "v2", "registry", false));
        self.wait_until_running("plain");
        let pod = self.get("Pod", SHOP, "plain");
        assert_eq!(pod["spec"]["containers"][0]["image"], *app("v2").reference(REGISTRY));
        assert_eq!(secrets_of(&pod), ["registry"]);
    }

    fn the_password_is_wrong(&self) {
        self.create(&pod("forged", "v3", "forged", true));
        let reason = wait_within(PULL_TIME_MAX, "the pull is refused", || {
            let pod = self.client().get("Pod", SHOP, "forged")?;
            assert!(!is_running(&pod), "it runs without a right to");
            let reason = pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
                .as_str()?
                .to_owned();
            reason.contains("Pull").then_some(reason)
        });
        assert!(["ErrImagePull", "ImagePullBackOff"].contains(&&*reason), "{reason}");
        assert_eq!(self.registry.blob_bytes_served(&app("v3").layers()[0].digest), 0);
        self.delete("Pod", SHOP, "forged");
    }

    fn kubectl_tells_how_it_is(&self) {
        let web = self.client().list("Pod", SHOP);
        let web = web
            .iter()
            .find_map(|pod| pod["metadata"]["name"].as_str().filter(|name| name.starts_with("web")))
            .expect("the deployment's pods");
        for (arguments, expected) in [
            (vec!["status"], vec!["peer", "2/2", "mirror", "1/1"]),
            (vec!["why", web, "--namespace", SHOP], vec!["is accelerated"]),
            (vec!["why", "plain", "--namespace", SHOP], vec!["(NotLabelled)"]),
            (
                vec!["node", "node1"],
                vec!["containerd://", "peer:", "node:", "is Running"],
            ),
            (
                vec!["preflight"],
                vec!["ok    Kubernetes v1.", "2 of 2 are ready", "has its CA"],
            ),
            (vec!["pods", "--rewritten", "--namespace", SHOP], vec![ACCELERATED]),
        ] {
            let said = self.plugin(&arguments).expect_ok().output;
            for part in expected {
                assert!(
                    said.contains(part),
                    "kubectl piecemeal {}: no {part:?} in {said}",
                    arguments.join(" ")
                );
            }
        }
    }

    fn helm_test_is_content(&self) {
        self.helm(&["test", RELEASE, "--timeout=60s"]);
    }

    fn it_is_upgraded(&self) {
        let before = self.pods_of_release();
        self.upgrade(&["--set=p2p.plusMode.cacheTTL=72h"]);
        let after = self.pods_of_release();
        let restarted: BTreeSet<&str> = after
            .iter()
            .filter(|(uid, _)| !before.contains_key(*uid))
            .map(|(_, component)| &**component)
            .collect();
        assert_eq!(restarted, BTreeSet::from(["mirror"]));

        let generations = self.generations();
        self.upgrade(&[]);
        assert_eq!(self.generations(), generations, "the same once more changes nothing");
    }

    fn no_node_has_a_peer(&self) {
        let nowhere = json!({ "spec": { "template": { "spec": { "nodeSelector": { "no": "node" } } } } });
        self.patch("DaemonSet", SYSTEM, "piecemeal-peer", &nowhere);
        wait_within(PULL_TIME_MAX, "the peers are gone", || {
            let peers = self
                .pods_of_release()
                .into_values()
                .filter(|component| component == "peer")
                .count();
            (peers == 0).then_some(())
        });
        self.create(&pod("unaided", "v4", "registry", true));
        self.wait_until_running("unaided");

        let back = json!({ "spec": { "template": { "spec": { "nodeSelector": { "no": null } } } } });
        self.patch("DaemonSet", SYSTEM, "piecemeal-peer", &back);
        wait_within(PULL_TIME_MAX, "the peers are back", || {
            let set = self.client().get("DaemonSet", SYSTEM, "piecemeal-peer")?;
            (set["status"]["numberReady"] == 2).then_some(())
        });
    }

    fn the_mirror_is_deleted(&self) {
        self.delete("Pod", SYSTEM, "piecemeal-mirror-0");
        self.create(&pod("patient", "v5", "registry", true));
        self.wait_until_running("patient");
        wait_within(PULL_TIME_MAX, "the mirror is back", || {
            let mirror = self.client().get("Pod", SYSTEM, "piecemeal-mirror-0")?;
            is_running(&mirror).then_some(())
        });
    }

    fn it_is_uninstalled(&self) {
        let checked = self.plugin(&["uninstall-check"]);
        assert!(!checked.ok && checked.output.contains("unaided"), "{}", checked.output);
        self.uninstall();
        let webhook = self
            .client()
            .get("MutatingWebhookConfiguration", "", "piecemeal-webhook");
        assert_eq!(webhook, None);
        let copies = self.client().list("Secret", SHOP);
        let copies: Vec<&str> = copies
            .iter()
            .filter_map(|secret| secret["metadata"]["name"].as_str())
            .collect();
        assert_eq!(copies, [COPY, "forged", "registry"], "the copy stays that pods name");
        for node in self.cluster.nodes() {
            let file = hosts_toml(node, ACCELERATED).expect("the way to the registry stays");
            assert!(file.contains(REGISTRY) && !file.contains("127.0.0.1"), "{file}");
        }
    }

    fn pods_pull_without_it(&self) {
        let mut pod = pod("afterwards", "v6", COPY, true);
        pod["spec"]["containers"][0]["image"] = app("v6").reference(ACCELERATED).into();
        self.create(&pod);
        self.wait_until_running("afterwards");
        self.create(&self::pod("ordinary", "v7", "registry", true));
        self.wait_until_running("ordinary");
        assert_eq!(self.image_of("ordinary"), app("v7").reference(REGISTRY));
    }

    fn it_comes_back_and_is_purged(&self) {
        self.install(&["--set=uninstall.purge=true", "--set=webhook.enabled=false"]);
        let rehearsed = self.client().dry_run_create(&pod("any", "v8", "registry", true));
        let image = &rehearsed.expect("pods may be created")["spec"]["containers"][0]["image"];
        assert_eq!(*image, *app("v8").reference(REGISTRY), "nothing is accelerated");
        self.upgrade(&["--set=webhook.enabled=true"]);
        self.create(&pod("again", "v8", "registry", true));
        self.wait_until_running("again");
        let image = app("v8");
        assert_eq!(self.image_of("again"), image.reference(ACCELERATED));
        let layer = &image.layers()[0];
        assert_eq!(self.registry.blob_bytes_served(&layer.digest), layer.size);

        self.uninstall();
        for node in self.cluster.nodes() {
            assert_eq!(hosts_toml(node, ACCELERATED), None);
            assert!(hosts_toml(node, REGISTRY).is_some(), "that one is the administrator's");
        }
    }

    fn nothing_of_it_is_left(&self) {
        let left = wait_within(PULL_TIME_MAX, "its pods are gone", || {
            let mut left = self.objects_of_release();
            // Those of tests stay for their logs.
            left.retain(|object| !object.starts_with("Pod piecemeal-test-"));
            (!left.iter().any(|object| object.starts_with("Pod "))).then_some(left)
        });
        let kept = ["Secret piecemeal-authority-key", "Secret piecemeal-join-key"];
        assert_eq!(left, kept, "the site's keys are kept for nodes that come back");
    }

    fn install(&self, more: &[&str]) {
        let values = format!("--values={}", self.values().display());
        let install = ["install", RELEASE, CHART, "--wait", "--timeout=120s", &values];
        self.helm(&[&install, more].concat());
    }

    fn upgrade(&self, more: &[&str]) {
        let upgrade = ["upgrade", RELEASE, CHART, "--reuse-values", "--wait", "--timeout=120s"];
        self.helm(&[&upgrade, more].concat());
    }

    fn uninstall(&self) {
        self.helm(&["uninstall", RELEASE, "--wait", "--timeout=120s"]);
    }

    fn values(&self) -> PathBuf {
        self.cluster.api().folder("values").join("values.json")
    }

    /// As the pod's specification has it.
    fn image_of(&self, pod: &str) -> String {
        let pod = self.get("Pod", SHOP, pod);
        let image = pod["spec"]["containers"][0]["image"].as_str();
        image.expect("a container has an image").to_owned()
    }

    fn client(&self) -> &KubeClient {
        self.cluster.api().client()
    }

    fn create(&self, object: &Value) {
        self.client()
            .create(object)
            .unwrap_or_else(|error| panic!("{error}: {object:#}"));
    }

    fn get(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let object = self.client().get(kind, namespace, name);
        object.unwrap_or_else(|| panic!("there is no {kind} {namespace}/{name}"))
    }

    fn patch(&self, kind: &str, namespace: &str, name: &str, change: &Value) {
        let patched = self.client().patch(kind, namespace, name, change);
        patched.unwrap_or_else(|error| panic!("changing {kind} {name}: {error}"));
    }

    fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let deleted = self.client().delete(kind, namespace, name);
        deleted.unwrap_or_else(|error| panic!("deleting {kind} {name}: {error}"));
    }

    fn wait_until_running(&self, name: &str) {
        wait_within(PULL_TIME_MAX, &format!("{name} runs"), || {
            self.client()
                .get("Pod", SHOP, name)
                .as_ref()
                .filter(|pod| is_running(pod))
                .map(|_| ())
        });
    }

    fn helm(&self, arguments: &[&str]) {
        let mut command = self.cluster.api().admin().helm(arguments);
        let outcome = CommandOutcome::of(command.args(["--namespace", SYSTEM]), Instant::now());
        assert!(outcome.ok, "helm {}: {}", arguments.join(" "), outcome.output);
    }

    /// `kubectl piecemeal`, as kubectl finds it.
    fn plugin(&self, arguments: &[&str]) -> CommandOutcome {
        let folder = self.cluster.api().folder("plugin");
        let link = folder.join("kubectl-piecemeal");
        if !link.exists() {
            symlink(env!("CARGO_BIN_EXE_piecemeal"), &link).expect("linking the plugin");
        }
        let mut command = self.cluster.api().admin().kubectl(&["piecemeal"]);
        let path = env::var("PATH").expect("there is a PATH");
        command
            .args(arguments)
            .env("PATH", format!("{}:{path}", folder.display()));
        CommandOutcome::of(&mut command, Instant::now())
    }

    /// The components of the release's pods that are not going, by their ids.
    fn pods_of_release(&self) -> BTreeMap<String, String> {
        let pods = self.client().list("Pod", SYSTEM);
        let stays =
            |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running";
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = |pod: &Value| {
            (
                text(&pod["metadata"]["uid"]),
                text(&pod["metadata"]["labels"]["app.kubernetes.io/component"]),
            )
        };
        pods.iter().filter(stays).map(of).collect()
    }

    /// How often the release's workloads were changed.
    fn generations(&self) -> Vec<(String, Value)> {
        let kinds = ["Deployment", "DaemonSet", "StatefulSet"].map(|kind| self.client().list(kind, SYSTEM));
        let of = |object: &Value| {
            (
                object["metadata"]["name"].to_string(),
                object["metadata"]["generation"].clone(),
            )
        };
        kinds.iter().flatten().map(of).collect()
    }

    /// The objects that bear the name of the release or one of the chart's labels: kind and name.
    fn objects_of_release(&self) -> Vec<String> {
        let kinds = [
            "Pod",
            "Secret",
            "ConfigMap",
            "Service",
            "ServiceAccount",
            "Job",
            "Deployment",
            "DaemonSet",
            "StatefulSet",
            "Role",
            "RoleBinding",
            "ClusterRole",
            "ClusterRoleBinding",
            "Lease",
            "PodDisruptionBudget",
            "MutatingWebhookConfiguration",
            "NetworkPolicy",
        ];
        let mut found = Vec::new();
        for kind in kinds {
            for object in self.client().list(kind, "") {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                if name.starts_with(RELEASE) || object["metadata"]["labels"]["app.kubernetes.io/name"] == "piecemeal" {
                    found.push(format!("{kind} {name}"));
                }
            }
        }
        found
    }

    /// What the release's pods are and say, for a failure.
    fn describe(&self) -> String {
        let admin = self.cluster.api().admin();
        let said = |arguments: &[&str]| CommandOutcome::of(&mut admin.kubectl(arguments), Instant::now()).output;
        let pods = said(&["get", "pods", "--all-namespaces", "--output=wide"]);
        let selector = "--selector=app.kubernetes.io/name=piecemeal";
        let events = said(&["get", "events", "--all-namespaces"]);
        pods + &events
            + &said(&[
                "logs",
                "--namespace",
                SYSTEM,
                selector,
                "--prefix",
                "--tail=15",
                "--all-containers",
            ])
    }
}

fn app(tag: &str) -> Image {
    let program = [("/wait".to_owned(), waiting_program())];
    Image::new(REPOSITORY, tag)
        .layer_bytes(&[1 << 20, 2 << 20])
        .running(&program)
}

fn pod(name: &str, tag: &str, secret: &str, is_labelled: bool) -> Value {
    let labels = if is_labelled {
        json!({ LABEL: "p2p" })
    } else {
        json!({})
    };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": SHOP, "labels": labels },
        "spec": spec(tag, secret),
    })
}

fn spec(tag: &str, secret: &str) -> Value {
    json!({
        "containers": [{ "name": "app", "image": app(tag).reference(REGISTRY) }],
        "imagePullSecrets": [{ "name": secret }],
        // The program does not hear SIGTERM.
        "terminationGracePeriodSeconds": 0,
    })
}

fn pull_secret(name: &str, password: &str) -> Value {
    let content = json!({ "auths": { REGISTRY: { "username": USER, "password": password } } }).to_string();
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": SHOP },
        "type": "kubernetes.io/dockerconfigjson", "stringData": { ".dockerconfigjson": content },
    })
}

/// What the node's containerd knows of a registry.
fn hosts_toml(node: &Node, registry: &str) -> Option<String> {
    node.etc(&format!("containerd/certs.d/{registry}/hosts.toml"))
}

fn secrets_of(pod: &Value) -> Vec<&str> {
    let secrets = pod["spec"]["imagePullSecrets"].as_array().into_iter().flatten();
    secrets.filter_map(|secret| secret["name"].as_str()).collect()
}

fn is_running(pod: &Value) -> bool {
    pod["status"]["containerStatuses"][0]["ready"] == true && pod["metadata"]["deletionTimestamp"].is_null()
}

const REGISTRY: &str = "registry.example.com";
const ACCELERATED: &str = "registry.example.com.piecemeal.internal:65001";
const REPOSITORY: &str = "library/app";
const TAGS: [&str; 8] = ["v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8"];
const COPY: &str = "acr-credential-registry-p2p";
const RELEASE: &str = "piecemeal";
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/piecemeal");
const SYSTEM: &str = "piecemeal";
const SHOP: &str = "shop";
const PULL_TIME_MAX: Duration = Duration::from_secs(60);
