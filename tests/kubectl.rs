//! `kubectl piecemeal` and the chart's hooks, at a real API server.

mod support;

use std::{os::unix::fs::symlink, process::Command, time::Instant};

use serde_json::{Value, json};
use support::{CommandOutcome, Identity, KubeApi, LABEL, ScratchDir, Webhook, wait_until};

const REGISTRY: &str = "reg.example.com";
const ACCELERATED: &str = "reg.example.com.piecemeal.internal:65001";

#[test]
fn why_tells_the_reasons_in_their_order() {
    let cluster = Cluster::start();
    let namespace = cluster.webhook.namespace(&[]);
    let client = cluster.api.client();
    client
        .create(&pod(&namespace, "good", "reg.example.com/a:1", true))
        .unwrap();
    client
        .create(&pod(&namespace, "plain", "reg.example.com/a:1", false))
        .unwrap();
    client.create(&pod(&namespace, "other", "quay.io/a:1", true)).unwrap();
    client
        .create(&pod(
            &namespace,
            "private",
            "test-registry.cn-x.cr.aliyuncs.com/a:1",
            true,
        ))
        .unwrap();
    for (name, expected) in [
        ("good", vec!["the pod asks for it by", "good is accelerated."]),
        (
            "plain",
            vec!["label on a Deployment itself does nothing", "(NotLabelled)"],
        ),
        ("other", vec!["quay.io is not accelerated", "(NoAcceleratedImage)"]),
        ("private", vec!["the pod names none", "(NoPullSecret)"]),
    ] {
        let said = cluster
            .plugin(&["why", name, "--namespace", &namespace])
            .expect_ok()
            .output;
        for part in expected {
            assert!(said.contains(part), "{part:?} in {said}");
        }
    }
    let labelled = json!({"metadata": {"labels": {LABEL: "p2p"}}});
    client.patch("Pod", &namespace, "plain", &labelled).unwrap();
    let said = cluster
        .plugin(&["why", "plain", "--namespace", &namespace])
        .expect_ok()
        .output;
    assert!(said.contains("would be if it were created again"), "{said}");

    let listed = |which: &str| {
        cluster
            .plugin(&["pods", which, "--namespace", &namespace])
            .expect_ok()
            .output
    };
    assert!(
        listed("--rewritten").contains(&format!("{namespace}/good  {ACCELERATED}/a:1")),
        "{}",
        listed("--rewritten")
    );
    let eligible = listed("--eligible");
    assert!(
        eligible.contains(&format!("{namespace}/plain  reg.example.com/a:1")) && eligible.contains("1 of 4 pods"),
        "{eligible}"
    );
}

#[test]
fn diff_shows_what_the_webhook_would_do_with_what_is_there_and_with_a_file() {
    let cluster = Cluster::start();
    let namespace = cluster.webhook.namespace(&[]);
    let template = json!({
        "metadata": {"labels": {"app": "web", LABEL: "p2p"}},
        "spec": {"containers": [{"name": "c", "image": "reg.example.com/web:1"}]},
    });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": namespace},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "template": template},
    });
    cluster.api.client().create(&deployment).unwrap();
    let expected = format!("- image: reg.example.com/web:1\n+ image: {ACCELERATED}/web:1");
    let said = cluster
        .plugin(&["diff", "deployment/web", "--namespace", &namespace])
        .expect_ok()
        .output;
    assert!(said.contains(&expected), "{said}");

    let dir = ScratchDir::new();
    let file = dir.path().join("web.json");
    std::fs::write(&file, deployment.to_string()).unwrap();
    let said = cluster
        .plugin(&["diff", "--filename", file.to_str().unwrap()])
        .expect_ok()
        .output;
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn preflight_and_status_see_what_is_wrong() {
    let cluster = Cluster::start();
    let namespace = cluster.webhook.namespace(&[]);
    let outcome = cluster.plugin(&[
        "preflight",
        "--image",
        "reg.example.com/x:1",
        "--rehearse-in",
        &namespace,
    ]);
    let said = &outcome.output;
    for part in [
        "ok    Kubernetes v1.",
        "WRONG webhook",
        "0 of 2 are ready",
        "has its CA",
        "rehearsal: reg.example.com/x:1 becomes",
    ] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    assert!(!outcome.ok);
    let status = cluster.plugin(&["status"]).expect_ok().output;
    assert!(status.contains("webhook") && status.contains("0/2"), "{status}");
}

#[test]
fn an_uninstallation_is_checked_and_done_in_order() {
    let cluster = Cluster::start();
    let (api, webhook) = (cluster.api, &cluster.webhook);
    let namespace = webhook.namespace(&[]);
    let client = api.client();
    client.create(&pull_secret(&namespace, "used")).unwrap();
    client.create(&pull_secret(&namespace, "unused")).unwrap();
    for (name, secret) in [("stays", "used"), ("goes", "unused")] {
        let mut pod = pod(&namespace, name, "reg.example.com/a:1", true);
        pod["spec"]["imagePullSecrets"] = json!([{"name": secret}]);
        client.create(&pod).unwrap();
    }
    client.delete("Pod", &namespace, "goes").unwrap();
    wait_until("the pod is gone", || {
        client.get("Pod", &namespace, "goes").is_none().then_some(())
    });

    let checked = cluster.plugin(&["uninstall-check"]);
    assert!(
        !checked.ok && checked.output.contains(&format!("{namespace}/stays")),
        "{}",
        checked.output
    );

    let retire = |more: &[&str]| {
        let mut arguments = vec!["chart", "retire"];
        arguments.extend(["--webhook-configuration", &webhook.configuration]);
        arguments.extend(more);
        cluster.piecemeal(&arguments)
    };
    let refused = retire(&["--strict"]);
    assert!(
        !refused.ok && refused.output.contains("nothing was removed"),
        "{}",
        refused.output
    );
    assert!(
        client
            .get("MutatingWebhookConfiguration", "", &webhook.configuration)
            .is_some()
    );

    let said = retire(&[]).expect_ok().output;
    assert!(
        said.contains("1 copies of pull secrets are deleted, 1 are still needed"),
        "{said}"
    );
    assert!(
        client
            .get("MutatingWebhookConfiguration", "", &webhook.configuration)
            .is_none()
    );
    assert!(client.get("Secret", &namespace, "acr-credential-used-p2p").is_some());
    assert!(client.get("Secret", &namespace, "acr-credential-unused-p2p").is_none());
    retire(&[]).expect_ok();
    let created = client
        .create(&pod(&namespace, "later", "reg.example.com/a:1", true))
        .unwrap();
    assert_eq!(created["spec"]["containers"][0]["image"], "reg.example.com/a:1");
}

#[test]
fn the_site_s_keys_are_made_once_and_never_replaced() {
    let api = KubeApi::shared();
    let namespace = api.namespace("keys");
    let keys = || {
        let arguments = [
            "chart",
            "keys",
            "--namespace",
            &namespace,
            "--authority-secret",
            "authority",
            "--join-secret",
            "join",
        ];
        run(piecemeal(api.admin()).args(arguments))
    };
    let secret = |name: &str| {
        api.client()
            .get("Secret", &namespace, name)
            .map(|secret| secret["data"].clone())
    };
    keys().expect_ok();
    let (authority, join) = (secret("authority").unwrap(), secret("join").unwrap());
    assert!(authority["authority.key"].is_string() && join["join.key"].is_string());

    keys().expect_ok();
    assert_eq!(
        (secret("authority").unwrap(), secret("join").unwrap()),
        (authority.clone(), join.clone())
    );
    api.client().delete("Secret", &namespace, "join").unwrap();
    keys().expect_ok();
    assert_eq!(secret("join").unwrap(), join, "the join key of another site");

    api.client().delete("Secret", &namespace, "authority").unwrap();
    let refused = keys();
    assert!(
        !refused.ok && refused.output.contains("restore it"),
        "{}",
        refused.output
    );
    assert_eq!(secret("authority"), None);
}

#[test]
fn waiting_for_clean_nodes_ends_in_time_and_names_those_that_are_away() {
    let api = KubeApi::shared();
    let namespace = api.namespace("wait");
    // A node that no kubelet reports for is not ready.
    let spec = json!({"containers": [{"name": "c", "image": "x"}], "tolerations": [{"operator": "Exists"}]});
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": spec});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "clean", "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template},
    });
    api.client().create(&set).unwrap();
    let wait = |timeout: &str| {
        let arguments = [
            "chart",
            "wait",
            "--namespace",
            &namespace,
            "--daemonset",
            "clean",
            "--timeout",
            timeout,
        ];
        run(piecemeal(api.admin()).args(arguments))
    };
    assert!(wait("30s").expect_ok().output.contains("every node is clean"));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-7", "labels": {"kubernetes.io/hostname": "edge-7"}}});
    api.client().create(&node).unwrap();
    wait_until("the set wants the node", || {
        let set = api.client().get("DaemonSet", &namespace, "clean")?;
        (set["status"]["desiredNumberScheduled"] == 1).then_some(())
    });
    let said = wait("1s").expect_ok().output;
    assert!(said.contains("1 nodes have not answered"), "{said}");
    api.client().delete("Node", "", "edge-7").unwrap();
}

/// An API server of its own, with a webhook that is installed as the chart would.
struct Cluster {
    /// Ended by its caretaker with the process.
    api: &'static KubeApi,
    webhook: Webhook<'static>,
    _dir: ScratchDir,
    plugin: std::path::PathBuf,
}

impl Cluster {
    fn start() -> Self {
        let api = Box::leak(Box::new(KubeApi::start(&support::KubeOptions::default())));
        let webhook = Webhook::start(api, &["--registry", REGISTRY, "--registry", "cri-x"]);
        let settings = format!(
            "registry = [\"{REGISTRY}\", \"cri-x\"]\nwebhook_configuration = \"{}\"\n",
            webhook.configuration
        );
        let labels = json!({"app.kubernetes.io/name": "piecemeal", "app.kubernetes.io/component": "webhook"});
        let metadata = json!({"name": "piecemeal-webhook", "namespace": webhook.namespace, "labels": labels});
        let config_map =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"webhook.toml": settings}});
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template},
        });
        for object in [config_map, deployment] {
            api.client().create(&object).expect("what the chart installs");
        }
        let dir = ScratchDir::new();
        let plugin = dir.path().join("kubectl-piecemeal");
        symlink(env!("CARGO_BIN_EXE_piecemeal"), &plugin).expect("a name for the plugin");
        Self {
            api,
            webhook,
            _dir: dir,
            plugin,
        }
    }

    /// Under the name by which kubectl finds it, with kubectl on the PATH.
    fn plugin(&self, arguments: &[&str]) -> CommandOutcome {
        let kubectl = self.api.admin().kubectl(&[]);
        let mut command = Command::new(&self.plugin);
        command
            .args(arguments)
            .env("KUBECONFIG", self.api.admin().kubeconfig())
            .env("PATH", self.path_with(&kubectl));
        run(&mut command)
    }

    fn path_with(&self, kubectl: &Command) -> String {
        let dir = self.plugin.parent().expect("it lies in a folder");
        let link = dir.join("kubectl");
        if !link.exists() {
            symlink(kubectl.get_program(), link).expect("a name for kubectl");
        }
        format!("{}:{}", dir.display(), std::env::var("PATH").expect("a PATH"))
    }

    fn piecemeal(&self, arguments: &[&str]) -> CommandOutcome {
        run(piecemeal(self.api.admin()).args(arguments))
    }
}

fn piecemeal(identity: &Identity) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_piecemeal"));
    command.env("KUBECONFIG", identity.kubeconfig());
    command
}

fn run(command: &mut Command) -> CommandOutcome {
    CommandOutcome::of(command, Instant::now())
}

fn pod(namespace: &str, name: &str, image: &str, is_labelled: bool) -> Value {
    let labels = if is_labelled { json!({LABEL: "p2p"}) } else { json!({}) };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "app", "image": image}]},
    })
}

fn pull_secret(namespace: &str, name: &str) -> Value {
    let content = json!({"auths": {REGISTRY: {"username": "u", "password": "p"}}}).to_string();
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": content},
    })
}
