//! Resolution of an image's name to the blobs of one platform.
//!
//! Invariant: each blob is there once, and indexes are followed to a depth of [`INDEX_DEPTH_MAX`].

use anyhow::{Context, anyhow, bail};
use piecemeal_proto::{Descriptor, Digest, ImageReference, Manifest, Platform, Reference, offered_platforms};

use super::registry::Registry;

/// The blobs to fetch.
pub(super) struct Resolved {
    /// Of what the name names: the index, where there is one.
    pub(super) digest: Digest,
    /// Each blob once.
    pub(super) blobs: Vec<Descriptor>,
    /// What the manifest names and this command cannot fetch.
    pub(super) unreadable: Vec<String>,
}

/// Follows indexes down to the manifest for `platform`.
pub(super) async fn resolve(
    registry: &Registry,
    image: &ImageReference,
    platform: &Platform,
) -> anyhow::Result<Resolved> {
    let mut reference = image.reference.clone();
    let mut top = None;
    for _ in 0..INDEX_DEPTH_MAX {
        let fetched = registry.manifest(&reference).await?;
        let top = *top.get_or_insert(fetched.digest);
        match fetched.manifest {
            Manifest::Image { blobs } => {
                return Ok(Resolved {
                    digest: top,
                    blobs: without_twins(blobs),
                    unreadable: fetched.unreadable,
                });
            }
            Manifest::Index { manifests } => reference = Reference::Digest(choose(&manifests, platform)?),
            Manifest::Unknown => bail!(
                "{} answered {reference} with something that is no image manifest of a kind that this command reads: an OCI manifest or \
                 index, or Docker's of schema 2",
                registry.host()
            ),
        }
    }
    Err(anyhow!("indexes are nested more than {INDEX_DEPTH_MAX} deep")).context(image.to_string())
}

/// The manifest for `wanted`.
fn choose(manifests: &[Descriptor], wanted: &Platform) -> anyhow::Result<Digest> {
    if let Some(descriptor) = wanted.choose(manifests) {
        return Ok(descriptor.digest);
    }
    // An index of one without a platform leaves no choice.
    if let [only] = manifests
        && only.platform.is_none()
    {
        return Ok(only.digest);
    }
    bail!(
        "the image does not exist for {wanted} (it does for {}; choose with --platform)",
        offered_platforms(manifests).join(", ")
    )
}

/// A layer may stand in a manifest twice.
fn without_twins(blobs: Vec<Descriptor>) -> Vec<Descriptor> {
    let mut unique: Vec<Descriptor> = Vec::new();
    for blob in blobs {
        if !unique.iter().any(|other| other.digest == blob.digest) {
            unique.push(blob);
        }
    }
    unique
}

const INDEX_DEPTH_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_that_is_not_there_is_answered_with_those_that_are() {
        let offered = ["linux/amd64", "linux/arm64/v8"].map(|text| Descriptor {
            media_type: String::new(),
            digest: Digest::of(text.as_bytes()),
            size: 1,
            platform: text.parse().ok(),
            is_foreign: false,
            data: None,
        });
        let error = choose(&offered, &"linux/riscv64".parse().unwrap()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("linux/riscv64 (it does for linux/amd64, linux/arm64/v8"),
            "{error}"
        );
    }
}
