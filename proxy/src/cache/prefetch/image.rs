//! Resolution of an image: its manifests and blobs, for the wanted platforms.

use std::collections::{HashSet, VecDeque};

use piecemeal_proto::{Descriptor, Digest, Manifest, Platform, Reference, wire};
use piecemeal_store::Repository;

use super::{advice::advice, platforms::select};
use crate::cache::CacheParts;

/// Of one image: more platforms than any has, and more layers.
const MANIFESTS_MAX: usize = 256;
const BLOBS_MAX: usize = 10_000;
const INDEX_DEPTH_MAX: usize = 4;

/// An image's parts.
pub(super) struct ResolvedImage {
    pub(super) digest: Digest,
    pub(super) manifests: Vec<Digest>,
    pub(super) blobs: Vec<Descriptor>,
    /// The digests that its manifests name and that no daemon can fetch, being of an unknown algorithm.
    pub(super) unreadable: Vec<String>,
}

/// Follows indexes down to the wanted manifests.
pub(super) async fn resolve(
    parts: &CacheParts,
    platforms: Option<&[Platform]>,
    at: &Repository,
    reference: &Reference,
) -> Result<ResolvedImage, String> {
    let (source, caller) = (&parts.content.manifests, &parts.caller);
    let mut ahead = VecDeque::from([(reference.clone(), 0)]);
    let (mut manifests, mut blobs) = (Vec::new(), Vec::<Descriptor>::new());
    let mut unreadable = Vec::new();
    let (mut seen, mut listed) = (HashSet::new(), HashSet::new());
    while let Some((next, depth)) = ahead.pop_front() {
        if depth > INDEX_DEPTH_MAX || manifests.len() == MANIFESTS_MAX {
            return Err(format!(
                "its indexes are deeper than {INDEX_DEPTH_MAX} or list more than {MANIFESTS_MAX} manifests"
            ));
        }
        let found = source
            .manifest(caller, at, &next)
            .await
            .map_err(|error| advice(&error))?;
        manifests.push(found.digest);
        let content = Manifest::read(&found.media_type, &found.bytes);
        let wanted: Vec<&Descriptor> = match &content {
            Manifest::Index { manifests } => {
                let selected = select(manifests, platforms)?;
                let fresh = selected.manifests.iter().filter(|part| seen.insert(part.digest));
                ahead.extend(fresh.map(|part| (Reference::Digest(part.digest), depth + 1)));
                selected.blobs
            }
            Manifest::Image { blobs } => {
                unreadable.extend(Manifest::unreadable(&found.bytes));
                blobs.iter().collect()
            }
            Manifest::Unknown if depth == 0 => {
                return Err(format!("its manifest is of an unknown kind ({})", found.media_type));
            }
            Manifest::Unknown => Vec::new(),
        };
        blobs.extend(wanted.into_iter().filter(|blob| listed.insert(blob.digest)).cloned());
        if blobs.len() > BLOBS_MAX {
            return Err(format!("it has more than {BLOBS_MAX} blobs"));
        }
    }
    let digest = *manifests.first().ok_or("it has no manifest")?;
    Ok(ResolvedImage {
        digest,
        manifests,
        blobs,
        unreadable,
    })
}

/// The orders to peers for an image, in messages of bounded size.
pub(super) fn peer_orders(at: &Repository, reference: &Reference, resolved: &ResolvedImage) -> Vec<wire::Warm> {
    let blobs: Vec<String> = resolved.blobs.iter().map(|blob| blob.digest.to_string()).collect();
    let order = |blobs: &[String]| wire::Warm {
        upstream: at.upstream.clone(),
        repository: at.name.clone(),
        tag: match reference {
            Reference::Tag(tag) => tag.clone(),
            Reference::Digest(_) => String::new(),
        },
        manifests: resolved.manifests.iter().map(ToString::to_string).collect(),
        blobs: blobs.to_vec(),
    };
    if blobs.is_empty() {
        return vec![order(&[])];
    }
    blobs.chunks(wire::WARM_BLOBS_MAX).map(order).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_told_in_parts() {
        let at = Repository {
            upstream: "docker.io".to_owned(),
            name: "library/alpine".to_owned(),
        };
        let blob = |number: usize| Descriptor {
            media_type: String::new(),
            digest: Digest::of(number.to_string().as_bytes()),
            size: 1,
            platform: None,
            is_foreign: false,
            data: None,
        };
        let resolved = |blobs: usize| ResolvedImage {
            digest: Digest::of(b""),
            manifests: vec![Digest::of(b"")],
            blobs: (0..blobs).map(blob).collect(),
            unreadable: Vec::new(),
        };
        let tag: Reference = "3".parse().unwrap();
        let counts = |blobs| -> Vec<usize> {
            let orders = peer_orders(&at, &tag, &resolved(blobs));
            assert!(
                orders
                    .iter()
                    .all(|order| order.tag == "3" && order.manifests.len() == 1)
            );
            orders.iter().map(|order| order.blobs.len()).collect()
        };
        assert_eq!((counts(0), counts(3)), (vec![0], vec![3]));
        assert_eq!(counts(wire::WARM_BLOBS_MAX + 1), [wire::WARM_BLOBS_MAX, 1]);
    }
}
