//! Every kind of message that was ever sent, byte for byte: what was written then must be read now, and written back without
//! loss. `v1` has what every version reads, `v2` what belongs to a feature. New kinds are added with `PIECEMEAL_BLESS=1`; a
//! recorded file is never written over.

use std::{fs, path::PathBuf};

use piecemeal_proto::wire::{
    Address, Cancel, Challenge, ClientState, Clients, Complete, Describe, Drop, HashAlgorithm, Have, Hello, Inventory,
    Lease, LeaseEnded, Lost, Order, Orders, Outcome, PieceHashes, PieceRange, Proven, Rates, Refused, Report, Reports,
    Revoke, Revoked, Role, Source, SourceKind, Unwant, Waiting, Want, WantAccepted, WantRefused, Warm, Welcome,
    feature, order, report,
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
                ..Hello::default()
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
                ..Want::default()
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
                ..Welcome::default()
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
                ..Lease::default()
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

fn features() -> Vec<String> {
    let features = [
        feature::SIGNED_IDENTITY,
        feature::PIECE_HASHES,
        feature::DROP,
        feature::CLIENT_STATE,
        feature::LEASE_SET,
        feature::WANT_ACCEPTED,
        feature::LEADER,
    ];
    features.map(str::to_owned).to_vec()
}

fn piece_hashes() -> PieceHashes {
    PieceHashes {
        digest: digest(),
        blob_bytes: 1 << 20,
        piece_bytes: 1 << 19,
        hash_algorithm: HashAlgorithm::Sha256.into(),
        hashes: vec![5; 64],
        signature: vec![6; 64],
    }
}

fn reports_with_features() -> Vec<(&'static str, report::Report)> {
    use report::Report as R;
    vec![
        (
            "hello",
            R::Hello(Hello {
                version_min: 1,
                version_max: 1,
                features: features(),
                role: Role::Peer.into(),
                node: vec![7; 16],
                incarnation: 1 << 50,
                pool: "site-a".to_owned(),
                zone: "rack-1".to_owned(),
                addresses: vec![address()],
                piece_port: 65002,
                proof: vec![9; 32],
                may_use_upstream: true,
                public_key: vec![8; 32],
                signature: vec![6; 64],
                host_name: "edge-17".to_owned(),
                release: "0.2.0".to_owned(),
                rates: Some(Rates {
                    upload: 125_000_000,
                    download: 125_000_000,
                    total: 5_000_000,
                }),
            }),
        ),
        (
            "want",
            R::Want(Want {
                digest: digest(),
                grant: b"grant".to_vec(),
                fill: 3,
                blob_bytes: 1 << 40,
                piece_bytes: 1 << 22,
                have: vec![0xff, 1],
                window_first: 7,
                window_count: 8,
                client: ClientState::Absent.into(),
                leader: vec![4; 16],
            }),
        ),
        ("piece_hashes", R::PieceHashes(piece_hashes())),
    ]
}

fn orders_with_features() -> Vec<(&'static str, order::Order)> {
    use order::Order as O;
    vec![
        (
            "challenge",
            O::Challenge(Challenge {
                nonce: vec![1; 32],
                version_min: 1,
                version_max: 1,
                features: features(),
            }),
        ),
        (
            "welcome",
            O::Welcome(Welcome {
                version: 1,
                unix_seconds: 1_800_000_000,
                observed_ip: "10.88.1.1".to_owned(),
                scheduler: vec![4; 16],
            }),
        ),
        (
            "lease_of_a_set",
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
                pieces: vec![PieceRange { first: 2, count: 1 }, PieceRange { first: 9, count: 4 }],
                ..Lease::default()
            }),
        ),
        ("piece_hashes_order", O::PieceHashes(piece_hashes())),
        (
            "drop",
            O::Drop(Drop {
                digest: digest(),
                fill: 3,
                pieces: vec![PieceRange { first: 2, count: 1 }],
            }),
        ),
        (
            "clients",
            O::Clients(Clients {
                digest: digest(),
                client: ClientState::Connected.into(),
                waiting: vec![40, 41, 1 << 19],
            }),
        ),
        (
            "want_accepted",
            O::WantAccepted(WantAccepted {
                digest: digest(),
                fill: 3,
                ticket: b"ticket".to_vec(),
                leader: vec![4; 16],
            }),
        ),
    ]
}

fn check<M: Message + Default + PartialEq + std::fmt::Debug>(folder: &str, name: &str, message: &M) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(folder)
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

fn check_reports(folder: &str, reports: Vec<(&str, report::Report)>) {
    for (name, report) in reports {
        let reports = vec![Report { report: Some(report) }];
        check(folder, name, &Reports { reports });
    }
}

fn check_orders(folder: &str, orders: Vec<(&str, order::Order)>) {
    for (name, order) in orders {
        let orders = vec![Order { order: Some(order) }];
        check(folder, name, &Orders { orders });
    }
}

#[test]
fn every_report_of_version_1_is_read_and_written_back_without_loss() {
    check_reports("v1", reports());
}

#[test]
fn every_order_of_version_1_is_read_and_written_back_without_loss() {
    check_orders("v1", orders());
}

#[test]
fn every_report_of_a_feature_is_read_and_written_back_without_loss() {
    check_reports("v2", reports_with_features());
}

#[test]
fn every_order_of_a_feature_is_read_and_written_back_without_loss() {
    check_orders("v2", orders_with_features());
}

#[test]
fn what_a_later_version_adds_is_ignored() {
    let mut bytes = Complete { digest: digest() }.encode_to_vec();
    // Field 99, a varint.
    bytes.extend([0x98, 0x06, 0x2a]);
    assert_eq!(Complete::decode(&*bytes).expect("a known field").digest, DIGEST);
}
