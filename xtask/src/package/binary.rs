//! Static binary: its build, and the proof that it needs nothing around it.
//!
//! Invariant: a binary that names a loader or a library is an error, whether it was built here or given.

use std::{
    env, fs,
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    release::{Release, VERSION, text},
    target::Target,
    tree::Tree,
};
use crate::{packages, shell};

pub(super) struct Binary {
    pub path: PathBuf,
    pub target: &'static Target,
    /// One that runs here: the same, unless that is for another machine.
    native: PathBuf,
}

impl Binary {
    /// Builds for `target`, and checks the result.
    pub(super) fn build(target: &'static Target) -> Result<Self> {
        let path = cargo_build(target)?;
        let native = if target.is_native() {
            path.clone()
        } else {
            let installed = Target::installed()?;
            cargo_build(installed.first().context("there is no target for this machine")?)?
        };
        Self { path, target, native }.checked()
    }

    /// One that was built before.
    pub(super) fn given(target: &'static Target, path: &Path) -> Result<Self> {
        let (path, native) = (path.to_owned(), path.to_owned());
        Self { path, target, native }.checked()
    }

    /// Copies it to where releases go; the name that it has there.
    pub(super) fn publish(&self, release: &Release) -> Result<String> {
        let name = format!("piecemeal-{VERSION}-linux-{}", self.target.architecture);
        // With its mode, by which every user may run it.
        release.keep(&self.path, &name)?;
        Ok(name)
    }

    /// The text that the binary prints when it is given `arguments`.
    pub(super) fn print(&self, arguments: &[&str]) -> Result<String> {
        shell::output(text(&self.native)?, arguments)
    }

    fn checked(self) -> Result<Self> {
        self.check_static()?;
        if !self.target.is_native() {
            println!(
                "NOTE: {} was not run, since it is not for this machine",
                self.target.triple
            );
        } else if fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0) {
            self.check_alone()?;
        } else {
            println!("NOTE: only root may change the root folder: the binary was NOT run in an empty one");
        }
        Ok(self)
    }

    /// No loader and no libraries. There is a dynamic section all the same: a static binary that can be put at any address
    /// relocates itself by it.
    fn check_static(&self) -> Result<()> {
        let shown = shell::output(
            "readelf",
            &["--wide", "--program-headers", "--dynamic", text(&self.path)?],
        )?;
        let wanted = shown
            .lines()
            .find(|line| line.contains("INTERP") || line.contains("(NEEDED)"));
        match wanted {
            Some(line) => bail!("{} is not static: {}", self.path.display(), line.trim()),
            None => Ok(()),
        }
    }

    /// Runs it where there is nothing but it and what says how names are resolved, and has it find a server by a name.
    fn check_alone(&self) -> Result<()> {
        let server = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
        let url = format!("http://{NAME}:{}", server.local_addr()?.port());
        let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
        let root = Tree::new(dir.path());
        root.copy(&self.path, "piecemeal", 0o755)?;
        root.write("etc/hosts", format!("127.0.0.1 {NAME}\n"), 0o644)?;
        // No other module may be asked, whatever this says: packaging/binary/names.c.
        root.write("etc/nsswitch.conf", "hosts: mymachines resolve\n", 0o644)?;
        // It ends with this process, whether it was asked or not.
        thread::spawn(move || answer_once(&server));

        let arguments = [text(dir.path())?, "/piecemeal", "status", "--json", "--admin", &url];
        let said = Command::new("chroot")
            .args(arguments)
            .output()
            .context("cannot run chroot")?;
        let out = String::from_utf8_lossy(&said.stdout);
        ensure!(
            said.status.success() && out.contains(ROLE),
            "{} does not work in an empty root folder ({}): {out}{}",
            self.path.display(),
            said.status,
            String::from_utf8_lossy(&said.stderr)
        );
        println!("it runs in an empty root folder, and finds {NAME} by the /etc/hosts there");
        Ok(())
    }
}

const NAME: &str = "alone.test";
const ROLE: &str = "package-check";

fn answer_once(server: &TcpListener) -> Result<()> {
    let (mut stream, _) = server.accept()?;
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    let body = format!("{{\"role\":\"{ROLE}\"}}");
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )?;
    Ok(())
}

/// Builds the release; its path.
fn cargo_build(target: &Target) -> Result<PathBuf> {
    let cargo_home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")));
    let cargo_home = cargo_home.context("neither CARGO_HOME nor HOME is set")?;
    let target_dir = shell::target_dir()?;
    // The places of this machine must be in no backtrace: they would make each builder's result another. The last that fits wins.
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={}=/piecemeal", text(shell::root())?),
        format!("--remap-path-prefix={cargo_home}=/cargo"),
        format!("--remap-path-prefix={}=/target", text(&target_dir)?),
    ];
    if !target.is_musl() {
        // The C compiler links, and compiles what it is given first. Relative: a path of this machine would be in the hash of every name.
        flags.push("-Clink-arg=packaging/binary/names.c".to_owned());
    }
    // By this variable, which wins over all the others: flags of the caller's own would make it another binary.
    let flags = flags.join("\u{1f}");
    let mut environment = vec![("CARGO_ENCODED_RUSTFLAGS", &*flags)];
    if let Some((compiler, package)) = target.compiler {
        if target.is_musl() || !target.is_native() {
            packages::install_for("packaging needs", &[(compiler, package)])?;
        }
        if !target.is_native() {
            environment.push(("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", compiler));
        }
    }
    let arguments = [
        "build",
        "--profile",
        "dist",
        "--locked",
        "--package",
        "piecemeal",
        "--bin",
        "piecemeal",
        "--target",
        target.triple,
    ];
    shell::run_with("cargo", &arguments, &environment)?;
    Ok(target_dir.join(target.triple).join("dist/piecemeal"))
}
