//! Plan of a prefetch, from the body of `POST /cache/warm`.
//!
//! A request is bounded, and a malformed name fails alone.

use piecemeal_proto::{Platform, Reference};
use piecemeal_store::Repository;

use crate::{
    UpstreamNames,
    cache::{CacheError, WarmRequest, name::CacheName},
};

/// Images of one request.
const IMAGES_MAX: usize = 1000;
const PLATFORMS_MAX: usize = 64;

/// What is to be fetched.
pub(in crate::cache) struct PrefetchPlan {
    pub(super) images: Vec<WantedImage>,
    /// `None`: all.
    pub(super) platforms: Option<Vec<Platform>>,
    /// Whether peers fetch them too.
    pub(super) peers: bool,
}

pub(super) struct WantedImage {
    /// As it was asked for.
    pub(super) name: String,
    pub(super) at: Result<(Repository, Reference), CacheError>,
}

impl PrefetchPlan {
    /// A malformed name fails alone, as an image that does not exist does.
    pub(in crate::cache) fn read(request: &WarmRequest, names: &UpstreamNames) -> Result<Self, CacheError> {
        let malformed = |text: String| Err(CacheError::Malformed(text));
        if request.images.is_empty() {
            return malformed("no image is named".to_owned());
        }
        if request.images.len() > IMAGES_MAX {
            return malformed(format!("{} images are more than {IMAGES_MAX}", request.images.len()));
        }
        if request.platforms.len() > PLATFORMS_MAX {
            return malformed(format!("more than {PLATFORMS_MAX} platforms"));
        }
        let platforms: Vec<Platform> = request
            .platforms
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map_err(|error: piecemeal_proto::ParsePlatformError| CacheError::Malformed(error.to_string()))?;
        let platforms = match (request.all_platforms, platforms.is_empty()) {
            (true, true) => None,
            (true, false) => return malformed("give either all platforms or a list of platforms".to_owned()),
            (false, true) => Some(vec![Platform::this_machine()]),
            (false, false) => Some(platforms),
        };
        let wanted = |name: &String| WantedImage {
            name: name.clone(),
            at: match CacheName::read(name, names) {
                Ok(CacheName::Image(at, reference)) => Ok((at, reference)),
                Ok(CacheName::Blob(_)) => Err(CacheError::Malformed(
                    "a digest alone names no image: write REPOSITORY@DIGEST".to_owned(),
                )),
                Err(error) => Err(error),
            },
        };
        Ok(Self {
            images: request.images.iter().map(wanted).collect(),
            platforms,
            peers: request.peers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut WarmRequest)) -> Result<PrefetchPlan, CacheError> {
        let mut request = WarmRequest {
            images: vec!["alpine".to_owned()],
            ..WarmRequest::default()
        };
        change(&mut request);
        PrefetchPlan::read(&request, &UpstreamNames::default())
    }

    #[test]
    fn a_request_is_bounded_and_makes_sense() {
        assert_eq!(
            plan(|_| {}).ok().unwrap().platforms,
            Some(vec![Platform::this_machine()])
        );
        assert_eq!(
            plan(|request| request.all_platforms = true).ok().unwrap().platforms,
            None
        );
        type Change = fn(&mut WarmRequest);
        let wrong: [Change; 5] = [
            |request| request.images.clear(),
            |request| request.images = vec!["a".to_owned(); IMAGES_MAX + 1],
            |request| request.platforms = vec!["linux".to_owned()],
            |request| request.platforms = vec!["linux/amd64".to_owned(); PLATFORMS_MAX + 1],
            |request| {
                request.platforms = vec!["linux/amd64".to_owned()];
                request.all_platforms = true;
            },
        ];
        for change in wrong {
            assert!(matches!(plan(change), Err(CacheError::Malformed(_))));
        }
        let mixed = plan(|request| request.images = vec!["UPPER".to_owned(), "alpine".to_owned()])
            .ok()
            .unwrap();
        assert!(mixed.images[0].at.is_err() && mixed.images[1].at.is_ok());
    }
}
