//! The command line: one file per subcommand.
//!
//! Exit codes: 0, done; 1, it could not be done; 64, the arguments or settings are wrong and nothing was tried.

#[macro_use]
mod say;

mod cache;
mod cache_dir;
mod chart;
mod daemon;
mod error;
mod generate;
mod http;
mod keygen;
mod kubectl;
mod node;
mod pull;
mod reach;
mod settings;
mod status;
mod up;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use self::{
    error::{WrongArgumentError, describe},
    settings::DaemonArgs,
};
use crate::config::{ConfigProblemsError, RawMirror, RawNode, RawPeer, RawScheduler, RawUp, RawWebhook, mark_live};

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
    let command = match parse() {
        Ok(command) => command,
        Err(error) => {
            // Help and version are errors to clap, but not to the shell. A closed terminal is no error.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing has installed a provider yet");
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", describe(&error));
            let is_usage = error.is::<ConfigProblemsError>() || error.is::<WrongArgumentError>();
            ExitCode::from(if is_usage { EXIT_USAGE } else { EXIT_FAILED })
        }
    }
}

#[derive(Debug, Parser)]
#[command(name = "piecemeal", version, about = ABOUT, after_help = AFTER_HELP, disable_help_subcommand = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole site on this machine, to pull images through
    Up(DaemonArgs<RawUp>),
    /// Pull an image, verify every byte of it, and report the speed
    Pull(pull::PullArgs),
    /// Show connected nodes, transfers in flight, and the traffic that was saved
    Status(status::StatusArgs),
    /// List, remove, verify and prefetch the content of a mirror or peer
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Check whether registries can be reached from here, and show what prevents it
    Reach(reach::ReachArgs),
    /// Write the keys of a new site
    Keygen(keygen::KeygenArgs),
    /// Run a site's mirror, which pulls from the registries
    Mirror(DaemonArgs<RawMirror>),
    /// Run a site's scheduler, which assigns to each peer the sources of its pieces
    Scheduler(DaemonArgs<RawScheduler>),
    /// Run a node's peer, which containerd pulls from
    Peer(DaemonArgs<RawPeer>),
    /// Run the admission webhook of a Kubernetes cluster, which gives the images of labelled pods their accelerated names
    Webhook(DaemonArgs<RawWebhook>),
    /// Set up this machine's container runtimes to pull through its peer, or undo that
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Inspect a cluster and its pods, as `kubectl piecemeal`
    #[command(subcommand)]
    Kubectl(kubectl::KubectlCommand),
    /// Run the hooks of the Helm chart
    #[command(subcommand)]
    Chart(chart::ChartCommand),
    /// Print a shell completion script
    Completions(generate::CompletionsArgs),
    /// Write the man pages of these commands
    Man(generate::ManArgs),
}

/// The command of the arguments. Under the name of a plugin of kubectl, only its commands are there.
fn parse() -> Result<Command, clap::Error> {
    let name = std::env::args_os().next().map(PathBuf::from);
    if name.is_some_and(|path| path.file_name().is_some_and(|name| name == kubectl::PLUGIN)) {
        let matches = kubectl::plugin().try_get_matches()?;
        return kubectl::KubectlCommand::from_arg_matches(&matches).map(Command::Kubectl);
    }
    let matches = cli().try_get_matches()?;
    Cli::from_arg_matches(&matches).map(|cli| cli.command)
}

/// The command line, whose help tells which settings are live.
fn cli() -> clap::Command {
    Cli::command()
        .mut_subcommand("up", mark_live::<RawUp>)
        .mut_subcommand("mirror", mark_live::<RawMirror>)
        .mut_subcommand("scheduler", mark_live::<RawScheduler>)
        .mut_subcommand("peer", mark_live::<RawPeer>)
        .mut_subcommand("webhook", mark_live::<RawWebhook>)
        .mut_subcommand("node", |node| {
            node::hide_daemon_settings(node).mut_subcommand("run", mark_live::<RawNode>)
        })
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => up::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Status(args) => status::run(&args),
        Command::Cache(command) => cache::run(command),
        Command::Reach(args) => reach::run(&args),
        Command::Keygen(args) => keygen::run(&args),
        Command::Mirror(args) => daemon::run_mirror(args),
        Command::Scheduler(args) => daemon::run_scheduler(args),
        Command::Peer(args) => daemon::run_peer(args),
        Command::Webhook(args) => daemon::run_webhook(args),
        Command::Node(command) => node::run(command),
        Command::Kubectl(command) => kubectl::run(command),
        Command::Chart(command) => chart::run(command),
        Command::Completions(args) => generate::completions(&args, cli()),
        Command::Man(args) => generate::man(&args, cli()),
    }
}

const EXIT_FAILED: u8 = 1;
/// EX_USAGE of sysexits.h.
const EXIT_USAGE: u8 = 64;
const ABOUT: &str = "Pulls container images into a site once, and lets its nodes share the pieces.";
const AFTER_HELP: &str = "\
Try it on this machine:
    piecemeal up
    piecemeal pull localhost:65001/docker.io/library/alpine:3.20";
