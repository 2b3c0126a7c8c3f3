//! Signed manifests: Docker's image manifest, schema 1, with its signatures in the same JSON object.
//!
//! The digest of such a manifest is that of its payload, the bytes without the signatures. Invariant: bytes count as a signed form
//! of a payload only if nothing but signatures was added to it. The signatures themselves are not verified: the digest is what a
//! client asks for.
//! Source: libtrust, `ParsePrettySignature`; Docker, "Image Manifest V 2, Schema 1".

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, de::IgnoredAny};

use crate::Digest;

impl Digest {
    /// The canonical digest of a manifest's bytes.
    pub fn of_manifest(bytes: &[u8]) -> Self {
        match payload(bytes) {
            Some(payload) => Self::of(&payload),
            None => Self::of(bytes),
        }
    }

    /// Whether a manifest with these bytes has this digest.
    pub fn matches_manifest(&self, bytes: &[u8]) -> bool {
        self.matches(bytes) || payload(bytes).is_some_and(|payload| self.matches(&payload))
    }
}

#[derive(Deserialize)]
struct Signed {
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    protected: String,
}

/// What every signature says of the payload: its first bytes, which stand before the signatures, and the rest, which stands after them.
#[derive(PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Protected {
    format_length: usize,
    format_tail: String,
}

/// The bytes that the signatures of a manifest are for; `None` for one that is not signed, or not as libtrust does.
fn payload(bytes: &[u8]) -> Option<Vec<u8>> {
    let signed: Signed = serde_json::from_slice(bytes).ok()?;
    let protected: Vec<Protected> = signed.signatures.iter().map(Signature::read).collect::<Option<_>>()?;
    let first = protected.first()?;
    if protected.iter().any(|other| other != first) {
        return None;
    }
    let tail = decode(&first.format_tail)?;
    let (head, rest) = bytes.split_at_checked(first.format_length)?;
    if !is_signatures(rest.strip_suffix(&*tail)?) {
        return None;
    }
    let payload = [head, &tail].concat();
    serde_json::from_slice::<IgnoredAny>(&payload)
        .is_ok()
        .then_some(payload)
}

impl Signature {
    fn read(&self) -> Option<Protected> {
        serde_json::from_slice(&decode(&self.protected)?).ok()
    }
}

/// Whether it is one more member of an object, whose name is `signatures`.
fn is_signatures(between: &[u8]) -> bool {
    let strip = |bytes: &'_ [u8], prefix: &str| {
        bytes
            .trim_ascii_start()
            .strip_prefix(prefix.as_bytes())
            .map(<[u8]>::to_vec)
    };
    let member = strip(between, ",").and_then(|rest| strip(&rest, "\"signatures\""));
    let value = member.and_then(|rest| strip(&rest, ":"));
    value.is_some_and(|value| serde_json::from_slice::<Vec<IgnoredAny>>(&value).is_ok())
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: &str = "{\n   \"schemaVersion\": 1,\n   \"name\": \"a\",\n   \"fsLayers\": []\n}";

    /// As libtrust writes it: the payload up to its last newline, the signatures, and the rest of the payload.
    fn signed(protected: &[String], between: &str) -> String {
        let signatures: Vec<String> = protected
            .iter()
            .map(|protected| format!(r#"{{"header":{{"alg":"ES256"}},"signature":"x","protected":"{protected}"}}"#))
            .collect();
        let (head, tail) = PAYLOAD.split_at(PAYLOAD.len() - 2);
        format!("{head}{between},\n   \"signatures\": [{}]{tail}", signatures.join(","))
    }

    fn protected(length: usize, tail: &str) -> String {
        let tail = URL_SAFE_NO_PAD.encode(tail);
        URL_SAFE_NO_PAD.encode(format!(
            r#"{{"formatLength":{length},"formatTail":"{tail}","time":"2020-01-01T00:00:00Z"}}"#
        ))
    }

    #[test]
    fn the_digest_of_a_signed_manifest_is_that_of_its_payload() {
        let right = protected(PAYLOAD.len() - 2, "\n}");
        for signatures in [vec![right.clone()], vec![right.clone(), right.clone()]] {
            let text = signed(&signatures, "");
            assert_eq!(
                Digest::of_manifest(text.as_bytes()),
                Digest::of(PAYLOAD.as_bytes()),
                "{text}"
            );
            assert!(Digest::of(PAYLOAD.as_bytes()).matches_manifest(text.as_bytes()));
            // As the file that it is in a blob store.
            assert!(Digest::of(text.as_bytes()).matches_manifest(text.as_bytes()));
        }
    }

    #[test]
    fn what_was_added_beside_signatures_makes_it_another_manifest() {
        let length = PAYLOAD.len() - 2;
        let right = protected(length, "\n}");
        let rogue = [
            signed(std::slice::from_ref(&right), ",\"fsLayers\": [{\"blobSum\": \"x\"}]"),
            signed(&[right.clone(), protected(length - 1, "\n}")], ""),
            signed(&[protected(length, "}")], ""),
            signed(&[protected(usize::MAX, "\n}")], ""),
            signed(&[protected(0, "\n}")], ""),
            signed(&["!".to_owned()], ""),
            signed(&[], ""),
        ];
        for text in rogue {
            assert!(
                !Digest::of(PAYLOAD.as_bytes()).matches_manifest(text.as_bytes()),
                "{text}"
            );
        }
    }

    #[test]
    fn an_unsigned_manifest_has_the_digest_of_its_bytes() {
        for text in [
            PAYLOAD,
            "",
            "{}",
            "[]",
            r#"{"signatures":null}"#,
            r#"{"signatures":[]}"#,
        ] {
            assert_eq!(
                Digest::of_manifest(text.as_bytes()),
                Digest::of(text.as_bytes()),
                "{text}"
            );
        }
    }
}
