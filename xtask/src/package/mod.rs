//! Packages of a release: a static binary, a Debian package and a container image, in `target/package`.
//!
//! One commit makes one result: whatever holds a time holds that of the commit, or `SOURCE_DATE_EPOCH`. Nothing is left there that
//! was not checked.

mod binary;
mod deb;
mod image;
mod notices;
mod release;
mod target;
mod tree;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};

use self::{
    binary::Binary,
    release::{Release, epoch},
    target::Target,
};
use crate::{packages, shell};

/// Each with the programs that it takes, and the Debian package of each.
const PARTS: [(&str, &[(&str, &str)]); 3] = [
    ("binary", &[("readelf", "binutils")]),
    (
        "deb",
        &[("readelf", "binutils"), ("dpkg-deb", "dpkg"), ("gzip", "gzip")],
    ),
    (
        "image",
        &[
            ("readelf", "binutils"),
            ("buildah", "buildah"),
            ("skopeo", "skopeo"),
            ("update-ca-certificates", "ca-certificates"),
        ],
    ),
];

/// Request for packages.
#[derive(Debug, Default)]
struct Request {
    /// Empty: all of them.
    parts: Vec<String>,
    target: Option<String>,
    binary: Option<PathBuf>,
}

pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let request = Request::parse(arguments)?;
    for (_, programs) in PARTS.iter().filter(|(part, _)| request.wants(part)) {
        packages::install_for("packaging needs", programs)?;
    }
    let release = Release {
        out: shell::target_dir()?.join("package"),
        epoch: epoch()?,
    };
    fs::create_dir_all(&release.out).with_context(|| format!("cannot make {}", release.out.display()))?;

    let mut targets = match &request.target {
        Some(triple) => vec![Target::named(triple)?],
        None => Target::installed()?,
    };
    if request.binary.is_some() {
        targets.retain(|target| target.is_native());
        ensure!(!targets.is_empty(), "--binary is for this machine; drop --target");
    }
    let mut made = Vec::new();
    for target in targets {
        made.extend(release.package(target, &request)?);
    }
    println!("in {}:", release.out.display());
    for file in made {
        println!("  {file}");
    }
    Ok(())
}

impl Request {
    fn parse(arguments: &[&str]) -> Result<Self> {
        let mut request = Self::default();
        let mut arguments = arguments.iter();
        while let Some(&argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument {
                "--target" => request.target = Some((*value()?).to_owned()),
                // Relative to where this was started, and not to the workspace.
                "--binary" => request.binary = Some(std::path::absolute(value()?)?),
                part if PARTS.iter().any(|(known, _)| *known == part) => request.parts.push(part.to_owned()),
                other => bail!(
                    "{other} is no part; there are: {}",
                    PARTS.map(|(part, _)| part).join(", ")
                ),
            }
        }
        Ok(request)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

impl Release {
    /// Packages for one target; the names of the files that are there now.
    fn package(&self, target: &'static Target, request: &Request) -> Result<Vec<String>> {
        let binary = match &request.binary {
            Some(path) => Binary::given(target, path)?,
            None => Binary::build(target)?,
        };
        println!("{}: {}", target.triple, target.how());
        let mut made = Vec::new();
        if request.wants("binary") {
            made.push(binary.publish(self)?);
        }
        if request.wants("deb") {
            made.push(deb::build(self, &binary)?);
        }
        if request.wants("image") {
            made.push(image::build(self, &binary)?);
        }
        Ok(made)
    }
}
