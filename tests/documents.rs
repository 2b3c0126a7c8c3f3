//! What the documents say of tests is so.

use std::{fs, path::Path};

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
