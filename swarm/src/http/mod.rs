//! HTTP/1.1 as daemons of a site serve it: blobs to clients, pieces to each other.
//!
//! `outlet` sends files without a copy; `serve` limits the number of connections and their idle time, and ends them.

mod outlet;
mod serve;

pub use outlet::{EXTENT_BYTES_MAX, Outlet, Part};
pub use serve::{Greet, Limits, serve_http};
