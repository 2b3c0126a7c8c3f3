//! The store itself: its cloneable handle, and the state behind it.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use piecemeal_proto::{Digest, FillId, NodeId, NodeKey, PieceMap};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::sync::{Semaphore, broadcast};

use crate::{
    IndexError,
    batch::Touched,
    blocking::blocking,
    checked::GoodPieces,
    clock::{Age, AgeCounter, Clock, Stamp},
    counts::Counters,
    files::Files,
    fill::Fill,
    gate::Gates,
    handle::Handle,
    index::{Durability, Index},
    known::Known,
    layout::Layout,
    open::{Env, OpenStoreError, StoreConfig, claim},
    passing::{APART_MAX, PASSING_MAX},
    quota::{Kind, Ledger},
    recover::recover,
};

/// A slow listener loses the oldest evictions beyond these, and is told so; it then reads the inventory again.
const EVICTIONS_MAX: usize = 1024;

/// A folder of blobs. Cheap to clone; the folder stays locked until the last clone and the last handle are gone.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) layout: Layout,
    pub(crate) files: Arc<dyn Files>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) index: Index,
    pub(crate) gates: Gates,
    /// Held while space is looked for, so that two fills never count on the same bytes.
    pub(crate) reserving: Mutex<()>,
    pub(crate) state: Mutex<State>,
    /// The places of fills whose blob is not kept.
    pub(crate) passing: Arc<Semaphore>,
    /// Places for fills apart.
    pub(crate) apart: Arc<Semaphore>,
    /// Folders of blobs that are durable: 512 at the most.
    pub(crate) durable_dirs: Mutex<HashSet<PathBuf>>,
    pub(crate) evictions: broadcast::Sender<Digest>,
    pub(crate) counters: Counters,
    /// Cached names; the index has the rest.
    pub(crate) known: Mutex<Known>,
    pub(crate) good: GoodPieces,
    node_key: Arc<NodeKey>,
    random: Mutex<StdRng>,
    age: AgeCounter,
    #[expect(dead_code, reason = "the folder is ours while this is open")]
    lock: fs::File,
}

/// The state in memory.
pub(crate) struct State {
    pub(crate) ledger: Ledger,
    pub(crate) live: HashMap<Digest, Live>,
    pub(crate) touched: Touched,
    pub(crate) limits: Limits,
    /// Why the last fill found no room.
    pub(crate) trouble: Option<String>,
    /// When the last batch was written, by the monotonic clock.
    pub(crate) batched_at: Duration,
}

/// A filling in memory. Without a handle it only waits until its last pieces are in the index.
pub(crate) struct Live {
    pub(crate) fill: Arc<Fill>,
    pub(crate) handle: Weak<Handle>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) quota_bytes: Option<u64>,
    pub(crate) free_bytes_min: u64,
    pub(crate) ttl: Duration,
}

/// How full the store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Complete blobs.
    pub blobs: u64,
    pub blob_bytes: u64,
    /// Blobs that are not complete, whether being filled or waiting to be resumed.
    pub partials: u64,
    /// The whole size of every blob that is not complete.
    pub reserved_bytes: u64,
    pub manifests: u64,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The bytes are not what the digest says; nothing was stored.
    #[error("digest mismatch: expected {expected}, computed {computed}")]
    DigestMismatch {
        expected: Box<Digest>,
        computed: Box<Digest>,
    },
    /// Nothing was stored.
    #[error("a manifest of {bytes} bytes is larger than {bytes_max}")]
    ManifestTooLarge { bytes: u64, bytes_max: u64 },
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The local disk; everything else is still good.
    #[error("the store's disk failed")]
    Io(#[from] io::Error),
}

impl Store {
    /// Opens the store in `config.dir`, makes it when there is none, and brings disk and rows together after a crash.
    /// Blocks: opening a store looks at each of its files.
    ///
    /// # Errors
    /// [`OpenStoreError`], each with the path and what to do.
    pub fn open(config: StoreConfig, env: Env) -> Result<Self, OpenStoreError> {
        let layout = Layout::new(config.dir);
        let opened = claim(&layout)?;
        let index_error = |source| OpenStoreError::Index {
            path: layout.index(),
            source,
        };
        let random = StdRng::seed_from_u64(env.seed);
        let wall = env.clock.wall();
        let last = opened.index.identity().map_err(index_error)?;
        let start = last.map_or(Age(0), |(_, stamp)| stamp.resumed(wall));
        let stamp = Stamp::new(start, wall);
        // A store of the last release has had a random id until now.
        opened
            .index
            .set_identity(opened.node_key.id(), stamp)
            .map_err(index_error)?;
        let ledger = recover(&layout, env.files.as_ref(), &opened.index, stamp)?;
        let monotonic = env.clock.monotonic();
        let shared = Shared {
            layout,
            files: env.files,
            clock: env.clock,
            index: opened.index,
            gates: Gates::default(),
            reserving: Mutex::default(),
            state: Mutex::new(State {
                ledger,
                live: HashMap::new(),
                touched: Touched::default(),
                limits: Limits {
                    quota_bytes: config.quota_bytes,
                    free_bytes_min: config.free_bytes_min,
                    ttl: config.ttl,
                },
                trouble: None,
                batched_at: monotonic,
            }),
            passing: Arc::new(Semaphore::new(PASSING_MAX)),
            apart: Arc::new(Semaphore::new(APART_MAX)),
            durable_dirs: Mutex::default(),
            evictions: broadcast::Sender::new(EVICTIONS_MAX),
            counters: Counters::default(),
            known: Mutex::default(),
            good: GoodPieces::default(),
            node_key: Arc::new(opened.node_key),
            random: Mutex::new(random),
            age: AgeCounter::new(start, monotonic),
            lock: opened.lock,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// This node's id: its key's.
    pub fn node_id(&self) -> NodeId {
        self.shared.node_key.id()
    }

    /// The key that this node proves its id with: made with the store, kept beside its content.
    pub fn node_key(&self) -> Arc<NodeKey> {
        Arc::clone(&self.shared.node_key)
    }

    /// The next number of the seeded generator.
    pub fn random_u64(&self) -> u64 {
        self.shared.random_u64()
    }

    /// Changes the limits from now on. A smaller quota takes hold at the next [`Store::sweep`] or fill; a TTL applies to
    /// everything that is there already.
    pub fn set_limits(&self, quota_bytes: Option<u64>, free_bytes_min: u64, ttl: Duration) {
        self.shared.state.lock().limits = Limits {
            quota_bytes,
            free_bytes_min,
            ttl,
        };
    }

    /// The complete blobs that have left the store, for whatever reason. A listener that falls behind is told how many it
    /// missed, and should read [`Store::complete_digests`] again.
    pub fn evictions(&self) -> broadcast::Receiver<Digest> {
        self.shared.evictions.subscribe()
    }

    /// Every complete blob, ascending.
    ///
    /// # Errors
    /// None today; the inventory is in memory.
    pub async fn complete_digests(&self) -> Result<Vec<Digest>, StoreError> {
        Ok(self.shared.state.lock().ledger.digests(Kind::Blob))
    }

    /// Every blob that is not complete, ascending.
    ///
    /// # Errors
    /// None today; the inventory is in memory.
    pub async fn partials(&self) -> Result<Vec<Digest>, StoreError> {
        Ok(self.shared.state.lock().ledger.digests(Kind::Partial))
    }

    /// How a blob that is not complete is cut, so that a download of it can go on where it stopped.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn partial_map(&self, digest: &Digest) -> Result<Option<PieceMap>, StoreError> {
        let digest = *digest;
        self.run(move |shared| Ok(shared.index.partial(&digest)?.map(|row| row.map)))
            .await
    }

    /// Why new blobs cannot be kept, if they cannot. A blob larger than the quota does not count.
    pub fn trouble(&self) -> Option<String> {
        self.shared.state.lock().trouble.clone()
    }

    /// How full the store is.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn usage(&self) -> Result<Usage, StoreError> {
        self.run(|shared| {
            let manifests = shared.index.manifest_count()?;
            let state = shared.state.lock();
            let (blobs, partials) = (state.ledger.blobs(), state.ledger.partials());
            Ok(Usage {
                blobs: blobs.count,
                blob_bytes: blobs.bytes,
                partials: partials.count,
                reserved_bytes: partials.bytes,
                manifests,
            })
        })
        .await
    }

    /// Runs disk work on a blocking thread.
    pub(crate) async fn run<T, E>(
        &self,
        work: impl FnOnce(&Arc<Shared>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<io::Error> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        blocking(move || work(&shared)).await?
    }
}

impl Shared {
    pub(crate) fn now(&self) -> Age {
        self.age.now(self.clock.monotonic())
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp::new(self.now(), self.clock.wall())
    }

    pub(crate) fn random_u64(&self) -> u64 {
        self.random.lock().next_u64()
    }

    /// A new random fill id. Never 0.
    pub(crate) fn new_fill(&self) -> FillId {
        loop {
            if let id @ 1.. = self.random_u64() {
                return FillId(id);
            }
        }
    }

    pub(crate) fn write<T>(
        &self,
        durability: Durability,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        self.index.write(durability, self.stamp(), work)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // For callers that did not call `close`: this saves their last half second.
        self.write_batch(Durability::Batched);
    }
}
