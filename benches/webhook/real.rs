//! The time that users wait: pods at a real API server, each with a pull secret of its own that has no copy yet.

use std::{sync::Mutex, thread, time::Instant};

use reqwest::Method;
use serde_json::Value;

use crate::{
    histogram::Histogram,
    load::{Latencies, open_loop},
    meter::{cpu_seconds, memory_mib},
    objects::{LABEL, REGISTRY, pod, pull_secret},
    support::{KubeApi, KubeOptions, Webhook},
};

pub(crate) fn run() {
    println!("### At a real API server, a new copy for each pod\n");
    // Nothing but the API server: controllers would take their share of the machine.
    let options = KubeOptions {
        controllers: false,
        ..KubeOptions::default()
    };
    let api = KubeApi::start(&options);
    let webhook = Webhook::start(&api, &["--registry", REGISTRY, "--log", "info"]);
    let pid = webhook.replicas[0].process.pid();
    let namespaces: Vec<String> = (0..NAMESPACES).map(|_| webhook.namespace(&[])).collect();
    eprintln!("{COUNT} pull secrets");
    for number in 0..COUNT {
        let secret = pull_secret(namespace(&namespaces, number), &secret_name(number));
        api.client().create(&secret).expect("a pull secret");
    }

    let create = |part: &str, is_labelled: bool| {
        eprintln!("{PER_SECOND} pods a second for {SECONDS} s, {part}");
        let latencies = Mutex::new(Vec::new());
        thread::scope(|scope| {
            open_loop(PER_SECOND, COUNT, |number, due| {
                let pod = named_pod(&namespaces, number, part, is_labelled);
                let (api, latencies) = (&api, &latencies);
                scope.spawn(move || {
                    let created = api.client().create(&pod).expect("a pod");
                    let latency = due.elapsed();
                    let image = created["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
                    assert_eq!(image.starts_with(&format!("{REGISTRY}/")), !is_labelled, "{image}");
                    latencies.lock().expect("no panic").push(latency);
                });
            });
        });
        latencies.into_inner().expect("no panic")
    };
    let without = create("unlabelled", false);
    let before = (server_histogram(&api), own_histogram(&webhook), cpu_seconds(&[pid]));
    let began = Instant::now();
    let with = create("labelled", true);
    let took = began.elapsed().as_secs_f64();
    let after = (server_histogram(&api), own_histogram(&webhook), cpu_seconds(&[pid]));

    println!(
        "{PER_SECOND} pods a second for {SECONDS} s in {NAMESPACES} namespaces; latency from when a pod was due to be created to the answer.\n"
    );
    let mut table = Latencies::new();
    table.row("without the label", &without, None);
    table.row("with it", &with, None);
    table.print();
    println!("The webhook as the API server sees it: {}.\n", after.0.since(&before.0));
    let own = after.1.since(&before.1);
    let is_met = own.share_within(P99_SECONDS_MAX) >= 0.99;
    println!(
        "`piecemeal_webhook_review_seconds`: {own}. Aim: 99 % within {} ms: {}.\n",
        P99_SECONDS_MAX * 1e3,
        if is_met { "met" } else { "**missed**" }
    );
    println!(
        "Webhook: {:.2} of a core, peak RSS {:.1} MiB.\n",
        (after.2 - before.2) / took,
        memory_mib(pid, "VmHWM")
    );
}

fn named_pod(namespaces: &[String], number: u32, part: &str, is_labelled: bool) -> Value {
    let mut pod = pod(
        namespace(namespaces, number),
        &format!("{part}-{number}"),
        REGISTRY,
        &secret_name(number),
    );
    if !is_labelled {
        let labels = pod["metadata"]["labels"].as_object_mut().expect("a pod has labels");
        labels.remove(LABEL);
    }
    pod
}

fn namespace(namespaces: &[String], number: u32) -> &str {
    &namespaces[number as usize % namespaces.len()]
}

fn secret_name(number: u32) -> String {
    format!("registry-{number}")
}

fn server_histogram(api: &KubeApi) -> Histogram {
    let metrics = api.client().request(Method::GET, "/metrics", None).expect("metrics");
    let text = metrics.as_str().expect("metrics are text");
    let name = "apiserver_admission_webhook_admission_duration_seconds";
    Histogram::read(text, name, "name=\"pod.piecemeal.dev\"")
}

fn own_histogram(webhook: &Webhook<'_>) -> Histogram {
    let text = webhook.replicas[0].admin("/metrics").text();
    Histogram::read(&text, "piecemeal_webhook_review_seconds", "")
}

const PER_SECOND: u32 = 20;
const SECONDS: u32 = 30;
const COUNT: u32 = PER_SECOND * SECONDS;
const NAMESPACES: u32 = 10;
/// A bound of the webhook's own histogram; the API server's goes from 25 ms to 100 ms at once.
const P99_SECONDS_MAX: f64 = 0.05;
