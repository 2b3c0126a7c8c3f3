//! `piecemeal cache rm`: removes images and blobs from a daemon's cache.
//!
//! Invariant: nothing is removed without a confirmation or `--yes`; a name that fails does not hold up the others.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::bail;
use clap::Args;
use piecemeal_proxy::Removed;
use reqwest::Method;

use super::client::{Admin, AdminArgs};
use crate::cli::{error::WrongArgumentError, status::format_bytes};

#[derive(Args, Debug)]
pub(in crate::cli) struct RemoveArgs {
    /// Images, or the digests of blobs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    admin: AdminArgs,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(args: &RemoveArgs) -> anyhow::Result<()> {
    let admin = Admin::new(&args.admin)?;
    if !args.yes && !confirm(args, &admin)? {
        bail!("nothing was removed");
    }
    let mut failed = Vec::new();
    for name in &args.names {
        let removed: anyhow::Result<Removed> = admin.ask(Method::DELETE, "/cache/item", Some(name)).await;
        match removed {
            Ok(removed) => print!("{}", text(&removed)),
            Err(error) => {
                eprintln!("{name}: {}", crate::cli::describe(&error));
                failed.push(name.as_str());
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("not removed: {}", failed.join(", "))
}

fn confirm(args: &RemoveArgs, admin: &Admin) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(WrongArgumentError("without a terminal to ask on, --yes must be given".to_owned()).into());
    }
    eprint!(
        "Remove from the cache at {}:\n  {}\n[y/N] ",
        admin.url(),
        args.names.join("\n  ")
    );
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

fn text(removed: &Removed) -> String {
    let shared = match removed.shared_blobs {
        0 => String::new(),
        count => format!("; {count} that others need are kept"),
    };
    format!(
        "removed {}: {} manifests, {} blobs, {} freed{shared}\n",
        removed.names.join(", "),
        removed.manifests,
        removed.blobs,
        format_bytes(removed.freed_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_one() {
        for yes in ["y\n", "Y", " yes \n"] {
            assert!(is_yes(yes), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "yep\n", "no"] {
            assert!(!is_yes(no), "{no:?}");
        }
    }

    #[test]
    fn it_is_said_what_went_and_what_stayed() {
        let removed = Removed {
            names: vec!["docker.io/library/alpine:3".to_owned()],
            manifests: 2,
            blobs: 1,
            freed_bytes: 1500,
            shared_blobs: 3,
        };
        assert_eq!(
            text(&removed),
            "removed docker.io/library/alpine:3: 2 manifests, 1 blobs, 1.5 kB freed; 3 that others need are kept\n"
        );
    }
}
