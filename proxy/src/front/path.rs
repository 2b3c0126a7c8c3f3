//! Path of a request, decoded.
//!
//! It is decoded exactly once, and the decoded text is what is judged: an escape has no meaning of its own.

/// The text after `/v2/`; empty for that itself.
pub(super) fn below_v2(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2")?;
    if rest.is_empty() {
        Some(rest)
    } else {
        rest.strip_prefix('/')
    }
}

/// The path with each escape replaced by its byte, once.
pub(super) fn decoded(path: &str) -> Option<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = path.bytes();
    let mut decoded = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => digit(bytes.next()?)? << 4 | digit(bytes.next()?)?,
            _ => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escape_is_its_byte_and_is_not_read_again() {
        for (path, text) in [
            ("/v2/a%2Fb", Some("/v2/a/b")),
            ("%41%zz", None),
            ("%252F", Some("%2F")),
            ("%C3%BC", Some("\u{fc}")),
            ("%C3", None),
            ("%", None),
            ("%4", None),
            ("", Some("")),
        ] {
            assert_eq!(decoded(path).as_deref(), text, "{path}");
        }
    }

    #[test]
    fn only_what_begins_with_v2_and_a_slash_is_below_it() {
        for (path, rest) in [
            ("/v2", Some("")),
            ("/v2/", Some("")),
            ("/v2/a", Some("a")),
            ("/v2//a", Some("/a")),
            ("//v2/a", None),
            ("/v2a", None),
            ("/", None),
        ] {
            assert_eq!(below_v2(path), rest, "{path}");
        }
    }
}
