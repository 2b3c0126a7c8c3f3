//! A whole cluster: the chart is installed, a pod is labelled, and its image comes through the swarm.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddrV4,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use support::{
    CommandOutcome, DockerRegistry, Image, KubeClient, KubeSite, LABEL, ORIGIN_IP, PASSWORD, RegistryAuth, Site,
    TokenServer, USER, wait_within, waiting_program,
};

/// One story, since a cluster takes its time to start and each chapter needs what the one before it has left.
#[test]
fn a_labelled_pod_pulls_through_the_swarm_from_the_installation_to_the_uninstallation() {
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
        println!("{}", cluster.api().admin().kubeconfig().display());
        if let Err(e) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| story.tell())) {
            println!("{}", story.describe());
            dev_hold(cluster);
            std::panic::resume_unwind(e);
        }
        dev_hold(cluster);
    });
}

struct Story<'a> {
    cluster: &'a KubeSite<'a>,
    registry: &'a DockerRegistry,
}

impl Story<'_> {
    fn tell(&self) {
        let chapters: [(&str, fn(&Self)); 12] = [
            ("it is installed", Self::it_is_installed),
            (
                "a labelled deployment comes through the swarm",
                Self::a_labelled_deployment_comes_through_the_swarm,
            ),
            (
                "an unlabelled pod pulls straight",
                Self::an_unlabelled_pod_pulls_straight,
            ),
            ("a wrong password opens nothing", Self::a_wrong_password_opens_nothing),
            ("kubectl tells how it is", Self::kubectl_tells_how_it_is),
            ("helm test is content", Self::helm_test_is_content),
            (
                "an upgrade restarts what it concerns",
                Self::an_upgrade_restarts_what_it_concerns,
            ),
            (
                "without peers pods start all the same",
                Self::without_peers_pods_start_all_the_same,
            ),
            (
                "a mirror that is gone comes back",
                Self::a_mirror_that_is_gone_comes_back,
            ),
            ("it is uninstalled", Self::it_is_uninstalled),
            (
                "what was accelerated still pulls",
                Self::what_was_accelerated_still_pulls,
            ),
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
        let values = self.cluster.api().folder("values").join("values.json");
        let text = json!({
            "p2p": { "registryInstances": REGISTRY },
            "upstreams": [{ "name": REGISTRY, "urls": [format!("http://{REGISTRY}")] }],
            // The registry has no TLS.
            "mirror": { "extraArgs": ["--allow-plain-credentials=true"] },
            "peer": { "extraArgs": ["--allow-plain-credentials=true"] },
        });
        fs::write(&values, text.to_string()).expect("writing values");
        self.helm(&[
            "install",
            RELEASE,
            CHART,
            "--wait",
            "--timeout=120s",
            "--values",
            values.to_str().unwrap(),
        ]);

        let webhook = self
            .client()
            .get("MutatingWebhookConfiguration", "", "piecemeal-webhook")
            .unwrap();
        for entry in webhook["webhooks"].as_array().unwrap() {
            let config = &entry["clientConfig"];
            assert!(
                config["service"]["name"] == "piecemeal-webhook" && config["caBundle"].is_string(),
                "{entry}"
            );
        }
        for node in self.cluster.nodes() {
            let file = node
                .etc(&format!("containerd/certs.d/{ACCELERATED}/hosts.toml"))
                .expect("node set-up has written it");
            assert!(
                file.contains("127.0.0.1:65001") && file.contains(&format!("server = \"http://{REGISTRY}\"")),
                "{file}"
            );
        }
    }

    fn a_labelled_deployment_comes_through_the_swarm(&self) {
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
        let copy = self
            .client()
            .get("Secret", SHOP, COPY)
            .expect("the copy of the pull secret");
        let content = BASE64_STANDARD
            .decode(copy["data"][".dockerconfigjson"].as_str().unwrap())
            .unwrap();
        assert!(String::from_utf8(content).unwrap().contains(ACCELERATED), "{copy}");

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

    fn an_unlabelled_pod_pulls_straight(&self) {
        self.create(&pod("plain", "v2", "registry", false));
        self.wait_until_running("plain");
        let pod = self.client().get("Pod", SHOP, "plain").unwrap();
        assert_eq!(pod["spec"]["containers"][0]["image"], *app("v2").reference(REGISTRY));
        assert_eq!(secrets_of(&pod), ["registry"]);
    }

    fn a_wrong_password_opens_nothing(&self) {
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
        self.delete("Pod", "forged");
    }

    fn kubectl_tells_how_it_is(&self) {
        let web = self.client().list("Pod", SHOP);
        let web = web
            .iter()
            .find_map(|pod| pod["metadata"]["name"].as_str().filter(|name| name.starts_with("web")));
        for (arguments, expected) in [
            (vec!["status"], vec!["peer", "2/2", "mirror", "1/1"]),
            (vec!["why", web.unwrap(), "--namespace", SHOP], vec!["is accelerated"]),
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

    fn an_upgrade_restarts_what_it_concerns(&self) {
        let before = self.pods_of_release();
        let change = [
            "--reuse-values",
            "--set=p2p.plusMode.cacheTTL=72h",
            "--wait",
            "--timeout=120s",
        ];
        self.helm(&[&["upgrade", RELEASE, CHART][..], &change].concat());
        let after = self.pods_of_release();
        let restarted: BTreeSet<&str> = after
            .iter()
            .filter(|(uid, _)| !before.contains_key(*uid))
            .map(|(_, component)| &**component)
            .collect();
        assert_eq!(restarted, BTreeSet::from(["mirror"]));

        let generations = self.generations();
        self.helm(&["upgrade", RELEASE, CHART, "--reuse-values", "--wait", "--timeout=120s"]);
        assert_eq!(self.generations(), generations, "the same once more changes nothing");
    }

    fn without_peers_pods_start_all_the_same(&self) {
        let nowhere = json!({ "spec": { "template": { "spec": { "nodeSelector": { "no": "node" } } } } });
        self.client()
            .patch("DaemonSet", SYSTEM, "piecemeal-peer", &nowhere)
            .unwrap();
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
        self.client()
            .patch("DaemonSet", SYSTEM, "piecemeal-peer", &back)
            .unwrap();
        wait_within(PULL_TIME_MAX, "the peers are back", || {
            let set = self.client().get("DaemonSet", SYSTEM, "piecemeal-peer")?;
            (set["status"]["numberReady"] == 2).then_some(())
        });
    }

    fn a_mirror_that_is_gone_comes_back(&self) {
        self.client().delete("Pod", SYSTEM, "piecemeal-mirror-0").unwrap();
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
        self.helm(&["uninstall", RELEASE, "--wait", "--timeout=120s"]);
        assert_eq!(
            self.client()
                .get("MutatingWebhookConfiguration", "", "piecemeal-webhook"),
            None
        );
        for node in self.cluster.nodes() {
            let file = node
                .etc(&format!("containerd/certs.d/{ACCELERATED}/hosts.toml"))
                .expect("the way back stays");
            assert!(file.contains(REGISTRY) && !file.contains("127.0.0.1"), "{file}");
        }
    }

    fn what_was_accelerated_still_pulls(&self) {
        let mut pod = pod("afterwards", "v6", COPY, true);
        pod["spec"]["containers"][0]["image"] = app("v6").reference(ACCELERATED).into();
        self.create(&pod);
        self.wait_until_running("afterwards");
        self.create(&self::pod("ordinary", "v7", "registry", true));
        self.wait_until_running("ordinary");
        let ordinary = self.client().get("Pod", SHOP, "ordinary").unwrap();
        assert_eq!(
            ordinary["spec"]["containers"][0]["image"],
            *app("v7").reference(REGISTRY)
        );
    }

    fn nothing_of_it_is_left(&self) {
        let keys = ["Secret piecemeal-authority-key", "Secret piecemeal-join-key"];
        let left = wait_within(PULL_TIME_MAX, "its pods are gone", || {
            let left = self.objects_of_release();
            (!left.iter().any(|object| object.starts_with("Pod "))).then_some(left)
        });
        let others: Vec<&String> = left.iter().filter(|object| !keys.contains(&&***object)).collect();
        assert!(others.is_empty(), "{others:?}");
    }

    fn client(&self) -> &KubeClient {
        self.cluster.api().client()
    }

    fn create(&self, object: &Value) {
        self.client()
            .create(object)
            .unwrap_or_else(|error| panic!("{error}: {object:#}"));
    }

    fn delete(&self, kind: &str, name: &str) {
        self.client().delete(kind, SHOP, name).unwrap();
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
        assert!(
            outcome.ok,
            "helm {}: {}\n{}",
            arguments.join(" "),
            outcome.output,
            self.describe()
        );
    }

    /// `kubectl piecemeal`, as kubectl finds it.
    fn plugin(&self, arguments: &[&str]) -> CommandOutcome {
        let folder = self.cluster.api().folder("plugin");
        let link = folder.join("kubectl-piecemeal");
        if !link.exists() {
            symlink(env!("CARGO_BIN_EXE_piecemeal"), &link).expect("linking the plugin");
        }
        let mut command = self.cluster.api().admin().kubectl(&["piecemeal"]);
        let path = std::env::var("PATH").expect("there is a PATH");
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

    /// Whatever bears the name of the release, or a label of ours: kind and name.
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
const TAGS: [&str; 7] = ["v1", "v2", "v3", "v4", "v5", "v6", "v7"];
const COPY: &str = "acr-credential-registry-p2p";
const RELEASE: &str = "piecemeal";
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/piecemeal");
const SYSTEM: &str = "piecemeal";
const SHOP: &str = "shop";
const PULL_TIME_MAX: Duration = Duration::from_secs(60);

// DEV
fn dev_hold(cluster: &KubeSite<'_>) {
    println!("{}", cluster.api().admin().kubeconfig().display());
    while std::env::var_os("PM_HOLD").is_some() && !Path::new("/tmp/e2e-go-on").exists() {
        std::thread::sleep(Duration::from_secs(1));
    }
}
