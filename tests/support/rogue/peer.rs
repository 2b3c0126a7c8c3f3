//! A rogue peer: it holds the site's join.key, speaks the scheduler's protocol as it likes, and serves what it likes. By seed it has
//! a key of its own and signs, or is one of the last release, whose id is only said.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use piecemeal_proto::{
    Digest, JoinKey, NodeId, NodeKey,
    wire::{self, Report, Reports, Role, order::Order, report::Report as Kind, scheduler_client::SchedulerClient},
};
use piecemeal_proxy::{NodeBlob, open_path};
use piecemeal_store::Repository;
use piecemeal_upstream::NodeIdentity;
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use url::Url;

use super::{
    super::{
        http::Request,
        netns::Netns,
        piecemeal::{Keys, mirror_url, scheduler_url},
        site::{Site, node_ip},
    },
    Crew, Dice,
    pieces::{Cut, FILLER, PieceServer, Serving},
};

/// The misdeed of a rogue peer beside a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdeed {
    /// It states hashes of its own bytes for pieces that the mirror has not told of yet, and serves those bytes.
    StatesHashes,
    /// The same for one piece in the last third, which a slow mirror has not filled yet when the rogue is heard, and no other.
    StatesOneHash,
    /// It claims to have the whole blob, and serves other bytes.
    ServesWrongBytes,
    Dribbles,
    IsSilent,
    NeverEnds,
    NeverEndsItsHead,
    HasNothing,
    Resets,
    /// Twenty ids of one machine want the blob, are leased pieces, and fetch none.
    HoardsLeases,
    /// It says of every source that it sent corrupt pieces.
    AccusesAll,
    /// It claims to have thousands of blobs.
    FloodsInventory,
    /// It says that it is another node, of a higher incarnation, and asks the mirror as that node.
    Impersonates,
}

impl Misdeed {
    /// All that are let loose beside any pull.
    pub const ALL: [Self; 12] = [
        Self::StatesHashes,
        Self::ServesWrongBytes,
        Self::Dribbles,
        Self::IsSilent,
        Self::NeverEnds,
        Self::NeverEndsItsHead,
        Self::HasNothing,
        Self::Resets,
        Self::HoardsLeases,
        Self::AccusesAll,
        Self::FloodsInventory,
        Self::Impersonates,
    ];

    fn serving(self) -> Serving {
        match self {
            Self::Dribbles => Serving::Dribble,
            Self::IsSilent => Serving::Silence,
            Self::NeverEnds => Serving::Endless,
            Self::NeverEndsItsHead => Serving::EndlessHead,
            Self::HasNothing => Serving::NotFound,
            Self::Resets => Serving::Reset,
            _ => Serving::WrongBytes,
        }
    }

    fn sessions(self) -> usize {
        if self == Self::HoardsLeases { 20 } else { 1 }
    }

    fn claims_complete(self) -> bool {
        !matches!(
            self,
            Self::StatesHashes | Self::StatesOneHash | Self::HoardsLeases | Self::AccusesAll
        )
    }

    fn wants(self) -> bool {
        matches!(self, Self::HoardsLeases | Self::AccusesAll)
    }
}

/// A blob that it is after.
#[derive(Clone, Debug)]
pub struct Prey {
    pub at: Repository,
    pub digest: Digest,
}

/// A running rogue peer.
#[derive(Debug)]
pub struct RoguePeer {
    _crew: Crew,
    pieces: PieceServer,
    seen: Arc<Seen>,
}

/// The results of a rogue peer.
#[derive(Debug, Default)]
struct Seen {
    welcomes: AtomicUsize,
    leases: AtomicUsize,
    /// Bodies that the mirror answered its requests with.
    loot: Mutex<Vec<Vec<u8>>>,
}

impl RoguePeer {
    /// Runs on node `node`, whose honest peer need not run, and is after the blobs `prey`. `victim`: the node whose id an
    /// impersonator claims.
    pub fn start(
        site: &Site,
        node: usize,
        keys: &Keys,
        misdeed: Misdeed,
        seed: u64,
        prey: &[Prey],
        victim: NodeId,
    ) -> Self {
        let netns = site.node(node).clone();
        let listener = netns
            .enter(|| TcpListener::bind((node_ip(node), 0)))
            .expect("listening as the rogue's piece port");
        let cut = Arc::default();
        let pieces = PieceServer::start(listener, misdeed.serving(), Arc::clone(&cut));
        let seen: Arc<Seen> = Arc::default();
        let join = read_join_key(&keys.join());
        let mut dice = Dice::new(seed);
        let mut crew = Crew::default();
        for session in 0..misdeed.sessions() {
            let key = Arc::new(NodeKey::from_seed(dice.bytes()));
            let signs = (seed + session as u64).is_multiple_of(2) && misdeed != Misdeed::Impersonates;
            let id = match (misdeed, signs) {
                (Misdeed::Impersonates, _) => victim,
                (_, true) => key.id(),
                (_, false) => NodeId(dice.bytes()),
            };
            let rogue = Rogue {
                netns: netns.clone(),
                ip: node_ip(node),
                piece_port: pieces.address().port(),
                join: join.clone(),
                id,
                key: signs.then_some(key),
                misdeed,
                prey: prey.to_vec(),
                dice: Dice::new(seed ^ session as u64),
                cut: Arc::clone(&cut),
                seen: Arc::clone(&seen),
                opened: Vec::new(),
            };
            crew.hire(move |stopped| rogue.run(&stopped));
        }
        Self {
            _crew: crew,
            pieces,
            seen,
        }
    }

    /// Sessions that the scheduler has welcomed so far.
    pub fn welcomes(&self) -> usize {
        self.seen.welcomes.load(Ordering::Relaxed)
    }

    pub fn leases(&self) -> usize {
        self.seen.leases.load(Ordering::Relaxed)
    }

    /// Requests that reached its piece port.
    pub fn asked(&self) -> usize {
        self.pieces.asked.load(Ordering::Relaxed)
    }

    /// All that the mirror has told it.
    pub fn loot(&self) -> Vec<Vec<u8>> {
        self.seen.loot.lock().expect("no holder panics").clone()
    }
}

fn read_join_key(file: &Path) -> JoinKey {
    let text = std::fs::read_to_string(file).expect("the site's join.key");
    text.parse().expect("a join.key")
}

/// One session of a rogue peer.
struct Rogue {
    netns: Netns,
    ip: Ipv4Addr,
    piece_port: u16,
    join: JoinKey,
    id: NodeId,
    /// `None`: one of the last release.
    key: Option<Arc<NodeKey>>,
    misdeed: Misdeed,
    prey: Vec<Prey>,
    dice: Dice,
    cut: Arc<Mutex<Cut>>,
    seen: Arc<Seen>,
    /// What the mirror told of the prey, as far as it did.
    opened: Vec<(Digest, NodeBlob)>,
}

impl Rogue {
    fn run(mut self, stopped: &AtomicBool) {
        let netns = self.netns.clone();
        netns.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                while !stopped.load(Ordering::Relaxed) {
                    // However the scheduler ends it: the rogue tries again.
                    let _ = self.session(stopped).await;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            });
        });
    }

    async fn session(&mut self, stopped: &AtomicBool) -> Option<()> {
        let channel = tonic::transport::Endpoint::from_shared(scheduler_url("http")).ok()?;
        let channel = timeout(Duration::from_secs(3), channel.connect()).await.ok()?.ok()?;
        let (reports, outgoing) = mpsc::channel::<Reports>(64);
        let mut client = SchedulerClient::new(channel).max_decoding_message_size(wire::MESSAGE_BYTES_MAX);
        let mut orders = client.session(ReceiverStream::new(outgoing)).await.ok()?.into_inner();
        while !stopped.load(Ordering::Relaxed) {
            match timeout(Duration::from_millis(100), orders.message()).await {
                Ok(message) => {
                    for order in message.ok()??.orders.into_iter().filter_map(|order| order.order) {
                        let answer = self.hear(order)?;
                        send(&reports, answer).await?;
                    }
                }
                Err(_quiet) => {
                    let harm = self.harm();
                    send(&reports, harm).await?;
                }
            }
        }
        Some(())
    }

    /// `None` ends the session.
    fn hear(&mut self, order: Order) -> Option<Vec<Kind>> {
        match order {
            Order::Challenge(challenge) => Some(vec![Kind::Hello(self.hello(&challenge.nonce))]),
            Order::Welcome(_) => {
                self.seen.welcomes.fetch_add(1, Ordering::Relaxed);
                Some(self.harm())
            }
            Order::Refused(_) => None,
            Order::Lease(lease) => {
                self.seen.leases.fetch_add(1, Ordering::Relaxed);
                let accusation = Kind::LeaseEnded(wire::LeaseEnded {
                    lease: lease.lease,
                    outcome: wire::Outcome::Corrupt.into(),
                    piece: lease.first,
                });
                Some(
                    (self.misdeed == Misdeed::AccusesAll)
                        .then_some(accusation)
                        .into_iter()
                        .collect(),
                )
            }
            Order::Describe(_) => Some(self.claims()),
            _ => Some(Vec::new()),
        }
    }

    fn hello(&self, nonce: &[u8]) -> wire::Hello {
        let mut hello = wire::Hello {
            version_min: wire::VERSION,
            version_max: wire::VERSION,
            role: Role::Peer.into(),
            node: self.id.0.to_vec(),
            incarnation: u64::MAX,
            pool: "site-a".to_owned(),
            addresses: vec![wire::Address {
                ip: self.ip.to_string(),
                port: self.piece_port.into(),
            }],
            piece_port: self.piece_port.into(),
            ..wire::Hello::default()
        };
        hello.proof = self.join.peer_role().prove(&hello.claim(nonce)).to_vec();
        if let Some(key) = &self.key {
            let features = [
                wire::feature::SIGNED_IDENTITY,
                wire::feature::PIECE_HASHES,
                wire::feature::DROP,
            ];
            hello.features = features.map(str::to_owned).to_vec();
            hello.sign(key, nonce);
        }
        hello
    }

    /// What it does again and again.
    fn harm(&mut self) -> Vec<Kind> {
        self.open_prey();
        let mut reports = self.claims();
        if self.misdeed.wants() {
            let wants = self.opened.iter().map(|(digest, blob)| {
                Kind::Want(wire::Want {
                    digest: digest.to_string(),
                    grant: blob.grant.clone().into_bytes(),
                    fill: blob.fill_id().map_or(0, |fill| fill.0),
                    blob_bytes: blob.blob_bytes,
                    piece_bytes: blob.piece_bytes,
                    ..wire::Want::default()
                })
            });
            reports.extend(wants);
        }
        if self.misdeed == Misdeed::FloodsInventory {
            let complete = (0..wire::INVENTORY_CHUNK_MAX).map(|_| Digest::Sha256(self.dice.bytes()).to_string());
            reports.push(Kind::Inventory(wire::Inventory {
                complete: complete.collect(),
                last: true,
            }));
        }
        reports
    }

    /// What it says that it has of what it knows.
    fn claims(&mut self) -> Vec<Kind> {
        let mut claims = Vec::new();
        for (digest, blob) in &self.opened {
            let Some((map, fill)) = blob.map().zip(blob.fill_id()) else {
                continue;
            };
            if map.is_empty() || self.misdeed.wants() {
                continue;
            }
            if self.misdeed.claims_complete() {
                claims.push(Kind::Complete(wire::Complete {
                    digest: digest.to_string(),
                }));
                continue;
            }
            // Not the first pieces: the mirror has told of those already.
            let first = u32::try_from(self.dice.below(u64::from(map.count()))).expect("a piece");
            let pieces = match self.misdeed {
                Misdeed::StatesOneHash => map.count() / 4 * 3..map.count() / 4 * 3 + 1,
                _ => first..map.count(),
            };
            let hashes = pieces.clone().flat_map(|piece| {
                let range = map.range(piece);
                let bytes = vec![FILLER; usize::try_from(range.end - range.start).expect("a piece")];
                Sha256::digest(&bytes)
            });
            claims.push(Kind::Have(wire::Have {
                digest: digest.to_string(),
                fill: fill.0,
                blob_bytes: blob.blob_bytes,
                piece_bytes: blob.piece_bytes,
                first: pieces.start,
                count: pieces.end - pieces.start,
                hash_algorithm: wire::HashAlgorithm::Sha256.into(),
                hashes: hashes.collect(),
            }));
        }
        claims
    }

    /// Asks the mirror for what it does not know yet, one blob a time, as a node and without a credential.
    fn open_prey(&mut self) {
        let known = |prey: &&Prey| !self.opened.iter().any(|(digest, _)| *digest == prey.digest);
        let unknown: Vec<Prey> = self.prey.iter().filter(known).cloned().collect();
        if unknown.is_empty() {
            return;
        }
        let prey = self.dice.pick(&unknown).clone();
        let path = open_path(&prey.at, &prey.digest, None);
        let url: Url = format!("{}{path}", mirror_url("http")).parse().expect("a URL");
        let address: SocketAddr = url.socket_addrs(|| None).expect("an address")[0];
        let request = Request::get(address, &path).patience(Duration::from_secs(2));
        let request = self
            .headers(&url)
            .into_iter()
            .fold(request, |request, (name, value)| request.header(name, &value));
        let Ok(answer) = request.send() else { return };
        self.seen
            .loot
            .lock()
            .expect("no holder panics")
            .push(answer.body.clone());
        if let Ok(blob) = serde_json::from_slice::<NodeBlob>(&answer.body) {
            *self.cut.lock().expect("no holder panics") = Cut {
                blob_bytes: blob.blob_bytes,
                piece_bytes: blob.piece_bytes,
            };
            self.opened.push((prey.digest, blob));
        }
    }
}

impl Rogue {
    /// How it shows the mirror that it is a node.
    fn headers(&self, url: &Url) -> Vec<(&'static str, String)> {
        if let Some(key) = &self.key {
            return NodeIdentity::new(Arc::clone(key), &self.join).headers(&reqwest::Method::GET, url);
        }
        let (path, query) = (url.path(), url.query().unwrap_or_default());
        let claim = format!("piecemeal node v1\0{}\0{path}\0{query}", self.id);
        vec![
            ("piecemeal-node", self.id.to_string()),
            (
                "piecemeal-proof",
                base64_of(&self.join.peer_role().prove(claim.as_bytes())),
            ),
        ]
    }
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

async fn send(reports: &mpsc::Sender<Reports>, kinds: Vec<Kind>) -> Option<()> {
    let report = |kind| Report { report: Some(kind) };
    let reports_ = kinds.into_iter().map(report).collect();
    let message = Reports { reports: reports_ };
    timeout(Duration::from_secs(2), reports.send(message)).await.ok()?.ok()
}
