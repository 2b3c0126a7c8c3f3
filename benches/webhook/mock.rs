//! The webhook's own time: on one core, beside an API that answers at once from the other.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{self, Command},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::Certificate;
use serde_json::{Value, json};
use tokio::runtime::{self, Runtime};

use crate::{
    fake_api::{FakeApi, Served},
    histogram::Histogram,
    load::{Latencies, open_loop},
    meter::{Pinned, cores, cpu_seconds, forget_peak_memory, memory_mib},
    objects::{OTHER_REGISTRY, REGISTRY, pod, pull_secret, review},
    support::{Process, Request, ScratchDir, wait_until},
};

/// What a question leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    UpToDate,
    NewCopy,
    Skipped,
}

const CASES: [(Case, &str); 3] = [
    (Case::UpToDate, "the copy is there"),
    (Case::NewCopy, "the copy is new"),
    (Case::Skipped, "nothing to do"),
];

pub(crate) fn run() {
    println!("### On one core, beside an API that answers at once\n");
    if cores() < 2 {
        println!("Not measured: it needs two cores.\n");
        return;
    }
    // The client and the API have the other core, and so have threads that are started from here on.
    let _elsewhere = Pinned::new(&[process::id()], LOAD_CORE);
    let stand = Arc::new(Stand::start());
    eprintln!("a copy for each of the pull secrets in use");
    for number in 0..USED_SECRETS {
        let question = Question::new(Case::UpToDate, number);
        stand.runtime.block_on(stand.ask(&question));
    }
    forget_peak_memory(stand.webhook.pid());
    let (cpu, asked, own_before) = (stand.cpu_seconds(), stand.api.asked("").len(), stand.own_histogram());
    let began = Instant::now();
    eprintln!("{PER_SECOND} questions a second for {SECONDS} s");
    let taken = stand.load();
    let took = began.elapsed().as_secs_f64();
    let (cpu, own) = (stand.cpu_seconds() - cpu, stand.own_histogram());
    let asked = stand.api.asked("").len() - asked;

    println!(
        "{PER_SECOND} questions a second for {SECONDS} s about pods of {:.1} KiB in {NAMESPACES} namespaces; latency from when a question was due to the last byte of its answer.\n",
        review(&question_pod(Case::UpToDate, 0)).to_string().len() as f64 / 1024.0
    );
    let mut table = Latencies::new();
    let of = |wanted: Option<Case>| -> Vec<Duration> {
        let kept = taken
            .iter()
            .filter(|(case, _)| wanted.is_none_or(|wanted| wanted == *case));
        kept.map(|(_, latency)| *latency).collect()
    };
    for (case, name) in CASES {
        table.row(name, &of(Some(case)), None);
    }
    table.row("all", &of(None), Some(P99_MS_MAX));
    table.print();
    println!(
        "Webhook: {:.0} % of its core, {:.2} ms a question; peak RSS {:.1} MiB; {:.1} requests to the API a question, those that reconcile copies included.\n",
        100.0 * cpu / took,
        1e3 * cpu / taken.len() as f64,
        memory_mib(stand.webhook.pid(), "VmHWM"),
        asked as f64 / taken.len() as f64
    );
    println!("`piecemeal_webhook_review_seconds`: {}.\n", own.since(&own_before));
}

/// What is asked, in bytes, and what to do with the answer.
struct Question {
    case: Case,
    pod: Value,
    body: String,
}

impl Question {
    fn new(case: Case, number: u32) -> Self {
        let pod = question_pod(case, number);
        let body = review(&pod).to_string();
        Self { case, pod, body }
    }
}

fn question_pod(case: Case, number: u32) -> Value {
    let (registry, secret) = match case {
        Case::UpToDate => (REGISTRY, used_secret(number)),
        Case::NewCopy => (REGISTRY, new_secret(number)),
        Case::Skipped => (OTHER_REGISTRY, used_secret(number)),
    };
    pod(
        &namespace(number),
        &format!("service-6d4cf56db6-{number}"),
        registry,
        &secret,
    )
}

fn namespace(number: u32) -> String {
    format!("team-{}", number % NAMESPACES)
}

fn used_secret(number: u32) -> String {
    format!("used-{}", number % USED_SECRETS)
}

fn new_secret(number: u32) -> String {
    format!("new-{number}")
}

/// Of ten, one needs a new copy and one needs nothing.
fn case(number: u32) -> Case {
    match number % 10 {
        0 => Case::NewCopy,
        5 => Case::Skipped,
        _ => Case::UpToDate,
    }
}

struct Stand {
    webhook: Process,
    admin: SocketAddr,
    url: String,
    http: reqwest::Client,
    runtime: Runtime,
    api: FakeApi,
    _served: Served,
    _dir: ScratchDir,
}

impl Stand {
    fn start() -> Self {
        // Once for the process: later calls fail and change nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let api = FakeApi::new();
        let entries =
            ["pod.piecemeal.dev", "pod.alias.piecemeal.dev"].map(|name| json!({"name": name, "clientConfig": {}}));
        api.put(
            CONFIGURATIONS,
            json!({"metadata": {"name": "piecemeal"}, "webhooks": entries}),
        );
        for number in 0..PER_SECOND * SECONDS {
            let list = format!("/api/v1/namespaces/{}/secrets", namespace(number));
            if number < USED_SECRETS {
                api.put(&list, pull_secret(&namespace(number), &used_secret(number)));
            }
            if case(number) == Case::NewCopy {
                api.put(&list, pull_secret(&namespace(number), &new_secret(number)));
            }
        }
        let served = api.serve();
        let dir = ScratchDir::new();
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, served.kubeconfig()).expect("writing a kubeconfig");
        let (listen, admin) = (free_address(), free_address());
        let mut command = Command::new("taskset");
        command
            .args([
                "--cpu-list",
                &WEBHOOK_CORE.to_string(),
                env!("CARGO_BIN_EXE_piecemeal"),
                "webhook",
                "--namespace",
                "piecemeal",
            ])
            .args(["--listen", &listen.to_string(), "--admin-listen", &admin.to_string()])
            .args(["--certificate-name", "127.0.0.1", "--registry", REGISTRY])
            .env("KUBECONFIG", &kubeconfig);
        let webhook = Process::start("webhook", command, &dir.path().join("webhook.log"));
        wait_until("the webhook is ready", || {
            let answer = Request::get(admin, "/readyz").send().ok()?;
            (answer.status == 200).then_some(())
        });
        // One thread: a second would only take turns with it.
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        Self {
            http: client(&api),
            url: format!("https://{listen}/mutate/pod"),
            runtime: runtime.expect("starting a runtime"),
            webhook,
            admin,
            api,
            _served: served,
            _dir: dir,
        }
    }

    fn load(self: &Arc<Self>) -> Vec<(Case, Duration)> {
        let count = PER_SECOND * SECONDS;
        // Made before, so that making them delays none.
        let mut questions = (0..count)
            .map(|number| Question::new(case(number), number))
            .collect::<Vec<_>>()
            .into_iter();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let mut under_way = Vec::new();
        open_loop(PER_SECOND, count, |_, due| {
            let question = questions.next().expect("one for each arrival");
            let (stand, taken) = (Arc::clone(self), Arc::clone(&taken));
            under_way.push(self.runtime.spawn(async move {
                let answered = stand.ask(&question).await;
                let latency = answered.duration_since(due);
                taken.lock().expect("no panic").push((question.case, latency));
            }));
        });
        for one in under_way {
            self.runtime.block_on(one).expect("an answer");
        }
        let taken = taken.lock().expect("no panic");
        taken.clone()
    }

    /// When the answer was there. The fake API then has the pod's metadata, which is all of it that the webhook reads.
    async fn ask(&self, question: &Question) -> Instant {
        let request = self.http.post(&self.url).body(question.body.clone());
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let bytes = answer.bytes().await.expect("a body");
        let answered = Instant::now();
        let answer: Value = serde_json::from_slice(&bytes).expect("JSON");
        let patch = answer["response"]["patch"].as_str();
        assert_eq!(patch.is_some(), question.case != Case::Skipped, "{answer}");
        if let Some(patch) = patch {
            self.create(&question.pod, &BASE64_STANDARD.decode(patch).expect("base64"));
        }
        answered
    }

    fn create(&self, pod: &Value, patch: &[u8]) {
        let patch: Vec<Value> = serde_json::from_slice(patch).expect("a patch");
        let mut metadata = pod["metadata"].clone();
        for operation in patch {
            let annotation = operation["path"]
                .as_str()
                .and_then(|path| path.strip_prefix("/metadata/annotations/"));
            if let Some(name) = annotation {
                metadata["annotations"][name.replace("~1", "/")] = operation["value"].clone();
            }
        }
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        self.api.put(
            &format!("/api/v1/namespaces/{namespace}/pods"),
            json!({ "metadata": metadata }),
        );
    }

    fn cpu_seconds(&self) -> f64 {
        cpu_seconds(&[self.webhook.pid()])
    }

    fn own_histogram(&self) -> Histogram {
        let text = Request::get(self.admin, "/metrics")
            .send()
            .expect("the admin port answers")
            .text();
        Histogram::read(&text, "piecemeal_webhook_review_seconds", "")
    }
}

/// One that keeps connections as an API server does, and trusts what the webhook has published.
fn client(api: &FakeApi) -> reqwest::Client {
    let configuration = api
        .get(&format!("{CONFIGURATIONS}/piecemeal"))
        .expect("it was put there");
    let bundle = configuration["webhooks"][0]["clientConfig"]["caBundle"]
        .as_str()
        .expect("a CA");
    let bundle = BASE64_STANDARD.decode(bundle).expect("base64");
    reqwest::Client::builder()
        .tls_certs_only(Certificate::from_pem_bundle(&bundle).expect("certificates"))
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .tcp_nodelay(true)
        .no_proxy()
        .build()
        .expect("a client")
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it has one")
}

const PER_SECOND: u32 = 200;
const SECONDS: u32 = 30;
const NAMESPACES: u32 = 20;
const USED_SECRETS: u32 = 200;
const P99_MS_MAX: f64 = 10.0;
const WEBHOOK_CORE: usize = 0;
const LOAD_CORE: usize = 1;
/// As client-go has it for each host.
const IDLE_CONNECTIONS: usize = 25;
const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
