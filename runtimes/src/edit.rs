//! The edit of one file: write, delete or leave.

/// Made of what a file has now and what it should have; carried out elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// It is as it should be.
    Nothing,
    Write(String),
    Delete,
    /// It is not ours. The text says why nothing can be added to it, or what has to be done by hand.
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

/// What a test says is written.
#[cfg(test)]
pub(crate) fn written(edit: Edit) -> String {
    match edit {
        Edit::Write(text) => text,
        other => panic!("{other:?}"),
    }
}
