//! Lock of a node: one run at a time changes its files.
//!
//! The folder /etc itself is locked, so that no file of the lock's own is left, and a system that is read-only has one, too.

use std::{
    io,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::root::{Root, readable};

/// Keeps other runs out until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _folder: OwnedFd,
}

/// Waits until no other run changes the node; `None`: one still does after that time.
///
/// # Errors
/// The folder cannot be opened.
pub(crate) fn lock(root: &Root, patience: Duration) -> io::Result<Option<Lock>> {
    let end = Instant::now() + patience;
    let place = root.folder("/etc", None).or_else(|_| root.folder("/", None))?;
    let folder = readable(&place)?;
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(Lock { _folder: folder })),
            Err(Errno::WOULDBLOCK) if Instant::now() < end => thread::sleep(LOCK_INTERVAL),
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The interval at which a lock that another run holds is tried again.
const LOCK_INTERVAL: Duration = Duration::from_millis(50);
