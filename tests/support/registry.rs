//! Debian's `docker-registry`: an independent upstream, whose access log tells what it was asked for.

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};

use super::{
    http::{Request, Response},
    image::{Blob, Image},
    netns::Netns,
    process::{Process, append_to},
    scratch::ScratchDir,
    token_server::{ISSUER, SERVICE, TokenServer},
};

/// A running registry with storage of its own.
#[derive(Debug)]
pub struct DockerRegistry {
    process: Process,
    netns: Netns,
    address: SocketAddr,
    access_log: PathBuf,
    /// What pushes are allowed with.
    authorization: Option<String>,
    scratch: ScratchDir,
}

/// The authentication that a registry requires.
#[derive(Debug)]
pub enum RegistryAuth<'a> {
    Nothing,
    /// User and password: [`USER`] and [`PASSWORD`].
    Htpasswd,
    /// A token of this server.
    Token(&'a TokenServer),
}

/// The one user of a registry with passwords.
pub const USER: &str = "alice";
pub const PASSWORD: &str = "s3cret";
/// The password above, by bcrypt.
const PASSWORD_HASH: &str = "$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK";

/// `Basic` and user and password in base64.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
}

impl DockerRegistry {
    /// Starts an empty registry at `address` inside the namespace.
    pub fn start(netns: &Netns, address: SocketAddrV4) -> Self {
        Self::start_guarded(netns, address, &RegistryAuth::Nothing)
    }

    /// Starts an empty registry that asks its clients for something.
    pub fn start_guarded(netns: &Netns, address: SocketAddrV4, auth: &RegistryAuth<'_>) -> Self {
        let scratch = ScratchDir::new();
        let storage = scratch.folder("storage");
        let (auth, authorization) = auth.configure(scratch.path());
        let config = format!(
            "version: 0.1\n\
             log: {{level: info, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '{address}'}}\n{auth}",
            storage.display()
        );
        let config_file = scratch.path().join("config.yml");
        fs::write(&config_file, config).expect("writing the registry's configuration");

        let access_log = scratch.path().join("access.log");
        let mut command = netns.command("docker-registry");
        command.arg("serve").arg(config_file).stdout(append_to(&access_log));
        let process = Process::start_with_stdout("docker-registry", command, &scratch.path().join("registry.log"));
        let registry = Self {
            process,
            netns: netns.clone(),
            address: address.into(),
            access_log,
            authorization,
            scratch,
        };
        registry.wait_until_ready();
        registry
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Uploads an image, without blobs that the repository already has.
    pub fn push(&self, image: &Image) {
        let repository = image.repository();
        for blob in image.blobs() {
            self.push_blob(repository, blob);
        }
        for manifest in image.manifests() {
            self.put_manifest(repository, &manifest.digest, manifest);
            if manifest.digest == image.digest() {
                self.put_manifest(repository, image.tag(), manifest);
            }
        }
    }

    /// Starts it again behind TLS, asking every client for a certificate of this CA. It cannot be pushed to any more.
    pub fn start_again_with_tls(&mut self, [certificate, key, client_ca]: [&Path; 3]) {
        self.process.kill();
        let file = self.scratch.path().join("config.yml");
        let config = fs::read_to_string(&file).expect("reading the registry's configuration");
        let tls = format!(
            "tls: {{certificate: {}, key: {}, clientcas: [{}]}}, addr:",
            certificate.display(),
            key.display(),
            client_ca.display()
        );
        fs::write(&file, config.replace("addr:", &tls)).expect("writing the registry's configuration");
        self.process.start_again();
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.netns.enter(|| std::net::TcpStream::connect(self.address)).is_err() {
            assert!(
                Instant::now() < deadline,
                "docker-registry does not listen\n{}",
                self.process.log_tail()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process, to freeze it for example.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Requests of this method whose path ends so and that were answered with this status, by the access log.
    pub fn requests(&self, method: &str, path_end: &str, status: u16) -> usize {
        let (method, status) = (format!("\"{method} "), format!(" HTTP/1.1\" {status} "));
        let matches = |line: &&str| {
            let target = line.split_once(&method).and_then(|(_, rest)| rest.split_once(&status));
            target.is_some_and(|(target, _)| target.split('?').next().is_some_and(|path| path.ends_with(path_end)))
        };
        self.log_text().lines().filter(matches).count()
    }

    /// Bytes of bodies sent in answer to GETs of a blob, by the access log.
    pub fn blob_bytes_served(&self, digest: &str) -> u64 {
        self.blob_gets(digest)
            .iter()
            .filter(|get| matches!(get.status, 200 | 206))
            .map(|get| get.bytes)
            .sum()
    }

    /// GETs of a blob, by the access log, whatever the answer was.
    pub fn blob_requests(&self, digest: &str) -> usize {
        self.blob_gets(digest).len()
    }

    /// The access log in combined format, once it has come to rest: a line is written after the last byte was sent, so the
    /// client may be done before it appears.
    pub fn log_text(&self) -> String {
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.access_log_age() < Duration::from_millis(200) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        fs::read_to_string(&self.access_log).expect("reading the registry's access log")
    }

    fn blob_gets(&self, digest: &str) -> Vec<BlobGet> {
        let path_end = format!("/blobs/{digest}");
        self.log_text()
            .lines()
            .filter_map(|line| BlobGet::parse(line, &path_end))
            .collect()
    }

    fn access_log_age(&self) -> Duration {
        let written = fs::metadata(&self.access_log)
            .and_then(|log| log.modified())
            .expect("finding the access log");
        // A clock that was set back makes the log look newer than now.
        written.elapsed().unwrap_or_default()
    }

    /// Uploads one blob, unless the repository has it.
    pub fn push_blob(&self, repository: &str, blob: &Blob) {
        let head = Request::head(self.address, &format!("/v2/{repository}/blobs/{}", blob.digest));
        if self.send(head).status == 200 {
            return;
        }
        let upload = Request::new("POST", self.address, &format!("/v2/{repository}/blobs/uploads/"));
        let upload = self.demand(upload, 202);
        let location = upload.headers.get("location").expect("an upload has a location");
        // The location is a whole URL with a query.
        let target = location.splitn(4, '/').nth(3).expect("a URL has a path");
        let put = Request::new("PUT", self.address, &format!("/{target}&digest={}", blob.digest));
        self.demand(
            put.header("Content-Type", "application/octet-stream").body(&blob.bytes),
            201,
        );
    }

    /// Puts a manifest under a tag or under its digest.
    pub fn put_manifest(&self, repository: &str, name: &str, manifest: &Blob) {
        let put = Request::new("PUT", self.address, &format!("/v2/{repository}/manifests/{name}"));
        self.demand(
            put.header("Content-Type", manifest.media_type).body(&manifest.bytes),
            201,
        );
    }

    fn demand(&self, request: Request, status: u16) -> Response {
        let response = self.send(request.clone());
        assert_eq!(response.status, status, "{request:?}: {}", response.text());
        response
    }

    fn send(&self, request: Request) -> Response {
        let authorization = self.authorization.iter();
        authorization
            .fold(request, |request, value| request.header("Authorization", value))
            .send_from(&self.netns)
            .expect("speaking to the registry")
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let request = Request::get(self.address, "/v2/");
        while !request
            .send_from(&self.netns)
            .is_ok_and(|response| matches!(response.status, 200 | 401))
        {
            assert!(
                Instant::now() < deadline,
                "docker-registry does not answer\n{}",
                self.process.log_tail()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl RegistryAuth<'_> {
    /// The section of the registry's configuration, and the `Authorization` of pushes.
    fn configure(&self, dir: &Path) -> (String, Option<String>) {
        match self {
            Self::Nothing => (String::new(), None),
            Self::Htpasswd => {
                let file = dir.join("htpasswd");
                fs::write(&file, format!("{USER}:{PASSWORD_HASH}\n")).expect("writing htpasswd");
                let section = format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", file.display());
                (section, Some(basic(USER, PASSWORD)))
            }
            Self::Token(server) => {
                let file = dir.join("token.pem");
                fs::write(&file, server.certificate_pem()).expect("writing the token server's certificate");
                let section = format!(
                    "auth: {{token: {{realm: '{}', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {}}}}}\n",
                    server.realm(),
                    file.display()
                );
                (section, Some(format!("Bearer {}", server.push_token())))
            }
        }
    }
}

struct BlobGet {
    status: u16,
    bytes: u64,
}

impl BlobGet {
    /// Parses `… "GET <target> HTTP/1.1" <status> <bytes> …` where the target's path ends as asked.
    fn parse(line: &str, path_end: &str) -> Option<Self> {
        let (_, rest) = line.split_once("\"GET ")?;
        let (target, rest) = rest.split_once(" HTTP/1.1\" ")?;
        let path = target.split('?').next()?;
        let mut numbers = rest.split(' ');
        let (status, bytes) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        path.ends_with(path_end).then_some(Self { status, bytes })
    }
}
