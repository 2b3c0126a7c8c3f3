//! Choice of an index's parts by platform.

use std::collections::HashSet;

use piecemeal_proto::{Descriptor, Digest, Platform, offered_platforms};

/// The parts of an index that are wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selected<'a> {
    pub(super) manifests: Vec<&'a Descriptor>,
    pub(super) blobs: Vec<&'a Descriptor>,
}

/// Chooses from an index. A manifest without a platform is for all platforms.
pub(super) fn select<'a>(listed: &'a [Descriptor], platforms: Option<&[Platform]>) -> Result<Selected<'a>, String> {
    let chosen: Option<HashSet<Digest>> = match platforms {
        None => None,
        // An index without any platform is not an image index.
        Some(_) if listed.iter().all(|part| part.platform.is_none()) => None,
        Some(platforms) => {
            let choose = |platform: &Platform| {
                let chosen = platform.choose(listed).map(|part| part.digest);
                chosen.ok_or_else(|| {
                    let offered = offered_platforms(listed).join(", ");
                    format!("it does not exist for {platform}, only for {offered} (choose with --platform)")
                })
            };
            Some(platforms.iter().map(choose).collect::<Result<_, _>>()?)
        }
    };
    let is_wanted = |part: &&Descriptor| {
        let chosen = chosen.as_ref();
        part.platform.is_none() || chosen.is_none_or(|chosen| chosen.contains(&part.digest))
    };
    let (manifests, blobs) = listed
        .iter()
        .filter(is_wanted)
        .partition(|part: &&Descriptor| part.is_manifest());
    Ok(Selected { manifests, blobs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(text: &str, media_type: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(text.as_bytes()),
            size: 1,
            platform: text.parse().ok(),
            is_foreign: false,
            data: None,
        }
    }

    fn platforms(texts: &[&str]) -> Vec<Platform> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn selected(listed: &[Descriptor], platforms: Option<&[Platform]>) -> Result<(usize, usize), String> {
        select(listed, platforms).map(|selected| (selected.manifests.len(), selected.blobs.len()))
    }

    #[test]
    fn only_the_platforms_that_are_asked_for_are_taken() {
        let index = ["linux/amd64", "linux/arm64/v8", "unknown/unknown"].map(|text| descriptor(text, ""));
        assert_eq!(selected(&index, Some(&platforms(&["linux/amd64"]))), Ok((1, 0)));
        assert_eq!(
            selected(&index, Some(&platforms(&["linux/amd64", "linux/arm64"]))),
            Ok((2, 0))
        );
        assert_eq!(selected(&index, None), Ok((3, 0)));
        let why = selected(&index, Some(&platforms(&["linux/s390x"]))).unwrap_err();
        assert!(why.contains("linux/s390x") && why.contains("linux/arm64/v8"), "{why}");
    }

    #[test]
    fn what_has_no_platform_is_for_all() {
        let cache = [
            descriptor("layer", "application/vnd.oci.image.layer.v1.tar+gzip"),
            descriptor("manifest", "application/vnd.oci.image.manifest.v1+json"),
        ];
        assert_eq!(selected(&cache, Some(&platforms(&["linux/amd64"]))), Ok((1, 1)));
        let mixed = [descriptor("linux/amd64", ""), descriptor("sbom", "")];
        assert_eq!(selected(&mixed, Some(&platforms(&["linux/amd64"]))), Ok((2, 0)));
    }
}
