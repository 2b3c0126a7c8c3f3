//! A user's home on some machine: the registry clients that are run there, and the settings and passwords that they find.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::{Map, Value, json};

use super::{netns::Netns, outcome::CommandOutcome, tools::go_tool};

/// A home folder, where a user's clients look for their settings. They see none of the real user's files.
#[derive(Debug)]
pub struct Home {
    netns: Netns,
    dir: PathBuf,
}

impl Home {
    /// An empty one, whose clients run inside the namespace.
    pub fn new(netns: &Netns, dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("creating a home");
        let (netns, dir) = (netns.clone(), dir.to_owned());
        let home = Self { netns, dir };
        home.log_in(&[]);
        home.accept_unsigned();
        home
    }

    /// A place in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Keeps these passwords, in the file that `docker login` writes and all clients read: registry and `user:password` in
    /// base64.
    pub fn log_in(&self, passwords: &[(&str, &str)]) {
        let auths: Map<String, Value> = passwords
            .iter()
            .map(|(registry, password)| ((*registry).to_owned(), json!({ "auth": password })))
            .collect();
        fs::write(self.join(PASSWORDS), json!({ "auths": auths }).to_string()).expect("writing the passwords");
    }

    /// Lets podman and buildah pull without signatures: they need a policy, which not every installation has.
    fn accept_unsigned(&self) {
        let file = self.join(".config/containers/policy.json");
        fs::create_dir_all(file.parent().expect("a file lies in a folder")).expect("creating podman's folder");
        fs::write(file, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("writing policy.json");
    }

    /// Sends pulls from `registry` to `mirror`, a host with a path, as podman and CRI-O are told to.
    pub fn write_registries_conf(&self, registry: &str, mirror: &str) {
        let conf = format!(
            "[[registry]]\nlocation = \"{registry}\"\n\n\
             [[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n"
        );
        let file = self.join(".config/containers/registries.conf");
        fs::create_dir_all(file.parent().expect("a file lies in a folder")).expect("creating skopeo's folder");
        fs::write(file, conf).expect("writing registries.conf");
    }

    /// Has these drop-ins, and no others, as they would be in `/etc/containers/registries.conf.d`.
    pub fn take_drop_ins(&self, from: &Path) {
        let folder = self.join(".config/containers/registries.conf.d");
        // Absent the first time.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("creating skopeo's folder");
        for entry in fs::read_dir(from).into_iter().flatten().flatten() {
            fs::copy(entry.path(), folder.join(entry.file_name())).expect("copying a drop-in");
        }
    }

    /// Has these lines for its machine's `/etc/hosts`.
    pub fn take_hosts(&self, from: &Path) {
        fs::copy(from, self.join(HOSTS)).expect("copying the machine's hosts");
    }

    pub fn crane(&self, arguments: &[&str]) -> CommandOutcome {
        self.run(&go_tool("crane"), arguments)
    }

    pub fn oras(&self, arguments: &[&str]) -> CommandOutcome {
        self.run(&go_tool("oras"), arguments)
    }

    pub fn regctl(&self, arguments: &[&str]) -> CommandOutcome {
        self.run(&go_tool("regctl"), arguments)
    }

    pub fn helm(&self, arguments: &[&str]) -> CommandOutcome {
        self.run(&go_tool("helm"), arguments)
    }

    /// podman with a store of its own here.
    pub fn podman(&self, arguments: &[&str]) -> CommandOutcome {
        self.run(Path::new("podman"), &[&STORE, arguments].concat())
    }

    /// buildah with a store of its own here.
    pub fn buildah(&self, arguments: &[&str]) -> CommandOutcome {
        self.run(Path::new("buildah"), &[&STORE, arguments].concat())
    }

    /// Copies an image with all that it is made of into a folder here.
    pub fn skopeo_copy(&self, flags: &[&str], image: &str, folder: &str) -> CommandOutcome {
        // Without the policy the copy needs /etc/containers/policy.json, which not every installation has.
        let copy = ["--insecure-policy", "copy", "--all", "--preserve-digests"];
        let (from, to) = (
            format!("docker://{image}"),
            format!("dir:{}", self.join(folder).display()),
        );
        self.run(Path::new("skopeo"), &[&copy[..], flags, &[&from, &to]].concat())
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> CommandOutcome {
        let (program, hosts) = (program.to_str().expect("the tools' path is text"), self.join(HOSTS));
        let mut command = if hosts.exists() {
            // `ip netns exec` has made a mount namespace of the process's own.
            let mut command = self.netns.command("sh");
            command.args(["-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
            command.arg(hosts).arg(program);
            command
        } else {
            self.netns.command(program)
        };
        command
            .args(arguments)
            .current_dir(&self.dir)
            .env("HOME", &self.dir)
            .env("DOCKER_CONFIG", &self.dir)
            .env("REGISTRY_AUTH_FILE", self.join(PASSWORDS));
        CommandOutcome::of(&mut command, Instant::now())
    }
}

/// A store of images in the home, that works on every file system.
const STORE: [&str; 6] = ["--root", "store", "--runroot", "run", "--storage-driver", "vfs"];
/// The machine's hosts, if it has any of its own.
const HOSTS: &str = "hosts";
/// The name that Docker's clients look for.
const PASSWORDS: &str = "config.json";
