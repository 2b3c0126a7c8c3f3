//! nginx, serving the same bytes under the same paths out of a folder.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crate::support::{Netns, Process, ScratchDir};

pub(crate) struct Nginx {
    process: Process,
    address: SocketAddr,
    scratch: ScratchDir,
}

impl Nginx {
    /// Starts it with an empty folder at `address` inside the namespace.
    pub(crate) fn start(netns: &Netns, address: SocketAddr) -> Self {
        let scratch = ScratchDir::new();
        scratch.folder("root");
        let (dir, file) = (scratch.path().display(), scratch.path().join("nginx.conf"));
        // The folder is root's alone, and workers have to read it.
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {dir}/{kind};\n"))
            .concat();
        let config = format!(
            "daemon off;\nuser root;\npid {dir}/nginx.pid;\nerror_log {dir}/error.log;\n{SETTINGS}\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n{HTTP_SETTINGS}\n{temporary}\
             default_type application/octet-stream;\n\
             server {{ listen {address}; root {dir}/root; }}\n}}\n"
        );
        fs::write(&file, config).expect("writing nginx's configuration");
        let mut command = netns.command("nginx");
        command.arg("-c").arg(&file);
        let mut nginx = Self {
            process: Process::start("nginx", command, &scratch.path().join("nginx.log")),
            address,
            scratch,
        };
        nginx.wait_until_ready(netns);
        nginx
    }

    /// Serves these bytes at a path, whatever query comes with it.
    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        let file = self.file(path);
        fs::create_dir_all(file.parent().expect("a file lies in a folder")).expect("creating a folder for nginx");
        fs::write(file, bytes).expect("writing a file for nginx");
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The master, and the workers that do everything.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let master = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children"));
        let children = children.expect("the kernel tells a process's children");
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        [master].into_iter().chain(children).collect()
    }

    /// What is not nginx's default.
    pub(crate) fn settings() -> String {
        let settings = [SETTINGS, HTTP_SETTINGS].join(" ");
        settings.trim_end_matches(';').replace(';', ",")
    }

    fn file(&self, path: &str) -> PathBuf {
        let path = path.split('?').next().unwrap_or_default();
        self.scratch.path().join("root").join(path.trim_start_matches('/'))
    }

    fn wait_until_ready(&mut self, netns: &Netns) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while netns.enter(|| TcpStream::connect(self.address)).is_err() {
            let in_time = self.process.is_running() && Instant::now() < deadline;
            assert!(in_time, "nginx does not listen\n{}", self.process.log_tail());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

const SETTINGS: &str = "worker_processes auto;";
const HTTP_SETTINGS: &str =
    "sendfile on; tcp_nopush on; access_log off; open_file_cache max=1000; keepalive_requests 10000000;";
