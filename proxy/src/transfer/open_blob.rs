//! Blob that a client can be answered with while its bytes still come.
//!
//! No byte is read before the right is proven, and none of two fills is mixed: a reader that has had bytes of one goes on with another only
//! once that has brought the same pieces.

use bytes::Bytes;
use piecemeal_proto::Digest;
use piecemeal_store::{Blob, Extent, Filling, ReadBlobError, ReadRange, Repository};

use super::{
    one::{Progress, Transfer},
    reader::Reader,
    reading::{Reading, given_up},
};
use crate::{Item, callers::Right};

/// A blob that a client can be answered with: its size is known, its bytes are here or come.
pub enum OpenBlob {
    Complete(Blob),
    /// `transfer`: whose reader it is. When that goes on with another fill, so does its reader.
    Filling {
        filling: Filling,
        transfer: Option<Reader>,
        progress: Reading,
    },
    /// `unproven`: no byte is read before the source has answered this very right.
    Starting {
        blob_bytes: u64,
        transfer: Reader,
        unproven: Option<Right>,
        progress: Reading,
    },
}

impl OpenBlob {
    /// The blob of a fill that belongs to no transfer.
    #[cfg(test)]
    pub(crate) fn filling(filling: Filling) -> Self {
        Self::Filling {
            filling,
            transfer: None,
            progress: Reading::default(),
        }
    }

    /// The caller's right is proven: it may read whatever comes.
    #[must_use]
    pub fn proven(self) -> Self {
        match self {
            Self::Starting {
                blob_bytes,
                transfer,
                progress,
                ..
            } => Self::Starting {
                blob_bytes,
                transfer,
                unproven: None,
                progress,
            },
            opened => opened,
        }
    }

    /// The item that a caller's right is checked for before it reads. `transfer`: that of the blob.
    pub fn item<'a>(&self, transfer: &Transfer, at: &Repository, digest: &'a Digest) -> Item<'a> {
        match self {
            Self::Filling { .. } | Self::Starting { .. } if transfer.has_answered(at) => Item::Answered(digest),
            _ => Item::Blob(digest),
        }
    }

    /// In bytes.
    pub fn blob_bytes(&self) -> u64 {
        match self {
            Self::Complete(blob) => blob.map().blob_bytes(),
            Self::Filling { filling, .. } => filling.map().blob_bytes(),
            Self::Starting { blob_bytes, .. } => *blob_bytes,
        }
    }

    /// Waits until the first byte of `range`, which is not empty, can be read.
    ///
    /// # Errors
    /// The reason why the transfer ended.
    pub async fn ready(&mut self, range: impl Into<ReadRange>) -> Result<(), ReadBlobError> {
        let range = range.into();
        let offset = range.bytes.start;
        loop {
            self.start().await?;
            let Self::Filling {
                filling,
                transfer,
                progress,
            } = self
            else {
                return Ok(());
            };
            progress.begin(offset);
            let readable = async {
                filling.wait_readable(range.clone()).await?;
                progress.compare(filling).await
            };
            let Some(transfer) = transfer else {
                return readable.await;
            };
            tokio::select! {
                biased;
                readable = readable => match readable {
                    Err(_) if transfer.goes_on_after(filling).await => {}
                    readable => return readable,
                },
                () = transfer.leaves(filling) => {}
            }
            self.start_over(offset);
        }
    }

    /// The transfer goes on with another fill, and the reader with it.
    fn start_over(&mut self, offset: u64) {
        if let Self::Filling {
            filling,
            transfer: Some(transfer),
            progress,
        } = self
        {
            progress.leave(filling, offset);
            *self = Self::Starting {
                blob_bytes: filling.map().blob_bytes(),
                transfer: transfer.clone(),
                unproven: None,
                progress: std::mem::take(progress),
            };
        }
    }

    /// Reads at least one byte from the start of `range`, waiting for it when it is still on its way.
    ///
    /// # Errors
    /// The reason why the transfer ended, or damage on disk.
    pub async fn read(&mut self, range: impl Into<ReadRange>) -> Result<Bytes, ReadBlobError> {
        let range = range.into();
        match self.wait_for_first(&range).await? {
            Started::Complete(blob) => blob.read(range.bytes).await,
            Started::Filling(filling) => filling.read(range).await,
        }
    }

    /// As [`OpenBlob::read`], but says where the bytes lie. `None` where they can only be read.
    ///
    /// # Errors
    /// As [`OpenBlob::read`].
    pub async fn extent(&mut self, range: impl Into<ReadRange>) -> Result<Option<Extent>, ReadBlobError> {
        let range = range.into();
        match self.wait_for_first(&range).await? {
            Started::Complete(blob) => blob.extent(range.bytes),
            Started::Filling(filling) => filling.extent(range).await,
        }
    }

    /// Waits for the first byte of `range`.
    async fn wait_for_first(&mut self, range: &ReadRange) -> Result<Started<'_>, ReadBlobError> {
        match range.bytes.is_empty() {
            true => self.start().await?,
            false => self.ready(range.clone()).await?,
        }
        match self {
            Self::Complete(blob) => Ok(Started::Complete(blob)),
            Self::Filling { filling, .. } => Ok(Started::Filling(filling)),
            Self::Starting { .. } => Err(given_up("it has not started")),
        }
    }

    /// Waits until the transfer has started.
    async fn start(&mut self) -> Result<(), ReadBlobError> {
        let Self::Starting {
            blob_bytes,
            transfer,
            unproven,
            progress: reading,
        } = self
        else {
            return Ok(());
        };
        let stated = *blob_bytes;
        let progress = match unproven {
            Some(right) => transfer.started_for(right).await,
            None => transfer.started().await,
        };
        *self = match progress {
            Progress::Open(filling) => Self::Filling {
                filling,
                transfer: Some(transfer.clone()),
                progress: std::mem::take(reading),
            },
            Progress::Complete(blob) => {
                reading.compare_blob(&blob)?;
                Self::Complete(blob)
            }
            Progress::Failed(error) => return Err(given_up(&error.to_string())),
            Progress::Starting { .. } => return Err(given_up("it has not started")),
        };
        match self.blob_bytes() == stated {
            true => Ok(()),
            false => Err(given_up("the source states another size than the manifest")),
        }
    }
}

/// A blob whose bytes are here or come.
enum Started<'a> {
    Complete(&'a Blob),
    Filling(&'a Filling),
}

#[cfg(test)]
mod tests {
    use std::{ops::Range, sync::Arc, time::Duration};

    use piecemeal_proto::{FillId, PieceMap};
    use piecemeal_store::{Env, FillFailure, Store, StoreConfig};
    use piecemeal_upstream::{Caller, PullError};

    use super::*;

    const PIECE_BYTES: u64 = 4;
    const BLOB_BYTES: usize = 14;

    fn store(dir: &std::path::Path) -> Store {
        let config = StoreConfig {
            dir: dir.join("store"),
            quota_bytes: None,
            free_bytes_min: 0,
            ttl: Duration::from_secs(3600),
        };
        Store::open(config, Env::system()).unwrap()
    }

    fn right() -> Right {
        let at = Repository {
            upstream: "a.test".to_owned(),
            name: "app".to_owned(),
        };
        Right::new(&Caller::default(), &at)
    }

    fn reader(transfer: &Arc<Transfer>, filling: &Filling) -> OpenBlob {
        OpenBlob::Filling {
            filling: filling.clone(),
            transfer: Some(Reader::new(Arc::clone(transfer))),
            progress: Reading::default(),
        }
    }

    async fn write(filling: &Filling, bytes: &[u8], pieces: u32) {
        for piece in 0..pieces {
            let range = filling.map().range(piece);
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            let piece_bytes = Bytes::copy_from_slice(&bytes[range]);
            filling.write_piece(piece, piece_bytes, None).await.unwrap();
        }
    }

    async fn read(reader: &mut OpenBlob, bytes: Range<usize>) -> Result<Vec<u8>, ReadBlobError> {
        let mut read = Vec::new();
        while read.len() < bytes.len() {
            let range = (bytes.start + read.len()) as u64..bytes.end as u64;
            read.extend_from_slice(&reader.read(range).await?);
        }
        Ok(read)
    }

    /// The source begins another fill. Of the first one three pieces have landed, with `spoilt` as a wrong byte; the reader has had `had`.
    async fn other_fill(store: &Store, had: Range<usize>, spoilt: Option<usize>, at_end: bool) {
        let told = format!("{had:?} {spoilt:?}");
        let mut truth = format!("{told:-<14}").into_bytes();
        truth.truncate(BLOB_BYTES);
        let mut first = truth.clone();
        if let Some(at) = spoilt {
            first[at] ^= 1;
        }
        // The name of each case makes another blob.
        let digest = Digest::of(&truth);
        let map = PieceMap::new(BLOB_BYTES as u64, PIECE_BYTES).unwrap();
        let transfer = Arc::new(Transfer::new(digest, right(), None));
        let filling = store.begin(&digest, map, Some(FillId(1))).await.unwrap();
        transfer.open(filling.clone(), right());
        write(&filling, &first, 3).await;
        let mut reader = reader(&transfer, &filling);
        assert_eq!(read(&mut reader, had.clone()).await.unwrap(), first[had.clone()]);

        transfer.starts_over();
        filling.abandon(FillFailure::Stopped).await;
        let second = store.begin(&digest, map, Some(FillId(2))).await.unwrap();
        transfer.open(second.clone(), right());
        write(&second, &truth, map.count()).await;
        let blob = second.publish(&[]).await.unwrap();
        if at_end {
            transfer.end(Progress::Complete(blob));
        }
        let piece = |at: usize| at / usize::try_from(PIECE_BYTES).unwrap();
        let is_touched = |at: &usize| !had.is_empty() && (piece(had.start)..=piece(had.end - 1)).contains(&piece(*at));
        let rest = read(&mut reader, had.end..BLOB_BYTES).await;
        match spoilt.as_ref().is_some_and(is_touched) {
            true => assert!(rest.is_err(), "{told}: bytes of two contents in one stream"),
            false => assert_eq!(rest.unwrap(), truth[had.end..], "{told}"),
        }
    }

    #[tokio::test]
    async fn a_reader_goes_on_with_another_fill_just_where_that_has_the_bytes_that_it_has_had() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        for start in 0..5 {
            for end in start..=12 {
                for spoilt in [None, Some(0), Some(3), Some(4), Some(11)] {
                    other_fill(&store, start..end, spoilt, end % 2 == 0).await;
                }
            }
        }
        store.close().await;
    }

    #[tokio::test]
    async fn a_reader_waits_until_the_other_fill_has_brought_what_it_has_had() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let truth = b"0123456789abcd";
        let (digest, map) = (Digest::of(truth), PieceMap::new(14, 4).unwrap());
        let transfer = Arc::new(Transfer::new(digest, right(), None));
        let first = store.begin(&digest, map, Some(FillId(1))).await.unwrap();
        transfer.open(first.clone(), right());
        write(&first, truth, 2).await;
        let mut reader = reader(&transfer, &first);
        read(&mut reader, 0..8).await.unwrap();
        transfer.starts_over();
        first.abandon(FillFailure::Stopped).await;
        let second = store.begin(&digest, map, Some(FillId(2))).await.unwrap();
        transfer.open(second.clone(), right());
        // Out of order: the reader's next piece first.
        second.write_piece(2, Bytes::from_static(b"89ab"), None).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), reader.read(8..12)).await;
        assert!(early.is_err(), "nothing is known of its first bytes");
        write(&second, truth, 2).await;
        assert_eq!(reader.read(8..12).await.unwrap(), "89ab");
        store.close().await;
    }

    /// The hash of the piece is right by now, and the client has had other bytes.
    #[tokio::test]
    async fn a_piece_that_was_taken_back_and_came_again_right_is_not_what_the_reader_has_had() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let truth = b"0123456789abcd";
        let (digest, map) = (Digest::of(truth), PieceMap::new(14, 4).unwrap());
        let transfer = Arc::new(Transfer::new(digest, right(), None));
        let first = store.begin(&digest, map, Some(FillId(1))).await.unwrap();
        transfer.open(first.clone(), right());
        first.write_piece(0, Bytes::from_static(b"lies"), None).await.unwrap();
        let mut reader = reader(&transfer, &first);
        assert_eq!(read(&mut reader, 0..4).await.unwrap(), b"lies");
        first.take_back(vec![0]).await.unwrap();
        write(&first, truth, 2).await;
        transfer.starts_over();
        first.abandon(FillFailure::Stopped).await;
        let second = store.begin(&digest, map, Some(FillId(2))).await.unwrap();
        transfer.open(second.clone(), right());
        write(&second, truth, 3).await;
        assert!(reader.read(4..8).await.is_err());
        store.close().await;
    }

    #[tokio::test]
    async fn another_fill_that_is_cut_otherwise_or_fails_ends_the_stream_short() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        for cut in [Some(2), None] {
            let truth = format!("{cut:?}-3456789abcd");
            let digest = Digest::of(truth.as_bytes());
            let map = PieceMap::new(truth.len() as u64, 4).unwrap();
            let transfer = Arc::new(Transfer::new(digest, right(), None));
            let first = store.begin(&digest, map, Some(FillId(1))).await.unwrap();
            transfer.open(first.clone(), right());
            write(&first, truth.as_bytes(), 2).await;
            let mut reader = reader(&transfer, &first);
            read(&mut reader, 0..5).await.unwrap();
            transfer.starts_over();
            first.abandon(FillFailure::Stopped).await;
            if let Some(piece_bytes) = cut {
                let map = PieceMap::new(truth.len() as u64, piece_bytes).unwrap();
                let second = store.begin(&digest, map, Some(FillId(2))).await.unwrap();
                transfer.open(second.clone(), right());
                write(&second, truth.as_bytes(), map.count()).await;
            } else {
                transfer.end(Progress::Failed(PullError::Unavailable("no more".to_owned())));
            }
            assert!(reader.read(5..8).await.is_err());
        }
        store.close().await;
    }

    /// As the client of several ranges, of which a later one lies before.
    #[tokio::test]
    async fn a_reader_that_has_gone_back_is_held_to_all_that_it_may_have_had() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        for (spoilt, name) in [(false, "0123456789ab-t"), (true, "0123456789ab-f")] {
            let truth = name.as_bytes();
            let (digest, map) = (Digest::of(truth), PieceMap::new(14, 4).unwrap());
            let transfer = Arc::new(Transfer::new(digest, right(), None));
            let first = store.begin(&digest, map, Some(FillId(1))).await.unwrap();
            transfer.open(first.clone(), right());
            let mut sent = truth.to_vec();
            sent[9] ^= u8::from(spoilt);
            write(&first, &sent, map.count()).await;
            let mut reader = reader(&transfer, &first);
            assert_eq!(read(&mut reader, 8..12).await.unwrap(), sent[8..12]);
            assert_eq!(read(&mut reader, 0..4).await.unwrap(), sent[..4]);
            transfer.starts_over();
            first.abandon(FillFailure::Stopped).await;
            let second = store.begin(&digest, map, Some(FillId(2))).await.unwrap();
            transfer.open(second.clone(), right());
            write(&second, truth, map.count()).await;
            assert_eq!(reader.read(4..8).await.is_err(), spoilt, "{name}");
        }
        store.close().await;
    }
}
