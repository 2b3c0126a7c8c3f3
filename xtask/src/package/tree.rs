//! A folder that becomes a package: every file and folder with a mode that does not depend on the builder's umask.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::release::text;
use crate::shell;

pub(super) struct Tree<'a> {
    root: &'a Path,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Path) -> Self {
        Self { root }
    }

    /// Writes a file and makes the folders above it.
    pub(super) fn write(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        let to = self.root.join(path);
        self.make_parents(Path::new(path))?;
        fs::write(&to, content).with_context(|| format!("cannot write {}", to.display()))?;
        set_mode(&to, mode)
    }

    pub(super) fn copy(&self, from: &Path, path: &str, mode: u32) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.write(path, content, mode)
    }

    /// Another name, in the same folder, for the file `target`.
    pub(super) fn link(&self, target: &str, path: &str) -> Result<()> {
        self.make_parents(Path::new(path))?;
        let to = self.root.join(path);
        symlink(target, &to).with_context(|| format!("cannot make {}", to.display()))
    }

    /// Writes `path`.gz, which holds neither name nor time.
    pub(super) fn write_gz(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        self.write(path, content, 0o644)?;
        shell::output("gzip", &["-9", "--no-name", "--force", text(&self.root.join(path))?]).map(drop)
    }

    /// An empty folder.
    pub(super) fn folder(&self, path: &str) -> Result<()> {
        self.make_parents(&Path::new(path).join("x"))
    }

    /// Every file, relative to the root, in the order of their names.
    pub(super) fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let mut folders = vec![self.root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path.strip_prefix(self.root)?.to_owned());
                }
            }
        }
        files.sort();
        Ok(files)
    }

    fn make_parents(&self, path: &Path) -> Result<()> {
        let folders: Vec<&Path> = path.ancestors().skip(1).collect();
        for folder in folders.into_iter().rev() {
            let folder = self.root.join(folder);
            if !folder.is_dir() {
                fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            }
            set_mode(&folder, 0o755)?;
        }
        Ok(())
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}
