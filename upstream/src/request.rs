//! Request to an upstream, as the daemon's own code states it.
//!
//! Invariant: every request but a download is of a kind that upstream's rate limits count.

use piecemeal_store::Repository;
use reqwest::{
    Method, RequestBuilder,
    header::{ACCEPT, RANGE},
};

use crate::{Caller, breaker::RequestKind};

/// A request to upstream.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a Method,
    pub(crate) caller: &'a Caller,
    pub(crate) at: &'a Repository,
    /// Below `/v2/<name>/`, with its query: `manifests/v1`.
    pub(crate) path: &'a str,
    pub(crate) accept: Option<&'a str>,
    pub(crate) range: Option<&'a str>,
    pub(crate) purpose: Purpose,
}

/// Purpose of a request: it decides how long upstream may take, and what is remembered of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A caller waits, and may be answered from the store.
    Lookup,
    /// The same, for lists, which may appear at any moment: a 404 is not remembered.
    List,
    /// The same, and upstream may count it against a limit.
    Manifest,
    /// A download, which has a patience of its own.
    Fill,
    /// More of a download that its caller has been served the beginning of.
    Resume,
}

impl Purpose {
    pub(crate) fn is_download(self) -> bool {
        self.kind().is_none()
    }

    /// The kind that an upstream counts the request as. `None` for a download, which slows down in its own way.
    pub(crate) fn kind(self) -> Option<RequestKind> {
        match self {
            Self::Lookup => Some(RequestKind::Blob),
            Self::List => Some(RequestKind::List),
            Self::Manifest => Some(RequestKind::Manifest),
            Self::Fill | Self::Resume => None,
        }
    }
}

impl Request<'_> {
    /// Adds the headers that it states.
    pub(crate) fn dress(&self, request: RequestBuilder) -> RequestBuilder {
        [(ACCEPT, self.accept), (RANGE, self.range)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .fold(request, |request, (name, value)| request.header(name, value))
    }
}
