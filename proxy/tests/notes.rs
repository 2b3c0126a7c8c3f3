//! Manifests from a source that says something beside its answers: what counts as a check of a tag, and what is told of tags that cannot
//! be checked.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use piecemeal_proto::{Digest, Reference};
use piecemeal_proxy::{Arrived, BlobSizes, Manifests, Right, Rights, Source, Transfer};
use piecemeal_store::{Env, Holder, Repository, Store, StoreConfig};
use piecemeal_upstream::{Caller, FetchedManifest, ListAnswer, LiveDuration, ManifestAnswer, Note, PullError};

const MANIFEST: &str = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A source that has one manifest under every tag, with a note beside it.
#[derive(Clone, Default)]
struct FakeSource(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    note: Note,
    /// Whether it had to be asked by GET for its stat.
    whole: bool,
    heads: usize,
    gets: usize,
}

fn manifest(note: Note) -> FetchedManifest {
    FetchedManifest {
        digest: Digest::of(MANIFEST.as_bytes()),
        media_type: MEDIA_TYPE.to_owned(),
        bytes: MANIFEST.into(),
        note,
        fetched: true,
    }
}

#[async_trait]
impl Source for FakeSource {
    async fn open(&self, _: Right, _: Digest, _: Arc<Transfer>) -> Result<Arrived, PullError> {
        Err(PullError::Unavailable("manifests only".to_owned()))
    }

    async fn stat(&self, _: &Caller, _: &Repository, _: &Digest) -> Result<Option<u64>, PullError> {
        Ok(None)
    }

    async fn has_sample(&self, _: &Caller, _: &Repository, _: &Digest, _: u64, _: &Bytes) -> Result<bool, PullError> {
        Ok(false)
    }

    async fn manifest(&self, _: &Caller, _: &Repository, _: &Reference) -> Result<FetchedManifest, PullError> {
        let mut told = self.0.lock().unwrap();
        told.gets += 1;
        Ok(manifest(told.note.clone()))
    }

    async fn head(&self, _: &Caller, _: &Repository, _: &Reference) -> Result<ManifestAnswer, PullError> {
        let mut told = self.0.lock().unwrap();
        told.heads += 1;
        Ok(ManifestAnswer {
            digest: Digest::of(MANIFEST.as_bytes()),
            note: told.note.clone(),
            manifest: told.whole.then(|| manifest(told.note.clone())),
        })
    }

    async fn list(&self, _: &Caller, _: &Repository, _: &str) -> Result<ListAnswer, PullError> {
        Err(PullError::Unavailable("manifests only".to_owned()))
    }

    async fn ping(&self, _: &Caller, _: &str) -> Result<(), PullError> {
        Ok(())
    }

    fn allows(&self, _: &Caller, _: &Repository) -> bool {
        true
    }

    fn holder(&self, _: &Caller, _: &Repository) -> Option<Holder> {
        None
    }

    async fn is_lost(&self, _: &Repository) -> bool {
        false
    }

    fn has_mirror_in_front(&self) -> bool {
        false
    }

    fn states_no_size(&self, _: &Repository, digest: &Digest) -> PullError {
        PullError::BadGateway(digest.to_string())
    }
}

/// How often a tag is asked for at the source, for four requests: GETs and HEADs.
async fn asked(note: Note, whole: bool, tag_ttl: Duration) -> (usize, usize) {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        dir: dir.path().join("store"),
        quota_bytes: None,
        free_bytes_min: 0,
        ttl: Duration::from_secs(3600),
    };
    let store = Store::open(config, Env::system()).unwrap();
    let source = FakeSource::default();
    {
        let mut told = source.0.lock().unwrap();
        told.note = note.clone();
        told.whole = whole;
    }
    let shared: Arc<dyn Source> = Arc::new(source.clone());
    let grace = LiveDuration::new(Duration::from_secs(3600));
    let access = Arc::new(Rights::new(store.clone(), Arc::clone(&shared), grace, None));
    let manifests = Manifests::new(store, shared, access, BlobSizes::default(), LiveDuration::new(tag_ttl));
    let at = Repository {
        upstream: "a.test".to_owned(),
        name: "library/app".to_owned(),
    };
    for number in 0..4 {
        let (caller, tag) = (Caller::default(), Reference::Tag("v1".to_owned()));
        let answer = manifests.manifest(&caller, &at, &tag).await.unwrap();
        assert_eq!(&*answer.bytes, MANIFEST.as_bytes());
        // What was kept is served without what was said beside it.
        assert!(answer.note == note || (number > 0 && answer.note == Note::default()));
    }
    let told = source.0.lock().unwrap();
    (told.gets, told.heads)
}

fn warned() -> Note {
    Note {
        warning: Some("299 - \"stale: deprecated\"".to_owned()),
        is_stale: false,
    }
}

#[tokio::test]
async fn a_warning_is_no_reason_to_check_a_tag_again_and_the_mirrors_mark_is() {
    let hour = Duration::from_secs(3600);
    for note in [Note::default(), warned()] {
        assert_eq!(asked(note, false, hour).await, (1, 0), "it was checked");
    }
    let stale = Note {
        is_stale: true,
        ..warned()
    };
    assert_eq!(asked(stale, false, hour).await, (4, 0), "it was not");
}

#[tokio::test]
async fn a_check_by_get_costs_one_question() {
    for note in [Note::default(), warned()] {
        for whole in [false, true] {
            assert_eq!(asked(note.clone(), whole, Duration::ZERO).await, (1, 3), "{whole}");
        }
    }
}
