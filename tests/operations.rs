//! The commands of docs/operations.md do what it says, in the order in which they stand there.

mod support;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use support::{DockerRegistry, Image, Netns, ScratchDir};

const PIECEMEAL: &str = env!("CARGO_BIN_EXE_piecemeal");
const REGISTRY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5000);
/// What units are to systemd, and no more.
const SYSTEMCTL: &str = r#"#!/bin/sh
set -eu
pid="$HERE/pid"
stop() { kill -TERM "$(cat "$pid")"; while kill -0 "$(cat "$pid")" 2>/dev/null; do sleep 0.1; done; }
start() {
    piecemeal mirror --config "$HERE/etc/mirror.toml" >>"$HERE/mirror.log" 2>&1 </dev/null &
    echo $! >"$pid"
    for _ in $(seq 100); do
        curl --silent --fail --output /dev/null http://127.0.0.1:65013/readyz && return 0
        sleep 0.1
    done
    cat "$HERE/mirror.log" >&2
    return 1
}
test "$2" = piecemeal-mirror
case "$1" in
    start) start ;;
    stop) stop ;;
    restart) stop; start ;;
    reload) kill -HUP "$(cat "$pid")" ;;
    *) exit 64 ;;
esac
"#;

/// A machine with a mirror as the package would have set it up.
struct Machine {
    here: PathBuf,
    netns: Netns,
    _scratch: ScratchDir,
}

impl Machine {
    fn new() -> Self {
        let scratch = ScratchDir::new();
        let here = scratch.path().to_owned();
        let netns = Netns::create("operations");
        netns.ip("link set lo up");
        for folder in ["bin", "etc", "lib/mirror"] {
            fs::create_dir_all(here.join(folder)).expect("a folder");
        }
        let shim = here.join("bin/systemctl");
        fs::write(&shim, SYSTEMCTL).expect("writing systemctl");
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).expect("making it a program");
        std::os::unix::fs::symlink(PIECEMEAL, here.join("bin/piecemeal")).expect("a link");
        let settings = format!(
            "upstream = [\"docker.io=http://{REGISTRY}\"]\nlisten = [\"127.0.0.1:65011\"]\npiece_listen = \"127.0.0.1:65002\"\n\
             admin_listen = \"127.0.0.1:65013\"\ncache_dir = \"{}\"\ncache_min_free = \"1M\"\n",
            here.join("lib/mirror").display()
        );
        fs::write(here.join("etc/mirror.toml"), settings).expect("writing settings");
        Self {
            here,
            netns,
            _scratch: scratch,
        }
    }

    /// Runs a block as a shell of that machine would.
    fn run(&self, block: &str) {
        let script = block
            .replace("/etc/piecemeal", &self.here.join("etc").display().to_string())
            .replace("/var/lib/piecemeal", &self.here.join("lib").display().to_string());
        let path = std::env::var("PATH").unwrap_or_default();
        let output = self
            .netns
            .command("sh")
            .args(["-euc", &script])
            .env("PATH", format!("{}:{path}", self.here.join("bin").display()))
            .env("HERE", &self.here)
            .stdin(Stdio::null())
            .output()
            .expect("running sh");
        assert!(
            output.status.success(),
            "{script}\n{}{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            fs::read_to_string(self.here.join("mirror.log")).unwrap_or_default()
        );
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(self.here.join("pid")) {
            let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
        }
    }
}

/// The blocks that the document says are run.
fn blocks() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = fs::read_to_string(file).expect("the document");
    let marked = text.split("<!-- run -->\n```sh\n").skip(1);
    marked
        .map(|rest| {
            rest.split("```")
                .next()
                .expect("split gives one part at least")
                .to_owned()
        })
        .collect()
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn the_commands_of_the_operations_guide_work_in_their_order() {
    let blocks = blocks();
    assert!(blocks.len() >= 6, "only {} blocks are marked", blocks.len());
    let all =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).expect("the document");
    assert_eq!(
        all.matches("```sh").count(),
        blocks.len(),
        "a block that this test does not run"
    );
    let machine = Machine::new();
    let registry = DockerRegistry::start(&machine.netns, REGISTRY);
    let image = Image::new("library/app", "v1").layer_bytes(&[2_000_000, 50_000]);
    registry.push(&image);
    machine.run("systemctl start piecemeal-mirror");
    let image_bytes = image.total_bytes();
    let mut seen = Vec::new();
    for block in blocks {
        machine.run(&block);
        let kept = bytes_below(&machine.here.join("lib/mirror/blobs"));
        for (command, expected) in [
            ("cache warm", image_bytes),
            ("systemctl restart", image_bytes),
            ("rm -rf", 0),
        ] {
            if block.contains(command) {
                assert_eq!(kept, expected, "bytes kept after {block}");
                seen.push(command);
            }
        }
    }
    assert_eq!(seen, ["cache warm", "systemctl restart", "rm -rf"]);
    machine.run("systemctl stop piecemeal-mirror");
}
