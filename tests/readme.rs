//! What the README tells people to write works as it stands there.

mod support;

use std::{fs, path::Path};

use support::{Cluster, Image, Site};

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn docker_hub() -> (Cluster, Image) {
    let cluster = Cluster::cold_with(Site::builder().nodes(1).wan_mbit(100).lan_mbit(400), |options| {
        let upstreams = vec!["docker.io=http://10.99.0.2:5000".to_owned()];
        options.mirror.upstreams.clone_from(&upstreams);
        options.peer.upstreams = upstreams;
    });
    let image = Image::new("library/app", "v1").layer_bytes(&[300_000]);
    cluster.registry.push(&image);
    (cluster, image)
}

#[test]
fn containerd_pulls_through_the_readmes_hosts_toml() {
    let hosts = file("docs/examples/hosts.toml");
    assert!(
        file("README.md").contains(&format!("```toml\n{hosts}```")),
        "the README shows another hosts.toml"
    );
    let (cluster, image) = docker_hub();
    cluster.containerds[0].write_hosts("docker.io", &hosts);
    cluster.containerds[0].fetch("docker.io/library/app:v1").expect_ok();
    assert!(cluster.containerds[0].content_digest_ok(&image.layers()[0].digest));
}

/// K3s turns each mirror's endpoints into a hosts.toml with the registry as `server`.
#[test]
fn containerd_pulls_through_what_k3s_makes_of_the_readmes_registries_yaml() {
    let registries = file("docs/examples/registries.yaml");
    assert!(
        file("README.md").contains(&format!("```yaml\n{registries}```")),
        "the README shows another registries.yaml"
    );
    let lines: Vec<&str> = registries.lines().map(str::trim).collect();
    let [_, registry, "endpoint:", endpoint] = lines[..] else {
        panic!("not one mirror with one endpoint: {registries}");
    };
    let (registry, endpoint) = (
        registry.trim_end_matches(':'),
        endpoint.trim_start_matches("- ").trim_matches('"'),
    );
    let hosts = format!(
        "server = \"https://registry-1.docker.io/v2\"\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n\n[host]\n[host.\"{endpoint}/v2\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    let (cluster, image) = docker_hub();
    cluster.containerds[0].write_hosts(registry, &hosts);
    cluster.containerds[0].fetch("docker.io/library/app:v1").expect_ok();
    assert!(cluster.containerds[0].content_digest_ok(&image.layers()[0].digest));
}
