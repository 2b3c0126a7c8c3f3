//! Checks that a change has to pass before it lands.
//!
//! Invariant: the first check that fails ends the run; only advisories may go unchecked, where their database cannot be fetched.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{
    chart, conformance,
    shell::{self, has, run_with},
    test,
};

/// The version of cargo-deny that is installed when there is none.
const CARGO_DENY: &str = "0.20.2";

pub(crate) fn run() -> Result<()> {
    shell::run("cargo", &["fmt", "--all", "--check"])?;
    shell::run(
        "cargo",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--locked",
            "--",
            "--deny",
            "warnings",
        ],
    )?;
    deny()?;
    test::run()?;
    conformance::run()?;
    chart::run(&[])?;
    run_with(
        "cargo",
        &[
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
            "--locked",
        ],
        &[("RUSTDOCFLAGS", "--deny warnings")],
    )
}

/// Bans, licences and sources always; advisories where their database can be had.
fn deny() -> Result<()> {
    let program = cargo_deny()?;
    shell::run(
        &program,
        &["check", "--hide-inclusion-graph", "bans", "licenses", "sources"],
    )?;
    if shell::run(&program, &["check", "--hide-inclusion-graph", "advisories"]).is_err() {
        let fetched = Command::new(&program)
            .args(["fetch", "db"])
            .current_dir(shell::root())
            .output();
        if fetched.is_ok_and(|output| output.status.success()) {
            anyhow::bail!("cargo deny found advisories");
        }
        eprintln!("NOTE: the database of advisories cannot be fetched from here; advisories were NOT checked");
    }
    Ok(())
}

fn cargo_deny() -> Result<String> {
    if has("cargo-deny") {
        return Ok("cargo-deny".to_owned());
    }
    let tools = shell::tools_dir()?;
    let program = tools.join("bin/cargo-deny");
    if !program.is_file() {
        let root = tools.to_str().context("the cache folder's name is not text")?;
        shell::run(
            "cargo",
            &[
                "install",
                "cargo-deny",
                "--locked",
                "--version",
                CARGO_DENY,
                "--root",
                root,
            ],
        )?;
    }
    Ok(program
        .to_str()
        .context("the cache folder's name is not text")?
        .to_owned())
}
