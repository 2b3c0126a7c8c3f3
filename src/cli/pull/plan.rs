//! From an image's name to the blobs of one platform.

use anyhow::{Context, anyhow, bail};
use piecemeal_proto::{Descriptor, Digest, ImageReference, Manifest, Platform, Reference};

use super::registry::Registry;

/// What has to be fetched.
pub(super) struct Resolved {
    /// Of what the name names: the index, where there is one.
    pub(super) digest: Digest,
    /// Each blob once.
    pub(super) blobs: Vec<Descriptor>,
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
        let (digest, manifest) = registry.manifest(&reference).await?;
        let top = *top.get_or_insert(digest);
        match manifest {
            Manifest::Image { blobs } => {
                return Ok(Resolved {
                    digest: top,
                    blobs: without_twins(blobs),
                });
            }
            Manifest::Index { manifests } => reference = Reference::Digest(choose(&manifests, platform)?),
            Manifest::Unknown => bail!(
                "{} answered {reference} with something that is no image manifest",
                registry.host()
            ),
        }
    }
    Err(anyhow!("indexes are nested more than {INDEX_DEPTH_MAX} deep")).context(image.to_string())
}

/// The manifest for `platform`; an exact variant is preferred, and a missing one excused.
fn choose(manifests: &[Descriptor], wanted: &Platform) -> anyhow::Result<Digest> {
    let fits = |descriptor: &&Descriptor| {
        let platform = descriptor.platform.as_ref();
        platform.is_some_and(|platform| platform.os == wanted.os && platform.architecture == wanted.architecture)
    };
    let variant = |descriptor: &&Descriptor| descriptor.platform.as_ref().map(|platform| platform.variant.clone());
    let fitting: Vec<&Descriptor> = manifests.iter().filter(fits).collect();
    let exact = fitting
        .iter()
        .find(|descriptor| variant(descriptor).as_deref() == Some(&wanted.variant));
    let lenient = fitting
        .iter()
        .find(|descriptor| wanted.variant.is_empty() || variant(descriptor).as_deref() == Some(""));
    if let Some(descriptor) = exact.or(lenient) {
        return Ok(descriptor.digest);
    }
    // An index of one without a platform leaves no choice.
    if let [only] = manifests
        && only.platform.is_none()
    {
        return Ok(only.digest);
    }
    let offered: Vec<String> = manifests
        .iter()
        .filter_map(|descriptor| descriptor.platform.as_ref())
        .map(name)
        .collect();
    bail!(
        "the image does not exist for {} (it does for {}; choose with --platform)",
        name(wanted),
        offered.join(", ")
    )
}

fn name(platform: &Platform) -> String {
    let Platform {
        os,
        architecture,
        variant,
    } = platform;
    if variant.is_empty() {
        format!("{os}/{architecture}")
    } else {
        format!("{os}/{architecture}/{variant}")
    }
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

/// Reads `os/arch` or `os/arch/variant`.
pub(super) fn parse_platform(text: &str) -> Result<Platform, String> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [os, architecture] if !os.is_empty() && !architecture.is_empty() => Ok(platform(os, architecture, "")),
        [os, architecture, variant] if !parts.contains(&"") => Ok(platform(os, architecture, variant)),
        _ => Err(format!("{text:?} is not os/arch, such as linux/arm64")),
    }
}

/// Linux on this machine's processor, by the names that images use (those of Go).
pub(super) fn this_platform() -> Platform {
    match std::env::consts::ARCH {
        "x86_64" => platform("linux", "amd64", ""),
        "aarch64" => platform("linux", "arm64", ""),
        "arm" => platform("linux", "arm", "v7"),
        "x86" => platform("linux", "386", ""),
        "powerpc64" => platform("linux", "ppc64le", ""),
        other => platform("linux", other, ""),
    }
}

fn platform(os: &str, architecture: &str, variant: &str) -> Platform {
    Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
    }
}

const INDEX_DEPTH_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(texts: &[&str]) -> Vec<Descriptor> {
        let descriptor = |text: &&str| Descriptor {
            media_type: String::new(),
            digest: Digest::of(text.as_bytes()),
            size: 1,
            platform: parse_platform(text).ok(),
        };
        texts.iter().map(descriptor).collect()
    }

    #[test]
    fn the_platform_of_the_machine_is_chosen() {
        let index = offered(&[
            "unknown/unknown",
            "linux/amd64",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64/v8",
        ]);
        for (wanted, chosen) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("linux/arm", "linux/arm/v6"),
            ("linux/arm64", "linux/arm64/v8"),
        ] {
            let wanted = parse_platform(wanted).unwrap();
            assert_eq!(
                choose(&index, &wanted).unwrap(),
                Digest::of(chosen.as_bytes()),
                "{chosen}"
            );
        }
    }

    #[test]
    fn a_platform_that_is_not_there_is_answered_with_those_that_are() {
        let error = choose(
            &offered(&["linux/amd64", "linux/arm64/v8"]),
            &parse_platform("linux/riscv64").unwrap(),
        )
        .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("linux/riscv64 (it does for linux/amd64, linux/arm64/v8"),
            "{error}"
        );
        assert!(parse_platform("linux").is_err());
        assert!(parse_platform("linux//v7").is_err());
    }
}
