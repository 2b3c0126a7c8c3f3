//! Piecemeal: pulls a container image into a site over the WAN once, and lets its nodes share the pieces.

mod admin;
mod cli;
mod config;
mod daemon;
mod handover;
mod runtime_restart;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
