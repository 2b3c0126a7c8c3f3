//! Fuzz targets: properties that hold for any input, and a test of the kept corpus.

use std::collections::BTreeSet;

use crate::{Digest, ImageReference, Manifest, PieceMap, PieceSet, Reference, RepositoryName, is_registry};

/// The parsers of names accept what the grammar allows and nothing else, and what they accept is written as it was read.
pub fn reference(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };

    let repository = text.parse::<RepositoryName>();
    assert_eq!(repository.is_ok(), is_repository(text), "repository {text:?}");
    assert!(repository.is_ok_and(|name| name.as_str() == text) || !is_repository(text));

    let reference = text.parse::<Reference>();
    assert_eq!(reference.is_ok(), is_tag(text) || is_digest(text), "reference {text:?}");
    if let Ok(reference) = reference {
        assert_eq!(reference.to_string(), text);
        assert_eq!(matches!(reference, Reference::Tag(_)), is_tag(text), "{text:?}");
    }

    assert_eq!(is_registry(text), is_host_and_port(text), "registry {text:?}");
    if let Ok(image) = text.parse::<ImageReference>() {
        assert!(is_host_and_port(&image.registry), "{image:?}");
        assert_eq!(image.to_string().parse(), Ok(image), "{text:?}");
    }
}

/// A manifest, after its media type on a line of its own, means the same however its JSON is written. Its digest is that of its
/// bytes, or of the payload that they sign.
pub fn manifest(input: &[u8]) {
    let (media_type, body) = split_line(input);
    let media_type = String::from_utf8_lossy(media_type);
    let manifest = Manifest::read(&media_type, body);
    assert!(Digest::of_manifest(body).matches_manifest(body));
    assert!(Digest::of(body).matches_manifest(body));
    let digests = digests_in(&manifest);
    // The body may be ambiguous, as by a key that comes twice.
    if manifest == Manifest::Unknown {
        return;
    }
    for digest in &digests {
        assert_eq!(digest.to_string().parse(), Ok(*digest));
    }
    // The ignored part may not be readable as a `Value`.
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) {
        let again = digests_in(&Manifest::read(&media_type, value.to_string().as_bytes()));
        // A descriptor may be ambiguous too, and is then left out of the first.
        assert!(
            digests.iter().all(|digest| again.contains(digest)),
            "{digests:?} {again:?}"
        );
    }
}

fn digests_in(manifest: &Manifest) -> Vec<Digest> {
    let descriptors = match manifest {
        Manifest::Image { blobs } => {
            assert!(!blobs.is_empty(), "an image has a blob");
            blobs
        }
        Manifest::Index { manifests } => manifests,
        Manifest::Unknown => return Vec::new(),
    };
    let inline = descriptors
        .iter()
        .filter_map(|descriptor| Some((descriptor.inline()?, descriptor.digest)));
    for (content, digest) in inline {
        assert!(digest.matches(&content));
    }
    descriptors.iter().map(|descriptor| descriptor.digest).collect()
}

/// Pieces tile a blob of any size in pieces of any size, and a set of pieces is a set.
///
/// The input: blob size and piece size, 8 bytes each, a piece's index and a set's capacity, 4 and 2 bytes, all little endian.
/// The rest is a bitmap, and then, two bytes each, pieces to be put in or taken out.
pub fn piece_map(input: &[u8]) {
    let Some((numbers, rest)) = input.split_at_checked(22) else {
        return;
    };
    let number = |from: usize, bytes: usize| {
        let (mut number, part) = ([0; 8], &numbers[from..from + bytes]);
        number[..bytes].copy_from_slice(part);
        u64::from_le_bytes(number)
    };
    let (blob_bytes, piece_bytes) = (number(0, 8), number(8, 8));
    let index = u32::try_from(number(16, 4)).expect("four bytes");
    let capacity = u32::try_from(number(20, 2)).expect("two bytes");

    for map in [PieceMap::new(blob_bytes, piece_bytes), PieceMap::for_blob(blob_bytes)]
        .into_iter()
        .flatten()
    {
        check_tiling(&map, index);
        check_tiling(&map, index % map.count().max(1));
        check_tiling(&map, map.last().unwrap_or_default());
    }

    let (bitmap, pieces) = rest.split_at(rest.len().min(capacity.div_ceil(8) as usize));
    let padding = bitmap
        .last()
        .is_some_and(|last| capacity % 8 != 0 && last >> (capacity % 8) != 0);
    let fits = bitmap.len() == capacity.div_ceil(8) as usize && !padding;
    let read = PieceSet::from_bytes(capacity, bitmap);
    assert_eq!(read.is_some(), fits, "{capacity} {bitmap:?}");
    let mut set = read.unwrap_or_else(|| PieceSet::new(capacity));
    if fits {
        assert_eq!(set.to_bytes(), bitmap);
    }
    let mut model: BTreeSet<u32> = set.iter().collect();
    for piece in pieces
        .chunks_exact(2)
        .map(|piece| u32::from(u16::from_le_bytes([piece[0], piece[1]])))
    {
        if model.contains(&piece) {
            assert!(set.remove(piece) && model.remove(&piece));
        } else {
            assert_eq!(set.insert(piece), piece < capacity && model.insert(piece));
        }
    }
    assert!(set.iter().eq(model.iter().copied()));
    assert_eq!(set.count() as usize, model.len());
    assert!(set.missing().eq((0..capacity).filter(|piece| !model.contains(piece))));
    assert_eq!(
        (set.is_empty(), set.is_full()),
        (model.is_empty(), model.len() == capacity as usize)
    );
}

/// In numbers too wide to overflow.
fn check_tiling(map: &PieceMap, index: u32) {
    let [blob, piece, at] = [map.blob_bytes(), map.piece_bytes(), u64::from(index)].map(u128::from);
    let (start, end) = ((at * piece).min(blob), ((at + 1) * piece).min(blob));
    let range = map.range(index);
    assert_eq!(
        (u128::from(range.start), u128::from(range.end)),
        (start, end),
        "{map:?} {index}"
    );
    assert_eq!(u128::from(map.len(index)), end - start);
    assert_eq!(range.is_empty(), index >= map.count());
    if !range.is_empty() {
        assert_eq!(map.piece_at(range.start), Some(index));
        assert_eq!(map.piece_at(range.end - 1), Some(index));
    }
    assert_eq!(
        range.end == map.blob_bytes(),
        map.last().is_none_or(|last| index >= last)
    );
}

/// The text before the first line break, and the text after it.
fn split_line(input: &[u8]) -> (&[u8], &[u8]) {
    match input.iter().position(|&byte| byte == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (&[], input),
    }
}

/// The grammar once more, in other words: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`.
fn is_repository(text: &str) -> bool {
    let is_component = |mut rest: &str| loop {
        let word = rest.trim_start_matches(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit());
        if word.len() == rest.len() {
            return false;
        }
        rest = match word.as_bytes() {
            [] => return true,
            [b'_', b'_', ..] => &word[2..],
            [b'.' | b'_', ..] => &word[1..],
            [b'-', ..] => word.trim_start_matches('-'),
            _ => return false,
        };
    };
    text.len() <= 255 && text.split('/').all(is_component)
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
fn is_tag(text: &str) -> bool {
    const LETTERS: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.chars().all(|letter| LETTERS.contains(letter))
}

fn is_digest(text: &str) -> bool {
    let lengths = [("sha256:", 64), ("sha512:", 128)];
    lengths.iter().any(|(algorithm, length)| {
        let hex = text.strip_prefix(algorithm);
        hex.is_some_and(|hex| hex.len() == *length && hex.chars().all(|digit| "0123456789abcdef".contains(digit)))
    })
}

/// A DNS name, an IPv4 address or a bracketed IPv6 address; then a colon and a port, or nothing.
fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match (text.find(']'), text.find(':')) {
        (Some(end), _) if text.starts_with('[') => text.split_at(end + 1),
        (_, Some(colon)) => text.split_at(colon),
        _ => (text, ""),
    };
    let digits = port.strip_prefix(':').unwrap_or("1");
    let port_fits = (port.is_empty() || port.starts_with(':'))
        && !digits.is_empty()
        && digits.chars().all(|digit| digit.is_ascii_digit())
        && digits.trim_start_matches('0').len() <= 5
        && (1..=65535).contains(
            &digits
                .bytes()
                .fold(0_u64, |port, digit| (port * 10 + u64::from(digit - b'0')).min(1 << 20)),
        );
    let label_fits = |label: &str| {
        let inner = label
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '-');
        (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_fits = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.len() <= 253 && host.split('.').all(label_fits),
    };
    host_fits && port_fits
}

#[cfg(test)]
#[path = "../../fuzz/kept.rs"]
mod kept;

#[cfg(test)]
mod tests {
    use super::kept::kept;

    #[test]
    fn whatever_the_fuzzer_has_kept_holds() {
        kept("reference").iter().for_each(|input| super::reference(input));
        kept("manifest").iter().for_each(|input| super::manifest(input));
        kept("piece_map").iter().for_each(|input| super::piece_map(input));
    }
}
