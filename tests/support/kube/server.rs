//! The programs: etcd, the API server, the controllers; their keys, their start and their end.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    super::{outcome::CommandOutcome, process::Process, scratch::ScratchDir},
    assets::program,
    caretaker::Caretaker,
    client::{KubeClient, wait_until},
    identity::Identity,
};

/// A running API server with its etcd.
#[derive(Debug)]
pub struct KubeApi {
    // Programs first: fields are dropped in order, and the caretaker has nothing left to do after them.
    controllers: Option<Process>,
    apiserver: Process,
    etcd: Process,
    _caretaker: Caretaker,
    url: String,
    ca_pem: String,
    admin: Identity,
    scratch: ScratchDir,
}

#[derive(Debug)]
pub struct KubeOptions {
    /// Whether the controllers run: ownership, namespaces, service accounts, and workloads down to their pods.
    pub controllers: bool,
    /// Where nodes and their pods reach the API server; without it there are none, and it is on loopback. All controllers
    /// run then.
    pub address: Option<Ipv4Addr>,
    /// For the API server, after ours.
    pub apiserver_flags: Vec<String>,
}

impl Default for KubeOptions {
    fn default() -> Self {
        Self {
            controllers: true,
            address: None,
            apiserver_flags: Vec::new(),
        }
    }
}

impl KubeApi {
    /// The one of this test binary, started by the first test that asks, with all options at their defaults.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<KubeApi> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&KubeOptions::default()))
    }

    pub fn start(options: &KubeOptions) -> Self {
        let scratch = ScratchDir::new();
        let files = Files::create(&scratch.folder("kube"), options.address);
        let [etcd_address, peers, mut address] = free_addresses();
        if let Some(ip) = options.address {
            address.set_ip(ip.into());
        }
        let url = format!("https://{address}");

        let etcd = Process::start("etcd", etcd(&files, etcd_address, peers), &files.log("etcd"));
        let group = i32::try_from(etcd.pid()).expect("process ids are small");
        let caretaker = Caretaker::watch(group, scratch.path());
        let mut apiserver = apiserver(&files, etcd_address, address);
        let reached = reached_at(options.address);
        apiserver
            .args(reached)
            .args(&options.apiserver_flags)
            .process_group(group);
        let mut apiserver = Process::start("kube-apiserver", apiserver, &files.log("kube-apiserver"));

        let mut client = KubeClient::new(&url, &files.ca_pem, ADMIN_TOKEN);
        wait_until_ready(&client, &mut apiserver);
        client.discover();
        let admin = Identity::new(client, &url, &files.ca_pem, ADMIN_TOKEN, &files.folder, "admin");
        let controllers = options.controllers.then(|| {
            let mut command = controllers(&files, admin.kubeconfig());
            let names = options.address.map_or(CONTROLLERS.join(","), |_| "*".to_owned());
            command.arg(format!("--controllers={names}")).process_group(group);
            let log = files.log("kube-controller-manager");
            Process::start("kube-controller-manager", command, &log)
        });
        Self {
            controllers,
            apiserver,
            etcd,
            _caretaker: caretaker,
            url,
            ca_pem: files.ca_pem,
            admin,
            scratch,
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The CA that clients have to trust.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A user who may do everything.
    pub fn admin(&self) -> &Identity {
        &self.admin
    }

    /// A client that may do everything.
    pub fn client(&self) -> &KubeClient {
        self.admin.client()
    }

    /// One of Kubernetes' own: `scheduler`, `proxy`, or the name of a node.
    pub(super) fn component(&self, name: &str) -> Identity {
        let token = component_token(name);
        let (client, folder) = (self.client().with_token(&token), self.scratch.path());
        Identity::new(client, &self.url, &self.ca_pem, &token, folder, name)
    }

    /// A folder for what belongs to this API server's tests, gone with it.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.scratch.folder(name)
    }

    /// Has a program end with this API server, however that ends.
    pub fn look_after(&self, command: &mut Command) {
        command.process_group(i32::try_from(self.etcd.pid()).expect("process ids are small"));
    }

    /// A new namespace, whose name begins with `name`, with its `default` service account.
    pub fn namespace(&self, name: &str) -> String {
        self.labelled_namespace(name, &json!({}))
    }

    /// The same with labels from its beginning: an API server may be a moment late with those that come later.
    pub fn labelled_namespace(&self, name: &str, labels: &Value) -> String {
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let name = format!("{name}-{}", CREATED.fetch_add(1, Ordering::Relaxed));
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        let created = self.client().create(&namespace);
        created.unwrap_or_else(|error| panic!("creating Namespace {name}: {error}"));
        if self.controllers.is_some() {
            wait_until(&format!("{name} has a service account"), || {
                self.client().get("ServiceAccount", &name, "default")
            });
        } else {
            self.create("v1", "ServiceAccount", &name, "default");
        }
        name
    }

    /// A new service account, which may do nothing until it is given a role, with a token of the API server's for an hour.
    pub fn service_account(&self, namespace: &str, name: &str) -> Identity {
        self.create("v1", "ServiceAccount", namespace, name);
        self.identity_of(namespace, name)
    }

    /// The same for a service account that is there, as one of a chart.
    pub fn identity_of(&self, namespace: &str, name: &str) -> Identity {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": { "expirationSeconds": 3600 },
        });
        let granted = self.client().request(Method::POST, &path, Some(&request));
        let granted = granted.unwrap_or_else(|error| panic!("a token for {namespace}/{name}: {error}"));
        let token = granted["status"]["token"].as_str().expect("a token");
        let (client, folder) = (self.client().with_token(token), self.scratch.path());
        Identity::new(
            client,
            &self.url,
            &self.ca_pem,
            token,
            folder,
            &format!("{namespace}-{name}"),
        )
    }

    /// Applies every object of a YAML text, as `kubectl apply` does.
    ///
    /// # Panics
    /// With kubectl's own words, when one is refused.
    pub fn apply_yaml(&self, yaml: &str) {
        static APPLIED: AtomicU32 = AtomicU32::new(0);
        let number = APPLIED.fetch_add(1, Ordering::Relaxed);
        let file = self.scratch.path().join(format!("applied-{number}.yaml"));
        fs::write(&file, yaml).expect("writing YAML");
        let mut command = self.admin.kubectl(&["apply", "--server-side", "--filename"]);
        CommandOutcome::of(command.arg(file), Instant::now()).expect_ok();
    }

    /// The end of what the programs said; for a test that failed without an idea why.
    pub fn log_tail(&self) -> String {
        let controllers = self.controllers.as_ref().map(Process::log_tail).unwrap_or_default();
        self.apiserver.log_tail() + &controllers
    }

    fn create(&self, version: &str, kind: &str, namespace: &str, name: &str) {
        let metadata = match namespace {
            "" => json!({ "name": name }),
            namespace => json!({ "name": name, "namespace": namespace }),
        };
        let object = json!({ "apiVersion": version, "kind": kind, "metadata": metadata });
        let created = self.client().create(&object);
        created.unwrap_or_else(|error| panic!("creating {kind} {name}: {error}"));
    }
}

/// What the programs read, in one folder.
struct Files {
    folder: PathBuf,
    ca_pem: String,
}

impl Files {
    fn create(folder: &Path, address: Option<Ipv4Addr>) -> Self {
        let ca_key = KeyPair::generate().expect("generating a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&ca_key).expect("signing a certificate").pem();
        let issuer = Issuer::new(params, ca_key);

        let names = ["127.0.0.1", "localhost", SERVICE_IP, "kubernetes.default.svc"].map(str::to_owned);
        let names = names.into_iter().chain(address.map(|ip| ip.to_string()));
        let params = CertificateParams::new(names.collect::<Vec<String>>()).expect("the server's names");
        let [certificate, key] = sign(params, ExtendedKeyUsagePurpose::ServerAuth, &issuer);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        let [at_kubelets, key_at_kubelets] = sign(params, ExtendedKeyUsagePurpose::ClientAuth, &issuer);

        let accounts = KeyPair::generate().expect("generating a key");
        let files = Self {
            folder: folder.to_owned(),
            ca_pem,
        };
        for (name, text) in [
            (CA, files.ca_pem.clone()),
            (CERTIFICATE, certificate),
            (KEY, key),
            (KUBELETS_CERTIFICATE, at_kubelets),
            (KUBELETS_KEY, key_at_kubelets),
            (ACCOUNTS_KEY, accounts.serialize_pem()),
            (ACCOUNTS_PUBLIC_KEY, accounts.public_key_pem()),
            (TOKENS, tokens()),
        ] {
            fs::write(folder.join(name), text).expect("writing the API server's files");
        }
        files
    }

    fn log(&self, program: &str) -> PathBuf {
        self.folder.join(format!("{program}.log"))
    }

    /// The flag `--name=file`.
    fn flag(&self, name: &str, file: &str) -> String {
        format!("--{name}={}", self.folder.join(file).display())
    }
}

fn etcd(files: &Files, clients: SocketAddr, peers: SocketAddr) -> Command {
    let mut command = Command::new(program("etcd"));
    command
        .arg(files.flag("data-dir", "etcd"))
        .arg(format!("--listen-client-urls=http://{clients}"))
        .arg(format!("--advertise-client-urls=http://{clients}"))
        .arg(format!("--listen-peer-urls=http://{peers}"))
        .args(["--unsafe-no-fsync", "--log-level=warn"])
        // The first of a group that the others join, so that one signal reaches all.
        .process_group(0);
    command
}

fn apiserver(files: &Files, etcd: SocketAddr, address: SocketAddr) -> Command {
    let mut command = Command::new(program("kube-apiserver"));
    command
        .arg(format!("--etcd-servers=http://{etcd}"))
        .arg(format!("--bind-address={}", address.ip()))
        .arg(format!("--secure-port={}", address.port()))
        .arg(files.flag("cert-dir", ""))
        .arg(files.flag("tls-cert-file", CERTIFICATE))
        .arg(files.flag("tls-private-key-file", KEY))
        .arg(files.flag("client-ca-file", CA))
        .arg(files.flag("token-auth-file", TOKENS))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg(files.flag("service-account-key-file", ACCOUNTS_PUBLIC_KEY))
        .arg(files.flag("service-account-signing-key-file", ACCOUNTS_KEY))
        .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
        .arg(format!("--service-cluster-ip-range={SERVICE_NETWORK}"))
        // For the logs of pods.
        .arg(files.flag("kubelet-client-certificate", KUBELETS_CERTIFICATE))
        .arg(files.flag("kubelet-client-key", KUBELETS_KEY))
        .arg("--kubelet-preferred-address-types=InternalIP")
        // A webhook that is named by its Service is found by the endpoints, since nothing here forwards a Service's address.
        .arg("--enable-aggregator-routing=true");
    command
}

/// By default it looks for a default route, which a machine without a network has not.
fn reached_at(address: Option<Ipv4Addr>) -> Vec<String> {
    match address {
        Some(ip) => vec![format!("--advertise-address={ip}")],
        None => ["--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"]
            .map(str::to_owned)
            .into(),
    }
}

/// Certificate and key, in PEM.
fn sign(mut params: CertificateParams, usage: ExtendedKeyUsagePurpose, issuer: &Issuer<'_, KeyPair>) -> [String; 2] {
    let key = KeyPair::generate().expect("generating a key");
    params.extended_key_usages = vec![usage];
    let certificate = params.signed_by(&key, issuer).expect("signing a certificate");
    [certificate.pem(), key.serialize_pem()]
}

/// The users with static tokens at the API server: token, user, an id, and the user's groups.
fn tokens() -> String {
    let mut lines = format!("{ADMIN_TOKEN},admin,admin,system:masters\n");
    for name in ["scheduler", "proxy"] {
        lines += &format!("{},system:kube-{name},{name}\n", component_token(name));
    }
    for name in (1..=NODES_MAX).map(|number| format!("node{number}")) {
        lines += &format!("{},system:node:{name},{name},system:nodes\n", component_token(&name));
    }
    lines
}

fn component_token(name: &str) -> String {
    format!("tests-{name}")
}

fn controllers(files: &Files, kubeconfig: &Path) -> Command {
    let mut command = Command::new(program("kube-controller-manager"));
    command
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(files.flag("service-account-private-key-file", ACCOUNTS_KEY))
        .arg(files.flag("root-ca-file", CA))
        // It has no clients, and no other instance could lead.
        .args(["--secure-port=0", "--leader-elect=false"]);
    command
}

fn wait_until_ready(client: &KubeClient, apiserver: &mut Process) {
    let deadline = Instant::now() + START_TIME_MAX;
    while let Err(error) = client.request(Method::GET, "/readyz", None) {
        assert!(
            apiserver.is_running() && Instant::now() < deadline,
            "the API server does not become ready: {error}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// Loopback addresses that were free just now.
fn free_addresses<const COUNT: usize>() -> [SocketAddr; COUNT] {
    // All are held until the last is found: none is found twice.
    let listeners = [(); COUNT].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listening on loopback"));
    listeners.map(|listener| listener.local_addr().expect("a listener's address"))
}

/// Those whose work tests look at.
const CONTROLLERS: [&str; 12] = [
    "clusterrole-aggregation-controller",
    "daemonset-controller",
    "deployment-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "statefulset-controller",
    "ttl-after-finished-controller",
];

const SERVICE_NETWORK: &str = "10.0.0.0/24";
/// The API server's own Service is the first of the network.
const SERVICE_IP: &str = "10.0.0.1";
/// There are tokens for these many.
const NODES_MAX: usize = 9;

const ADMIN_TOKEN: &str = "tests-admin";
const CA: &str = "ca.crt";
const CERTIFICATE: &str = "apiserver.crt";
const KEY: &str = "apiserver.key";
const KUBELETS_CERTIFICATE: &str = "kubelets.crt";
const KUBELETS_KEY: &str = "kubelets.key";
const ACCOUNTS_KEY: &str = "service-accounts.key";
const ACCOUNTS_PUBLIC_KEY: &str = "service-accounts.pub";
const TOKENS: &str = "tokens.csv";
/// On a machine that is busy with other builds it takes a while.
const START_TIME_MAX: Duration = Duration::from_secs(120);
