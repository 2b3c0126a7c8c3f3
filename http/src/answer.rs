//! Body of an answer.
//!
//! Invariant: its connection is busy until the last byte of it is flushed.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::Slot;

pub(crate) struct Answer {
    body: Body,
    _busy: Busy,
}

impl Answer {
    pub(crate) fn new(body: Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

/// Keeps a connection busy until it is dropped and all answers are flushed.
pub(crate) struct Busy(Slot);

impl Busy {
    /// A request begins.
    pub(crate) fn begin(slot: Slot) -> Self {
        slot.begin();
        Self(slot)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.finish_when_flushed();
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
