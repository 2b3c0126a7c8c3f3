//! `piecemeal cache ls`: lists the images in a daemon's cache.
//!
//! Invariant: a blob that no known manifest lists is listed too.

use std::cmp::Reverse;

use clap::{Args, ValueEnum};
use piecemeal_proxy::{CacheList, CachedImage};
use reqwest::Method;

use super::{
    client::{Admin, AdminArgs},
    table::{ago, ago_or_never, columns, head},
};
use crate::cli::status::{format_bytes, shorten};

#[derive(Args, Debug)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// The order: largest first, last used first, or alphabetical
    #[arg(long, value_enum, default_value_t = Sort::Name)]
    sort: Sort,
    /// Print one JSON object: images, and blobs that no known manifest lists
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    Size,
    Used,
    Name,
}

pub(super) async fn run(args: &ListArgs) -> anyhow::Result<()> {
    let mut list: CacheList = Admin::new(&args.admin)?.ask(Method::GET, "/cache", None).await?;
    sort(&mut list.images, args.sort);
    if args.json {
        println!("{}", serde_json::to_string(&list)?);
    } else {
        print!("{}", text(&list));
    }
    Ok(())
}

fn sort(images: &mut [CachedImage], by: Sort) {
    match by {
        Sort::Size => images.sort_by_key(|image| Reverse(image.here_bytes)),
        Sort::Used => images.sort_by_key(|image| image.used_seconds_ago),
        Sort::Name => images.sort_by(|one, other| one.name.cmp(&other.name)),
    }
}

fn text(list: &CacheList) -> String {
    let mut rows = vec![head(&[
        "NAME",
        "DIGEST",
        "SIZE",
        "COMPLETE",
        "PLATFORMS",
        "USED",
        "CHECKED",
    ])];
    rows.extend(list.images.iter().map(|image| {
        vec![
            image.name.clone(),
            shorten(&image.digest.to_string()),
            format_bytes(image.here_bytes),
            if image.is_complete { "yes" } else { "no" }.to_owned(),
            match &image.platforms[..] {
                [] => "-".to_owned(),
                platforms => platforms.join(","),
            },
            ago(image.used_seconds_ago),
            ago_or_never(image.checked_seconds_ago),
        ]
    }));
    let mut text = if list.images.is_empty() {
        "no images\n".to_owned()
    } else {
        columns(&rows)
    };
    if !list.unlisted.is_empty() {
        let bytes = list.unlisted.iter().map(|blob| blob.here_bytes).sum();
        text += &format!(
            "\n{} blobs that no known manifest lists, {}:\n",
            list.unlisted.len(),
            format_bytes(bytes)
        );
        let rows: Vec<Vec<String>> = list
            .unlisted
            .iter()
            .map(|blob| vec![format!("  {}", blob.digest), format_bytes(blob.here_bytes)])
            .collect();
        text += &columns(&rows);
    }
    text + &format!(
        "\n{} in all, what is shared counted once\n",
        format_bytes(list.total_bytes)
    )
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::Digest;
    use piecemeal_proxy::{BlobState, CachedBlob};

    use super::*;

    fn image(name: &str, here_bytes: u64, used_seconds_ago: u64) -> CachedImage {
        CachedImage {
            name: name.to_owned(),
            digest: Digest::of(name.as_bytes()),
            here_bytes,
            is_complete: here_bytes > 1,
            platforms: vec!["linux/amd64".to_owned()],
            used_seconds_ago,
            checked_seconds_ago: Some(61),
        }
    }

    #[test]
    fn images_come_in_the_order_that_is_asked_for() {
        let mut images = [image("b", 1, 5), image("a", 2, 9), image("c", 3, 7)];
        for (by, order) in [(Sort::Name, "abc"), (Sort::Size, "cab"), (Sort::Used, "bca")] {
            sort(&mut images, by);
            let names: String = images.iter().map(|image| image.name.as_str()).collect();
            assert_eq!(names, order, "{by:?}");
        }
    }

    #[test]
    fn a_list_is_a_table_and_what_belongs_to_nothing() {
        let stray = Digest::of(b"stray");
        let list = CacheList {
            images: vec![
                image("docker.io/library/alpine:3.20", 3_500_000, 5),
                image("x.test/b:1", 1, 90),
            ],
            unlisted: vec![CachedBlob {
                digest: stray,
                blob_bytes: 10,
                here_bytes: 10,
                state: BlobState::Here,
                used_seconds_ago: None,
                verified_seconds_ago: None,
                repositories: Vec::new(),
            }],
            total_bytes: 3_500_010,
        };
        let text = text(&list);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAME ") && lines[0].ends_with("CHECKED"), "{text}");
        for part in [
            "docker.io/library/alpine:3.20  sha256:",
            "3.5 MB",
            "yes",
            "linux/amd64",
            "5 s ago",
            "1 min ago",
        ] {
            assert!(lines[1].contains(part), "{part}: {text}");
        }
        assert!(lines[2].contains(" no "), "{text}");
        assert!(text.contains(&format!("  {stray}  10 B\n")), "{text}");
        assert!(
            text.ends_with("\n3.5 MB in all, what is shared counted once\n"),
            "{text}"
        );
    }
}
