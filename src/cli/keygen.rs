//! `piecemeal keygen`: the keys of a new site.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use piecemeal_proto::AuthorityKey;
use ring::rand::{SecureRandom, SystemRandom};

#[derive(Args, Debug)]
pub(super) struct KeygenArgs {
    /// Where to write authority.key (for the mirror and the scheduler) and join.key (for peers)
    dir: PathBuf,
}

pub(super) fn run(args: &KeygenArgs) -> anyhow::Result<()> {
    write_keys(&args.dir)?;
    println!(
        "{}: for the site's mirror and scheduler; keep it secret",
        args.dir.join(AUTHORITY_FILE).display()
    );
    println!(
        "{}: for every peer; it admits a node to the site",
        args.dir.join(JOIN_FILE).display()
    );
    Ok(())
}

/// The key of a new site.
///
/// # Errors
/// The system has no random numbers.
pub(super) fn new_authority() -> anyhow::Result<AuthorityKey> {
    let mut seed = [0; 32];
    SystemRandom::new()
        .fill(&mut seed)
        .map_err(|_| anyhow!("the system has no random numbers"))?;
    Ok(AuthorityKey::from_seed(seed))
}

/// Writes both keys of a new site into `dir`, which is made when it is absent. Keys that are there are never replaced.
///
/// # Errors
/// A key is there already, or the folder cannot be written to.
pub(super) fn write_keys(dir: &Path) -> anyhow::Result<AuthorityKey> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))?;
    let paths = [AUTHORITY_FILE, JOIN_FILE].map(|name| dir.join(name));
    // Before either is written: half a pair of keys would be worse than none.
    if let Some(path) = paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        bail!(
            "{} exists already; every node of its site would be shut out if it were replaced",
            path.display()
        );
    }
    let authority = new_authority()?;
    let [authority_path, join_path] = paths;
    write_secret(&authority_path, &authority.to_text())?;
    if let Err(error) = write_secret(&join_path, &authority.join_key().to_text()) {
        // Best effort: without it the next run would refuse.
        let _ = fs::remove_file(&authority_path);
        return Err(error);
    }
    Ok(authority)
}

fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

pub(super) const AUTHORITY_FILE: &str = "authority.key";
pub(super) const JOIN_FILE: &str = "join.key";
