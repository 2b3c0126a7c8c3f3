//! The commit of the last release. The tests that run that release beside this tree read the same file.

/// Members of this release and of this tree work together.
pub(crate) const LAST_RELEASE: &str = "99cabce5dd77f66d1430274f2316ba5eb2397d2c";
