//! HTTP/1.1 as daemons of a site serve it: blobs to clients, pieces to each other.
//!
//! What lies in files leaves without a copy (`outlet`); how many connections there are, how long they may idle and how they
//! end is `serve`.

mod outlet;
mod serve;

pub use outlet::{EXTENT_BYTES_MAX, Outlet, Part};
pub use serve::{Greet, Limits, serve_http};
