//! Copies of pull secrets at a real API server: they are there when the pod is, follow their sources, and go when no pod needs
//! them.

mod support;

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{
    KubeApi, REGISTRIES, Webhook, WebhookOptions,
    pods::{VENDOR, VENDOR_ACCELERATED, auths, entry, is_accelerated, pod, pull_secret, pull_secrets, unlabelled_pod},
    wait_until,
};

const COPY: &str = "acr-credential-team-p2p";
const MINE: &str = "acr-credential-mine-p2p";

#[test]
fn a_foreign_secret_of_the_copy_s_name_stays_and_the_copy_gets_another_name() {
    let (api, namespace) = (KubeApi::shared(), Webhook::shared().namespace(&[]));
    create(&pull_secret(&namespace, "team", &[VENDOR]));
    let foreign = create(&pull_secret(&namespace, COPY, &["quay.io"]));

    let first = create(&pod(&namespace, &[&image()], &["team"]));
    let second = create(&pod(&namespace, &[&image()], &["team"]));

    let names = pull_secrets(&first);
    let (other, ours) = (
        names[1].clone(),
        names.len() == 2 && names[1].starts_with("acr-credential-team-p2p-"),
    );
    assert!(ours, "{names:?}");
    assert_eq!(pull_secrets(&second), names);
    assert_eq!(
        auths(&get(&namespace, &other)),
        json!({VENDOR_ACCELERATED: entry(VENDOR)})
    );
    assert_eq!(get(&namespace, COPY), foreign);
    assert!(Webhook::shared().metric("piecemeal_webhook_secret_writes_total{result=\"conflict\"}") > 0.0);

    // Pods know the copy by the name that it got, and it follows its source when the usual one is free again.
    api.client().delete("Secret", &namespace, COPY).unwrap();
    change_source(&namespace, &["*.cn-hangzhou.cr.aliyuncs.com"]);
    wait_until("the copy follows", || {
        let entries = auths(&get(&namespace, &other));
        (entries == json!({VENDOR_ACCELERATED: entry("*.cn-hangzhou.cr.aliyuncs.com")})).then_some(())
    });
}

#[test]
fn of_many_pods_at_once_no_registry_is_lost_whichever_replica_answers() {
    let options = WebhookOptions {
        arguments: &REGISTRIES,
        replicas: 2,
        ..WebhookOptions::default()
    };
    let webhook = Webhook::start_with(KubeApi::shared(), &options);
    let namespace = webhook.namespace(&[]);
    create(&pull_secret(&namespace, "team", &["*.corp.example"]));
    let registries: Vec<String> = (0..PODS_AT_ONCE)
        .map(|number| format!("r{number}.corp.example"))
        .collect();

    let stored: Vec<Value> = thread::scope(|scope| {
        let creating: Vec<_> = registries
            .iter()
            .map(|registry| pod(&namespace, &[&format!("{registry}/a")], &["team"]))
            .map(|pod| scope.spawn(move || create(&pod)))
            .collect();
        creating.into_iter().map(|pod| pod.join().unwrap()).collect()
    });

    for pod in &stored {
        assert_eq!(
            pull_secrets(pod),
            ["team", COPY],
            "{}",
            pod["spec"]["containers"][0]["image"]
        );
    }
    let entries = auths(&get(&namespace, COPY));
    let expected: BTreeSet<String> = registries
        .iter()
        .map(|registry| format!("{registry}.piecemeal.internal:65001"))
        .collect();
    let found: BTreeSet<String> = entries.as_object().unwrap().keys().cloned().collect();
    assert_eq!(found, expected);
}

#[test]
fn a_copy_follows_its_source_and_is_restored_after_an_edit_or_a_deletion() {
    let (api, namespace) = (KubeApi::shared(), Webhook::shared().namespace(&[]));
    create(&pull_secret(&namespace, "team", &[VENDOR]));
    create(&pod(&namespace, &[&image()], &["team"]));
    let copy = get(&namespace, COPY);
    let owner = &copy["metadata"]["ownerReferences"][0];
    assert_eq!(owner["uid"], get(&namespace, "team")["metadata"]["uid"]);

    let glob = "*.cn-hangzhou.cr.aliyuncs.com";
    let began = Instant::now();
    change_source(&namespace, &[glob]);
    wait_for_copy(&namespace, &json!({VENDOR_ACCELERATED: entry(glob)}));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

    let edits = [
        json!({"data": {".dockerconfigjson": pull_secret("", "", &["evil.example"])["data"][".dockerconfigjson"]}}),
        json!({"data": {"more": "eA=="}}),
        json!({"metadata": {"annotations": {"piecemeal.dev/copy-registries": ""}}}),
        json!({"metadata": {"annotations": {"piecemeal.dev/copy-hash": null}}}),
        json!({"metadata": {"ownerReferences": null}}),
    ];
    for edit in edits {
        api.client().patch("Secret", &namespace, COPY, &edit).unwrap();
        wait_until("the copy is what it was", || {
            let there = get(&namespace, COPY);
            let is_whole = there["metadata"]["ownerReferences"][0]["uid"] == owner["uid"]
                && there["metadata"]["annotations"]["piecemeal.dev/copy-registries"]
                    .as_str()
                    .is_some_and(|registries| registries.contains(VENDOR))
                && there["metadata"]["annotations"]["piecemeal.dev/copy-hash"].is_string()
                && there["data"].as_object().unwrap().len() == 1;
            (is_whole && auths(&there) == json!({VENDOR_ACCELERATED: entry(glob)})).then_some(())
        });
    }

    api.client().delete("Secret", &namespace, COPY).unwrap();
    wait_for_copy(&namespace, &json!({VENDOR_ACCELERATED: entry(glob)}));
}

#[test]
fn a_copy_that_was_made_immutable_is_replaced() {
    let (api, namespace) = (KubeApi::shared(), Webhook::shared().namespace(&[]));
    create(&pull_secret(&namespace, "team", &[VENDOR]));
    create(&pod(&namespace, &[&image()], &["team"]));
    api.client()
        .patch("Secret", &namespace, COPY, &json!({"immutable": true}))
        .unwrap();
    change_source(&namespace, &["*.cn-hangzhou.cr.aliyuncs.com"]);
    wait_for_copy(
        &namespace,
        &json!({VENDOR_ACCELERATED: entry("*.cn-hangzhou.cr.aliyuncs.com")}),
    );
}

#[test]
fn a_copy_goes_with_its_source_and_comes_back_with_it_for_the_pods_that_are_there() {
    let (api, namespace) = (KubeApi::shared(), Webhook::shared().namespace(&[]));
    create(&pull_secret(&namespace, "team", &[VENDOR]));
    create(&pod(&namespace, &[&image()], &["team"]));
    let first = get(&namespace, COPY);

    api.client().delete("Secret", &namespace, "team").unwrap();
    wait_until("the copy is collected", || {
        api.client().get("Secret", &namespace, COPY).is_none().then_some(())
    });

    create(&pull_secret(&namespace, "team", &[VENDOR]));
    let second = wait_until("the copy is back", || api.client().get("Secret", &namespace, COPY));
    assert_ne!(second["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(
        second["metadata"]["ownerReferences"][0]["uid"],
        get(&namespace, "team")["metadata"]["uid"]
    );
}

#[test]
fn a_copy_whose_source_is_for_no_accelerated_registry_any_more_goes() {
    let (api, namespace) = (KubeApi::shared(), Webhook::shared().namespace(&[]));
    create(&pull_secret(&namespace, "team", &[VENDOR]));
    create(&pod(&namespace, &[&image()], &["team"]));
    change_source(&namespace, &["quay.io"]);
    wait_until("the copy is gone", || {
        api.client().get("Secret", &namespace, COPY).is_none().then_some(())
    });
}

#[test]
fn a_new_leader_catches_up_with_changes_that_no_leader_saw() {
    // Its own API server: at the shared one the others reconcile these copies too.
    let api = KubeApi::start(&support::KubeOptions::default());
    let mut webhook = Webhook::start(&api, &REGISTRIES);
    let (followed, missed) = (webhook.namespace(&[]), webhook.namespace(&[]));
    for namespace in [&followed, &missed] {
        api.client().create(&pull_secret(namespace, "team", &[VENDOR])).unwrap();
        api.client().create(&pod(namespace, &[&image()], &["team"])).unwrap();
    }
    webhook.replicas[0].process.terminate();
    let changed = pull_secret(&followed, "team", &["*.cn-hangzhou.cr.aliyuncs.com"]);
    api.client().apply(&changed).unwrap();
    api.client().delete("Secret", &missed, "team").unwrap();
    wait_until("the copy is collected", || {
        api.client().get("Secret", &missed, COPY).is_none().then_some(())
    });
    webhook.replicas[0].process.start_again();
    webhook.replicas[0].wait_until_ready();
    webhook.wait_for_leader();
    api.client().create(&pull_secret(&missed, "team", &[VENDOR])).unwrap();
    for (namespace, user) in [(&followed, "*.cn-hangzhou.cr.aliyuncs.com"), (&missed, VENDOR)] {
        wait_until("the copy is as it should be", || {
            let copy = api.client().get("Secret", namespace, COPY)?;
            (auths(&copy) == json!({VENDOR_ACCELERATED: entry(user)})).then_some(())
        });
    }
}

#[test]
fn a_copy_that_no_pod_names_goes_after_its_time_and_not_before() {
    let api = KubeApi::start(&support::KubeOptions::default());
    let arguments = [&["--secrets-keep", "2s"][..], &REGISTRIES].concat();
    let webhook = Webhook::start(&api, &arguments);
    let (used, unused) = (webhook.namespace(&[]), webhook.namespace(&[]));
    for namespace in [&used, &unused] {
        api.client().create(&pull_secret(namespace, "team", &[VENDOR])).unwrap();
        let mut pod = pod(namespace, &[&image()], &["team"]);
        pod["metadata"]["name"] = json!("app");
        api.client().create(&pod).unwrap();
    }
    // Twice the time, and nothing is gone.
    thread::sleep(Duration::from_secs(5));
    for namespace in [&used, &unused] {
        assert!(api.client().get("Secret", namespace, COPY).is_some());
    }

    api.client().delete("Pod", &unused, "app").unwrap();
    let deleted = Instant::now();
    wait_until("the copy is gone", || {
        api.client().get("Secret", &unused, COPY).is_none().then_some(())
    });

    let stayed = deleted.elapsed();
    assert!(stayed >= Duration::from_secs(2), "{stayed:?}");
    assert!(api.client().get("Secret", &used, COPY).is_some(), "a pod names it");
    assert!(
        api.client().get("Secret", &unused, "team").is_some(),
        "the webhook deletes no source"
    );
    // A pod needs it again.
    let stored = api.client().create(&pod(&unused, &[&image()], &["team"])).unwrap();
    assert!(is_accelerated(&stored));
    assert!(api.client().get("Secret", &unused, COPY).is_some());
}

#[test]
fn forged_objects_in_one_namespace_reveal_no_credentials_of_another() {
    let (api, webhook) = (KubeApi::shared(), Webhook::shared());
    let (own, victim) = (webhook.namespace(&[]), webhook.namespace(&[]));
    create(&pull_secret(&victim, "team", &[VENDOR]));
    create(&pull_secret(
        &own,
        "mine",
        &["test-registry-vpc.cn-beijing.cr.aliyuncs.com"],
    ));
    let beijing = "test-registry-vpc.cn-beijing.cr.aliyuncs.com/a/b";
    // With a copy, so that the namespace is reconciled.
    create(&pod(&own, &[beijing], &["mine"]));
    for source in [
        format!("../../{victim}/secrets/team"),
        format!("..%2F..%2F{victim}%2Fsecrets%2Fteam"),
        format!("x/../../../{victim}/secrets/team?x=y"),
    ] {
        let record = json!({
            "images": [{"container": "c0", "original": image(), "image": "x"}], "secrets": {source.clone(): "stolen"},
        });
        let mut thief = unlabelled_pod(&own, &["quay.io/x"], &["stolen"]);
        thief["metadata"]["annotations"] = json!({"k8s.aliyun.com/p2p-config": record.to_string()});
        create(&thief);
        let mut forged = pull_secret(&own, "acr-credential-forged-p2p", &[VENDOR_ACCELERATED]);
        forged["metadata"]["labels"] =
            json!({"app.kubernetes.io/managed-by": "piecemeal-webhook", "piecemeal.dev/copy": "true"});
        forged["metadata"]["annotations"] =
            json!({"piecemeal.dev/copy-of": source, "piecemeal.dev/copy-registries": VENDOR});
        let record = json!({
            "images": [{"container": "c0", "original": image(), "image": "x"}],
            "secrets": {source.clone(): "acr-credential-forged-p2p"},
        });
        thief["metadata"]["annotations"] = json!({"k8s.aliyun.com/p2p-config": record.to_string()});
        create(&thief);
        api.client().apply(&forged).unwrap();
        // The reconciler has looked when it has noticed what came after.
        for round in 0..2 {
            let before = auths(&get(&own, MINE));
            change_secret(&own, "mine", &[&format!("{beijing}{}{round}", source.len())]);
            wait_until("the reconciler has looked", || {
                (auths(&get(&own, MINE)) != before).then_some(())
            });
        }
        for secret in api.client().list("Secret", &own) {
            let has_it =
                !auths(&secret)[VENDOR_ACCELERATED].is_null() && auths(&secret)[VENDOR_ACCELERATED] == entry(VENDOR);
            assert!(!has_it, "{source}: {}", secret["metadata"]["name"]);
        }
    }
}

fn image() -> String {
    format!("{VENDOR}/a/b:1")
}

fn create(object: &Value) -> Value {
    let created = KubeApi::shared().client().create(object);
    created.unwrap_or_else(|error| panic!("creating {object:#}: {error}"))
}

fn get(namespace: &str, secret: &str) -> Value {
    let found = KubeApi::shared().client().get("Secret", namespace, secret);
    found.unwrap_or_else(|| panic!("there is no Secret {namespace}/{secret}"))
}

fn change_source(namespace: &str, keys: &[&str]) {
    change_secret(namespace, "team", keys);
}

fn change_secret(namespace: &str, name: &str, keys: &[&str]) {
    KubeApi::shared()
        .client()
        .apply(&pull_secret(namespace, name, keys))
        .expect("a secret may be changed");
}

fn wait_for_copy(namespace: &str, entries: &Value) {
    wait_until("the copy has what it should", || {
        let copy = KubeApi::shared().client().get("Secret", namespace, COPY)?;
        (auths(&copy) == *entries).then_some(())
    });
}

const PODS_AT_ONCE: usize = 40;
