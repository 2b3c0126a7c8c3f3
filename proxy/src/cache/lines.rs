//! An answer that takes long: one JSON object a line, as things happen.
//!
//! Invariant: at most [`LINES_MAX`] lines wait, and a reader that takes none for [`READER_LAG_MAX`] is gone.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;
use tokio::{sync::mpsc, time::timeout};

/// CacheLines that wait for a slow reader.
const LINES_MAX: usize = 64;
/// A reader that takes nothing for so long is gone.
const READER_LAG_MAX: Duration = Duration::from_secs(60);

/// The lines, as the body of an answer.
#[derive(Debug)]
pub struct CacheLines(mpsc::Receiver<Bytes>);

impl Stream for CacheLines {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|line| line.map(Ok))
    }
}

/// Writer of lines.
#[derive(Clone, Debug)]
pub(super) struct Out(mpsc::Sender<Bytes>);

pub(super) fn lines() -> (Out, CacheLines) {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    (Out(sender), CacheLines(receiver))
}

/// The reader has gone away: further lines are dropped, and the work can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

impl Out {
    /// Writes a line.
    pub(super) async fn say(&self, event: &impl Serialize) -> Result<(), Gone> {
        let mut line = serde_json::to_vec(event).expect("our own events are JSON");
        line.push(b'\n');
        let sent = timeout(READER_LAG_MAX, self.0.send(line.into())).await;
        sent.map_err(|_| Gone)?.map_err(|_| Gone)
    }

    /// Returns once the reader is gone.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_that_is_gone_ends_the_work() {
        let (out, lines) = lines();
        for number in 0..LINES_MAX {
            assert_eq!(out.say(&number).await, Ok(()));
        }
        drop(lines);
        out.closed().await;
        assert_eq!(out.say(&"more").await, Err(Gone));
    }
}
