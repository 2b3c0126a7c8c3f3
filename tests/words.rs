//! Plain words: no tracked text file has a word or phrase that CONTRIBUTING.md excludes under "How we write".

use std::{fs, path::Path, process::Command};

/// The excluded words, each as two halves, so that this file has none of them.
const WORDS: [(&str, &str); 6] = [
    ("no", "body"),
    ("some", "body"),
    ("any", "body"),
    ("every", "body"),
    ("who", "ever"),
    ("a", "new"),
];
/// The excluded phrases of two words. In an identifier `_` stands between them.
const PHRASES: [(&str, &str); 3] = [("is", "had"), ("of", "late"), ("of", "ours")];

/// A migration that has been released is never edited.
const RELEASED: &str = "store/migrations/0001_initial.sql";

fn excluded() -> Vec<String> {
    let words = WORDS.map(|(start, end)| format!("{start}{end}"));
    let phrases = PHRASES.map(|(first, second)| [format!("{first} {second}"), format!("{first}_{second}")]);
    words.into_iter().chain(phrases.into_iter().flatten()).collect()
}

/// Whether `line` has `term` in any case, with no letter on either side: `_`, digits and quotes end a word.
fn has(line: &str, term: &str) -> bool {
    let line = line.to_ascii_lowercase();
    line.match_indices(term).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + term.len()..].chars().next();
        !before.is_some_and(char::is_alphabetic) && !after.is_some_and(char::is_alphabetic)
    })
}

/// The files that git tracks, without those that tools generate.
fn tracked(root: &Path) -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root)
        .output()
        .expect("git runs");
    assert!(
        listed.status.success(),
        "git ls-files failed: {}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let names = String::from_utf8(listed.stdout).expect("names of files are UTF-8");
    let files = names.split_terminator('\0').map(str::to_owned);
    files
        .filter(|file| !file.ends_with("Cargo.lock") && file != RELEASED)
        .collect()
}

#[test]
fn every_file_is_written_in_plain_words() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = tracked(root);
    assert!(files.len() >= 100, "git lists only {} files", files.len());
    let excluded = excluded();
    let mut findings = Vec::new();
    for file in files {
        // A file that is deleted but not committed yet has no content, and one that is not UTF-8 has no words.
        let Ok(text) = fs::read_to_string(root.join(&file)) else {
            continue;
        };
        for (number, line) in (1..).zip(text.lines()) {
            for term in excluded.iter().filter(|term| has(line, term)) {
                findings.push(format!("{file}:{number}: {term:?} in {:?}", line.trim()));
            }
        }
    }
    assert!(
        findings.is_empty(),
        "{} findings; CONTRIBUTING.md says under \"How we write\" what to write instead:\n{}",
        findings.len(),
        findings.join("\n")
    );
}

#[test]
fn a_word_is_found_in_any_case_and_within_identifiers_but_not_within_longer_words() {
    let [word, phrase] = [WORDS[0], PHRASES[0]].map(|(first, second)| [first, second]);
    let term = word.concat();
    for line in [
        format!("{term} listens"),
        format!("({}'s)", term.to_uppercase()),
        format!("fn a_claim_of_{term}_7()"),
    ] {
        assert!(has(&line, &term), "{line:?}");
    }
    for line in [format!("{term}like"), format!("x{term}"), word.join(" ")] {
        assert!(!has(&line, &term), "{line:?}");
    }
    let excluded = excluded();
    for line in [
        format!("it {} there", phrase.join(" ")),
        format!("it_{}_there", phrase.join("_")),
    ] {
        assert!(excluded.iter().any(|term| has(&line, term)), "{line:?}");
    }
}
