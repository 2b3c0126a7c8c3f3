//! The API server that the tests of Kubernetes stand on is a real one, with real rights and real controllers.

mod support;

use std::{
    env, fs,
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::{Value, json};
use support::{CommandOutcome, KubeApi, KubeOptions, wait_until};

#[test]
fn the_api_server_says_the_version_of_the_kubernetes_that_was_built() {
    let api = KubeApi::shared();
    let version = api.client().request(reqwest::Method::GET, "/version", None).unwrap();
    let client = CommandOutcome::of(
        &mut api.admin().kubectl(&["version", "--client", "--output=json"]),
        Instant::now(),
    );
    let client: Value = serde_json::from_str(&client.expect_ok().output).unwrap();
    // Both are of one build: the pinned one, unless KUBEBUILDER_ASSETS names another.
    assert_eq!(version["gitVersion"], client["clientVersion"]["gitVersion"]);
    assert_eq!(version["major"], "1");
    assert!(
        version["gitVersion"]
            .as_str()
            .unwrap()
            .starts_with(&format!("v1.{}.", version["minor"].as_str().unwrap())),
        "{version}"
    );
}

#[test]
fn a_pod_is_admitted_with_what_its_service_account_adds_and_is_read_back() {
    let api = KubeApi::shared();
    let namespace = api.namespace("pods");
    let pod = pod(&namespace, "app");

    let rehearsed = api.client().dry_run_create(&pod).unwrap();
    assert_eq!(rehearsed["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(
        api.client().get("Pod", &namespace, "app"),
        None,
        "a dry run has stored it"
    );

    let created = api.client().create(&pod).unwrap();
    let read = api.client().get("Pod", &namespace, "app").expect("the pod");
    assert_eq!(read["metadata"]["uid"], created["metadata"]["uid"]);
    assert_eq!(read["spec"]["serviceAccountName"], "default");
    let token = &read["spec"]["containers"][0]["volumeMounts"][0]["mountPath"];
    assert_eq!(token, "/var/run/secrets/kubernetes.io/serviceaccount");

    let again = api.client().create(&pod).unwrap_err();
    assert_eq!((again.code, &*again.reason), (409, "AlreadyExists"));
    api.client().delete("Pod", &namespace, "app").unwrap();
    wait_until("the pod is gone", || {
        api.client().list("Pod", &namespace).is_empty().then_some(())
    });
}

#[test]
fn a_service_account_may_do_what_its_role_says_and_nothing_else() {
    let api = KubeApi::shared();
    let (own, other) = (api.namespace("rights"), api.namespace("rights"));
    let reader = api.service_account(&own, "reader");

    let refused = reader.client().try_list("Pod", &own).unwrap_err();
    assert_eq!((refused.code, &*refused.reason), (403, "Forbidden"));
    assert!(
        refused.message.contains(&format!("system:serviceaccount:{own}:reader")),
        "{refused}"
    );

    api.apply_yaml(&format!(
        "apiVersion: rbac.authorization.k8s.io/v1\n\
         kind: Role\n\
         metadata: {{name: reader, namespace: {own}}}\n\
         rules: [{{apiGroups: [''], resources: [pods], verbs: [get, list]}}]\n\
         ---\n\
         apiVersion: rbac.authorization.k8s.io/v1\n\
         kind: RoleBinding\n\
         metadata: {{name: reader, namespace: {own}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}}\n\
         subjects: [{{kind: ServiceAccount, name: reader, namespace: {own}}}]\n"
    ));
    wait_until("the role counts", || reader.client().try_list("Pod", &own).ok());
    for refused in [
        reader.client().create(&pod(&own, "app")),
        reader.client().try_get("Secret", &own, "any"),
        reader.client().try_get("Pod", &other, "app"),
    ] {
        assert_eq!(refused.unwrap_err().code, 403);
    }
    CommandOutcome::of(&mut reader.kubectl(&["get", "pods", "-n", &own]), Instant::now()).expect_ok();
    let outcome = CommandOutcome::of(&mut reader.kubectl(&["get", "pods", "-n", &other]), Instant::now());
    assert!(
        !outcome.ok && outcome.output.contains("Forbidden"),
        "{}",
        outcome.output
    );
}

#[test]
fn a_secret_goes_with_the_object_that_owns_it() {
    let api = KubeApi::shared();
    let namespace = api.namespace("owners");
    let owner = api.client().apply(&named("ConfigMap", &namespace, "owner")).unwrap();
    let mut owned = named("Secret", &namespace, "owned");
    owned["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"],
    }]);
    api.client().create(&owned).unwrap();
    api.client().create(&named("Secret", &namespace, "free")).unwrap();

    api.client().delete("ConfigMap", &namespace, "owner").unwrap();

    wait_until("the secret is collected", || {
        api.client().get("Secret", &namespace, "owned").is_none().then_some(())
    });
    assert!(api.client().get("Secret", &namespace, "free").is_some());
}

#[test]
fn a_deployment_makes_pods_of_its_template() {
    let api = KubeApi::shared();
    let namespace = api.namespace("workloads");
    let labels = json!({ "app": "app" });
    let template = json!({ "metadata": { "labels": labels }, "spec": pod("", "")["spec"] });
    let mut deployment = named("Deployment", &namespace, "app");
    deployment["apiVersion"] = "apps/v1".into();
    deployment["spec"] = json!({ "replicas": 2, "selector": { "matchLabels": labels }, "template": template });
    api.client().create(&deployment).unwrap();
    let pods = wait_until("there are two pods", || {
        Some(api.client().list("Pod", &namespace)).filter(|pods| pods.len() == 2)
    });
    assert!(
        pods.iter().all(|pod| pod["metadata"]["labels"]["app"] == "app"),
        "{pods:?}"
    );
}

#[test]
fn without_controllers_nothing_happens_that_nobody_did() {
    let api = KubeApi::start(&KubeOptions {
        controllers: false,
        ..KubeOptions::default()
    });
    let namespace = api.namespace("quiet");
    api.client().create(&pod(&namespace, "app")).unwrap();
    assert!(
        api.client().list("ConfigMap", &namespace).is_empty(),
        "no controller publishes the root CA"
    );
}

#[test]
fn nothing_is_left_of_a_test_that_was_killed() {
    let mut test = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_secret_goes_with_the_object_that_owns_it"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mark = format!("/pm{}-", test.id());
    wait_until("all three programs run", || (programs_of(&mark) == 3).then_some(()));

    test.kill().unwrap();
    test.wait().unwrap();

    wait_until("its programs have ended", || (programs_of(&mark) == 0).then_some(()));
    wait_until("its files are gone", || {
        let mut files = fs::read_dir(env::temp_dir()).unwrap().flatten();
        let left = files.any(|file| file.path().to_string_lossy().contains(&mark));
        (!left).then_some(())
    });
}

/// How many programs have a file of the test's Kubernetes in their command line.
fn programs_of(mark: &str) -> usize {
    let processes = fs::read_dir("/proc").expect("the processes").flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(mark) && line.contains("/kube/"))
        .count()
}

fn pod(namespace: &str, name: &str) -> Value {
    let mut pod = named("Pod", namespace, name);
    pod["spec"] = json!({ "containers": [{ "name": "app", "image": "registry.test/library/app:v1" }] });
    pod
}

fn named(kind: &str, namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "namespace": namespace } })
}
