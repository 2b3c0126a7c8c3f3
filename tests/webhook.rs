//! The webhook at a real API server: what the product promises about labelled pods, row by row.

mod support;

use std::{collections::BTreeSet, time::Instant};

use serde_json::{Value, json};
use support::{
    CommandOutcome, Injector, KubeApi, LABEL, NEUTRAL_LABEL, Webhook, WebhookOptions,
    pods::{
        PASSWORD, VENDOR, VENDOR_ACCELERATED, assert_untouched, auths, entry, images, is_accelerated, old_pull_secret,
        opaque_secret, pod, pull_secret, pull_secrets, record, unlabelled_pod,
    },
    wait_until,
};

const HUB: &str = "docker.io.piecemeal.internal:65001";
const PRIVATE: &str = "reg.example.com:5000";
const PRIVATE_ACCELERATED: &str = "reg.example.com.5000.piecemeal.internal:65001";

#[test]
fn a_pod_is_accelerated_as_the_vendor_s_documents_show_it() {
    let (api, namespace) = (KubeApi::shared(), Webhook::shared().namespace(&[]));
    create(&pull_secret(&namespace, "test-registry", &[VENDOR]));
    let image = format!("{VENDOR}/docker-builder/nginx:latest");

    let stored = create(&pod(&namespace, &[&image], &["test-registry"]));

    assert_eq!(
        images(&stored),
        [format!("{VENDOR_ACCELERATED}/docker-builder/nginx:latest")]
    );
    assert_eq!(
        pull_secrets(&stored),
        ["test-registry", "acr-credential-test-registry-p2p"]
    );
    assert_eq!(stored["metadata"]["annotations"][LABEL], "p2p");
    let record = record(&stored).unwrap();
    assert_eq!(
        record["images"],
        json!([{"container": "c0", "original": image, "image": format!("{VENDOR_ACCELERATED}/docker-builder/nginx:latest")}])
    );
    assert_eq!(
        record["secrets"],
        json!({"test-registry": "acr-credential-test-registry-p2p"})
    );
    let copy = api
        .client()
        .get("Secret", &namespace, "acr-credential-test-registry-p2p")
        .unwrap();
    assert_eq!(copy["type"], "kubernetes.io/dockerconfigjson");
    assert_eq!(auths(&copy), json!({VENDOR_ACCELERATED: entry(VENDOR)}));
}

#[test]
fn the_label_on_the_pod_decides_and_else_the_one_on_its_namespace() {
    const NOTHING: &[(&str, &str)] = &[];
    const ALIAS: &[(&str, &str)] = &[(LABEL, "p2p")];
    const NEUTRAL: &[(&str, &str)] = &[(NEUTRAL_LABEL, "p2p")];
    const BOTH: &[(&str, &str)] = &[(LABEL, "p2p"), (NEUTRAL_LABEL, "p2p")];
    const ALIAS_OFF: &[(&str, &str)] = &[(LABEL, "disabled")];
    const NEUTRAL_OFF: &[(&str, &str)] = &[(NEUTRAL_LABEL, "disabled")];
    const LAZY: &[(&str, &str)] = &[(LABEL, "on-demand")];
    // The namespace's labels, the pod's, and the annotation that is to be there.
    let cases = [
        (NOTHING, NOTHING, None),
        (NOTHING, ALIAS, Some(LABEL)),
        (NOTHING, NEUTRAL, Some(NEUTRAL_LABEL)),
        (NOTHING, BOTH, Some(NEUTRAL_LABEL)),
        (NOTHING, ALIAS_OFF, None),
        (NOTHING, LAZY, None),
        (NOTHING, &[(LABEL, "p2p"), (NEUTRAL_LABEL, "disabled")], None),
        (
            NOTHING,
            &[(LABEL, "on-demand"), (NEUTRAL_LABEL, "p2p")],
            Some(NEUTRAL_LABEL),
        ),
        (ALIAS, NOTHING, Some(LABEL)),
        (ALIAS, NEUTRAL, Some(NEUTRAL_LABEL)),
        (ALIAS, ALIAS_OFF, None),
        (ALIAS, NEUTRAL_OFF, None),
        (ALIAS, LAZY, None),
        (NEUTRAL, NOTHING, Some(NEUTRAL_LABEL)),
        (NEUTRAL, ALIAS_OFF, None),
        (BOTH, NOTHING, Some(NEUTRAL_LABEL)),
        (LAZY, NOTHING, None),
        (LAZY, ALIAS, Some(LABEL)),
        (&[(LABEL, "p2p"), (NEUTRAL_LABEL, "disabled")], NOTHING, None),
    ];
    let mut namespaces: Vec<(&[(&str, &str)], String)> = Vec::new();
    for (namespace_labels, pod_labels, expected) in cases {
        let known = namespaces.iter().find(|(labels, _)| *labels == namespace_labels);
        let namespace = known.map_or_else(
            || Webhook::shared().namespace(namespace_labels),
            |(_, name)| name.clone(),
        );
        namespaces.push((namespace_labels, namespace.clone()));
        let mut sent = unlabelled_pod(&namespace, &["nginx"], &[]);
        for (label, value) in pod_labels {
            sent["metadata"]["labels"][label] = json!(value);
        }
        let stored = create(&sent);
        let case = format!("a namespace with {namespace_labels:?} and a pod with {pod_labels:?}");
        assert_eq!(is_accelerated(&stored), expected.is_some(), "{case}: {stored:#}");
        for label in [LABEL, NEUTRAL_LABEL] {
            let annotation = &stored["metadata"]["annotations"][label];
            assert_eq!(*annotation == "p2p", expected == Some(label), "{case}: {label}");
        }
    }
    // What nobody here gives a meaning to is told, and what declines is not even asked about.
    let unknown = "piecemeal_webhook_skips_total{reason=\"UnknownMode\"}";
    assert!(Webhook::shared().metric(unknown) > 0.0);
}

#[test]
fn of_a_mixed_pod_the_images_of_accelerated_registries_change_wherever_they_stand() {
    let namespace = Webhook::shared().namespace(&[]);
    create(&pull_secret(&namespace, "team", &[VENDOR]));
    let digest = format!("sha256:{}", "0".repeat(64));
    let (private, by_digest) = (format!("{VENDOR}/a/b:v1"), format!("nginx:1@{digest}"));
    let mut sent = pod(&namespace, &[&private, "quay.io/c/d", &by_digest], &["team"]);
    sent["spec"]["containers"][2]["imagePullPolicy"] = json!("Always");
    sent["spec"]["initContainers"] = json!([
        {"name": "prepare", "image": format!("{PRIVATE}/tools/init:1")},
        {"name": "native-sidecar", "image": "x.corp.example/mesh", "restartPolicy": "Always"},
    ]);
    sent["spec"]["volumes"] = json!([
        {"name": "model", "image": {"reference": "index.docker.io/models/large:2"}},
        {"name": "other", "image": {"reference": "ghcr.io/e/f"}},
        {"name": "empty", "emptyDir": {}},
    ]);

    let stored = create(&sent);

    let expected = [
        &*format!("{PRIVATE_ACCELERATED}/tools/init:1"),
        "x.corp.example.piecemeal.internal:65001/mesh",
        &*format!("{VENDOR_ACCELERATED}/a/b:v1"),
        "quay.io/c/d",
        &*format!("{HUB}/library/nginx:1@{digest}"),
        &*format!("{HUB}/models/large:2"),
        "ghcr.io/e/f",
    ];
    assert_eq!(images(&stored), expected);
    assert_eq!(stored["spec"]["initContainers"][1]["restartPolicy"], "Always");
    let (record, mut without_service_account) = (record(&stored).unwrap(), stored["spec"]["volumes"].clone());
    assert_eq!(record["images"].as_array().unwrap().len(), 5);
    let untouched: Vec<&Value> = record["untouched"]
        .as_array()
        .unwrap()
        .iter()
        .map(|left| &left["image"])
        .collect();
    assert_eq!(untouched, ["quay.io/c/d", "ghcr.io/e/f"]);
    without_service_account.as_array_mut().unwrap().truncate(3);
    assert_eq!(without_service_account[2], json!({"name": "empty", "emptyDir": {}}));
}

#[test]
fn an_image_that_is_never_pulled_keeps_the_name_that_the_node_knows_it_by() {
    let namespace = Webhook::shared().namespace(&[]);
    let mut sent = pod(&namespace, &["nginx", "redis"], &[]);
    sent["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    sent["spec"]["volumes"] =
        json!([{"name": "model", "image": {"reference": "models/large:2", "pullPolicy": "Never"}}]);
    let stored = create(&sent);
    assert_eq!(
        images(&stored),
        ["nginx", &format!("{HUB}/library/redis"), "models/large:2"]
    );
}

#[test]
fn a_deployment_is_accelerated_by_the_label_of_its_template_and_by_no_other() {
    let (api, namespace) = (KubeApi::shared(), Webhook::shared().namespace(&[]));
    create(&pull_secret(&namespace, "team", &[VENDOR]));
    let deployment = |name: &str, labels: Value, template_labels: Value| {
        let mut template_labels = template_labels;
        template_labels["app"] = json!(name);
        let spec = pod(&namespace, &[&format!("{VENDOR}/a/b")], &["team"])["spec"].clone();
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": template_labels}, "spec": spec},
            },
        })
    };
    create(&deployment("inside", json!({}), json!({LABEL: "p2p"})));
    create(&deployment("outside", json!({LABEL: "p2p"}), json!({})));

    let pods = wait_until("there are two pods of each", || {
        Some(api.client().list("Pod", &namespace)).filter(|pods| pods.len() == 4)
    });

    for pod in pods {
        let is_inside = pod["metadata"]["labels"]["app"] == "inside";
        assert_eq!(is_accelerated(&pod), is_inside, "{pod:#}");
    }
    // What the controllers keep stays as it was written: nothing drifts, and nothing is left when the webhook goes.
    for kind in ["Deployment", "ReplicaSet"] {
        for object in api.client().list(kind, &namespace) {
            let image = &object["spec"]["template"]["spec"]["containers"][0]["image"];
            assert_eq!(*image, format!("{VENDOR}/a/b"), "{kind}");
        }
    }
    let event = wait_until("the ReplicaSet is told", || {
        let mut events = api.client().list("Event", &namespace).into_iter();
        events.find(|event| event["reason"] == "Accelerated")
    });
    assert_eq!(event["involvedObject"]["kind"], "ReplicaSet");
    assert!(event["involvedObject"]["name"].as_str().unwrap().starts_with("inside-"));
}

#[test]
fn who_asks_for_acceleration_in_vain_finds_the_reason_at_the_replica_set() {
    let (api, namespace) = (KubeApi::shared(), Webhook::shared().namespace(&[]));
    let spec = pod(&namespace, &[&format!("{VENDOR}/a/b")], &["missing"])["spec"].clone();
    create(&json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "app", "namespace": namespace},
        "spec": {
            "replicas": 3, "selector": {"matchLabels": {"app": "app"}},
            "template": {"metadata": {"labels": {"app": "app", LABEL: "p2p"}}, "spec": spec},
        },
    }));
    let told = |api: &KubeApi| {
        let events = api.client().list("Event", &namespace).into_iter();
        events
            .filter(|event| event["reason"] == "AccelerationSkipped")
            .collect::<Vec<Value>>()
    };
    wait_until("the ReplicaSet is told", || (!told(api).is_empty()).then_some(()));
    wait_until("there are three pods", || {
        (api.client().list("Pod", &namespace).len() == 3).then_some(())
    });
    let events = told(api);
    assert_eq!(events.len(), 1, "three pods, one message");
    assert!(
        events[0]["message"].as_str().unwrap().starts_with("NoPullSecret: "),
        "{events:?}"
    );
    assert_eq!(
        (&events[0]["type"], &events[0]["involvedObject"]["name"]),
        (&json!("Warning"), &json!("app"))
    );
}

#[test]
fn pods_that_are_there_stay_as_they_are() {
    let (api, namespace) = (KubeApi::shared(), Webhook::shared().namespace(&[]));
    let mut sent = unlabelled_pod(&namespace, &["nginx"], &[]);
    sent["metadata"]["name"] = json!("early");
    create(&sent);
    let label = json!({"metadata": {"labels": {LABEL: "p2p"}}});
    api.client().patch("Namespace", "", &namespace, &label).unwrap();
    wait_until("new pods of the namespace are accelerated", || {
        let rehearsed = api
            .client()
            .dry_run_create(&unlabelled_pod(&namespace, &["nginx"], &[]))
            .unwrap();
        is_accelerated(&rehearsed).then_some(())
    });
    api.client().patch("Pod", &namespace, "early", &label).unwrap();
    let mut stored = api.client().get("Pod", &namespace, "early").unwrap();
    stored["metadata"]["annotations"] = Value::Null;
    assert_untouched(&sent, &stored, "a pod that was there before the label");
}

#[test]
fn nothing_is_injected_when_there_is_no_reason_to() {
    let (webhook, namespace) = (Webhook::shared(), Webhook::shared().namespace(&[]));
    let vendor = format!("{VENDOR}/a/b:1");
    create(&opaque_secret(&namespace, "opaque", &[VENDOR]));
    create(&pull_secret(
        &namespace,
        "other",
        &["quay.io", "test-registry-vpc.cn-beijing.cr.aliyuncs.com"],
    ));
    create(&pull_secret(&namespace, "path", &[&format!("{VENDOR}/other")]));
    create(&pull_secret(&namespace, "port", &[&format!("{VENDOR}:443")]));
    let cases: [(&str, &[&str], &[&str], &str); 13] = [
        (
            "no accelerated registry",
            &["quay.io/a/b", "ghcr.io/c"],
            &["other"],
            "NoAcceleratedImage",
        ),
        (
            "a registry that only looks like ours",
            &["xcorp.example/a", "reg.example.com/a"],
            &[],
            "NoAcceleratedImage",
        ),
        ("an image's id", &[&"a".repeat(64)], &[], "NoAcceleratedImage"),
        (
            "what is no image",
            &["NGINX", "docker.io/", "nginx:"],
            &[],
            "NoAcceleratedImage",
        ),
        ("no pull secret at all", &[&vendor], &[], "NoPullSecret"),
        (
            "a pull secret that is not there",
            &[&vendor],
            &["missing"],
            "NoPullSecret",
        ),
        ("a secret of another type", &[&vendor], &["opaque"], "NoPullSecret"),
        ("a pull secret for others", &[&vendor], &["other"], "NoPullSecret"),
        ("a pull secret for another path", &[&vendor], &["path"], "NoPullSecret"),
        ("a pull secret for another port", &[&vendor], &["port"], "NoPullSecret"),
        (
            "names that are none",
            &[&vendor],
            &["../configmaps/kube-root-ca.crt", "..", "a/../b", "x?y=z", "%2e%2e"],
            "NoPullSecret",
        ),
        ("a name that is empty", &[&vendor], &[""], "NoPullSecret"),
        (
            "what is accelerated already",
            &[&format!("{HUB}/library/nginx:1")],
            &[],
            "AlreadyAccelerated",
        ),
    ];
    for (case, images, secrets, reason) in cases {
        let sample = format!("piecemeal_webhook_skips_total{{reason=\"{reason}\"}}");
        let before = webhook.metric(&sample);
        let sent = pod(&namespace, images, secrets);
        assert_untouched(&sent, &create(&sent), case);
        assert!(webhook.metric(&sample) > before, "{case}: {reason}");
    }
    let secrets = KubeApi::shared().client().list("Secret", &namespace);
    assert_eq!(secrets.len(), 4, "{secrets:#?}");
}

#[test]
fn pods_of_excluded_namespaces_are_left_alone_even_when_the_api_server_asks() {
    let webhook = Webhook::shared();
    for namespace in ["kube-system", &*webhook.namespace] {
        let sent = pod(namespace, &["nginx"], &[]);
        assert_untouched(&sent, &create(&sent), namespace);
    }
    for namespace in ["kube-system", "kube-public", "kube-node-lease", &webhook.namespace] {
        let (status, answer) = webhook.post("/mutate/pod", review(&pod(namespace, &["nginx"], &[])));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(
            (status, &answer["response"]),
            (200, &json!({"uid": "u", "allowed": true})),
            "{namespace}"
        );
    }
}

#[test]
fn a_dry_run_shows_the_change_and_leaves_nothing_behind() {
    let (api, webhook) = (KubeApi::shared(), Webhook::shared());
    let namespace = webhook.namespace(&[]);
    create(&pull_secret(&namespace, "team", &["*.corp.example"]));
    let mut sent = pod(&namespace, &["rehearsed.corp.example/a"], &["team"]);
    sent["metadata"]["name"] = json!("rehearsed");
    let file = api.folder("rehearsal").join("pod.json");
    std::fs::write(&file, sent.to_string()).unwrap();

    let mut kubectl = api
        .admin()
        .kubectl(&["create", "--dry-run=server", "--output=json", "--filename"]);
    let shown = CommandOutcome::of(kubectl.arg(&file), Instant::now()).expect_ok();

    let shown: Value = serde_json::from_str(&shown.output).unwrap();
    assert_eq!(images(&shown), ["rehearsed.corp.example.piecemeal.internal:65001/a"]);
    assert_eq!(pull_secrets(&shown), ["team", "acr-credential-team-p2p"]);
    assert_eq!(api.client().get("Pod", &namespace, "rehearsed"), None);
    assert_eq!(api.client().list("Secret", &namespace).len(), 1);
    // One that is meant to stay comes later, and its host is recorded when the other's would have been.
    create(&pod(&namespace, &["real.corp.example/a"], &["team"]));
    wait_until("the real host is recorded", || {
        hosts(webhook).contains("real.corp.example").then_some(())
    });
    assert!(!hosts(webhook).contains("rehearsed.corp.example"));
}

#[test]
fn registries_that_were_met_are_recorded_for_the_nodes() {
    let (api, webhook) = (KubeApi::shared(), Webhook::shared());
    let namespace = webhook.namespace(&[]);
    create(&pod(
        &namespace,
        &["b.corp.example/x", "a.corp.example/x", "quay.io/x"],
        &[],
    ));
    let met = wait_until("both are recorded", || {
        let hosts = hosts(webhook);
        (hosts.contains("b.corp.example") && hosts.contains("a.corp.example")).then_some(hosts)
    });
    // Without having been met, since they have a name in the settings.
    assert!(met.contains("docker.io") && met.contains(PRIVATE), "{met:?}");
    assert!(!met.contains("quay.io"), "{met:?}");
    let config_map = api
        .client()
        .get("ConfigMap", &webhook.namespace, "piecemeal-hosts")
        .unwrap();
    let lines: Vec<&str> = config_map["data"]["hosts"].as_str().unwrap().lines().collect();
    assert!(lines.is_sorted(), "{lines:?}");
}

#[test]
fn the_pull_secrets_that_are_for_an_image_are_copied_in_order_and_no_others() {
    let (api, namespace) = (KubeApi::shared(), Webhook::shared().namespace(&[]));
    let hangzhou = "*.cn-hangzhou.cr.aliyuncs.com";
    let team = format!("{VENDOR}/team");
    for secret in [
        pull_secret(&namespace, "other", &["quay.io"]),
        pull_secret(&namespace, "mine", &[VENDOR, "quay.io"]),
        old_pull_secret(&namespace, "old", &[VENDOR]),
        pull_secret(&namespace, "glob", &[hangzhou]),
        pull_secret(&namespace, "path", &[&team]),
        pull_secret(&namespace, "odd", &[&format!("https://{VENDOR}/v2/")]),
        pull_secret(&namespace, "hub", &["https://index.docker.io/v1/"]),
    ] {
        create(&secret);
    }
    let (image, other) = (format!("{VENDOR}/team/a"), format!("{VENDOR}/others/a"));
    let cases: [(&[&str], &[&str], &[&str]); 8] = [
        (&[&image], &["mine"], &["mine"]),
        (&[&image], &["old"], &["old"]),
        (&[&image], &["glob"], &["glob"]),
        (&[&image], &["path"], &["path"]),
        (&[&image], &["odd"], &["odd"]),
        (
            &[&image],
            &["other", "odd", "mine", "missing", "glob"],
            &["odd", "mine", "glob"],
        ),
        (&[&other], &["path", "old"], &["old"]),
        (&[&image, "nginx"], &["hub", "mine"], &["hub", "mine"]),
    ];
    for (images, secrets, copied) in cases {
        let stored = create(&pod(&namespace, images, secrets));
        let copies = copied.iter().map(|name| format!("acr-credential-{name}-p2p"));
        let expected: Vec<String> = secrets.iter().map(|name| (*name).to_owned()).chain(copies).collect();
        assert_eq!(pull_secrets(&stored), expected, "{images:?}");
    }
    let expected = [
        ("mine", json!({VENDOR_ACCELERATED: entry(VENDOR)})),
        ("old", json!({VENDOR_ACCELERATED: entry(VENDOR)})),
        ("glob", json!({VENDOR_ACCELERATED: entry(hangzhou)})),
        ("path", json!({format!("{VENDOR_ACCELERATED}/team"): entry(&team)})),
        (
            "odd",
            json!({VENDOR_ACCELERATED: entry(&format!("https://{VENDOR}/v2/"))}),
        ),
        ("hub", json!({HUB: entry("https://index.docker.io/v1/")})),
    ];
    for (name, entries) in expected {
        let copy = api
            .client()
            .get("Secret", &namespace, &format!("acr-credential-{name}-p2p"))
            .unwrap();
        let source = api.client().get("Secret", &namespace, name).unwrap();
        assert_eq!((auths(&copy), &copy["type"]), (entries, &source["type"]), "{name}");
    }
    assert_eq!(api.client().get("Secret", &namespace, "acr-credential-other-p2p"), None);
}

#[test]
fn of_a_private_pod_the_image_that_no_secret_is_for_stays() {
    let namespace = Webhook::shared().namespace(&[]);
    create(&pull_secret(&namespace, "team", &[&format!("{VENDOR}/team")]));
    let (mine, other) = (format!("{VENDOR}/team/a"), format!("{VENDOR}/others/a"));
    let stored = create(&pod(&namespace, &[&mine, &other], &["team"]));
    assert_eq!(images(&stored), [format!("{VENDOR_ACCELERATED}/team/a"), other]);
}

#[test]
fn the_pull_secrets_of_a_service_account_count_as_the_pod_s_own() {
    let (api, namespace) = (KubeApi::shared(), Webhook::shared().namespace(&[]));
    let listed = |name: &str| json!({"imagePullSecrets": [{"name": name}]});
    for name in ["of-default", "of-builder", "of-pod"] {
        create(&pull_secret(&namespace, name, &[VENDOR]));
    }
    api.service_account(&namespace, "builder");
    api.client()
        .patch("ServiceAccount", &namespace, "default", &listed("of-default"))
        .unwrap();
    api.client()
        .patch("ServiceAccount", &namespace, "builder", &listed("of-builder"))
        .unwrap();
    let image = format!("{VENDOR}/a/b");
    let with_account = |account: &str, secrets: &[&str]| {
        let mut pod = pod(&namespace, &[&image], secrets);
        pod["spec"]["serviceAccountName"] = json!(account);
        pod
    };
    // The API server's plugin knows of the accounts by a watch.
    wait_until("pods get their accounts' secrets", || {
        let rehearsed = ["default", "builder"].map(|account| api.client().dry_run_create(&with_account(account, &[])));
        rehearsed
            .iter()
            .all(|pod| !pull_secrets(pod.as_ref().unwrap()).is_empty())
            .then_some(())
    });
    let cases: [(&str, &[&str], &str); 3] = [
        ("default", &[], "of-default"),
        ("builder", &[], "of-builder"),
        ("builder", &["of-pod"], "of-pod"),
    ];
    for (account, secrets, expected) in cases {
        let stored = create(&with_account(account, secrets));
        assert_eq!(
            pull_secrets(&stored),
            [expected.to_owned(), format!("acr-credential-{expected}-p2p")],
            "{account} {secrets:?}"
        );
    }
    for account in ["default", "builder"] {
        let account = api.client().get("ServiceAccount", &namespace, account).unwrap();
        assert_eq!(account["imagePullSecrets"].as_array().unwrap().len(), 1, "{account:#}");
    }
}

#[test]
fn where_nobody_copies_a_service_account_s_secrets_into_pods_the_webhook_does() {
    let options = support::KubeOptions {
        apiserver_flags: vec!["--disable-admission-plugins=ServiceAccount".to_owned()],
        controllers: false,
        ..support::KubeOptions::default()
    };
    let api = KubeApi::start(&options);
    let webhook = Webhook::start(&api, &support::REGISTRIES);
    let namespace = webhook.namespace(&[]);
    api.client()
        .create(&pull_secret(&namespace, "team", &[VENDOR]))
        .unwrap();
    let listed = json!({"imagePullSecrets": [{"name": "team"}]});
    api.client()
        .patch("ServiceAccount", &namespace, "default", &listed)
        .unwrap();
    let stored = api
        .client()
        .create(&pod(&namespace, &[&format!("{VENDOR}/a/b")], &[]))
        .unwrap();
    assert_eq!(pull_secrets(&stored), ["team", "acr-credential-team-p2p"], "{stored:#}");
}

#[test]
fn whether_an_image_needs_a_pull_secret_is_a_setting() {
    let vendor = format!("{VENDOR}/a/b");
    // The setting; whether the vendor's image, and whether a public one, is accelerated without a secret.
    for (setting, vendor_s, public) in [("true", false, false), ("false", true, true), ("auto", false, true)] {
        let arguments = [&["--require-pull-secret", setting][..], &support::REGISTRIES].concat();
        let webhook = Webhook::start(KubeApi::shared(), &arguments);
        let namespace = webhook.namespace(&[]);
        for (image, expected) in [(&*vendor, vendor_s), ("nginx", public)] {
            let stored = create(&pod(&namespace, &[image], &[]));
            assert_eq!(
                is_accelerated(&stored),
                expected,
                "--require-pull-secret {setting}: {image}"
            );
        }
    }
}

#[test]
fn a_container_that_another_webhook_adds_later_is_accelerated_too() {
    for keep_unrelated in ["false", "true"] {
        let arguments = [&["--keep-unrelated", keep_unrelated][..], &support::REGISTRIES].concat();
        let webhook = Webhook::start(KubeApi::shared(), &arguments);
        let namespace = webhook.namespace(&[]);
        let (image, injected) = (format!("{VENDOR}/a/b"), format!("{VENDOR}/mesh/proxy:1"));
        Injector::start(KubeApi::shared(), &format!("zz-{namespace}"), &namespace, &injected);
        create(&pull_secret(&namespace, "team", &[VENDOR, "quay.io"]));
        let sent = pod(&namespace, &[&image], &["team"]);
        let stored = wait_until("the API server knows the other webhook", || {
            let rehearsed = KubeApi::shared().client().dry_run_create(&sent).unwrap();
            (images(&rehearsed).len() == 2).then(|| create(&sent))
        });
        assert_eq!(
            images(&stored),
            [
                format!("{VENDOR_ACCELERATED}/a/b"),
                format!("{VENDOR_ACCELERATED}/mesh/proxy:1")
            ]
        );
        assert_eq!(
            pull_secrets(&stored),
            ["team", "acr-credential-team-p2p"],
            "with unrelated: {keep_unrelated}"
        );
        let record = record(&stored).unwrap();
        assert_eq!(record["images"].as_array().unwrap().len(), 2, "{record:#}");
        assert_eq!(record["secrets"], json!({"team": "acr-credential-team-p2p"}));
    }
}

#[test]
fn a_pod_that_is_created_again_as_it_was_stored_does_not_change_again() {
    let namespace = Webhook::shared().namespace(&[]);
    create(&pull_secret(&namespace, "team", &[VENDOR]));
    let image = format!("{VENDOR}/a/b");
    let first = create(&pod(&namespace, &[&image, "nginx", "quay.io/x"], &["team"]));
    let mut again = first.clone();
    again["metadata"] = json!({
        "generateName": "again-", "namespace": namespace,
        "labels": first["metadata"]["labels"], "annotations": first["metadata"]["annotations"],
    });
    again["status"] = Value::Null;
    let second = create(&again);
    for pointer in ["/spec", "/metadata/annotations", "/metadata/labels"] {
        assert_eq!(second.pointer(pointer), first.pointer(pointer), "{pointer}");
    }
}

#[test]
fn a_pod_that_is_moved_as_it_was_stored_finds_its_copy_where_it_comes_to() {
    let webhook = Webhook::shared();
    let (from, to) = (webhook.namespace(&[]), webhook.namespace(&[]));
    for namespace in [&from, &to] {
        create(&pull_secret(namespace, "team", &[VENDOR]));
    }
    let first = create(&pod(&from, &[&format!("{VENDOR}/a/b")], &["team"]));
    let mut moved = pod(&to, &[&images(&first)[0]], &["team", "acr-credential-team-p2p"]);
    moved["metadata"]["annotations"] = first["metadata"]["annotations"].clone();
    let second = create(&moved);
    assert_eq!(images(&second), images(&first));
    assert_eq!(pull_secrets(&second), pull_secrets(&first));
    let copy = KubeApi::shared().client().get("Secret", &to, "acr-credential-team-p2p");
    assert_eq!(auths(&copy.unwrap()), json!({VENDOR_ACCELERATED: entry(VENDOR)}));
}

#[test]
fn a_pod_whose_annotations_are_full_is_created_all_the_same() {
    let namespace = Webhook::shared().namespace(&[]);
    let mut sent = pod(&namespace, &["nginx"], &[]);
    // All annotations together may be 256 KiB.
    sent["metadata"]["annotations"] = json!({"tests.dev/large": "x".repeat(256 * 1024 - 100)});
    assert_untouched(&sent, &create(&sent), "there is no room for a record");
}

#[test]
fn no_log_has_a_secret_s_content_however_much_is_logged() {
    let options = WebhookOptions {
        arguments: &support::REGISTRIES,
        log: "trace",
        ..WebhookOptions::default()
    };
    let webhook = Webhook::start_with(KubeApi::shared(), &options);
    let namespace = webhook.namespace(&[]);
    let client = KubeApi::shared().client();
    create(&pull_secret(&namespace, "team", &[VENDOR]));
    create(&opaque_secret(&namespace, "opaque", &[VENDOR]));
    create(&pod(&namespace, &[&format!("{VENDOR}/a/b")], &["team", "opaque"]));
    let copy = client.get("Secret", &namespace, "acr-credential-team-p2p").unwrap();
    // Kept up with, as well as made.
    let edited = json!({"metadata": {"labels": {"edited": "true"}}, "data": {"more": "eA=="}});
    client
        .patch("Secret", &namespace, "acr-credential-team-p2p", &edited)
        .unwrap();
    wait_until("the copy is restored", || {
        let copy = client.get("Secret", &namespace, "acr-credential-team-p2p")?;
        copy["data"]["more"].is_null().then_some(())
    });
    let log = webhook.replicas[0].process.log_text();
    assert!(log.contains("TRACE") && log.len() > 10_000, "{} bytes", log.len());
    let auth = entry(VENDOR)["auth"].as_str().unwrap().to_owned();
    let content = copy["data"][".dockerconfigjson"].as_str().unwrap();
    for text in [PASSWORD, &auth, &content[..40], webhook.token()] {
        assert!(!log.contains(text), "the log has {text}");
    }
}

#[test]
fn what_is_no_question_is_refused_and_the_next_one_is_answered() {
    let webhook = Webhook::shared();
    let namespace = webhook.namespace(&[]);
    let good = review(&pod(&namespace, &["nginx"], &[]));
    let mut old: Value = serde_json::from_slice(&good).unwrap();
    old["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let deep = "[".repeat(100_000).into_bytes();
    let large = vec![b' '; 4 * 1024 * 1024 + 1];
    let cases: [(&str, &str, Vec<u8>, u16); 10] = [
        ("nothing", "/mutate/pod", Vec::new(), 400),
        ("no JSON", "/mutate/pod", b"\xff\xfe\x00".to_vec(), 400),
        ("half of it", "/mutate/pod", good[..good.len() / 2].to_vec(), 400),
        ("JSON of no review", "/mutate/pod", b"[1, 2, 3]".to_vec(), 400),
        ("an older review", "/mutate/pod", old.to_string().into_bytes(), 400),
        ("a deep one", "/mutate/pod", deep, 400),
        ("more than 4 MiB", "/mutate/pod", large, 413),
        ("another path", "/mutate", good.clone(), 404),
        (
            "a label that is none",
            "/mutate/namespace/tests.dev/mode",
            good.clone(),
            404,
        ),
        ("a good one", "/mutate/pod", good.clone(), 200),
    ];
    for (case, path, body, expected) in cases {
        let (status, text) = webhook.post(path, body);
        // Whoever still sends when the answer is there may not hear it.
        assert!(
            status == expected || (status, expected) == (0, 413),
            "{case}: {status} {text}"
        );
    }
}

#[test]
fn a_question_about_anything_but_a_new_pod_is_answered_with_yes_and_no_change() {
    let webhook = Webhook::shared();
    let namespace = webhook.namespace(&[]);
    let good: Value = serde_json::from_slice(&review(&pod(&namespace, &["nginx"], &[]))).unwrap();
    let cases = [
        ("/request/operation", json!("UPDATE")),
        ("/request/operation", json!("CONNECT")),
        ("/request/resource/resource", json!("deployments")),
        ("/request/resource/group", json!("apps")),
        ("/request/subResource", json!("ephemeralcontainers")),
        ("/request/object", json!([])),
        ("/request/object", Value::Null),
        ("/request/object/spec", json!("text")),
        ("/request/object/spec/containers", json!({"a": 1})),
        ("/request/object/spec/containers/0/image", json!(7)),
        ("/request/object/metadata/labels", json!([1])),
        ("/request/object/metadata/labels", json!({LABEL: "on-demand"})),
        ("/request/object/metadata/labels", json!({LABEL: "disabled"})),
        ("/request/namespace", json!("../kube-system")),
    ];
    for (pointer, value) in cases {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).unwrap() = value.clone();
        let (status, answer) = webhook.post("/mutate/pod", changed.to_string().into_bytes());
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(
            (status, &answer["response"]),
            (200, &json!({"uid": "u", "allowed": true})),
            "{pointer} = {value}"
        );
    }
    for reason in ["UnknownMode", "Disabled", "NotAPod"] {
        let sample = format!("piecemeal_webhook_skips_total{{reason=\"{reason}\"}}");
        assert!(webhook.metric(&sample) > 0.0, "{reason}");
    }
}

fn create(object: &Value) -> Value {
    let created = KubeApi::shared().client().create(object);
    created.unwrap_or_else(|error| panic!("creating {object:#}: {error}"))
}

/// What the API server sends when `pod` is created.
fn review(pod: &Value) -> Vec<u8> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "operation": "CREATE", "namespace": pod["metadata"]["namespace"], "dryRun": true, "subResource": "",
            "resource": {"group": "", "version": "v1", "resource": "pods"}, "object": pod,
        },
    });
    review.to_string().into_bytes()
}

fn hosts(webhook: &Webhook<'_>) -> BTreeSet<String> {
    let config_map = KubeApi::shared()
        .client()
        .get("ConfigMap", &webhook.namespace, "piecemeal-hosts");
    let text = config_map.and_then(|config_map| config_map["data"]["hosts"].as_str().map(str::to_owned));
    text.unwrap_or_default().lines().map(str::to_owned).collect()
}
