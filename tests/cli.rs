//! The binary's command line: settings, keys, exit codes, and pulls from a registry that errs.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

fn piecemeal(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_piecemeal"));
    let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PIECEMEAL_"));
    for (name, _) in ours {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(command: &mut Command) -> Outcome {
    let Output { status, stdout, stderr } = command.output().expect("starting the binary");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    Outcome {
        code: status.code(),
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

/// A folder with both keys of a site.
fn keys() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let outcome = run(&mut piecemeal(&["keygen", path(&dir.path().join("keys"))]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    dir
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// A good peer's arguments, with more behind them.
fn check_peer(keys: &TempDir, more: &[&str]) -> Outcome {
    let key = keys.path().join("keys/join.key");
    let mut arguments = vec!["peer", "--check-config", "--join-key-file", path(&key)];
    arguments.extend(["--upstream", "origin.test=http://10.99.0.2:5000"]);
    arguments.extend(more);
    run(&mut piecemeal(&arguments))
}

const P2P: [&str; 4] = [
    "--mirror",
    "http://10.88.0.2:65011",
    "--scheduler",
    "http://10.88.0.2:65012",
];

// --- keys

#[test]
fn keygen_writes_keys_that_only_their_owner_can_read() {
    let keys = keys();
    for name in ["authority.key", "join.key"] {
        let file = keys.path().join("keys").join(name);
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600,
            "{name}"
        );
        assert!(fs::read_to_string(&file).unwrap().starts_with("piecemeal-"), "{name}");
    }
}

#[test]
fn keygen_never_replaces_a_key() {
    let keys = keys();
    let dir = keys.path().join("keys");
    let join_key = fs::read(dir.join("join.key")).unwrap();
    fs::remove_file(dir.join("authority.key")).unwrap();
    let outcome = run(&mut piecemeal(&["keygen", path(&dir)]));
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("join.key exists already"), "{}", outcome.stderr);
    assert_eq!(fs::read(dir.join("join.key")).unwrap(), join_key);
    assert!(!dir.join("authority.key").exists(), "half a pair was written");
}

#[test]
fn keygen_rotates_the_join_key_and_finishes_a_rotation_that_was_cut_short() {
    let keys = keys();
    let dir = keys.path().join("keys");
    let [authority, join] = ["authority.key", "join.key"].map(|name| dir.join(name));
    let read = |file: &Path| fs::read_to_string(file).unwrap();
    let before = [read(&authority), read(&join)];
    fs::set_permissions(&join, fs::Permissions::from_mode(0o640)).unwrap();
    let rotate = |more: &[&str]| {
        run(&mut piecemeal(
            &[&["keygen", "--rotate-join", path(&dir)], more].concat(),
        ))
    };

    let outcome = rotate(&["--old-valid", "7d"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stdout.contains("the old one admits until 20"),
        "{}",
        outcome.stdout
    );
    let after = [read(&authority), read(&join)];
    assert!(after[0].starts_with(&before[0]), "the site stays the same");
    assert_ne!(after[1], before[1]);
    assert_eq!(fs::metadata(&authority).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        fs::metadata(&join).unwrap().permissions().mode() & 0o777,
        0o640,
        "as it was"
    );
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "nothing else is left there");

    // The machine stopped between the two files.
    fs::write(&join, &before[1]).unwrap();
    let outcome = rotate(&[]);
    assert!(outcome.stdout.contains("cut short"), "{}", outcome.stdout);
    assert_eq!([read(&authority), read(&join)], after);

    // One that is not needed here was taken away; the one of two rotations ago is shut out at once, and that is said.
    fs::remove_file(&join).unwrap();
    let outcome = rotate(&[]);
    assert!(outcome.stderr.contains("two rotations ago"), "{}", outcome.stderr);
    assert_ne!(read(&join), after[1]);

    fs::write(&join, "piecemeal-join-v1:x").unwrap();
    assert_eq!(rotate(&[]).code, Some(1));
    let outcome = run(&mut piecemeal(&["keygen", "--old-valid", "7d", path(&dir)]));
    assert_eq!(outcome.code, Some(64), "{}", outcome.stderr);
}

#[test]
fn nodes_to_shut_out_are_ids_or_a_file_of_them() {
    let keys = keys();
    let list = keys.path().join("shut-out");
    let id = "0123456789abcdef0123456789abcdef";
    let check = |revoke: &[&str]| {
        let key = keys.path().join("keys/authority.key");
        let mut arguments = vec!["scheduler", "--check-config", "--authority-key-file", path(&key)];
        revoke.iter().for_each(|node| arguments.extend(["--revoke", node]));
        run(&mut piecemeal(&arguments))
    };
    let file = format!("file:{}", path(&list));
    fs::write(&list, format!("# the board of rack 7\n{id}  # stolen\n\n")).unwrap();
    assert_eq!(check(&[id, &file]).code, Some(0));
    fs::write(&list, "rack-7\n").unwrap();
    for (revoke, said) in [
        (&file[..], "rack-7"),
        ("rack-8", "rack-8"),
        ("file:/nowhere/list", "/nowhere/list"),
    ] {
        let outcome = check(&[revoke]);
        assert_eq!(outcome.code, Some(64));
        assert!(
            outcome.stderr.contains("revoke") && outcome.stderr.contains(said),
            "{}",
            outcome.stderr
        );
    }
}

// --- settings

#[test]
fn good_settings_are_called_good_and_nothing_is_made() {
    let keys = keys();
    let cache = keys.path().join("cache");
    let outcome = check_peer(
        &keys,
        &[&P2P[..], &["--cache-dir", path(&cache), "--ratelimit", "5M"]].concat(),
    );
    assert_eq!(
        (outcome.code, &*outcome.stdout, &*outcome.stderr),
        (Some(0), "configuration is good\n", "")
    );
    assert!(!cache.exists());
}

#[test]
fn every_problem_of_file_environment_and_flags_is_listed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mirror.toml");
    fs::write(
        &file,
        "cache_ttl = \"soon\"\nratelimt = \"5M\"\npool = true\nupstream = [\"docker.io\"]\n",
    )
    .unwrap();
    let arguments = [
        "mirror",
        "--config",
        path(&file),
        "--listen",
        "localhost",
        "--cache-quota",
        "5X",
    ];
    let more = [
        "--authority-key-file",
        "/nowhere/authority.key",
        "--default-upstream",
        "ghcr.io",
    ];
    let outcome = run(piecemeal(&arguments)
        .args(more)
        .env("PIECEMEAL_TAG_TTL", "-1")
        .env("PIECEMEAL_SCHEDULER", "ftp://x"));
    assert_eq!(outcome.code, Some(64), "{}", outcome.stderr);
    let expected = [
        "9 problems with the configuration",
        "cache_ttl (in /",
        "ratelimt (in /",
        "no such key",
        "pool (in /",
        "upstream (in /",
        "\"docker.io\" is not NAME=URL",
        "listen (from --listen): \"localhost\" is not an ip:port",
        "cache_quota (from --cache-quota): \"5X\"",
        "authority_key_file (from --authority-key-file): cannot read /nowhere/authority.key",
        "tag_ttl (from PIECEMEAL_TAG_TTL)",
        "scheduler (from PIECEMEAL_SCHEDULER): \"ftp://x\": the URL must start with http:// or https://",
    ];
    for text in expected {
        assert!(outcome.stderr.contains(text), "no {text:?} in:\n{}", outcome.stderr);
    }
}

#[test]
fn a_flag_wins_over_the_environment_and_the_environment_over_the_file() {
    let keys = keys();
    let file = keys.path().join("peer.toml");
    let config = |ratelimit: &str| fs::write(&file, format!("ratelimit = {ratelimit}\ncache_quota = 0\n")).unwrap();
    let check = |env: Option<&str>, flags: &[&str]| {
        let key = keys.path().join("keys/join.key");
        let mut command = piecemeal(&[
            "peer",
            "--check-config",
            "--config",
            path(&file),
            "--join-key-file",
            path(&key),
        ]);
        command
            .args(P2P)
            .args(["--upstream", "a.test=http://a.test"])
            .args(flags);
        if let Some(env) = env {
            command.env("PIECEMEAL_RATELIMIT", env);
        }
        run(&mut command)
    };
    config("\"bad\"");
    assert!(check(None, &[]).stderr.contains("ratelimit (in "));
    assert!(
        check(Some("worse"), &[])
            .stderr
            .contains("ratelimit (from PIECEMEAL_RATELIMIT): \"worse\"")
    );
    assert_eq!(check(Some("5M"), &[]).code, Some(0));
    assert!(
        check(Some("5M"), &["--ratelimit", "worst"])
            .stderr
            .contains("ratelimit (from --ratelimit): \"worst\"")
    );
    assert_eq!(check(Some("worse"), &["--ratelimit", "0"]).code, Some(0));
    assert!(
        check(Some(""), &[]).stderr.contains("ratelimit (in "),
        "an empty variable counts as absent"
    );
}

#[test]
fn an_unknown_flag_is_a_usage_error_too() {
    let outcome = run(&mut piecemeal(&["peer", "--ratelimt", "5M"]));
    assert_eq!(outcome.code, Some(64));
    assert!(
        outcome.stderr.contains("--ratelimit"),
        "no suggestion in:\n{}",
        outcome.stderr
    );
    assert_eq!(run(&mut piecemeal(&[])).code, Some(64));
    assert_eq!(run(&mut piecemeal(&["--version"])).code, Some(0));
}

#[test]
fn a_misspelt_variable_is_a_warning_and_those_of_kubernetes_are_not() {
    let keys = keys();
    let key = keys.path().join("keys/authority.key");
    let mut command = piecemeal(&["scheduler", "--check-config", "--authority-key-file", path(&key)]);
    command
        .env("PIECEMEAL_LISTN", "x")
        .env("PIECEMEAL_MIRROR_PORT_65011_TCP_ADDR", "x")
        .env("PIECEMEAL_RATELIMIT", "5M");
    let outcome = run(&mut command);
    assert_eq!(
        (outcome.code, outcome.stderr.lines().count()),
        (Some(0), 1),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stderr.contains("PIECEMEAL_LISTN"), "{}", outcome.stderr);
}

#[test]
fn source_with_a_scheduler_is_a_contradiction() {
    let outcome = check_peer(&keys(), &[&P2P[..], &["--download-pattern", "source"]].concat());
    assert_eq!(outcome.code, Some(64));
    assert!(
        outcome.stderr.contains("source works without a scheduler"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn p2p_without_a_scheduler_or_a_mirror_is_told_of_source() {
    let outcome = check_peer(&keys(), &[]);
    assert_eq!(outcome.code, Some(64));
    assert!(
        outcome
            .stderr
            .contains("p2p needs a scheduler; give --scheduler, or choose source"),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stderr.contains("p2p needs a mirror"), "{}", outcome.stderr);
    assert_eq!(check_peer(&keys(), &["--download-pattern", "source"]).code, Some(0));
}

#[test]
fn a_peer_that_may_pull_from_nowhere_is_a_contradiction() {
    let outcome = check_peer(&keys(), &["--download-pattern", "source", "--direct-fallback", "never"]);
    assert_eq!(outcome.code, Some(64));
    assert!(
        outcome.stderr.contains("leaves no source to pull from"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_mirror_with_a_scheduler_needs_the_key() {
    let mut command = piecemeal(&["mirror", "--check-config", "--upstream", "a.test=http://a.test"]);
    assert_eq!(run(&mut command).code, Some(0));
    let outcome = run(command.args(["--scheduler", "http://10.88.0.2:65012"]));
    assert_eq!(outcome.code, Some(64));
    assert!(
        outcome.stderr.contains("give --authority-key-file too"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn one_port_for_two_uses_is_a_contradiction() {
    let outcome = check_peer(&keys(), &[&P2P[..], &["--listen", "127.0.0.1:65002"]].concat());
    assert_eq!(outcome.code, Some(64));
    assert!(
        outcome.stderr.contains("is taken by listen 127.0.0.1:65002"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn the_wrong_key_is_named_and_a_key_that_others_can_read_is_a_warning() {
    let keys = keys();
    let (authority, join) = (
        keys.path().join("keys/authority.key"),
        keys.path().join("keys/join.key"),
    );
    let outcome = run(&mut piecemeal(&[
        "scheduler",
        "--check-config",
        "--authority-key-file",
        path(&join),
    ]));
    assert_eq!(outcome.code, Some(64));
    assert!(
        outcome.stderr.contains("join.key: this is a join.key"),
        "{}",
        outcome.stderr
    );
    fs::set_permissions(&authority, fs::Permissions::from_mode(0o644)).unwrap();
    let outcome = run(&mut piecemeal(&[
        "scheduler",
        "--check-config",
        "--authority-key-file",
        path(&authority),
    ]));
    assert_eq!(outcome.code, Some(0));
    assert!(
        outcome.stderr.contains("warning:") && outcome.stderr.contains("chmod 600"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn an_upstream_is_a_registry_and_nothing_more() {
    for (upstream, problem) in [
        ("docker.io=https://h/path?query", "neither a query"),
        ("docker.io=https://*.h", "has a *, and docker.io has none"),
        ("docker.io=https://user:secret@h", "must not carry credentials"),
        ("docker.io=oci://h", "must start with http"),
        ("bad-=https://h", "is not the host"),
        ("a.test=http://a.test", "there twice"),
    ] {
        let arguments = [
            "mirror",
            "--check-config",
            "--upstream",
            "a.test=http://a.test",
            "--upstream",
            upstream,
        ];
        let outcome = run(&mut piecemeal(&arguments));
        assert_eq!(outcome.code, Some(64), "{upstream}");
        assert!(outcome.stderr.contains(problem), "{upstream}:\n{}", outcome.stderr);
        assert!(!outcome.stderr.contains("secret"), "{}", outcome.stderr);
    }
}

// --- daemons

#[test]
fn a_port_in_use_ends_the_daemon_with_the_address_and_the_flag() {
    let keys = keys();
    let key = keys.path().join("keys/authority.key");
    let (taken, free) = (TcpListener::bind("127.0.0.1:0").unwrap(), "127.0.0.1:0");
    let address = taken.local_addr().unwrap().to_string();
    for (listen, admin, flag) in [(&*address, free, "--listen"), (free, &*address, "--admin-listen")] {
        let arguments = [
            "scheduler",
            "--authority-key-file",
            path(&key),
            "--listen",
            listen,
            "--admin-listen",
            admin,
        ];
        let outcome = run(&mut piecemeal(&arguments));
        assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
        let error = outcome
            .stderr
            .lines()
            .find(|line| line.starts_with("error: "))
            .unwrap_or_default();
        assert!(error.contains(&address) && error.contains(flag), "{}", outcome.stderr);
    }
}

#[test]
fn a_cache_folder_that_cannot_be_used_ends_the_daemon_with_its_name() {
    let keys = keys();
    let file = keys.path().join("file");
    fs::write(&file, "").unwrap();
    let inside = file.join("cache");
    let mut command = piecemeal(&[
        "mirror",
        "--upstream",
        "a.test=http://a.test",
        "--cache-dir",
        path(&inside),
    ]);
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--piece-listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ]);
    let outcome = run(&mut command);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains(&format!("--cache-dir {}", path(&inside))),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_daemon_answers_on_its_admin_port_and_ends_well_when_told() {
    let keys = keys();
    let key = keys.path().join("keys/authority.key");
    // Free a moment ago, which is as good as it gets for a port that must be known beforehand.
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = piecemeal(&[
        "scheduler",
        "--authority-key-file",
        path(&key),
        "--listen",
        "127.0.0.1:0",
    ]);
    command
        .args(["--admin-listen", &admin.to_string()])
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while get(admin, "/readyz").is_none_or(|answer| !answer.starts_with("HTTP/1.1 200")) {
        assert!(Instant::now() < deadline, "never ready");
        thread::sleep(Duration::from_millis(10));
    }
    let answer = |path| get(admin, path).unwrap_or_default();
    assert!(answer("/readyz").contains("listener: ok\n"), "{}", answer("/readyz"));
    assert!(answer("/livez").starts_with("HTTP/1.1 200"));
    let metrics = answer("/metrics");
    assert!(
        metrics.contains("content-type: application/openmetrics-text"),
        "{metrics}"
    );
    assert!(
        metrics.contains("piecemeal_build_info{component=\"scheduler\"") && metrics.contains("# EOF"),
        "{metrics}"
    );
    let status = run(&mut piecemeal(&[
        "status",
        "--json",
        "--admin",
        &format!("http://{admin}"),
    ]));
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(status["scheduler"]["members"], json!([]), "{status}");

    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert!(log.by_ref().any(|line| line.contains("nothing to reload")));
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(log.any(|line| line.contains("stopped")));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A daemon that keeps content, on ports of its own; its temporary files are in `tmp`.
fn caching(subcommand: &str, keys: &TempDir, tmp: &Path, more: &[&str]) -> Command {
    let mut command = piecemeal(&[subcommand, "--upstream", "a.test=http://127.0.0.1:1"]);
    for port in ["--listen", "--piece-listen", "--admin-listen"] {
        command.args([port, "127.0.0.1:0"]);
    }
    if subcommand == "peer" {
        command.args(["--download-pattern", "source", "--join-key-file"]);
        command.arg(keys.path().join("keys/join.key"));
    }
    command.args(more).env("TMPDIR", tmp).stderr(Stdio::piped());
    command
}

/// A child that no failing test leaves behind.
struct KilledInTheEnd(Child);

impl Drop for KilledInTheEnd {
    fn drop(&mut self) {
        // It has ended already, when all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("reading a folder");
    entries.map(|entry| entry.expect("reading a folder").path()).collect()
}

#[test]
fn an_empty_cache_dir_is_a_private_folder_that_goes_with_the_process() {
    let keys = keys();
    let file = keys.path().join("empty.toml");
    fs::write(&file, "cache_dir = \"\"\n").unwrap();
    for subcommand in ["mirror", "peer"] {
        for (how, until) in [
            (["--cache-dir", ""], "ready listen="),
            (["--config", path(&file)], "ready listen="),
            (["--cache-dir", ""], "starting the "),
        ] {
            let tmp = tempfile::tempdir().unwrap();
            let mut command = caching(subcommand, &keys, tmp.path(), &how);
            let mut child = KilledInTheEnd(command.spawn().unwrap());
            let mut log = BufReader::new(child.0.stderr.take().unwrap())
                .lines()
                .map_while(Result::ok);
            assert!(log.any(|line| line.contains(until)), "{subcommand} {how:?}");
            let made = entries(tmp.path());
            assert_eq!(made.len(), 1, "{made:?}");
            assert_eq!(fs::metadata(&made[0]).unwrap().permissions().mode() & 0o777, 0o700);
            if until.starts_with("ready") {
                assert!(!entries(&made[0]).is_empty(), "content is elsewhere");
            }
            let pid = rustix::process::Pid::from_child(&child.0);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            let rest: Vec<String> = log.collect();
            assert_eq!(child.0.wait().unwrap().code(), Some(0), "{rest:?}");
            assert!(entries(tmp.path()).is_empty(), "{subcommand} {how:?}: {rest:?}");
        }
    }
}

#[test]
fn a_reload_that_is_asked_for_during_the_start_comes_after_it() {
    let (keys, tmp) = (keys(), tempfile::tempdir().unwrap());
    let mut command = caching("mirror", &keys, tmp.path(), &["--cache-dir", ""]);
    let mut child = KilledInTheEnd(command.spawn().unwrap());
    let mut log = BufReader::new(child.0.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert!(log.any(|line| line.contains("starting the ")));
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    assert!(log.any(|line| line.contains("nothing to reload")));
}

#[test]
fn a_start_that_fails_or_is_only_a_check_leaves_no_temporary_folder() {
    let keys = keys();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let no_certificate = keys.path().join("ca.pem");
    fs::write(
        &no_certificate,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    // Read when the store is open already.
    let certificate = format!("a.test={}", path(&no_certificate));
    for subcommand in ["mirror", "peer"] {
        for (more, code) in [
            (&["--listen", &*address][..], 1),
            (&["--upstream-ca", &certificate], 1),
            (&["--check-config"], 0),
        ] {
            let tmp = tempfile::tempdir().unwrap();
            let mut command = caching(subcommand, &keys, tmp.path(), &["--cache-dir", ""]);
            let outcome = run(command.args(more));
            assert_eq!(outcome.code, Some(code), "{subcommand} {more:?}: {}", outcome.stderr);
            assert!(entries(tmp.path()).is_empty(), "{subcommand} {more:?}");
        }
    }
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn status_without_a_daemon_says_so() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let outcome = run(&mut piecemeal(&["status", "--admin", &format!("http://{closed}")]));
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains(&format!("no answer from http://{closed}")),
        "{}",
        outcome.stderr
    );
}

// --- pull

/// Answers each path with a status, a length that may be a lie, and a body.
struct Registry {
    address: SocketAddr,
}

#[derive(Clone)]
struct Answer {
    status: u16,
    declared: usize,
    body: Vec<u8>,
}

impl Answer {
    fn ok(body: &[u8]) -> Self {
        Self {
            status: 200,
            declared: body.len(),
            body: body.to_vec(),
        }
    }
}

impl Registry {
    fn serve(answers: HashMap<String, Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listening");
        let address = listener.local_addr().expect("a listener has an address");
        let answers = Arc::new(answers);
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answers = Arc::clone(&answers);
                thread::spawn(move || answer(&stream, &answers));
            }
        });
        Self { address }
    }

    fn pull(&self, more: &[&str]) -> Outcome {
        // An admin port without a listener: a peer that happens to run on this machine is not part of the test.
        let image = format!("127.0.0.1:{}/team/app:1", self.address.port());
        run(piecemeal(&["pull", &image, "--admin", "http://127.0.0.1:1"]).args(more))
    }
}

fn answer(stream: &TcpStream, answers: &HashMap<String, Answer>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines
        .take_while(|line| !line.is_empty())
        .map(|line| line.to_lowercase())
        .collect();
    let target = request.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let locked = answers.contains_key("/token") && path != "/token";
    let is_open = !locked || headers.contains(&"authorization: bearer open sesame".to_owned());
    let mut head = "Connection: close\r\n".to_owned();
    let reply = if is_open {
        let error = br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"never heard of it"}]}"#;
        answers.get(path).cloned().unwrap_or(Answer {
            status: 404,
            ..Answer::ok(error)
        })
    } else {
        let host = stream.local_addr().expect("a connection has an address");
        head += &format!(
            "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"repository:team/app:pull\"\r\n"
        );
        Answer {
            status: 401,
            ..Answer::ok(b"")
        }
    };
    let mut stream = stream;
    let head = format!(
        "HTTP/1.1 {} Told\r\nContent-Length: {}\r\n{head}\r\n",
        reply.status, reply.declared
    );
    // A client that hangs up has seen enough.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(&reply.body));
}

fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold("sha256:".to_owned(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string");
            text
        })
}

const LAYER: &[u8] = b"layer layer layer layer";

/// `team/app:1`: an index over one manifest of a config and one layer.
fn image() -> HashMap<String, Answer> {
    let descriptor = |bytes: &[u8]| json!({ "mediaType": "x", "digest": digest(bytes), "size": bytes.len() });
    let (config, layer) = (b"{}", LAYER);
    let manifest =
        json!({ "schemaVersion": 2, "config": descriptor(config), "layers": [descriptor(layer), descriptor(layer)] });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor(&manifest);
    entry["platform"] = json!({ "os": "linux", "architecture": "riscv64" });
    let index =
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry] });
    let mut answers = HashMap::new();
    answers.insert(
        "/v2/team/app/manifests/1".to_owned(),
        Answer::ok(index.to_string().as_bytes()),
    );
    answers.insert(
        format!("/v2/team/app/manifests/{}", digest(&manifest)),
        Answer::ok(&manifest),
    );
    for blob in [&config[..], layer] {
        answers.insert(blob_path(blob), Answer::ok(blob));
    }
    answers
}

fn blob_path(blob: &[u8]) -> String {
    format!("/v2/team/app/blobs/{}", digest(blob))
}

const PLATFORM: [&str; 2] = ["--platform", "linux/riscv64"];

#[test]
fn a_good_image_is_pulled_and_described_in_json() {
    let answers = image();
    let index = digest(&answers["/v2/team/app/manifests/1"].body);
    let outcome = Registry::serve(answers).pull(&["--platform", "linux/riscv64", "--json", "--repeat", "2"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let pulls: Vec<Value> = outcome
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(pulls.len(), 2);
    for pull in pulls {
        assert_eq!(
            (&pull["digest"], &pull["bytes"], &pull["blobs"]),
            (&json!(index), &json!(2 + LAYER.len()), &json!(2))
        );
        assert!(
            pull["total_seconds"].as_f64() >= pull["first_byte_seconds"].as_f64(),
            "{pull}"
        );
        assert_eq!(pull["bytes_by_source"], Value::Null);
    }
}

#[test]
fn a_machine_without_ca_certificates_still_pulls_over_plain_http() {
    let registry = Registry::serve(image());
    let image = format!("127.0.0.1:{}/team/app:1", registry.address.port());
    let mut command = piecemeal(&["pull", &image, "--admin", "http://127.0.0.1:1"]);
    let outcome = run(command
        .args(PLATFORM)
        .env("SSL_CERT_FILE", "/nowhere")
        .env("SSL_CERT_DIR", "/nowhere"));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

#[test]
fn an_anonymous_token_is_fetched_when_the_registry_wants_one() {
    let mut answers = image();
    answers.insert("/token".to_owned(), Answer::ok(br#"{"token":"open sesame"}"#));
    let outcome = Registry::serve(answers).pull(&PLATFORM);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("every digest right"), "{}", outcome.stdout);
}

#[test]
fn a_platform_that_the_image_lacks_is_an_error() {
    let outcome = Registry::serve(image()).pull(&["--platform", "linux/s390x"]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("does not exist for linux/s390x"),
        "{}",
        outcome.stderr
    );
}

/// Pulls an image whose layer is answered with `answer`, and returns the reason why that fails.
fn failure(answer: Option<Answer>) -> String {
    let mut answers = image();
    answers.remove(&blob_path(LAYER));
    answers.extend(answer.map(|answer| (blob_path(LAYER), answer)));
    let outcome = Registry::serve(answers).pull(&["--platform", "linux/riscv64", "--json"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stdout);
    let said: Value = serde_json::from_str(&outcome.stdout).expect("one object");
    let reason = said["error"].as_str().expect("a failure has a reason").to_owned();
    assert_eq!(outcome.stderr, format!("error: {reason}\n"));
    assert!(
        reason.contains("127.0.0.1:") && reason.contains(&digest(LAYER)),
        "{reason}"
    );
    reason
}

#[test]
fn a_blob_with_other_bytes_is_an_error() {
    let other = vec![b'x'; LAYER.len()];
    let reason = failure(Some(Answer::ok(&other)));
    assert!(
        reason.contains("wrong digest") && reason.contains(&digest(&other)),
        "{reason}"
    );
}

#[test]
fn a_blob_that_always_ends_early_is_an_error() {
    let reason = failure(Some(Answer {
        body: LAYER[..5].to_vec(),
        ..Answer::ok(LAYER)
    }));
    assert!(reason.contains("after 5 of 23 bytes"), "{reason}");
}

#[test]
fn a_blob_of_another_length_is_an_error() {
    let reason = failure(Some(Answer::ok(&LAYER[1..])));
    assert!(reason.contains("promised 22 bytes"), "{reason}");
}

#[test]
fn a_blob_that_is_not_there_is_an_error_with_the_registrys_words() {
    let reason = failure(None);
    assert!(
        reason.contains("answered 404") && reason.contains("BLOB_UNKNOWN never heard of it"),
        "{reason}"
    );
}

#[test]
fn a_manifest_with_other_bytes_is_an_error() {
    let mut answers = image();
    let path = answers
        .keys()
        .find(|path| path.contains("manifests/sha256"))
        .unwrap()
        .clone();
    answers.insert(path, Answer::ok(b"{}"));
    let outcome = Registry::serve(answers).pull(&PLATFORM);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("a manifest with the wrong digest"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_name_that_names_no_image_is_a_usage_error() {
    let outcome = run(&mut piecemeal(&["pull", "UPPER/case"]));
    assert_eq!(outcome.code, Some(64));
    assert!(outcome.stderr.contains("names no image"), "{}", outcome.stderr);
}

// --- cache

#[test]
fn every_cache_command_says_what_it_takes() {
    let help = run(&mut piecemeal(&["cache", "--help"]));
    assert_eq!(help.code, Some(0));
    for (command, takes) in [
        ("ls", "--sort"),
        ("show", "<NAME>"),
        ("rm", "--yes"),
        ("verify", "--rate"),
        ("warm", "--peers"),
    ] {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{}", help.stdout);
        let help = run(&mut piecemeal(&["cache", command, "--help"]));
        assert_eq!(help.code, Some(0));
        for text in [takes, "--admin <URL>", "http://127.0.0.1:65013"] {
            assert!(help.stdout.contains(text), "no {text}: {}", help.stdout);
        }
    }
}

#[test]
fn wrong_arguments_of_cache_commands_are_usage_errors_and_send_no_request() {
    let closed = ["--admin", "http://127.0.0.1:1"];
    let cases: [(&[&str], &str); 10] = [
        (&["rm", "alpine"], "--yes"),
        (&["rm"], "NAME"),
        (&["ls", "--sort", "age"], "age"),
        (&["warm"], "no image is named"),
        (&["warm", "UPPER/case"], "names no image"),
        (&["warm", "--file", "/nowhere/images"], "cannot read /nowhere/images"),
        (&["warm", "alpine", "--platform", "linux"], "os/arch"),
        (
            &["warm", "alpine", "--platform", "linux/amd64", "--all-platforms"],
            "cannot be used with",
        ),
        (&["verify", "--rate", "fast"], "--rate \"fast\""),
        (
            &["show", "alpine", "--admin", "https://x"],
            "an admin port is http://HOST:PORT",
        ),
    ];
    for (arguments, said) in cases {
        let admin = if arguments.contains(&"--admin") {
            &[][..]
        } else {
            &closed
        };
        let outcome = run(piecemeal(&["cache"]).args(arguments).args(admin));
        assert_eq!(outcome.code, Some(64), "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(said), "{arguments:?}: {}", outcome.stderr);
    }
}

#[test]
fn a_machine_where_nothing_runs_is_told_apart_from_an_empty_cache() {
    let outcome = run(&mut piecemeal(&["cache", "ls", "--admin", "http://127.0.0.1:1"]));
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("no answer from http://127.0.0.1:1/") && outcome.stderr.contains("--admin"),
        "{}",
        outcome.stderr
    );
}

// --- node

/// A node's root with a containerd whose configuration is this.
fn node_root(config: &str) -> TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    let etc = root.path().join("etc/containerd");
    fs::create_dir_all(&etc).expect("making a folder");
    fs::write(etc.join("config.toml"), config).expect("writing a file");
    root
}

fn node(root: &TempDir, arguments: &[&str]) -> Outcome {
    let mut command = piecemeal(&["node"]);
    run(command.args(arguments).args(["--root", path(root.path())]))
}

const DOCKER_IO: [&str; 2] = ["--upstream", "docker.io=https://registry-1.docker.io"];

#[test]
fn node_says_in_words_and_in_json_what_it_did_and_what_remains() {
    let root = node_root("version = 2\n");
    let said = node(&root, &["install", DOCKER_IO[0], DOCKER_IO[1]]);
    let file = "/etc/containerd/certs.d/docker.io.piecemeal.internal:65001/hosts.toml";
    for words in [
        "containerd: not ready: config_path is not set",
        "add to /etc/containerd/config.toml, and restart containerd once:\n    [plugins.\"io.containerd.grpc.v1.cri\".registry]\n      config_path = \"/etc/containerd/certs.d\"\n",
        &format!("wrote {file}"),
    ] {
        assert!(said.stdout.contains(words), "{words}\n{}", said.stdout);
    }
    assert_eq!((said.code, &*said.stderr), (Some(0), ""));

    let said = node(&root, &["install", "--output", "json", DOCKER_IO[0], DOCKER_IO[1]]);
    let report: Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert_eq!(report["runtimes"][0]["runtime"], "containerd");
    assert_eq!(report["runtimes"][0]["ready"], false);
    assert_eq!(
        report["runtimes"][0]["add"]["line"],
        "config_path = \"/etc/containerd/certs.d\""
    );
    assert_eq!(
        report["files"][0],
        json!({
            "path": file, "runtime": "containerd", "name": "docker.io.piecemeal.internal:65001", "outcome": "unchanged", "why": null,
        })
    );

    // Files that exist already can be reported and taken back without an upstream.
    let status: Value = serde_json::from_str(&node(&root, &["status", "--output", "json"]).stdout).expect("JSON");
    assert_eq!(status["files"], json!([{ "path": file, "standing": "ours" }]));
    assert!(
        node(&root, &["status"])
            .stdout
            .contains(&format!("{file}: written by piecemeal node\n"))
    );
    assert!(node(&root, &["remove"]).stdout.contains(&format!("restored {file}")));
    assert!(
        node(&root, &["remove", "--purge"])
            .stdout
            .contains(&format!("deleted {file}"))
    );
    assert_eq!(node(&root, &["remove", "--purge"]).stdout, "nothing to do\n");
}

#[test]
fn wrong_arguments_of_node_are_usage_errors_and_touch_nothing() {
    let root = node_root("");
    let cases: [(&[&str], &str); 8] = [
        (&["install"], "upstream: missing"),
        (&["install", "--upstream", "docker.io"], "is not NAME=URL"),
        (
            &["install", DOCKER_IO[0], DOCKER_IO[1], "--names", "all"],
            "\"all\" is not accelerated or original or both",
        ),
        (
            &["install", DOCKER_IO[0], DOCKER_IO[1], "--runtime", "lxc"],
            "\"lxc\" is no runtime",
        ),
        (
            &[
                "install",
                DOCKER_IO[0],
                DOCKER_IO[1],
                "--runtime",
                "auto",
                "--runtime",
                "crio",
            ],
            "auto stands alone",
        ),
        (
            &["install", DOCKER_IO[0], DOCKER_IO[1], "--peer-port", "0x1"],
            "peer_port",
        ),
        (
            &["run", DOCKER_IO[0], DOCKER_IO[1], "--interval", "0s"],
            "must be more than zero",
        ),
        (&["status", "--output", "yaml"], "invalid value 'yaml'"),
    ];
    for (arguments, said) in cases {
        let outcome = node(&root, arguments);
        assert_eq!(outcome.code, Some(64), "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(said), "{arguments:?}: {}", outcome.stderr);
    }
    let nowhere = run(&mut piecemeal(&["node", "status", "--root", "/nowhere"]));
    assert!(
        nowhere.code == Some(64) && nowhere.stderr.contains("/nowhere is not a folder"),
        "{}",
        nowhere.stderr
    );
    assert!(!root.path().join("etc/piecemeal").exists() && !root.path().join("etc/containerd/certs.d").exists());
}

#[test]
fn a_machine_without_a_runtime_and_hosts_that_cannot_be_read_are_failures() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    let outcome = node(&empty, &["install", DOCKER_IO[0], DOCKER_IO[1]]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("no container runtime was found"),
        "{}",
        outcome.stderr
    );
    let outcome = node(
        &empty,
        &["install", DOCKER_IO[0], DOCKER_IO[1], "--hosts-file", "/nowhere"],
    );
    assert!(
        outcome.code == Some(1) && outcome.stderr.contains("cannot read /nowhere"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn switches_of_node_need_no_value_and_take_one() {
    for (switch, has_peer) in [
        (vec!["--without-peer"], false),
        (vec!["--without-peer", "true"], false),
        (vec!["--without-peer=false"], true),
    ] {
        let root = node_root("");
        let outcome = node(&root, &[&["install", DOCKER_IO[0], DOCKER_IO[1]], &switch[..]].concat());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let file = root
            .path()
            .join("etc/containerd/certs.d/docker.io.piecemeal.internal:65001/hosts.toml");
        assert_eq!(
            fs::read_to_string(file).expect("the file").contains("127.0.0.1"),
            has_peer,
            "{switch:?}"
        );
    }
}

/// `/proc/self/root` is this machine's root by another path, so that it is entered as a container enters its node's.
#[test]
fn a_restart_that_is_allowed_is_asked_of_systemd_at_the_nodes_root() {
    let tools = tempfile::tempdir().expect("a temporary folder");
    let systemctl = tools.path().join("systemctl");
    fs::write(
        &systemctl,
        "#!/bin/sh\necho \"$SYSTEMD_IGNORE_CHROOT $*\" >&2; exit 5\n",
    )
    .expect("writing a program");
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).expect("making it a program");
    let mut command = piecemeal(&["node", "restart-runtime", "--root", "/proc/self/root", "containerd"]);
    let path = format!("{}:/usr/bin:/bin", tools.path().display());
    let outcome = run(command.env("PATH", path));
    assert_eq!((outcome.code, &*outcome.stderr), (Some(5), "1 restart containerd\n"));
}

#[test]
fn containerd_is_given_its_line_only_where_a_restart_is_allowed_and_works() {
    let root = node_root("version = 2\n");
    let config = root.path().join("etc/containerd/config.toml");
    // There is no systemd at that root.
    let outcome = node(
        &root,
        &["install", DOCKER_IO[0], DOCKER_IO[1], "--allow-runtime-restart"],
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stdout.contains("to do: containerd did not restart correctly"),
        "{}",
        outcome.stdout
    );
    assert_eq!(fs::read_to_string(config).expect("the configuration"), "version = 2\n");
}

#[test]
fn reach_tells_name_line_certificate_and_registry_apart() {
    let registry = |status: &'static str| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            // The first connection only checks that the port answers.
            for stream in listener.incoming().take(2) {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
            }
        });
        address
    };
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let cases = [
        (format!("http://{}", registry("200 OK")), true, "it answers"),
        (
            format!("http://{}", registry("401 Unauthorized")),
            true,
            "asks for credentials",
        ),
        (format!("http://{}", registry("403 Forbidden")), false, "access list"),
        (format!("http://{}", registry("404 Not Found")), false, "no registry"),
        (format!("https://{}", registry("200 OK")), false, "HTTP: "),
        (format!("http://{closed}"), false, "TCP: "),
        ("http://nowhere.invalid".to_owned(), false, "DNS: "),
    ];
    for (url, is_good, part) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_piecemeal"))
            .args(["reach", "--upstream", &format!("a={url}")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.success(), is_good, "{url}: {said}");
        assert!(said.contains(part), "{url}: {part:?} in {said}");
    }
}
