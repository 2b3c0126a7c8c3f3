//! Fuzz targets: properties that hold for all input bytes, and a test of every input that a fuzzer has found worth keeping.

use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use url::{Host, Url};

use crate::{
    challenge::{Bearer, Challenge, challenges},
    home::is_home,
};

/// Challenges, after the registry's URL on a line of its own and each further field on one, are read as they would be written, also
/// when what was read is read again, and no password goes to another site.
pub fn challenge(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (registry, fields) = text.split_once('\n').unwrap_or(("https://registry-1.docker.io", text));
    let all = challenges(&sent(fields.split('\n')));
    assert_eq!(challenges(&sent(all.iter().map(|challenge| &*challenge.text))), all);
    let Some(challenge) = all.iter().find_map(Challenge::bearer) else {
        return;
    };
    let quoted = |name: &str, value: &Option<String>| {
        let value = value.as_ref()?.replace('\\', "\\\\").replace('"', "\\\"");
        Some(format!("{name}=\"{value}\""))
    };
    let fields = [
        quoted("realm", &Some(challenge.realm.clone())),
        quoted("service", &challenge.service),
        quoted("scope", &challenge.scope),
    ];
    let fields: Vec<String> = fields.into_iter().flatten().collect();
    let written = format!("Bearer {}", fields.join(","));
    let read: Vec<Bearer> = challenges(&sent([written.as_str()]))
        .iter()
        .filter_map(Challenge::bearer)
        .collect();
    // With more escapes it may be too long to be kept.
    assert!(read.is_empty() || read == [challenge.clone()], "{written}");
    asks_near(&challenge, registry);
}

fn sent<'a>(fields: impl IntoIterator<Item = &'a str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let fields = fields
        .into_iter()
        .filter_map(|field| HeaderValue::from_bytes(field.as_bytes()).ok());
    fields.for_each(|field| {
        headers.append(WWW_AUTHENTICATE, field);
    });
    headers
}

fn asks_near(challenge: &Bearer, registry: &str) {
    let Ok(registry) = Url::parse(registry) else { return };
    let Some(token) = challenge.token_url(&registry, "repository:a:pull") else {
        return;
    };
    assert!(matches!(token.scheme(), "http" | "https"), "{token}");
    assert!(
        token.scheme() == "https" || registry.scheme() == "http",
        "{token} in the clear"
    );
    let scopes = token.query_pairs().filter(|(key, value)| {
        let wanted = challenge.scope.as_deref().unwrap_or("repository:a:pull");
        key == "scope" && value == wanted
    });
    let asks_for_none = challenge.scope.as_deref() == Some("");
    assert!(asks_for_none || scopes.count() >= 1, "{token} asks for nothing");
    assert!(token.username().is_empty() && token.password().is_none(), "{token}");
    assert!(
        !is_home(&token, &registry, &[]) || is_near(&token, &registry),
        "{registry}'s password would go to {token}"
    );
}

/// Whether the hosts are the same, or have their last two labels in common.
fn is_near(a: &Url, b: &Url) -> bool {
    let labels = |url: &Url| match url.host() {
        Some(Host::Domain(domain)) => {
            let labels: Vec<String> = domain.trim_end_matches('.').rsplit('.').map(str::to_owned).collect();
            Some(labels)
        }
        _ => None,
    };
    if a.host() == b.host() {
        return a.host().is_some();
    }
    match (labels(a), labels(b)) {
        (Some(a), Some(b)) => a == b || (a.len() >= 2 && b.len() >= 2 && a[..2] == b[..2]),
        _ => false,
    }
}

#[cfg(test)]
#[path = "../../fuzz/kept.rs"]
mod kept;

#[cfg(test)]
mod tests {
    use super::kept::kept;

    #[test]
    fn whatever_the_fuzzer_has_kept_holds() {
        kept("challenge").iter().for_each(|input| super::challenge(input));
    }
}
