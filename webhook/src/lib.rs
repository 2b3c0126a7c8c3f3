//! The admission webhook: which images of a pod are pulled through the swarm, and what the pod needs for it.
//!
//! [`Webhook`] answers the API server. `decide` has the rules and is pure; `copies` keeps the pull secrets that accelerated images
//! need; `certificates` and `leader` keep the rest going. Nothing here ever refuses a pod.

mod certificates;
mod cluster;
mod config;
mod copies;
mod decide;
mod events;
mod explain;
mod hosts;
mod leader;
mod metrics;
mod review;
mod webhook;

pub use certificates::reconciler::CertificateSource;
pub use cluster::{Cluster, ClusterError, Objects, is_object_name};
pub use config::WebhookConfig;
pub use copies::copy::{COPY_LABEL, CopyName, select_copies};
pub use decide::{
    mode::{LABELS, P2P},
    naming::{NameStyle, Naming},
    registries::Registries,
    rules::RequiresSecret,
    skip::Skip,
};
pub use explain::{Explanation, Preview, Step, accelerated_images, explain, is_recorded, recorded_copies};
pub use review::server::{NAMESPACE_PATH, POD_PATH};
pub use webhook::{StartError, Webhook};
