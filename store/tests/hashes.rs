//! The hashes of a blob's pieces, and the signature over them.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on fails")]

mod support;

use piecemeal_store::{DiskFiles, PieceHashes, Store};
use std::{fs, sync::Arc};
use support::{Content, FakeClock, PIECE_BYTES, config, env, old, open};

const SIGNATURE: [u8; 64] = [7; 64];

async fn hashes(store: &Store, content: &Content) -> Option<PieceHashes> {
    store.piece_hashes(&content.digest).await.unwrap()
}

#[tokio::test]
async fn a_list_and_its_signature_come_with_a_blob_survive_a_restart_and_go_with_it() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new());
    let store = open(dir.path(), &clock);
    let content = Content::pieces(1, 3);
    assert!(
        !store
            .sign_piece_hashes(&content.digest, PIECE_BYTES, SIGNATURE)
            .await
            .unwrap(),
        "there is nothing to sign"
    );
    let blob = content.publish(&store).await;
    let mut expected = PieceHashes {
        map: content.map,
        hashes: blob.piece_hashes(),
        signature: None,
    };
    assert_eq!(hashes(&store, &content).await, Some(expected.clone()));
    for (piece_bytes, signs) in [(2 * PIECE_BYTES, false), (PIECE_BYTES, true)] {
        let signed = store.sign_piece_hashes(&content.digest, piece_bytes, SIGNATURE).await;
        assert_eq!(signed.unwrap(), signs, "pieces of {piece_bytes} bytes");
    }
    drop((blob, store));

    let store = open(dir.path(), &clock);
    expected.signature = Some(SIGNATURE);
    assert_eq!(hashes(&store, &content).await, Some(expected));
    store.remove(&content.digest).await.unwrap();
    assert_eq!(hashes(&store, &content).await, None);
    content.publish(&store).await;
    assert_eq!(hashes(&store, &content).await.unwrap().signature, None, "another list");
}

#[tokio::test]
async fn every_former_schema_has_lists_without_signatures() {
    for version in old::versions() {
        let dir = tempfile::tempdir().unwrap();
        let folder = config(dir.path()).dir;
        fs::create_dir_all(&folder).unwrap();
        old::make_index(&folder, version, old::Left::Closed);
        for (path, bytes) in old::files() {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let store = Store::open(config(dir.path()), env(&FakeClock::new(), Arc::new(DiskFiles))).unwrap();
        for content in &old::contents()[..2] {
            let found = hashes(&store, content).await.unwrap();
            assert_eq!((found.map, found.signature), (content.map, None), "schema {version}");
            assert_eq!(found.hashes.len(), content.map.count() as usize);
            let signed = store.sign_piece_hashes(&content.digest, PIECE_BYTES, SIGNATURE).await;
            assert!(signed.unwrap(), "schema {version}");
        }
    }
}
