//! Download of one blob: the machine, which decides and is pure, and the task, which does its I/O.

mod action;
mod ended;
mod fetch;
mod machine;
mod mode;
mod opening;
mod order;
mod parts;
mod pieces;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod story;
mod task;
mod transfer;
#[cfg(test)]
mod worlds;

pub(crate) use parts::Parts;
pub use {
    action::{Action, Failure},
    ended::Ended,
    machine::{Beginning, Download, Reopened},
    mode::Facts,
    opening::{Opening, OpeningStep, Unopened},
    order::Order,
};
