//! What the end-to-end tests and benchmarks stand on: real machines in miniature, real clients, and registries both honest
//! and hostile.
//!
//! | to have | use |
//! |---|---|
//! | a site with WAN, LAN and nodes | [`Site`] |
//! | everything running on it | [`Cluster`] |
//! | an image | [`Image`] |
//! | a Kubernetes without nodes | [`KubeApi`] |
//! | a Kubernetes with them | [`KubeSite`] |
//! | an upstream | [`DockerRegistry`], or [`FakeUpstream`] and its [`Behaviour`]s |
//! | harm beside a pull | [`RoguePeer`], [`RogueNode`], [`RogueRegistry`], [`RogueClient`] |
//! | a client | [`Containerd`], [`CriNode`], [`Docker`], [`skopeo`], those of a [`Home`], or bare HTTP with [`Request`] |
//! | the product | [`Mirror`], [`Scheduler`], [`Peer`] |
//!
//! The tests need root and the programs that [`require_tools`] names. Whatever they make is gone after them; the first test
//! of a run removes what a killed one left behind.

#![expect(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "each test binary uses another part"
)]

mod cluster;
mod containerd;
mod cri;
mod docker;
mod home;
mod http;
mod image;
mod injector;
mod kube;
mod name_server;
mod netns;
mod outcome;
mod piecemeal;
mod process;
mod registry;
mod relay;
mod reply;
mod rogue;
mod scratch;
mod site;
pub mod skopeo;
mod token_server;
mod tools;
mod upstream;
mod webhook;

pub use self::{
    cluster::{Cluster, ClusterOptions, FetchOutcome, HOST, PEER_URL, REGISTRY, hosts_toml, start_containerd},
    containerd::{Chunks, Containerd},
    cri::{CriNode, CriVersion},
    docker::Docker,
    home::Home,
    http::{Headers, Request, Response, read_head},
    image::{Blob, CONFIG, INDEX, Image, LAYER, MANIFEST, architecture, sha256},
    injector::Injector,
    kube::{
        ApiError, Identity, KubeApi, KubeClient, KubeOptions, KubeSite, Node, wait_until, wait_within, waiting_program,
    },
    name_server::NameServer,
    netns::Netns,
    outcome::CommandOutcome,
    piecemeal::{
        Daemon, Keys, Mirror, MirrorOptions, Peer, PeerOptions, Scheduler, SchedulerOptions, mirror_url, scheduler_url,
    },
    process::Process,
    registry::{DockerRegistry, PASSWORD, RegistryAuth, USER, basic},
    reply::{Behaviour, Reply},
    rogue::{ClientHarm, Dice, Haunt, Misdeed, Prey, RegistryHarm, RogueClient, RogueNode, RoguePeer, RogueRegistry},
    scratch::ScratchDir,
    site::{MIRROR_IP, MIRROR_WAN_IP, ORIGIN_IP, Site, SiteBuilder, node_ip},
    token_server::TokenServer,
    tools::{last_release, require_tools},
    upstream::{FakeUpstream, RecordedRequest},
    webhook::{LABEL, Load, NEUTRAL_LABEL, REGISTRIES, Replica, Webhook, WebhookOptions, pods},
};
