//! The OCI conformance suite, run against a mirror whose upstream is Debian's `docker-registry`.
//!
//! Twice: pull-only against the mirror itself, with content that was pushed to the registry before; and in full through a
//! [`splitter`], which sends writes to the registry and reads to the mirror. What the registry cannot do is switched off or
//! named, each with its reason; what the mirror is asked never is.

mod content;
mod daemon;
mod report;
mod splitter;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use self::{content::Content, daemon::Daemon, report::Report, splitter::Splitter};
use crate::{
    go_tools::{self, CLIENTS},
    packages, shell,
};

/// A run of the suite: what it talks to, and its settings.
struct Mode<'a> {
    name: &'a str,
    registry: SocketAddr,
    settings: Vec<(&'a str, String)>,
}

pub(crate) fn run() -> Result<()> {
    packages::install()?;
    go_tools::install(&CLIENTS)?;
    shell::run(
        "cargo",
        &["build", "--locked", "--package", "piecemeal", "--bin", "piecemeal"],
    )?;

    let results = results_dir()?;
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let (_registry, registry) = start_registry(scratch.path(), &results)?;
    let (_mirror, mirror) = start_mirror(registry, scratch.path(), &results)?;
    let splitter = Splitter::start(registry, mirror)?;

    let content = Content::push(registry, scratch.path())?;
    let reports = [
        run_mode(&pull_only(mirror, &content), &results)?,
        run_mode(&full(splitter.address()), &results)?,
    ];
    for report in &reports {
        println!("{report}");
    }
    println!("reports and logs: {}", results.display());
    ensure!(reports.iter().all(Report::passed), "the mirror does not conform");
    Ok(())
}

/// Reads of what is there, and of what is not. The suite does not know the content, so it checks no bytes here.
fn pull_only(mirror: SocketAddr, content: &Content) -> Mode<'static> {
    let mut settings = common();
    settings.extend([
        ("OCI_REPO1", content::REPOSITORY.to_owned()),
        ("OCI_API_PUSH", "false".to_owned()),
        // The suite forgets a manifest's headers when it does not know its bytes, and would miss this one always.
        ("OCI_API_MANIFESTS_DIGEST_HEADER", "false".to_owned()),
        ("OCI_RO_DATA_TAGS", content.tags.join(" ")),
        ("OCI_RO_DATA_MANIFESTS", content.manifests.join(" ")),
        ("OCI_RO_DATA_BLOBS", content.blobs.join(" ")),
        ("OCI_RO_DATA_REFERRERS", content.subjects.join(" ")),
    ]);
    Mode {
        name: "pull-only",
        registry: mirror,
        settings,
    }
}

/// Everything that the suite can push, read back through the mirror.
fn full(splitter: SocketAddr) -> Mode<'static> {
    let mut settings = common();
    settings.extend([
        ("OCI_REPO1", "conformance/repo1".to_owned()),
        ("OCI_REPO2", "conformance/repo2".to_owned()),
        ("OCI_API_MANIFESTS_DIGEST_HEADER", "true".to_owned()),
        // The registry answers the push of a manifest that has a subject without OCI-Subject, since it has no referrers API.
        // The suite demands the header wherever it tests referrers. They are tested in the other mode.
        ("OCI_API_REFERRER", "false".to_owned()),
        // The registry accepts a push by SHA-512 but keeps and names the content by SHA-256.
        ("OCI_DATA_SHA512", "false".to_owned()),
        // The registry starts an upload instead when a mount does not say from where.
        ("OCI_API_BLOBS_MOUNT_ANONYMOUS", "false".to_owned()),
    ]);
    Mode {
        name: "full",
        registry: splitter,
        settings,
    }
}

fn common() -> Vec<(&'static str, String)> {
    vec![
        // Deleting is between its clients and the registry, which is told to refuse it here.
        ("OCI_API_BLOBS_DELETE", "false".to_owned()),
        ("OCI_API_MANIFESTS_DELETE", "false".to_owned()),
        ("OCI_API_TAGS_DELETE", "false".to_owned()),
        // Only the specification's next version demands the header, but clients of today want it.
        ("OCI_API_BLOBS_DIGEST_HEADER", "true".to_owned()),
    ]
}

fn run_mode(mode: &Mode<'_>, results: &Path) -> Result<Report> {
    let results = results.join(mode.name);
    fs::create_dir_all(&results).context("cannot make a folder for the results")?;
    let mut suite = Command::new(go_tools::client("oci-conformance")?);
    // Its own folder, so that no configuration file is picked up by chance.
    suite
        .current_dir(&results)
        .env("OCI_REGISTRY", mode.registry.to_string())
        .env("OCI_TLS", "disabled")
        .env("OCI_VERSION", "1.1")
        .env("OCI_RESULTS_DIR", &results)
        // Every request and answer in its output. It has a report for that, but fails to write it in pull-only mode.
        .env("OCI_LOG", "debug")
        .envs(mode.settings.iter().map(|(name, value)| (name, value)));
    let output = results.join("output.txt");
    eprintln!("$ oci-conformance ({})", mode.name);
    // What it printed counts. It exits with 1 for the registry's own failures too, and with 0 when it cannot run at all.
    let _ = Daemon::start(suite, &output)?.wait()?;
    let text = fs::read_to_string(&output).context("cannot read the suite's output")?;
    Report::parse(mode.name, &text)
}

fn start_registry(scratch: &Path, results: &Path) -> Result<(Daemon, SocketAddr)> {
    let [address] = daemon::free_addresses()?;
    let config = scratch.join("registry.yml");
    // By default it refuses manifests whose layers lie elsewhere; the suite pushes one that names this host.
    let text = format!(
        "version: 0.1\n\
         log: {{level: info, accesslog: {{disabled: false}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: false}}}}\n\
         validation: {{manifests: {{urls: {{allow: ['^https://store\\.example\\.com/']}}}}}}\n\
         http: {{addr: '{address}'}}\n",
        scratch.join("registry").display()
    );
    fs::write(&config, text).context("cannot write the registry's configuration")?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(config);
    let mut registry = Daemon::start(command, &results.join("registry.log"))?;
    registry.wait_until_ready(address, "/v2/")?;
    Ok((registry, address))
}

fn start_mirror(registry: SocketAddr, scratch: &Path, results: &Path) -> Result<(Daemon, SocketAddr)> {
    let [listen, pieces, admin] = daemon::free_addresses()?;
    let mut command = Command::new(piecemeal()?);
    command
        .arg("mirror")
        .args(["--listen", &listen.to_string(), "--piece-listen", &pieces.to_string()])
        .args(["--admin-listen", &admin.to_string()])
        .arg("--cache-dir")
        .arg(scratch.join("mirror"))
        .args(["--upstream", &format!("upstream.test=http://{registry}")])
        // The suite names no upstream in its requests.
        .args(["--default-upstream", "upstream.test"])
        // The suite moves tags and reads them back at once.
        .args(["--tag-ttl", "0s"]);
    let mut mirror = Daemon::start(command, &results.join("mirror.log"))?;
    mirror.wait_until_ready(admin, "/readyz")?;
    Ok((mirror, listen))
}

/// Cargo puts it beside the program that runs now.
fn piecemeal() -> Result<PathBuf> {
    Ok(this_program()?.with_file_name("piecemeal"))
}

/// An empty folder in cargo's target folder.
fn results_dir() -> Result<PathBuf> {
    let program = this_program()?;
    let target = program
        .ancestors()
        .nth(2)
        .context("xtask does not run from a target folder")?;
    let results = target.join("conformance");
    if results.exists() {
        fs::remove_dir_all(&results).context("cannot remove the last run's results")?;
    }
    fs::create_dir_all(&results).context("cannot make a folder for the results")?;
    Ok(results)
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot tell where xtask runs from")
}
