//! `piecemeal completions` and `piecemeal man`: what packages install beside the binary.
//!
//! Both are made from the definitions that parse the arguments, so that they cannot name a flag that does not exist.

use std::{
    fs,
    io::{self, ErrorKind, Write},
    path::PathBuf,
};

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// The shell to complete for
    shell: Shell,
}

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// The folder to write to; created if it is missing
    dir: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    // Generating into the pipe itself would panic when its reader has gone.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    match io::stdout().write_all(&script) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the completions to standard output")
        }
        _ => Ok(()),
    }
}

pub(super) fn man(args: &ManArgs, command: Command) -> anyhow::Result<()> {
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    clap_mangen::generate_to(command, &args.dir)
        .with_context(|| format!("cannot write the man pages to {}", args.dir.display()))
}
