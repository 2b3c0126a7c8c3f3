//! Plan of the changes to a pod, in two steps: a draft of the images that are to be accelerated, then those whose pull secrets allow it.
//!
//! The draft needs no I/O; it says which pull secrets have to be read before there is a plan.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    image::Image,
    image_field::{ImageField, images},
    keyring::Keyring,
    mode::{Mode, ModeLabel},
    naming::NameStyle,
    pull_secret::{PullSecret, Unusable, names},
    rules::{ImageDecision, Rules},
    skip::Skip,
};

/// On what the kubelet tells the API server of its static pods.
const MIRROR_POD: &str = "kubernetes.io/config.mirror";
/// Labels of pods whose operators compare images with what they asked for, and would recreate the pod without end: CloudNativePG.
const OPERATORS: [&str; 1] = ["cnpg.io/podRole"];

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
    /// The change of an image that an earlier review has accelerated to `text` already.
    fn done(field: ImageField, text: String, original: Image) -> Self {
        Self {
            field,
            original: format!("{}{}", original.name(), original.suffix),
            accelerated: text,
            is_done: true,
            registry: original.registry,
            repository: original.repository,
            needs_secret: false,
        }
    }

    /// Whether the kubelet would pull the original with a secret of `keyring`.
    pub(crate) fn is_pulled_with(&self, keyring: &Keyring) -> bool {
        keyring.is_for(&self.registry, &self.repository)
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
        let (changes, untouched) = decide_images(pod, rules)?;
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
        // A name that stays needs no other secret.
        let is_renamed = self.style != NameStyle::Mirror;
        let secrets = if is_renamed { secrets } else { &[] };
        // Without a copy of a secret that comes later the accelerated image could never be pulled, and the original could.
        let waits = secrets
            .iter()
            .any(|secret| matches!(secret.found, Err(Unusable::Perhaps(_))));
        let (mut changes, mut untouched) = (Vec::new(), self.untouched);
        let mut copies = BTreeMap::new();
        for change in self.changes {
            let has_secret = add_copies(&mut copies, &change, secrets);
            let lacks_secret = !has_secret && (change.needs_secret || waits) && is_renamed;
            if lacks_secret && !change.is_done {
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

/// The images of a pod that are to be changed, and those that stay.
///
/// # Errors
/// [`Skip`]: none is to be changed.
fn decide_images(pod: &Value, rules: &Rules) -> Result<(Vec<ImageChange>, Vec<UntouchedImage>), Skip> {
    let (mut changes, mut untouched) = (Vec::new(), Vec::new());
    let mut skip = Skip::NoAcceleratedImage;
    for (field, text) in images(pod) {
        let mut leave = |field, image, why| untouched.push(UntouchedImage { field, image, why });
        match ImageDecision::on(&text, rules) {
            ImageDecision::Accelerate { .. } if field.is_never_pulled(pod) => {
                skip = Skip::PullNever;
                let why = "it is never pulled, and a node that has it knows it by this name".to_owned();
                leave(field, text, why);
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
            ImageDecision::AlreadyAccelerated(original) => changes.push(ImageChange::done(field, text, original)),
            ImageDecision::Leave(why) => leave(field, text, why),
        }
    }
    if changes.is_empty() {
        return Err(skip);
    }
    Ok((changes, untouched))
}

/// Adds to `copies` every secret that `change` is pulled with, by its place among `secrets`. Whether there is one.
fn add_copies(copies: &mut BTreeMap<usize, NeededCopy>, change: &ImageChange, secrets: &[PullSecret]) -> bool {
    let mut has_secret = false;
    for (index, secret) in secrets.iter().enumerate() {
        let Ok((source, keyring)) = &secret.found else {
            continue;
        };
        if change.is_pulled_with(keyring) {
            has_secret = true;
            let copy = copies.entry(index).or_insert_with(|| NeededCopy {
                name: secret.name.clone(),
                source: source.clone(),
                keyring: keyring.clone(),
                registries: BTreeSet::new(),
            });
            copy.registries.insert(change.registry.clone());
        }
    }
    has_secret
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
