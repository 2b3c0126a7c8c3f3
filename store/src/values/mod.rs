//! Values: what every other part names, and what knows none of them.

pub(crate) mod clock;
pub(crate) mod counts;
pub(crate) mod error;
pub(crate) mod piece_hashes;
pub(crate) mod repository;
pub(crate) mod right;
