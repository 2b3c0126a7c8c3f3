//! Every kind of message that version 1 has ever sent, byte for byte: what was written then must be read now, and written
//! back without loss. New kinds are added with `PIECEMEAL_BLESS=1`; a recorded file is never written over.

use std::{fs, path::PathBuf};

use piecemeal_proto::wire::{
    Address, Cancel, Challenge, Complete, Describe, HashAlgorithm, Have, Hello, Inventory, Lease, LeaseEnded, Lost,
    Order, Orders, Outcome, Proven, Refused, Report, Reports, Revoke, Revoked, Role, Source, SourceKind, Unwant,
    Waiting, Want, WantRefused, Warm, Welcome, order, report,
};
use prost::Message;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn digest() -> String {
    DIGEST.to_owned()
}

fn address() -> Address {
    Address {
        ip: "10.88.1.1".to_owned(),
        port: 65002,
    }
}

fn warm() -> Warm {
    Warm {
        upstream: "docker.io".to_owned(),
        repository: "library/alpine".to_owned(),
        tag: "3.20".to_owned(),
        manifests: vec![digest()],
        blobs: vec![digest(), digest()],
    }
}

fn reports() -> Vec<(&'static str, report::Report)> {
    use report::Report as R;
    vec![
        (
            "hello",
            R::Hello(Hello {
                version_min: 1,
                version_max: 1,
                features: vec!["a".to_owned()],
                role: Role::Peer.into(),
                node: vec![7; 16],
                incarnation: 1 << 50,
                pool: "site-a".to_owned(),
                zone: "rack-1".to_owned(),
                addresses: vec![address()],
                piece_port: 65002,
                proof: vec![9; 32],
                may_use_upstream: true,
            }),
        ),
        (
            "want",
            R::Want(Want {
                digest: digest(),
                grant: b"grant".to_vec(),
                fill: u64::MAX,
                blob_bytes: 1 << 40,
                piece_bytes: 1 << 22,
                have: vec![0xff, 1],
                ..Want::default()
            }),
        ),
        (
            "want_of_a_window",
            R::Want(Want {
                digest: digest(),
                grant: b"grant".to_vec(),
                fill: 3,
                blob_bytes: 1 << 40,
                piece_bytes: 1 << 22,
                have: Vec::new(),
                window_first: 7,
                window_count: 8,
            }),
        ),
        ("unwant", R::Unwant(Unwant { digest: digest() })),
        (
            "have",
            R::Have(Have {
                digest: digest(),
                fill: 3,
                blob_bytes: 1 << 20,
                piece_bytes: 1 << 18,
                first: 2,
                count: 1,
                hash_algorithm: HashAlgorithm::Sha256.into(),
                hashes: vec![5; 32],
            }),
        ),
        (
            "proven",
            R::Proven(Proven {
                digest: digest(),
                fill: 3,
            }),
        ),
        (
            "revoke",
            R::Revoke(Revoke {
                digest: digest(),
                fill: 3,
            }),
        ),
        (
            "lease_ended",
            R::LeaseEnded(LeaseEnded {
                lease: 4,
                outcome: Outcome::Corrupt.into(),
                piece: 8,
            }),
        ),
        (
            "waiting",
            R::Waiting(Waiting {
                digest: digest(),
                piece: 8,
            }),
        ),
        (
            "inventory",
            R::Inventory(Inventory {
                complete: vec![digest()],
                last: true,
            }),
        ),
        ("lost", R::Lost(Lost { digest: digest() })),
        ("complete", R::Complete(Complete { digest: digest() })),
        ("warm", R::Warm(warm())),
    ]
}

fn orders() -> Vec<(&'static str, order::Order)> {
    use order::Order as O;
    vec![
        (
            "challenge",
            O::Challenge(Challenge {
                nonce: vec![1; 32],
                version_min: 1,
                version_max: 1,
                features: vec!["a".to_owned()],
            }),
        ),
        (
            "welcome",
            O::Welcome(Welcome {
                version: 1,
                unix_seconds: 1_800_000_000,
                observed_ip: "10.88.1.1".to_owned(),
            }),
        ),
        (
            "refused",
            O::Refused(Refused {
                reason: "no".to_owned(),
            }),
        ),
        (
            "lease",
            O::Lease(Lease {
                lease: 4,
                digest: digest(),
                fill: 3,
                first: 2,
                count: 1,
                source: Some(Source {
                    kind: SourceKind::Mirror.into(),
                    node: vec![7; 16],
                    addresses: vec![address()],
                }),
                ticket: b"ticket".to_vec(),
                priority: 1,
                hash_algorithm: HashAlgorithm::Sha256.into(),
                hashes: vec![5; 32],
            }),
        ),
        ("cancel", O::Cancel(Cancel { lease: 4 })),
        (
            "revoked",
            O::Revoked(Revoked {
                digest: digest(),
                fill: 3,
            }),
        ),
        ("describe", O::Describe(Describe { digest: digest() })),
        (
            "want_refused",
            O::WantRefused(WantRefused {
                digest: digest(),
                reason: "old".to_owned(),
            }),
        ),
        ("warm_order", O::Warm(warm())),
    ]
}

fn check<M: Message + Default + PartialEq + std::fmt::Debug>(name: &str, message: &M) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden/v1")
        .join(format!("{name}.bin"));
    if std::env::var_os("PIECEMEAL_BLESS").is_some() && !file.exists() {
        fs::write(&file, message.encode_to_vec()).expect("the folder of recorded messages is there");
    }
    let recorded =
        fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}; record it with PIECEMEAL_BLESS=1", file.display()));
    let read = M::decode(&*recorded).expect("a recorded message");
    assert_eq!(&read, message, "{name} reads otherwise than it was written");
    assert_eq!(
        read.encode_to_vec(),
        recorded,
        "{name} is written otherwise than it was"
    );
}

#[test]
fn every_report_of_version_1_is_read_and_written_back_without_loss() {
    for (name, report) in reports() {
        check(
            name,
            &Reports {
                reports: vec![Report { report: Some(report) }],
            },
        );
    }
}

#[test]
fn every_order_of_version_1_is_read_and_written_back_without_loss() {
    for (name, order) in orders() {
        check(
            name,
            &Orders {
                orders: vec![Order { order: Some(order) }],
            },
        );
    }
}

#[test]
fn what_a_later_version_adds_is_ignored() {
    let mut bytes = Complete { digest: digest() }.encode_to_vec();
    // Field 99, a varint.
    bytes.extend([0x98, 0x06, 0x2a]);
    assert_eq!(Complete::decode(&*bytes).expect("a known field").digest, DIGEST);
}
