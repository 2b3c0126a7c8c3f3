//! Edit of one file: write, delete or leave.
//!
//! Invariant: a text that is as wanted is not written again.

/// Decided from a file's present and wanted text; a run carries it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// The text is as wanted.
    Nothing,
    Write(String),
    Delete,
    /// The file stays, for the given reason or with the given instruction to the administrator.
    Leave(String),
}

impl Edit {
    /// The edit that makes `current` into `wanted`.
    pub(crate) fn to(wanted: String, current: Option<&str>) -> Self {
        if current == Some(&*wanted) {
            Self::Nothing
        } else {
            Self::Write(wanted)
        }
    }
}

/// The text that an edit writes.
#[cfg(test)]
pub(crate) fn written(edit: Edit) -> String {
    match edit {
        Edit::Write(text) => text,
        other => panic!("{other:?}"),
    }
}
