//! Prefetching of images, as a client would pull them: from the tag down to every blob of the wanted platforms.
//!
//! Content that is here is not fetched again, but the right to it is proven all the same, so that it can be served while the
//! upstream is unreachable. An image that cannot be fetched costs the others nothing. On the admin port its name is `warm`.

mod advice;
mod blob;
mod image;
mod plan;
mod platforms;
mod progress;
mod run;

pub(super) use blob::fetch;
pub(super) use plan::PrefetchPlan;
pub(super) use run::run;
