//! `Filling`: the handle of writers and readers to a blob that is being filled.

pub(crate) mod handle;
mod reading;
pub(crate) mod writing;
