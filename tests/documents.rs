//! Checks of the documents: their links lead somewhere, and the tests that they name exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

#[test]
fn every_link_within_the_documents_leads_to_a_file_and_a_heading_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut links = 0;
    for document in documents(root) {
        let text = fs::read_to_string(&document).expect("a document");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            links += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.clone(),
                file => document.parent().expect("a folder").join(file),
            };
            let found = fs::read_to_string(&target)
                .unwrap_or_else(|error| panic!("{} links to {link}: {error}", document.display()));
            assert!(
                heading.is_empty() || anchors(&found).any(|anchor| anchor == heading),
                "{} links to {link}, and there is no such heading",
                document.display()
            );
        }
    }
    assert!(links >= 50, "only {links} links were found");
}

#[test]
fn every_source_file_that_the_documents_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crates = fs::read_dir(root).expect("the root").filter_map(Result::ok);
    let folders: Vec<PathBuf> = crates
        .flat_map(|entry| [entry.path().join("src"), entry.path()])
        .chain([root.to_owned()])
        .collect();
    let mut named = 0;
    for document in documents(root) {
        let text = fs::read_to_string(&document).expect("a document");
        let is_file = |name: &&str| name.ends_with(".rs") && !name.contains([' ', '*', ':']);
        for name in text.split('`').skip(1).step_by(2).filter(is_file) {
            named += 1;
            let is_there = folders.iter().any(|folder| folder.join(name).is_file());
            assert!(is_there, "{} names {name}, which is not there", document.display());
        }
    }
    assert!(named >= 20, "only {named} files were found");
}

/// Every Markdown file of `docs`, and those at the top.
fn documents(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![
        root.join("README.md"),
        root.join("CONTRIBUTING.md"),
        root.join("charts/piecemeal/README.md"),
    ];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of documents") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// What follows `#` in a link to each heading, as forges make it.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let headings = text
        .lines()
        .filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#').trim()));
    headings.map(|heading| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars()
            .filter(|c| c.is_alphanumeric() || "-_".contains(*c))
            .collect()
    })
}

#[test]
fn every_test_that_the_list_of_failures_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/failures.md")).expect("the list of failures");
    let names: Vec<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.contains("::"))
        .collect();
    assert!(names.len() >= 37, "only {} tests are named", names.len());
    for name in names {
        assert!(is_test(root, name), "{name} is no test");
    }
    for row in (1..=25)
        .map(|row| format!("\n| {row} | "))
        .chain((1..=12).map(|rule| format!("\n| R{rule} | ")))
    {
        let line = text
            .split_once(&row)
            .unwrap_or_else(|| panic!("row {row:?} is missing"))
            .1;
        assert!(
            line.lines().next().is_some_and(|line| line.contains("::")),
            "row {row:?} has no test"
        );
    }
}

/// Whether there is a test of this name: `file::function`, `package/file::function` or `path/to/file.rs::function`.
fn is_test(root: &Path, name: &str) -> bool {
    let (file, function) = name.split_once("::").expect("a file and a function");
    let path = match (file.strip_suffix(".rs"), file.split_once('/')) {
        (Some(_), _) => root.join(file),
        (None, Some((package, file))) => root.join(package).join("tests").join(file),
        (None, None) => root.join("tests").join(file),
    };
    let source = fs::read_to_string(path.with_extension("rs")).unwrap_or_else(|error| panic!("{name}: {error}"));
    let Some((before, _)) = source.split_once(&format!("fn {function}()")) else {
        return false;
    };
    let attributes = before.rsplit("\n\n").next().unwrap_or_default();
    attributes.contains("#[test]") || attributes.contains("#[tokio::test")
}

#[test]
fn every_sentence_that_always_holds_and_every_one_of_trust_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/ARCHITECTURE.md")).expect("the architecture");
    let section = |heading: &str| {
        let (_, rest) = text.split_once(&format!("\n## {heading}\n")).expect("the section");
        rest.split("\n## ").next().unwrap_or_default()
    };
    let table = section("Which test holds which sentence");
    for (heading, row) in [("What always holds", "holds"), ("Trust", "trust")] {
        let sentences = section(heading)
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
            .count();
        assert!(sentences >= 9, "only {sentences} sentences under {heading}");
        for number in 1..=sentences {
            let start = format!("| {row} {number} | ");
            let row = table.lines().find_map(|line| line.strip_prefix(&start));
            let row = row.unwrap_or_else(|| panic!("no row {start:?}"));
            let names: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
            assert!(!names.is_empty(), "row {start:?} has no test");
            for name in names {
                assert!(is_test(root, name), "{name} is no test");
            }
        }
    }
}
