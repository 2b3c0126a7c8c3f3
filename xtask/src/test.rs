//! Every test. Nothing is skipped: what cannot run here fails and says what it needs.

use anyhow::{Result, ensure};

use crate::{
    go_tools::{self, CLIENTS},
    kube_assets, last_release, packages, shell,
};

pub(crate) fn run() -> Result<()> {
    packages::install()?;
    ensure!(
        is_root(),
        "the end-to-end tests make network namespaces of their own and need root: run `sudo --preserve-env=PATH,HOME cargo xtask test`"
    );
    go_tools::install(&CLIENTS)?;
    kube_assets::install()?;
    last_release::install()?;
    // End-to-end tests share the machine's two cores with real containerds: one binary after the other, as cargo does.
    shell::run("cargo", &["test", "--workspace", "--all-features", "--locked"])
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}
