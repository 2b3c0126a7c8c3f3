//! Admission reviews: the API server's requests about pods, and their answers.

pub(crate) mod message;
pub(crate) mod reviewer;
pub(crate) mod server;
