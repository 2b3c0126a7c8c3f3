//! Pull secrets that a pod names, as far as they can be used.
//!
//! Invariant: a secret that cannot be used says whether the original image may still be pulled with it.

use serde_json::Value;

use super::keyring::Keyring;

/// A pull secret that the pod names, as far as it can be used.
#[derive(Clone, Debug)]
pub(crate) struct PullSecret {
    pub name: String,
    pub found: Result<(Value, Keyring), Unusable>,
}

/// Why a pull secret cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// It would be of no use to the original image either.
    Never(String),
    /// The original image may still be pulled with it: the secret may be created later, or the kubelet may read it where the webhook
    /// may not.
    Perhaps(String),
}

impl Unusable {
    pub(crate) fn why(&self) -> &str {
        match self {
            Self::Never(why) | Self::Perhaps(why) => why,
        }
    }
}

/// The names in a list of references.
pub(crate) fn names(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|secret| secret["name"].as_str().map(ToOwned::to_owned))
        .collect()
}
