//! The certificate that is shown, and the CA that API servers are to know it by.

pub(crate) mod authority;
mod files;
pub(crate) mod keeper;
