//! The webhook at a real API server when something breaks: pods start all the same, and no certificate is ever shown that an API
//! server does not trust.

mod support;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use support::{
    CommandOutcome, KubeApi, Load, REGISTRIES, Replica, Webhook, WebhookOptions,
    pods::{VENDOR, assert_untouched, is_accelerated, pod, pull_secret},
    wait_until,
};

#[test]
fn while_the_ca_changes_every_pod_is_accelerated() {
    let webhook = replicas(&["--certificate-announce", "8s"]);
    let namespace = webhook.namespace(&[]);
    let load = Load::start(KubeApi::shared().client(), pod(&namespace, &["nginx"], &[]), PAUSE);
    let before = webhook.ca_bundle();
    let shown: Vec<_> = webhook.replicas.iter().map(shown_certificates).collect();

    delete_ca(&webhook);
    let both = wait_until("the new CA is published beside the old one", || {
        let bundle = webhook.ca_bundle();
        (bundle != before).then_some(bundle)
    });
    assert!(both.starts_with(&before) && certificates(&both) == 2, "{both}");
    let after = wait_until("the new CA signs", || {
        let bundle = webhook.ca_bundle();
        (bundle != both).then_some(bundle)
    });
    // What the old one has signed may still be shown for a while.
    assert!(after.ends_with(&before) && certificates(&after) == 2, "{after}");
    wait_until("every replica shows a certificate of the new CA", || {
        let later = webhook.replicas.iter().map(shown_certificates);
        later.zip(&shown).all(|(later, before)| later > *before).then_some(())
    });
    let reviews = webhook.metric("piecemeal_webhook_reviews_total");
    wait_until("pods are reviewed by it", || {
        (webhook.metric("piecemeal_webhook_reviews_total") > reviews + 20.0).then_some(())
    });

    assert_all_accelerated(load);
}

#[test]
fn garbage_in_the_secret_of_the_ca_is_replaced_and_every_pod_is_accelerated() {
    let webhook = replicas(&["--certificate-announce", "4s"]);
    let namespace = webhook.namespace(&[]);
    let load = Load::start(KubeApi::shared().client(), pod(&namespace, &["nginx"], &[]), PAUSE);
    for garbage in [
        json!({"tls.crt": "Z2FyYmFnZQ=="}),
        json!({"tls.key": null}),
        json!({"next.crt": "AA==", "next.key": "AA=="}),
    ] {
        let before = webhook.ca_bundle();
        let client = KubeApi::shared().client();
        client
            .patch("Secret", &webhook.namespace, CA_SECRET, &json!({"data": garbage}))
            .unwrap();
        wait_until("another CA is published", || {
            (webhook.ca_bundle() != before).then_some(())
        });
        for replica in &webhook.replicas {
            replica.wait_until_ready();
        }
    }
    assert_all_accelerated(load);
}

#[test]
fn a_registration_that_was_overwritten_gets_the_ca_again() {
    let webhook = Webhook::start(KubeApi::shared(), &REGISTRIES);
    let client = KubeApi::shared().client();
    let mut registration = client
        .get("MutatingWebhookConfiguration", "", &webhook.configuration)
        .unwrap();
    for entry in registration["webhooks"].as_array_mut().unwrap() {
        entry["clientConfig"]["caBundle"] = Value::Null;
    }
    let path = format!(
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{}",
        webhook.configuration
    );
    client
        .request(reqwest::Method::PUT, &path, Some(&registration))
        .unwrap();
    wait_until("the CA is published", || {
        (certificates(&webhook.ca_bundle()) == 1).then_some(())
    });
    webhook.wait_until_asked();
}

#[test]
fn certificates_from_files_are_read_again_when_they_change() {
    let api = KubeApi::shared();
    let dir = api.folder("certificates");
    let ca = TestCa::new();
    ca.sign_into(&dir);
    let arguments = ["--certificates", "files", "--certificates-dir", dir.to_str().unwrap()];
    let arguments = [&arguments[..], &REGISTRIES].concat();
    let options = WebhookOptions {
        arguments: &arguments,
        ca: Some(&ca.pem),
        ..WebhookOptions::default()
    };
    let webhook = Webhook::start_with(api, &options);
    let namespace = webhook.namespace(&[]);
    let load = Load::start(api.client(), pod(&namespace, &["nginx"], &[]), PAUSE);
    let expiry = || webhook.metric("piecemeal_webhook_certificate_expiry_timestamp_seconds");
    let shown = || shown_certificates(&webhook.replicas[0]);
    assert!(expiry() > 0.0);

    ca.sign_into(&dir);
    wait_until("the new certificate is shown", || (shown() == 2).then_some(()));
    // One that does not belong to its key is not shown, and the last one goes on.
    fs::write(dir.join("tls.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let log = || webhook.replicas[0].process.log_text();
    wait_until("it says so", || {
        log().contains("the certificate cannot be used as it is").then_some(())
    });
    assert_eq!(
        webhook.replicas[0].admin("/readyz").status,
        200,
        "the one before it is still good"
    );
    ca.sign_into(&dir);
    wait_until("the third certificate is shown", || (shown() == 3).then_some(()));
    webhook.replicas[0].wait_until_ready();

    assert_eq!(webhook.ca_bundle(), ca.pem, "it is not the webhook's to publish");
    assert!(api.client().get("Secret", &webhook.namespace, CA_SECRET).is_none());
    assert_all_accelerated(load);
}

#[test]
fn another_replica_leads_soon_after_a_leader_was_killed_and_at_once_after_one_has_ended() {
    let mut webhook = replicas(&[]);
    let namespace = webhook.namespace(&[]);
    let first = webhook.wait_for_leader();
    let second = 1 - first;

    let killed = Instant::now();
    webhook.replicas[first].process.kill();
    wait_until("the other one leads", || webhook.replicas[second].leads().then_some(()));
    // Its lease has to run out: 15 s, and up to 4 s until the other replica looks.
    assert!(
        killed.elapsed() < Duration::from_secs(20) + SLACK,
        "{:?}",
        killed.elapsed()
    );
    assert!(is_accelerated(&create(&pod(&namespace, &["nginx"], &[]))));

    webhook.replicas[first].process.start_again();
    webhook.replicas[first].wait_until_ready();
    let load = Load::start(KubeApi::shared().client(), pod(&namespace, &["nginx"], &[]), PAUSE);
    let ended = Instant::now();
    assert!(webhook.replicas[second].process.terminate().success());
    wait_until("the first one leads again", || {
        webhook.replicas[first].leads().then_some(())
    });
    assert!(
        ended.elapsed() < Duration::from_secs(5) + SLACK,
        "{:?}",
        ended.elapsed()
    );
    // Not one was lost to the replica that ended: it has answered what it was asked.
    assert_all_accelerated(load);
}

#[test]
fn without_the_webhook_pods_are_created_as_they_are_and_at_once() {
    let mut webhook = Webhook::start(KubeApi::shared(), &REGISTRIES);
    let namespace = webhook.namespace(&[]);
    webhook.replicas[0].process.kill();
    for _ in 0..5 {
        let (sent, began) = (pod(&namespace, &["nginx"], &[]), Instant::now());
        assert_untouched(&sent, &create(&sent), "no webhook listens");
        assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
    }
    webhook.replicas[0].process.start_again();
    webhook.replicas[0].wait_until_ready();
    wait_until("pods are accelerated again", || {
        is_accelerated(&create(&pod(&namespace, &["nginx"], &[]))).then_some(())
    });
}

#[test]
fn a_webhook_that_hangs_holds_a_pod_up_for_five_seconds_and_no_longer() {
    let webhook = Webhook::start(KubeApi::shared(), &REGISTRIES);
    let namespace = webhook.namespace(&[]);
    webhook.replicas[0].process.stop();
    let (sent, began) = (pod(&namespace, &["nginx"], &[]), Instant::now());
    let stored = create(&sent);
    let took = began.elapsed();
    webhook.replicas[0].process.cont();
    assert_untouched(&sent, &stored, "no webhook answers");
    assert!(
        took > Duration::from_secs(4) && took < Duration::from_secs(5) + SLACK,
        "{took:?}"
    );
    wait_until("pods are accelerated again", || {
        is_accelerated(&create(&pod(&namespace, &["nginx"], &[]))).then_some(())
    });
}

#[test]
fn without_its_rights_the_webhook_changes_nothing_and_says_why() {
    let (api, webhook) = (KubeApi::shared(), Webhook::start(KubeApi::shared(), &REGISTRIES));
    let namespace = webhook.namespace(&[]);
    api.client()
        .create(&pull_secret(&namespace, "team", &[VENDOR]))
        .unwrap();
    api.client()
        .delete("ClusterRoleBinding", "", &webhook.namespace)
        .unwrap();
    let mut sent = pod(&namespace, &[&format!("{VENDOR}/a/b")], &["team"]);
    let rehearsed = || api.client().dry_run_create(&sent).unwrap();
    wait_until("the rights are gone", || (!is_accelerated(&rehearsed())).then_some(()));

    sent["metadata"]["name"] = json!("told");
    let file = api.folder("rights").join("pod.json");
    fs::write(&file, sent.to_string()).unwrap();
    let mut kubectl = api.admin().kubectl(&["create", "--filename"]);
    let told = CommandOutcome::of(kubectl.arg(&file), Instant::now()).expect_ok();

    assert_untouched(
        &sent,
        &api.client().get("Pod", &namespace, "told").unwrap(),
        "without rights",
    );
    assert!(
        told.output.contains("Warning: Piecemeal does not accelerate this pod"),
        "{}",
        told.output
    );
    assert!(webhook.metric("piecemeal_webhook_skips_total{reason=\"Internal\"}") > 0.0);
    assert!(webhook.metric("piecemeal_webhook_reviews_total{result=\"failed\"}") > 0.0);
    // An image that needs no secret needs no right either, but for knowing that its account has none.
    let secrets = api.client().list("Secret", &namespace);
    assert_eq!(secrets.len(), 1, "{secrets:#?}");
}

/// Two replicas behind one address.
fn replicas(arguments: &[&str]) -> Webhook<'static> {
    let arguments = [arguments, &REGISTRIES].concat();
    let options = WebhookOptions {
        arguments: &arguments,
        replicas: 2,
        ..WebhookOptions::default()
    };
    Webhook::start_with(KubeApi::shared(), &options)
}

/// How many certificates a replica has shown so far.
fn shown_certificates(replica: &Replica) -> usize {
    let log = replica.process.log_text();
    log.matches("the webhook uses another certificate from now on").count()
}

fn assert_all_accelerated(load: Load) {
    let pods = load.stop();
    let missed = pods.iter().filter(|pod| !is_accelerated(pod)).count();
    assert_eq!(missed, 0, "of {} pods", pods.len());
    // On a busy machine it is less than one would like.
    assert!(pods.len() > 1, "only {} pods", pods.len());
}

fn create(object: &Value) -> Value {
    let created = KubeApi::shared().client().create(object);
    created.unwrap_or_else(|error| panic!("creating {object:#}: {error}"))
}

fn delete_ca(webhook: &Webhook<'_>) {
    KubeApi::shared()
        .client()
        .delete("Secret", &webhook.namespace, CA_SECRET)
        .expect("the Secret of the CA");
}

fn certificates(bundle: &str) -> usize {
    bundle.matches("BEGIN CERTIFICATE").count()
}

/// A CA outside the webhook, as cert-manager has one.
struct TestCa {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl TestCa {
    fn new() -> Self {
        let key = KeyPair::generate().expect("generating a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signing a certificate").pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// A new certificate for loopback, as a mounted Secret has it.
    fn sign_into(&self, dir: &Path) {
        let key = KeyPair::generate().expect("generating a key");
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("signing a certificate");
        fs::write(dir.join("tls.crt"), certificate.pem()).expect("writing a certificate");
        fs::write(dir.join("tls.key"), key.serialize_pem()).expect("writing a key");
    }
}

const CA_SECRET: &str = "piecemeal-webhook-ca";
/// How much longer things may take on a busy machine.
const SLACK: Duration = Duration::from_secs(4);
/// Some twenty pods a second.
const PAUSE: Duration = Duration::from_millis(40);
