//! Samples of a fill's bytes, which show whether an upstream has the same blob.
//!
//! Bytes that one upstream has sent are shown to no caller of another before that other one has matched a sample of them.

use bytes::Bytes;
use piecemeal_store::Filling;

use super::{
    follow::SAMPLE_BYTES,
    registry_source::{FillSource, RegistrySource},
};
use piecemeal_upstream::PullError;

impl RegistrySource {
    /// What an earlier fill has left, pieces or the beginning of one, may be another registry's, and private: an upstream that has
    /// not served the blob before has to show that it has the same.
    pub(super) async fn has_same_left(&self, source: FillSource<'_>, filling: &Filling) -> Result<bool, PullError> {
        let FillSource { upstream, right, .. } = source;
        let Some((start, sample)) = left_sample(filling).await? else {
            return Ok(true);
        };
        if self.store.has_upstream(&right.at.upstream, filling.digest()).await? {
            return Ok(true);
        }
        upstream
            .has_sample(&right.caller, &right.at, filling.digest(), start, &sample)
            .await
    }

    /// Whether this upstream has what has come: some of it, from anywhere in what is here.
    pub(super) async fn has_same(
        &self,
        source: FillSource<'_>,
        filling: &Filling,
        sample_bytes: u64,
    ) -> Result<bool, PullError> {
        let FillSource { upstream, right, .. } = source;
        let Some((start, sample)) = self.sample(filling, sample_bytes).await else {
            return Ok(false);
        };
        upstream
            .has_sample(&right.caller, &right.at, filling.digest(), start, &sample)
            .await
    }

    /// At most so many bytes of what is here of a fill, and their offset. `None` when there is nothing.
    async fn sample(&self, filling: &Filling, bytes_max: u64) -> Option<(u64, Bytes)> {
        if filling.map().blob_bytes() == 0 {
            return Some((0, Bytes::new()));
        }
        let landed: Vec<u32> = filling.landed().iter().collect();
        let random = self.store.random_u64();
        let (piece, bytes) = match landed.len() {
            0 => (0, filling.partial_piece(0).await?),
            count => {
                let piece = landed[usize::try_from(random % count as u64).ok()?];
                (piece, filling.read_piece(piece).await.ok()??)
            }
        };
        let len = (bytes.len() as u64).min(bytes_max);
        let skip = self.store.random_u64() % (bytes.len() as u64 - len + 1);
        let range = usize::try_from(skip).ok()?..usize::try_from(skip + len).ok()?;
        Some((filling.map().range(piece).start + skip, bytes.slice(range)))
    }
}

/// Some bytes of what an earlier fill has left, and their offset in the blob; `None` where it has left nothing.
async fn left_sample(filling: &Filling) -> Result<Option<(u64, Bytes)>, PullError> {
    let start = |piece| filling.map().range(piece).start;
    let cut = |bytes: Bytes| bytes.slice(..bytes.len().min(SAMPLE_BYTES));
    if let Some(piece) = filling.landed().iter().next() {
        let read = filling.read_piece(piece).await;
        let read = read.map_err(|error| PullError::Unavailable(error.to_string()))?;
        return Ok(read.map(|bytes| (start(piece), cut(bytes))));
    }
    for piece in filling.partial_pieces() {
        if let Some(bytes) = filling.partial_piece(piece).await.filter(|bytes| !bytes.is_empty()) {
            return Ok(Some((start(piece), cut(bytes))));
        }
    }
    Ok(None)
}
