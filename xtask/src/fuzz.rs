//! The fuzzer's targets, each for a while. What one finds worth keeping is not added to the corpus by itself: that is small,
//! minimised by hand, and run through by the crates' own tests.

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::shell;

/// The version of cargo-fuzz that is installed when there is none.
const CARGO_FUZZ: &str = "0.13.2";
const TARGETS: [&str; 5] = ["reference", "range", "challenge", "manifest", "piece_map"];
const SECONDS_EACH: &str = "60";

/// `arguments`: how many seconds each target runs, if it is not a minute; then the targets, if it is not all of them.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let (seconds, targets) = arguments.split_first().unwrap_or((&SECONDS_EACH, &[]));
    let _: u32 = seconds.parse().with_context(|| format!("{seconds} are no seconds"))?;
    let targets = if targets.is_empty() { &TARGETS } else { targets };
    install()?;

    let tools = shell::tools_dir()?.join("bin");
    let inherited = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([tools].into_iter().chain(env::split_paths(&inherited)))?;
    let path = path.to_str().context("the PATH is not text")?;
    let limit = format!("-max_total_time={seconds}");
    for target in targets {
        let (found, kept) = (found_dir(target)?, format!("fuzz/corpus/{target}"));
        let found = found.to_str().context("the target folder's name is not text")?;
        // No sanitizer: it would need an unstable compiler, and there is no unsafe code to watch.
        let run = ["fuzz", "run", "--sanitizer", "none", target, found, &kept, "--", &limit];
        shell::run_with("cargo", &run, &[("PATH", path)])?;
    }
    Ok(())
}

fn install() -> Result<()> {
    let tools = shell::tools_dir()?;
    if shell::has("cargo-fuzz") || tools.join("bin/cargo-fuzz").is_file() {
        return Ok(());
    }
    let root = tools.to_str().context("the cache folder's name is not text")?;
    let install = [
        "install",
        "cargo-fuzz",
        "--locked",
        "--version",
        CARGO_FUZZ,
        "--root",
        root,
    ];
    shell::run("cargo", &install)
}

/// The folder into which the fuzzer puts the inputs that lead it further. No commit sees it.
fn found_dir(target: &str) -> Result<PathBuf> {
    let found = shell::root().join("fuzz/target/found").join(target);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    Ok(found)
}
