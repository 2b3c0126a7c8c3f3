//! Reasons to leave a pod as it is.
//!
//! Invariant: each has a sentence for people and one word for machines, by which metrics and events name it.

/// Why a pod stays as it is. Its `Display` is a sentence for people; [`Skip::reason`] is for machines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    #[error("neither the pod nor its namespace is labelled for acceleration")]
    NotLabelled,
    #[error("acceleration is declined by label")]
    Disabled,
    #[error("the label's value {0:?} means nothing here; write p2p")]
    UnknownMode(String),
    #[error("pods of namespace {0} are never changed")]
    ExcludedNamespace(String),
    #[error("the pod is a static pod: the kubelet runs it from a file, which the webhook cannot change")]
    MirrorPod,
    #[error("the pod is for Windows, whose nodes have no peers")]
    Windows,
    #[error("pods with the label {0} belong to an operator that replaces those whose images it does not know")]
    Operator(&'static str),
    #[error("no image of the pod is from a registry that is accelerated")]
    NoAcceleratedImage,
    #[error("every image that could be accelerated is never pulled (imagePullPolicy)")]
    PullNever,
    #[error("every image that could be accelerated already is")]
    AlreadyAccelerated,
    #[error("the pod has no pull secret, or none yet, for any of its images whose registry is accelerated")]
    NoPullSecret,
    #[error("the record of registries is full, so that nodes would not know the image's new name")]
    TooManyRegistries,
    #[error("the service account may not use other secrets than those that it lists (enforce-mountable-secrets)")]
    SecretsEnforced,
    #[error("the pod's annotations have no room for what would be recorded")]
    AnnotationsFull,
    #[error("the request is not the creation of a pod")]
    NotAPod,
    #[error("it could not be decided: {0}")]
    Internal(String),
}

impl Skip {
    /// One word, for metrics and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotLabelled => "NotLabelled",
            Self::Disabled => "Disabled",
            Self::UnknownMode(_) => "UnknownMode",
            Self::ExcludedNamespace(_) => "ExcludedNamespace",
            Self::MirrorPod => "MirrorPod",
            Self::Windows => "Windows",
            Self::Operator(_) => "Operator",
            Self::NoAcceleratedImage => "NoAcceleratedImage",
            Self::PullNever => "PullNever",
            Self::AlreadyAccelerated => "AlreadyAccelerated",
            Self::NoPullSecret => "NoPullSecret",
            Self::TooManyRegistries => "TooManyRegistries",
            Self::SecretsEnforced => "SecretsEnforced",
            Self::AnnotationsFull => "AnnotationsFull",
            Self::NotAPod => "NotAPod",
            Self::Internal(_) => "Internal",
        }
    }
}
