//! How a peer gets one blob: what to do next (pure), and the task that does it.

mod lease;
mod mode;
mod run;
mod window;

pub(crate) use run::{Order, Parts};
