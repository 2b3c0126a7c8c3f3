//! The index: what the store knows beside the bytes, in SQLite.
//!
//! One connection behind a mutex, used on blocking threads only. Every write transaction also stamps the store's age, so
//! that no row is ever younger than the age that a restart continues from. The index holds hints and facts: a blob's row is
//! a fact (its file was synced first), a partial's pieces are hints. Rows that make no sense are skipped, never a panic.
//!
//! Durability is chosen per transaction. [`Durability::Batched`] may lose the last seconds in a power cut, in order and as
//! a whole; the next [`Durability::Synced`] one makes everything before it durable too. Waiting for the disk happens beside
//! the connection: progress and readers must not wait for the sync of another transaction.

pub(crate) mod blobs;
pub(crate) mod catalog;
pub(crate) mod connection;
pub(crate) mod manifests;
pub(crate) mod name_caps;
pub(crate) mod partials;
pub(crate) mod rights;
mod schema;
mod shares;
pub(crate) mod sources;
mod sql;
pub(crate) mod tags;

pub(crate) use blobs::BlobRow;
pub(crate) use connection::{Durability, Index};
pub(crate) use manifests::ManifestRow;
pub(crate) use partials::{PartialPieceChange, PartialPieceRow, PartialRow, Progress};
pub(crate) use schema::OpenIndexError;
pub(crate) use sql::ListedRow;
pub(crate) use tags::TagRow;
