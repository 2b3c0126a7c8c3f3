//! Explanation of a review to a user: its result and the reasons, by the code that decides. Nothing is written.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{
    Cluster, ClusterError, WebhookConfig,
    copies::sources::{Reader, Sources},
    decide::{
        image::Image,
        image_field::images,
        keyring::Keyring,
        mode::Mode,
        naming::{NameStyle, original_registry},
        patch::{SecretCopy, patch, records},
        plan::{PlanDraft, PodPlan},
        pull_secret::PullSecret,
        rules::Rules,
        skip::Skip,
    },
};

/// The result of a review, and the reasons in the order in which they count.
#[derive(Clone, Debug)]
pub struct Explanation {
    pub outcome: Result<Preview, Skip>,
    pub steps: Vec<Step>,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub about: String,
    pub finding: String,
    /// Whether it speaks for acceleration.
    pub is_good: bool,
}

/// A pod as it would be.
#[derive(Clone, Debug)]
pub struct Preview {
    /// A JSON patch (RFC 6902).
    pub patch: Vec<Value>,
    /// Each image that would change, and what to.
    pub images: Vec<(String, String)>,
    /// Each pull secret that would be copied, and the copy.
    pub secrets: Vec<(String, String)>,
}

/// Explains `pod`, whose namespace has `namespace_labels`. Nothing is written.
///
/// # Errors
/// [`ClusterError`].
pub async fn explain(
    cluster: &Cluster,
    config: &WebhookConfig,
    pod: &Value,
    namespace: &str,
    namespace_labels: Option<&Map<String, Value>>,
) -> Result<Explanation, ClusterError> {
    let rules = config.rules();
    let mut steps = vec![label_step(pod, namespace_labels), namespace_step(namespace, &rules)];
    let image_steps = || {
        let images = images(pod).into_iter();
        images.map(|(field, text)| image_step(&field.name, &text, &rules))
    };
    let draft = match PlanDraft::of(pod, namespace, namespace_labels, &rules) {
        Ok(draft) => draft,
        Err(skip) => {
            if matches!(skip, Skip::NoAcceleratedImage | Skip::AlreadyAccelerated) {
                steps.extend(image_steps());
            }
            let outcome = Err(skip);
            return Ok(Explanation { outcome, steps });
        }
    };
    steps.extend(image_steps());
    let sources = Sources::read(cluster, namespace, &draft, &rules, Reader::User).await?;
    let secrets = sources.secrets;
    if rules.naming.style != NameStyle::Mirror {
        steps.extend(secrets.iter().map(|secret| secret_step(secret, &draft)));
    }
    let planned = draft.with_secrets(&secrets);
    if planned.is_err() && secrets.is_empty() {
        steps.push(Step {
            about: "pull secrets".to_owned(),
            finding: "the pod names none, nor does its service account".to_owned(),
            is_good: false,
        });
    }
    let outcome = planned.map(|plan| Preview::of(pod, &plan, config));
    Ok(Explanation { outcome, steps })
}

impl Preview {
    fn of(pod: &Value, plan: &PodPlan, config: &WebhookConfig) -> Self {
        let copy_of = |source: &String| SecretCopy {
            source: source.clone(),
            copy: config.secret_name.of(source),
        };
        let copies: Vec<SecretCopy> = plan.copies.iter().map(|needed| copy_of(&needed.name)).collect();
        let new = plan.changes.iter().filter(|change| !change.is_done);
        Self {
            patch: patch(pod, plan, &copies),
            images: new
                .map(|change| (change.original.clone(), change.accelerated.clone()))
                .collect(),
            secrets: copies.into_iter().map(|copy| (copy.source, copy.copy)).collect(),
        }
    }
}

/// The images of a pod that have accelerated names, under whatever settings: those that only nodes with our configuration can pull.
pub fn accelerated_images(pod: &Value) -> BTreeSet<String> {
    let is_accelerated = |text: &String| {
        let image: Option<Image> = text.parse().ok();
        image.is_some_and(|image| original_registry(&image.registry).is_some())
    };
    images(pod)
        .into_iter()
        .map(|(_, text)| text)
        .filter(is_accelerated)
        .collect()
}

/// Whether the webhook has recorded on `pod` that it has accelerated it. Its metadata is enough.
pub fn is_recorded(pod: &Value) -> bool {
    records(pod).next().is_some()
}

/// The names of the copies of pull secrets that `pod` needs. Its metadata is enough.
pub fn recorded_copies(pod: &Value) -> BTreeSet<String> {
    let copies_of = |record: Value| -> Vec<String> {
        let copies = record["secrets"].as_object().into_iter().flatten();
        copies
            .filter_map(|(_, copy)| copy.as_str().map(ToOwned::to_owned))
            .collect()
    };
    records(pod).flat_map(copies_of).collect()
}

fn label_step(pod: &Value, namespace_labels: Option<&Map<String, Value>>) -> Step {
    let mode = Mode::of(pod["metadata"]["labels"].as_object(), namespace_labels);
    let finding = match &mode {
        Mode::Accelerate(asked) if asked.is_on_pod => format!("the pod asks for it by {}", asked.name),
        Mode::Accelerate(asked) => format!("its namespace asks for it by {}", asked.name),
        Mode::Disabled => Skip::Disabled.to_string(),
        Mode::Unknown(value) => Skip::UnknownMode(value.clone()).to_string(),
        Mode::Unlabelled => format!(
            "{}; a label on a Deployment itself does nothing, it has to be on its pod template",
            Skip::NotLabelled
        ),
    };
    Step {
        about: "label".to_owned(),
        finding,
        is_good: matches!(mode, Mode::Accelerate(_)),
    }
}

fn namespace_step(namespace: &str, rules: &Rules) -> Step {
    let is_excluded = rules.excluded_namespaces.contains(namespace);
    let finding = if is_excluded {
        Skip::ExcludedNamespace(namespace.to_owned()).to_string()
    } else {
        format!("pods of {namespace} may be changed")
    };
    Step {
        about: "namespace".to_owned(),
        finding,
        is_good: !is_excluded,
    }
}

fn image_step(name: &str, text: &str, rules: &Rules) -> Step {
    let (finding, is_good) = rules.describe_image(text);
    Step {
        about: format!("image of {name}"),
        finding: format!("{text}: {finding}"),
        is_good,
    }
}

fn secret_step(secret: &PullSecret, draft: &PlanDraft) -> Step {
    let fits = |keyring: &Keyring| draft.changes.iter().any(|change| change.is_pulled_with(keyring));
    let (finding, is_good) = match &secret.found {
        Err(unusable) => (unusable.why().to_owned(), false),
        Ok((_, keyring)) if fits(keyring) => ("it is for an image that is accelerated".to_owned(), true),
        Ok(_) => ("it is for other images".to_owned(), false),
    };
    Step {
        about: format!("pull secret {}", secret.name),
        finding,
        is_good,
    }
}
