//! The admission webhook: which images of a pod are pulled through the swarm, and what the pod needs for it.

mod copies;
mod decide;
