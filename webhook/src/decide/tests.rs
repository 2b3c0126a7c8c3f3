//! From a pod, its namespace's label and its secrets to the changed pod.

use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_STANDARD};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    keyring::Keyring,
    mode::LABELS,
    naming::{NameStyle, Naming},
    patch::{SecretCopy, has_room, patch},
    plan::PlanDraft,
    pull_secret::{PullSecret, Unusable},
    registries::Registries,
    rules::{RequiresSecret, Rules},
    skip::Skip,
};

const ALIAS: &str = LABELS[1];
const VENDOR: &str = "test-registry-vpc.cn-hangzhou.cr.aliyuncs.com";
const VENDOR_ACCELERATED: &str = "test-registry-vpc.distributed.cn-hangzhou.cr.aliyuncs.com:65001";

fn rules(registries: &[&str]) -> Rules {
    let items: Vec<String> = registries.iter().map(|item| (*item).to_owned()).collect();
    Rules {
        registries: Registries::parse(&items, "").unwrap(),
        naming: Naming {
            style: NameStyle::Rename,
            peer_port: 65001,
        },
        requires_secret: RequiresSecret::Instances,
        secrets_namespaces: BTreeSet::new(),
        excluded_namespaces: BTreeSet::from(["kube-system".to_owned()]),
    }
}

fn secret(name: &str, registry: &str) -> PullSecret {
    let content = BASE64_STANDARD.encode(json!({"auths": {registry: {"auth": "eDp5"}}}).to_string());
    let object = json!({
        "metadata": {"name": name, "uid": "u"},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": content},
    });
    let keyring = Keyring::of(&object).unwrap();
    PullSecret {
        name: name.to_owned(),
        found: Ok((object, keyring)),
    }
}

fn pod(images: &[&str], secrets: &[&str]) -> Value {
    let containers: Vec<Value> = images
        .iter()
        .enumerate()
        .map(|(index, image)| json!({"name": format!("c{index}"), "image": image}))
        .collect();
    let secrets: Vec<Value> = secrets.iter().map(|name| json!({ "name": name })).collect();
    let mut pod = json!({
        "metadata": {"name": "p", "labels": {ALIAS: "p2p"}},
        "spec": {"containers": containers, "futureField": {"kept": true}},
    });
    if !secrets.is_empty() {
        pod["spec"]["imagePullSecrets"] = Value::Array(secrets);
    }
    pod
}

/// The pod that the API server would store. Copies have their usual names.
fn mutate(pod: &Value, rules: &Rules, secrets: &[PullSecret]) -> Result<Value, Skip> {
    let plan = PlanDraft::of(pod, "team", None, rules)?.with_secrets(secrets)?;
    let copies: Vec<SecretCopy> = plan
        .copies
        .iter()
        .map(|copy| SecretCopy {
            source: copy.name.clone(),
            copy: format!("acr-credential-{}-p2p", copy.name),
        })
        .collect();
    let ops: json_patch::Patch = serde_json::from_value(Value::Array(patch(pod, &plan, &copies))).unwrap();
    let mut changed = pod.clone();
    json_patch::patch(&mut changed, &ops).unwrap();
    Ok(changed)
}

fn record(pod: &Value) -> Value {
    serde_json::from_str(
        pod["metadata"]["annotations"]["k8s.aliyun.com/p2p-config"]
            .as_str()
            .unwrap(),
    )
    .unwrap()
}

#[test]
fn the_vendor_s_own_example_comes_out_as_the_vendor_prints_it() {
    let image = format!("{VENDOR}/docker-builder/nginx:latest");
    let changed = mutate(
        &pod(&[&image], &["test-registry"]),
        &rules(&["cri-x"]),
        &[secret("test-registry", VENDOR)],
    )
    .unwrap();
    assert_eq!(changed["metadata"]["annotations"][ALIAS], "p2p");
    let accelerated = format!("{VENDOR_ACCELERATED}/docker-builder/nginx:latest");
    assert_eq!(changed["spec"]["containers"][0]["image"], accelerated);
    assert_eq!(
        changed["spec"]["imagePullSecrets"],
        json!([{"name": "test-registry"}, {"name": "acr-credential-test-registry-p2p"}])
    );
    let expected = json!({
        "version": 1, "webhook": env!("CARGO_PKG_VERSION"),
        "images": [{"container": "c0", "original": image, "image": accelerated}],
        "untouched": [],
        "secrets": {"test-registry": "acr-credential-test-registry-p2p"},
    });
    assert_eq!(record(&changed), expected);
}

#[test]
fn fields_that_the_webhook_does_not_know_stay() {
    let changed = mutate(&pod(&["nginx"], &[]), &rules(&["docker.io"]), &[]).unwrap();
    assert_eq!(changed["spec"]["futureField"], json!({"kept": true}));
}

#[test]
fn every_kind_of_image_is_accelerated() {
    let mut pod = pod(&["a.io/app:1"], &[]);
    pod["spec"]["initContainers"] =
        json!([{"name": "i", "image": "a.io/init"}, {"name": "s", "image": "a.io/sidecar", "restartPolicy": "Always"}]);
    pod["spec"]["volumes"] = json!([{"name": "e", "emptyDir": {}}, {"name": "v", "image": {"reference": "a.io/data:2", "pullPolicy": "Always"}}]);
    let changed = mutate(&pod, &rules(&["a.io"]), &[]).unwrap();
    let image = |pointer: &str| changed.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
    for (pointer, name) in [
        ("/spec/containers/0/image", "app:1"),
        ("/spec/initContainers/0/image", "init"),
        ("/spec/initContainers/1/image", "sidecar"),
        ("/spec/volumes/1/image/reference", "data:2"),
    ] {
        assert_eq!(image(pointer), format!("a.io.piecemeal.internal:65001/{name}"));
    }
    assert_eq!(record(&changed)["images"][3]["volume"], "v");
}

#[test]
fn in_a_mixed_pod_only_the_images_that_fit_are_changed() {
    let private = format!("{VENDOR}/a/b:1");
    let images = [
        private.as_str(),
        "quay.io/x/y",
        "other-registry.cn-beijing.cr.aliyuncs.com/a/b",
        "UPPER/x",
    ];
    let before = pod(&images, &["test-registry"]);
    let changed = mutate(&before, &rules(&["cri-x"]), &[secret("test-registry", VENDOR)]).unwrap();
    assert_eq!(
        changed["spec"]["containers"][0]["image"],
        format!("{VENDOR_ACCELERATED}/a/b:1")
    );
    for index in 1..4 {
        assert_eq!(changed["spec"]["containers"][index]["image"], images[index]);
    }
    let record = record(&changed);
    let why: Vec<&str> = record["untouched"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["why"].as_str().unwrap())
        .collect();
    assert_eq!(why.len(), 3);
    assert!(
        why.iter().any(|why| why.contains("quay.io is not accelerated")),
        "{why:?}"
    );
    assert!(
        why.iter().any(|why| why.contains("no pull secret that is for it")),
        "{why:?}"
    );
}

#[test]
fn nothing_is_injected_when_the_vendor_would_not() {
    let rules = rules(&["cri-x"]);
    let private = format!("{VENDOR}/a/b:1");
    let wrong = PullSecret {
        name: "s".to_owned(),
        found: Err(Unusable::Never("it is of type \"Opaque\"".to_owned())),
    };
    let cases = [
        (
            pod(&["quay.io/x"], &["s"]),
            vec![secret("s", VENDOR)],
            Skip::NoAcceleratedImage,
        ),
        (pod(&[&private], &[]), vec![], Skip::NoPullSecret),
        (
            pod(&[&private], &["s"]),
            vec![secret("s", "quay.io")],
            Skip::NoPullSecret,
        ),
        (pod(&[&private], &["s"]), vec![wrong], Skip::NoPullSecret),
        (pod(&[], &[]), vec![], Skip::NoAcceleratedImage),
    ];
    for (pod, secrets, expected) in cases {
        assert_eq!(mutate(&pod, &rules, &secrets).unwrap_err(), expected, "{pod}");
    }
}

#[test]
fn an_image_waits_for_a_secret_that_may_come_yet() {
    let late = PullSecret {
        name: "late".to_owned(),
        found: Err(Unusable::Perhaps("there is no such Secret yet".to_owned())),
    };
    let before = pod(&["a.io/x"], &["late"]);
    assert_eq!(
        mutate(&before, &rules(&["a.io"]), std::slice::from_ref(&late)).unwrap_err(),
        Skip::NoPullSecret
    );
    let both = pod(&["a.io/x"], &["late", "there"]);
    assert!(mutate(&both, &rules(&["a.io"]), &[late, secret("there", "a.io")]).is_ok());
}

#[test]
fn an_accelerated_image_that_has_lost_its_secret_gets_it_again() {
    let rules = rules(&["a.io"]);
    let secrets = [secret("s", "a.io")];
    let first = mutate(&pod(&["a.io/x"], &["s"]), &rules, &secrets).unwrap();
    let mut saved = first.clone();
    saved["metadata"].as_object_mut().unwrap().remove("annotations");
    saved["spec"]["imagePullSecrets"] = json!([{"name": "s"}]);
    let again = mutate(&saved, &rules, &secrets).unwrap();
    assert_eq!(again["spec"], first["spec"]);
    assert_eq!(record(&again)["images"][0]["original"], "a.io/x");
}

#[test]
fn a_label_distributed_that_is_not_ours_is_part_of_a_registry_s_name() {
    let changed = mutate(
        &pod(&["reg.distributed.corp.example:65001/x"], &[]),
        &rules(&["reg.distributed.corp.example:65001"]),
        &[],
    );
    let expected = "reg.distributed.corp.example.65001.piecemeal.internal:65001/x";
    assert_eq!(changed.unwrap()["spec"]["containers"][0]["image"], expected);
}

#[test]
fn a_public_image_needs_no_secret_unless_it_is_required() {
    let pod = pod(&["nginx"], &[]);
    let mut rules = rules(&["docker.io"]);
    assert!(mutate(&pod, &rules, &[]).is_ok());
    rules.requires_secret = RequiresSecret::Always;
    assert_eq!(mutate(&pod, &rules, &[]).unwrap_err(), Skip::NoPullSecret);
    let mut rules = self::rules(&["cri-x"]);
    rules.requires_secret = RequiresSecret::Never;
    let public = self::pod(&[&format!("{VENDOR}/a")], &[]);
    assert!(mutate(&public, &rules, &[]).is_ok());
}

#[test]
fn exactly_the_secrets_that_fit_are_copied_and_come_after_all_originals() {
    let before = pod(&["a.io/x", "b.io/y"], &["s1", "s2", "s3"]);
    let secrets = [secret("s1", "b.io"), secret("s2", "c.io"), secret("s3", "a.io")];
    let changed = mutate(&before, &rules(&["a.io", "b.io"]), &secrets).unwrap();
    let names: Vec<&str> = changed["spec"]["imagePullSecrets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|secret| secret["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["s1", "s2", "s3", "acr-credential-s1-p2p", "acr-credential-s3-p2p"]
    );
}

#[test]
fn secrets_of_the_service_account_are_written_into_a_pod_that_has_none() {
    let changed = mutate(
        &pod(&["a.io/x"], &[]),
        &rules(&["a.io"]),
        &[secret("of-account", "a.io")],
    )
    .unwrap();
    let expected = json!([{"name": "of-account"}, {"name": "acr-credential-of-account-p2p"}]);
    assert_eq!(changed["spec"]["imagePullSecrets"], expected);
}

#[test]
fn labels_and_namespaces_decide_first() {
    let rules = rules(&["docker.io"]);
    let skip = |pod: &Value, namespace: &str, labels: Value| {
        PlanDraft::of(pod, namespace, labels.as_object(), &rules).unwrap_err()
    };
    let mut plain = pod(&["nginx"], &[]);
    plain["metadata"]["labels"] = json!({});
    assert_eq!(skip(&plain, "team", json!({})), Skip::NotLabelled);
    assert!(PlanDraft::of(&plain, "team", json!({ALIAS: "p2p"}).as_object(), &rules).is_ok());
    assert_eq!(
        skip(&plain, "kube-system", json!({ALIAS: "p2p"})),
        Skip::ExcludedNamespace("kube-system".to_owned())
    );
    plain["metadata"]["labels"] = json!({ALIAS: "disabled"});
    assert_eq!(skip(&plain, "team", json!({ALIAS: "p2p"})), Skip::Disabled);
    plain["metadata"]["labels"] = json!({ALIAS: "on-demand"});
    assert_eq!(
        skip(&plain, "team", json!({})),
        Skip::UnknownMode("on-demand".to_owned())
    );
}

#[test]
fn pods_that_would_not_start_or_not_stay_are_left_alone() {
    let cases = [
        (
            "/metadata/annotations",
            json!({"kubernetes.io/config.mirror": "x"}),
            "MirrorPod",
        ),
        ("/spec/os", json!({"name": "windows"}), "Windows"),
        (
            "/metadata/labels",
            json!({ALIAS: "p2p", "cnpg.io/podRole": "instance"}),
            "Operator",
        ),
        ("/spec/containers/0/imagePullPolicy", json!("Never"), "PullNever"),
    ];
    for (pointer, value, reason) in cases {
        let mut pod = pod(&["nginx"], &[]);
        let op = json!([{"op": "add", "path": pointer, "value": value}]);
        let op: json_patch::Patch = serde_json::from_value(op).unwrap();
        json_patch::patch(&mut pod, &op).unwrap();
        let skip = mutate(&pod, &rules(&["docker.io"]), &[]).unwrap_err();
        assert_eq!(skip.reason(), reason);
    }
}

#[test]
fn a_patch_has_room_as_long_as_an_api_server_would_take_the_annotations() {
    let patch = [json!({"op": "add", "path": "/metadata/annotations/a~1b", "value": "x".repeat(100)})];
    for (there, has) in [(256 * 1024 - 300, true), (256 * 1024 - 50, false)] {
        let mut pod = pod(&["nginx"], &[]);
        assert!(has_room(&pod, &patch));
        pod["metadata"]["annotations"] = json!({"k": "x".repeat(there)});
        assert_eq!(has_room(&pod, &patch), has, "{there}");
    }
}

#[test]
fn the_annotations_are_in_the_words_of_the_label() {
    let mut pod = pod(&["nginx"], &[]);
    pod["metadata"]["labels"] = json!({LABELS[0]: "p2p"});
    pod["metadata"]["annotations"] = json!({"mine": "kept"});
    let changed = mutate(&pod, &rules(&["docker.io"]), &[]).unwrap();
    let annotations = changed["metadata"]["annotations"].as_object().unwrap();
    let keys: Vec<&str> = annotations.keys().map(String::as_str).collect();
    assert_eq!(keys, ["mine", "piecemeal.dev/config", "piecemeal.dev/mode"]);
}

#[test]
fn mirror_style_annotates_and_renames_nothing() {
    let mut rules = rules(&["cri-x"]);
    rules.naming.style = NameStyle::Mirror;
    let before = pod(&[&format!("{VENDOR}/a")], &["s"]);
    let changed = mutate(&before, &rules, &[secret("s", VENDOR)]).unwrap();
    assert_eq!(changed["spec"], before["spec"]);
    assert_eq!(changed["metadata"]["annotations"][ALIAS], "p2p");
    assert_eq!(mutate(&changed, &rules, &[]).unwrap(), changed);
}

#[test]
fn a_sidecar_that_came_later_is_accelerated_in_the_next_round() {
    let rules = rules(&["a.io"]);
    let secrets = [secret("s", "a.io")];
    let mut changed = mutate(&pod(&["a.io/x"], &["s"]), &rules, &secrets).unwrap();
    changed["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "late", "image": "a.io/proxy"}));
    let again = mutate(&changed, &rules, &secrets).unwrap();
    assert_eq!(
        again["spec"]["containers"][1]["image"],
        "a.io.piecemeal.internal:65001/proxy"
    );
    assert_eq!(again["spec"]["imagePullSecrets"], changed["spec"]["imagePullSecrets"]);
    let images = record(&again)["images"].clone();
    assert_eq!(images.as_array().unwrap().len(), 2);
    assert_eq!(images[0]["original"], "a.io/x");
}

#[test]
fn an_accelerated_image_of_a_registry_that_is_not_configured_is_left_alone() {
    let pod = pod(&["x.io.piecemeal.internal:65001/a"], &[]);
    assert_eq!(
        mutate(&pod, &rules(&["docker.io"]), &[]).unwrap_err(),
        Skip::NoAcceleratedImage
    );
}

proptest! {
    #[test]
    fn a_second_round_changes_nothing(
        images in prop::collection::vec(r"((a\.io|b\.io:5000|c\.io|127\.0\.0\.1:65001/a\.io)/)?[a-z]{1,3}(/[a-z]{1,3})?(:[a-z0-9]{1,3})?|[A-Z:@/.]{0,4}", 0..5),
        named in prop::collection::vec(r"a\.io|b\.io:5000|c\.io|\*\.io", 0..3),
        style in prop::sample::select(vec![NameStyle::Rename, NameStyle::Mirror, NameStyle::Localhost]),
        requires_secret in prop::sample::select(vec![RequiresSecret::Always, RequiresSecret::Never]),
    ) {
        let mut rules = rules(&["a.io", "b.io:5000", "docker.io"]);
        rules.naming.style = style;
        rules.requires_secret = requires_secret;
        let secrets: Vec<PullSecret> = named.iter().enumerate().map(|(index, registry)| secret(&format!("s{index}"), registry)).collect();
        let names: Vec<&str> = secrets.iter().map(|secret| secret.name.as_str()).collect();
        let images: Vec<&str> = images.iter().map(String::as_str).collect();
        if let Ok(once) = mutate(&pod(&images, &names), &rules, &secrets) {
            let twice = mutate(&once, &rules, &secrets).unwrap_or_else(|_| once.clone());
            prop_assert_eq!(twice, once);
        }
    }

    #[test]
    fn no_pod_makes_a_decision_panic(text in r#"[\PC]{0,40}"#, field in prop::sample::select(vec!["containers", "volumes", "imagePullSecrets", "initContainers"])) {
        let mut pod = pod(&["nginx"], &[]);
        for value in [json!(text), json!([text]), json!([{"image": text, "name": text}]), json!([{"image": {"reference": text}}]), json!({text.clone(): text})] {
            pod["spec"][field] = value;
            let _ = mutate(&pod, &rules(&["docker.io"]), &[]);
        }
    }
}
