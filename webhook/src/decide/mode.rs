//! Mode of a pod: whether it asks for acceleration, by its own label or else by its namespace's.
//!
//! Invariant: a value that is not known accelerates nothing.

use serde_json::{Map, Value};

/// The label's names, the neutral one first: where both are there, it counts.
pub const LABELS: [&str; 2] = ["piecemeal.dev/mode", "k8s.aliyun.com/image-accelerate-mode"];
/// The value that asks for acceleration.
pub const P2P: &str = "p2p";
/// The value that declines it, for a pod in a namespace that asks.
pub(crate) const DISABLED: &str = "disabled";

/// The label that asks for acceleration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModeLabel {
    /// One of [`LABELS`].
    pub name: &'static str,
    /// Whether the pod has it itself; if not, its namespace has it.
    pub is_on_pod: bool,
}

/// The meaning of a pod's labels and its namespace's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Accelerate(ModeLabel),
    Disabled,
    /// A value that only other software gives a meaning to, such as the vendor's `on-demand`.
    Unknown(String),
    Unlabelled,
}

impl Mode {
    /// The pod's own label wins over its namespace's.
    pub(crate) fn of(pod_labels: Option<&Map<String, Value>>, namespace_labels: Option<&Map<String, Value>>) -> Self {
        let labels = [(pod_labels, true), (namespace_labels, false)];
        let mut said = labels.into_iter().flat_map(|(labels, is_on_pod)| {
            LABELS.iter().filter_map(move |label| {
                let value = labels?.get(*label)?.as_str()?;
                Some((ModeLabel { name: label, is_on_pod }, value))
            })
        });
        match said.next() {
            None => Self::Unlabelled,
            Some((asked, P2P)) => Self::Accelerate(asked),
            Some((_, DISABLED)) => Self::Disabled,
            Some((_, value)) => Self::Unknown(value.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NEUTRAL: &str = LABELS[0];
    const ALIAS: &str = LABELS[1];

    fn mode(pod: Value, namespace: Value) -> Mode {
        Mode::of(pod.as_object(), namespace.as_object())
    }

    fn asked(name: &'static str, is_on_pod: bool) -> Mode {
        Mode::Accelerate(ModeLabel { name, is_on_pod })
    }

    #[test]
    fn the_pod_s_own_label_wins() {
        let cases = [
            (json!({}), json!({}), Mode::Unlabelled),
            (Value::Null, Value::Null, Mode::Unlabelled),
            (json!({ALIAS: "p2p"}), json!({}), asked(ALIAS, true)),
            (json!({}), json!({ALIAS: "p2p"}), asked(ALIAS, false)),
            (json!({NEUTRAL: "p2p"}), json!({ALIAS: "p2p"}), asked(NEUTRAL, true)),
            (json!({ALIAS: "disabled"}), json!({NEUTRAL: "p2p"}), Mode::Disabled),
            (json!({ALIAS: "p2p"}), json!({NEUTRAL: "disabled"}), asked(ALIAS, true)),
            (json!({NEUTRAL: "disabled", ALIAS: "p2p"}), json!({}), Mode::Disabled),
            (
                json!({ALIAS: "on-demand"}),
                json!({ALIAS: "p2p"}),
                Mode::Unknown("on-demand".to_owned()),
            ),
            (json!({ALIAS: 7}), json!({}), Mode::Unlabelled),
        ];
        for (pod, namespace, expected) in cases {
            assert_eq!(mode(pod.clone(), namespace.clone()), expected, "{pod} {namespace}");
        }
    }
}
