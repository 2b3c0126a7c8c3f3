//! Content for the pull-only run: real clients push it to the registry behind the mirror.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::go_tools;

pub(super) const REPOSITORY: &str = "conformance/preloaded";

/// The tags, manifests and blobs that were pushed.
pub(super) struct Content {
    pub(super) tags: Vec<String>,
    pub(super) manifests: Vec<String>,
    pub(super) blobs: Vec<String>,
    /// Manifests that others refer to.
    pub(super) subjects: Vec<String>,
}

impl Content {
    /// Pushes a Docker image, an OCI image, an index of both, and two artifacts about the OCI image.
    pub(super) fn push(registry: SocketAddr, scratch: &Path) -> Result<Self> {
        let repository = format!("{registry}/{REPOSITORY}");
        let at = |tag: &str| format!("{repository}:{tag}");
        for name in ["docker", "oci", "sbom", "signature"] {
            fs::write(scratch.join(name), format!("the content of {name}")).context("cannot write the content")?;
        }
        let client = |name, arguments: &[&str]| run(name, arguments, scratch);
        client("crane", &["append", INSECURE, "-f", "docker", "-t", &at("docker")])?;
        client(
            "crane",
            &["append", INSECURE, "--oci-empty-base", "-f", "oci", "-t", &at("oci")],
        )?;
        client(
            "crane",
            &[
                "index",
                "append",
                INSECURE,
                "-m",
                &at("docker"),
                "-m",
                &at("oci"),
                "-t",
                &at("index"),
            ],
        )?;
        for name in ["sbom", "signature"] {
            let artifact_type = format!("application/vnd.piecemeal.{name}");
            // The registry has no referrers API: oras lists the artifact under the fallback tag, as the specification says.
            client(
                "oras",
                &[
                    "attach",
                    "--plain-http",
                    "--artifact-type",
                    &artifact_type,
                    &at("oci"),
                    name,
                ],
            )?;
        }
        Self::find(&repository, scratch)
    }

    /// Asks the registry itself, so that it is the truth that the mirror is held against.
    fn find(repository: &str, scratch: &Path) -> Result<Self> {
        let client = |arguments: &[&str]| run("crane", arguments, scratch);
        let tags: Vec<String> = lines(&client(&["ls", INSECURE, repository])?);
        let (mut manifests, mut blobs) = (Vec::new(), Vec::new());
        for tag in &tags {
            let name = format!("{repository}:{tag}");
            manifests.extend(lines(&client(&["digest", INSECURE, &name])?));
            let manifest: Value = serde_json::from_str(&client(&["manifest", INSECURE, &name])?)?;
            blobs.extend(digests(&manifest, "/config").chain(digests(&manifest, "/layers")));
            manifests.extend(digests(&manifest, "/manifests"));
        }
        let subjects = lines(&client(&["digest", INSECURE, &format!("{repository}:oci")])?);
        for list in [&mut manifests, &mut blobs] {
            list.sort();
            list.dedup();
        }
        ensure!(
            tags.len() >= 4 && manifests.len() >= 6 && blobs.len() >= 4,
            "not all content was pushed"
        );
        Ok(Self {
            tags,
            manifests,
            blobs,
            subjects,
        })
    }
}

/// The digests of a descriptor or of a list of descriptors.
fn digests(manifest: &Value, pointer: &str) -> impl Iterator<Item = String> {
    let found = manifest.pointer(pointer).cloned().unwrap_or_default();
    let descriptors = match found {
        Value::Array(descriptors) => descriptors,
        descriptor => vec![descriptor],
    };
    descriptors
        .into_iter()
        .filter_map(|descriptor| Some(descriptor.get("digest")?.as_str()?.to_owned()))
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn run(client: &str, arguments: &[&str], folder: &Path) -> Result<String> {
    let output = Command::new(go_tools::client(client)?)
        .args(arguments)
        .current_dir(folder)
        .output()
        .with_context(|| format!("cannot run {client}"))?;
    ensure!(
        output.status.success(),
        "{client} {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).with_context(|| format!("{client} does not speak UTF-8"))
}

const INSECURE: &str = "--insecure";
