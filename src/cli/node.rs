//! `piecemeal node`: wires this machine's container runtimes to its peer, keeps them wired, and undoes it.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use piecemeal_runtimes::{Controller, ControllerConfig, Node, Report, Settings};
use serde::Serialize;

use super::{
    daemon,
    daemon::{Log, say_good},
    settings::{DaemonArgs, read_settings},
};
use crate::{
    config::{NodeSettings, Problems, RawNode},
    runtime_restart::{COMMAND, become_systemctl},
};

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Write the files with which this machine's container runtimes pull through its peer
    Install(NodeArgs),
    /// Undo the installation; accelerated names then lead to their registries
    Remove(RemoveArgs),
    /// Show the installed runtimes, whether each is ready, the files written for it, and whether the peer's port answers
    Status(NodeArgs),
    /// Install, and repair the files until stopped; the files stay afterwards
    Run(DaemonArgs<RawNode>),
    /// Restart a runtime of the node
    #[command(name = COMMAND, hide = true)]
    RestartRuntime(RestartArgs),
}

#[derive(Args, Debug)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    settings: DaemonArgs<RawNode>,
    /// The output format
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Args, Debug)]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Also delete the files through which accelerated names still lead to their registries
    #[arg(long)]
    purge: bool,
}

#[derive(Args, Debug)]
pub(super) struct RestartArgs {
    #[arg(long)]
    root: PathBuf,
    unit: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
}

pub(super) fn run(command: NodeCommand) -> anyhow::Result<()> {
    match command {
        NodeCommand::Install(args) => install(&args),
        NodeCommand::Remove(args) => remove(&args),
        NodeCommand::Status(args) => status(&args),
        NodeCommand::Run(args) => daemon::run::<Controller, _>(args, RawNode::validate),
        NodeCommand::RestartRuntime(args) => {
            Err(anyhow!(become_systemctl(&args.root, &args.unit)).context("cannot run systemctl at the node's root"))
        }
    }
}

/// Hides from the help of single commands what only the daemon among them looks at. A shared file may still have it.
pub(super) fn hide_daemon_settings(command: clap::Command) -> clap::Command {
    ["install", "remove", "status"]
        .into_iter()
        .fold(command, |command, name| {
            command.mut_subcommand(name, |command| {
                ["interval", "admin_listen"]
                    .into_iter()
                    .fold(command, |command, key| command.mut_arg(key, |arg| arg.hide(true)))
            })
        })
}

fn install(args: &NodeArgs) -> anyhow::Result<()> {
    let Some(config) = args.read(RawNode::validate)? else {
        return Ok(());
    };
    let settings = settings(&config)?;
    let report = config.install(&settings)?;
    args.print(&report, Report::render)?;
    if report.runtimes.is_empty() {
        bail!(
            "no container runtime was found at {}; name it with --runtime",
            config.root.display()
        );
    }
    fail_if_failed(&report)
}

fn remove(args: &RemoveArgs) -> anyhow::Result<()> {
    let Some(config) = args.node.read(RawNode::validate_without_upstreams)? else {
        return Ok(());
    };
    let report = Node::open(&config.root)?.remove(&settings(&config)?, args.purge)?;
    args.node.print(&report, Report::render)?;
    fail_if_failed(&report)
}

fn status(args: &NodeArgs) -> anyhow::Result<()> {
    let Some(config) = args.read(RawNode::validate_without_upstreams)? else {
        return Ok(());
    };
    let status = Node::open(&config.root)?.status(&settings(&config)?)?;
    args.print(&status, piecemeal_runtimes::Status::render)
}

fn settings(config: &ControllerConfig) -> anyhow::Result<Settings> {
    let file = || {
        config
            .hosts_file
            .as_ref()
            .map(|file| file.display().to_string())
            .unwrap_or_default()
    };
    config.settings().with_context(|| format!("cannot read {}", file()))
}

fn fail_if_failed(report: &Report) -> anyhow::Result<()> {
    if report.has_failed() {
        bail!("not every file could be written; those that failed are named above. Run it as root");
    }
    Ok(())
}

impl NodeArgs {
    /// The settings; none when they were only to be checked.
    fn read(
        &self,
        validate: fn(RawNode, &mut Problems) -> Option<NodeSettings>,
    ) -> anyhow::Result<Option<ControllerConfig>> {
        let (_, settings, warnings) = read_settings(&self.settings.layers(), validate)?;
        if self.settings.check_config {
            say_good(&warnings);
            return Ok(None);
        }
        Log::start(&settings.log, &warnings);
        Ok(Some(settings.config))
    }

    fn print<T: Serialize>(&self, value: &T, render: impl Fn(&T) -> String) -> anyhow::Result<()> {
        match self.output {
            Output::Text => print!("{}", render(value)),
            Output::Json => println!("{}", serde_json::to_string(value)?),
        }
        Ok(())
    }
}
