//! `piecemeal chart own`: gives a folder of the host to a daemon's user, so that the daemon itself need not be root.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
};

use anyhow::Context;
use clap::Args;

#[derive(Args, Debug)]
pub(in crate::cli) struct OwnArgs {
    /// The folder; created if it is missing; its parents keep their owners
    dir: PathBuf,
    /// The new owner
    #[arg(long, value_name = "ID")]
    user: u32,
    /// The new group
    #[arg(long, value_name = "ID")]
    group: u32,
}

pub(super) fn run(args: &OwnArgs) -> anyhow::Result<()> {
    let dir = args.dir.display();
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {dir}"))?;
    // Not its content, which the daemon owns already or must not own. For a moment the folder belongs to this process: only an owner
    // may change the mode without a further capability.
    let me = rustix::process::geteuid().as_raw();
    chown(&args.dir, Some(me), None)
        .and_then(|()| fs::set_permissions(&args.dir, fs::Permissions::from_mode(PRIVATE)))
        .and_then(|()| chown(&args.dir, Some(args.user), Some(args.group)))
        .with_context(|| format!("cannot change the owner of {dir}; run this as root"))
}

/// Names and layers of private images come to lie in it.
const PRIVATE: u32 = 0o700;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_folder_that_is_missing_is_made_and_one_that_is_there_stays_and_both_are_private() {
        let root = tempfile::tempdir().unwrap();
        let me = fs::metadata(root.path()).unwrap();
        let dir = root.path().join("a/b");
        let args = OwnArgs {
            dir: dir.clone(),
            user: me.uid(),
            group: me.gid(),
        };
        run(&args).unwrap();
        fs::write(dir.join("content"), "kept").unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        run(&args).unwrap();
        assert_eq!(fs::read_to_string(dir.join("content")).unwrap(), "kept");
        let mode = |dir| fs::metadata(dir).unwrap().mode() & 0o7777;
        assert_eq!(mode(dir.as_path()), PRIVATE);
    }
}
