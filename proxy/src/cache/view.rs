//! View of a catalogue by image: the images, their blobs, and what a removal takes with it.
//!
//! Pure. What a repository's tags stand for, and what else it was asked for by digest, are its images; a manifest that one of its
//! indexes lists is a part. A blob is needed by every manifest that some repository knows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use piecemeal_proto::{Descriptor, Digest, Manifest, Reference};
use piecemeal_store::{Catalog, KnownBlob, KnownManifest, KnownTag, Removal, Repository};

use super::{
    CacheError, CacheItem, CacheList, CachedBlob, CachedImage, CachedManifest, messages::BlobState, name::CacheName,
    name::written,
};

/// A catalogue, ready to be asked.
pub(super) struct View {
    manifests: HashMap<Digest, KnownManifest>,
    blobs: HashMap<Digest, KnownBlob>,
    tags: Vec<KnownTag>,
    sources: HashMap<Digest, BTreeSet<Repository>>,
}

/// The manifest that an image's name stands for, and its repository.
#[derive(Clone)]
struct Root<'a> {
    at: &'a Repository,
    digest: Digest,
    tag: Option<&'a KnownTag>,
}

impl Root<'_> {
    fn name(&self) -> String {
        let reference = match self.tag {
            Some(tag) => Reference::Tag(tag.tag.clone()),
            None => Reference::Digest(self.digest),
        };
        written(self.at, &reference)
    }
}

/// A planned removal, and its answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PlannedRemoval {
    pub(super) removal: Removal,
    pub(super) names: Vec<String>,
}

impl View {
    pub(super) fn new(catalog: Catalog) -> Self {
        let mut sources: HashMap<Digest, BTreeSet<Repository>> = HashMap::new();
        for (digest, at) in catalog.sources {
            sources.entry(digest).or_default().insert(at);
        }
        Self {
            manifests: by_digest(catalog.manifests, |manifest| manifest.digest),
            blobs: by_digest(catalog.blobs, |blob| blob.digest),
            tags: catalog.tags,
            sources,
        }
    }

    /// Everything, by name.
    pub(super) fn list(&self) -> CacheList {
        let listed = self.listed();
        let mut images: Vec<CachedImage> = self.roots().iter().map(|root| self.image(root)).collect();
        images.sort_by(|one, other| one.name.cmp(&other.name));
        let unlisted = self.blobs.values().filter(|blob| !listed.contains_key(&blob.digest));
        let mut unlisted: Vec<CachedBlob> = unlisted
            .map(|blob| self.blob(&blob.digest, blob.blob_bytes, &listed))
            .collect();
        unlisted.sort_by_key(|blob| blob.digest);
        CacheList {
            images,
            unlisted,
            total_bytes: self.blobs.values().map(|blob| blob.here_bytes).sum(),
        }
    }

    /// One thing; `None` when nothing is known of it.
    pub(super) fn item(&self, name: &CacheName) -> Option<CacheItem> {
        let listed = self.listed();
        match name {
            CacheName::Image(at, reference) => {
                let roots = self.named(at, reference);
                let root = roots.first()?;
                Some(CacheItem::Image {
                    image: self.image(root),
                    manifests: self.manifests_of(root),
                    blobs: self
                        .needs(&self.reach(root.at, root.digest))
                        .iter()
                        .map(|(digest, blob_bytes)| self.blob(digest, *blob_bytes, &listed))
                        .collect(),
                })
            }
            CacheName::Blob(digest) => {
                let stated = listed.get(digest).map(|listed| listed.blob_bytes);
                let blob_bytes = self.blobs.get(digest).map(|blob| blob.blob_bytes).or(stated)?;
                Some(CacheItem::Blob(self.blob(digest, blob_bytes, &listed)))
            }
        }
    }

    /// The images that need a blob.
    pub(super) fn images_with(&self, digest: &Digest) -> Vec<String> {
        let roots = self.roots();
        let with = roots
            .iter()
            .filter(|root| self.needs(&self.reach(root.at, root.digest)).contains_key(digest));
        let mut names: Vec<String> = with.map(Root::name).collect();
        names.sort_unstable();
        names
    }

    /// The images and blobs that the removal of `name` takes with it.
    pub(super) fn removal(&self, name: &CacheName) -> Result<PlannedRemoval, CacheError> {
        match name {
            CacheName::Image(at, reference) => self.image_removal(at, reference),
            CacheName::Blob(digest) if self.blobs.contains_key(digest) => Ok(PlannedRemoval {
                removal: Removal {
                    blobs: vec![*digest],
                    ..Removal::default()
                },
                names: vec![digest.to_string()],
            }),
            CacheName::Blob(digest) if self.manifests.contains_key(digest) => Err(CacheError::Malformed(format!(
                "{digest} is a manifest: name it with its repository, as REPOSITORY@{digest}"
            ))),
            CacheName::Blob(digest) => Err(CacheError::Unknown(format!("{digest} is not here"))),
        }
    }

    fn image_removal(&self, at: &Repository, reference: &Reference) -> Result<PlannedRemoval, CacheError> {
        let going = self.named(at, reference);
        let name = written(at, reference);
        let Some(top) = going.first().map(|root| root.digest) else {
            return Err(CacheError::Unknown(format!("{name} is not here")));
        };
        let roots = self.roots();
        let stays = |root: &&Root<'_>| root.at == at && !going.iter().any(|going| same(going, root));
        let staying: Vec<&Root<'_>> = roots.iter().filter(stays).collect();
        let kept: HashSet<Digest> = staying
            .iter()
            .flat_map(|root| self.reach(root.at, root.digest))
            .collect();
        if matches!(reference, Reference::Digest(_)) && kept.contains(&top) {
            let holder = staying
                .iter()
                .find(|root| self.reach(root.at, root.digest).contains(&top));
            let holder = holder.map(|root| root.name()).unwrap_or_default();
            return Err(CacheError::Conflict(format!(
                "{name} is a part of {holder}: remove that"
            )));
        }
        let forgotten: Vec<Digest> = self
            .reach(at, top)
            .into_iter()
            .filter(|digest| !kept.contains(digest))
            .collect();
        // Of the manifests that are left in any repository.
        let mut needed_by: HashMap<Digest, BTreeSet<&Repository>> = HashMap::new();
        for (known_at, manifest) in self.known() {
            if known_at != at || !forgotten.contains(&manifest) {
                for blob in self.blobs_in(&manifest) {
                    needed_by.entry(blob.digest).or_default().insert(known_at);
                }
            }
        }
        let mut removal = Removal {
            tags: going
                .iter()
                .filter_map(|root| Some((at.clone(), root.tag?.tag.clone())))
                .collect(),
            manifests: forgotten.iter().map(|digest| (at.clone(), *digest)).collect(),
            ..Removal::default()
        };
        for blob in self.needs(&forgotten).into_keys() {
            match needed_by.get(&blob) {
                None => removal.blobs.push(blob),
                Some(others) if !others.contains(at) => removal.shared.push((at.clone(), blob)),
                Some(_) => {}
            }
        }
        Ok(PlannedRemoval {
            names: going.iter().map(Root::name).collect(),
            removal,
        })
    }

    /// The blobs that a name needs and that are here, whole.
    pub(super) fn complete_blobs(&self, name: &CacheName) -> Option<Vec<Digest>> {
        let here = |digest: &Digest| self.blobs.get(digest).is_some_and(|blob| blob.is_complete);
        match name {
            CacheName::Image(at, reference) => {
                let root = self.named(at, reference).first().map(|root| root.digest)?;
                let needs = self.needs(&self.reach(at, root));
                Some(needs.into_keys().filter(here).collect())
            }
            CacheName::Blob(digest) => here(digest).then(|| vec![*digest]),
        }
    }

    /// Manifests with a repository that upstream answered for them under.
    fn known(&self) -> impl Iterator<Item = (&Repository, Digest)> {
        self.manifests
            .keys()
            .filter_map(|digest| Some((self.sources.get(digest)?, *digest)))
            .flat_map(|(repositories, digest)| repositories.iter().map(move |at| (at, digest)))
    }

    fn knows(&self, at: &Repository, digest: &Digest) -> Option<&KnownManifest> {
        let manifest = self.manifests.get(digest)?;
        self.sources.get(digest)?.contains(at).then_some(manifest)
    }

    /// Every image.
    fn roots(&self) -> Vec<Root<'_>> {
        let mut roots: Vec<Root<'_>> = self.tags.iter().map(by_tag).collect();
        let tagged: HashSet<(&Repository, Digest)> = roots.iter().map(|root| (root.at, root.digest)).collect();
        let parts: HashSet<(&Repository, Digest)> = self
            .known()
            .flat_map(|(at, digest)| self.parts(&digest).iter().map(move |part| (at, part.digest)))
            .collect();
        let untagged = self
            .known()
            .filter(|known| !tagged.contains(known) && !parts.contains(known))
            .map(|(at, digest)| Root { at, digest, tag: None });
        roots.extend(untagged);
        roots
    }

    /// The manifests that a reference stands for: by digest, under every tag that stands for it too.
    fn named<'a>(&'a self, at: &'a Repository, reference: &Reference) -> Vec<Root<'a>> {
        let tags = self.tags.iter().filter(|tag| tag.at == *at);
        match reference {
            Reference::Tag(name) => tags.filter(|tag| tag.tag == *name).map(by_tag).collect(),
            Reference::Digest(digest) => {
                let untagged = self.knows(at, digest).map(|_| Root {
                    at,
                    digest: *digest,
                    tag: None,
                });
                untagged
                    .into_iter()
                    .chain(tags.filter(|tag| tag.digest == *digest).map(by_tag))
                    .collect()
            }
        }
    }

    /// The known manifests of `at` from `top` downwards.
    fn reach(&self, at: &Repository, top: Digest) -> Vec<Digest> {
        let (mut reached, mut ahead) = (Vec::new(), VecDeque::from([top]));
        let mut seen = HashSet::from([top]);
        while let Some(digest) = ahead.pop_front() {
            if self.knows(at, &digest).is_some() {
                reached.push(digest);
                let parts = self.parts(&digest).iter().map(|part| part.digest);
                ahead.extend(parts.filter(|part| seen.insert(*part)));
            }
        }
        reached
    }

    /// The manifests that an index lists.
    fn parts(&self, digest: &Digest) -> &[Descriptor] {
        match self.manifests.get(digest).map(|manifest| &manifest.content) {
            Some(Manifest::Index { manifests }) => manifests,
            _ => &[],
        }
    }

    /// The blobs that a manifest needs: for an index, the blobs among what it lists, as those of build caches do.
    fn blobs_in(&self, digest: &Digest) -> impl Iterator<Item = &Descriptor> {
        let manifest = self.manifests.get(digest);
        let blobs = manifest.map_or(&[][..], |manifest| manifest.content.blobs());
        let listed = self
            .parts(digest)
            .iter()
            .filter(|part| !part.is_manifest() && self.blobs.contains_key(&part.digest));
        let needed = blobs
            .iter()
            .filter(|blob| !blob.is_elsewhere() || self.blobs.contains_key(&blob.digest));
        needed.chain(listed)
    }

    /// The blobs of those manifests, with the sizes that they state.
    fn needs(&self, manifests: &[Digest]) -> BTreeMap<Digest, u64> {
        let blobs = manifests.iter().flat_map(|manifest| self.blobs_in(manifest));
        blobs.map(|blob| (blob.digest, blob.size)).collect()
    }

    /// Every blob that a known manifest lists.
    fn listed(&self) -> HashMap<Digest, Listed<'_>> {
        let mut listed: HashMap<Digest, Listed<'_>> = HashMap::new();
        for (at, manifest) in self.known() {
            for blob in self.blobs_in(&manifest) {
                let entry = listed.entry(blob.digest).or_insert_with(|| Listed {
                    blob_bytes: blob.size,
                    repositories: BTreeSet::new(),
                });
                entry.repositories.insert(at);
            }
        }
        listed
    }

    fn image(&self, root: &Root<'_>) -> CachedImage {
        let manifests = self.reach(root.at, root.digest);
        let needs = self.needs(&manifests);
        let here = |digest: &Digest| self.blobs.get(digest);
        let has_all = needs
            .keys()
            .all(|digest| here(digest).is_some_and(|blob| blob.is_complete));
        let begun = manifests.iter().any(|digest| self.parts(digest).is_empty());
        let uses = manifests
            .iter()
            .filter_map(|digest| Some(self.manifests.get(digest)?.used));
        let used = uses.chain(root.tag.map(|tag| tag.used)).min().unwrap_or_default();
        CachedImage {
            name: root.name(),
            digest: root.digest,
            here_bytes: needs.keys().filter_map(|digest| Some(here(digest)?.here_bytes)).sum(),
            is_complete: begun && has_all,
            platforms: self.platforms(&manifests),
            used_seconds_ago: used.as_secs(),
            checked_seconds_ago: root.tag.map(|tag| tag.checked.as_secs()),
        }
    }

    fn platforms(&self, manifests: &[Digest]) -> Vec<String> {
        let parts = manifests.iter().flat_map(|digest| self.parts(digest));
        let here = parts.filter(|part| manifests.contains(&part.digest));
        let mut platforms: Vec<String> = here
            .filter_map(|part| Some(part.platform.as_ref()?.to_string()))
            .collect();
        platforms.dedup();
        platforms
    }

    fn manifests_of(&self, root: &Root<'_>) -> Vec<CachedManifest> {
        let reached = self.reach(root.at, root.digest);
        let here = |digest: &Digest, platform: Option<String>| {
            let manifest = self.manifests.get(digest)?;
            Some(CachedManifest {
                digest: *digest,
                media_type: manifest.media_type.clone(),
                manifest_bytes: manifest.manifest_bytes,
                platform,
                is_here: true,
            })
        };
        let mut all: Vec<CachedManifest> = Vec::new();
        if reached.contains(&root.digest) {
            all.extend(here(&root.digest, None));
        }
        for part in reached.iter().flat_map(|digest| self.parts(digest)) {
            if all.iter().any(|manifest| manifest.digest == part.digest) || !part.is_manifest() {
                continue;
            }
            let platform = part.platform.as_ref().map(ToString::to_string);
            let known = reached
                .contains(&part.digest)
                .then(|| here(&part.digest, platform.clone()));
            all.push(known.flatten().unwrap_or_else(|| CachedManifest {
                digest: part.digest,
                media_type: part.media_type.clone(),
                manifest_bytes: part.size,
                platform,
                is_here: false,
            }));
        }
        all
    }

    fn blob(&self, digest: &Digest, stated_bytes: u64, listed: &HashMap<Digest, Listed<'_>>) -> CachedBlob {
        let known = self.blobs.get(digest);
        let name = |at: &Repository| format!("{}/{}", at.upstream, at.name);
        let repositories = match (listed.get(digest), self.sources.get(digest)) {
            (Some(listed), _) => listed.repositories.iter().map(|at| name(at)).collect(),
            (None, Some(asked)) => asked.iter().map(name).collect(),
            (None, None) => Vec::new(),
        };
        CachedBlob {
            digest: *digest,
            blob_bytes: known.map_or(stated_bytes, |blob| blob.blob_bytes),
            here_bytes: known.map_or(0, |blob| blob.here_bytes),
            state: match known {
                Some(blob) if blob.is_complete => BlobState::Here,
                Some(_) => BlobState::Partial,
                None => BlobState::Absent,
            },
            used_seconds_ago: known.map(|blob| blob.used.as_secs()),
            verified_seconds_ago: known.and_then(|blob| Some(blob.verified?.as_secs())),
            repositories,
        }
    }
}

/// The size and the repositories of a blob, as known manifests state them.
struct Listed<'a> {
    blob_bytes: u64,
    repositories: BTreeSet<&'a Repository>,
}

fn by_digest<T>(items: Vec<T>, digest: impl Fn(&T) -> Digest) -> HashMap<Digest, T> {
    items.into_iter().map(|item| (digest(&item), item)).collect()
}

fn by_tag(tag: &KnownTag) -> Root<'_> {
    Root {
        at: &tag.at,
        digest: tag.digest,
        tag: Some(tag),
    }
}

fn same(one: &Root<'_>, other: &Root<'_>) -> bool {
    let tag = |root: &Root<'_>| root.tag.map(|tag| tag.tag.clone());
    one.at == other.at && one.digest == other.digest && tag(one) == tag(other)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(name: &str) -> Repository {
        Repository {
            upstream: "origin.test".to_owned(),
            name: name.to_owned(),
        }
    }

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn descriptor(text: &str) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: digest(text),
            size: text.len() as u64,
            platform: None,
            is_foreign: false,
            data: None,
        }
    }

    /// A store in miniature. Digests are those of their names.
    #[derive(Default)]
    struct Shelf(Catalog);

    impl Shelf {
        fn manifest(mut self, repository: &str, name: &str, content: Manifest) -> Self {
            if !self.0.manifests.iter().any(|known| known.digest == digest(name)) {
                self.0.manifests.push(KnownManifest {
                    digest: digest(name),
                    media_type: String::new(),
                    manifest_bytes: 9,
                    content,
                    used: Duration::from_secs(50),
                });
            }
            self.0.sources.push((digest(name), at(repository)));
            self
        }

        fn image(self, repository: &str, name: &str, blobs: &[&str]) -> Self {
            let blobs = blobs.iter().map(|blob| descriptor(blob)).collect();
            self.manifest(repository, name, Manifest::Image { blobs })
        }

        fn index(self, repository: &str, name: &str, parts: &[(&str, &str)]) -> Self {
            let manifests = parts.iter().map(|(part, platform)| Descriptor {
                platform: platform.parse().ok(),
                ..descriptor(part)
            });
            let manifests = manifests.collect();
            self.manifest(repository, name, Manifest::Index { manifests })
        }

        fn tag(mut self, repository: &str, tag: &str, name: &str) -> Self {
            self.0.tags.push(KnownTag {
                at: at(repository),
                tag: tag.to_owned(),
                digest: digest(name),
                checked: Duration::from_secs(7),
                used: Duration::from_secs(60),
            });
            self
        }

        fn blobs(mut self, blobs: &[&str]) -> Self {
            for text in blobs {
                let (text, here) = text.split_once('~').unwrap_or((text, ""));
                let blob_bytes = text.len() as u64;
                let is_complete = here.is_empty();
                self.0.blobs.push(KnownBlob {
                    digest: digest(text),
                    blob_bytes,
                    here_bytes: if is_complete { blob_bytes } else { here.parse().unwrap() },
                    is_complete,
                    used: Duration::from_secs(1),
                    verified: None,
                });
            }
            self
        }

        fn view(self) -> View {
            View::new(self.0)
        }
    }

    fn image(repository: &str, reference: &str) -> CacheName {
        CacheName::Image(at(repository), reference.parse().unwrap())
    }

    fn sorted(mut digests: Vec<Digest>) -> Vec<Digest> {
        digests.sort_unstable();
        digests
    }

    /// Two images of one repository, a third elsewhere; "base" is in all, "dog" in one.
    fn shared() -> Shelf {
        Shelf::default()
            .image("a", "m1", &["config1", "base", "cat"])
            .image("a", "m2", &["config2", "base", "dog"])
            .image("b", "m3", &["config3", "base"])
            .tag("a", "v1", "m1")
            .tag("a", "v2", "m2")
            .tag("b", "v3", "m3")
            .blobs(&["config1", "config2", "config3", "base", "cat", "dog", "stray"])
    }

    #[test]
    fn images_are_listed_with_what_is_here_of_them() {
        let list = shared().image("a", "old", &["base", "lost"]).view().list();
        let names: Vec<(&str, u64, bool)> = list
            .images
            .iter()
            .map(|image| (image.name.as_str(), image.here_bytes, image.is_complete))
            .collect();
        let old = format!("origin.test/a@{}", digest("old"));
        assert_eq!(
            names,
            [
                ("origin.test/a:v1", 14, true),
                ("origin.test/a:v2", 14, true),
                (old.as_str(), 4, false),
                ("origin.test/b:v3", 11, true),
            ]
        );
        assert_eq!(
            (
                list.images[0].used_seconds_ago,
                list.images[0].checked_seconds_ago,
                list.images[2].checked_seconds_ago
            ),
            (50, Some(7), None)
        );
        let unlisted: Vec<Digest> = list.unlisted.iter().map(|blob| blob.digest).collect();
        assert_eq!((unlisted, list.total_bytes), (vec![digest("stray")], 36));
    }

    #[test]
    fn of_an_index_only_what_was_asked_for_is_missed() {
        let index = || Shelf::default().index("a", "i", &[("m1", "linux/amd64"), ("m2", "linux/arm64")]);
        let bare = index().tag("a", "v1", "i").view().list();
        assert!(!bare.images[0].is_complete, "it is an index alone");
        let one = index().image("a", "m1", &["one"]).tag("a", "v1", "i").blobs(&["one"]);
        let list = one.view().list();
        assert_eq!(list.images.len(), 1, "a part is no image of its own");
        assert!(list.images[0].is_complete);
        assert_eq!(list.images[0].platforms, ["linux/amd64"]);
        let half = index()
            .image("a", "m1", &["one"])
            .image("a", "m2", &["three"])
            .tag("a", "v1", "i")
            .blobs(&["one", "three~2"]);
        let half = half.view();
        let list = half.list();
        assert_eq!((list.images[0].here_bytes, list.images[0].is_complete), (5, false));
        let Some(CacheItem::Image { manifests, blobs, .. }) = half.item(&image("a", "v1")) else {
            panic!("it is there");
        };
        assert_eq!(manifests.len(), 3);
        let states: BTreeMap<Digest, BlobState> = blobs.iter().map(|blob| (blob.digest, blob.state)).collect();
        assert_eq!(
            (states[&digest("one")], states[&digest("three")]),
            (BlobState::Here, BlobState::Partial)
        );
    }

    #[test]
    fn a_manifest_is_seen_only_where_upstream_answered_for_it() {
        let mut shelf = shared();
        shelf.0.sources.retain(|(known, _)| *known != digest("m1"));
        let view = shelf.view();
        let Some(CacheItem::Image { image, blobs, .. }) = view.item(&image("a", "v1")) else {
            panic!("the tag is known");
        };
        assert!(!image.is_complete && blobs.is_empty());
    }

    #[test]
    fn a_blob_is_shown_with_the_repositories_that_list_it() {
        let view = shared().view();
        let repositories = |text: &str| match view.item(&CacheName::Blob(digest(text))) {
            Some(CacheItem::Blob(blob)) => blob.repositories,
            other => panic!("{other:?}"),
        };
        assert_eq!(repositories("base"), ["origin.test/a", "origin.test/b"]);
        assert_eq!(repositories("stray"), Vec::<String>::new());
        assert_eq!(view.item(&CacheName::Blob(digest("m1"))), None);
        assert_eq!(view.images_with(&digest("dog")), ["origin.test/a:v2"]);
    }

    #[test]
    fn an_image_is_removed_with_the_content_that_no_other_image_needs() {
        let plan = shared().view().removal(&image("a", "v1")).unwrap();
        assert_eq!(plan.names, ["origin.test/a:v1"]);
        assert_eq!(plan.removal.tags, [(at("a"), "v1".to_owned())]);
        assert_eq!(plan.removal.manifests, [(at("a"), digest("m1"))]);
        assert_eq!(
            sorted(plan.removal.blobs),
            sorted(vec![digest("config1"), digest("cat")])
        );
        assert_eq!(plan.removal.shared, [], "its own repository still has the base");
        let plan = shared().view().removal(&image("b", "v3")).unwrap();
        assert_eq!(plan.removal.blobs, [digest("config3")]);
        assert_eq!(plan.removal.shared, [(at("b"), digest("base"))]);
    }

    #[test]
    fn what_another_tag_or_repository_stands_for_stays() {
        let twice = shared().tag("a", "latest", "m1").view();
        let plan = twice.removal(&image("a", "v1")).unwrap();
        assert_eq!((plan.removal.tags.len(), plan.removal.manifests.len()), (1, 0));
        assert!(plan.removal.blobs.is_empty());
        let by_digest = twice.removal(&image("a", &digest("m1").to_string())).unwrap();
        assert_eq!(by_digest.removal.tags.len(), 2, "by digest, all its tags go");
        assert_eq!(by_digest.removal.blobs.len(), 2);
        let elsewhere = shared().image("b", "m1", &[]).view();
        let plan = elsewhere.removal(&image("a", "v1")).unwrap();
        assert_eq!(plan.removal.manifests, [(at("a"), digest("m1"))]);
        assert_eq!(plan.removal.blobs, [], "the other repository has it by digest");
    }

    #[test]
    fn a_part_of_an_index_goes_with_the_index_only() {
        let view = || {
            Shelf::default()
                .index("a", "i", &[("m1", "linux/amd64")])
                .image("a", "m1", &["one"])
                .tag("a", "v1", "i")
                .blobs(&["one"])
                .view()
        };
        let refused = view().removal(&image("a", &digest("m1").to_string())).unwrap_err();
        assert!(
            matches!(&refused, CacheError::Conflict(why) if why.contains("origin.test/a:v1")),
            "{refused}"
        );
        let plan = view().removal(&image("a", "v1")).unwrap();
        assert_eq!(plan.removal.manifests.len(), 2);
        assert_eq!(plan.removal.blobs, [digest("one")]);
    }

    #[test]
    fn what_is_not_here_cannot_go() {
        let view = shared().view();
        for name in [
            image("a", "v9"),
            image("c", "v1"),
            CacheName::Blob(digest("nothing")),
            image("a", &digest("m3").to_string()),
        ] {
            assert!(matches!(view.removal(&name), Err(CacheError::Unknown(_))), "{name:?}");
        }
        let manifest = CacheName::Blob(digest("m1"));
        assert!(matches!(view.removal(&manifest), Err(CacheError::Malformed(_))));
    }

    #[test]
    fn indexes_that_list_each_other_end() {
        let view = Shelf::default()
            .index("a", "i", &[("j", "linux/amd64")])
            .index("a", "j", &[("i", "linux/amd64")])
            .tag("a", "v1", "i")
            .view();
        assert_eq!(view.list().images.len(), 1);
        assert_eq!(view.removal(&image("a", "v1")).unwrap().removal.manifests.len(), 2);
    }
}
