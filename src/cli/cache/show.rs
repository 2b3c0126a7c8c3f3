//! `piecemeal cache show`: describes an image or a blob in a daemon's cache.
//!
//! Invariant: it only reads.

use clap::Args;
use piecemeal_proxy::{BlobState, CacheItem, CachedBlob, CachedImage, CachedManifest};
use reqwest::Method;

use super::{
    client::{Admin, AdminArgs},
    table::{ago, ago_or_never, columns, head},
};
use crate::cli::status::format_bytes;

#[derive(Args, Debug)]
pub(in crate::cli) struct ShowArgs {
    /// An image, such as docker.io/library/alpine:3.20, or the digest of a blob
    name: String,
    #[command(flatten)]
    admin: AdminArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let admin = Admin::new(&args.admin)?;
    let item: CacheItem = admin.ask(Method::GET, "/cache/item", Some(&args.name)).await?;
    if args.json {
        println!("{}", serde_json::to_string(&item)?);
    } else {
        print!("{}", text(&item));
    }
    Ok(())
}

fn text(item: &CacheItem) -> String {
    match item {
        CacheItem::Image {
            image,
            manifests,
            blobs,
        } => image_text(image, manifests, blobs),
        CacheItem::Blob(blob) => {
            let mut rows = vec![
                vec![blob.digest.to_string(), state(blob)],
                vec!["  used".to_owned(), ago_or_never(blob.used_seconds_ago)],
                vec!["  verified".to_owned(), ago_or_never(blob.verified_seconds_ago)],
            ];
            rows.extend(
                blob.repositories
                    .iter()
                    .map(|name| vec!["  of".to_owned(), name.clone()]),
            );
            // The digest is wider than anything below it.
            rows.iter().map(|row| format!("{}  {}\n", row[0], row[1])).collect()
        }
    }
}

fn image_text(image: &CachedImage, manifests: &[CachedManifest], blobs: &[CachedBlob]) -> String {
    let complete = if image.is_complete { "complete" } else { "not complete" };
    let mut text = format!(
        "{}\n  {}\n  {}, {complete}, used {}",
        image.name,
        image.digest,
        format_bytes(image.here_bytes),
        ago(image.used_seconds_ago)
    );
    if let Some(checked) = image.checked_seconds_ago {
        text += &format!(", tag checked {}", ago(checked));
    }
    let mut rows = vec![head(&["MANIFEST", "SIZE", "STATE", "PLATFORM"])];
    rows.extend(manifests.iter().map(|manifest| {
        vec![
            manifest.digest.to_string(),
            format_bytes(manifest.manifest_bytes),
            if manifest.is_here { "here" } else { "absent" }.to_owned(),
            manifest.platform.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }));
    text += &format!("\n\n{}", columns(&rows));
    let mut rows = vec![head(&["BLOB", "SIZE", "STATE", "USED", "VERIFIED", "REPOSITORIES"])];
    rows.extend(blobs.iter().map(|blob| {
        vec![
            blob.digest.to_string(),
            format_bytes(blob.blob_bytes),
            short_state(blob),
            ago_or_never(blob.used_seconds_ago),
            ago_or_never(blob.verified_seconds_ago),
            blob.repositories.join(","),
        ]
    }));
    text + &format!("\n{}", columns(&rows))
}

fn short_state(blob: &CachedBlob) -> String {
    match blob.state {
        BlobState::Here => "here".to_owned(),
        BlobState::Partial => format!("partial, {}", format_bytes(blob.here_bytes)),
        BlobState::Absent => "absent".to_owned(),
    }
}

fn state(blob: &CachedBlob) -> String {
    format!("{}, {}", format_bytes(blob.blob_bytes), short_state(blob))
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::Digest;

    use super::*;

    fn blob(state: BlobState) -> CachedBlob {
        CachedBlob {
            digest: Digest::of(b"layer"),
            blob_bytes: 2000,
            here_bytes: 500,
            state,
            used_seconds_ago: Some(3),
            verified_seconds_ago: None,
            repositories: vec!["docker.io/library/alpine".to_owned()],
        }
    }

    #[test]
    fn a_blob_is_shown_with_where_it_belongs() {
        let text = text(&CacheItem::Blob(blob(BlobState::Partial)));
        let digest = Digest::of(b"layer");
        assert_eq!(
            text,
            format!(
                "{digest}  2.0 kB, partial, 500 B\n  used  3 s ago\n  verified  -\n  of  docker.io/library/alpine\n"
            )
        );
    }

    #[test]
    fn an_image_is_shown_with_its_manifests_and_blobs() {
        let image = CachedImage {
            name: "docker.io/library/alpine:3.20".to_owned(),
            digest: Digest::of(b"index"),
            here_bytes: 2000,
            is_complete: false,
            platforms: Vec::new(),
            used_seconds_ago: 3,
            checked_seconds_ago: Some(100),
        };
        let manifest = CachedManifest {
            digest: Digest::of(b"manifest"),
            media_type: "m".to_owned(),
            manifest_bytes: 400,
            platform: Some("linux/arm64/v8".to_owned()),
            is_here: false,
        };
        let text = image_text(&image, &[manifest], &[blob(BlobState::Here)]);
        for part in [
            "docker.io/library/alpine:3.20\n  sha256:",
            "2.0 kB, not complete, used 3 s ago, tag checked 1 min ago\n",
            "400 B  absent  linux/arm64/v8\n",
            "2.0 kB  here   3 s ago  -         docker.io/library/alpine\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }
}
