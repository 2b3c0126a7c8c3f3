//! `piecemeal keygen`: the keys of a new site, and a new `join.key` for one that is there.
//!
//! Invariant: only `--rotate-join` replaces a key, and a rotation that was cut short is finished by the next.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use piecemeal_proto::{AuthorityKey, JoinKey};
use ring::rand::{SecureRandom, SystemRandom};

#[derive(Args, Debug)]
pub(super) struct KeygenArgs {
    /// The folder for authority.key (for the mirror and the scheduler) and join.key (for peers)
    dir: PathBuf,
    /// Replace the join.key of the site whose authority.key is in DIR; a stolen old key becomes useless
    #[arg(long)]
    rotate_join: bool,
    /// The time for which the old join.key still admits peers
    #[arg(long, value_name = "DURATION", requires = "rotate_join", value_parser = humantime::parse_duration, default_value = "24h")]
    old_valid: Duration,
}

pub(super) fn run(args: &KeygenArgs) -> anyhow::Result<()> {
    if args.rotate_join {
        return rotate(&args.dir, args.old_valid);
    }
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

/// Gives a site a new `join.key`. A rotation that was cut short is finished instead, since one more would shut out the nodes
/// that hold the key before.
fn rotate(dir: &Path, old_valid: Duration) -> anyhow::Result<()> {
    let [authority_path, join_path] = [AUTHORITY_FILE, JOIN_FILE].map(|name| dir.join(name));
    let text =
        fs::read_to_string(&authority_path).with_context(|| format!("cannot read {}", authority_path.display()))?;
    let authority: AuthorityKey = text.parse().with_context(|| authority_path.display().to_string())?;
    let held = match fs::read_to_string(&join_path) {
        Ok(text) => Some(
            text.parse::<JoinKey>()
                .with_context(|| join_path.display().to_string())?,
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", join_path.display())),
    };
    if held.as_ref().is_some_and(|held| held.authority() != authority.public()) {
        bail!(
            "{} is of another site than {}",
            join_path.display(),
            authority_path.display()
        );
    }
    let is = |key: &JoinKey| held.as_ref().is_some_and(|held| held.to_text() == key.to_text());
    let previous = authority.previous_join_key();
    if previous.as_ref().is_some_and(|(previous, _)| is(previous)) {
        replace_secret(&join_path, &authority.join_key().to_text())?;
        say_rotated(&authority, [&authority_path, &join_path]);
        say!("An earlier rotation was cut short; it is finished now. Run this again for another one.");
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if previous.is_some_and(|(_, until)| now.as_secs() < until) {
        eprintln!("warning: the join.key of two rotations ago was still admitted; it is no longer");
    }
    let until = now.saturating_add(old_valid).as_secs();
    let rotated = authority.rotate_join(until).context("join.key was rotated too often")?;
    replace_secret(&authority_path, &rotated.to_text())?;
    replace_secret(&join_path, &rotated.join_key().to_text())?;
    say_rotated(&rotated, [&authority_path, &join_path]);
    Ok(())
}

fn say_rotated(authority: &AuthorityKey, [authority_path, join_path]: [&Path; 2]) {
    let until = authority.previous_join_key().map_or(0, |(_, until)| until);
    let until = UNIX_EPOCH.checked_add(Duration::from_secs(until.min(RFC3339_SECONDS_MAX)));
    let until = humantime::format_rfc3339_seconds(until.unwrap_or(UNIX_EPOCH));
    say!(
        "{}: first to the site's mirror and scheduler; send both SIGHUP, or restart them where systemd gives them their keys",
        authority_path.display()
    );
    say!(
        "{}: then to every peer, and restart it; the old one admits until {until}, by the clocks of mirror and scheduler",
        join_path.display()
    );
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

/// Puts a new secret in the place of one that may be there, whose owner and rights it takes over. At every moment there is the
/// old one or the new.
fn replace_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let write = || -> io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        if let Ok(old) = fs::metadata(path) {
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
            file.set_permissions(old.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The last second of the year 9999.
const RFC3339_SECONDS_MAX: u64 = 253_402_300_799;
pub(super) const AUTHORITY_FILE: &str = "authority.key";
pub(super) const JOIN_FILE: &str = "join.key";
