//! Reads the suite's report: a tree of cases, then the numbers.
//!
//! The suite calls "skipped" what it tried and took for an optional feature that is missing. A mirror that no longer served
//! ranges would be skipped, not failed. So a skipped case counts as failed here too, unless it is one of the registry's own.

use std::fmt;

use anyhow::{Context, Result};

/// Cases that test the registry and never reach the mirror, and that no switch turns off: the end of the case's name, and why.
const REGISTRY_LACKS: [(&str, &str); 4] = [
    (
        "/blob-post-only",
        "it takes no content in the POST that starts an upload",
    ),
    ("/chunked out-of-order/blob-patch-chunked", UNORDERED),
    ("/chunked out-of-order and put chunk/blob-patch-chunked", UNORDERED),
    (
        "/invalid-digest-format/manifest-put",
        "it answers 500, not 400, to a PUT by a malformed digest",
    ),
];

const UNORDERED: &str = "it takes the parts of an upload in any order";

/// Report on one run of the suite.
pub(super) struct Report {
    mode: String,
    passed: u32,
    /// By the suite's settings.
    disabled: u32,
    failed: Vec<Case>,
    registry_lacks: Vec<Case>,
}

/// A case that did not pass.
struct Case {
    name: String,
    status: String,
    reason: String,
}

impl Report {
    pub(super) fn parse(mode: &str, text: &str) -> Result<Self> {
        let (tree, rest) = text
            .split_once("\nConfiguration:")
            .with_context(|| format!("the suite made no report; it said:\n{text}"))?;
        let (_, numbers) = rest
            .split_once("\nOCI Conformance Result:")
            .context("the suite's report has no result")?;
        let mut cases = cases(tree);
        let counted = number(numbers, "FAIL")? + number(numbers, "Error")? + number(numbers, "Skip")?;
        if usize::try_from(counted) != Ok(cases.len()) {
            cases.push(Case {
                name: "somewhere".to_owned(),
                status: "FAIL".to_owned(),
                reason: format!("the suite counts {counted} cases that did not pass, which are not those named here"),
            });
        }
        let (registry_lacks, failed) = cases.into_iter().partition(Case::is_the_registrys);
        Ok(Self {
            mode: mode.to_owned(),
            passed: number(numbers, "Pass")?,
            disabled: number(numbers, "Disabled")?,
            failed,
            registry_lacks,
        })
    }

    pub(super) fn passed(&self) -> bool {
        self.passed > 0 && self.failed.is_empty()
    }
}

impl Case {
    fn is_the_registrys(&self) -> bool {
        REGISTRY_LACKS.iter().any(|(end, _)| self.name.ends_with(end))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} passed, {} failed, {} that the registry lacks, {} disabled",
            self.mode,
            self.passed,
            self.failed.len(),
            self.registry_lacks.len(),
            self.disabled
        )?;
        for (end, why) in REGISTRY_LACKS {
            let count = self
                .registry_lacks
                .iter()
                .filter(|case| case.name.ends_with(end))
                .count();
            if count > 0 {
                writeln!(f, "  {count} × {}: {why}", &end[1..])?;
            }
        }
        for case in &self.failed {
            writeln!(f, "  {}: {}", case.status, case.name)?;
            for line in case.reason.lines() {
                writeln!(f, "      {line}")?;
            }
        }
        Ok(())
    }
}

/// The leaves of the tree that neither passed nor were disabled. A leaf is a case that no line below goes deeper from.
fn cases(tree: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in tree.lines() {
        let Some((name, status)) = line
            .trim_start()
            .strip_prefix(ROOT)
            .and_then(|rest| rest.rsplit_once(": "))
        else {
            // What the suite says of a case follows it, over any number of lines.
            if let Some(case) = cases.last_mut() {
                case.reason.push_str(line.trim_start().trim_start_matches("- "));
                case.reason.push('\n');
            }
            continue;
        };
        if cases
            .last()
            .is_some_and(|parent| name.starts_with(&format!("{}/", parent.name)))
        {
            cases.pop();
        }
        cases.push(Case {
            name: name.to_owned(),
            status: status.to_owned(),
            reason: String::new(),
        });
    }
    cases.retain(|case| !matches!(case.status.as_str(), "Pass" | "Disabled" | NOTHING_DONE));
    cases
}

/// One of the numbers at the report's end, a line such as `  Pass....:  395`.
fn number(numbers: &str, name: &str) -> Result<u32> {
    let start = format!("{name}..");
    let line = numbers.lines().find(|line| line.trim_start().starts_with(&start));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.with_context(|| format!("the suite's report has no number of {name}"))
}

/// The status of a group that had no case.
const NOTHING_DONE: &str = "Unknown";
const ROOT: &str = "OCI Conformance Test";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_suite_skipped_has_failed() {
        let report = parse(
            "/range requests: Skip\n  - range request unsupported\nfull blob returned",
            0,
            1,
        );
        assert!(!report.passed());
        let shown = report.to_string();
        assert!(shown.contains("Skip: /range requests"), "{shown}");
        assert!(shown.contains("full blob returned"), "{shown}");
    }

    #[test]
    fn what_the_registry_lacks_is_told_and_excused() {
        let report = parse("/sha256 blobs/post only/blob-post-only: Skip\n  - unsupported", 0, 1);
        assert!(report.passed());
        assert!(report.to_string().contains("1 × blob-post-only"));
    }

    #[test]
    fn a_failure_that_no_case_names_is_a_failure() {
        assert!(!parse("/ping: Pass", 1, 0).passed());
    }

    #[test]
    fn groups_are_no_cases() {
        let report = parse("/pull: FAIL\n  OCI Conformance Test/pull/blob-get: FAIL\n   - no", 1, 0);
        assert_eq!(report.failed.len(), 1);
        assert_eq!(report.failed[0].name, "/pull/blob-get");
    }

    #[test]
    fn a_suite_that_ended_early_is_an_error() {
        assert!(Report::parse("full", "failed to load config").is_err());
    }

    fn parse(case: &str, failed: u32, skipped: u32) -> Report {
        let text = format!(
            "Test results\nOCI Conformance Test: FAIL\n  OCI Conformance Test{case}\n\nConfiguration:\n  registry: r\n\n\
             OCI Conformance Result: FAIL\n  Disabled....: 0\n  Skip....: {skipped}\n  Pass....: 1\n  FAIL....: {failed}\n\
             \x20 Error....: 0\n"
        );
        Report::parse("full", &text).unwrap()
    }
}
