//! Configuration: settings are read as text from every layer, checked all at once, then typed and final.
//!
//! ```text
//! defaults/*.toml ─ file ─ environment ─ flags ──merge──> Raw… (text) ──validate──> …Config (typed)
//! ```
//!
//! A later place overrides an earlier one key by key; a list is replaced as a whole. Nothing is opened or made before every
//! problem of every place is listed.

mod field;
mod key;
mod layers;
mod node;
mod problems;
mod raw;
mod shared;
mod size;
mod up;
mod upstream;
mod validate;
mod webhook;

pub(crate) use key::Raw;
pub(crate) use layers::{CONFIG_VARIABLE, Changes, Layers, Settings, load, mark_live};
pub(crate) use node::NodeSettings;
pub(crate) use problems::{ConfigProblemsError, Problems};
pub(crate) use raw::{RawMirror, RawNode, RawPeer, RawScheduler, RawUp, RawWebhook};
pub(crate) use size::parse_size;
pub(crate) use up::{SiteOfOne, UpSettings, site_of_one};
pub(crate) use upstream::read_upstreams;
pub(crate) use validate::DaemonSettings;
