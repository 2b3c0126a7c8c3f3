//! Problem of a runtime: why it does not read the files that are written for it, and the remedy if one line is all that is missing.

use serde::Serialize;

/// Why a runtime does not read the files that are written for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub why: String,
    /// The table and the line to have in it, when that is all that is missing.
    pub remedy: Option<Remedy>,
}

/// The one line that has to be added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    pub file: String,
    pub table: String,
    pub line: String,
}

impl Problem {
    pub(crate) fn because(why: String) -> Self {
        Self { why, remedy: None }
    }
}
