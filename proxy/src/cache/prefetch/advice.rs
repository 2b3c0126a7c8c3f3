//! Advice to the administrator beside the error of a pull.

use piecemeal_upstream::PullError;

/// What is wrong, and what to do about it where that is known.
pub(super) fn advice(error: &PullError) -> String {
    match error {
        PullError::Denied { .. } => format!(
            "{error} to a request without a credential: the image does not exist, or is private. Give the mirror a credential of its own \
             (--credentials), or pull it on a node whose client has one"
        ),
        PullError::Withheld(_) => {
            format!("{error}; a credential is sent over https only, unless --allow-plain-credentials is set")
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_needs_a_credential_is_told_what_to_do() {
        let denied = PullError::Denied {
            upstream: "ghcr.io".to_owned(),
            status: 401,
            challenges: Vec::new(),
        };
        let text = advice(&denied);
        assert!(
            text.starts_with("ghcr.io answered 401") && text.contains("--credentials"),
            "{text}"
        );
    }
}
