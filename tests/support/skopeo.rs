//! skopeo, a client that shares no code with containerd.

use std::{path::Path, time::Instant};

use super::{netns::Netns, outcome::CommandOutcome};

/// Copies `docker://<image>` over plain HTTP into a folder, from inside a namespace. `image` names host and port.
pub fn copy_to_dir(netns: &Netns, image: &str, dir: &Path) -> CommandOutcome {
    let mut command = netns.command("skopeo");
    // Without the policy the copy needs /etc/containers/policy.json, which not every installation has.
    command.args(["--insecure-policy", "copy", "--src-tls-verify=false"]);
    command
        .arg(format!("docker://{image}"))
        .arg(format!("dir:{}", dir.display()));
    CommandOutcome::of(&mut command, Instant::now())
}
