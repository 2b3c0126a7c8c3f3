//! What the documents say of tests is so.

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
        let (file, function) = name.split_once("::").expect("a file and a function");
        let path = match file.split_once('/') {
            Some((package, file)) => root.join(package).join("tests").join(file),
            None => root.join("tests").join(file),
        };
        let source = fs::read_to_string(path.with_extension("rs")).unwrap_or_else(|error| panic!("{name}: {error}"));
        let is_test = [("#[test]", "fn"), ("#[tokio::test]", "async fn")]
            .iter()
            .any(|(attribute, kind)| source.contains(&format!("{attribute}\n{kind} {function}()")));
        assert!(is_test, "{name} is no test");
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
