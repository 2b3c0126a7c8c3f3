//! Failure that the site's mirror answers a node with, in the mirror's own words.
//!
//! Invariant: an error names the mirror as the one that said it, has one line of bounded length, and waits for no body for long.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde::Deserialize;

use crate::PullError;
use crate::answer::read_body;

/// The longest wait for the words, which the mirror sends together with the status line.
const WORDS_WAIT: Duration = Duration::from_secs(1);
const BODY_BYTES_MAX: usize = 16 * 1024;
/// The longest text that is passed on.
const WORDS_CHARS_MAX: usize = 400;

/// An OCI error body. Source: OCI distribution-spec, "Error Codes".
#[derive(Deserialize)]
struct Body {
    errors: Vec<OciError>,
}

#[derive(Deserialize)]
struct OciError {
    message: Option<String>,
}

/// Whether the answer is a failure of the mirror's, or of what it reports, and not a verdict.
pub(crate) fn is_failure(response: &Response) -> bool {
    response.status().is_server_error()
}

/// The error for an answer that is a failure.
pub(crate) async fn failure(response: Response) -> PullError {
    let status = response.status();
    let body = tokio::time::timeout(WORDS_WAIT, read_body(response, BODY_BYTES_MAX)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    PullError::Unavailable(mirror_said(status, &body))
}

/// The mirror's failure as the error of a node. `body`: of the answer.
pub fn mirror_said(status: StatusCode, body: &[u8]) -> String {
    match words(body) {
        Some(words) => format!("the mirror answered {}: {words}", status.as_u16()),
        None => format!("the mirror answered {status}"),
    }
}

/// The first message of an OCI error body; of any other body none, since a proxy's page says nothing to a reader of logs.
fn words(body: &[u8]) -> Option<String> {
    let body: Body = serde_json::from_slice(body).ok()?;
    let message = body.errors.into_iter().find_map(|error| error.message)?;
    let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = line.trim();
    (!line.is_empty()).then(|| line.chars().take(WORDS_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(body: &str) -> String {
        mirror_said(StatusCode::SERVICE_UNAVAILABLE, body.as_bytes())
    }

    #[test]
    fn the_mirrors_own_reason_is_passed_on_under_its_name() {
        for reason in [
            "docker.io does not answer: failed to lookup address information",
            "docker.io does not answer: Connection refused (os error 111)",
            "docker.io does not answer: invalid peer certificate: UnknownIssuer",
            "the content store failed: No space left on device",
        ] {
            let body = format!(r#"{{"errors":[{{"code":"UNAVAILABLE","detail":null,"message":"{reason}"}}]}}"#);
            assert_eq!(said(&body), format!("the mirror answered 503: {reason}"));
        }
    }

    #[test]
    fn of_a_body_that_is_no_oci_error_nothing_is_repeated() {
        for body in [
            "",
            "<html>secret</html>",
            "{}",
            r#"{"errors":[]}"#,
            r#"{"errors":[{"code":"X"}]}"#,
            r#"{"errors":[{"message":" \n "}]}"#,
        ] {
            assert_eq!(said(body), "the mirror answered 503 Service Unavailable", "{body}");
        }
    }

    #[test]
    fn the_words_are_one_line_of_bounded_length() {
        let body = format!(r#"{{"errors":[{{"message":"a\nb\u001b[0m{}"}}]}}"#, "c".repeat(9999));
        let said = said(&body);
        assert!(
            said.len() < WORDS_CHARS_MAX + 40 && !said.contains(char::is_control),
            "{said}"
        );
    }
}
