//! Build targets: each gives a binary that needs nothing of the machine that it runs on.

use std::{env, path::Path};

use anyhow::{Context, Result, ensure};

use crate::shell;

#[derive(Debug)]
pub(super) struct Target {
    pub triple: &'static str,
    /// As `std::env::consts::ARCH` has it.
    cpu: &'static str,
    /// As Debian, Go and so the OCI call it.
    pub architecture: &'static str,
    /// The C compiler for what is not Rust in it, with its package, where that of the machine itself will not do.
    pub compiler: Option<(&'static str, &'static str)>,
}

/// The better one of an architecture comes first.
const TARGETS: [Target; 3] = [
    Target {
        triple: "x86_64-unknown-linux-musl",
        cpu: "x86_64",
        architecture: "amd64",
        compiler: Some(("musl-gcc", "musl-tools")),
    },
    Target {
        triple: "x86_64-unknown-linux-gnu",
        cpu: "x86_64",
        architecture: "amd64",
        compiler: None,
    },
    Target {
        triple: "aarch64-unknown-linux-gnu",
        cpu: "aarch64",
        architecture: "arm64",
        compiler: Some(("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")),
    },
];

impl Target {
    /// The one that was asked for.
    ///
    /// # Errors
    /// It is not known, or this toolchain cannot build for it.
    pub(super) fn named(triple: &str) -> Result<&'static Self> {
        let target = TARGETS.iter().find(|target| target.triple == triple).with_context(|| {
            let known = TARGETS.map(|target| target.triple).join(", ");
            format!("{triple} is not packaged; there are: {known}")
        })?;
        ensure!(
            target.is_installed()?,
            "this toolchain cannot build for {triple}; run: rustup target add {triple}"
        );
        Ok(target)
    }

    /// The best of each architecture that this toolchain can build for; what is left out is said.
    ///
    /// # Errors
    /// Nothing can be built for this machine.
    pub(super) fn installed() -> Result<Vec<&'static Self>> {
        let mut chosen: Vec<&Self> = Vec::new();
        let mut left_out = Vec::new();
        for target in &TARGETS {
            if chosen.iter().any(|other| other.architecture == target.architecture) {
                continue;
            }
            if target.is_installed()? {
                chosen.push(target);
            } else {
                left_out.push(target.triple);
            }
        }
        for triple in left_out {
            println!(
                "NOTE: {triple} is left out, since this toolchain has none; to have it: rustup target add {triple}"
            );
        }
        ensure!(
            chosen.iter().any(|target| target.is_native()),
            "this toolchain builds for nothing that is packaged on this machine; run: rustup target add {}-unknown-linux-gnu",
            env::consts::ARCH
        );
        // Documents are made by a binary that runs here.
        chosen.sort_by_key(|target| !target.is_native());
        Ok(chosen)
    }

    /// Whether what is built runs here.
    pub(super) fn is_native(&self) -> bool {
        self.cpu == env::consts::ARCH
    }

    pub(super) fn is_musl(&self) -> bool {
        self.triple.ends_with("musl")
    }

    pub(super) fn how(&self) -> &'static str {
        if self.is_musl() {
            "static, with musl"
        } else {
            "static, with glibc, which resolves names by /etc/hosts and DNS alone"
        }
    }

    fn is_installed(&self) -> Result<bool> {
        let print = ["--print", "target-libdir", "--target", self.triple];
        let libraries = shell::output("rustc", &print)?;
        Ok(Path::new(libraries.trim()).is_dir())
    }
}
