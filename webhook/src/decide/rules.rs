//! Rules of acceleration: the settings, and the decision on one image by them.
//!
//! Invariant: the accelerated name of a registry that is accelerated is never accelerated again.

use std::collections::BTreeSet;

use super::{
    image::Image,
    naming::Naming,
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

/// The decision on one image.
pub(super) enum ImageDecision {
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
    pub(super) fn on(text: &str, rules: &Rules) -> Self {
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
