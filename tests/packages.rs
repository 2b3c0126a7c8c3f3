//! What packages install beside the binary is as the binary has it: documents, units, settings.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

const DAEMONS: [&str; 3] = ["mirror", "scheduler", "peer"];
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

fn piecemeal(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_piecemeal"));
    let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PIECEMEAL_"));
    for (name, _) in ours {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

fn stdout(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("starting the binary");
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("output is UTF-8")
}

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// The subcommands that `--help` lists.
fn subcommands() -> Vec<String> {
    let help = stdout(&mut piecemeal(&["--help"]));
    let list = help.split_once("Commands:\n").expect("a list of commands").1;
    let names: Vec<String> = list
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    assert!(names.len() >= 9, "only {names:?}");
    names
}

/// The long flags that a subcommand's `--help` lists.
fn flags(subcommand: &str) -> BTreeSet<String> {
    let help = stdout(&mut piecemeal(&[subcommand, "--help"]));
    let word = |line: &str| {
        let flag = line.trim_start().trim_start_matches("-h, ").split_whitespace().next()?;
        flag.starts_with("--").then(|| flag.trim_end_matches("...").to_owned())
    };
    help.lines().filter_map(word).collect()
}

#[test]
fn man_pages_name_every_subcommand_and_every_flag() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("new/man1");
    stdout(&mut piecemeal(&["man", path(&pages)]));
    // In roff a hyphen that is to be typed is escaped.
    let page = |name: &str| fs::read_to_string(pages.join(name)).unwrap().replace("\\-", "-");
    let front = page("piecemeal.1");
    for subcommand in subcommands() {
        assert!(front.contains(&format!("piecemeal-{subcommand}(1)")), "{subcommand}");
        let own = page(&format!("piecemeal-{subcommand}.1"));
        for flag in flags(&subcommand) {
            assert!(own.contains(&format!("{flag}\\fR")), "{subcommand} {flag}");
        }
    }
    assert!(flags("mirror").len() > 20, "{:?}", flags("mirror"));
}

#[test]
fn completions_name_every_subcommand_and_every_flag() {
    for shell in SHELLS {
        let script = stdout(&mut piecemeal(&["completions", shell]));
        for subcommand in subcommands() {
            assert!(script.contains(&*subcommand), "{shell}: {subcommand}");
            for flag in flags(&subcommand) {
                let written = if shell == "fish" {
                    format!("-l {}", flag.trim_start_matches("--"))
                } else {
                    flag.clone()
                };
                assert!(script.contains(&written), "{shell}: {subcommand} {flag}");
            }
        }
    }
}

#[test]
fn completions_whose_reader_has_gone_end_quietly() {
    let mut child = piecemeal(&["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert!(
        status.success() && stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&stderr)
    );
}

/// A unit's lines `key=value`, in order; sections are left out.
fn unit(daemon: &str) -> Vec<(String, String)> {
    let text = file(&format!("packaging/systemd/piecemeal-{daemon}.service"));
    let is_setting = |line: &&str| !(line.is_empty() || line.starts_with(['#', '[']));
    text.lines()
        .filter(is_setting)
        .map(|line| {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{daemon}: {line}"));
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

fn value<'a>(unit: &'a [(String, String)], key: &str) -> &'a str {
    let mut found = unit.iter().filter(|(name, _)| name == key);
    let (_, value) = found.next().unwrap_or_else(|| panic!("no {key}"));
    assert!(found.next().is_none(), "{key} is there twice");
    value
}

/// What each unit runs, with its own key and settings, and with the addresses that the site's people have to add.
#[test]
fn units_run_what_the_binary_understands_with_the_settings_that_are_installed() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    stdout(&mut piecemeal(&["keygen", path(&keys)]));
    for daemon in DAEMONS {
        let unit = unit(daemon);
        let start = value(&unit, "ExecStart");
        assert_eq!(value(&unit, "ExecStartPre"), format!("{start} --check-config"));

        let installed =
            file(&format!("packaging/config/{daemon}.header")) + &file(&format!("src/config/defaults/{daemon}.toml"));
        let settings = dir.path().join(format!("{daemon}.toml"));
        fs::write(&settings, installed).unwrap();

        let arguments: Vec<&str> = start.split(' ').collect();
        let expected = format!("/etc/piecemeal/{daemon}.toml");
        assert_eq!(arguments, ["/usr/bin/piecemeal", daemon, "--config", &expected]);
        let (variable, key) = value(&unit, "Environment").split_once("=%d/").expect("a credential");
        assert_eq!(value(&unit, "LoadCredential"), format!("{key}:/etc/piecemeal/{key}"));
        assert_eq!(value(&unit, "AssertPathExists"), format!("/etc/piecemeal/{key}"));

        let mut check = piecemeal(&[daemon, "--config", path(&settings), "--check-config"]);
        check.env(variable, keys.join(key));
        if daemon != "scheduler" {
            check.env("PIECEMEAL_UPSTREAM", "docker.io=https://docker.test");
        }
        if daemon == "peer" {
            check
                .env("PIECEMEAL_MIRROR", "https://10.88.0.2:65011")
                .env("PIECEMEAL_SCHEDULER", "https://10.88.0.2:65012");
        }
        assert_eq!(stdout(&mut check), "configuration is good\n", "{daemon}");
        if daemon != "scheduler" {
            let cache = format!("\ncache_dir = \"/var/lib/{}\"\n", value(&unit, "StateDirectory"));
            assert!(
                fs::read_to_string(&settings).unwrap().contains(&cache),
                "{daemon}: {cache}"
            );
        }
    }
}

/// systemd 254 and newer give a credential to its daemon by an access list, which shows as a right of the group.
#[test]
fn a_key_from_systemd_is_not_called_readable_by_others_unless_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    stdout(&mut piecemeal(&["keygen", path(&keys)]));
    let key = keys.join("authority.key");
    let warns = |mode: u32, credentials: &str| {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let mut check = piecemeal(&["scheduler", "--check-config", "--authority-key-file", path(&key)]);
        let output = check.env("CREDENTIALS_DIRECTORY", credentials).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("can be read by other users")
    };
    assert!(!warns(0o440, path(&keys)));
    assert!(warns(0o444, path(&keys)));
    assert!(warns(0o440, path(&dir.path().join("other"))));
    assert!(warns(0o440, ""));
}

#[test]
fn every_unit_has_the_same_sandbox() {
    let sandbox = |daemon: &str| -> BTreeMap<String, Vec<String>> {
        let mut settings = BTreeMap::<String, Vec<String>>::new();
        for (key, value) in unit(daemon).into_iter().skip_while(|(key, _)| key != "NoNewPrivileges") {
            settings.entry(key).or_default().push(value);
        }
        settings
    };
    let first = sandbox(DAEMONS[0]);
    assert!(first.len() > 20, "{first:?}");
    for daemon in DAEMONS {
        assert_eq!(sandbox(daemon), first, "{daemon}");
        assert_eq!(value(&unit(daemon), "User"), "piecemeal");
    }
}
