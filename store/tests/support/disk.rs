//! A disk in memory that fails by seed.
//!
//! It tears and shortens writes, reports errors, runs full, and at a power cut keeps of whatever was not synced any part,
//! page by page; name changes that no folder sync covered survive as any prefix of their order. After a failed sync the
//! content never becomes durable, although the next sync claims success: that is what Linux does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};
use piecemeal_store::{FileEntry, Files, OpenFile};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const PAGE_BYTES: usize = 512;

#[derive(Clone)]
pub(crate) struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    random: StdRng,
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    dirs: BTreeSet<PathBuf>,
    durable_names: BTreeMap<PathBuf, usize>,
    durable_dirs: BTreeSet<PathBuf>,
    /// Changes of names that are not durable yet, in order.
    log: Vec<Change>,
    capacity_bytes: u64,
    /// Of a thousand operations, so many fail or fall short.
    faults_per_mille: u32,
    /// The next sync of a file fails, and the next removal.
    sync_fails: bool,
    removal_fails: bool,
    operations: u64,
    cut_at: Option<u64>,
    at_cut: Option<Box<dyn FnMut() + Send>>,
    off: bool,
}

#[derive(Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    written_pages: BTreeSet<usize>,
    sync_failed: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, usize),
    MakeDir(PathBuf),
}

impl Change {
    fn concerns(&self, dir: &Path) -> bool {
        let below = |path: &Path| path.parent() == Some(dir);
        match self {
            Self::Link(path, _) | Self::Unlink(path) | Self::MakeDir(path) => below(path),
            Self::Rename(from, to, _) => below(from) || below(to),
        }
    }
}

impl FaultyDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                random: StdRng::seed_from_u64(seed),
                inodes: Vec::new(),
                names: BTreeMap::new(),
                dirs: BTreeSet::new(),
                durable_names: BTreeMap::new(),
                durable_dirs: BTreeSet::new(),
                log: Vec::new(),
                capacity_bytes: u64::MAX,
                faults_per_mille: 0,
                sync_fails: false,
                removal_fails: false,
                operations: 0,
                cut_at: None,
                at_cut: None,
                off: false,
            })),
        }
    }

    pub(crate) fn set_faults(&self, per_mille: u32) {
        self.lock().faults_per_mille = per_mille;
    }

    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.lock().capacity_bytes = bytes;
    }

    pub(crate) fn used(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// The next sync of a file fails, and the removal of what became of it.
    pub(crate) fn fail_sync_and_removal(&self) {
        let mut state = self.lock();
        state.sync_fails = true;
        state.removal_fails = true;
    }

    /// Cuts the power in the middle of the operation that is `operations` ahead; `at_cut` runs at that moment.
    pub(crate) fn cut_power_after(&self, operations: u64, at_cut: impl FnMut() + Send + 'static) {
        let mut state = self.lock();
        state.cut_at = Some(state.operations + operations);
        state.at_cut = Some(Box::new(at_cut));
    }

    pub(crate) fn is_off(&self) -> bool {
        self.lock().off
    }

    /// The power is back: what was not durable is there or not.
    pub(crate) fn power_on(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        let survivors = state.random.random_range(0..=state.log.len());
        for change in state.log.drain(..).take(survivors) {
            apply(&change, &mut state.durable_names, &mut state.durable_dirs);
        }
        let dirs = &state.durable_dirs;
        // The store's own folder is not of this disk, and always there.
        let top = dirs.iter().map(|dir| dir.components().count()).min();
        state.durable_names.retain(|name, _| {
            let mut above = name.ancestors().skip(1);
            above.all(|dir| Some(dir.components().count()) < top || dirs.contains(dir))
        });
        state.names = state.durable_names.clone();
        state.dirs = state.durable_dirs.clone();
        for inode in &mut state.inodes {
            inode.settle(&mut state.random);
        }
        state.off = false;
        state.cut_at = None;
        state.faults_per_mille = 0;
    }

    /// Every file.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

fn apply(change: &Change, names: &mut BTreeMap<PathBuf, usize>, dirs: &mut BTreeSet<PathBuf>) {
    match change {
        Change::Link(path, inode) => {
            names.insert(path.clone(), *inode);
        }
        Change::Unlink(path) => {
            names.remove(path);
        }
        Change::Rename(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
        Change::MakeDir(path) => {
            dirs.insert(path.clone());
        }
    }
}

impl Inode {
    /// After a power cut: each page is as it was synced or as it was written last.
    fn settle(&mut self, random: &mut StdRng) {
        if random.random() {
            self.now.truncate(self.durable.len());
        }
        for (page, bytes) in self.now.chunks_mut(PAGE_BYTES).enumerate() {
            if random.random() {
                for (offset, byte) in bytes.iter_mut().enumerate() {
                    *byte = self.durable.get(page * PAGE_BYTES + offset).copied().unwrap_or(0);
                }
            }
        }
        self.durable = self.now.clone();
        self.sync_failed = false;
    }
}

impl State {
    fn cut(&mut self) {
        self.off = true;
        if let Some(mut at_cut) = self.at_cut.take() {
            at_cut();
        }
    }

    /// Counts an operation; fails when the power is off, is cut now, or by chance.
    fn step(&mut self, fault: io::ErrorKind) -> io::Result<()> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        if self.cut_at == Some(self.operations) {
            self.cut();
            return Err(io::Error::other("the power was cut"));
        }
        if self.chance() {
            return Err(fault.into());
        }
        Ok(())
    }

    fn chance(&mut self) -> bool {
        self.random.random_range(0..1000) < self.faults_per_mille
    }

    fn change(&mut self, change: Change) {
        apply(&change, &mut self.names, &mut self.dirs);
        self.log.push(change);
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or(io::ErrorKind::NotFound.into())
    }

    fn used_bytes(&self) -> u64 {
        let linked: BTreeSet<usize> = self.names.values().copied().collect();
        linked
            .into_iter()
            .map(|inode| (self.inodes[inode].written_pages.len() * PAGE_BYTES) as u64)
            .sum()
    }
}

impl Files for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>> {
        let mut state = self.lock();
        state.step(io::ErrorKind::Other)?;
        let inode = state.inode(path)?;
        Ok(Arc::new(FaultyFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>> {
        let mut state = self.lock();
        state.step(io::ErrorKind::StorageFull)?;
        let inode = match state.names.get(path) {
            Some(&inode) => {
                state.inodes[inode].now.clear();
                inode
            }
            None => {
                state.inodes.push(Inode::default());
                let inode = state.inodes.len() - 1;
                state.change(Change::Link(path.to_owned(), inode));
                inode
            }
        };
        Ok(Arc::new(FaultyFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(io::ErrorKind::StorageFull)?;
        if !state.dirs.contains(path) {
            state.change(Change::MakeDir(path.to_owned()));
        }
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let state = &mut *state;
        state.step(io::ErrorKind::Other)?;
        // No more than was asked for: a journal would commit everything before it too.
        let (durable, rest): (Vec<_>, Vec<_>) = state.log.drain(..).partition(|change| change.concerns(path));
        state.log = rest;
        for change in durable {
            apply(&change, &mut state.durable_names, &mut state.durable_dirs);
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(io::ErrorKind::Other)?;
        let inode = state.inode(from)?;
        if !to.parent().is_some_and(|dir| state.dirs.contains(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(Change::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(io::ErrorKind::Other)?;
        if std::mem::take(&mut state.removal_fails) {
            return Err(io::ErrorKind::Other.into());
        }
        state.inode(path)?;
        state.change(Change::Unlink(path.to_owned()));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<FileEntry>> {
        let mut state = self.lock();
        state.step(io::ErrorKind::Other)?;
        let in_it = |name: &PathBuf| name.ancestors().skip(1).take(2).any(|above| above == path);
        let files = state.names.iter().filter(|(name, _)| in_it(name));
        Ok(files
            .map(|(name, inode)| FileEntry {
                path: name.clone(),
                bytes: state.inodes[*inode].now.len() as u64,
            })
            .collect())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.capacity_bytes.saturating_sub(state.used_bytes()))
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    inode: usize,
}

impl OpenFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.lock();
        state.step(io::ErrorKind::Interrupted)?;
        let short = state.chance();
        let content = &state.inodes[self.inode].now;
        let start = usize::try_from(offset).unwrap().min(content.len());
        let mut len = buffer.len().min(content.len() - start);
        if short && len > 1 {
            len /= 2;
        }
        buffer[..len].copy_from_slice(&content[start..start + len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.lock();
        let failed = state.step(io::ErrorKind::StorageFull);
        let short = failed.is_err() || state.chance();
        if state.used_bytes().saturating_add(bytes.len() as u64) > state.capacity_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // A write that fails may have written some of it.
        let len = match short {
            true if failed.is_ok() => state.random.random_range(1..=bytes.len()),
            true => state.random.random_range(0..=bytes.len()),
            false => bytes.len(),
        };
        let start = usize::try_from(offset).unwrap();
        let inode = &mut state.inodes[self.inode];
        if inode.now.len() < start + len {
            inode.now.resize(start + len, 0);
        }
        inode.now[start..start + len].copy_from_slice(&bytes[..len]);
        if len > 0 {
            inode
                .written_pages
                .extend(start / PAGE_BYTES..=(start + len - 1) / PAGE_BYTES);
        }
        failed.map(|()| len)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.step(io::ErrorKind::StorageFull)?;
        state.inodes[self.inode].now.resize(usize::try_from(bytes).unwrap(), 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let mut result = state.step(io::ErrorKind::Other);
        if std::mem::take(&mut state.sync_fails) {
            result = Err(io::ErrorKind::Other.into());
        }
        let inode = &mut state.inodes[self.inode];
        match &result {
            Ok(()) if !inode.sync_failed => inode.durable = inode.now.clone(),
            Ok(()) => {}
            Err(_) => inode.sync_failed = true,
        }
        result
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.disk.lock();
        state.step(io::ErrorKind::Other)?;
        Ok(state.inodes[self.inode].now.len() as u64)
    }
}
