//! Fuzz targets: properties that hold for any input, and a test of the kept corpus.

use url::{Host, Url};

use crate::{
    front::{Asked, asked},
    upstream::{Challenge, is_home},
};

/// A `Range` header, after the body's size in 8 bytes, means what RFC 9110 says, and never bytes that are not there.
pub fn range(input: &[u8]) {
    let Some((size, header)) = input.split_first_chunk() else {
        return;
    };
    let size = u64::from_le_bytes(*size);
    let Ok(header) = std::str::from_utf8(header) else {
        return;
    };
    let read = asked(Some(header), size);
    assert_eq!(read, expected(header.trim(), size), "{header:?} of {size}");
    if let Asked::Part(range) = read {
        assert!(
            range.start < range.end && range.end <= size,
            "{header:?} of {size}: {range:?}"
        );
        let (last, length) = (range.end - 1, size - range.start);
        let exactly = format!("bytes={}-{last}", range.start);
        assert_eq!(asked(Some(&exactly), size), Asked::Part(range.clone()));
        if range.end == size {
            assert_eq!(asked(Some(&format!("bytes=-{length}")), size), Asked::Part(range));
        }
    }
}

/// In numbers of any length.
fn expected(header: &str, size: u64) -> Asked {
    let Some(spec) = header.strip_prefix("bytes=") else {
        return Asked::Whole;
    };
    if spec.contains(',') {
        return Asked::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else {
        return Asked::Unsatisfiable;
    };
    if !(first.to_owned() + last).chars().all(|digit| digit.is_ascii_digit()) {
        return Asked::Unsatisfiable;
    }
    // Beyond 10^30 all numbers are alike: no body is as long.
    let number = |text: &str| -> Option<u128> {
        let digits = text.trim_start_matches('0');
        let number = if digits.len() > 30 {
            Ok(10_u128.pow(30))
        } else {
            format!("0{digits}").parse()
        };
        (!text.is_empty()).then(|| number.expect("thirty digits fit"))
    };
    // An order that shows at any length is one even where the numbers are beyond any body.
    let inverted = {
        let [first, last] = [first, last].map(|text| text.trim_start_matches('0'));
        (first.len(), first) > (last.len(), last)
    };
    let size_wide = u128::from(size);
    let (start, end) = match (number(first), number(last)) {
        (Some(_), Some(_)) if inverted => return Asked::Unsatisfiable,
        (Some(first), Some(last)) => (first, size_wide.min(last + 1)),
        (Some(first), None) => (first, size_wide),
        (None, Some(suffix)) => (size_wide.saturating_sub(suffix), size_wide),
        (None, None) => return Asked::Unsatisfiable,
    };
    match (u64::try_from(start), u64::try_from(end)) {
        (Ok(start), Ok(end)) if start < end => Asked::Part(start..end),
        _ => Asked::Unsatisfiable,
    }
}

/// A challenge, after the registry's URL on a line of its own, is read as it would be written, and no password goes to another site.
pub fn challenge(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (registry, header) = text.split_once('\n').unwrap_or(("https://registry-1.docker.io", text));
    let Some(challenge) = Challenge::parse(header) else {
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
    assert_eq!(Challenge::parse(&written), Some(challenge), "{written}");

    let challenge = Challenge::parse(header).expect("it was read before");
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
    assert!(scopes.count() >= 1, "{token} asks for nothing");
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
mod tests {
    use std::fs;

    #[test]
    fn whatever_the_fuzzer_has_kept_holds() {
        kept("range").iter().for_each(|input| super::range(input));
        kept("challenge").iter().for_each(|input| super::challenge(input));
    }

    fn kept(target: &str) -> Vec<Vec<u8>> {
        let folder = format!("{}/../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let kept: Vec<_> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
        assert!(!kept.is_empty(), "{folder} is empty");
        kept
    }
}
