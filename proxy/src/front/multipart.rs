//! Body of an answer with a part of a blob or several: what is sent, in order. Source of `multipart/byteranges`: RFC 9110, section 14.6.
//!
//! The boundary of several parts is the blob's digest, which no blob contains.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;
use piecemeal_proto::Digest;
use piecemeal_store::ReadRange;

/// The media type of a blob's bytes.
pub(super) const OCTETS: &str = "application/octet-stream";
/// The most characters of a boundary that are taken from a digest. Source: RFC 2046, section 5.1.1 (70 at the most).
const BOUNDARY_CHARS_MAX: usize = 64;

/// Part of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// What stands between the parts.
    Text(Bytes),
    /// Bytes of the blob.
    Blob(ReadRange),
}

/// The sections of a body, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sections(VecDeque<Section>);

impl Sections {
    /// The body of one range as it is, of several with what stands between them.
    pub(super) fn of(mut ranges: Vec<ReadRange>, digest: &Digest, blob_bytes: u64) -> Self {
        match ranges.len() {
            1 => Self(VecDeque::from([Section::Blob(ranges.remove(0))])),
            _ => Self::multipart(ranges, digest, blob_bytes),
        }
    }

    fn multipart(ranges: Vec<ReadRange>, digest: &Digest, blob_bytes: u64) -> Self {
        let boundary = boundary(digest);
        let mut sections = VecDeque::new();
        let mut before = "";
        for range in ranges {
            let stated = content_range(&range.bytes, blob_bytes);
            let head = format!("{before}--{boundary}\r\nContent-Type: {OCTETS}\r\nContent-Range: {stated}\r\n\r\n");
            sections.extend([Section::Text(head.into()), Section::Blob(range)]);
            before = "\r\n";
        }
        sections.push_back(Section::Text(format!("\r\n--{boundary}--\r\n").into()));
        Self(sections)
    }

    /// The bytes of the blob, when they are one range.
    pub(super) fn only(&self) -> Option<&Range<u64>> {
        match self.0.front() {
            Some(Section::Blob(range)) => Some(&range.bytes),
            _ => None,
        }
    }

    /// The length of the body.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = self.0.iter().map(|section| match section {
            Section::Text(text) => text.len() as u64,
            Section::Blob(range) => range.bytes.end - range.bytes.start,
        });
        bytes.sum()
    }

    /// The section that is sent next: a text as a whole, of the blob what is left of the range. `None`: that was all.
    pub(super) fn next(&mut self) -> Option<Section> {
        match self.0.pop_front()? {
            Section::Blob(range) if range.bytes.is_empty() => self.next(),
            section => Some(section),
        }
    }

    /// The rest of a range, of which the beginning was sent, is next.
    pub(super) fn put_back(&mut self, rest: ReadRange) {
        self.0.push_front(Section::Blob(rest));
    }
}

/// The media type of several parts.
pub(super) fn content_type(digest: &Digest) -> String {
    format!("multipart/byteranges; boundary={}", boundary(digest))
}

/// The value of `Content-Range` for bytes of a blob, never none.
pub(super) fn content_range(bytes: &Range<u64>, blob_bytes: u64) -> String {
    format!("bytes {}-{}/{blob_bytes}", bytes.start, bytes.end - 1)
}

fn boundary(digest: &Digest) -> String {
    let mut boundary = digest.hex();
    boundary.truncate(BOUNDARY_CHARS_MAX);
    boundary
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body that is sent of a blob, in steps of so many bytes.
    fn sent(mut sections: Sections, blob: &[u8], step: u64) -> Vec<u8> {
        let mut body = Vec::new();
        while let Some(section) = sections.next() {
            match section {
                Section::Text(text) => body.extend_from_slice(&text),
                Section::Blob(mut range) => {
                    let end = range.bytes.end.min(range.bytes.start + step);
                    let bytes = usize::try_from(range.bytes.start).unwrap()..usize::try_from(end).unwrap();
                    body.extend_from_slice(&blob[bytes]);
                    range.bytes.start = end;
                    sections.put_back(range);
                }
            }
        }
        body
    }

    #[test]
    fn several_parts_are_sent_as_the_specification_has_it_in_steps_of_any_size() {
        let blob = b"0123456789";
        let digest = Digest::of(blob);
        let hex = digest.hex();
        let head = |range: &str| {
            format!("--{hex}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {range}/10\r\n\r\n")
        };
        let expected = format!("{}789\r\n{}01\r\n--{hex}--\r\n", head("7-9"), head("0-1"));
        for step in 1..5 {
            let sections = Sections::of(vec![(7..10).into(), (0..2).into()], &digest, 10);
            assert_eq!(sections.bytes(), expected.len() as u64);
            assert_eq!(sent(sections, blob, step), expected.as_bytes());
        }
        assert_eq!(content_type(&digest), format!("multipart/byteranges; boundary={hex}"));
    }

    #[test]
    fn one_part_and_nothing_are_sent_without_anything_around_them() {
        let digest = Digest::of(b"0123456789");
        let one = Sections::of(vec![(2..6).into()], &digest, 10);
        assert_eq!(one.only(), Some(&(2..6)));
        assert_eq!(sent(one, b"0123456789", 3), b"2345");
        let nothing = Sections::of(vec![(0..0).into()], &digest, 0);
        assert_eq!((nothing.bytes(), sent(nothing, b"", 1).len()), (0, 0));
    }

    #[test]
    fn a_boundary_is_not_too_long_and_only_of_the_digest() {
        let long: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
        assert_eq!(boundary(&long), "ab".repeat(32));
    }
}
