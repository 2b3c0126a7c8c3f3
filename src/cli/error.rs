//! Errors of a command, as its user reads them.
//!
//! Invariant: an error is one line with its causes, each said once.

/// Arguments that parse and make no sense. Exit 64.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct WrongArgumentError(pub(super) String);

/// The error and its causes in one line; a cause that the text above it contains already is left out.
pub(super) fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !last.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        last = cause;
    }
    text
}
