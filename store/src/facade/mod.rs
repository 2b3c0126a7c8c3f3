//! The façade: what callers hold. Each method moves disk work to a blocking thread and decides nothing.

pub(crate) mod blob;
pub(crate) mod checked_blob;
pub(crate) mod filling;
pub(crate) mod store;
pub(crate) mod store_blobs;
pub(crate) mod store_names;
