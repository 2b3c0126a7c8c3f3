//! A transfer while another upstream's transfer of the same digest leads: it follows, fills apart, or leads itself.
//!
//! `Following` is the machine, which decides and is pure; the task does its I/O.

mod action;
mod apart;
mod comparison;
mod machine;
#[cfg(test)]
mod stories;
mod task;
#[cfg(test)]
mod worlds;

pub(super) use comparison::SAMPLE_BYTES;
