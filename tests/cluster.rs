//! A whole cluster: the chart is installed, a pod is labelled, and its image comes through the swarm.

mod support;

use support::{KubeSite, Site};

#[test]
fn hold() {
    let site = Site::builder().nodes(2).nodes_reach_upstream(true).build();
    KubeSite::run(&site, "registry.example.com", |cluster| {
        println!("{}", cluster.api().admin().kubeconfig().display());
        while !std::path::Path::new("/tmp/e2e-go-on").exists() {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    });
}
