//! Names that the disk does not take: an index in memory beside the one on the disk.
//!
//! What it has is younger than what the disk has of the same name. It is bounded, and gone with the process: upstream is asked again then.

use std::sync::OnceLock;

use parking_lot::Mutex;
use rusqlite::Transaction;
use tracing::{info, warn};

use crate::{
    index::{Durability, Index, name_caps, rights},
    values::error::IndexError,
};

/// The most names of each kind, rights and refusals in memory, and bytes of manifests: a site's images of some days.
const NAMES_MAX: u64 = 5_000;
const MANIFESTS_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The weight of the writes between two looks at these bounds: names, and each [`WEIGHT_BYTES`] of a manifest.
const WEIGHT_UNLOOKED: usize = 256;
const WEIGHT_BYTES: usize = 16 * 1024;

/// The index in memory, once there is one.
#[derive(Default)]
pub(super) struct Overflow {
    index: OnceLock<Index>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Why the disk did not take the last write.
    trouble: Option<String>,
    /// The weight of the writes since the bounds were looked at.
    weight: usize,
}

impl Overflow {
    /// The index in memory, if the disk has ever failed.
    pub(super) fn index(&self) -> Option<&Index> {
        self.index.get()
    }

    /// Why names cannot be written to the disk, if they cannot.
    pub(super) fn trouble(&self) -> Option<String> {
        self.state.lock().trouble.clone()
    }

    /// Writes to the disk, or to memory where the disk fails. Names that are in memory are changed there too. `bytes`: those of a manifest.
    pub(super) fn write(
        &self,
        disk: &Index,
        bytes: usize,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), IndexError> {
        match disk.write(Durability::Batched, &work) {
            Ok(()) => {
                if self.state.lock().trouble.take().is_some() {
                    info!("names can be written to the disk again");
                }
                match self.index() {
                    Some(memory) => self.write_memory(memory, bytes, work),
                    None => Ok(()),
                }
            }
            Err(error) => {
                self.note(&error);
                let memory = match self.index.get() {
                    Some(memory) => memory,
                    None => {
                        let memory = disk.beside()?;
                        self.index.get_or_init(|| memory)
                    }
                };
                self.write_memory(memory, bytes, work)
            }
        }
    }

    fn write_memory(
        &self,
        memory: &Index,
        bytes: usize,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), IndexError> {
        let is_due = {
            let mut state = self.state.lock();
            state.weight += 1 + bytes / WEIGHT_BYTES;
            let is_due = state.weight >= WEIGHT_UNLOOKED;
            if is_due {
                state.weight = 0;
            }
            is_due
        };
        memory.write(Durability::Batched, |transaction| {
            work(transaction)?;
            if is_due {
                cap(transaction)?;
            }
            Ok(())
        })
    }

    fn note(&self, error: &IndexError) {
        let why = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
        let news = self.state.lock().trouble.replace(why.clone());
        if news.is_none() {
            warn!(%error, "the disk does not take tags, manifests and rights, which are kept in memory: {why}");
        }
    }
}

fn cap(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    rights::cap(transaction, NAMES_MAX, NAMES_MAX)?;
    let caps = name_caps::Caps {
        names: NAMES_MAX,
        manifest_bytes: MANIFESTS_BYTES_MAX,
    };
    name_caps::cap(transaction, &caps)
}
