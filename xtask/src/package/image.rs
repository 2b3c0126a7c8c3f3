//! The container image, made without an engine: buildah writes it, from files alone.
//!
//! Invariant: an image with other files than those of [`CONTENT`] is an error.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    binary::Binary,
    notices,
    release::{Release, VERSION, text},
    tree::Tree,
};
use crate::shell;

/// The certification authorities of the machine that builds it. A binary in an empty root finds none otherwise.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";
const NOTICES: &str = "usr/share/doc/piecemeal/NOTICES";
/// The files of the layers, and no others: mode, owner and name.
const CONTENT: [&str; 13] = [
    "drwxr-xr-x 0/0 etc/",
    "drwxr-xr-x 0/0 etc/ssl/",
    "drwxr-xr-x 0/0 etc/ssl/certs/",
    "-rw-r--r-- 0/0 etc/ssl/certs/ca-certificates.crt",
    "-rwxr-xr-x 0/0 piecemeal",
    "drwxr-xr-x 0/0 usr/",
    "drwxr-xr-x 0/0 usr/share/",
    "drwxr-xr-x 0/0 usr/share/doc/",
    "drwxr-xr-x 0/0 usr/share/doc/piecemeal/",
    "-rw-r--r-- 0/0 usr/share/doc/piecemeal/NOTICES",
    "drwxr-xr-x 0/0 var/",
    "drwxr-xr-x 0/0 var/lib/",
    "drwxr-xr-x 65532/65532 var/lib/piecemeal/",
];

/// Builds and checks it; the name of its file.
pub(super) fn build(release: &Release, binary: &Binary) -> Result<String> {
    let dir = tempfile::tempdir().context("cannot make a temporary folder")?;
    let context = dir.path().join("context");
    let tree = Tree::new(&context);
    fs::create_dir(&context)?;
    tree.copy(&binary.path, "root/piecemeal", 0o755)?;
    tree.copy(
        &Path::new("/").join(CERTIFICATES),
        &format!("root/{CERTIFICATES}"),
        0o644,
    )?;
    tree.write(&format!("root/{NOTICES}"), notices::collect(binary.target)?, 0o644)?;
    // Those above it are root's only when they are there before.
    tree.folder("root/var/lib")?;
    tree.folder("state")?;

    let layout = dir.path().join("layout");
    fs::create_dir(&layout)?;
    run_buildah(dir.path(), &context, &layout, release, binary)?;
    check(&layout, binary)?;

    let name = format!("piecemeal-{VERSION}-linux-{}.oci.tar", binary.target.architecture);
    let to = release.out.join(&name);
    archive(&layout, &to, release.epoch)?;
    Ok(name)
}

fn run_buildah(dir: &Path, context: &Path, layout: &Path, release: &Release, binary: &Binary) -> Result<()> {
    let image = format!("localhost/piecemeal:{VERSION}");
    let file = shell::root().join("packaging/image/Containerfile");
    let platform = format!("linux/{}", binary.target.architecture);
    let epoch = release.epoch.to_string();
    let created = shell::output("date", &["--utc", "+%Y-%m-%dT%H:%M:%SZ", &format!("--date=@{epoch}")])?;
    let labels = [
        ("title", "Piecemeal"),
        (
            "description",
            "Pulls container images into a site once, and lets its nodes share the pieces",
        ),
        ("version", VERSION),
        ("licenses", "Apache-2.0"),
        ("created", created.trim()),
    ];
    let labels = labels.map(|(key, value)| format!("--label=org.opencontainers.image.{key}={value}"));

    let mut build = vec![
        "build",
        "--format",
        "oci",
        "--isolation",
        "chroot",
        "--platform",
        &platform,
    ];
    // The version of buildah and the time of building must not make it another image.
    build.extend(["--timestamp", &epoch, "--identity-label=false", "--layers=false"]);
    build.extend(labels.iter().map(String::as_str));
    build.extend(["--tag", &image, "--file", text(&file)?, text(context)?]);
    buildah(dir, &build)?;
    buildah(dir, &["push", &image, &format!("oci:{}:{VERSION}", text(layout)?)])
}

/// With a storage of its own, which goes with `dir`.
fn buildah(dir: &Path, arguments: &[&str]) -> Result<()> {
    let (root, run_root) = (dir.join("storage"), dir.join("run"));
    let mut all = vec![
        "--storage-driver",
        "vfs",
        "--root",
        text(&root)?,
        "--runroot",
        text(&run_root)?,
    ];
    all.extend(arguments);
    shell::run("buildah", &all)
}

/// An archive of the layout, in one order and with one time.
fn archive(layout: &Path, to: &Path, epoch: u64) -> Result<()> {
    let mtime = format!("--mtime=@{epoch}");
    let mut arguments = vec!["--create", "--file", text(to)?, "--directory", text(layout)?];
    arguments.extend([
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mode=u=rwX,go=rX",
    ]);
    arguments.extend(["--format=ustar", &mtime, "."]);
    shell::run("tar", &arguments)
}

/// Its configuration and its files, as others read them.
fn check(layout: &Path, binary: &Binary) -> Result<()> {
    let image = format!("oci:{}:{VERSION}", text(layout)?);
    let inspect = |more: &[&str]| -> Result<Value> {
        let arguments = [&["inspect"], more, &[&image]].concat();
        serde_json::from_str(&shell::output("skopeo", &arguments)?).context("what skopeo inspect printed")
    };
    let config = inspect(&["--config"])?;
    let expected = [
        ("/config/User", "65532:65532"),
        ("/config/Entrypoint/0", "/piecemeal"),
        ("/os", "linux"),
        ("/architecture", binary.target.architecture),
        ("/config/Labels/org.opencontainers.image.version", VERSION),
    ];
    for (pointer, value) in expected {
        let found = config.pointer(pointer);
        ensure!(
            found.and_then(Value::as_str) == Some(value),
            "the image's configuration has {found:?} at {pointer}, and not {value}"
        );
    }
    let mut content = BTreeSet::new();
    for layer in inspect(&[])?["Layers"].as_array().into_iter().flatten() {
        let digest = layer.as_str().and_then(|digest| digest.strip_prefix("sha256:"));
        let path = layout
            .join("blobs/sha256")
            .join(digest.context("a layer has no digest")?);
        let list = ["--list", "--verbose", "--numeric-owner", "--file", text(&path)?];
        for line in shell::output("tar", &list)?.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [mode, owner, _size, _date, _time, name] = fields[..] else {
                bail!("the image holds what it should not: {line}");
            };
            content.insert(format!("{mode} {owner} {name}"));
        }
    }
    let expected: BTreeSet<String> = CONTENT.map(str::to_owned).into();
    ensure!(
        content == expected,
        "the image does not hold what it should: {:?}",
        content.symmetric_difference(&expected).collect::<Vec<_>>()
    );
    Ok(())
}
