//! Inputs that the fuzzer has kept, for the tests of the crates whose code it tries.

use std::fs;

/// The corpus of a target.
///
/// # Panics
/// When there is none.
pub(crate) fn kept(target: &str) -> Vec<Vec<u8>> {
    let folder = format!("{}/../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let kept: Vec<_> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!kept.is_empty(), "{folder} is empty");
    kept
}
