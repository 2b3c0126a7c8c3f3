//! Hello of this daemon: its statements about itself, and the proof and the signature over them.
//!
//! Invariant: the proof and the signature cover the challenge's nonce, so that an overheard hello is refused elsewhere.

use piecemeal_proto::wire::{self, VERSION, feature};

use super::SessionConfig;

/// The answer to `challenge`. It is signed, and states more, if the scheduler knows signatures.
pub(super) fn hello(config: &SessionConfig, challenge: &wire::Challenge) -> wire::Hello {
    let addresses = config.addresses.iter().map(|address| wire::Address {
        ip: address.ip().to_string(),
        port: address.port().into(),
    });
    let mut hello = wire::Hello {
        version_min: VERSION,
        version_max: VERSION,
        features: FEATURES.map(str::to_owned).to_vec(),
        role: config.role.into(),
        node: config.node_key.id().0.to_vec(),
        incarnation: config.incarnation,
        pool: config.pool.clone(),
        zone: config.zone.clone(),
        addresses: addresses.collect(),
        piece_port: config.piece_port.into(),
        proof: Vec::new(),
        may_use_upstream: config.may_use_upstream,
        ..wire::Hello::default()
    };
    hello.proof = config.role_key.prove(&hello.claim(&challenge.nonce)).to_vec();
    let mut features = challenge.features.iter();
    if features.any(|stated| stated == feature::SIGNED_IDENTITY) {
        hello.sign(&config.node_key, &challenge.nonce);
        hello.host_name.clone_from(&config.host_name);
        env!("CARGO_PKG_VERSION").clone_into(&mut hello.release);
        hello.rates = config.limiter.rate().map(|total| wire::Rates {
            total,
            ..wire::Rates::default()
        });
    }
    hello
}

/// The optional features of the protocol that this daemon supports.
const FEATURES: [&str; 4] = [
    feature::SIGNED_IDENTITY,
    feature::PIECE_HASHES,
    feature::DROP,
    feature::CLIENT_STATE,
];
