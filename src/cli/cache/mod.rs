//! `piecemeal cache`: lists, removes, verifies and prefetches what a running mirror or peer stores.
//!
//! The daemon does the work; this command asks its admin port and shows the answers.

mod client;
mod list;
mod remove;
mod show;
mod verify;
mod warm;

use clap::{Args, Subcommand};
use url::Url;

use super::runtime;

#[derive(Debug, Subcommand)]
pub(super) enum CacheCommand {
    /// List the cached images
    Ls(list::ListArgs),
    /// Show the manifests and blobs of an image, or the images of a blob
    Show(show::ShowArgs),
    /// Remove images with the blobs that no other image needs, or single blobs
    Rm(remove::RemoveArgs),
    /// Verify cached content against its digests, and remove what is damaged
    Verify(verify::VerifyArgs),
    /// Fetch images ahead of their first pull
    Warm(warm::WarmArgs),
}

/// The daemon to ask.
#[derive(Args, Debug)]
struct AdminArgs {
    /// The admin port of a mirror or peer on this machine
    #[arg(long, value_name = "URL", default_value = MIRROR_ADMIN)]
    admin: Url,
}

pub(super) fn run(command: CacheCommand) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        match command {
            CacheCommand::Ls(args) => list::run(&args).await,
            CacheCommand::Show(args) => show::run(&args).await,
            CacheCommand::Rm(args) => remove::run(&args).await,
            CacheCommand::Verify(args) => verify::run(&args).await,
            CacheCommand::Warm(args) => warm::run(&args).await,
        }
    });
    runtime.shutdown_background();
    done
}

/// How long ago, in the largest unit that is not less than one.
fn ago(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..86_400 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{count} {unit} ago")
}

fn ago_or_never(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), ago)
}

/// Rows in columns as wide as they need to be; the first row is the head.
fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn head(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

const MIRROR_ADMIN: &str = "http://127.0.0.1:65013";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_one_unit() {
        for (seconds, text) in [
            (0, "0 s ago"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (7199, "1 h ago"),
            (86_400 * 3, "3 d ago"),
        ] {
            assert_eq!(ago(seconds), text);
        }
        assert_eq!(ago_or_never(None), "-");
    }

    #[test]
    fn columns_line_up_and_end_without_blanks() {
        let rows = [head(&["NAME", "SIZE"]), head(&["a-long-one", ""]), head(&["b", "1 B"])];
        assert_eq!(columns(&rows), "NAME        SIZE\na-long-one\nb           1 B\n");
    }
}
