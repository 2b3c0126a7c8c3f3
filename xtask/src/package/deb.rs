//! Debian package, made with Debian's own dpkg-deb.
//!
//! Invariant: a package is kept only when its units and its policy were checked.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Result};

use super::{
    binary::Binary,
    notices,
    release::{Release, VERSION, text},
    tree::Tree,
};
use crate::shell;

const DAEMONS: [&str; 3] = ["mirror", "scheduler", "peer"];
/// The paths at which Debian's shells look for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/piecemeal"),
    ("zsh", "usr/share/zsh/vendor-completions/_piecemeal"),
    ("fish", "usr/share/fish/vendor_completions.d/piecemeal.fish"),
];
const DOC: &str = "usr/share/doc/piecemeal";
/// The first packaging of a version.
const REVISION: &str = "1";
/// In tenths of what `systemd-analyze security` prints: 2.5 of 10.
const EXPOSURE_MAX: &str = "25";

/// Builds and checks it; the name of its file.
pub(super) fn build(release: &Release, binary: &Binary) -> Result<String> {
    let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
    let root = dir.path().join("root");
    fs::create_dir(&root)?;
    let tree = Tree::new(&root);
    let version = format!("{VERSION}-{REVISION}");
    tree.copy(&binary.path, "usr/bin/piecemeal", 0o755)?;
    // The name under which kubectl finds its plugin.
    tree.link("piecemeal", "usr/bin/kubectl-piecemeal")?;
    daemons(&tree)?;
    generated(&tree, binary)?;
    documents(&tree, binary, &version, release.epoch)?;
    control(&tree, &root, &version, binary.target.architecture)?;

    let name = format!("piecemeal_{version}_{}.deb", binary.target.architecture);
    let unchecked = dir.path().join(&name);
    let build = ["--root-owner-group", "-Zxz", "--build", text(&root)?, text(&unchecked)?];
    // It clamps the times of all files to this.
    shell::run_with("dpkg-deb", &build, &[("SOURCE_DATE_EPOCH", &release.epoch.to_string())])?;
    check_units(binary)?;
    check_policy(&unchecked)?;
    release.keep(&unchecked, &name)?;
    Ok(name)
}

/// Units, and the settings that they read: the embedded defaults themselves, so that they cannot drift.
fn daemons(tree: &Tree<'_>) -> Result<()> {
    for daemon in DAEMONS {
        let unit = format!("piecemeal-{daemon}.service");
        let from = shell::root().join("packaging/systemd").join(&unit);
        tree.copy(&from, &format!("usr/lib/systemd/system/{unit}"), 0o644)?;
        let settings =
            read(&format!("packaging/config/{daemon}.header"))? + &read(&format!("src/config/defaults/{daemon}.toml"))?;
        tree.write(&format!("etc/piecemeal/{daemon}.toml"), settings, 0o644)?;
    }
    Ok(())
}

/// Writes the completions and man pages that the binary prints.
fn generated(tree: &Tree<'_>, binary: &Binary) -> Result<()> {
    for (shell, path) in COMPLETIONS {
        tree.write(path, binary.print(&["completions", shell])?, 0o644)?;
    }
    let pages = tempfile::tempdir().context("cannot make a temporary folder")?;
    binary.print(&["man", text(pages.path())?])?;
    for page in Tree::new(pages.path()).files()? {
        let content = fs::read(pages.path().join(&page))?;
        tree.write_gz(&format!("usr/share/man/man1/{}", page.display()), content)?;
    }
    Ok(())
}

fn documents(tree: &Tree<'_>, binary: &Binary, version: &str, epoch: u64) -> Result<()> {
    let date = shell::output("date", &["--utc", "--rfc-email", &format!("--date=@{epoch}")])?;
    let changelog = read("packaging/deb/changelog")?
        .replace("@VERSION@", version)
        .replace("@DATE@", date.trim());
    tree.write_gz(&format!("{DOC}/changelog.Debian"), changelog)?;
    tree.write_gz(&format!("{DOC}/changelog"), read("CHANGELOG.md")?)?;
    tree.write_gz(&format!("{DOC}/NOTICES"), notices::collect(binary.target)?)?;
    tree.write(&format!("{DOC}/copyright"), read("packaging/deb/copyright")?, 0o644)?;
    tree.write(&format!("{DOC}/README.md"), read("README.md")?, 0o644)?;
    let docs = shell::root().join("docs");
    for file in Tree::new(&docs).files()? {
        tree.copy(&docs.join(&file), &format!("{DOC}/docs/{}", file.display()), 0o644)?;
    }
    let overrides = read("packaging/deb/lintian-overrides")?;
    tree.write("usr/share/lintian/overrides/piecemeal", overrides, 0o644)
}

/// Writes the files that dpkg itself reads. The last step: it counts and sums what is there.
fn control(tree: &Tree<'_>, root: &Path, version: &str, architecture: &str) -> Result<()> {
    let (mut sums, mut conffiles, mut bytes) = (String::new(), String::new(), 0);
    for file in tree.files()? {
        let metadata = fs::symlink_metadata(root.join(&file))?;
        bytes += metadata.len();
        if metadata.is_symlink() {
            continue;
        }
        let file = text(&file)?;
        if file.starts_with("etc/") {
            writeln!(conffiles, "/{file}")?;
        } else {
            let sum = shell::output("md5sum", &[text(&root.join(file))?])?;
            writeln!(
                sums,
                "{}  {file}",
                sum.split(' ').next().context("md5sum printed nothing")?
            )?;
        }
    }
    let control = read("packaging/deb/control")?
        .replace("@VERSION@", version)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@INSTALLED_SIZE@", &bytes.div_ceil(1024).to_string());
    tree.write("DEBIAN/control", control, 0o644)?;
    tree.write("DEBIAN/conffiles", conffiles, 0o644)?;
    tree.write("DEBIAN/md5sums", sums, 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        tree.write(
            &format!("DEBIAN/{script}"),
            read(&format!("packaging/deb/{script}"))?,
            0o755,
        )?;
    }
    Ok(())
}

/// systemd's own opinion of the units.
fn check_units(binary: &Binary) -> Result<()> {
    if !shell::has("systemd-analyze") {
        println!("NOTE: there is no systemd-analyze (apt-get install systemd): the units were NOT checked");
        return Ok(());
    }
    let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
    for daemon in DAEMONS {
        let unit = format!("piecemeal-{daemon}.service");
        // It wants the program to be there.
        let content = read(&format!("packaging/systemd/{unit}"))?.replace("/usr/bin/piecemeal", text(&binary.path)?);
        let copy = dir.path().join(&unit);
        fs::write(&copy, content)?;
        let copy = text(&copy)?;
        shell::run("systemd-analyze", &["verify", "--man=no", copy])?;
        let threshold = format!("--threshold={EXPOSURE_MAX}");
        let security = shell::output("systemd-analyze", &["security", "--offline=true", &threshold, copy])
            .with_context(|| format!("{unit} is more exposed than it may be; see systemd-analyze security"))?;
        let overall = security
            .lines()
            .find(|line| line.contains("Overall"))
            .unwrap_or_default();
        println!("{}", overall.trim_start_matches('→').trim());
    }
    Ok(())
}

/// Debian's opinion of the package.
fn check_policy(package: &Path) -> Result<()> {
    if !shell::has("lintian") {
        println!(
            "NOTE: there is no lintian (apt-get install lintian): the package was NOT held against Debian's policy"
        );
        return Ok(());
    }
    let mut arguments = vec!["--fail-on", "error,warning", "--tag-display-limit", "0"];
    arguments.extend(["--allow-root", text(package)?]);
    shell::run("lintian", &arguments)
}

/// A file of the workspace.
fn read(path: &str) -> Result<String> {
    fs::read_to_string(shell::root().join(path)).with_context(|| format!("cannot read {path}"))
}
