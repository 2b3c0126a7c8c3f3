//! Plan of the changes to a pod, in two steps: a draft of the images that are to be accelerated, then those whose pull secrets allow it.
//!
//! The draft needs no I/O; it says which pull secrets have to be read before there is a plan.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    image::Image,
    keyring::Keyring,
    mode::{Mode, ModeLabel},
    naming::{NameStyle, Naming},
    registries::{Entry, Registries},
};

/// The settings that decide on pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub registries: Registries,
    pub naming: Naming,
    pub requires_secret: RequiresSecret,
    /// The namespaces whose secrets may be read; empty for all.
    pub secrets_namespaces: BTreeSet<String>,
    /// Namespaces whose pods are left alone, so that no part of the cluster or of Piecemeal waits for the webhook.
    pub excluded_namespaces: BTreeSet<String>,
}

/// Whether an image is only accelerated together with a pull secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiresSecret {
    /// One of a registry that was named by an instance's id, as the vendor does it.
    Instances,
    Always,
    Never,
}

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

/// The field of a pod that names an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageField {
    /// A JSON pointer to the image's text.
    pub pointer: String,
    /// `container` or `volume`, for people.
    pub kind: &'static str,
    pub name: String,
}

/// An image that is accelerated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageChange {
    pub field: ImageField,
    /// As the pod has it, or had it before an earlier review.
    pub original: String,
    pub accelerated: String,
    /// Whether an earlier review has done it. Its secret may still be missing.
    pub is_done: bool,
    pub registry: String,
    repository: String,
    needs_secret: bool,
}

/// An image that is left as it is, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UntouchedImage {
    pub field: ImageField,
    pub image: String,
    pub why: String,
}

/// The plan for a pod before its pull secrets are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlanDraft {
    pub mode_label: ModeLabel,
    pub changes: Vec<ImageChange>,
    pub untouched: Vec<UntouchedImage>,
    /// The pod's own pull secrets, in order; none when it has no list of them.
    pub secrets: Option<Vec<String>>,
    /// The service account whose pull secrets count when the pod has none.
    pub account: String,
    style: NameStyle,
}

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

/// The changes to one pod.
#[derive(Clone, Debug)]
pub(crate) struct PodPlan {
    pub mode_label: ModeLabel,
    pub changes: Vec<ImageChange>,
    pub untouched: Vec<UntouchedImage>,
    pub copies: Vec<NeededCopy>,
    pub style: NameStyle,
}

/// A pull secret that the pod needs a copy of.
#[derive(Clone, Debug)]
pub(crate) struct NeededCopy {
    pub name: String,
    pub source: Value,
    pub keyring: Keyring,
    /// The registries of the pod's images that it is for.
    pub registries: BTreeSet<String>,
}

impl ImageChange {
    /// Whether the kubelet would pull the original with a secret of `keyring`.
    pub(crate) fn is_pulled_with(&self, keyring: &Keyring) -> bool {
        keyring.is_for(&self.registry, &self.repository)
    }
}

impl Rules {
    /// The decision on one image in words, and whether it is or would be accelerated.
    pub(crate) fn describe_image(&self, image: &str) -> (String, bool) {
        match ImageDecision::on(image, self) {
            ImageDecision::Accelerate {
                accelerated,
                needs_secret,
                ..
            } => {
                let condition = if needs_secret {
                    ", given a pull secret for it"
                } else {
                    ""
                };
                (format!("it would be {accelerated}{condition}"), true)
            }
            ImageDecision::AlreadyAccelerated(_) => ("it is accelerated".to_owned(), true),
            ImageDecision::Leave(why) => (why, false),
        }
    }
}

impl PlanDraft {
    /// # Errors
    /// [`Skip`]: no image of the pod is to be changed.
    pub(crate) fn of(
        pod: &Value,
        namespace: &str,
        namespace_labels: Option<&Map<String, Value>>,
        rules: &Rules,
    ) -> Result<Self, Skip> {
        let mode_label = match Mode::of(pod["metadata"]["labels"].as_object(), namespace_labels) {
            Mode::Accelerate(label) => label,
            Mode::Disabled => return Err(Skip::Disabled),
            Mode::Unknown(value) => return Err(Skip::UnknownMode(value)),
            Mode::Unlabelled => return Err(Skip::NotLabelled),
        };
        if rules.excluded_namespaces.contains(namespace) {
            return Err(Skip::ExcludedNamespace(namespace.to_owned()));
        }
        if let Some(skip) = unsuited(pod) {
            return Err(skip);
        }
        let (mut changes, mut untouched) = (Vec::new(), Vec::new());
        let mut is_never_pulled = false;
        for (field, text) in images(pod) {
            match ImageDecision::on(&text, rules) {
                ImageDecision::Accelerate { .. } if field.is_never_pulled(pod) => {
                    is_never_pulled = true;
                    untouched.push(UntouchedImage {
                        field,
                        image: text,
                        why: "it is never pulled, and a node that has it knows it by this name".to_owned(),
                    });
                }
                ImageDecision::Accelerate {
                    image,
                    accelerated,
                    needs_secret,
                } => changes.push(ImageChange {
                    field,
                    original: text,
                    accelerated,
                    is_done: false,
                    registry: image.registry,
                    repository: image.repository,
                    needs_secret,
                }),
                ImageDecision::AlreadyAccelerated(original) => changes.push(ImageChange {
                    field,
                    original: format!("{}{}", original.name(), original.suffix),
                    accelerated: text,
                    is_done: true,
                    registry: original.registry,
                    repository: original.repository,
                    needs_secret: false,
                }),
                ImageDecision::Leave(why) => untouched.push(UntouchedImage {
                    field,
                    image: text,
                    why,
                }),
            }
        }
        if changes.is_empty() {
            return Err(if is_never_pulled {
                Skip::PullNever
            } else {
                Skip::NoAcceleratedImage
            });
        }
        let list = &pod["spec"]["imagePullSecrets"];
        let has_list = list.as_array().is_some_and(|list| !list.is_empty());
        Ok(Self {
            mode_label,
            changes,
            untouched,
            secrets: has_list.then(|| names(list)),
            account: pod["spec"]["serviceAccountName"]
                .as_str()
                .filter(|name| !name.is_empty())
                .unwrap_or("default")
                .to_owned(),
            style: rules.naming.style,
        })
    }

    /// Decides per image, so that a public image in a private pod is not changed by accident.
    ///
    /// # Errors
    /// [`Skip::NoPullSecret`], or [`Skip::AlreadyAccelerated`] when nothing is left to do.
    pub(crate) fn with_secrets(self, secrets: &[PullSecret]) -> Result<PodPlan, Skip> {
        let (mut changes, mut untouched) = (Vec::new(), self.untouched);
        let mut copies: BTreeMap<usize, NeededCopy> = BTreeMap::new();
        // A name that stays needs no other secret.
        let secrets = if self.style == NameStyle::Mirror { &[] } else { secrets };
        for change in self.changes {
            let mut fitting = 0;
            for (index, name, source, keyring) in usable(secrets) {
                if change.is_pulled_with(keyring) {
                    fitting += 1;
                    let copy = copies.entry(index).or_insert_with(|| NeededCopy {
                        name: name.to_owned(),
                        source: source.clone(),
                        keyring: keyring.clone(),
                        registries: BTreeSet::new(),
                    });
                    copy.registries.insert(change.registry.clone());
                }
            }
            // Without a copy of a secret that comes later the accelerated image could never be pulled, and the original could.
            let waits = secrets
                .iter()
                .any(|secret| matches!(secret.found, Err(Unusable::Perhaps(_))));
            let is_short = fitting == 0 && (change.needs_secret || waits) && self.style != NameStyle::Mirror;
            if is_short && !change.is_done {
                untouched.push(UntouchedImage {
                    why: "the pod has no pull secret that is for it".to_owned(),
                    field: change.field,
                    image: change.original,
                });
            } else {
                changes.push(change);
            }
        }
        if changes.is_empty() {
            return Err(Skip::NoPullSecret);
        }
        if copies.is_empty() && changes.iter().all(|change| change.is_done) {
            return Err(Skip::AlreadyAccelerated);
        }
        Ok(PodPlan {
            mode_label: self.mode_label,
            changes,
            untouched,
            copies: copies.into_values().collect(),
            style: self.style,
        })
    }
}

/// Pods that are left alone even when their labels ask for acceleration.
fn unsuited(pod: &Value) -> Option<Skip> {
    let metadata = &pod["metadata"];
    let operator = OPERATORS.iter().find(|label| metadata["labels"].get(**label).is_some());
    if metadata["annotations"].get(MIRROR_POD).is_some() {
        Some(Skip::MirrorPod)
    } else if pod["spec"]["os"]["name"] == "windows" {
        Some(Skip::Windows)
    } else {
        operator.map(|label| Skip::Operator(label))
    }
}

impl ImageField {
    /// The policy stands beside the image.
    fn is_never_pulled(&self, pod: &Value) -> bool {
        let beside = self.pointer.rsplit_once('/').and_then(|(item, _)| pod.pointer(item));
        beside.is_some_and(|item| item["imagePullPolicy"] == "Never" || item["pullPolicy"] == "Never")
    }
}

/// On what the kubelet tells the API server of its static pods.
const MIRROR_POD: &str = "kubernetes.io/config.mirror";
/// Labels of pods whose operators compare images with what they asked for, and would recreate the pod without end: CloudNativePG.
const OPERATORS: [&str; 1] = ["cnpg.io/podRole"];

fn usable(secrets: &[PullSecret]) -> impl Iterator<Item = (usize, &str, &Value, &Keyring)> {
    secrets.iter().enumerate().filter_map(|(index, secret)| {
        let (source, keyring) = secret.found.as_ref().ok()?;
        Some((index, secret.name.as_str(), source, keyring))
    })
}

/// The decision on one image.
enum ImageDecision {
    Accelerate {
        image: Image,
        accelerated: String,
        needs_secret: bool,
    },
    /// With the image that it stands for.
    AlreadyAccelerated(Image),
    Leave(String),
}

impl ImageDecision {
    fn on(text: &str, rules: &Rules) -> Self {
        let image: Image = match text.parse() {
            Ok(image) => image,
            Err(error) => return Self::Leave(error.to_string()),
        };
        // First of all: a pattern of registries fits the accelerated name too.
        if let Some(original) = rules.naming.original(&image)
            && rules.registries.find(&original.registry).is_some()
        {
            return Self::AlreadyAccelerated(original);
        }
        let Some(entry) = rules.registries.find(&image.registry) else {
            return Self::Leave(format!("{} is not accelerated", image.registry));
        };
        match rules.naming.accelerate(&image) {
            None => Self::Leave(format!(
                "{} has no accelerated name that a runtime would take",
                image.name()
            )),
            Some(accelerated) => {
                let needs_secret = rules.requires_secret.is_for(entry);
                Self::Accelerate {
                    image,
                    accelerated,
                    needs_secret,
                }
            }
        }
    }
}

impl RequiresSecret {
    fn is_for(self, entry: &Entry) -> bool {
        match self {
            Self::Instances => entry.is_instance,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Every image of a pod: of its init containers, its containers and its image volumes.
pub(crate) fn images(pod: &Value) -> Vec<(ImageField, String)> {
    let lists = [
        ("container", "initContainers", "/image"),
        ("container", "containers", "/image"),
        ("volume", "volumes", "/image/reference"),
    ];
    let mut found = Vec::new();
    for (kind, list, within) in lists {
        for (index, item) in pod["spec"][list].as_array().into_iter().flatten().enumerate() {
            let Some(text) = item
                .pointer(within)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
            else {
                continue;
            };
            let name = item["name"].as_str().unwrap_or_default().to_owned();
            let pointer = format!("/spec/{list}/{index}{within}");
            found.push((ImageField { pointer, kind, name }, text.to_owned()));
        }
    }
    found
}

/// The names in a list of references.
pub(crate) fn names(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|secret| secret["name"].as_str().map(ToOwned::to_owned))
        .collect()
}
