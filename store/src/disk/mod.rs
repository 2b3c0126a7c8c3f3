//! The disk: files, their paths, and ranges of them that are sent without a copy.

pub(crate) mod blocking;
pub(crate) mod disk_files;
pub(crate) mod extent;
pub(crate) mod files;
pub(crate) mod layout;
